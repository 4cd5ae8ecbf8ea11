//! What conductors and minds ask of hands.
//!
//! Decides nothing. The traits speak in the words of the house, so that a simulated world can stand behind them.
//! *Invariant:* no third party's type appears in a signature here.

use std::sync::Arc;

/// The content of one revision or of a working tree; it never changes under its reader.
pub trait Files: Send + Sync {
    /// What stands in a folder, sorted by name; nothing where there is no such folder.
    ///
    /// # Errors
    /// When the store of the content can't be read.
    fn list(&self, folder: &str) -> Result<Vec<Entry>, FilesError>;
    /// What stands at a path, if anything does.
    ///
    /// # Errors
    /// When the store of the content can't be read.
    fn entry(&self, path: &str) -> Result<Option<Entry>, FilesError>;
    /// The bytes of a file, or the target of a link.
    ///
    /// # Errors
    /// When the file is not there or can't be read.
    fn read(&self, path: &str) -> Result<Arc<[u8]>, FilesError>;
}

/// Something in a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name in its folder.
    pub name: String,
    /// What it is.
    pub sort: Sort,
    /// git's id of its content: equal ids, equal content. Empty for folders of a working tree.
    pub id: String,
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    /// A file.
    File,
    /// A file that may be run.
    Program,
    /// A folder.
    Folder,
    /// A symbolic link.
    Link,
    /// A submodule or a device; never followed.
    Other,
}

/// Content that could not be read.
#[derive(Debug, thiserror::Error)]
#[error("could not read `{path}`: {why}")]
pub struct FilesError {
    /// The path, relative to the root of the repository.
    pub path: String,
    /// What went wrong.
    pub why: String,
}

/// Joins a relative path to a folder, and answers nothing where the result leaves the root.
pub fn join(folder: &str, relative: &str) -> Option<String> {
    let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    for part in relative.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}
