//! What Kubernetes objects are made from: manifests, kustomizations, charts; and migrations, which are files as well.
//!
//! Decides which files those are. A kustomization is read for what it names, transitively; whatever is not in the
//! repository is refused here, with the place, because rendering has no network and sees these files alone.

use super::node::{self, Kind, Node};
use crate::domain::declaration::walk::{Closure, Error, Looked, Walk, inside};
use crate::ports::{Entry, EntryKind, Files, join};

/// The names of the file that makes a folder a kustomization.
const KUSTOMIZATIONS: [&str; 3] = ["kustomization.yaml", "kustomization.yml", "Kustomization"];

/// Whether a file is read as a manifest.
pub fn is_manifest(name: &str) -> bool {
    [".yaml", ".yml", ".json"].iter().any(|end| name.ends_with(end))
}

/// The closure of a manifest or of a folder of them.
pub(super) fn of_manifests(files: &dyn Files, path: &str, looked: &mut Looked) -> Result<Closure, Error> {
    let path = inside(path)?;
    let mut walk = Walk::new(files, &path, looked);
    match walk.look(&path)?.map(|entry| entry.sort) {
        Some(EntryKind::Folder) => walk.whole(&path, 0, &|entry| is_manifest(&entry.name))?,
        Some(EntryKind::File | EntryKind::Program | EntryKind::Link) => drop(walk.file(&path)?),
        Some(EntryKind::Other) | None => return Err(Error::Missing { path }),
    }
    if walk.found.is_empty() {
        return Err(Error::Unreadable { path, why: "it holds no `.yaml`, `.yml` or `.json` file".into() });
    }
    walk.close(&[])
}

/// The closure of a folder of migrations.
pub(super) fn of_migrations(files: &dyn Files, folder: &str, looked: &mut Looked) -> Result<Closure, Error> {
    let folder = inside(folder)?;
    let mut walk = Walk::new(files, &folder, looked);
    if walk.look(&folder)?.is_none_or(|entry| entry.sort != EntryKind::Folder) {
        return Err(Error::Missing { path: folder });
    }
    for entry in files.list(&folder)? {
        let path = format!("{folder}/{}", entry.name);
        match entry.sort {
            EntryKind::File | EntryKind::Program | EntryKind::Link if entry.name.ends_with(".sql") => {
                drop(walk.file(&path)?)
            }
            _ => {}
        }
    }
    walk.close(&[])
}

/// The closure of a chart and its files of values.
pub(super) fn of_helm(
    files: &dyn Files,
    chart: &str,
    value_files: &[String],
    looked: &mut Looked,
) -> Result<Closure, Error> {
    let chart = inside(chart)?;
    let mut walk = Walk::new(files, &chart, looked);
    if walk.look(&format!("{chart}/Chart.yaml"))?.is_none() {
        return Err(Error::Missing { path: format!("{chart}/Chart.yaml") });
    }
    walk.look(&chart)?;
    walk.whole(&chart, 0, &|_| true)?;
    walk.close(value_files)
}

/// The closure of a kustomization and everything that it names.
pub(super) fn of_kustomize(files: &dyn Files, folder: &str, looked: &mut Looked) -> Result<Closure, Error> {
    let folder = inside(folder)?;
    let mut walk = Walk::new(files, &folder, looked);
    walk.kustomization(&folder, 0)?;
    walk.close(&[])
}

