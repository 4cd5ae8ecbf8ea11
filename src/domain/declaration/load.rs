//! Loads all files of a revision to instances and problems.
//!
//! Decides which results of the earlier load are reused. If neither the earlier load nor the change has a problem, only
//! changed documents are resolved again; otherwise all documents are assembled again from parsed files.
//! A file that can't be parsed is never read as a deletion: `complete` reports whether every file was parsed (R1.9).
//! *Invariant:* never drops a problem. A load after other loads gives the same result as a first load.

use super::{
    assemble::{Assembly, Broken, Known},
    closure::Closures,
    document::{Document, File},
    folder::Folder,
    instance::{Instance, digest, environments_of, resolve_instance},
    kinds::Kinds,
    node,
    schema::Environment,
    validate::nearest,
    walk::Source,
};
use crate::domain::declaration::desired::Desired;
use crate::{
    model::{ComponentName, EnvironmentName, InstanceId, Place, Problem},
    ports::Files,
};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

/// Loads revisions, and caches parsed files and resolved instances.
pub struct Loader {
    kinds: &'static Kinds,
    closures: Closures,
    /// Instances resolved from their own document, by the document's address. The map owns the document, so that its
    /// address stays unique.
    resolved: HashMap<(usize, EnvironmentName), (Arc<Document>, Arc<Instance>)>,
    last: Option<Last>,
}

/// The result of the last load.
struct Last {
    root: String,
    folder: Arc<Folder>,
    components: HashMap<ComponentName, Arc<Document>>,
    /// The documents that are not components.
    others: Vec<Arc<Document>>,
    desired: Arc<Desired>,
}

/// Loads one revision without a cache.
pub fn load(kinds: &'static Kinds, files: &dyn Files, root: &str) -> Arc<Desired> {
    Loader::new(kinds).load(files, root)
}

struct Ids<'c> {
    instances: HashSet<InstanceId>,
    components: Vec<&'c ComponentName>,
}

impl Known for Ids<'_> {
    fn has(&self, id: &InstanceId) -> bool {
        self.instances.contains(id)
    }
    fn components(&self) -> Vec<&ComponentName> {
        self.components.clone()
    }
}

/// The instances of a revision that is updated in place. A missing name makes the caller assemble all documents again.
impl Known for BTreeMap<InstanceId, Arc<Instance>> {
    fn has(&self, id: &InstanceId) -> bool {
        self.contains_key(id)
    }
    fn components(&self) -> Vec<&ComponentName> {
        vec![]
    }
}

impl Loader {
    /// Creates a loader with an empty cache.
    pub fn new(kinds: &'static Kinds) -> Self {
        Self { kinds, closures: Closures::new(kinds), resolved: HashMap::new(), last: None }
    }

    /// Loads the declarations below `root` in a revision.
    pub fn load(&mut self, files: &dyn Files, root: &str) -> Arc<Desired> {
        let last = self.last.take().filter(|last| last.root == root);
        let turned = Folder::read(self.kinds, files, root, last.as_ref().map(|last| &last.folder))
            .and_then(|folder| Ok((folder, self.closures.turn(files)?)));
        let (folder, others) = match turned {
            Ok(turned) => turned,
            Err(error) => {
                *self = Self::new(self.kinds);
                let mut assembly = Assembly::new(Desired::default());
                assembly.incomplete(Problem::new(
                    "unreadable",
                    &error.path.as_str().into(),
                    Place::default(),
                    error.to_string(),
                ));
                return Arc::new(assembly.finish(&[]));
            }
        };
        let next = last
            .and_then(|last| self.load_changes(files, last, &folder, &others))
            .unwrap_or_else(|| self.load_all(files, root, folder));
        let desired = Arc::clone(&next.desired);
        self.last = Some(next);
        desired
    }

    /// Assembles all documents.
    fn load_all(&mut self, files: &dyn Files, root: &str, folder: Arc<Folder>) -> Last {
        let mut assembly = Assembly::new(Desired { complete: true, files: folder.count, ..Desired::default() });
        let read = folder.files();
        assembly.problems.extend(folder.problems.iter().cloned());
        for file in &read {
            assembly.problems.extend(file.problems.iter().cloned());
            assembly.desired.complete &= file.whole;
        }
        if read.is_empty() && assembly.problems.is_empty() {
            let problem = Problem::new("empty", &root.into(), Place::default(), format!("no declarations in `{root}`"));
            assembly.incomplete(
                problem.hint("`evenkeel init` writes a first state repo; --state-repo names another folder"),
            );
        }
        let documents = || read.iter().flat_map(|file| &file.documents);
        let broken = assembly.sort_out(documents());
        let (components, others): (Vec<_>, Vec<_>) =
            documents().cloned().partition(|document| document.kind == "Component");
        assembly.desired.components = components.len();
        self.instantiate(files, &components, &broken, &mut assembly);
        self.closures.tidy();
        let desired = Arc::new(assembly.finish(&read));
        let components = components.into_iter().map(|document| (document.name.clone(), document)).collect();
        Last { root: root.to_owned(), folder, components, others, desired }
    }

