//! All files of a revision to all instances and all problems.
//!
//! Decides which documents belong together. Keeps what it read of each file by its content, so that a revision that
//! changes one file costs one file.
//! Never drops a problem, and never lets a broken file look like a deletion: `complete` says whether every file parsed
//! (R1.9).

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use serde::de::DeserializeOwned;

use super::{
    closure::{self, Closure},
    document::{Document, File, read_file, schemas},
    node::{self, Node},
    resolve::{self, Reference},
    schema::{Check, Component, Environment, Remediation, Schedule, StateRepo},
    validate::{Validator, Whole, nearest},
};
use crate::{
    model::{ComponentName, Digest, Digester, EnvironmentName, InstanceId, Place, Problem, Problems},
    port::{Files, FilesError, Sort, join},
};

/// The most files that the declarations may have.
pub const FILES_MAX: usize = 50_000;
/// The deepest folder below the root of the declarations.
const FOLDER_DEPTH_MAX: usize = 16;

/// A component in an environment, as a revision declares it.
#[derive(Clone, Debug)]
pub struct Instance {
    /// Its name.
    pub id: InstanceId,
    /// Its kind; `unknown` where its declaration can't be read.
    pub kind: &'static str,
    /// The resolved declaration; absent where it can't be read.
    pub spec: Option<Arc<Component>>,
    /// For selectors.
    pub labels: Arc<BTreeMap<String, String>>,
    /// The outputs that it uses, of other components.
    pub references: BTreeSet<Reference>,
    /// What has to be applied before it.
    pub upstreams: BTreeSet<InstanceId>,
    /// The same component of the environment that comes first (R3.5).
    pub after: Option<InstanceId>,
    /// Everything that it is made from.
    pub closure: Arc<Closure>,
    /// The component digest (R1.2); absent where there is a problem.
    pub digest: Option<Digest>,
    /// What is wrong with it; it is stalled while this is not empty.
    pub problems: Vec<Problem>,
}

/// What a revision says.
#[derive(Clone, Debug, Default)]
pub struct Desired {
    /// Permissions and defaults; absent where they can't be read, and then nobody may do anything.
    pub state_repo: Option<Arc<StateRepo>>,
    /// The environments that could be read.
    pub environments: BTreeMap<EnvironmentName, Arc<Environment>>,
    /// The instances, stalled ones too.
    pub instances: BTreeMap<InstanceId, Arc<Instance>>,
    /// The remediations by name, with the path of their file in the repository.
    pub remediations: BTreeMap<ComponentName, (Arc<Remediation>, String)>,
    /// The schedules by name.
    pub schedules: BTreeMap<ComponentName, Arc<Schedule>>,
    /// Everything that is wrong, in the order of files and lines.
    pub problems: Vec<Problem>,
    /// What is worth saying and not wrong.
    pub notes: Vec<String>,
    /// How many files were read.
    pub files: usize,
    /// How many components are declared.
    pub components: usize,
    /// Whether every file parsed, so that what is not here was removed.
    pub complete: bool,
}

/// Loads revisions, and remembers files by their content.
#[derive(Default)]
pub struct Loader {
    files: HashMap<(String, String), Arc<File>>,
    instances: HashMap<(usize, EnvironmentName), (Arc<Document>, Arc<Instance>)>,
}

/// Loads one revision once.
pub fn load(files: &dyn Files, root: &str) -> Desired {
    Loader::default().load(files, root)
}

impl Loader {
    /// Loads what stands below `root` in a revision.
    pub fn load(&mut self, files: &dyn Files, root: &str) -> Desired {
        let mut house = House { places: HashMap::new(), problems: Problems::default(), desired: Desired { complete: true, ..Desired::default() }, texts: BTreeMap::new() };
        let mut paths = vec![];
        if let Err(error) = list(files, root, "", 0, &mut paths, &mut house.problems) {
            house.incomplete(Problem::new("unreadable", &error.path.as_str().into(), Place::default(), error.to_string()));
        }
        let read = self.read_all(files, root, &paths, &mut house);
        if paths.is_empty() && house.problems.is_empty() {
            let problem = Problem::new("empty", &root.into(), Place::default(), format!("no declarations in `{root}`"));
            house.incomplete(problem.hint("`evenkeel init` writes a first state repo; --state-repo names another folder"));
        }
        house.desired.files = paths.len();
        let documents: Vec<Arc<Document>> = read.iter().flat_map(|file| file.documents.iter().cloned()).collect();
        let broken = house.sort_out(&documents);
        self.instantiate(files, &documents, &broken, &mut house);
        house.finish()
    }

