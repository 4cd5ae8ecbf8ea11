//! Presents the content of a revision with edits that are not committed.
//!
//! *Invariant:* the id of an edited file, and of a folder above one, differs from the id in the revision.

use std::{collections::BTreeMap, sync::Arc};

use super::{Entry, EntryKind, Files, FilesError};
use crate::model::Digester;

/// A revision with edited files. An overlay neither adds nor removes files.
pub struct Overlay {
    base: Arc<dyn Files>,
    edits: BTreeMap<String, Arc<[u8]>>,
}

impl Overlay {
    /// Creates an overlay from a revision and the new texts of files, by path.
    pub fn new(base: Arc<dyn Files>, edits: &BTreeMap<String, String>) -> Self {
        let edits = edits.iter().map(|(path, text)| (path.clone(), text.as_bytes().into())).collect();
        Self { base, edits }
    }

    /// Returns an entry with the edits applied. A folder above an edited file has an empty id, because git has no id
    /// for its new content.
    fn seen(&self, path: &str, entry: Entry) -> Entry {
        let below = format!("{path}/");
        let id = match (self.edits.get(path), entry.sort) {
            (Some(bytes), EntryKind::File | EntryKind::Program) => {
                format!("edited-{}", Digester::new("file").field(bytes).finish())
            }
            (None, EntryKind::Folder)
                if path.is_empty() || self.edits.keys().any(|edited| edited.starts_with(&below)) =>
            {
                String::new()
            }
            _ => entry.id,
        };
        Entry { id, ..entry }
    }
}

impl Files for Overlay {
    fn list(&self, folder: &str) -> Result<Vec<Entry>, FilesError> {
        let entries = self.base.list(folder)?.into_iter();
        Ok(entries.map(|entry| self.seen(&super::join(folder, &entry.name).unwrap_or_default(), entry)).collect())
    }
    fn entry(&self, path: &str) -> Result<Option<Entry>, FilesError> {
        Ok(self.base.entry(path)?.map(|entry| self.seen(path, entry)))
    }
    fn read(&self, path: &str) -> Result<Arc<[u8]>, FilesError> {
        self.edits.get(path).map_or_else(|| self.base.read(path), |bytes| Ok(Arc::clone(bytes)))
    }
}
