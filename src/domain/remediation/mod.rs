//! Converts drift to remediation files, and merged files to filters of a plan (R4.1, R4.4).
//!
//! Decides which drifted instances have one cause, the content of a remediation file, and the actions that a merged
//! file allows. The file is a filter and never a source of arguments.
//! *Invariant:* never proposes a change that no apply would make.

pub mod edit;

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};

use crate::{
    domain::{
        declaration::schema::{
            API_VERSION, Direction, Remediation, RemediationAction, RemediationField, RemediationResource,
        },
        plan::order,
    },
    model::{
        Action, Change, ChangedBy, ComponentName, Digest, Digester, EnvironmentName, InstanceId, layout::LayoutPlan,
    },
};

/// The number of days for which a merged remediation authorizes its actions (R4.1).
pub const EXPIRES_AFTER_DAYS: i64 = 7;

/// The first line of a file. Reviewers read it before they remove actions.
const HEADER: &str = "# Written by evenkeel. Merging this runs the actions below, and no others. Delete a whole action to leave that drift alone.\n";

/// A drifted instance with the actions that would revert its drift.
#[derive(Clone, Debug, PartialEq)]
pub struct Drifted {
    /// The instance.
    pub id: InstanceId,
    /// The actions that revert it.
    pub actions: Vec<Action>,
    /// The dependencies of the instance, drifted or not.
    pub upstreams: BTreeSet<InstanceId>,
    /// The author of the change of each resource, if it is known.
    pub changed_by: BTreeMap<String, ChangedBy>,
    /// The figures of the instance's shard moves.
    pub layout: Option<LayoutPlan>,
}

/// Drifted instances with one cause: a drifted instance with the drifted instances that depend on it.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// The environment.
    pub environment: EnvironmentName,
    /// The component that the others depend on. It names the group.
    pub root: ComponentName,
    /// All drifted instances, in execution order.
    pub drifted: Vec<Drifted>,
    /// The hash of the group's actions. Equal drift has an equal digest and one proposal.
    pub digest: Digest,
}

/// Groups the drifted instances of one environment by cause.
pub fn groups(environment: &EnvironmentName, drifted: Vec<Drifted>) -> Vec<Group> {
    let mut by_id: BTreeMap<InstanceId, Drifted> = drifted.into_iter().map(|d| (d.id.clone(), d)).collect();
    let edges: BTreeMap<InstanceId, BTreeSet<InstanceId>> =
        by_id.iter().map(|(id, d)| (id.clone(), d.upstreams.clone())).collect();
    let ordered = order(&edges);
    let mut root_of: BTreeMap<InstanceId, InstanceId> = BTreeMap::new();
    for (id, _) in &ordered {
        let roots: BTreeSet<InstanceId> = edges[id].iter().filter_map(|up| root_of.get(up).cloned()).collect();
        let root = roots.first().cloned().unwrap_or_else(|| id.clone());
        // An instance that depends on two causes joins their groups.
        for known in root_of.values_mut().filter(|known| roots.contains(known)) {
            *known = root.clone();
        }
        root_of.insert(id.clone(), root);
    }
    let mut groups: BTreeMap<InstanceId, Vec<Drifted>> = BTreeMap::new();
    for (id, _) in ordered {
        let root = root_of[&id].clone();
        groups.entry(root).or_default().extend(by_id.remove(&id));
    }
    groups
        .into_iter()
        .map(|(root, drifted)| {
            let digest = drifted
                .iter()
                .flat_map(|instance| &instance.actions)
                .fold(Digester::new("drift"), |d, action| d.field(action.digest.to_string().as_bytes()))
                .finish();
            Group { environment: environment.clone(), root: root.component, drifted, digest }
        })
        .collect()
}