    fn instantiate(
        &mut self,
        files: &dyn Files,
        components: &[Arc<Document>],
        broken: &Broken,
        assembly: &mut Assembly,
    ) {
        let mut before = std::mem::take(&mut self.resolved);
        let mut instances = vec![];
        for document in components {
            let listed = match document.spec.get("environments").map(|node| &node.value) {
                Some(node::Kind::List(items)) => items.len(),
                _ => usize::MAX,
            };
            // An instance of an unreadable environment is not a removed instance.
            assembly.desired.complete &= environments_of(document).len() == listed;
            for (environment, at) in environments_of(document) {
                if !broken.environments.contains(&environment) {
                    let problem = Problem::new(
                        "unknown-environment",
                        &document.file,
                        at,
                        format!("there is no environment `{environment}`"),
                    );
                    let names = broken.environments.iter().map(EnvironmentName::as_str);
                    let hint = nearest(environment.as_str(), names).map_or_else(
                        || "declare it in `environments/`".to_owned(),
                        |name| format!("did you mean `{name}`?"),
                    );
                    // The name may be misspelled. The intended instance is then not a removed one.
                    assembly.desired.complete = false;
                    assembly.problems.push(problem.hint(hint));
                    continue;
                }
                let key = (Arc::as_ptr(document) as usize, environment);
                let resolved = before.remove(&key).unwrap_or_else(|| {
                    (Arc::clone(document), Arc::new(resolve_instance(self.kinds, document, &key.1)))
                });
                instances.push(resolved.clone());
                self.resolved.insert(key, resolved);
            }
        }
        let ids = Ids {
            instances: instances.iter().map(|(_, instance)| instance.id.clone()).collect(),
            components: components.iter().map(|document| &document.name).collect(),
        };
        for (document, resolved) in instances {
            let mut instance = (*resolved).clone();
            let of_others = if broken.state_repo {
                Some("the StateRepo")
            } else if broken.components.contains(&document.name) {
                Some("this component")
            } else {
                broken.unreadable.contains(&instance.id.environment).then_some("its environment")
            };
            if let Some(what) = of_others.filter(|_| instance.problems.is_empty()) {
                instance.problems.push(Problem::new(
                    "stalled",
                    &document.file,
                    document.name_at,
                    format!("{what} has problems"),
                ));
            }
            assembly.edges(&mut instance, &document, &ids);
            self.resolve_closure(files, &document, &mut instance, assembly);
            assembly.desired.instances.insert(instance.id.clone(), Arc::new(instance));
        }
        assembly.cycles();
    }

    /// Computes the closure and the digest of an instance.
    fn resolve_closure(
        &mut self,
        files: &dyn Files,
        document: &Document,
        instance: &mut Instance,
        assembly: &mut Assembly,
    ) {
        let Some(spec) = &mut instance.spec else { return };
        let Some(kind) = self.kinds.of(&spec.target) else { return };
        if let Some(environment) = assembly.desired.environments.get(&instance.id.environment)
            && let Some(declared) = kind.with_defaults(&spec.target.declared, environment)
        {
            Arc::make_mut(spec).target.declared = declared;
        }
        let declared = &spec.target.declared;
        let Some(source) = kind.source(declared) else { return };
        match self.closures.of(files, &source) {
            Ok(closure) => instance.closure = closure,
            Err(why) => {
                let at = document.spec.nearest(&[source.kind.into(), source.field.into()]).at;
                let problem = Problem::new("closure", &document.file, at, why)
                    .hint("paths are relative to the root of the git repository");
                instance.problems.push(problem.clone());
                assembly.problems.push(problem);
            }
        }
        if instance.problems.is_empty()
            && let Err((message, hint)) = kind.is_complete(declared)
        {
            let at = document.spec.get(kind.name()).map_or(document.name_at, |node| node.at);
            let problem = Problem::new("missing-field", &document.file, at, message).hint(hint);
            instance.problems.push(problem.clone());
            assembly.problems.push(problem);
        }
        instance.digest = instance.problems.is_empty().then(|| digest(kind, spec, &instance.closure));
    }

