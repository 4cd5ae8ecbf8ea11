//! Collects the files that an instance is made from.
//!
//! The kind of target determines the start of a walk and the references of each file. The walk follows links, records
//! every path that it reads, and computes the digest. *Invariant:* no link is followed out of the repository or to a
//! folder.

use crate::{
    model::{Digest, Digester},
    ports::{Entry, EntryKind, Files, FilesError, join},
};
use std::collections::{BTreeMap, BTreeSet};

/// The most files of one closure.
const CLOSURE_FILES_MAX: usize = 20_000;

/// The deepest folder below a root module.
const FOLDER_DEPTH_MAX: usize = 32;

/// The files that an instance is made from.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Closure {
    /// The files by path in the repository: git object id, and whether the file is executable.
    pub files: BTreeMap<String, (String, bool)>,
    /// The content digest, with paths relative to the root module.
    pub digest: Option<Digest>,
    /// Whether the root module configures the location of its state.
    pub declares_backend: bool,
}

/// The reason for which an instance has no closure.
#[derive(Debug, thiserror::Error)]
pub enum WalkError {
    /// The path does not exist.
    #[error("`{path}` is not in the repository")]
    Missing {
        /// The path.
        path: String,
    },
    /// The path is outside of the repository, or a link leads out of it.
    #[error("`{path}` leads out of the repository")]
    Outside {
        /// The path.
        path: String,
    },
    /// The path is a link to a folder.
    #[error("`{path}` is a link to a folder, and links to folders are not followed")]
    LinkToFolder {
        /// The path.
        path: String,
    },
    /// The root module has no `.tf` file.
    #[error("`{path}` holds no `.tf` file")]
    NoModule {
        /// The path.
        path: String,
    },
    /// A file does not have the expected format.
    #[error("`{path}` can't be used: {why}")]
    Unreadable {
        /// The path.
        path: String,
        /// The reason.
        why: String,
    },
    /// The closure exceeds the limit of files or depth.
    #[error("`{path}` is made from more than {CLOSURE_FILES_MAX} files or {FOLDER_DEPTH_MAX} levels")]
    TooLarge {
        /// The root module.
        path: String,
    },
    /// The content store can't be read.
    #[error(transparent)]
    Files(#[from] FilesError),
}

/// The identity of a closure: the kind of target, the field that names the paths, and the paths in order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Source {
    /// The kind of target.
    pub kind: &'static str,
    /// The field of the declaration that names the paths.
    pub field: &'static str,
    /// The paths, relative to the root of the repository.
    pub paths: Vec<String>,
}

/// The entries at the paths that were read; `None` if the path did not exist. An entry without an object id is a folder
/// of which only the kind was used.
pub type Looked = BTreeMap<String, Option<(EntryKind, Option<String>)>>;

/// Normalizes a path of the repository.
///
/// # Errors
/// When the path is outside of the repository.
pub fn inside(path: &str) -> Result<String, WalkError> {
    let joined = if path.starts_with('/') { None } else { join("", path) };
    joined.ok_or_else(|| WalkError::Outside { path: path.to_owned() })
}

/// A walk over the files of one instance.
pub struct Walk<'f> {
    /// The content of the revision.
    pub files: &'f dyn Files,
    /// The folder or file at which the walk starts.
    pub root: &'f str,
    /// The files so far.
    pub found: BTreeMap<String, (String, bool)>,
    /// The visited folders.
    pub folders: BTreeSet<String>,
    /// Whether the root module configures the location of its state.
    pub declares_backend: bool,
    /// The paths that were read, with their entries.
    pub looked: &'f mut Looked,
}

impl<'f> Walk<'f> {
    /// Creates a walk that has no files yet.
    pub fn new(files: &'f dyn Files, root: &'f str, looked: &'f mut Looked) -> Self {
        Self { files, root, found: BTreeMap::new(), folders: BTreeSet::new(), declares_backend: false, looked }
    }

    /// Returns the closure of the collected files and of value files. The order of value files is significant.
    ///
    /// # Errors
    /// The value file that can't be used.
    pub fn close(mut self, value_files: &[String]) -> Result<Closure, WalkError> {
        let mut values = vec![];
        for path in value_files {
            values.push(self.file(&inside(path)?)?);
        }
        let mut digester = Digester::new("closure");
        for (path, (id, program)) in &self.found {
            // The digest covers value files by content and order below, independent of their location.
            if values.iter().any(|(value, _)| value == path) && !path.starts_with(&format!("{}/", self.root)) {
                continue;
            }
            let path = relative(self.root, path);
            digester = digester.field(path.as_bytes()).field(id.as_bytes()).field(&[u8::from(*program)]);
        }
        for (_, id) in &values {
            digester = digester.field(b"var-file").field(id.as_bytes());
        }
        Ok(Closure { digest: Some(digester.finish()), declares_backend: self.declares_backend, files: self.found })
    }

    /// Returns whether the walk exceeds its limits.
    pub fn too_large(&self, depth: usize) -> bool {
        depth > FOLDER_DEPTH_MAX || self.found.len() > CLOSURE_FILES_MAX
    }

    /// Reads the entry at a path and records the path.
    ///
    /// # Errors
    /// When the content store can't be read.
    pub fn look(&mut self, path: &str) -> Result<Option<Entry>, FilesError> {
        let entry = self.files.entry(path)?;
        self.looked.insert(path.to_owned(), entry.as_ref().map(|entry| (entry.sort, Some(entry.id.clone()))));
        Ok(entry)
    }

    /// Adds one file. For a link, the content of its target file is added.
    ///
    /// # Errors
    /// When the path does not exist, or a link leads out of the repository or to a folder.
    pub fn file(&mut self, path: &str) -> Result<(String, String), WalkError> {
        let missing = || WalkError::Missing { path: path.to_owned() };
        let mut target = path.to_owned();
        // Eight links are followed. A longer chain or a cycle ends as a missing path.
        for _ in 0..8 {
            let entry = self.look(&target)?.ok_or_else(missing)?;
            match entry.sort {
                EntryKind::File | EntryKind::Program => {
                    self.found.insert(path.to_owned(), (entry.id.clone(), entry.sort == EntryKind::Program));
                    return Ok((path.to_owned(), entry.id));
                }
                EntryKind::Link => {
                    let link = self.files.read(&target)?;
                    let link = String::from_utf8_lossy(&link).into_owned();
                    let folder = target.rsplit_once('/').map_or("", |(folder, _)| folder);
                    let outside = || WalkError::Outside { path: path.to_owned() };
                    if link.starts_with('/') {
                        return Err(outside());
                    }
                    target = join(folder, &link).ok_or_else(outside)?;
                }
                EntryKind::Folder if target != path => return Err(WalkError::LinkToFolder { path: path.to_owned() }),
                EntryKind::Folder | EntryKind::Other => return Err(missing()),
            }
        }
        Err(missing())
    }
}

/// Returns the path relative to the root module: `main.tf`, `../../modules/vpc/main.tf`.
fn relative(root: &str, path: &str) -> String {
    let from: Vec<&str> = root.split('/').filter(|p| !p.is_empty()).collect();
    let to: Vec<&str> = path.split('/').collect();
    let common = from.iter().zip(&to).take_while(|(one, two)| one == two).count();
    let mut parts = vec![".."; from.len() - common];
    parts.extend(&to[common..]);
    parts.join("/")
}
