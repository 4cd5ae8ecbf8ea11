//! Everything that an instance is made from (R1.2): its root module, the local modules and files that this names
//! transitively, its variable files; its manifests, what its kustomization names transitively, its chart and values.
//!
//! Decides which files those are. What a file names is read from its literal texts, so the closure is never smaller
//! than what tofu reads by literal path; it may be larger. A work tree holds exactly the closure and nothing else, so
//! that nothing can be used that the digest does not cover.
//! Never follows a link out of the repository, or into a folder. Paths enter the digest relative to the root module:
//! a folder that moves as a whole is the same content.
//! *Invariant:* a closure that is kept from an earlier revision is the one that would be found anew: everything that was
//! looked at to find it is what it was.

use super::manifests;
use crate::domain::declaration::walk::{Closure, Error, Looked, Walk, inside, is_module_file};
use crate::{
    model::Digester,
    ports::{EntryKind, Files, FilesError},
};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

/// The identity of a closure.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// A root module and variable files.
    Tofu {
        /// The root module.
        root: String,
        /// The variable files, in order.
        var_files: Vec<String>,
    },
    /// A manifest, or a folder of them.
    Manifests(String),
    /// A folder with a `kustomization.yaml`.
    Kustomize(String),
    /// A chart.
    Helm {
        /// The folder of the chart.
        chart: String,
        /// The files of values, in order.
        value_files: Vec<String>,
    },
    /// A folder of SQL files, or none.
    Migrations(Option<String>),
}

impl Source {
    /// The field of the declaration that names it.
    pub fn field(&self) -> [&'static str; 2] {
        match self {
            Self::Tofu { .. } => ["tofu", "root"],
            Self::Manifests(_) => ["kubernetes", "manifests"],
            Self::Kustomize(_) => ["kubernetes", "kustomize"],
            Self::Helm { .. } => ["kubernetes", "helm"],
            Self::Migrations(_) => ["citus", "migrations"],
        }
    }
}

/// Closures by what names them, kept from one revision to the next.
#[derive(Default)]
pub struct Closures {
    /// The ids of what stands in the root of the repository.
    tops: BTreeMap<String, String>,
    kept: HashMap<Source, Kept>,
}

struct Kept {
    closure: Result<Arc<Closure>, String>,
    looked: Looked,
    asked: bool,
}

impl Closures {
    /// Turns to another revision: forgets the closures that may be others there, and names them.
    ///
    /// # Errors
    /// When the content can't be read.
    pub fn turn(&mut self, files: &dyn Files) -> Result<HashSet<Source>, FilesError> {
        let tops: BTreeMap<String, String> = files.list("")?.into_iter().map(|entry| (entry.name, entry.id)).collect();
        let same = |path: &str| {
            let top = path.split('/').next().unwrap_or_default();
            tops.get(top).is_some_and(|id| !id.is_empty() && self.tops.get(top) == Some(id))
                || !tops.contains_key(top) && !self.tops.contains_key(top) && !top.is_empty()
        };
        let mut known: HashMap<String, bool> = HashMap::new();
        let mut others = HashSet::new();
        for (key, kept) in &self.kept {
            let mut is_same = kept.closure.is_ok();
            for (path, stood) in kept.looked.iter().filter(|(path, _)| !same(path)) {
                is_same &= match known.get(path) {
                    Some(same) => *same,
                    None => {
                        let entry = files.entry(path)?;
                        let same = match (&entry, stood) {
                            (None, None) => true,
                            (Some(entry), Some((sort, None))) => entry.sort == *sort,
                            (Some(entry), Some((sort, Some(id)))) => {
                                entry.sort == *sort && !id.is_empty() && entry.id == *id
                            }
                            _ => false,
                        };
                        // Whether only the sort counts differs from closure to closure.
                        if !matches!(stood, Some((_, None))) {
                            known.insert(path.clone(), same);
                        }
                        same
                    }
                };
                if !is_same {
                    break;
                }
            }
            if !is_same {
                others.insert(key.clone());
            }
        }
        self.kept.retain(|key, _| !others.contains(key));
        self.tops = tops;
        Ok(others)
    }

    /// A closure at the revision that was turned to.
    ///
    /// # Errors
    /// Why there is none.
    pub fn of(&mut self, files: &dyn Files, source: &Source) -> Result<Arc<Closure>, String> {
        let kept = self.kept.entry(source.clone()).or_insert_with(|| {
            let mut looked = Looked::new();
            let found = match source {
                Source::Tofu { root, var_files } => of_tofu(files, root, var_files, &mut looked),
                Source::Manifests(path) => manifests::of_manifests(files, path, &mut looked),
                Source::Kustomize(path) => manifests::of_kustomize(files, path, &mut looked),
                Source::Migrations(None) => {
                    Ok(Closure { digest: Some(Digester::new("closure").finish()), ..Closure::default() })
                }
                Source::Migrations(Some(folder)) => manifests::of_migrations(files, folder, &mut looked),
                Source::Helm { chart, value_files } => manifests::of_helm(files, chart, value_files, &mut looked),
            };
            let closure = found.map(Arc::new).map_err(|error| error.to_string());
            Kept { closure, looked, asked: true }
        });
        kept.asked = true;
        kept.closure.clone()
    }

    /// Forgets what nobody asked for since the last time.
    pub fn tidy(&mut self) {
        self.kept.retain(|_, kept| std::mem::take(&mut kept.asked));
    }
}

/// Collects the closure of a root module and its variable files.
fn of_tofu(files: &dyn Files, root: &str, var_files: &[String], looked: &mut Looked) -> Result<Closure, Error> {
    let root = inside(root)?;
    let mut walk = Walk::new(files, &root, looked);
    if walk.look(&root)?.is_none_or(|entry| entry.sort != EntryKind::Folder) {
        return Err(Error::Missing { path: root.clone() });
    }
    if !walk.files.list(&root)?.iter().any(|entry| is_module_file(&entry.name)) {
        return Err(Error::NoModule { path: root.clone() });
    }
    walk.folder(&root, 0)?;
    walk.close(var_files)
}
