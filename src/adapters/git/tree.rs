//! Reads the content of a revision, or of a working tree, as [`Files`].
//!
//! *Invariant:* never follows a symbolic link, and never reads outside its root.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use git2::{ObjectType, Oid, Repository};
use parking_lot::Mutex;

use crate::ports::{Entry, EntryKind, Files, FilesError};

/// The content of one revision.
pub struct RevisionFiles {
    repository: Mutex<Repository>,
    tree: Oid,
}

impl RevisionFiles {
    pub(super) fn new(repository: Repository, tree: Oid) -> Self {
        Self { repository: Mutex::new(repository), tree }
    }
}

fn sort(mode: i32) -> EntryKind {
    match mode {
        0o040_000 => EntryKind::Folder,
        0o120_000 => EntryKind::Link,
        0o100_755 => EntryKind::Program,
        0o160_000 => EntryKind::Other,
        _ => EntryKind::File,
    }
}

fn failed(path: &str, why: impl ToString) -> FilesError {
    FilesError { path: path.to_owned(), why: why.to_string() }
}

impl Files for RevisionFiles {
    fn list(&self, folder: &str) -> Result<Vec<Entry>, FilesError> {
        let repository = self.repository.lock();
        let root = repository.find_tree(self.tree).map_err(|e| failed(folder, e.message()))?;
        let tree = if folder.is_empty() {
            root
        } else {
            match root.get_path(Path::new(folder)) {
                Ok(entry) if entry.kind() == Some(ObjectType::Tree) => {
                    repository.find_tree(entry.id()).map_err(|e| failed(folder, e.message()))?
                }
                Ok(_) => return Ok(vec![]),
                Err(error) if error.code() == git2::ErrorCode::NotFound => return Ok(vec![]),
                Err(error) => return Err(failed(folder, error.message())),
            }
        };
        let mut entries: Vec<Entry> = tree
            .iter()
            .map(|entry| Entry {
                name: String::from_utf8_lossy(entry.name_bytes()).into_owned(),
                sort: sort(entry.filemode()),
                id: entry.id().to_string(),
            })
            .collect();
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    fn entry(&self, path: &str) -> Result<Option<Entry>, FilesError> {
        if path.is_empty() {
            return Ok(Some(Entry { name: String::new(), sort: EntryKind::Folder, id: self.tree.to_string() }));
        }
        let repository = self.repository.lock();
        let root = repository.find_tree(self.tree).map_err(|e| failed(path, e.message()))?;
        match root.get_path(Path::new(path)) {
            Ok(entry) => Ok(Some(Entry {
                name: path.rsplit('/').next().unwrap_or(path).to_owned(),
                sort: sort(entry.filemode()),
                id: entry.id().to_string(),
            })),
            Err(error) if error.code() == git2::ErrorCode::NotFound => Ok(None),
            Err(error) => Err(failed(path, error.message())),
        }
    }

    fn read(&self, path: &str) -> Result<Arc<[u8]>, FilesError> {
        let repository = self.repository.lock();
        let root = repository.find_tree(self.tree).map_err(|e| failed(path, e.message()))?;
        let entry = root.get_path(Path::new(path)).map_err(|e| failed(path, e.message()))?;
        let blob = repository.find_blob(entry.id()).map_err(|e| failed(path, e.message()))?;
        Ok(blob.content().into())
    }
}

/// The files of a folder on this machine, committed or not.
pub struct WorkingFiles {
    root: PathBuf,
}

impl WorkingFiles {
    /// Returns the files below a folder.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    fn describe(&self, path: &Path, name: String) -> Result<Option<Entry>, FilesError> {
        let shown = path.strip_prefix(&self.root).unwrap_or(path).to_string_lossy().into_owned();
        let kind = match fs::symlink_metadata(path) {
            Ok(kind) => kind,
            Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            Err(error) => return Err(failed(&shown, error)),
        };
        let (sort, id) = if kind.is_dir() {
            (EntryKind::Folder, String::new())
        } else if kind.is_symlink() {
            (EntryKind::Link, String::new())
        } else if kind.is_file() {
            let bytes = fs::read(path).map_err(|error| failed(&shown, error))?;
            let id = Oid::hash_object(ObjectType::Blob, &bytes).map_err(|error| failed(&shown, error.message()))?;
            (if kind.permissions().mode() & 0o100 == 0 { EntryKind::File } else { EntryKind::Program }, id.to_string())
        } else {
            (EntryKind::Other, String::new())
        };
        Ok(Some(Entry { name, sort, id }))
    }

    /// Returns a path below the root, if none of its folders is a symbolic link.
    fn place(&self, path: &str) -> Option<PathBuf> {
        let mut place = self.root.clone();
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        for (index, part) in parts.iter().enumerate() {
            place.push(part);
            if index + 1 < parts.len() && place.is_symlink() {
                return None;
            }
        }
        Some(place)
    }
}

impl Files for WorkingFiles {
    fn list(&self, folder: &str) -> Result<Vec<Entry>, FilesError> {
        let Some(place) = self.place(folder) else { return Ok(vec![]) };
        let reader = match fs::read_dir(&place) {
            Ok(reader) => reader,
            Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
                return Ok(vec![]);
            }
            Err(error) => return Err(failed(folder, error)),
        };
        let mut entries = vec![];
        for item in reader {
            let item = item.map_err(|error| failed(folder, error))?;
            let name = item.file_name().to_string_lossy().into_owned();
            if name != ".git" {
                entries.extend(self.describe(&item.path(), name)?);
            }
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    fn entry(&self, path: &str) -> Result<Option<Entry>, FilesError> {
        match self.place(path) {
            Some(place) => self.describe(&place, path.rsplit('/').next().unwrap_or(path).to_owned()),
            None => Ok(None),
        }
    }

    fn read(&self, path: &str) -> Result<Arc<[u8]>, FilesError> {
        let place = self.place(path).ok_or_else(|| failed(path, "a folder on its way is a link"))?;
        if place.is_symlink() {
            let target = fs::read_link(&place).map_err(|error| failed(path, error))?;
            return Ok(target.to_string_lossy().as_bytes().into());
        }
        fs::read(&place).map(Into::into).map_err(|error| failed(path, error))
    }
}