impl Group {
    /// Returns the key of the group's proposal: one for each cause.
    pub fn key(&self) -> String {
        format!("{}/{}", self.environment, self.root)
    }
    /// Returns the group without some actions and without the dependents of their instances.
    pub fn without(&self, cut: &BTreeSet<Digest>) -> Self {
        let is_cut = |instance: &Drifted| instance.actions.iter().any(|action| cut.contains(&action.digest));
        let touched: BTreeSet<InstanceId> =
            self.drifted.iter().filter(|instance| is_cut(instance)).map(|instance| instance.id.clone()).collect();
        let mut remaining = self.clone();
        for instance in &mut remaining.drifted {
            instance.actions.retain(|action| !cut.contains(&action.digest));
        }
        remaining.drifted.retain(|instance| !instance.actions.is_empty() && instance.upstreams.is_disjoint(&touched));
        remaining
    }
    /// Returns the digests of the group's actions, by instance.
    pub fn digests(&self) -> BTreeMap<InstanceId, BTreeSet<Digest>> {
        let digests_of = |instance: &Drifted| instance.actions.iter().map(|action| action.digest).collect();
        self.drifted.iter().map(|instance| (instance.id.clone(), digests_of(instance))).collect()
    }
    /// Returns whether the group contains an action.
    pub fn has(&self, digest: &Digest) -> bool {
        self.drifted.iter().flat_map(|instance| &instance.actions).any(|action| action.digest == *digest)
    }
    /// Returns the branch of the group's pull request: one for each cause.
    pub fn branch(&self) -> String {
        branch(&self.environment, &self.root)
    }
    /// Returns the name of the group's remediation. The name contains date and drift, so that the same drift in another
    /// week gets another file.
    pub fn name(&self, now: DateTime<Utc>) -> String {
        let root: String = self.root.as_str().chars().take(40).collect();
        format!("{}-{}-{}", root.trim_end_matches('-'), now.format("%Y%m%d"), self.digest.short())
    }
    /// Returns the remediation document.
    pub fn remediation(&self, because: &str, observed_at: DateTime<Utc>, now: DateTime<Utc>) -> Remediation {
        let actions = self.drifted.iter().flat_map(|instance| {
            instance.actions.iter().map(move |action| (&instance.id, action, &instance.upstreams))
        });
        let written = Written { direction: Direction::Revert, because, observed_at, now };
        let mut remediation = remediation(&self.environment, written, actions);
        for action in &mut remediation.actions {
            let source = self.drifted.iter().find(|instance| instance.id == action.instance);
            for resource in &mut action.resources {
                resource.changed_by = source.and_then(|instance| instance.changed_by.get(&resource.resource)).cloned();
            }
        }
        remediation
    }
}

/// The parameters of a remediation document, besides its actions.
#[derive(Clone, Copy)]
pub struct Written<'w> {
    /// The effect of merging the remediation.
    pub direction: Direction,
    /// The environment and the reason of the remediation.
    pub because: &'w str,
    /// The time of the observation.
    pub observed_at: DateTime<Utc>,
    /// The time at which the document is written.
    pub now: DateTime<Utc>,
}

/// Creates the remediation document of actions, each with its instance and the instance's upstreams.
pub fn remediation<'a>(
    environment: &EnvironmentName,
    written: Written<'_>,
    actions: impl Iterator<Item = (&'a InstanceId, &'a Action, &'a BTreeSet<InstanceId>)> + Clone,
) -> Remediation {
    let mut digests: BTreeMap<&InstanceId, Vec<Digest>> = BTreeMap::new();
    for (id, action, _) in actions.clone() {
        digests.entry(id).or_default().push(action.digest);
    }
    let action = |(id, action, upstreams): (&InstanceId, &Action, &BTreeSet<InstanceId>)| RemediationAction {
        digest: action.digest,
        after: upstreams.iter().filter_map(|up| digests.get(up)).flatten().copied().collect(),
        instance: id.clone(),
        r#do: action.r#do.clone(),
        resources: shown(action),
    };
    Remediation {
        environment: environment.clone(),
        direction: written.direction,
        because: written.because.to_owned(),
        observed_at: trim(written.observed_at),
        expires_at: trim(written.now) + chrono::Duration::days(EXPIRES_AFTER_DAYS),
        actions: actions.map(action).collect(),
    }
}

/// The reason for which a merged remediation does not run as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// The daemon did not write the file.
    NotWritten,
    /// An action of an instance differs from what the daemon wrote.
    ActionEdited(InstanceId),
    /// The environment, the direction or the dates differ from what the daemon wrote.
    FieldsEdited,
    /// The file was edited after its merge.
    EditedAfterMerge,
    /// The file has no actions.
    Empty,
    /// The remediation expired.
    Expired(DateTime<Utc>),
    /// The instance has no action in the file.
    InstanceCut(InstanceId),
    /// An upstream of the instance has no action in the file.
    UpstreamCut(InstanceId),
    /// The file of the proposal can't be read.
    Unreadable(String),
    /// The file was not merged by a pull request.
    NotByPullRequest(EnvironmentName, ComponentName),
    /// The principal who merged the file may not apply.
    NotAllowed(String),
    /// Approvals are missing.
    NotApproved(String),
    /// The plan does more than the remediation shows.
    NotCovered(crate::domain::plan::Gap),
}

/// Returns the first edit of a remediation's file other than a removed action; `None` if there is none.
pub fn edited(remediation: &Remediation, written: &Remediation) -> Option<Unusable> {
    let is_edited = |action: &&RemediationAction| !written.actions.contains(action);
    if let Some(action) = remediation.actions.iter().find(is_edited) {
        return Some(Unusable::ActionEdited(action.instance.clone()));
    }
    let same = (&remediation.environment, remediation.direction, remediation.expires_at)
        == (&written.environment, written.direction, written.expires_at);
    (!same).then_some(Unusable::FieldsEdited)
}

