//! Provides a repository in memory.

use std::{collections::BTreeMap, sync::Arc};

use evenkeel::ports::{Entry, EntryKind, Files, FilesError};

/// Files by path; a content that begins with `link:` is a link.
#[derive(Default, Clone)]
pub(crate) struct Memory(pub(crate) BTreeMap<String, Vec<u8>>);

impl Memory {
    /// Returns a repository with these files.
    pub(crate) fn new(files: &[(&str, &str)]) -> Self {
        Self(files.iter().map(|(path, text)| ((*path).to_owned(), text.as_bytes().to_vec())).collect())
    }
    /// Adds a file.
    pub(crate) fn with(mut self, path: &str, text: impl AsRef<[u8]>) -> Self {
        self.0.insert(path.to_owned(), text.as_ref().to_vec());
        self
    }
}

/// Returns an id for the content of a folder, as git does.
fn folder_id(files: &BTreeMap<String, Vec<u8>>, prefix: &str) -> String {
    let below = files.range(prefix.to_owned()..).take_while(|(path, _)| path.starts_with(prefix));
    format!(
        "f{:x}",
        below
            .flat_map(|(path, content)| path.bytes().chain(content.iter().copied()))
            .fold(7_u64, |hash, c| hash.wrapping_mul(1_000_003).wrapping_add(u64::from(c) + 1))
    )
}

fn entry(name: &str, content: &[u8]) -> Entry {
    let sort = if content.starts_with(b"link:") { EntryKind::Link } else { EntryKind::File };
    let id = format!(
        "{:x}-{}",
        content.len(),
        content.iter().fold(7_u64, |hash, c| hash.wrapping_mul(31).wrapping_add(u64::from(*c)))
    );
    Entry { name: name.to_owned(), sort, id }
}

impl Files for Memory {
    fn list(&self, folder: &str) -> Result<Vec<Entry>, FilesError> {
        let prefix = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        let mut entries: BTreeMap<String, Entry> = BTreeMap::new();
        for (path, content) in self.0.iter() {
            if let Some(rest) = path.strip_prefix(&prefix) {
                match rest.split_once('/') {
                    Some((name, _)) => drop(entries.insert(
                        name.to_owned(),
                        Entry {
                            name: name.to_owned(),
                            sort: EntryKind::Folder,
                            id: folder_id(&self.0, &format!("{prefix}{name}/")),
                        },
                    )),
                    None => drop(entries.insert(rest.to_owned(), entry(rest, content))),
                }
            }
        }
        Ok(entries.into_values().collect())
    }
    fn entry(&self, path: &str) -> Result<Option<Entry>, FilesError> {
        if let Some(content) = self.0.get(path) {
            return Ok(Some(entry(path.rsplit('/').next().unwrap(), content)));
        }
        let prefix = format!("{path}/");
        let folder = path.is_empty() || self.0.keys().any(|other| other.starts_with(&prefix));
        Ok(folder.then(|| Entry {
            name: path.to_owned(),
            sort: EntryKind::Folder,
            id: folder_id(&self.0, if path.is_empty() { "" } else { &prefix }),
        }))
    }
    fn read(&self, path: &str) -> Result<Arc<[u8]>, FilesError> {
        let content = self.0.get(path).ok_or_else(|| FilesError { path: path.to_owned(), why: "not there".into() })?;
        Ok(content.strip_prefix(b"link:").unwrap_or(content).into())
    }
}
