//! Reads the files and folders of the declarations, and reuses unchanged ones.
//!
//! Decides which files are read. A file or folder with the same object id as in the earlier revision is reused, so that
//! the cost of a load depends on the size of the change.
//! *Invariant:* a folder with an omitted entry or a link is always read again, because its object id does not cover the
//! omitted entry or the link's target.

use std::{cmp::Ordering, sync::Arc};

use super::{
    document::{File, read_file},
    kinds::Kinds,
};
use crate::{
    model::{Place, Problem},
    ports::{EntryKind, Files, FilesError, join},
};

/// The most files that the declarations may have.
pub const FILES_MAX: usize = 50_000;
/// The deepest folder below the root of the declarations.
const FOLDER_DEPTH_MAX: usize = 16;

/// A folder of the declarations.
#[derive(Debug, Default)]
pub(super) struct Folder {
    /// The object id of the content; empty if the id does not cover everything that was read.
    id: String,
    files: Vec<FileEntry>,
    below: Vec<(String, Arc<Folder>)>,
    /// The number of files in this folder and below.
    pub(super) count: usize,
    /// The problems of omitted entries, in this folder and below.
    pub(super) problems: Vec<Problem>,
}

/// A file with its object id.
#[derive(Debug, Clone)]
struct FileEntry {
    name: String,
    id: String,
    file: Arc<File>,
}

impl Folder {
    /// Reads the declarations. Unchanged parts of `before` are reused.
    pub(super) fn read(
        kinds: &'static Kinds,
        files: &dyn Files,
        root: &str,
        before: Option<&Arc<Self>>,
    ) -> Result<Arc<Self>, FilesError> {
        let id = files.entry(root)?.map(|entry| entry.id).unwrap_or_default();
        Reading { kinds, files, root, count: 0 }.folder("", id, 0, before)
    }

    /// Returns all files, sorted by path.
    pub(super) fn files(&self) -> Vec<&Arc<File>> {
        let mut found = Vec::with_capacity(self.count);
        self.collect(&mut found);
        found
    }

    fn folder_before(&self, name: &str) -> Option<&Arc<Self>> {
        let at = self.below.binary_search_by(|(other, _)| other.as_str().cmp(name)).ok()?;
        Some(&self.below[at].1)
    }

    fn file_before(&self, name: &str, id: &str) -> Option<&Arc<File>> {
        let at = self.files.binary_search_by(|entry| entry.name.as_str().cmp(name)).ok()?;
        Some(&self.files[at]).filter(|entry| !id.is_empty() && entry.id == id).map(|entry| &entry.file)
    }

    fn collect<'f>(&'f self, found: &mut Vec<&'f Arc<File>>) {
        found.extend(self.files.iter().map(|entry| &entry.file));
        for (_, folder) in &self.below {
            folder.collect(found);
        }
    }

    /// Collects the files that only `self` has, and those that only `other` has.
    pub(super) fn differences<'f>(
        &'f self,
        other: &'f Self,
        removed: &mut Vec<&'f Arc<File>>,
        added: &mut Vec<&'f Arc<File>>,
    ) {
        for (a, b) in pairs(&self.files, &other.files, |a, b| a.name.cmp(&b.name)) {
            if a.zip(b).is_some_and(|(a, b)| Arc::ptr_eq(&a.file, &b.file)) {
                continue;
            }
            removed.extend(a.map(|entry| &entry.file));
            added.extend(b.map(|entry| &entry.file));
        }
        for (a, b) in pairs(&self.below, &other.below, |a, b| a.0.cmp(&b.0)) {
            match (a, b) {
                (Some((_, a)), Some((_, b))) if Arc::ptr_eq(a, b) => {}
                (Some((_, a)), Some((_, b))) => a.differences(b, removed, added),
                (a, b) => {
                    a.iter().for_each(|(_, a)| a.collect(removed));
                    b.iter().for_each(|(_, b)| b.collect(added));
                }
            }
        }
    }
}

/// Merges two sorted lists to pairs of equal entries.
fn pairs<'l, T>(
    first: &'l [T],
    second: &'l [T],
    order: impl Fn(&T, &T) -> Ordering,
) -> Vec<(Option<&'l T>, Option<&'l T>)> {
    let (mut left, mut right) = (first.iter().peekable(), second.iter().peekable());
    let mut found = Vec::with_capacity(first.len().max(second.len()));
    loop {
        let order = match (left.peek(), right.peek()) {
            (None, None) => return found,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(first), Some(second)) => order(first, second),
        };
        let first = if order == Ordering::Greater { None } else { left.next() };
        let second = if order == Ordering::Less { None } else { right.next() };
        found.push((first, second));
    }
}

struct Reading<'f> {
    kinds: &'static Kinds,
    files: &'f dyn Files,
    root: &'f str,
    count: usize,
}

impl Reading<'_> {
    fn folder(
        &mut self,
        path: &str,
        id: String,
        depth: usize,
        before: Option<&Arc<Folder>>,
    ) -> Result<Arc<Folder>, FilesError> {
        if let Some(before) = before
            && !id.is_empty()
            && before.id == id
            && self.count + before.count <= FILES_MAX
        {
            self.count += before.count;
            return Ok(Arc::clone(before));
        }
        let mut folder = Folder { id, ..Folder::default() };
        let mut whole = true;
        for entry in self.files.list(&join(self.root, path).unwrap_or_default())? {
            let place = if path.is_empty() { entry.name.clone() } else { format!("{path}/{}", entry.name) };
            let problem = |kind, message| Problem::new(kind, &place.as_str().into(), Place::default(), message);
            match entry.sort {
                EntryKind::Folder if depth >= FOLDER_DEPTH_MAX => {
                    folder
                        .problems
                        .push(problem("too-deep", format!("folders below {FOLDER_DEPTH_MAX} levels are not read")));
                }
                EntryKind::Folder => {
                    let before = before.and_then(|before| before.folder_before(&entry.name));
                    let below = self.folder(&place, entry.id, depth + 1, before)?;
                    whole &= !below.id.is_empty();
                    folder.problems.extend(below.problems.iter().cloned());
                    folder.count += below.count;
                    folder.below.push((entry.name, below));
                }
                EntryKind::File | EntryKind::Program | EntryKind::Link
                    if place.ends_with(".yaml") || place.ends_with(".yml") =>
                {
                    if self.count >= FILES_MAX {
                        folder
                            .problems
                            .push(problem("too-many-files", format!("more than {FILES_MAX} files are not read")));
                        break;
                    }
                    whole &= entry.sort != EntryKind::Link;
                    let id = if entry.sort == EntryKind::Link { String::new() } else { entry.id };
                    let before = before.and_then(|before| before.file_before(&entry.name, &id));
                    let file = before
                        .cloned()
                        .unwrap_or_else(|| Arc::new(read_file(self.kinds, self.files, self.root, &place)));
                    self.count += 1;
                    folder.count += 1;
                    folder.files.push(FileEntry { name: entry.name, id, file });
                }
                _ => {}
            }
        }
        if !whole || !folder.problems.is_empty() {
            folder.id.clear();
        }
        Ok(Arc::new(folder))
    }
}