/// Returns the branch of the pull request for a cause.
pub fn branch(environment: &EnvironmentName, root: &ComponentName) -> String {
    format!("evenkeel/drift/{environment}/{root}")
}

/// Returns the path of a remediation's file below the root of the declarations.
pub fn path(environment: &EnvironmentName, name: &str) -> String {
    format!("remediations/{environment}/{name}.yaml")
}

fn trim(at: DateTime<Utc>) -> DateTime<Utc> {
    DateTime::from_timestamp(at.timestamp(), 0).unwrap_or(at)
}

/// Returns the resources of an action in the form of a remediation.
pub fn shown(action: &Action) -> Vec<RemediationResource> {
    action.resources.iter().filter(|r| r.r#type != "output").map(resource).collect()
}

fn resource(resource: &crate::model::ResourceChange) -> RemediationResource {
    let fields = resource.fields.iter().filter(|field| !field.unknown);
    RemediationResource {
        resource: resource.resource.clone(),
        change: resource.change,
        changed_by: None,
        fields: fields
            .map(|f| match resource.change {
                // A refresh adopts the observed value: the action's `after` is observed.
                Change::Run => (&f.path, &f.after, &f.before),
                _ => (&f.path, &f.before, &f.after),
            })
            .map(|(path, observed, desired)| RemediationField {
                path: path.clone(),
                observed: observed.clone(),
                desired: desired.clone(),
            })
            .collect(),
    }
}

/// Returns the text of a remediation's file. A text is quoted if another YAML reader would read it as another type.
///
/// # Errors
/// When the YAML writer refuses a value, which is a bug.
pub fn write(name: &str, remediation: &Remediation) -> Result<String, String> {
    #[derive(serde::Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Document<'d> {
        api_version: &'d str,
        kind: &'d str,
        metadata: Metadata<'d>,
        spec: &'d Remediation,
    }
    #[derive(serde::Serialize)]
    struct Metadata<'d> {
        name: &'d str,
    }
    let document =
        Document { api_version: API_VERSION, kind: "Remediation", metadata: Metadata { name }, spec: remediation };
    serde_saphyr::to_string(&document).map(|text| format!("{HEADER}{text}")).map_err(|error| error.to_string())
}