impl Walk<'_> {
    /// Adds every file below a folder that is wanted.
    fn whole(&mut self, folder: &str, depth: usize, wanted: &dyn Fn(&Entry) -> bool) -> Result<(), Error> {
        if self.too_large(depth) {
            return Err(Error::TooLarge { path: folder.to_owned() });
        }
        for entry in self.files.list(folder)? {
            let path = if folder.is_empty() { entry.name.clone() } else { format!("{folder}/{}", entry.name) };
            match entry.sort {
                EntryKind::Folder if entry.name == ".git" => {}
                EntryKind::Folder => self.whole(&path, depth + 1, wanted)?,
                EntryKind::Other => {}
                EntryKind::File | EntryKind::Program | EntryKind::Link if wanted(&entry) => drop(self.file(&path)?),
                EntryKind::File | EntryKind::Program | EntryKind::Link => {}
            }
        }
        Ok(())
    }

    fn kustomization(&mut self, folder: &str, depth: usize) -> Result<(), Error> {
        if self.too_large(depth) {
            return Err(Error::TooLarge { path: folder.to_owned() });
        }
        if !self.folders.insert(folder.to_owned()) {
            return Ok(());
        }
        let mut found = None;
        for name in KUSTOMIZATIONS {
            let path = join(folder, name).unwrap_or_default();
            if self.look(&path)?.is_some() {
                found = Some(path);
                break;
            }
        }
        let Some(path) = found else {
            let why = "there is no `kustomization.yaml` in it".to_owned();
            return Err(Error::Unreadable { path: folder.to_owned(), why });
        };
        self.file(&path)?;
        let bytes = self.files.read(&path)?;
        let (documents, problems) = node::read(&path.as_str().into(), &bytes);
        if let Some(problem) = problems.first() {
            return Err(Error::Unreadable { path, why: problem.to_string() });
        }
        for document in &documents {
            for named in named(document) {
                self.named(folder, &path, named, depth)?;
            }
        }
        Ok(())
    }

    /// Adds what a kustomization names: a file, or a folder that is a kustomization itself.
    fn named(&mut self, folder: &str, by: &str, named: &Node, depth: usize) -> Result<(), Error> {
        let Some(text) = named.text() else { return Ok(()) };
        // `key=path`, as generators write it; and a patch may stand there itself.
        let text = text.split_once('=').map_or(text, |(_, path)| path);
        let refused = |why: &str| Error::Unreadable { path: format!("{by}:{}", named.at.line), why: why.to_owned() };
        if text.contains('\n') {
            return Ok(());
        }
        if text.contains("://") || text.contains("?ref=") || text.starts_with("git@") || text.starts_with("github.com/")
        {
            return Err(refused(&format!(
                "`{text}` is not in the repository, and rendering has no network; copy it here"
            )));
        }
        let target = if text.starts_with('/') { None } else { join(folder, text) };
        let Some(target) = target else { return Err(Error::Outside { path: text.to_owned() }) };
        match self.look(&target)?.map(|entry| entry.sort) {
            Some(EntryKind::Folder) => self.kustomization(&target, depth + 1),
            Some(EntryKind::File | EntryKind::Program | EntryKind::Link) => self.file(&target).map(drop),
            Some(EntryKind::Other) | None => Err(refused(&format!("`{text}` is not in the repository"))),
        }
    }
}

/// The lists of a kustomization whose entries are files or folders.
const LISTS: [&str; 9] = [
    "resources",
    "bases",
    "components",
    "crds",
    "configurations",
    "generators",
    "transformers",
    "validators",
    "patchesStrategicMerge",
];

/// The entries of a kustomization that name files or folders.
fn named(document: &Node) -> Vec<&Node> {
    let mut found: Vec<&Node> = vec![];
    for list in LISTS {
        found.extend(document.get(list).and_then(list_of).into_iter().flatten());
    }
    for patch in ["patches", "patchesJson6902", "replacements"] {
        let all = document.get(patch).and_then(list_of).into_iter().flatten();
        found.extend(all.filter_map(|item| item.get("path")));
    }
    for generator in ["configMapGenerator", "secretGenerator"] {
        for item in document.get(generator).and_then(list_of).into_iter().flatten() {
            for field in ["files", "envs"] {
                found.extend(item.get(field).and_then(list_of).into_iter().flatten());
            }
            found.extend(item.get("env"));
        }
    }
    if let Some(path) = document.get("openapi").and_then(|node| node.get("path")) {
        found.push(path);
    }
    found
}

fn list_of(node: &Node) -> Option<&Vec<Node>> {
    match &node.value {
        Kind::List(items) => Some(items),
        _ => None,
    }
}
