//! Walks over the files that an instance is made from.

use super::hcl;
use crate::{
    model::{Digest, Digester},
    ports::{Entry, EntryKind, Files, FilesError, join},
};
use std::collections::{BTreeMap, BTreeSet};

/// The most files that one instance may be made from.
pub(super) const CLOSURE_FILES_MAX: usize = 20_000;

/// The deepest folder below a root module.
pub(super) const FOLDER_DEPTH_MAX: usize = 32;

/// Everything that an instance is made from.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Closure {
    /// Each file by its path in the repository, with git's id of its content and whether it may be run.
    pub files: BTreeMap<String, (String, bool)>,
    /// The content hash, with paths relative to the root module.
    pub digest: Option<Digest>,
    /// Whether the root module says where its state is kept.
    pub declares_backend: bool,
}

/// Why an instance has no closure.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// A path that is not there.
    #[error("`{path}` is not in the repository")]
    Missing {
        /// The path.
        path: String,
    },
    /// A path that leaves the repository, itself or by a link.
    #[error("`{path}` leads out of the repository")]
    Outside {
        /// The path.
        path: String,
    },
    /// A link to a folder.
    #[error("`{path}` is a link to a folder, and links to folders are not followed")]
    LinkToFolder {
        /// The path.
        path: String,
    },
    /// A root without any `.tf` file.
    #[error("`{path}` holds no `.tf` file")]
    NoModule {
        /// The path.
        path: String,
    },
    /// A file that can't be read as what it has to be.
    #[error("`{path}` can't be used: {why}")]
    Unreadable {
        /// The path.
        path: String,
        /// The problem.
        why: String,
    },
    /// More files than are read.
    #[error("`{path}` is made from more than {CLOSURE_FILES_MAX} files or {FOLDER_DEPTH_MAX} levels")]
    TooLarge {
        /// The root module.
        path: String,
    },
    /// Content that could not be read.
    #[error(transparent)]
    Files(#[from] FilesError),
}

/// What stood at the paths that were looked at; of a folder that was only seen to be one, no id.
pub(super) type Looked = BTreeMap<String, Option<(EntryKind, Option<String>)>>;

/// A path of the repository, without a way out of it.
pub(super) fn inside(path: &str) -> Result<String, Error> {
    let joined = if path.starts_with('/') { None } else { join("", path) };
    joined.ok_or_else(|| Error::Outside { path: path.to_owned() })
}

pub(super) struct Walk<'f> {
    pub(super) files: &'f dyn Files,
    pub(super) root: &'f str,
    pub(super) found: BTreeMap<String, (String, bool)>,
    pub(super) folders: BTreeSet<String>,
    pub(super) declares_backend: bool,
    pub(super) looked: &'f mut Looked,
}

impl<'f> Walk<'f> {
    pub(super) fn new(files: &'f dyn Files, root: &'f str, looked: &'f mut Looked) -> Self {
        Self { files, root, found: BTreeMap::new(), folders: BTreeSet::new(), declares_backend: false, looked }
    }

    /// The closure of what was found, and of files of values, whose order counts.
    pub(super) fn close(mut self, value_files: &[String]) -> Result<Closure, Error> {
        let mut values = vec![];
        for path in value_files {
            values.push(self.file(&inside(path)?)?);
        }
        let mut digester = Digester::new("closure");
        for (path, (id, program)) in &self.found {
            // Files of values count by content and order below, wherever they lie.
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

    pub(super) fn too_large(&self, depth: usize) -> bool {
        depth > FOLDER_DEPTH_MAX || self.found.len() > CLOSURE_FILES_MAX
    }

    pub(super) fn look(&mut self, path: &str) -> Result<Option<Entry>, FilesError> {
        let entry = self.files.entry(path)?;
        self.looked.insert(path.to_owned(), entry.as_ref().map(|entry| (entry.sort, Some(entry.id.clone()))));
        Ok(entry)
    }

    pub(super) fn folder(&mut self, folder: &str, depth: usize) -> Result<(), Error> {
        if self.too_large(depth) {
            return Err(Error::TooLarge { path: self.root.to_owned() });
        }
        if !self.folders.insert(folder.to_owned()) {
            return Ok(());
        }
        for entry in self.files.list(folder)? {
            let path = if folder.is_empty() { entry.name.clone() } else { format!("{folder}/{}", entry.name) };
            match entry.sort {
                EntryKind::Folder if entry.name == ".terraform" || entry.name == ".git" => {}
                EntryKind::Folder => self.folder(&path, depth + 1)?,
                EntryKind::Other => {}
                EntryKind::File | EntryKind::Program | EntryKind::Link => {
                    if entry.sort == EntryKind::Link {
                        self.file(&path)?;
                    } else {
                        self.found.insert(path.clone(), (entry.id, entry.sort == EntryKind::Program));
                    }
                    if is_module_file(&entry.name) {
                        self.references(folder, &path, depth)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Adds one file, with the content that a link to a file leads to.
    pub(super) fn file(&mut self, path: &str) -> Result<(String, String), Error> {
        let missing = || Error::Missing { path: path.to_owned() };
        let mut target = path.to_owned();
        // A chain of links is followed a few steps; a ring of them ends as missing.
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
                    let outside = || Error::Outside { path: path.to_owned() };
                    if link.starts_with('/') {
                        return Err(outside());
                    }
                    target = join(folder, &link).ok_or_else(outside)?;
                }
                EntryKind::Folder if target != path => return Err(Error::LinkToFolder { path: path.to_owned() }),
                EntryKind::Folder | EntryKind::Other => return Err(missing()),
            }
        }
        Err(missing())
    }

    /// Adds what a module's file names by a literal relative path, where the repository has it.
    pub(super) fn references(&mut self, folder: &str, path: &str, depth: usize) -> Result<(), Error> {
        let bytes = self.files.read(path)?;
        let text = String::from_utf8_lossy(&bytes);
        if folder == self.root && hcl::declares_backend(&text) {
            self.declares_backend = true;
        }
        for (named, whole) in hcl::relative_paths(&text) {
            let literal = if whole { named.as_str() } else { named.rsplit_once('/').map_or("", |(folder, _)| folder) };
            let Some(target) = join(folder, literal) else { continue };
            match self.files.entry(&target)?.map(|entry| entry.sort) {
                // A path that is only partly literal, such as "../${x}", must not pull in the whole repository.
                Some(EntryKind::Folder)
                    if whole || !target.is_empty() && !format!("{folder}/").starts_with(&format!("{target}/")) =>
                {
                    self.look(&target)?;
                    self.folder(&target, depth + 1)?;
                }
                Some(EntryKind::File | EntryKind::Program | EntryKind::Link) => {
                    self.file(&target)?;
                }
                sort => drop(self.looked.entry(target).or_insert(sort.map(|sort| (sort, None)))),
            }
        }
        Ok(())
    }
}

pub(super) fn is_module_file(name: &str) -> bool {
    [".tf", ".tf.json", ".tofu", ".tofu.json"].iter().any(|end| name.ends_with(end))
}

/// The path as seen from the root module: `main.tf`, `../../modules/vpc/main.tf`.
pub(super) fn relative(root: &str, path: &str) -> String {
    let from: Vec<&str> = root.split('/').filter(|p| !p.is_empty()).collect();
    let to: Vec<&str> = path.split('/').collect();
    let common = from.iter().zip(&to).take_while(|(one, two)| one == two).count();
    let mut parts = vec![".."; from.len() - common];
    parts.extend(&to[common..]);
    parts.join("/")
}