/// Returns the actions of a new plan that a merged remediation allows. An action is allowed if the remediation lists
/// its digest, or if the stored action of a listed digest covers it. Actions that the reviewer removed are filtered
/// out.
///
/// # Errors
/// The reason for which no action may run.
pub fn lets_through(
    remediation: &Remediation,
    id: &InstanceId,
    stored: &dyn Fn(&Digest) -> Option<Action>,
    fresh: &[Action],
) -> Result<Vec<Action>, Unusable> {
    let listed: Vec<&RemediationAction> = remediation.actions.iter().filter(|action| action.instance == *id).collect();
    if listed.is_empty() {
        return Err(Unusable::InstanceCut(id.clone()));
    }
    let missing = listed
        .iter()
        .flat_map(|action| &action.after)
        .find(|digest| !remediation.actions.iter().any(|other| other.digest == **digest));
    if missing.is_some() {
        return Err(Unusable::UpstreamCut(id.clone()));
    }
    let known: Vec<Action> = listed.iter().filter_map(|action| stored(&action.digest)).collect();
    let names = |action: &Action, resource: &str| action.resources.iter().any(|known| known.resource == resource);
    let mut through = vec![];
    for action in fresh {
        if listed.iter().any(|known| known.digest == action.digest) {
            through.push(action.clone());
            continue;
        }
        // The reviewer removed this action. An atomic action runs as a whole or not at all.
        let is_cut =
            !action.effect.atomic && !action.resources.iter().any(|r| known.iter().any(|k| names(k, &r.resource)));
        if !is_cut {
            crate::domain::plan::covers(&known, std::slice::from_ref(action)).map_err(Unusable::NotCovered)?;
            through.push(action.clone());
        }
    }
    Ok(through)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::{Change, Field, Overwrite, ResourceChange};

    fn drifted(id: &str, upstreams: &[&str]) -> Drifted {
        let field = Field {
            path: "/content".into(),
            before: Some(json!("no")),
            after: Some(json!("via 10.0.0.1")),
            sensitive: false,
            unknown: false,
            sealed: None,
        };
        let resource = ResourceChange {
            resource: "world_file.routes[\"eu\"]".into(),
            r#type: "world_file".into(),
            change: Change::Update,
            reverts_drift: true,
            protected: false,
            fields: vec![field],
        };
        let action = Action {
            digest: Digest::of_json(&json!(id)),
            r#do: "tofu.apply".into(),
            precondition: Overwrite::default(),
            effect: crate::model::Effect::ATOMIC,
            resources: vec![resource],
        };
        Drifted {
            id: id.parse().unwrap(),
            actions: vec![action],
            changed_by: BTreeMap::new(),
            layout: None,
            upstreams: upstreams.iter().map(|up| up.parse().unwrap()).collect(),
        }
    }

    fn found(drift: Vec<Drifted>) -> Vec<(String, Vec<String>)> {
        let groups = groups(&"dev".parse().unwrap(), drift);
        groups.into_iter().map(|g| (g.root.to_string(), g.drifted.iter().map(|d| d.id.to_string()).collect())).collect()
    }

    #[test]
    fn r4_4_one_cause_is_one_group() {
        let joined =
            found(vec![drifted("dev/backend", &["dev/network"]), drifted("dev/network", &[]), drifted("dev/dns", &[])]);
        assert_eq!(
            joined,
            [
                ("dns".to_owned(), vec!["dev/dns".to_owned()]),
                ("network".into(), vec!["dev/network".into(), "dev/backend".into()])
            ]
        );
        let met = found(vec![drifted("dev/a", &[]), drifted("dev/b", &[]), drifted("dev/c", &["dev/a", "dev/b"])]);
        assert_eq!(met.len(), 1);
    }

    #[test]
    fn r4_1_a_file_is_written_so_that_every_reader_reads_the_same() {
        let group = &groups(&"dev".parse().unwrap(), vec![drifted("dev/network", &[])])[0];
        let at = "2026-11-20T02:00:14.5Z".parse().unwrap();
        let remediation = group.remediation("drift", at, at);
        let text = write(&group.name(at), &remediation).unwrap();
        insta::assert_snapshot!(text);
        let read = crate::domain::declaration::node::read(&"x.yaml".into(), text.as_bytes());
        assert!(read.1.is_empty(), "{:?}", read.1);
        let spec = read.0[0].get("spec").unwrap().to_json();
        assert_eq!(serde_json::from_value::<Remediation>(spec).unwrap(), remediation);
    }

    #[test]
    fn r4_1_the_file_filters() {
        let (network, backend) = (drifted("dev/network", &[]), drifted("dev/backend", &["dev/network"]));
        let group = &groups(&"dev".parse().unwrap(), vec![network.clone(), backend.clone()])[0];
        let at = "2026-11-20T02:00:14Z".parse().unwrap();
        let mut file = group.remediation("drift", at, at);
        let none = |_: &Digest| None;
        assert_eq!(lets_through(&file, &network.id, &none, &network.actions), Ok(network.actions.clone()));
        file.actions.retain(|action| action.instance != network.id);
        assert!(lets_through(&file, &network.id, &none, &network.actions).unwrap_err().to_string().contains("was cut"));
        assert!(
            lets_through(&file, &backend.id, &none, &backend.actions)
                .unwrap_err()
                .to_string()
                .contains("an upstream of")
        );
        let mut moved = backend.actions[0].clone();
        moved.digest = Digest::of_json(&json!("moved"));
        let file = group.remediation("drift", at, at);
        assert!(
            lets_through(&file, &backend.id, &none, &[moved])
                .unwrap_err()
                .to_string()
                .contains("the plan differs from the one in the remediation")
        );
    }

    #[test]
    fn r4_1_objects_are_cut_one_by_one() {
        let mut web = drifted("dev/web", &[]);
        let object = |name: &str| {
            let mut action = web.actions[0].clone();
            action.r#do = "kubernetes.apply".into();
            action.effect = crate::model::Effect::NONE;
            action.resources[0].resource = name.into();
            action.digest = Digest::of_json(&json!(name));
            action
        };
        web.actions = vec![object("ConfigMap/a/kept"), object("ConfigMap/a/cut")];
        let (kept, cut) = (web.actions[0].clone(), web.actions[1].clone());
        let group = &groups(&"dev".parse().unwrap(), vec![web.clone()])[0];
        let at = "2026-11-20T02:00:14Z".parse().unwrap();
        let mut file = group.remediation("drift", at, at);
        file.actions.retain(|action| action.digest == kept.digest);
        let stored = |digest: &Digest| (*digest == kept.digest).then(|| kept.clone());
        assert_eq!(lets_through(&file, &web.id, &stored, &web.actions), Ok(vec![kept.clone()]));
        assert_eq!(lets_through(&file, &web.id, &stored, std::slice::from_ref(&cut)), Ok(vec![]));
        assert_eq!(group.without(&[cut.digest].into()).drifted[0].actions, [kept]);
    }
}
