//! The verdict of an instance, from what is recorded.

use std::{collections::BTreeMap, sync::Arc};

use chrono::{DateTime, Utc};

use crate::{
    ports::TargetErrorKind,

    controller::{records::Stalled},
    domain::{
        declaration::Instance,
        journal::{Run, Status as RunStatus},
        message::ago,
        plan::{Applied, Observed},
    },
    model::{InstanceId, Verdict},
};

pub(super) struct Known<'a> {
    pub(super) applied: Option<&'a Applied>,
    pub(super) observed: Option<&'a Observed>,
    pub(super) runs: &'a [Run],
    pub(super) stalled: Option<&'a Stalled>,
    pub(super) all_stalled: &'a BTreeMap<InstanceId, Stalled>,
    pub(super) suspended: Option<String>,
    pub(super) now: DateTime<Utc>,
}

impl Known<'_> {
    pub(super) fn verdict(
        &self,
        id: &InstanceId,
        instance: Option<&Arc<Instance>>,
        run: Option<&Run>,
        pending: bool,
    ) -> (Verdict, Option<String>) {
        if let Some(problem) = instance.and_then(|instance| instance.problems.first()) {
            return (Verdict::Stalled, Some(problem.to_string()));
        }
        if let Some(error) = self.observed.and_then(|observed| observed.error.as_ref()).filter(|e| e.kind == TargetErrorKind::Identity.name()) {
            return (Verdict::Unknown, Some(error.message.clone()));
        }
        let is_idle = run.is_none_or(|run| matches!(run.instances[id].status, RunStatus::New | RunStatus::Waiting));
        if let Some(message) = self.suspended.as_ref().filter(|_| is_idle && run.is_some()) {
            return (Verdict::Suspended, Some(message.clone()));
        }
        if let Some(run) = run {
            let instance = &run.instances[id];
            let message = if instance.message.is_empty() {
                format!("run {} is under way", run.id)
            } else {
                format!("run {}: {}", run.id, instance.message)
            };
            return (Verdict::Pending, Some(message));
        }
        if let Some(stalled) = self.stalled {
            let how = if stalled.cancelled { "was" } else { "failed:" };
            return (Verdict::Stalled, Some(format!("run {} {how} {}", stalled.run, stalled.message)));
        }
        if let Some(error) = self.observed.and_then(|observed| observed.error.as_ref()) {
            return (Verdict::Unknown, Some(error.message.clone()));
        }
        if let Some(failed) = self.observed.and_then(|observed| observed.failed_checks.first()) {
            return (Verdict::Stalled, Some(failed.clone()));
        }
        if self.applied.is_some() && self.observed.is_none_or(|observed| observed.against.is_none()) {
            return (Verdict::Unknown, Some("not observed yet".into()));
        }
        if self.observed.is_some_and(|observed| !observed.drift.is_empty()) {
            return (Verdict::Drifted, None);
        }
        if let Some(message) = &self.suspended {
            return (Verdict::Suspended, Some(message.clone()));
        }
        if pending {
            let problem = self.observed.and_then(|observed| observed.head_problem.as_ref());
            return (Verdict::Pending, problem.map(|problem| format!("head can't be planned: {problem}")));
        }
        let age =
            self.observed.map(|observed| (self.now - observed.at).num_seconds()).filter(|seconds| *seconds > 3600);
        (Verdict::InSync, age.map(|seconds| format!("observed {} ago", ago(seconds))))
    }
}
