//! Reads the verdict of each instance and its reason from the records.
//!
//! *Invariant:* observes no target, and writes no record.

mod explain;
mod verdict;

use std::{collections::BTreeMap, sync::Arc};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::{
    controller::{
        authorization::Authorization,
        context::{Context, Error},
        observe::Observer,
        planning::Planner,
        records::{FailedRename, Snooze, Stalled},
        remediation::Remediations,
        source::{Head, Source},
        status::verdict::Records,
    },
    domain::{
        declaration::{Instance, schema::OnDelete},
        journal::Run,
        message::{comment, counts, verdict::VerdictReason},
        plan::{Applied, Observed, pending::is_pending},
    },
    model::{
        ComponentName, Drift, EnvironmentName, InstanceId, Problem, ResourceChange, Revision, RunId, Verdict,
        WaitingOn, layout::LayoutPlan,
    },
};

/// The status of one instance, in the shape of `drift --output json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InstanceStatus {
    /// The name.
    pub id: InstanceId,
    /// The environment.
    pub environment: EnvironmentName,
    /// The component.
    pub component: ComponentName,
    /// The kind.
    pub kind: String,
    /// The verdict.
    pub verdict: Verdict,
    /// The revision that is applied.
    pub applied: Option<Revision>,
    /// The time of the last observation.
    pub observed_at: Option<DateTime<Utc>>,
    /// The duration of the last observation, in milliseconds.
    pub duration_ms: Option<u64>,
    /// The differences between the live objects and the applied declaration.
    pub drift: Vec<Drift>,
    /// The changes that an apply of head would make.
    pub pending: Vec<ResourceChange>,
    /// The conditions that the instance waits for.
    pub waiting_on: Vec<WaitingOn>,
    /// The reason of the verdict, where there is one, as text.
    pub reason: Option<String>,
    /// The reason as a type; absent in a status that was read from JSON.
    #[serde(skip)]
    pub(crate) cause: Option<VerdictReason>,
    /// The open run that contains the instance.
    pub run: Option<RunId>,
    /// The snooze of its drift, until its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snoozed: Option<Snooze>,
    /// Warnings of the last observation that are not drift.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// The load of each node of a cluster, if it is not balanced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layout: Option<LayoutPlan>,
    /// The reason of the last reconcile request of the instance.
    pub woken_by: Option<String>,
}

/// The status of all instances.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The head of the branch.
    pub revision: Option<Revision>,
    /// The error of the last refresh of the branch, if it failed.
    pub reason: Option<String>,
    /// The most severe verdict of all instances.
    pub verdict: Verdict,
    /// The instances.
    pub instances: Vec<InstanceStatus>,
    /// The problems of the declarations.
    pub problems: Vec<Problem>,
}

impl InstanceStatus {
    fn set(&mut self, verdict: Verdict, cause: Option<VerdictReason>) {
        self.verdict = verdict;
        self.reason = cause.as_ref().map(ToString::to_string);
        self.cause = cause;
    }

    /// Returns a message of one line.
    pub fn message(&self) -> String {
        if let Some(reason) = &self.reason {
            return reason.clone();
        }
        match self.verdict {
            Verdict::Drifted => match &self.snoozed {
                Some(snooze) => format!(
                    "{}; snoozed until {} ({})",
                    drift_counts(&self.drift),
                    snooze.until.format("%Y-%m-%d"),
                    snooze.because
                ),
                None => drift_counts(&self.drift),
            },
            Verdict::Pending => {
                let resources: Vec<&ResourceChange> = self.pending.iter().collect();
                let waits: Vec<String> =
                    self.waiting_on.iter().map(|on| format!("waits: {}", comment::waiting(on))).collect();
                if resources.is_empty() {
                    waits.join("; ")
                } else {
                    std::iter::once(counts(&resources)).chain(waits).collect::<Vec<_>>().join("; ")
                }
            }
            Verdict::InSync => match &self.warnings[..] {
                [] => String::new(),
                [warning] => format!("warning: {warning}"),
                warnings => format!("{} warnings, shown by `evenkeel explain {}`", warnings.len(), self.id),
            },
            _ => String::new(),
        }
    }
}

