//! Determines the verdict of an instance from its records.

use std::{collections::BTreeMap, sync::Arc};

use chrono::{DateTime, Utc};

use crate::{
    controller::records::Stalled,
    domain::{
        declaration::Instance,
        journal::{Run, Status as RunStatus},
        message::verdict::VerdictReason,
        plan::{Applied, Observed},
    },
    model::{InstanceId, Verdict},
    ports::TargetErrorKind,
};

/// The records of one instance.
pub(super) struct Records<'a> {
    pub(super) applied: Option<&'a Applied>,
    pub(super) observed: Option<&'a Observed>,
    pub(super) runs: &'a [Run],
    pub(super) stalled: Option<&'a Stalled>,
    pub(super) all_stalled: &'a BTreeMap<InstanceId, Stalled>,
    pub(super) suspended: Option<String>,
    pub(super) now: DateTime<Utc>,
}

impl Records<'_> {
    /// Returns the verdict and its reason, if there is one.
    pub(super) fn verdict(
        &self,
        id: &InstanceId,
        instance: Option<&Arc<Instance>>,
        run: Option<&Run>,
        pending: bool,
    ) -> (Verdict, Option<VerdictReason>) {
        if let Some(problem) = instance.and_then(|instance| instance.problems.first()) {
            return (Verdict::Stalled, Some(VerdictReason::DeclarationProblem(problem.to_string())));
        }
        let error = self.observed.and_then(|observed| observed.error.as_ref());
        if let Some(error) = error.filter(|error| error.kind == TargetErrorKind::Identity.name()) {
            return (Verdict::Unknown, Some(VerdictReason::OtherIdentity(error.message.clone())));
        }
        let is_idle = run.is_none_or(|run| matches!(run.instances[id].status, RunStatus::New | RunStatus::Waiting));
        if let Some(reason) = self.suspended.as_ref().filter(|_| is_idle && run.is_some()) {
            return (Verdict::Suspended, Some(VerdictReason::Suspended(reason.clone())));
        }
        if let Some(run) = run {
            let message = run.instances[id].message.clone();
            return (Verdict::Pending, Some(VerdictReason::Run { run: run.id, message }));
        }
        if let Some(Stalled { run, message, cancelled, .. }) = self.stalled {
            let (run, message) = (*run, message.clone());
            let reason = match cancelled {
                true => VerdictReason::RunCancelled { run, message },
                false => VerdictReason::RunFailed { run, message },
            };
            return (Verdict::Stalled, Some(reason));
        }
        if let Some(error) = error {
            let message = error.message.clone();
            let reason = match error.kind == TargetErrorKind::IdentityShared.name() {
                true => VerdictReason::OtherIdentity(message),
                false => VerdictReason::NotObservable(message),
            };
            return (Verdict::Unknown, Some(reason));
        }
        if let Some(failed) = self.observed.and_then(|observed| observed.failed_checks.first()) {
            return (Verdict::Stalled, Some(VerdictReason::CheckFailed(failed.clone())));
        }
        if self.applied.is_some() && self.observed.is_none_or(|observed| observed.against.is_none()) {
            return (Verdict::Unknown, Some(VerdictReason::NotObservedYet));
        }
        if self.observed.is_some_and(|observed| !observed.drift.is_empty()) {
            return (Verdict::Drifted, None);
        }
        if let Some(reason) = &self.suspended {
            return (Verdict::Suspended, Some(VerdictReason::Suspended(reason.clone())));
        }
        if pending {
            let problem = self.observed.and_then(|observed| observed.head_problem.clone());
            return (Verdict::Pending, problem.map(VerdictReason::HeadNotPlanned));
        }
        let age = self.observed.map(|observed| (self.now - observed.at).num_seconds());
        let reason = age.filter(|seconds| *seconds > 3600).map(|seconds| VerdictReason::ObservedLongAgo { seconds });
        (Verdict::InSync, reason)
    }
}
