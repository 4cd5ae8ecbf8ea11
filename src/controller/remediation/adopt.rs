//! Edits declarations so that they declare the observed drift (adoption, R4.3).
//!
//! *Invariant:* an edit is verified before it is published: it changes only the adopted instances, and a new plan of these
//! instances is empty. An edit that can't be verified is refused with the reason.
//! *Race:* head moves while an edit is verified: the proposal is based on the verified head, and the forge reports conflicts.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde_json::Value;

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
        declaration::{self, Instance, node, schema::Verb},
        kind::{self, Adoption},
        message::{Refusal, adoption::NotAdoptable, answer::Answer},
        plan::pending::is_pending,
        remediation::{self, Group},
    },
    model::{ComponentName, InstanceId},
    ports::{EntryKind, Files, Overlay, Use, join},
    targets,
};

/// The edited files, by path.
pub(super) type Edits = BTreeMap<String, String>;

/// Returns the file that declares a component.
fn component_file(content: &dyn Files, folder: &str, name: &ComponentName) -> Option<String> {
    let is_declaration = |document: &node::Node| {
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
                if node::read(&path.as_str().into(), &bytes).0.iter().any(is_declaration) {
                    return Some(path);
                }
            }
            _ => {}
        }
    }
    None
}

/// The files at head, while the declaration of one instance is edited.
struct HeadEdits<'a> {
    remediations: &'a Remediations,
    head: &'a Head,
    id: &'a InstanceId,
    edits: &'a mut Edits,
}

impl kind::Edits for HeadEdits<'_> {
    fn content(&self) -> &dyn Files {
        &*self.head.content
    }
    fn read(&self, path: &str) -> Result<String, String> {
        match self.edits.get(path) {
            Some(text) => Ok(text.clone()),
            None => {
                let bytes = self.head.content.read(path).map_err(|error| error.to_string())?;
                Ok(String::from_utf8_lossy(&bytes).into_owned())
            }
        }
    }
    fn declaration(&self) -> Result<String, String> {
        let (root, name) = (&self.remediations.context.settings.root, &self.id.component);
        component_file(&*self.head.content, root, name)
            .ok_or_else(|| format!("the declaration of `{name}` can't be found"))
    }
    fn write(&mut self, path: &str, text: String) {
        self.edits.insert(path.to_owned(), text);
    }
    fn write_own(&mut self, path: &str, text: String) -> bool {
        let mut with_file = self.edits.clone();
        with_file.insert(path.to_owned(), text);
        let allowed = self.remediations.changed_with(self.head, self.edits, self.id);
        let is_own = self.remediations.changed_instances(self.head, &with_file).is_subset(&allowed);
        if is_own {
            *self.edits = with_file;
        }
        is_own
    }
}

impl Remediations {
    /// `/adopt` and `/revert`: set the direction of the proposals of the selected instances.
    ///
    /// # Errors
    /// [`Error::Refused`] where no proposal exists or the drift can't be adopted; else when the store fails.
    pub(crate) async fn set_direction(
        self: &Arc<Self>,
        head: &Arc<Head>,
        selected: &BTreeSet<InstanceId>,
        verb: Verb,
        principal: &Principal,
    ) -> Result<String, Error> {
        let existing: Vec<(String, Proposal)> = self.context.store.collection::<Proposal>().all().await?;
        let affected: Vec<_> =
            existing.into_iter().filter(|(_, proposal)| !proposal.instances.is_disjoint(selected)).collect();
        if affected.is_empty() {
            return Err(Error::Refused(Refusal::NoProposal(selected.clone())));
        }
        let mut changed = vec![];
        for (key, proposal) in affected {
            let environment = &proposal.instances.iter().next().map(|id| id.environment.clone());
            let Some(environment) = environment else { continue };
            if verb == Verb::Adopt {
                let groups = remediation::groups(environment, self.drifted(head, environment).await?);
                let Some(group) = groups.iter().find(|group| group.key() == key) else { continue };
                if let Err(reason) = self.adopt(head, group).await? {
                    return Err(Error::Refused(Refusal::NotAdoptable { reason }));
                }
                self.context
                    .store
                    .collection::<ProposalDirection>()
                    .put(&key, self.context.now(), &ProposalDirection::Adopt)
                    .await?;
            } else {
                self.context.store.collection::<ProposalDirection>().remove(&key).await?;
            }
            self.context.store.audit(self.context.now(), &principal.name(), &verb.name(), &key, "").await?;
            self.context.queue.enqueue(ReconcileRequest::Proposals(environment.clone()), Reason::DirectionChanged);
            changed.push(proposal.pull);
        }
        let answer = if verb == Verb::Adopt { Answer::Adopts(changed) } else { Answer::Reverts(changed) };
        Ok(answer.to_string())
    }