fn drift_counts(drift: &[Drift]) -> String {
    use crate::model::DriftKind::{Changed, Extra, Missing};
    let part = |kind, name: &str| match drift.iter().filter(|d| d.drift == kind).count() {
        0 => None,
        n => Some(format!("{n} {name}")),
    };
    [part(Missing, "missing"), part(Changed, "changed"), part(Extra, "extra")]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join(", ")
}

/// The reader of verdicts and explanations.
pub struct StatusReader {
    pub(super) context: Arc<Context>,
    pub(super) source: Arc<Source>,
    pub(super) authorization: Arc<Authorization>,
    pub(super) observer: Arc<Observer>,
    pub(super) planner: Arc<Planner>,
    pub(super) remediations: Arc<Remediations>,
}

impl StatusReader {
    /// Returns the status of all instances from the records, without an observation.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn read(self: &Arc<Self>) -> Result<Status, Error> {
        let head = self.source.head();
        let applied = self.context.store.all_applied().await?;
        let observed = self.context.store.all_observed().await?;
        let runs = self.context.store.open_runs().await?;
        let stalled = self.planner.stalled().await?;
        let snoozes = self.observer.snoozes().await?;
        let suspensions = self.source.suspensions(head.as_deref()).await?;
        let now = self.context.now();
        let mut instances = vec![];
        let declared = head.as_ref().map(|head| head.desired.instances.clone()).unwrap_or_default();
        for (id, instance) in &declared {
            let suspended = suspensions.instance(id).map(|reason| reason.to_string());
            let records = Records {
                applied: applied.get(id),
                observed: observed.get(id),
                runs: &runs,
                stalled: stalled.get(id),
                all_stalled: &stalled,
                suspended,
                now,
            };
            instances.push(self.instance_status(id, Some(instance), &records, &applied));
        }
        if let Some(head) = &head {
            for status in instances.iter_mut().filter(|status| status.run.is_none()) {
                self.update_promotion(head, status, &stalled).await?;
            }
        }
        for (id, reason) in self.context.store.collection::<FailedRename>().all().await? {
            if let Some(status) = instances.iter_mut().find(|status| status.id == id) {
                status.set(Verdict::Stalled, Some(VerdictReason::RenameFailed(reason.0)));
            }
        }
        self.add_undeclared(&head, &applied, &observed, &runs, &stalled, &mut instances);
        instances.sort_by(|left, right| left.id.cmp(&right.id));
        for instance in &mut instances {
            let holds =
                |snooze: &&Snooze| observed.get(&instance.id).is_some_and(|observed| snooze.holds(observed, now));
            instance.snoozed = snoozes.get(&instance.id).filter(holds).cloned();
        }
        let problems = head.as_ref().map(|head| head.desired.problems.clone()).unwrap_or_default();
        let mut verdict = instances.iter().map(|instance| instance.verdict).min().unwrap_or(Verdict::Unknown);
        if head.is_none() {
            verdict = Verdict::Unknown;
        } else if !problems.is_empty() {
            verdict = verdict.min(Verdict::Stalled);
        }
        Ok(Status {
            revision: head.map(|head| head.revision.clone()),
            reason: self.source.problem(),
            verdict,
            instances,
            problems,
        })
    }

    /// Replaces the recorded promotion condition by the current one.
    async fn update_promotion(
        self: &Arc<Self>,
        head: &Head,
        status: &mut InstanceStatus,
        stalled: &BTreeMap<InstanceId, Stalled>,
    ) -> Result<(), Error> {
        let is_promotion = |on: &WaitingOn| matches!(on, WaitingOn::Promotion { .. } | WaitingOn::Soak { .. });
        if !status.waiting_on.iter().any(is_promotion) {
            return Ok(());
        }
        status.waiting_on.retain(|on| !is_promotion(on));
        status.waiting_on.extend(self.planner.promotion_with(head, &status.id, stalled).await?);
        if status.waiting_on.is_empty() {
            status.waiting_on.push(WaitingOn::Apply);
        }
        Ok(())
    }

    /// Adds the instances that are no longer declared and were applied or started.
    fn add_undeclared(
        &self,
        head: &Option<Arc<Head>>,
        applied: &BTreeMap<InstanceId, Applied>,
        observed: &BTreeMap<InstanceId, Observed>,
        runs: &[Run],
        stalled: &BTreeMap<InstanceId, Stalled>,
        instances: &mut Vec<InstanceStatus>,
    ) {
        let now = self.context.now();
        let is_declared = |id: &InstanceId| head.as_ref().is_some_and(|head| head.instance(id).is_some());
        let complete = head.as_ref().is_some_and(|head| head.desired.complete);
        for (id, record) in applied.iter().filter(|(id, _)| !is_declared(id)) {
            let records = Records {
                applied: Some(record),
                observed: observed.get(id),
                runs,
                stalled: stalled.get(id),
                all_stalled: stalled,
                suspended: None,
                now,
            };
            let mut status = self.instance_status(id, None, &records, applied);
            let open_run = runs.iter().find(|run| run.holds(id));
            let failed = stalled.get(id).filter(|_| open_run.is_none());
            match (head, complete) {
                (None, _) => status.set(Verdict::Unknown, Some(VerdictReason::SourceNotRead)),
                (Some(_), true) if open_run.is_some() => {}
                (Some(_), true) => {
                    let reason = match (failed, record.spec.on_delete) {
                        (Some(failed), _) => {
                            VerdictReason::DestroyFailed { run: failed.run, message: failed.message.clone() }
                        }
                        (None, OnDelete::Destroy) => {
                            VerdictReason::DestroyWaits { environment: id.environment.clone() }
                        }
                        (None, OnDelete::Orphan) => VerdictReason::Orphan { id: id.clone() },
                    };
                    status.set(Verdict::Orphaned, Some(reason));
                }
                (Some(_), false) => status.set(Verdict::Stalled, Some(VerdictReason::MayBeRemoved)),
            }
            instances.push(status);
        }
        for (id, failure) in stalled.iter().filter(|(id, _)| !is_declared(id) && !applied.contains_key(*id)) {
            let records = Records {
                applied: None,
                observed: observed.get(id),
                runs,
                stalled: Some(failure),
                all_stalled: stalled,
                suspended: None,
                now,
            };
            let mut status = self.instance_status(id, None, &records, applied);
            status.set(Verdict::Stalled, Some(VerdictReason::StartedAndUndeclared { run: failure.run }));
            instances.push(status);
        }
    }

    fn instance_status(
        &self,
        id: &InstanceId,
        instance: Option<&Arc<Instance>>,
        records: &Records<'_>,
        applied: &BTreeMap<InstanceId, Applied>,
    ) -> InstanceStatus {
        let run = records.runs.iter().find(|run| run.holds(id));
        let pending = instance.is_some_and(|instance| is_pending(instance, applied));
        let (verdict, cause) = records.verdict(id, instance, run, pending);
        let observed = records.observed;
        let mut waiting_on = observed.map(|o| o.waiting_on.clone()).unwrap_or_default();
        if let Some(on) = run.and_then(|run| run.instances[id].waiting_on.clone()) {
            waiting_on = vec![on];
        } else if pending && run.is_none() && waiting_on.is_empty() {
            let upstreams = instance.map(|instance| &instance.upstreams);
            let stalled = upstreams.into_iter().flatten().find(|upstream| records.all_stalled.contains_key(*upstream));
            waiting_on.push(match stalled {
                Some(upstream) => WaitingOn::Upstream { instance: upstream.clone() },
                None => WaitingOn::Apply,
            });
        }
        let applied_kind = records.applied.map(|applied| applied.spec.target.kind.as_str());
        InstanceStatus {
            id: id.clone(),
            environment: id.environment.clone(),
            component: id.component.clone(),
            kind: instance.map(|instance| instance.kind).or(applied_kind).unwrap_or_default().to_owned(),
            verdict,
            applied: records.applied.map(|applied| applied.revision.clone()),
            observed_at: observed.map(|o| o.at),
            duration_ms: observed.map(|o| o.duration_ms),
            drift: observed.map(|o| o.drift.clone()).unwrap_or_default(),
            pending: if pending { observed.map(|o| o.pending.clone()).unwrap_or_default() } else { vec![] },
            waiting_on: if verdict == Verdict::Pending { waiting_on } else { vec![] },
            reason: cause.as_ref().map(ToString::to_string),
            cause,
            run: run.map(|run| run.id),
            snoozed: None,
            warnings: observed.map(|o| o.warnings.clone()).unwrap_or_default(),
            layout: observed.and_then(|o| o.layout.clone()),
            woken_by: self.context.queue.last_reason(id).map(|reason| reason.to_string()),
        }
    }
}

#[cfg(test)]
mod tests;
