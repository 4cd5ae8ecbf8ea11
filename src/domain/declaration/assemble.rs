//! Combines the documents of a revision: resolves names and builds edges between instances.
//!
//! Decides which of several documents with one name counts, and converts names to edges. *Invariant:* never drops a
//! problem.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use serde::de::DeserializeOwned;

use super::{
    Desired, Instance,
    document::{Document, File},
    instance::{decode, find_reference},
    schema::Environment,
    validate::nearest,
};
use crate::model::{ComponentName, EnvironmentName, InstanceId, Place, Problem, Problems};

/// Names that are incomplete because a file can't be read.
#[derive(Default)]
pub(super) struct Broken {
    /// The declared environments, readable or not.
    pub(super) environments: BTreeSet<EnvironmentName>,
    pub(super) unreadable: BTreeSet<EnvironmentName>,
    pub(super) components: BTreeSet<ComponentName>,
    pub(super) state_repo: bool,
}

/// The known instances and components, for edges.
pub(super) trait Known {
    /// Returns whether an instance is declared.
    fn has(&self, id: &InstanceId) -> bool;
    /// Returns the names of all components.
    fn components(&self) -> Vec<&ComponentName>;
}

/// A revision during its assembly.
pub(super) struct Assembly {
    pub(super) problems: Problems,
    pub(super) desired: Desired,
    places: HashMap<ComponentName, (Arc<str>, Place)>,
}

impl Assembly {
    pub(super) fn new(desired: Desired) -> Self {
        Self { problems: Problems::default(), desired, places: HashMap::new() }
    }

    pub(super) fn incomplete(&mut self, problem: Problem) {
        self.desired.complete = false;
        self.problems.push(problem);
    }

