//! Determines the files of a root module.
//!
//! The closure consists of the folder of the module, the local modules and files that it references transitively, and
//! its variable files. References are found by the literal texts of a file.
//! *Invariant:* the closure contains every file that tofu reads by a literal path. It may contain more.

use super::hcl;
use crate::{
    domain::declaration::walk::{Closure, Looked, Walk, WalkError, inside},
    ports::{EntryKind, Files, join},
};

/// Collects the closure of a root module and its variable files.
pub(super) fn closure(
    files: &dyn Files,
    root: &str,
    var_files: &[String],
    looked: &mut Looked,
) -> Result<Closure, WalkError> {
    let root = inside(root)?;
    let mut walk = Walk::new(files, &root, looked);
    if walk.look(&root)?.is_none_or(|entry| entry.sort != EntryKind::Folder) {
        return Err(WalkError::Missing { path: root.clone() });
    }
    if !walk.files.list(&root)?.iter().any(|entry| is_module_file(&entry.name)) {
        return Err(WalkError::NoModule { path: root.clone() });
    }
    folder(&mut walk, &root, 0)?;
    walk.close(var_files)
}

fn folder(walk: &mut Walk<'_>, name: &str, depth: usize) -> Result<(), WalkError> {
    if walk.too_large(depth) {
        return Err(WalkError::TooLarge { path: walk.root.to_owned() });
    }
    if !walk.folders.insert(name.to_owned()) {
        return Ok(());
    }
    for entry in walk.files.list(name)? {
        let path = if name.is_empty() { entry.name.clone() } else { format!("{name}/{}", entry.name) };
        match entry.sort {
            EntryKind::Folder if entry.name == ".terraform" || entry.name == ".git" => {}
            EntryKind::Folder => folder(walk, &path, depth + 1)?,
            EntryKind::Other => {}
            EntryKind::File | EntryKind::Program | EntryKind::Link => {
                if entry.sort == EntryKind::Link {
                    walk.file(&path)?;
                } else {
                    walk.found.insert(path.clone(), (entry.id, entry.sort == EntryKind::Program));
                }
                if is_module_file(&entry.name) {
                    references(walk, name, &path, depth)?;
                }
            }
        }
    }
    Ok(())
}

/// Adds the files of the repository that a module references by a literal relative path.
fn references(walk: &mut Walk<'_>, within: &str, path: &str, depth: usize) -> Result<(), WalkError> {
    let bytes = walk.files.read(path)?;
    let text = String::from_utf8_lossy(&bytes);
    if within == walk.root && hcl::declares_backend(&text) {
        walk.declares_backend = true;
    }
    for (named, whole) in hcl::relative_paths(&text) {
        let literal = if whole { named.as_str() } else { named.rsplit_once('/').map_or("", |(folder, _)| folder) };
        let Some(target) = join(within, literal) else { continue };
        match walk.files.entry(&target)?.map(|entry| entry.sort) {
            // A partly literal path, such as "../${x}", must not add the whole repository.
            Some(EntryKind::Folder)
                if whole || !target.is_empty() && !format!("{within}/").starts_with(&format!("{target}/")) =>
            {
                walk.look(&target)?;
                folder(walk, &target, depth + 1)?;
            }
            Some(EntryKind::File | EntryKind::Program | EntryKind::Link) => {
                walk.file(&target)?;
            }
            sort => drop(walk.looked.entry(target).or_insert(sort.map(|sort| (sort, None)))),
        }
    }
    Ok(())
}

fn is_module_file(name: &str) -> bool {
    [".tf", ".tf.json", ".tofu", ".tofu.json"].iter().any(|end| name.ends_with(end))
}