    fn read_all(&mut self, files: &dyn Files, root: &str, paths: &[(String, String)], house: &mut House) -> Vec<Arc<File>> {
        let mut fresh = HashMap::with_capacity(paths.len());
        let mut read = Vec::with_capacity(paths.len());
        for (path, id) in paths {
            let key = (path.clone(), id.clone());
            let known = if id.is_empty() { None } else { self.files.remove(&key) };
            let file = known.unwrap_or_else(|| Arc::new(read_file(files, root, path)));
            house.problems.extend(file.problems.iter().cloned());
            if !file.problems.is_empty() {
                house.desired.complete = false;
            }
            house.texts.insert(path.as_str().into(), Arc::clone(&file.text));
            fresh.insert(key, Arc::clone(&file));
            read.push(file);
        }
        self.files = fresh;
        read
    }

    fn instantiate(&mut self, files: &dyn Files, documents: &[Arc<Document>], broken: &Broken, house: &mut House) {
        let mut closures: HashMap<(String, Vec<String>), Result<Arc<Closure>, String>> = HashMap::new();
        let mut kept = HashMap::with_capacity(self.instances.len());
        let components: Vec<&Arc<Document>> = documents.iter().filter(|document| document.kind == "Component").collect();
        house.desired.components = components.len();
        let mut instances = vec![];
        for document in components {
            for (environment, at) in environments_of(document) {
                if !broken.environments.contains(&environment) {
                    let problem = Problem::new("unknown-environment", &document.file, at, format!("there is no environment `{environment}`"));
                    let names = broken.environments.iter().map(EnvironmentName::as_str);
                    let hint = nearest(environment.as_str(), names).map_or_else(|| "declare it in `environments/`".to_owned(), |name| format!("did you mean `{name}`?"));
                    house.problems.push(problem.hint(hint));
                    continue;
                }
                let key = (Arc::as_ptr(document) as usize, environment.clone());
                let base = match self.instances.remove(&key) {
                    Some((_, base)) => base,
                    None => Arc::new(resolve_instance(document, &environment)),
                };
                kept.insert(key, (Arc::clone(document), Arc::clone(&base)));
                instances.push((Arc::clone(document), base));
            }
        }
        self.instances = kept;
        let ids: HashSet<InstanceId> = instances.iter().map(|(_, instance)| instance.id.clone()).collect();
        for (document, base) in instances {
            let mut instance = (*base).clone();
            if broken.components.contains(&document.name) || broken.unreadable.contains(&instance.id.environment) || broken.state_repo {
                let file: Arc<str> = Arc::clone(&document.file);
                let what = if broken.state_repo { "the StateRepo" } else if broken.components.contains(&document.name) { "this component" } else { "its environment" };
                if instance.problems.is_empty() {
                    instance.problems.push(Problem::new("stalled", &file, document.name_at, format!("{what} has problems")));
                }
            }
            house.edges(&mut instance, &document, &ids);
            if let Some(spec) = instance.spec.clone()
                && let Some(tofu) = &spec.tofu
            {
                let key = (tofu.root.clone(), tofu.var_files.clone());
                let closure = closures.entry(key).or_insert_with(|| {
                    closure::of_tofu(files, &tofu.root, &tofu.var_files).map(Arc::new).map_err(|error| error.to_string())
                });
                match closure {
                    Ok(closure) => instance.closure = Arc::clone(closure),
                    Err(why) => {
                        let at = document.spec.nearest(&["tofu".into(), "root".into()]).at;
                        let problem = Problem::new("closure", &document.file, at, why.clone()).hint("paths are relative to the root of the git repository");
                        instance.problems.push(problem.clone());
                        house.problems.push(problem);
                    }
                }
                instance.digest = instance.problems.is_empty().then(|| digest(tofu, &instance.closure));
            }
            house.desired.instances.insert(instance.id.clone(), Arc::new(instance));
        }
        house.cycles();
    }
}

