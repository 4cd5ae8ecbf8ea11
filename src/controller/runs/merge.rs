//! Runs that a merge authorises by itself (`onMerge: apply`, R3.1).

use crate::domain::message::run::RunCause;
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
    domain::journal::{Approved, Run, RunKind},
    model::{EnvironmentName, InstanceId, PullNumber},
};

/// Returns the instances that can be applied before or with their upstreams.
fn without_stalled_upstreams(
    head: &Head,
    mut fresh: BTreeSet<InstanceId>,
    stalled: &BTreeMap<InstanceId, Stalled>,
) -> BTreeSet<InstanceId> {
    loop {
        let blocked = |id: &&InstanceId| {
            let upstreams = head.instance(id).map(|instance| &instance.upstreams);
            upstreams.into_iter().flatten().any(|up| stalled.contains_key(up) && !fresh.contains(up))
        };
        let blocked: Vec<InstanceId> = fresh.iter().filter(blocked).cloned().collect();
        if blocked.is_empty() {
            return fresh;
        }
        fresh.retain(|id| !blocked.contains(id));
    }
}

impl Runs {
    pub(crate) async fn apply_merge(
        self: &Arc<Self>,
        head: &Arc<Head>,
        environment: &EnvironmentName,
        pending: BTreeSet<InstanceId>,
        open: &[Run],
    ) -> Result<(), Error> {
        let stalled = self.planner.stalled().await?;
        let fresh: BTreeSet<InstanceId> = pending
            .into_iter()
            .filter(|id| {
                let digest = head.instance(id).and_then(|instance| instance.digest);
                let held = open.iter().any(|run| run.holds(id) && !run.reverts() && run.instances[id].digest == digest);
                // After a failure only another content is a newer merge; the same one waits for `/apply`.
                let failed = stalled.get(id).is_some_and(|stalled| stalled.digest == digest);
                !held && !failed
            })
            .collect();
        let suspensions = self.source.suspensions(Some(head)).await?;
        let mut fresh = without_stalled_upstreams(head, fresh, &stalled);
        fresh.retain(|id| suspensions.instance(id).is_none());
        if self.planner.waits_for_command(head, environment) {
            fresh.retain(|id| head.instance(id).is_some());
        }
        if fresh.is_empty() {
            return Ok(());
        }
        let (mut approved, pull) = self.approved_by_merge(head, environment, &fresh).await?;
        if let Some(number) = pull {
            let free = |id: &InstanceId| {
                !open.iter().any(|run| run.holds(id)) && !stalled.contains_key(id) && suspensions.instance(id).is_none()
            };
            let shown = self.approved_downstream(head, environment, number, &fresh).await?;
            for (id, what) in shown.into_iter().filter(|(id, _)| free(id)) {
                fresh.insert(id.clone());
                approved.insert(id, what);
            }
        }
        let because = RunCause::Merge(pull, head.revision.clone());
        let authorised = Authorised {
            environment: environment.clone(),
            instances: fresh,
            approved,
            because,
            principal: "merge".into(),
            command_id: None,
            kind: RunKind::Apply { by_merge: true },
            pull,
        };
        self.create_runs(head, authorised).await.map(drop)
    }

    /// Returns the plans of each instance on the pull requests merged since its last apply, the newest first.
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
        let mut carrier = None;
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
                let Some(shown) = plan.instance(id) else { continue };
                // A later commit without a pull request changed it again: that commit is the declaration (R6.7).
                if !self.source.is_unchanged_since(head, id, commit).await? {
                    break;
                }
                let what = if shown.digest.is_some() {
                    Approved::Actions { actions: shown.actions.clone() }
                } else {
                    Approved::Unknown
                };
                approved.insert(id.clone(), what);
                carrier = carrier.max(Some(*number));
                break;
            }
        }
        Ok((approved, carrier))
    }

    /// Returns the planned downstreams of the changes of a pull request, which follow in the same run.
    async fn approved_downstream(
        self: &Arc<Self>,
        head: &Head,
        environment: &EnvironmentName,
        number: PullNumber,
        changed: &BTreeSet<InstanceId>,
    ) -> Result<BTreeMap<InstanceId, Approved>, Error> {
        let mut shown = BTreeMap::new();
        let Some((plan, _)) = self.context.store.last_plan(&pull_request_subject(number, environment), None).await?
        else {
            return Ok(shown);
        };
        // In the order of the plan each comes after what it depends on.
        for instance in plan.instances.iter().filter(|instance| !changed.contains(&instance.id)) {
            let Some(declared) = head.instance(&instance.id) else { continue };
            let follows = |up: &InstanceId| changed.contains(up) || shown.contains_key(up);
            if declared.upstreams.iter().any(follows) && instance.problem.is_none() {
                let what = match instance.digest {
                    Some(_) => Approved::Actions { actions: instance.actions.clone() },
                    None => Approved::Unknown,
                };
                shown.insert(instance.id.clone(), what);
            }
        }
        Ok(shown)
    }
}
