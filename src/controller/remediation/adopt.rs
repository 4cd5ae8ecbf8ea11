//! Adopt (R4.3): the declaration takes over what was observed, by a pull request that edits it at head.
//!
//! *Guarantees:* the edit is proved before anybody sees it: only what was to be adopted is made from something else, and
//! a fresh plan of it is empty. Whatever can't be proved is refused, with the reason.
//! *Race:* head moves while an edit is proved: the proposal is written on the head that it was proved on, and the forge
//! says where it conflicts.

use crate::domain::message::Refusal;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    controller::{
        context::Error,
        observe::declared_job,
        records::{Proposal, ProposalDirection},
        remediation::Remediations,
        source::Head,
        work_queue::{Reason, ReconcileRequest},
    },
    domain::{
        authorization::Principal,
        declaration::{self, Instance, closure::Source, manifests::is_manifest, node, schema::Verb},
        plan::pending::is_pending,
        remediation::{
            self, Group,
            adopt::{Adopted, Declared, adopted, edit_tfvars},
            adopt_cluster::edit_cluster,
            adopt_objects::{edit_object, edit_values},
        },
    },
    model::{Change, ComponentName, Field, InstanceId, ResourceChange},
    ports::{EntryKind, Files, FilesError, Overlay, Use, join},
};

/// Files by path, as they are edited.
pub(super) type Edits = BTreeMap<String, String>;

/// A file as it is with the edits so far.
fn edited(head: &Head, edits: &Edits, path: &str) -> Result<String, FilesError> {
    match edits.get(path) {
        Some(text) => Ok(text.clone()),
        None => head.content.read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()),
    }
}

/// The files of variables that tofu reads by itself, those that win first.
fn files_of_variables(content: &dyn Files, root: &str) -> Vec<String> {
    let entries = content.list(root).unwrap_or_default();
    let names = entries.into_iter().filter(|entry| entry.sort == EntryKind::File).map(|entry| entry.name);
    let mut names: Vec<String> =
        names.filter(|name| name.ends_with(".auto.tfvars") || name == "terraform.tfvars").collect();
    names.sort_by_key(|name| (name.ends_with(".auto.tfvars"), name.clone()));
    names.into_iter().rev().filter_map(|name| join(root, &name)).collect()
}

/// The file that declares a component.
fn component_file(content: &dyn Files, folder: &str, name: &ComponentName) -> Option<String> {
    let is_it = |document: &node::Node| {
        document.get("kind").and_then(node::Node::text) == Some("Component")
            && document.get("metadata").and_then(|m| m.get("name")).and_then(node::Node::text) == Some(name.as_str())
    };
    for entry in content.list(folder).ok()? {
        let path = join(folder, &entry.name)?;
        match entry.sort {
            EntryKind::Folder => {
                if let Some(found) = component_file(content, &path, name) {
                    return Some(found);
                }
            }
            EntryKind::File if path.ends_with(".yaml") || path.ends_with(".yml") => {
                let bytes = content.read(&path).ok()?;
                if node::read(&path.as_str().into(), &bytes).0.iter().any(is_it) {
                    return Some(path);
                }
            }
            _ => {}
        }
    }
    None
}

impl Remediations {
    /// `/adopt` and `/revert`: switch the direction of the proposals of what is meant.
    pub(crate) async fn turn(
        self: &Arc<Self>,
        head: &Arc<Head>,
        meant: &BTreeSet<InstanceId>,
        verb: Verb,
        who: &Principal,
    ) -> Result<String, Error> {
        let known: Vec<(String, Proposal)> = self.context.store.collection::<Proposal>().all().await?;
        let about: Vec<_> = known.into_iter().filter(|(_, proposal)| !proposal.instances.is_disjoint(meant)).collect();
        if about.is_empty() {
            return Err(Error::Refused(Refusal::NoProposal(meant.clone())));
        }
        let mut turned = vec![];
        for (key, proposal) in about {
            let environment = &proposal.instances.iter().next().map(|id| id.environment.clone());
            let Some(environment) = environment else { continue };
            if verb == Verb::Adopt {
                let groups = remediation::groups(environment, self.drifted(head, environment).await?);
                let Some(group) = groups.iter().find(|group| group.key() == key) else { continue };
                if let Err(why) = self.adopt(head, group).await? {
                    return Err(Error::Refused(Refusal::NotAdoptable { reason: why }));
                }
                self.context
                    .store
                    .collection::<ProposalDirection>()
                    .put(&key, self.context.now(), &ProposalDirection::Adopt)
                    .await?;
            } else {
                self.context.store.collection::<ProposalDirection>().remove(&key).await?;
            }
            self.context.store.audit(self.context.now(), &who.name(), &verb.name(), &key, "").await?;
            self.context.queue.enqueue(ReconcileRequest::Proposals(environment.clone()), Reason::DirectionChanged);
            turned.push(proposal.pull.to_string());
        }
        let what =
            if verb == Verb::Adopt { "declare what was observed" } else { "return the world to what was applied" };
        Ok(format!("From now on merging {} would {what}.", turned.join(", ")))
    }

