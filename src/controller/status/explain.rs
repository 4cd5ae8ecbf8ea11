//! Why nothing happens, in a sentence with the number of its rule.
//!
//! Decides nothing: tells what the rules made of what is recorded.

use crate::domain::message::Refusal;
use std::sync::Arc;

use crate::{
    controller::{
        context::Error,
        records::{MergedRemediation, Proposal},
        remediation::takes_over,
        source::Head,
        status::{InstanceStatus, StatusReader},
    },
    domain::{
        authorization::approvals::asked,
        declaration::schema::{DriftMode, Verb},
        message::{comment, verdict::VerdictReason},
    },
    model::{InstanceId, Verdict, WaitingOn},
};

fn stalled(head: &Head, id: &InstanceId, cause: Option<&VerdictReason>) -> String {
    let environment = &id.environment;
    let reason = cause.map(ToString::to_string).unwrap_or_default();
    if head.instance(id).is_some_and(|instance| !instance.problems.is_empty()) {
        return format!(
            "Its declaration has a problem, so nothing is done with it, and other instances go on: {reason}. `evenkeel validate` shows all problems."
        );
    }
    match cause {
        Some(VerdictReason::CheckFailed(_)) => format!(
            "It is applied, and its checks fail (R3.5): {reason}. Nothing is promoted from it; each drift check runs the checks again."
        ),
        Some(VerdictReason::MayBeRemoved) => {
            format!("It {reason}; nothing counts as removed before every file can be read (R1.9).")
        }
        _ => format!(
            "{reason}. It can't go on without a person (R5.1): fix it in a pull request, go back with `git revert`, or try the same again by `/apply {environment}`."
        ),
    }
}

