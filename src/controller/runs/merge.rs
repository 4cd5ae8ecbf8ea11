//! Creates runs that a merge authorises without a command (`onMerge: apply`, R3.1).
//!
//! *Invariant:* a run applies only declarations that are at head.
//! *Race:* a commit without a pull request changes an instance after its merge: that commit is the declaration, and the plan
//! of the pull request does not limit the run (R6.7).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    controller::{
        context::Error,
        records::{Stalled, pull_request_subject},
        runs::{Authorised, Runs},
        source::Head,
    },
    domain::{
        journal::{Approved, Run, RunKind},
        message::run::RunCause,
    },
    model::{EnvironmentName, InstanceId, PullNumber},
};

/// Returns the instances that can be applied before or with their upstreams.
fn without_stalled_upstreams(
    head: &Head,
    mut selected: BTreeSet<InstanceId>,
    stalled: &BTreeMap<InstanceId, Stalled>,
) -> BTreeSet<InstanceId> {
    loop {
        let blocked = |id: &&InstanceId| {
            let upstreams = head.instance(id).map(|instance| &instance.upstreams);
            upstreams.into_iter().flatten().any(|up| stalled.contains_key(up) && !selected.contains(up))
        };
        let blocked: Vec<InstanceId> = selected.iter().filter(blocked).cloned().collect();
        if blocked.is_empty() {
            return selected;
        }
        selected.retain(|id| !blocked.contains(id));
    }
}

impl Runs {
    /// Creates the run of the pending instances of an environment that a merge authorises.
    ///
    /// # Errors
    /// When the store or the repository fails.
    pub(crate) async fn apply_merge(
        self: &Arc<Self>,
        head: &Arc<Head>,
        environment: &EnvironmentName,
        pending: BTreeSet<InstanceId>,
        open: &[Run],
    ) -> Result<(), Error> {
        let stalled = self.planner.stalled().await?;
        let selected: BTreeSet<InstanceId> = pending
            .into_iter()
            .filter(|id| {
                let digest = head.instance(id).and_then(|instance| instance.digest);
                let in_open_run =
                    open.iter().any(|run| run.holds(id) && !run.reverts() && run.instances[id].digest == digest);
                // After a failure, the same declaration waits for `/apply`; another declaration is a newer merge.
                let failed = stalled.get(id).is_some_and(|stalled| stalled.digest == digest);
                !in_open_run && !failed
            })
            .collect();
        let suspensions = self.source.suspensions(Some(head)).await?;
        let mut selected = without_stalled_upstreams(head, selected, &stalled);
        selected.retain(|id| suspensions.instance(id).is_none());
        if self.planner.waits_for_command(head, environment) {
            selected.retain(|id| head.instance(id).is_some());
        }
        if selected.is_empty() {
            return Ok(());
        }
        let (mut approved, pull) = self.approved_by_merge(head, environment, &selected).await?;
        if let Some(number) = pull {
            let is_free = |id: &InstanceId| {
                !open.iter().any(|run| run.holds(id)) && !stalled.contains_key(id) && suspensions.instance(id).is_none()
            };
            let planned = self.approved_downstream(head, environment, number, &selected).await?;
            for (id, approval) in planned.into_iter().filter(|(id, _)| is_free(id)) {
                selected.insert(id.clone());
                approved.insert(id, approval);
            }
        }
        let because = RunCause::Merge(pull, head.revision.clone());
        let authorised = Authorised {
            environment: environment.clone(),
            instances: selected,
            approved,
            because,
            principal: "merge".into(),
            command_id: None,
            kind: RunKind::Apply { by_merge: true },
            pull,
        };
        self.create_runs(head, authorised).await.map(drop)
    }

    /// Returns the approved actions of each instance, from the newest plan on a pull request merged since the last apply of
    /// the instance, and the newest of these pull requests.
    async fn approved_by_merge(
        self: &Arc<Self>,
        head: &Head,
        environment: &EnvironmentName,
        instances: &BTreeSet<InstanceId>,
    ) -> Result<(BTreeMap<InstanceId, Approved>, Option<PullNumber>), Error> {
        let mut approved: BTreeMap<InstanceId, Approved> =
            instances.iter().map(|id| (id.clone(), Approved::Declaration)).collect();
        let merged = self.source.merged_pull_requests(head).await?;
        let applied = self.context.store.applied_in(environment).await?;
        let mut newest = None;
        for id in instances {
            for (number, commit) in &merged {
                if let Some(applied) = applied.get(id)
                    && self.context.repository.contains(&applied.revision, commit).await?
                {
                    break;
                }
                let Some((plan, _)) =
                    self.context.store.last_plan(&pull_request_subject(*number, environment), None).await?
                else {
                    continue;
                };
                let Some(planned) = plan.instance(id) else { continue };
                // A later commit without a pull request changed the instance: that commit is the declaration (R6.7).
                if !self.source.is_unchanged_since(head, id, commit).await? {
                    break;
                }
                let approval = if planned.digest.is_some() {
                    Approved::Actions { actions: planned.actions.clone() }
                } else {
                    Approved::Unknown
                };
                approved.insert(id.clone(), approval);
                newest = newest.max(Some(*number));
                break;
            }
        }
        Ok((approved, newest))
    }

    /// Returns the planned downstreams of the changes of a pull request, which the same run applies.
    async fn approved_downstream(
        self: &Arc<Self>,
        head: &Head,
        environment: &EnvironmentName,
        number: PullNumber,
        changed: &BTreeSet<InstanceId>,
    ) -> Result<BTreeMap<InstanceId, Approved>, Error> {
        let mut planned = BTreeMap::new();
        let Some((plan, _)) = self.context.store.last_plan(&pull_request_subject(number, environment), None).await?
        else {
            return Ok(planned);
        };
        // The plan lists every instance after its upstreams.
        for instance in plan.instances.iter().filter(|instance| !changed.contains(&instance.id)) {
            let Some(declared) = head.instance(&instance.id) else { continue };
            let is_selected = |up: &InstanceId| changed.contains(up) || planned.contains_key(up);
            if declared.upstreams.iter().any(is_selected) && instance.problem.is_none() {
                let approval = match instance.digest {
                    Some(_) => Approved::Actions { actions: instance.actions.clone() },
                    None => Approved::Unknown,
                };
                planned.insert(instance.id.clone(), approval);
            }
        }
        Ok(planned)
    }
}