/// The component digest (R1.2): what it is made from, with references as they are written; guards, labels, drift
/// policy, checks and paths are not in it.
fn digest(tofu: &super::schema::Tofu, closure: &Closure) -> Digest {
    let super::schema::Tofu { connection, root: _, workspace, variables, var_files: _, backend_config } = tofu;
    let made_from = serde_json::json!({
        "connection": connection, "workspace": workspace, "variables": variables, "backendConfig": backend_config,
    });
    let content = closure.digest.map(|digest| digest.to_string()).unwrap_or_default();
    Digester::new("component").field(b"tofu").field(made_from.to_string().as_bytes()).field(content.as_bytes()).finish()
}

/// Lists the YAML files below the root of the declarations, with the ids of their content.
fn list(files: &dyn Files, root: &str, below: &str, depth: usize, found: &mut Vec<(String, String)>, problems: &mut Problems) -> Result<(), FilesError> {
    let folder = join(root, below).unwrap_or_default();
    for entry in files.list(&folder)? {
        let path = if below.is_empty() { entry.name.clone() } else { format!("{below}/{}", entry.name) };
        let file: Arc<str> = path.as_str().into();
        match entry.sort {
            Sort::Folder if depth >= FOLDER_DEPTH_MAX => {
                problems.push(Problem::new("too-deep", &file, Place::default(), format!("folders below {FOLDER_DEPTH_MAX} levels are not read")));
            }
            Sort::Folder => list(files, root, &path, depth + 1, found, problems)?,
            Sort::File | Sort::Program | Sort::Link if path.ends_with(".yaml") || path.ends_with(".yml") => {
                if found.len() >= FILES_MAX {
                    problems.push(Problem::new("too-many-files", &file, Place::default(), format!("more than {FILES_MAX} files are not read")));
                    return Ok(());
                }
                found.push((path, if entry.sort == Sort::Link { String::new() } else { entry.id }));
            }
            _ => {}
        }
    }
    Ok(())
}

fn environments_of(document: &Document) -> Vec<(EnvironmentName, Place)> {
    match document.spec.get("environments").map(|node| &node.value) {
        Some(node::Kind::List(items)) => items.iter().filter_map(|item| Some((item.text()?.parse().ok()?, item.at))).collect(),
        _ => vec![],
    }
}

/// Where only `${environment}` may stand: what an instance is made from can't depend on outputs.
const WITHOUT_OUTPUTS: [&str; 4] = ["connection", "root", "workspace", "varFiles"];

/// One component in one environment, as far as its own document says.
fn resolve_instance(document: &Arc<Document>, environment: &EnvironmentName) -> Instance {
    let id = InstanceId::new(environment, &document.name);
    let mut instance = Instance {
        kind: if document.spec.get("tofu").is_some() { "tofu" } else { "unknown" },
        spec: None,
        labels: Arc::clone(&document.labels),
        references: BTreeSet::new(),
        upstreams: BTreeSet::new(),
        after: None,
        closure: Arc::default(),
        digest: None,
        problems: document.problems.clone(),
        id,
    };
    if !instance.problems.is_empty() {
        return instance;
    }
    let mut spec = document.spec.clone();
    let mut overridden = false;
    if let node::Kind::Map(entries) = &mut spec.value
        && let Some(at) = entries.iter().position(|(key, _)| &*key.name == "overrides")
    {
        let (_, overrides) = entries.remove(at);
        if let Some(patch) = overrides.get(environment.as_str()) {
            resolve::merge(&mut spec, patch);
            overridden = true;
        }
    }
    let mut found = resolve::Found::default();
    if let node::Kind::Map(entries) = &mut spec.value {
        for (key, node) in entries {
            if let (node::Kind::Map(fields), "tofu") = (&mut node.value, &*key.name) {
                for (field, node) in fields {
                    let allowed = !WITHOUT_OUTPUTS.contains(&&*field.name);
                    resolve::interpolate(node, environment, &document.file, allowed, &mut found);
                }
            } else {
                resolve::interpolate(node, environment, &document.file, &*key.name == "checks", &mut found);
            }
        }
    }
    if overridden {
        let schema = &schemas()["Component"];
        let mut validator = Validator { file: &document.file, root: schema, whole: Whole::Yes, problems: vec![] };
        validator.check(&schema["properties"]["spec"], &spec);
        found.problems.extend(validator.problems);
    }
    instance.problems = found.problems;
    if instance.problems.is_empty() {
        match decode::<Component>(document, &spec) {
            Ok(spec) => {
                instance.problems.extend(spec.checks.iter().filter_map(|check| wrong_check(document, check)));
                instance.spec = Some(Arc::new(spec));
            }
            Err(problem) => instance.problems.push(*problem),
        }
    }
    instance.references = found.references.into_iter().map(|(reference, _)| reference).collect();
    instance
}