impl StatusReader {
    /// Why nothing happens with an instance, and what to do if something should.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn explain(self: &Arc<Self>, status: &InstanceStatus) -> Result<String, Error> {
        let reason = status.reason.clone().unwrap_or_default();
        let Some(head) = self.source.head() else {
            return Ok(Refusal::NoHead { reason: self.source.problem() }.to_string());
        };
        Ok(match status.verdict {
            Verdict::InSync => {
                "Everything was observed and nothing differs from what is applied, so there is nothing to do (R1.4)."
                    .into()
            }
            Verdict::Suspended => format!("It is observed and never acted on: {reason}."),
            Verdict::Unknown if matches!(status.cause, Some(VerdictReason::OtherIdentity(_))) => {
                format!("Nothing runs on it: {reason}.")
            }
            Verdict::Unknown => format!(
                "It could not be observed completely, and what is unknown is never acted on (R2.9): {reason}. It is looked at again every `drift.every`, or now with `evenkeel drift {}`.",
                status.id
            ),
            Verdict::Stalled => stalled(&head, &status.id, status.cause.as_ref()),
            Verdict::Orphaned => format!("It is {reason} (R1.9)."),
            Verdict::Drifted => self.why_drifted(&head, status).await?,
            Verdict::Pending => self.why_pending(&head, status, &reason).await?,
        })
    }

    async fn why_drifted(self: &Arc<Self>, head: &Head, status: &InstanceStatus) -> Result<String, Error> {
        let id = &status.id;
        let message = "The world differs from what is applied (R1.4)";
        if let Some(snooze) = &status.snoozed {
            let until = snooze.until.format("%Y-%m-%d %H:%M UTC");
            let by = snooze.by.replace("user:", "@");
            return Ok(format!(
                "{message}, and {by} said no to undoing it ({}): nothing is proposed until {until}, or until something else is observed (R4.5).",
                snooze.because
            ));
        }
        if let Some((_, merged)) = self.held_with_actions(head, id).await?.into_iter().next() {
            let why = merged.waits.unwrap_or_else(|| "its run is about to begin".into());
            return Ok(format!("{message}. Its remediation is merged and waits (R4.2): {why}"));
        }
        let (applied, observed) =
            (self.context.store.applied_in(&id.environment).await?, self.context.store.observed(id).await?);
        if let (Some(instance), Some(observed)) = (head.instance(id), observed)
            && takes_over(head, instance, &applied, &observed) == Some(true)
        {
            return Ok(format!(
                "{message}, and what is declared at head is what was observed: nothing is to be undone, and `/apply {}` makes it applied (R4.3).",
                id.environment
            ));
        }
        let known: Vec<(String, Proposal)> = self.context.store.collection::<Proposal>().all().await?;
        if let Some((_, proposal)) = known.into_iter().find(|(_, proposal)| proposal.instances.contains(id)) {
            let what = if proposal.adopts { "declare it" } else { "undo it" };
            return Ok(format!(
                "{message}. {} proposes to {what}: merge it, close it, or change what it does by `/revert`, `/adopt`, `/snooze` (R4.4).",
                proposal.pull
            ));
        }
        if status.drift.iter().all(|drift| !drift.revertible) {
            return Ok(format!(
                "{message} in what no apply would change, so there is nothing to revert. The next apply takes it over, or `drift.strict: false` leaves it out."
            ));
        }
        Ok(match self.remediations.mode(head, id) {
            DriftMode::Report => format!(
                "{message}, and `drift.mode: report` only shows it (R3.1). `drift.mode: propose` opens pull requests."
            ),
            _ if self.context.forge.is_none() => {
                format!(
                    "{message}, and there is no forge to propose on: configure `github`, or apply what is declared by `evenkeel apply {id}`."
                )
            }
            DriftMode::Revert => {
                format!("{message}; it is reverted by itself as far as nothing has to be destroyed or replaced (R3.1).")
            }
            DriftMode::Propose => format!("{message}; a pull request is about to propose to undo it (R4.4)."),
        })
    }

    /// The merged remediations that hold the drift of an instance.
    async fn held_with_actions(&self, head: &Head, id: &InstanceId) -> Result<Vec<(String, MergedRemediation)>, Error> {
        let concerns = |key: &str| {
            let name = key.rsplit('/').next().and_then(|name| name.parse().ok());
            name.and_then(|name| head.desired.remediations.get(&name))
                .is_some_and(|(remediation, _)| remediation.actions.iter().any(|action| action.instance == *id))
        };
        Ok(self.remediations.held(&id.environment).await?.into_iter().filter(|(key, _)| concerns(key)).collect())
    }

    async fn why_pending(
        self: &Arc<Self>,
        head: &Head,
        status: &InstanceStatus,
        reason: &str,
    ) -> Result<String, Error> {
        let environment = &status.id.environment;
        let Some(on) = status.waiting_on.first() else {
            return Ok(format!("A run is under way or about to begin. {reason}").trim().to_owned());
        };
        if let Some(VerdictReason::HeadNotPlanned(problem)) = &status.cause {
            return Ok(format!(
                "What is declared can't be planned, so nothing can be approved or applied (R2.9): {problem}. Mend it in a pull request; it is planned again when the branch moves."
            ));
        }
        let waits = comment::waiting(on);
        Ok(match on {
            WaitingOn::Apply => {
                let needs = self.authorization.rights(head, environment).await?;
                let needs = needs.iter().rev().find_map(|rights| rights.approvals(Verb::Apply)).cloned();
                let approvals = needs.map_or_else(String::new, |needs| {
                    format!(" It needs {}, on the pull request that changed it (R3.6).", asked(&needs))
                });
                format!(
                    "What is declared differs from what is applied, and `onMerge: wait` leaves it to somebody's word (R3.1): `/apply {environment}` on its pull request, or `evenkeel apply {environment}`.{approvals} `evenkeel who-can apply {environment}` says who may."
                )
            }
            WaitingOn::Approval { .. } => format!("{reason}. What runs is what was shown, and this was not (R2.4, R2.7)."),
            WaitingOn::FirstContact if self.source.history_lost().await? => {
                "This store has no history of a repository that was applied before, so nothing is applied by itself: restore the store, or read the plan and comment `/apply` (R1.7).".into()
            }
            WaitingOn::FirstContact => {
                "The target already holds something that was never applied from here, so a merge alone is no authority: read the plan and comment `/apply` (R1.6).".into()
            }
            WaitingOn::KnownAfter { .. } => format!("Its plan is {waits} (R2.5)."),
            WaitingOn::Upstream { .. } => format!("It waits: {waits} (R5.4, R6.1). {reason}").trim().to_owned(),
            WaitingOn::Promotion { .. } | WaitingOn::Soak { .. } => format!("It waits: {waits} (R3.5)."),
            WaitingOn::Rollout { .. } => format!("It waits for {waits} (R5.2). {reason}").trim().to_owned(),
            WaitingOn::Suspended => format!("It waits for {waits}. {reason}").trim().to_owned(),
            WaitingOn::Confirm => format!("It waits for {waits} (R1.8). {reason}").trim().to_owned(),
        })
    }
}