    /// Returns verified edits that declare the observed drift of a group, or the reason why there are none.
    ///
    /// # Errors
    /// When the store or a target fails.
    pub(super) async fn adopt(
        self: &Arc<Self>,
        head: &Arc<Head>,
        group: &Group,
    ) -> Result<Result<Edits, NotAdoptable>, Error> {
        let mut edits = Edits::new();
        for drift in &group.drifted {
            if let Err(reason) = self.adopt_instance(head, &drift.id, &mut edits).await? {
                return Ok(Err(reason));
            }
        }
        self.verify(head, &group.drifted.iter().map(|drift| drift.id.clone()).collect(), &edits)
            .await
            .map(|verified| verified.map(|()| edits))
    }

    async fn adopt_instance(
        self: &Arc<Self>,
        head: &Arc<Head>,
        id: &InstanceId,
        edits: &mut Edits,
    ) -> Result<Result<(), NotAdoptable>, Error> {
        let applied = self.context.store.applied_in(&id.environment).await?;
        let (Some(record), Some(instance)) = (applied.get(id), head.instance(id)) else {
            return Ok(Err(NotAdoptable::NotApplied(id.clone())));
        };
        if is_pending(instance, &applied) {
            return Ok(Err(NotAdoptable::Pending(id.clone())));
        }
        let job = self.observer.applied_job(id, record, head).await?;
        let observation = self.observer.observe_job(head, &job).await?;
        let (Some(spec), Ok(kind)) = (&instance.spec, targets::kind(&job.target)) else {
            return Ok(Err(NotAdoptable::Problems(id.clone())));
        };
        let files: Vec<String> = instance.closure.files.keys().cloned().collect();
        let adoption = Adoption { instance: id, declared: &spec.target.declared, files: &files };
        let edited = kind.adopt(&adoption, &observation, &mut HeadEdits { remediations: self, head, id, edits });
        Ok(edited.map_err(NotAdoptable::Value))
    }

    /// Edits a declaration so that a variable has a value.
    ///
    /// # Errors
    /// The reason why the declaration can't be edited.
    pub(super) fn set_variable(
        &self,
        head: &Head,
        instance: &Instance,
        (name, value): (&str, &Value),
        edits: &mut Edits,
    ) -> Result<(), String> {
        let target = instance.spec.as_ref().map(|spec| &spec.target);
        let Some((target, kind)) = target.and_then(|target| Some((target, targets::kinds().of(target)?))) else {
            return Err(format!("the declaration of `{}` has problems", instance.id));
        };
        let files: Vec<String> = instance.closure.files.keys().cloned().collect();
        let adoption = Adoption { instance: &instance.id, declared: &target.declared, files: &files };
        kind.set_variable(&adoption, name, value, &mut HeadEdits { remediations: self, head, id: &instance.id, edits })
    }

    fn with_edits(&self, head: &Head, edits: &Edits) -> Head {
        let content: Arc<dyn Files> = Arc::new(Overlay::new(Arc::clone(&head.content), edits));
        let desired = declaration::load(targets::kinds(), &*content, &self.context.settings.root);
        Head { revision: head.revision.clone(), desired, content }
    }

    /// Returns the instances whose digest edits change.
    fn changed_instances(&self, head: &Head, edits: &Edits) -> BTreeSet<InstanceId> {
        if edits.is_empty() {
            return BTreeSet::new();
        }
        let edited = self.with_edits(head, edits);
        let digest = |head: &Head, id: &InstanceId| head.instance(id).and_then(|instance| instance.digest);
        let ids = head.desired.instances.keys().chain(edited.desired.instances.keys());
        ids.filter(|id| digest(head, id) != digest(&edited, id)).cloned().collect()
    }

    fn changed_with(&self, head: &Head, edits: &Edits, id: &InstanceId) -> BTreeSet<InstanceId> {
        let mut changed_instances = self.changed_instances(head, edits);
        changed_instances.insert(id.clone());
        changed_instances
    }

    /// Verifies that edits change only the given instances, and that new plans of these instances are empty.
    async fn verify(
        self: &Arc<Self>,
        head: &Arc<Head>,
        ids: &BTreeSet<InstanceId>,
        edits: &Edits,
    ) -> Result<Result<(), NotAdoptable>, Error> {
        let edited = self.with_edits(head, edits);
        if edited.desired.problems.len() > head.desired.problems.len() {
            let first = edited.desired.problems[0].clone();
            return Ok(Err(NotAdoptable::EditedProblem(Box::new(first))));
        }
        if let Some(other) = self.changed_instances(head, edits).difference(ids).next() {
            return Ok(Err(NotAdoptable::OtherInstance(other.clone())));
        }
        for id in ids {
            let Some(instance) = edited.instance(id) else { return Ok(Err(NotAdoptable::Removed(id.clone()))) };
            let inputs = self.observer.inputs(&edited, id, &instance.references, &BTreeMap::new()).await?;
            let job = declared_job(instance, Use::Head, Arc::clone(&edited.content), &inputs, edited.consumed(id))?;
            let remaining = self.observer.observe_job(&edited, &job).await?.changes;
            if let Some(remaining) = remaining.iter().find(|change| change.r#type != "output") {
                let (change, resource) = (remaining.change, remaining.resource.clone());
                return Ok(Err(NotAdoptable::NotEmpty { id: id.clone(), change, resource }));
            }
        }
        Ok(Ok(()))
    }
}