    /// The edits by which the declarations say what was observed of a group, proved; or why there are none.
    pub(super) async fn adopt(
        self: &Arc<Self>,
        head: &Arc<Head>,
        group: &Group,
    ) -> Result<Result<Edits, String>, Error> {
        let mut edits = Edits::new();
        for one in &group.drifted {
            if let Err(why) = self.adopt_one(head, &one.id, &mut edits).await? {
                return Ok(Err(why));
            }
        }
        self.prove(head, &group.drifted.iter().map(|one| one.id.clone()).collect(), &edits)
            .await
            .map(|proved| proved.map(|()| edits))
    }

    async fn adopt_one(
        self: &Arc<Self>,
        head: &Arc<Head>,
        id: &InstanceId,
        edits: &mut Edits,
    ) -> Result<Result<(), String>, Error> {
        let applied = self.context.store.applied_in(&id.environment).await?;
        let (Some(record), Some(instance)) = (applied.get(id), head.instance(id)) else {
            return Ok(Err(format!("`{id}` is not declared and applied")));
        };
        if is_pending(instance, &applied) {
            return Ok(Err(format!("`{id}` is pending; apply that first")));
        }
        let job = self.observer.applied_job(id, record, head).await?;
        let observation = self.observer.observe_job(head, &job).await?;
        if instance.kind == "kubernetes" {
            return Ok(self.edit_objects(head, instance, &observation.changes, edits));
        }
        if let Some(citus) = instance.spec.as_ref().and_then(|spec| spec.citus.as_ref()) {
            let name = id.component.as_str();
            let Some(path) = component_file(&*head.content, &self.context.settings.root, &id.component) else {
                return Ok(Err(format!("the declaration of `{name}` can't be found")));
            };
            let text = match edited(head, edits, &path) {
                Ok(text) => text,
                Err(error) => return Ok(Err(error.to_string())),
            };
            return Ok(edit_cluster(&text, name, &id.environment, citus, &observation.changes)
                .map(|edited| drop(edits.insert(path, edited))));
        }
        let found = match adopted(&observation.changes, &observation.origins) {
            Ok(found) => found,
            Err(why) => return Ok(Err(why)),
        };
        for adopted in found {
            if let Err(why) = self.edit(head, instance, &adopted, edits) {
                return Ok(Err(why));
            }
        }
        Ok(Ok(()))
    }

    /// Edits a value at the narrowest place that concerns this instance alone.
    pub(super) fn edit(
        &self,
        head: &Head,
        instance: &Instance,
        adopted: &Adopted,
        edits: &mut Edits,
    ) -> Result<(), String> {
        let Some(tofu) = instance.spec.as_ref().and_then(|spec| spec.tofu.as_ref()) else {
            return Err(format!("`{}` has no variables", instance.id));
        };
        if !tofu.variables.contains_key(&adopted.variable) {
            let root = join("", &tofu.root).unwrap_or_default();
            let listed = tofu.var_files.iter().rev().filter_map(|path| join("", path));
            for path in listed.chain(files_of_variables(&*head.content, &root)) {
                let Ok(text) = edited(head, edits, &path) else { continue };
                let Ok(Some(edited)) = edit_tfvars(&text, adopted) else { continue };
                let mut more = edits.clone();
                more.insert(path.clone(), edited);
                // A file that others use as well says too much.
                if self.touched(head, &more).is_subset(&self.touched_with(head, edits, &instance.id)) {
                    *edits = more;
                    return Ok(());
                }
                break;
            }
        }
        let name = &instance.id.component;
        let path = component_file(&*head.content, &self.context.settings.root, name)
            .ok_or_else(|| format!("the declaration of `{name}` can't be found"))?;
        let text = edited(head, edits, &path).map_err(|error| error.to_string())?;
        let declared = Declared { text: &text, component: name.as_str(), environment: &instance.id.environment, tofu };
        let edited = declared.edit(adopted)?;
        edits.insert(path, edited);
        Ok(())
    }

    /// Edits the files that say the fields of objects, each at the narrowest place that concerns this instance alone.
    fn edit_objects(
        &self,
        head: &Head,
        instance: &Instance,
        changes: &[ResourceChange],
        edits: &mut Edits,
    ) -> Result<(), String> {
        for change in changes {
            let name = &change.resource;
            match change.change {
                Change::Update => {}
                Change::Create => return Err(format!("`{name}` is gone; remove its declaration if that is meant")),
                _ => return Err(format!("`{name}` is not a matter of its fields; change its declaration")),
            }
            // From the end, so that the places of list items stay what they are.
            for field in change.fields.iter().rev() {
                if field.sensitive {
                    return Err(format!("`{}` of `{name}` is sensitive, and no file may say it", field.path));
                }
                self.edit_field(head, instance, name, field, edits)?;
            }
        }
        Ok(())
    }

