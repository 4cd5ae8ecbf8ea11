//! Computes the closures of instances, and reuses them across revisions (R1.2).
//!
//! A closure contains all files that an instance is made from: the root module, the local modules and files that it
//! names transitively, and variable files; manifests, the files that a kustomization names transitively, a chart and
//! its values.
//!
//! Decides which files belong to a closure. References are read from literal texts, so the closure contains at least
//! the files that tofu reads by literal path, and may contain more. A work tree contains exactly the closure, so that a
//! tool can't use a file that the digest does not cover. Never follows a link out of the repository or to a folder.
//! Paths enter the digest relative to the root module: moving a folder as a whole does not change its content.
//! *Invariant:* a reused closure equals a newly computed one. A closure is reused only if no path that was read for it
//! changed.

use super::{
    kinds::Kinds,
    walk::{Closure, Looked, Source},
};
use crate::ports::{Files, FilesError};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

/// The closures of a revision, by their source.
pub struct Closures {
    kinds: &'static Kinds,
    /// The object ids of the entries in the root of the repository.
    tops: BTreeMap<String, String>,
    cached: HashMap<Source, Cached>,
}

struct Cached {
    closure: Result<Arc<Closure>, String>,
    entries_read: Looked,
    used: bool,
}

impl Closures {
    /// Creates an empty cache.
    pub fn new(kinds: &'static Kinds) -> Self {
        Self { kinds, tops: BTreeMap::new(), cached: HashMap::new() }
    }

    /// Switches to another revision. Removes the closures that may differ there, and returns their sources.
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
        for (key, cached) in &self.cached {
            let mut is_same = cached.closure.is_ok();
            for (path, entry_before) in cached.entries_read.iter().filter(|(path, _)| !same(path)) {
                is_same &= match known.get(path) {
                    Some(same) => *same,
                    None => {
                        let entry = files.entry(path)?;
                        let same = match (&entry, entry_before) {
                            (None, None) => true,
                            (Some(entry), Some((sort, None))) => entry.sort == *sort,
                            (Some(entry), Some((sort, Some(id)))) => {
                                entry.sort == *sort && !id.is_empty() && entry.id == *id
                            }
                            _ => false,
                        };
                        // A check of the entry kind alone must not be reused for closures that depend on the content.
                        if !matches!(entry_before, Some((_, None))) {
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
        self.cached.retain(|key, _| !others.contains(key));
        self.tops = tops;
        Ok(others)
    }

    /// Returns the closure of a source at the present revision.
    ///
    /// # Errors
    /// The reason for which the source has no closure.
    pub fn of(&mut self, files: &dyn Files, source: &Source) -> Result<Arc<Closure>, String> {
        let cached = self.cached.entry(source.clone()).or_insert_with(|| {
            let mut entries_read = Looked::new();
            let found = match self.kinds.get(source.kind) {
                Some(kind) => kind.closure(files, source, &mut entries_read).map_err(|error| error.to_string()),
                None => Err(format!("`{}` is not a kind of target", source.kind)),
            };
            let closure = found.map(Arc::new);
            Cached { closure, entries_read, used: true }
        });
        cached.used = true;
        cached.closure.clone()
    }

    /// Removes the closures that were not used since the last call.
    pub fn tidy(&mut self) {
        self.cached.retain(|_, cached| std::mem::take(&mut cached.used));
    }
}