    /// Resolves the changed documents again; `None` if the earlier load or the change has a problem.
    fn load_changes(
        &mut self,
        files: &dyn Files,
        mut last: Last,
        folder: &Arc<Folder>,
        others: &HashSet<Source>,
    ) -> Option<Last> {
        let clean = last.desired.complete && last.desired.problems.is_empty() && last.desired.notes.is_empty();
        let before = Arc::clone(&last.folder);
        let (mut outdated, mut updated): (Vec<&Arc<File>>, Vec<&Arc<File>>) = (vec![], vec![]);
        before.differences(folder, &mut outdated, &mut updated);
        let sound = |file: &&Arc<File>| {
            file.problems.is_empty() && file.documents.iter().all(|document| document.problems.is_empty())
        };
        if !clean || !folder.problems.is_empty() || !updated.iter().all(sound) {
            return None;
        }
        let mut assembly = Assembly::new((*last.desired).clone());
        assembly.desired.files = folder.count;
        let documents = |files: &[&Arc<File>]| {
            files
                .iter()
                .flat_map(|file| file.documents.iter().cloned())
                .partition::<Vec<_>, _>(|document| document.kind == "Component")
        };
        let ((outdated, other_outdated), (updated, other_updated)) = (documents(&outdated), documents(&updated));
        if !(other_outdated.is_empty() && other_updated.is_empty()) {
            last.others.retain(|document| !other_outdated.iter().any(|outdated| Arc::ptr_eq(outdated, document)));
            last.others.extend(other_updated);
            replace_others(&mut assembly, &last.others)?;
        }
        let touched = self.replace_components(&mut last.components, &mut assembly, &outdated, &updated)?;
        assembly.desired.components = last.components.len();
        for (document, id) in &touched {
            let mut instance = (*assembly.desired.instances[id]).clone();
            let known = std::mem::take(&mut assembly.desired.instances);
            assembly.edges(&mut instance, document, &known);
            assembly.desired.instances = known;
            self.resolve_closure(files, document, &mut instance, &mut assembly);
            assembly.desired.instances.insert(id.clone(), Arc::new(instance));
        }
        if !others.is_empty() {
            self.refresh_closures(files, others, &mut assembly)?;
        }
        if !assembly.problems.is_empty()
            || !assembly.desired.notes.is_empty()
            || !assembly.rings(touched.iter().map(|(_, id)| id)).is_empty()
        {
            return None;
        }
        Some(Last { folder: Arc::clone(folder), desired: Arc::new(assembly.finish(&[])), ..last })
    }

    /// Replaces components, resolved from their own documents; returns the new instances. Returns `None` if a name is a
    /// duplicate, an environment does not exist, or an instance depends on a removed one.
    fn replace_components(
        &mut self,
        components: &mut HashMap<ComponentName, Arc<Document>>,
        assembly: &mut Assembly,
        outdated: &[Arc<Document>],
        updated: &[Arc<Document>],
    ) -> Option<Vec<(Arc<Document>, InstanceId)>> {
        let mut removed = HashSet::new();
        for document in outdated {
            components.remove(&document.name);
            for (environment, _) in environments_of(document) {
                let id = InstanceId::new(&environment, &document.name);
                self.resolved.remove(&(Arc::as_ptr(document) as usize, environment));
                assembly.desired.instances.remove(&id);
                removed.insert(id);
            }
        }
        let mut touched = vec![];
        for document in updated {
            if components.insert(document.name.clone(), Arc::clone(document)).is_some() {
                return None;
            }
            for (environment, _) in environments_of(document) {
                assembly.desired.environments.get(&environment)?;
                let resolved = Arc::new(resolve_instance(self.kinds, document, &environment));
                removed.remove(&resolved.id);
                assembly.desired.instances.insert(resolved.id.clone(), Arc::clone(&resolved));
                touched.push((Arc::clone(document), resolved.id.clone()));
                self.resolved.insert((Arc::as_ptr(document) as usize, environment), (Arc::clone(document), resolved));
            }
        }
        if !removed.is_empty()
            && assembly
                .desired
                .instances
                .values()
                .any(|instance| instance.upstreams.iter().any(|upstream| removed.contains(upstream)))
        {
            return None;
        }
        Some(touched)
    }

    /// Computes the closures of `others` again.
    fn refresh_closures(&mut self, files: &dyn Files, others: &HashSet<Source>, assembly: &mut Assembly) -> Option<()> {
        for instance in assembly.desired.instances.values_mut() {
            let Some(spec) = instance.spec.as_ref() else { continue };
            let Some(kind) = self.kinds.of(&spec.target) else { continue };
            let source = kind.source(&spec.target.declared).filter(|source| others.contains(source));
            let Some(source) = source else { continue };
            let closure = self.closures.of(files, &source).ok()?;
            if closure != instance.closure {
                let digest = Some(digest(kind, spec, &closure));
                *instance = Arc::new(Instance { closure, digest, ..(**instance).clone() });
            }
        }
        Some(())
    }
}

/// Loads the documents that are not components again; `None` if their change affects instances, so that everything is
/// loaded again.
fn replace_others(assembly: &mut Assembly, others: &[Arc<Document>]) -> Option<()> {
    let desired = &mut assembly.desired;
    let before = std::mem::take(&mut desired.environments);
    (desired.state_repo, desired.remediations, desired.schedules) = Default::default();
    assembly.sort_out(others.iter());
    let after = &assembly.desired.environments;
    let edges = |environments: &BTreeMap<EnvironmentName, Arc<Environment>>| {
        let part = |environment: &Environment| (environment.after.clone(), environment.kubernetes.clone());
        environments.iter().map(|(name, environment)| (name.clone(), part(environment))).collect::<Vec<_>>()
    };
    (assembly.problems.is_empty() && edges(&before) == edges(after)).then_some(())
}