    fn edit_field(
        &self,
        head: &Head,
        instance: &Instance,
        name: &str,
        field: &Field,
        edits: &mut Edits,
    ) -> Result<(), String> {
        let Some(source) = instance.spec.as_ref().and_then(|spec| spec.source()) else {
            return Err(format!("`{}` is made from nothing", instance.id));
        };
        let kind = name.split(['.', '/']).next().unwrap_or_default();
        let object = name.rsplit('/').next().unwrap_or_default();
        let (mut paths, values): (Vec<String>, bool) = match &source {
            Source::Helm { value_files, .. } => {
                (value_files.iter().rev().filter_map(|path| join("", path)).collect(), true)
            }
            _ => (instance.closure.files.keys().filter(|path| is_manifest(path)).cloned().collect(), false),
        };
        if let Source::Kustomize(folder) = &source {
            // An overlay belongs to this instance only.
            let folder = format!("{}/", join("", folder).unwrap_or_default());
            paths.sort_by_key(|path| !path.starts_with(&folder));
        }
        let mut why = None;
        for path in paths {
            let text = match edits.get(&path) {
                Some(text) => text.clone(),
                None => match head.content.read(&path) {
                    Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
                    Err(_) => continue,
                },
            };
            let edited = if values { edit_values(&text, field) } else { edit_object(&text, kind, object, field) };
            match edited {
                Ok(None) => {}
                Err(reason) => why = Some(format!("`{path}`: {reason}")),
                Ok(Some(edited)) => {
                    let mut more = edits.clone();
                    more.insert(path.clone(), edited);
                    if self.touched(head, &more).is_subset(&self.touched_with(head, edits, &instance.id)) {
                        *edits = more;
                        return Ok(());
                    }
                    why = Some(format!("`{path}`, which says it, is what other instances are made from as well"));
                }
            }
        }
        Err(why.unwrap_or_else(|| {
            let what = if values { "no one value of its files of values is" } else { "no file of its own says" };
            format!("{what} `{}` of `{name}`; change what it is made from", field.path)
        }))
    }

    fn with_edits(&self, head: &Head, edits: &Edits) -> Head {
        let content: Arc<dyn Files> = Arc::new(Overlay::new(Arc::clone(&head.content), edits));
        let desired = declaration::load(&*content, &self.context.settings.root);
        Head { revision: head.revision.clone(), desired, content }
    }

    /// The instances that edits make from something else.
    fn touched(&self, head: &Head, edits: &Edits) -> BTreeSet<InstanceId> {
        if edits.is_empty() {
            return BTreeSet::new();
        }
        let edited = self.with_edits(head, edits);
        let digest = |head: &Head, id: &InstanceId| head.instance(id).and_then(|instance| instance.digest);
        let ids = head.desired.instances.keys().chain(edited.desired.instances.keys());
        ids.filter(|id| digest(head, id) != digest(&edited, id)).cloned().collect()
    }

    fn touched_with(&self, head: &Head, edits: &Edits, id: &InstanceId) -> BTreeSet<InstanceId> {
        let mut touched = self.touched(head, edits);
        touched.insert(id.clone());
        touched
    }

    /// Whether edits concern what they are for and nothing else, and leave nothing to do there.
    async fn prove(
        self: &Arc<Self>,
        head: &Arc<Head>,
        ids: &BTreeSet<InstanceId>,
        edits: &Edits,
    ) -> Result<Result<(), String>, Error> {
        let edited = self.with_edits(head, edits);
        if edited.desired.problems.len() > head.desired.problems.len() {
            let first = edited.desired.problems.first().map(ToString::to_string).unwrap_or_default();
            return Ok(Err(format!("the edited declaration has a problem: {first}")));
        }
        if let Some(other) = self.touched(head, edits).difference(ids).next() {
            return Ok(Err(format!("`{other}` would be made from something else as well")));
        }
        for id in ids {
            let Some(instance) = edited.instance(id) else { return Ok(Err(format!("`{id}` would be gone"))) };
            let inputs = self.observer.inputs(&edited, id, &instance.references, &BTreeMap::new()).await?;
            let job = declared_job(instance, Use::Head, Arc::clone(&edited.content), &inputs, edited.consumed(id))?;
            let left = self.observer.observe_job(&edited, &job).await?.changes;
            if let Some(left) = left.iter().find(|change| change.r#type != "output") {
                return Ok(Err(format!(
                    "with the value that was observed, a plan of `{id}` would still {} `{}`; its module makes something else of it",
                    left.change.verb(),
                    left.resource
                )));
            }
        }
        Ok(Ok(()))
    }
}
