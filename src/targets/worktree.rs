//! Writes the closure of an instance to a folder on disk.
//!
//! Writes exactly the closure, and removes only files of an earlier closure. Files of the tool itself stay.
//! *Invariant:* no path leaves the tree, and no write follows a symbolic link.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use crate::ports::{Files, Job, TargetError, TargetErrorKind, join};

const MANIFEST: &str = ".evenkeel-manifest";
/// Exists while a tree is being laid out.
const STARTED: &str = ".evenkeel-started";

/// Writes the closure of a job to the tree. Returns whether anything changed. Blocks.
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
    // The manifest is written after the last file, so that an interrupted layout is repeated.
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
            // A file of an earlier closure may be at the path of a folder.
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

/// Returns the content of a file, through links that stay inside the repository; the closure has verified the links.
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

/// Writes a file under a temporary name and renames it.
pub(super) fn write(place: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let part = PathBuf::from(format!("{}.part", place.display()));
    drop(fs::remove_file(&part));
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&part)?;
    io::Write::write_all(&mut file, content)?;
    drop(file);
    fs::rename(&part, place)
}

/// Creates a folder that only its owner can access.
pub(super) fn private_folder(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
}
