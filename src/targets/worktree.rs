//! The content of an instance's closure on this disk.
//!
//! Writes exactly the closure, and removes only what an earlier closure wrote; what the tool itself put there stays.
//! *Invariant:* no path leaves the tree, and nothing is written through a link.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use crate::ports::{Files, Job, TargetError, TargetErrorKind, join};

const MANIFEST: &str = ".evenkeel-manifest";
/// Stands while a tree is being laid out.
const STARTED: &str = ".evenkeel-started";

/// Makes the tree hold the closure of a job, and answers whether anything changed. Blocks.
pub(super) fn lay_out(tree: &Path, job: &Job) -> Result<bool, TargetError> {
    let failed = |attempt: &str, path: &Path, error: &dyn std::fmt::Display| {
        TargetError::new(
            TargetErrorKind::WorkTree,
            format!("could not {attempt} `{}` for `{}`: {error}", path.display(), job.instance),
        )
    };
    private_folder(tree).map_err(|error| failed("make", tree, &error))?;
    let manifest = tree.join(MANIFEST);
    let before: BTreeMap<String, (String, bool)> =
        fs::read(&manifest).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
    if before == job.files {
        return Ok(false);
    }
    // Until the last file stands, no manifest does: a tree that was cut off half-way is laid out again.
    match fs::remove_file(&manifest) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("remove", &manifest, &error)),
        _ => {}
    }
    let before = if tree.join(STARTED).exists() || before.is_empty() {
        fs::remove_dir_all(tree).and_then(|()| private_folder(tree)).map_err(|error| failed("empty", tree, &error))?;
        BTreeMap::new()
    } else {
        before
    };
    write(&tree.join(STARTED), b"", 0o600).map_err(|error| failed("write", &tree.join(STARTED), &error))?;
    for path in before.keys().filter(|path| !job.files.contains_key(*path)) {
        match fs::remove_file(tree.join(path)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("remove", &tree.join(path), &error));
            }
            _ => {}
        }
    }
    for (path, (id, program)) in &job.files {
        let place = tree.join(path);
        if before.get(path) == Some(&(id.clone(), *program)) && place.is_file() {
            continue;
        }
        let content = content(&*job.content, path).map_err(|error| failed("read", Path::new(path), &error))?;
        if let Some(folder) = place.parent() {
            // A file of an earlier closure may stand where a folder does now.
            for above in folder
                .ancestors()
                .take_while(|above| above.starts_with(tree) && *above != tree)
                .filter(|above| above.is_file())
            {
                fs::remove_file(above).map_err(|error| failed("remove", above, &error))?;
            }
            fs::create_dir_all(folder).map_err(|error| failed("make", folder, &error))?;
        }
        let mode = if *program { 0o700 } else { 0o600 };
        if place.is_dir() {
            fs::remove_dir_all(&place).map_err(|error| failed("remove", &place, &error))?;
        }
        write(&place, &content, mode).map_err(|error| failed("write", &place, &error))?;
    }
    let text = serde_json::to_vec(&job.files).expect("a map of texts is JSON");
    write(&manifest, &text, 0o600).map_err(|error| failed("write", &manifest, &error))?;
    fs::remove_file(tree.join(STARTED)).map_err(|error| failed("remove", &tree.join(STARTED), &error))?;
    Ok(true)
}

/// The content of a file, through links that stay inside; the closure has proved that they do.
fn content(files: &dyn Files, path: &str) -> Result<std::sync::Arc<[u8]>, crate::ports::FilesError> {
    let mut target = path.to_owned();
    for _ in 0..8 {
        let bytes = files.read(&target)?;
        match files.entry(&target)?.map(|entry| entry.sort) {
            Some(crate::ports::EntryKind::Link) => {
                let folder = target.rsplit_once('/').map_or("", |(folder, _)| folder);
                target = join(folder, &String::from_utf8_lossy(&bytes)).unwrap_or_default();
            }
            _ => return Ok(bytes),
        }
    }
    files.read(path)
}

/// Writes a file beside its place and renames it there.
pub(super) fn write(place: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let part = PathBuf::from(format!("{}.part", place.display()));
    drop(fs::remove_file(&part));
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&part)?;
    io::Write::write_all(&mut file, content)?;
    drop(file);
    fs::rename(&part, place)
}

/// Makes a folder that its owner alone may enter.
pub(super) fn private_folder(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
}