    /// Adds the documents that are not components to the result, and finds duplicate names.
    pub(super) fn sort_out<'d>(&mut self, documents: impl Iterator<Item = &'d Arc<Document>> + Clone) -> Broken {
        let mut broken = Broken::default();
        let mut first: HashMap<(&str, &str), &Arc<Document>> = HashMap::new();
        let mut state_repos = 0;
        for document in documents.clone() {
            self.problems.extend(document.problems.iter().cloned());
            let name = if document.kind == "StateRepo" { "" } else { document.name.as_str() };
            if let Some(other) = first.insert((document.kind, name), document) {
                let message = if document.kind == "StateRepo" {
                    "a second StateRepo".to_owned()
                } else {
                    format!("the {} `{}` is defined a second time", document.kind, document.name)
                };
                let hint = format!("the first stands in {}:{}; keep one of them", other.file, other.name_at.line);
                self.problems.push(Problem::new("defined-twice", &document.file, document.name_at, message).hint(hint));
                match document.kind {
                    "Component" => drop(broken.components.insert(document.name.clone())),
                    "Environment" => broken.unreadable.extend(document.name.as_str().parse::<EnvironmentName>()),
                    "StateRepo" => broken.state_repo = true,
                    _ => {}
                }
            }
            match document.kind {
                "StateRepo" => {
                    state_repos += 1;
                    self.desired.state_repo = self.decoded(document);
                    broken.state_repo |= self.desired.state_repo.is_none();
                }
                "Environment" => {
                    let name: EnvironmentName =
                        document.name.as_str().parse().expect("names of both sorts have one grammar");
                    broken.environments.insert(name.clone());
                    match self.decoded::<Environment>(document) {
                        Some(environment) => drop(self.desired.environments.insert(name, environment)),
                        None => drop(broken.unreadable.insert(name)),
                    }
                }
                "Schedule" => {
                    if let Some(schedule) = self.decoded(document) {
                        self.desired.schedules.insert(document.name.clone(), schedule);
                    }
                }
                "Remediation" => {
                    if let Some(remediation) = self.decoded(document) {
                        self.desired
                            .remediations
                            .insert(document.name.clone(), (remediation, document.file.to_string()));
                    }
                }
                _ => {}
            }
        }
        if broken.state_repo {
            self.desired.state_repo = None;
        }
        if state_repos == 0 && !first.is_empty() {
            broken.state_repo = true;
            let problem =
                Problem::new("missing-state-repo", &"staterepo.yaml".into(), Place::default(), "there is no StateRepo");
            self.problems
                .push(problem.hint("write one document of `kind: StateRepo`; without it nobody may do anything"));
        }
        self.check_after(documents, &mut broken);
        broken
    }

    fn decoded<T: DeserializeOwned>(&mut self, document: &Document) -> Option<Arc<T>> {
        if !document.problems.is_empty() {
            return None;
        }
        match decode(document, &document.spec) {
            Ok(spec) => Some(Arc::new(spec)),
            Err(problem) => {
                self.problems.push(*problem);
                None
            }
        }
    }

    /// Checks that every `after` names an environment, and that environments form no cycle.
    fn check_after<'d>(&mut self, documents: impl Iterator<Item = &'d Arc<Document>>, broken: &mut Broken) {
        for document in documents.filter(|document| document.kind == "Environment") {
            let Ok(name) = document.name.as_str().parse::<EnvironmentName>() else { continue };
            let Some(after) = self
                .desired
                .environments
                .get(&name)
                .and_then(|e| e.after.as_ref())
                .map(|after| after.environment().clone())
            else {
                continue;
            };
            let at = document.spec.get("after").map_or(document.name_at, |node| node.at);
            if !broken.environments.contains(&after) {
                let message = format!("there is no environment `{after}`");
                self.problems.push(Problem::new("unknown-environment", &document.file, at, message));
                broken.unreadable.insert(name);
                continue;
            }
            let mut ring = vec![name.clone()];
            let mut next = Some(after);
            while let Some(at_name) = next {
                if at_name == name {
                    ring.push(at_name);
                    let ring: Vec<&str> = ring.iter().map(EnvironmentName::as_str).collect();
                    let message = format!("environments wait for each other: {}", ring.join(" → "));
                    self.problems.push(Problem::new("cycle", &document.file, at, message).hint("remove one `after`"));
                    broken.unreadable.insert(name.clone());
                    break;
                }
                if ring.contains(&at_name) {
                    break;
                }
                next = self
                    .desired
                    .environments
                    .get(&at_name)
                    .and_then(|e| e.after.as_ref())
                    .map(|after| after.environment().clone());
                ring.push(at_name);
            }
        }
    }

    /// Converts names to edges: `dependsOn`, references, and the earlier environment.
    pub(super) fn edges(&mut self, instance: &mut Instance, document: &Document, known: &dyn Known) {
        let environment = instance.id.environment.clone();
        let at = document.spec.get("dependsOn").map_or(document.name_at, |node| node.at);
        self.places.insert(document.name.clone(), (Arc::clone(&document.file), at));
        let mut problems = vec![];
        let unread = |name: &ComponentName| {
            let message = format!("`{name}`, which it uses, may be declared in a file that can't be read");
            Problem::new("stalled", &document.file, document.name_at, message).hint("mend that file first")
        };
        for reference in &instance.references {
            if reference.component == instance.id.component {
                continue; // its own outputs, in its checks
            }
            let upstream = InstanceId::new(&environment, &reference.component);
            if known.has(&upstream) {
                instance.upstreams.insert(upstream);
            } else if !self.desired.complete && !known.components().contains(&&reference.component) {
                problems.push(unread(&reference.component));
            } else {
                let at = find_reference(&document.spec, reference).unwrap_or(document.name_at);
                let message = format!("`{}` is used here and there is no `{upstream}`", reference.component);
                problems.push(
                    Problem::new("dangling-reference", &document.file, at, message)
                        .hint(did_you_mean(&reference.component, known)),
                );
            }
        }
        for name in instance.spec.as_ref().map(|spec| spec.depends_on.clone()).unwrap_or_default() {
            let upstream = InstanceId::new(&environment, &name);
            let at = document.spec.get("dependsOn").map_or(document.name_at, |node| node.at);
            if upstream == instance.id {
                problems.push(Problem::new("cycle", &document.file, at, format!("`{name}` depends on itself")));
            } else if known.has(&upstream) {
                instance.upstreams.insert(upstream);
            } else if known.components().contains(&&name) {
                self.desired.notes.push(format!(
                    "{}: `dependsOn: {name}` is ignored in `{environment}`, where there is no `{name}`",
                    instance.id
                ));
            } else if !self.desired.complete {
                problems.push(unread(&name));
            } else {
                let message = format!("there is no component `{name}`");
                problems.push(
                    Problem::new("dangling-reference", &document.file, at, message).hint(did_you_mean(&name, known)),
                );
            }
        }
        if let Some((old, at)) = &document.renamed_from
            && known.has(&InstanceId::new(&environment, old))
        {
            let message = format!("it is renamed from `{old}`, which is still declared in `{environment}`");
            problems.push(
                Problem::new("renamed-twice", &document.file, *at, message)
                    .hint("remove the old component, or `renamedFrom`"),
            );
        }
        let after = self
            .desired
            .environments
            .get(&environment)
            .and_then(|e| e.after.as_ref())
            .map(|after| InstanceId::new(after.environment(), &instance.id.component));
        instance.after = after.filter(|after| known.has(after));
        instance.problems.extend(problems);
        self.problems.extend(instance.problems.iter().filter(|p| p.kind != "stalled").cloned());
    }

    /// Finds the cycles of instances that are reachable from `starts`.
    pub(super) fn rings<'i>(&'i self, starts: impl Iterator<Item = &'i InstanceId>) -> Vec<Vec<InstanceId>> {
        let mut state: HashMap<&InstanceId, bool> = HashMap::new(); // false: on the way; true: done
        let mut rings: Vec<Vec<InstanceId>> = vec![];
        for start in starts {
            let mut path: Vec<(&InstanceId, Vec<&InstanceId>)> = vec![];
            let open = |id: &InstanceId| {
                self.desired.instances.get(id).map(|i| i.upstreams.iter().rev().collect::<Vec<_>>()).unwrap_or_default()
            };
            if state.contains_key(start) {
                continue;
            }
            state.insert(start, false);
            path.push((start, open(start)));
            while let Some((id, rest)) = path.last_mut() {
                let id = *id;
                match rest.pop() {
                    None => {
                        state.insert(id, true);
                        path.pop();
                    }
                    Some(next) => match state.get(next) {
                        None => {
                            state.insert(next, false);
                            let rest = open(next);
                            path.push((next, rest));
                        }
                        Some(false) => {
                            let from = path
                                .iter()
                                .position(|(id, _)| *id == next)
                                .expect("an instance on the way stands in the path");
                            let mut ring: Vec<InstanceId> = path[from..].iter().map(|(id, _)| (*id).clone()).collect();
                            ring.push(next.clone());
                            rings.push(ring);
                        }
                        Some(true) => {}
                    },
                }
            }
        }
        rings
    }

    /// Adds a problem for each cycle, and stalls its members.
    pub(super) fn cycles(&mut self) {
        for ring in self.rings(self.desired.instances.keys()) {
            let names: Vec<String> = ring.iter().map(ToString::to_string).collect();
            let message = format!("instances depend on each other: {}", names.join(" → "));
            for id in &ring[1..] {
                if let Some(instance) = self.desired.instances.get_mut(id) {
                    let (file, at) = self.places.get(&id.component).cloned().unwrap_or_default();
                    let instance = Arc::make_mut(instance);
                    instance.problems.push(Problem::new("cycle", &file, at, message.clone()));
                    instance.digest = None;
                }
            }
            let (file, at) = self.places.get(&ring[0].component).cloned().unwrap_or_default();
            self.problems.push(Problem::new("cycle", &file, at, message).hint("remove one `dependsOn` or reference"));
        }
    }

    /// Returns the result. Problems are sorted and have their source lines.
    pub(super) fn finish(mut self, files: &[&Arc<File>]) -> Desired {
        let problems = std::mem::take(&mut self.problems).finish();
        if !problems.is_empty() {
            let texts: HashMap<&str, &Arc<File>> = files.iter().map(|file| (&*file.name, *file)).collect();
            let quote = |problem: Problem| match texts.get(&*problem.file) {
                Some(file) if problem.source.is_none() => problem.quote(&String::from_utf8_lossy(&file.text)),
                _ => problem,
            };
            self.desired.problems = problems.into_iter().map(quote).collect();
            self.desired.problems.dedup_by(|a, b| {
                a.file == b.file && a.line == b.line && a.column == b.column && a.message == b.message
            });
        }
        self.desired.notes.sort();
        self.desired.notes.dedup();
        self.desired
    }
}

fn did_you_mean(name: &ComponentName, known: &dyn Known) -> String {
    nearest(name.as_str(), known.components().into_iter().map(ComponentName::as_str))
        .map_or_else(|| "declare it, or remove the reference".into(), |name| format!("did you mean `{name}`?"))
}
