//! Finds the recorded fact that explains the verdict of an instance.
//!
//! The text is written by `domain/message/explanation.rs`.
//! *Invariant:* observes no target.

use std::sync::Arc;

use crate::{
    controller::{
        context::Error,
        records::{MergedRemediation, Proposal},
        remediation::is_adopted_by_head,
        source::Head,
        status::{InstanceStatus, StatusReader},
    },
    domain::{
        declaration::schema::{DriftMode, Verb},
        message::{
            Refusal,
            explanation::{DriftExplanation, Explanation},
            verdict::VerdictReason,
        },
    },
    model::{InstanceId, Verdict, WaitingOn},
};

impl StatusReader {
    /// Returns the explanation of the verdict of an instance.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn explain(self: &Arc<Self>, status: &InstanceStatus) -> Result<Explanation, Error> {
        let reason = status.reason.clone().unwrap_or_default();
        let Some(head) = self.source.head() else {
            return Ok(Explanation::NoHead(Refusal::NoHead { reason: self.source.problem() }));
        };
        let id = &status.id;
        Ok(match status.verdict {
            Verdict::InSync => Explanation::InSync,
            Verdict::Suspended => Explanation::Suspended(reason),
            Verdict::Unknown if matches!(status.cause, Some(VerdictReason::OtherIdentity(_))) => {
                Explanation::OtherIdentity(reason)
            }
            Verdict::Unknown => Explanation::Unknown(id.clone(), reason),
            Verdict::Stalled => {
                let has_problems = head.instance(id).is_some_and(|instance| !instance.problems.is_empty());
                Explanation::stalled(id, has_problems, status.cause.as_ref())
            }
            Verdict::Orphaned => Explanation::Orphaned(reason),
            Verdict::Drifted => Explanation::Drifted(self.why_drifted(&head, status).await?),
            Verdict::Pending => self.why_pending(&head, status, reason).await?,
        })
    }

    async fn why_drifted(self: &Arc<Self>, head: &Head, status: &InstanceStatus) -> Result<DriftExplanation, Error> {
        let id = &status.id;
        if let Some(snooze) = &status.snoozed {
            return Ok(DriftExplanation::Snoozed {
                by: snooze.by.replace("user:", "@"),
                because: snooze.because.clone(),
                until: snooze.until,
            });
        }
        if let Some((_, merged)) = self.unspent_with_actions(head, id).await?.into_iter().next() {
            return Ok(DriftExplanation::RemediationWaits(merged.waits));
        }
        let (applied, observed) =
            (self.context.store.applied_in(&id.environment).await?, self.context.store.observed(id).await?);
        if let (Some(instance), Some(observed)) = (head.instance(id), observed)
            && is_adopted_by_head(head, instance, &applied, &observed) == Some(true)
        {
            return Ok(DriftExplanation::DeclaredAtHead(id.environment.clone()));
        }
        let existing: Vec<(String, Proposal)> = self.context.store.collection::<Proposal>().all().await?;
        if let Some((_, proposal)) = existing.into_iter().find(|(_, proposal)| proposal.instances.contains(id)) {
            return Ok(DriftExplanation::Proposed { pull: proposal.pull, adopts: proposal.adopts });
        }
        if status.drift.iter().all(|drift| !drift.revertible) {
            return Ok(DriftExplanation::NotRevertible);
        }
        Ok(match self.remediations.mode(head, id) {
            DriftMode::Report => DriftExplanation::ReportOnly,
            _ if self.context.forge.is_none() => DriftExplanation::NoForge(id.clone()),
            DriftMode::Revert => DriftExplanation::AutomaticRevert,
            DriftMode::Propose => DriftExplanation::ProposalComes,
        })
    }

    /// Returns the unspent remediations with actions of an instance.
    async fn unspent_with_actions(
        &self,
        head: &Head,
        id: &InstanceId,
    ) -> Result<Vec<(String, MergedRemediation)>, Error> {
        let concerns = |key: &str| {
            let name = key.rsplit('/').next().and_then(|name| name.parse().ok());
            name.and_then(|name| head.desired.remediations.get(&name))
                .is_some_and(|(remediation, _)| remediation.actions.iter().any(|action| action.instance == *id))
        };
        Ok(self.remediations.unspent(&id.environment).await?.into_iter().filter(|(key, _)| concerns(key)).collect())
    }

    async fn why_pending(
        self: &Arc<Self>,
        head: &Head,
        status: &InstanceStatus,
        reason: String,
    ) -> Result<Explanation, Error> {
        let environment = &status.id.environment;
        let Some(on) = status.waiting_on.first() else { return Ok(Explanation::RunBegins(reason)) };
        if let Some(VerdictReason::HeadNotPlanned(problem)) = &status.cause {
            return Ok(Explanation::HeadNotPlanned(problem.to_string()));
        }
        Ok(match on {
            WaitingOn::Apply => {
                let rights = self.authorization.rights(head, environment).await?;
                let needs = rights.iter().rev().find_map(|rights| rights.approvals(Verb::Apply)).cloned();
                Explanation::WaitsForApply(environment.clone(), needs)
            }
            WaitingOn::FirstContact if self.source.history_lost().await? => Explanation::NoHistory,
            on => Explanation::Waits(on.clone(), reason),
        })
    }
}
