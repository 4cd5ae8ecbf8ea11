//! Everything that an instance is made from (R1.2): its root module, the local modules and files that this names
//! transitively, its variable files.
//!
//! Decides which files those are. What a file names is read from its literal texts, so the closure is never smaller
//! than what tofu reads by literal path; it may be larger. A work tree holds exactly the closure and nothing else, so
//! that nothing can be used that the digest does not cover.
//! Never follows a link out of the repository, or into a folder. Paths enter the digest relative to the root module:
//! a folder that moves as a whole is the same content.

use std::collections::{BTreeMap, BTreeSet};

use super::hcl;
use crate::{
    model::{Digest, Digester},
    port::{Files, FilesError, Sort, join},
};

/// The most files that one instance may be made from.
pub const CLOSURE_FILES_MAX: usize = 20_000;
/// The deepest folder below a root module.
const FOLDER_DEPTH_MAX: usize = 32;

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
pub enum Error {
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

/// Collects the closure of a root module and its variable files.
///
/// # Errors
/// When a path is missing, leaves the repository, or is larger than what is read.
pub fn of_tofu(files: &dyn Files, root: &str, var_files: &[String]) -> Result<Closure, Error> {
    let inside = |path: &str| if path.starts_with('/') { None } else { join("", path) };
    let root = inside(root).ok_or_else(|| Error::Outside { path: root.to_owned() })?;
    let mut walk = Walk { files, root: &root, found: BTreeMap::new(), folders: BTreeSet::new(), declares_backend: false };
    match walk.files.entry(&root)? {
        Some(entry) if entry.sort == Sort::Folder => {}
        Some(_) | None => return Err(Error::Missing { path: root.clone() }),
    }
    if !walk.files.list(&root)?.iter().any(|entry| is_module_file(&entry.name)) {
        return Err(Error::NoModule { path: root.clone() });
    }
    walk.folder(&root, 0)?;
    let mut var_ids = vec![];
    for path in var_files {
        let path = inside(path).ok_or_else(|| Error::Outside { path: path.clone() })?;
        var_ids.push(walk.file(&path)?);
    }
    let mut digester = Digester::new("closure");
    for (path, (id, program)) in &walk.found {
        // Variable files count by content and order below, wherever they lie.
        if var_ids.iter().any(|(var, _)| var == path) && !path.starts_with(&format!("{root}/")) {
            continue;
        }
        digester = digester.field(relative(&root, path).as_bytes()).field(id.as_bytes()).field(&[u8::from(*program)]);
    }
    for (_, id) in &var_ids {
        digester = digester.field(b"var-file").field(id.as_bytes());
    }
    Ok(Closure { digest: Some(digester.finish()), declares_backend: walk.declares_backend, files: walk.found })
}

fn is_module_file(name: &str) -> bool {
    [".tf", ".tf.json", ".tofu", ".tofu.json"].iter().any(|end| name.ends_with(end))
}

/// The path as seen from the root module: `main.tf`, `../../modules/vpc/main.tf`.
fn relative(root: &str, path: &str) -> String {
    let from: Vec<&str> = root.split('/').filter(|p| !p.is_empty()).collect();
    let to: Vec<&str> = path.split('/').collect();
    let common = from.iter().zip(&to).take_while(|(one, two)| one == two).count();
    let mut parts = vec![".."; from.len() - common];
    parts.extend(&to[common..]);
    parts.join("/")
}

struct Walk<'f> {
    files: &'f dyn Files,
    root: &'f str,
    found: BTreeMap<String, (String, bool)>,
    folders: BTreeSet<String>,
    declares_backend: bool,
}

impl Walk<'_> {
    fn folder(&mut self, folder: &str, depth: usize) -> Result<(), Error> {
        if depth > FOLDER_DEPTH_MAX || self.found.len() > CLOSURE_FILES_MAX {
            return Err(Error::TooLarge { path: self.root.to_owned() });
        }
        if !self.folders.insert(folder.to_owned()) {
            return Ok(());
        }
        for entry in self.files.list(folder)? {
            let path = if folder.is_empty() { entry.name.clone() } else { format!("{folder}/{}", entry.name) };
            match entry.sort {
                Sort::Folder if entry.name == ".terraform" || entry.name == ".git" => {}
                Sort::Folder => self.folder(&path, depth + 1)?,
                Sort::Other => {}
                Sort::File | Sort::Program | Sort::Link => {
                    self.file(&path)?;
                    if is_module_file(&entry.name) {
                        self.references(folder, &path, depth)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Adds one file, with the content that a link to a file leads to.
    fn file(&mut self, path: &str) -> Result<(String, String), Error> {
        let missing = || Error::Missing { path: path.to_owned() };
        let mut target = path.to_owned();
        // A chain of links is followed a few steps; a ring of them ends as missing.
        for _ in 0..8 {
            let entry = self.files.entry(&target)?.ok_or_else(missing)?;
            match entry.sort {
                Sort::File | Sort::Program => {
                    self.found.insert(path.to_owned(), (entry.id.clone(), entry.sort == Sort::Program));
                    return Ok((path.to_owned(), entry.id));
                }
                Sort::Link => {
                    let link = self.files.read(&target)?;
                    let link = String::from_utf8_lossy(&link).into_owned();
                    let folder = target.rsplit_once('/').map_or("", |(folder, _)| folder);
                    let outside = || Error::Outside { path: path.to_owned() };
                    if link.starts_with('/') {
                        return Err(outside());
                    }
                    target = join(folder, &link).ok_or_else(outside)?;
                }
                Sort::Folder if target != path => return Err(Error::LinkToFolder { path: path.to_owned() }),
                Sort::Folder | Sort::Other => return Err(missing()),
            }
        }
        Err(missing())
    }

    /// Adds what a module's file names by a literal relative path, where the repository has it.
    fn references(&mut self, folder: &str, path: &str, depth: usize) -> Result<(), Error> {
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
                Some(Sort::Folder) if whole || !target.is_empty() && !format!("{folder}/").starts_with(&format!("{target}/")) => {
                    self.folder(&target, depth + 1)?;
                }
                Some(Sort::File | Sort::Program | Sort::Link) => {
                    self.file(&target)?;
                }
                _ => {}
            }
        }
        Ok(())
    }
}
