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

use super::{
    kinds::Kinds,
    walk::{Closure, Looked, Source},
};
use crate::ports::{Files, FilesError};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

/// Closures by what names them, kept from one revision to the next.
pub struct Closures {
    kinds: &'static Kinds,
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
    /// No closures yet.
    pub fn new(kinds: &'static Kinds) -> Self {
        Self { kinds, tops: BTreeMap::new(), kept: HashMap::new() }
    }

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
            let found = match self.kinds.get(source.kind) {
                Some(kind) => kind.closure(files, source, &mut looked).map_err(|error| error.to_string()),
                None => Err(format!("`{}` is not a kind of target", source.kind)),
            };
            let closure = found.map(Arc::new);
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