fn wrong_check(document: &Document, check: &Check) -> Option<Problem> {
    (check.http.is_some() == check.tcp.is_some()).then(|| {
        let at = document.spec.get("checks").map_or(document.spec.at, |node| node.at);
        Problem::new("check", &document.file, at, format!("the check `{}` has to have one of `http` and `tcp`", check.name))
    })
}

/// A document that passed its schema; what fails here still is a problem with a place, never a crash.
fn decode<T: DeserializeOwned>(document: &Document, spec: &Node) -> Result<T, Box<Problem>> {
    serde_json::from_value(spec.to_json()).map_err(|error| Box::new(Problem::new("wrong-value", &document.file, spec.at, error.to_string())))
}

/// What can't be relied on.
struct Broken {
    environments: BTreeSet<EnvironmentName>,
    unreadable: BTreeSet<EnvironmentName>,
    components: BTreeSet<ComponentName>,
    state_repo: bool,
}

struct House {
    places: HashMap<ComponentName, (Arc<str>, Place)>,
    problems: Problems,
    desired: Desired,
    texts: BTreeMap<Arc<str>, Arc<[u8]>>,
}

impl House {
    fn incomplete(&mut self, problem: Problem) {
        self.desired.complete = false;
        self.problems.push(problem);
    }

    /// Puts the documents that are no components in their places, and finds doubles.
    fn sort_out(&mut self, documents: &[Arc<Document>]) -> Broken {
        let mut broken = Broken { environments: BTreeSet::new(), unreadable: BTreeSet::new(), components: BTreeSet::new(), state_repo: false };
        let mut first: HashMap<(&str, &str), &Arc<Document>> = HashMap::new();
        let mut state_repos = 0;
        for document in documents {
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
                    let name: EnvironmentName = document.name.as_str().parse().expect("names of both sorts have one grammar");
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
                        self.desired.remediations.insert(document.name.clone(), (remediation, document.file.to_string()));
                    }
                }
                _ => {}
            }
        }
        if broken.state_repo {
            self.desired.state_repo = None;
        }
        if state_repos == 0 && !documents.is_empty() {
            broken.state_repo = true;
            let problem = Problem::new("missing-state-repo", &"staterepo.yaml".into(), Place::default(), "there is no StateRepo");
            self.problems.push(problem.hint("write one document of `kind: StateRepo`; without it nobody may do anything"));
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

    /// Every `after` names an environment, and they form no ring.
    fn check_after(&mut self, documents: &[Arc<Document>], broken: &mut Broken) {
        for document in documents.iter().filter(|document| document.kind == "Environment") {
            let Ok(name) = document.name.as_str().parse::<EnvironmentName>() else { continue };
            let Some(after) = self.desired.environments.get(&name).and_then(|e| e.after.as_ref()).map(|after| after.environment().clone()) else { continue };
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
                next = self.desired.environments.get(&at_name).and_then(|e| e.after.as_ref()).map(|after| after.environment().clone());
                ring.push(at_name);
            }
        }
    }

    /// Turns names into edges: `dependsOn`, references, and the environment that comes first.
    fn edges(&mut self, instance: &mut Instance, document: &Document, ids: &HashSet<InstanceId>) {
        let environment = instance.id.environment.clone();
        let at = document.spec.get("dependsOn").map_or(document.name_at, |node| node.at);
        self.places.insert(document.name.clone(), (Arc::clone(&document.file), at));
        let mut problems = vec![];
        for reference in &instance.references {
            if reference.component == instance.id.component {
                continue; // its own outputs, in its checks
            }
            let upstream = InstanceId::new(&environment, &reference.component);
            if ids.contains(&upstream) {
                instance.upstreams.insert(upstream);
            } else {
                let at = find_reference(&document.spec, reference).unwrap_or(document.name_at);
                let message = format!("`{}` is used here and there is no `{upstream}`", reference.component);
                problems.push(Problem::new("dangling-reference", &document.file, at, message).hint(self.did_you_mean(&reference.component, ids)));
            }
        }
        for name in instance.spec.as_ref().map(|spec| spec.depends_on.clone()).unwrap_or_default() {
            let upstream = InstanceId::new(&environment, &name);
            let at = document.spec.get("dependsOn").map_or(document.name_at, |node| node.at);
            if upstream == instance.id {
                problems.push(Problem::new("cycle", &document.file, at, format!("`{name}` depends on itself")));
            } else if ids.contains(&upstream) {
                instance.upstreams.insert(upstream);
            } else if ids.iter().any(|id| id.component == name) {
                self.desired.notes.push(format!("{}: `dependsOn: {name}` is ignored in `{environment}`, where there is no `{name}`", instance.id));
            } else {
                let message = format!("there is no component `{name}`");
                problems.push(Problem::new("dangling-reference", &document.file, at, message).hint(self.did_you_mean(&name, ids)));
            }
        }
        let after = self.desired.environments.get(&environment).and_then(|e| e.after.as_ref()).map(|after| InstanceId::new(after.environment(), &instance.id.component));
        instance.after = after.filter(|after| ids.contains(after));
        instance.problems.extend(problems.iter().cloned());
        self.problems.extend(problems);
        self.problems.extend(instance.problems.iter().filter(|p| p.kind != "stalled").cloned());
    }

    fn did_you_mean(&self, name: &ComponentName, ids: &HashSet<InstanceId>) -> String {
        nearest(name.as_str(), ids.iter().map(|id| id.component.as_str())).map_or_else(|| "declare it, or remove the reference".into(), |name| format!("did you mean `{name}`?"))
    }

    /// Finds rings of instances, names each whole, and stalls its members.
    fn cycles(&mut self) {
        let mut state: HashMap<&InstanceId, bool> = HashMap::new(); // false: on the way; true: done
        let mut rings: Vec<Vec<InstanceId>> = vec![];
        for start in self.desired.instances.keys() {
            let mut path: Vec<(&InstanceId, Vec<&InstanceId>)> = vec![];
            let open = |id: &InstanceId| self.desired.instances.get(id).map(|i| i.upstreams.iter().rev().collect::<Vec<_>>()).unwrap_or_default();
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
                            let from = path.iter().position(|(id, _)| *id == next).expect("an instance on the way stands in the path");
                            let mut ring: Vec<InstanceId> = path[from..].iter().map(|(id, _)| (*id).clone()).collect();
                            ring.push(next.clone());
                            rings.push(ring);
                        }
                        Some(true) => {}
                    },
                }
            }
        }
        for ring in rings {
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

    fn finish(mut self) -> Desired {
        let texts = self.texts;
        let quote = |problem: Problem| match texts.get(&problem.file) {
            Some(text) if problem.source.is_none() => problem.quote(&String::from_utf8_lossy(text)),
            _ => problem,
        };
        self.desired.problems = std::mem::take(&mut self.problems).finish().into_iter().map(quote).collect();
        self.desired.problems.dedup_by(|one, two| one.file == two.file && one.line == two.line && one.column == two.column && one.message == two.message);
        self.desired.notes.sort();
        self.desired.notes.dedup();
        self.desired
    }
}

/// Where a reference stands in a declaration.
fn find_reference(node: &Node, reference: &Reference) -> Option<Place> {
    match &node.value {
        node::Kind::Text(text) => text.contains(&format!("{}.outputs.{}", reference.component, reference.key)).then_some(node.at),
        node::Kind::List(items) => items.iter().find_map(|item| find_reference(item, reference)),
        node::Kind::Map(entries) => entries.iter().find_map(|(_, item)| find_reference(item, reference)),
        _ => None,
    }
}
