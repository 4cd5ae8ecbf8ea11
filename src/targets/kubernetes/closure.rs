//! Determines the files that Kubernetes objects are rendered from: manifests, kustomizations, charts.
//!
//! Reads the references of a kustomization transitively.
//! *Invariant:* a reference to content outside the repository is refused, with its place. Rendering has no network and
//! reads the files of the closure alone.

use crate::domain::declaration::{
    node::{self, Kind, Node},
    walk::{Closure, Looked, Walk, WalkError, inside},
};
use crate::ports::{Entry, EntryKind, Files, join};

/// The file names that make a folder a kustomization.
const KUSTOMIZATIONS: [&str; 3] = ["kustomization.yaml", "kustomization.yml", "Kustomization"];

pub(super) fn is_manifest(name: &str) -> bool {
    [".yaml", ".yml", ".json"].iter().any(|end| name.ends_with(end))
}

/// Returns the closure of a manifest or a folder of manifests.
pub(super) fn of_manifests(files: &dyn Files, path: &str, looked: &mut Looked) -> Result<Closure, WalkError> {
    let path = inside(path)?;
    let mut walk = Walk::new(files, &path, looked);
    match walk.look(&path)?.map(|entry| entry.sort) {
        Some(EntryKind::Folder) => whole(&mut walk, &path, 0, &|entry| is_manifest(&entry.name))?,
        Some(EntryKind::File | EntryKind::Program | EntryKind::Link) => drop(walk.file(&path)?),
        Some(EntryKind::Other) | None => return Err(WalkError::Missing { path }),
    }
    if walk.found.is_empty() {
        return Err(WalkError::Unreadable { path, why: "it holds no `.yaml`, `.yml` or `.json` file".into() });
    }
    walk.close(&[])
}

/// Returns the closure of a chart and its value files.
pub(super) fn of_helm(
    files: &dyn Files,
    chart: &str,
    value_files: &[String],
    looked: &mut Looked,
) -> Result<Closure, WalkError> {
    let chart = inside(chart)?;
    let mut walk = Walk::new(files, &chart, looked);
    if walk.look(&format!("{chart}/Chart.yaml"))?.is_none() {
        return Err(WalkError::Missing { path: format!("{chart}/Chart.yaml") });
    }
    walk.look(&chart)?;
    whole(&mut walk, &chart, 0, &|_| true)?;
    walk.close(value_files)
}

/// Returns the closure of a kustomization and everything that it references.
pub(super) fn of_kustomize(files: &dyn Files, folder: &str, looked: &mut Looked) -> Result<Closure, WalkError> {
    let folder = inside(folder)?;
    let mut walk = Walk::new(files, &folder, looked);
    kustomization(&mut walk, &folder, 0)?;
    walk.close(&[])
}

/// Adds every file below a folder that satisfies a condition.
fn whole(walk: &mut Walk<'_>, folder: &str, depth: usize, wanted: &dyn Fn(&Entry) -> bool) -> Result<(), WalkError> {
    if walk.too_large(depth) {
        return Err(WalkError::TooLarge { path: folder.to_owned() });
    }
    for entry in walk.files.list(folder)? {
        let path = if folder.is_empty() { entry.name.clone() } else { format!("{folder}/{}", entry.name) };
        match entry.sort {
            EntryKind::Folder if entry.name == ".git" => {}
            EntryKind::Folder => whole(walk, &path, depth + 1, wanted)?,
            EntryKind::Other => {}
            EntryKind::File | EntryKind::Program | EntryKind::Link if wanted(&entry) => drop(walk.file(&path)?),
            EntryKind::File | EntryKind::Program | EntryKind::Link => {}
        }
    }
    Ok(())
}

fn kustomization(walk: &mut Walk<'_>, folder: &str, depth: usize) -> Result<(), WalkError> {
    if walk.too_large(depth) {
        return Err(WalkError::TooLarge { path: folder.to_owned() });
    }
    if !walk.folders.insert(folder.to_owned()) {
        return Ok(());
    }
    let mut found = None;
    for name in KUSTOMIZATIONS {
        let path = join(folder, name).unwrap_or_default();
        if walk.look(&path)?.is_some() {
            found = Some(path);
            break;
        }
    }
    let Some(path) = found else {
        let why = "there is no `kustomization.yaml` in it".to_owned();
        return Err(WalkError::Unreadable { path: folder.to_owned(), why });
    };
    walk.file(&path)?;
    let bytes = walk.files.read(&path)?;
    let (documents, problems) = node::read(&path.as_str().into(), &bytes);
    if let Some(problem) = problems.first() {
        return Err(WalkError::Unreadable { path, why: problem.to_string() });
    }
    for document in &documents {
        for named in named(document) {
            add_named(walk, folder, &path, named, depth)?;
        }
    }
    Ok(())
}

/// Adds a referenced file, or a referenced folder that is a kustomization itself.
fn add_named(walk: &mut Walk<'_>, folder: &str, by: &str, named: &Node, depth: usize) -> Result<(), WalkError> {
    let Some(text) = named.text() else { return Ok(()) };
    // Generators write `key=path`, and an inline patch spans several lines.
    let text = text.split_once('=').map_or(text, |(_, path)| path);
    let refused = |why: &str| WalkError::Unreadable { path: format!("{by}:{}", named.at.line), why: why.to_owned() };
    if text.contains('\n') {
        return Ok(());
    }
    if text.contains("://") || text.contains("?ref=") || text.starts_with("git@") || text.starts_with("github.com/") {
        return Err(refused(&format!("`{text}` is not in the repository, and rendering has no network; copy it here")));
    }
    let target = if text.starts_with('/') { None } else { join(folder, text) };
    let Some(target) = target else { return Err(WalkError::Outside { path: text.to_owned() }) };
    match walk.look(&target)?.map(|entry| entry.sort) {
        Some(EntryKind::Folder) => kustomization(walk, &target, depth + 1),
        Some(EntryKind::File | EntryKind::Program | EntryKind::Link) => walk.file(&target).map(drop),
        Some(EntryKind::Other) | None => Err(refused(&format!("`{text}` is not in the repository"))),
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

/// Returns the entries of a kustomization that name files or folders.
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
