//! Creates the first commit from a folder.

use std::path::Path;

use git2::{Oid, Repository, RepositoryInitOptions, Signature};

use crate::forge::settings::Error;

/// Creates a bare repository whose `main` has one commit with the content of a folder.
///
/// # Errors
/// When the folder can't be read or the repository can't be written.
pub fn seed(from: &Path, to: &Path) -> Result<(), Error> {
    let failed = |why: String| Error::Folder { path: to.to_owned(), why };
    let made = || -> Result<(), git2::Error> {
        let mut options = RepositoryInitOptions::new();
        options.bare(true).mkpath(true).initial_head("main");
        let repository = Repository::init_opts(to, &options)?;
        let tree = repository.find_tree(write_tree(&repository, from)?)?;
        let author = Signature::now("evenkeel", "evenkeel@localhost")?;
        repository.commit(Some("refs/heads/main"), &author, &author, "The first commit", &tree, &[])?;
        Ok(())
    };
    made().map_err(|error| failed(error.message().to_owned()))
}

fn write_tree(repository: &Repository, folder: &Path) -> Result<Oid, git2::Error> {
    let unreadable = |error: std::io::Error| git2::Error::from_str(&format!("{}: {error}", folder.display()));
    let mut builder = repository.treebuilder(None)?;
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let kind = entry.file_type().map_err(unreadable)?;
        if kind.is_dir() {
            builder.insert(entry.file_name(), write_tree(repository, &entry.path())?, 0o040_000)?;
        } else if kind.is_file() {
            let bytes = std::fs::read(entry.path()).map_err(unreadable)?;
            builder.insert(entry.file_name(), repository.blob(&bytes)?, 0o100_644)?;
        }
    }
    builder.write()
}
