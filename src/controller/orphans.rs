//! What is applied and no longer declared (R1.9): shown, destroyed by a word or by its own declaration, or let go.
//!
//! Never counts as removed what a file that can't be read may declare. *Race:* it is declared again while it is about to
//! be destroyed: the run stops before its first effect.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{Daemon, Error, Head, commands::DIGEST_LENGTH_MIN, conversation::environments, decide::Authorised};
use crate::{
    domain::{
        authorization::Principal,
        declaration::{
            Selector,
            schema::{OnDelete, Verb},
        },
        journal::Approved,
        message::comment,
        plan::{Applied, InstancePlan, Plan, mark_protected, order, validation},
    },
    model::{EnvironmentName, InstanceId, PullNumber, RunId},
    targets,
};

/// Those that use the outputs of an instance or come after it, as they are applied.
pub(super) fn users(id: &InstanceId, applied: &BTreeMap<InstanceId, Applied>) -> BTreeSet<InstanceId> {
    let uses = |record: &Applied| {
        let outputs = format!("{}.outputs.", id.component);
        record.inputs.keys().any(|key| key.starts_with(&outputs)) || record.spec.depends_on.contains(&id.component)
    };
    let others = applied.iter().filter(|(other, _)| other.environment == id.environment && *other != id);
    others.filter(|(_, record)| uses(record)).map(|(other, _)| other.clone()).collect()
}

/// Whether what is applied is surely no longer declared.
fn is_orphan(head: &Head) -> impl Fn(&InstanceId) -> bool + '_ {
    let renamed: BTreeSet<&InstanceId> =
        head.desired.instances.values().filter_map(|instance| instance.renamed_from.as_ref()).collect();
    move |id| head.desired.complete && head.instance(id).is_none() && !renamed.contains(id)
}

/// The orphans among these that go by their own declaration (`onDelete: destroy`).
pub(super) fn to_destroy(head: &Head, applied: &BTreeMap<InstanceId, Applied>) -> BTreeSet<InstanceId> {
    let (is_orphan, goes) = (is_orphan(head), |record: &Applied| record.spec.on_delete == OnDelete::Destroy);
    applied.iter().filter(|(id, record)| goes(record) && is_orphan(id)).map(|(id, _)| id.clone()).collect()
}

impl Daemon {
    /// What is applied and surely no longer declared.
    pub(super) async fn orphans(&self, head: &Head) -> Result<BTreeMap<InstanceId, Applied>, Error> {
        let mut applied = self.store().all_applied().await?;
        let is_orphan = is_orphan(head);
        applied.retain(|id, _| is_orphan(id));
        Ok(applied)
    }

    /// Why an instance can't be destroyed now, in a sentence.
    pub(super) async fn in_use(
        &self,
        head: &Head,
        id: &InstanceId,
        together: &BTreeSet<InstanceId>,
    ) -> Result<Option<(InstanceId, String)>, Error> {
        let applied = self.store().all_applied().await?;
        let user = users(id, &applied).into_iter().find(|user| !together.contains(user));
        Ok(user.map(|user| {
            let says = if head.instance(&user).is_some() {
                format!("`{user}` still uses `{id}` as it is applied, and has to be applied without it first")
            } else {
                format!("`{user}`, which uses `{id}`, is still there; destroy both, or forget `{user}`")
            };
            (user, says)
        }))
    }

    /// The plan of destroying one instance.
    pub(super) async fn plan_destroy(
        self: &Arc<Self>,
        head: &Head,
        id: &InstanceId,
        protect: &[String],
    ) -> InstancePlan {
        let mut plan = InstancePlan {
            id: id.clone(),
            kind: "unknown".into(),
            digest: None,
            order: 1,
            after: vec![],
            waiting_on: vec![],
            actions: vec![],
            problem: None,
            warnings: vec![],
            layout: None,
            carried: vec![],
        };
        let looked = async {
            let job = self.destroy_job(id, head).await?;
            let observation = self.look_at_job(head, &job).await?;
            self.identify(id, &observation, true).await?;
            Ok::<_, Error>((job.work.kind(), targets::actions(&job.work, id, &observation), observation))
        };
        match looked.await {
            Ok((kind, mut actions, observation)) => {
                mark_protected(protect, &mut actions);
                (plan.kind, plan.actions) = (kind.to_owned(), actions);
                plan.digest = Some(InstancePlan::digest_of(&plan.actions));
                // Only where nothing at all is left of it, there is nothing to do.
                plan.problem = observation.left.first().filter(|_| plan.actions.is_empty()).cloned();
                plan.warnings = observation.warnings;
            }
            Err(error) => plan.problem = Some(self.hands.redactor.redact(&crate::error_chain(&error))),
        }
        plan
    }

    /// The plan of destroying orphans of one environment, dependents first.
    async fn plan_destroys(
        self: &Arc<Self>,
        head: &Arc<Head>,
        environment: &EnvironmentName,
        ids: &BTreeSet<InstanceId>,
    ) -> Result<Plan, Error> {
        let applied = self.store().all_applied().await?;
        let edges: BTreeMap<InstanceId, BTreeSet<InstanceId>> =
            ids.iter().map(|id| (id.clone(), users(id, &applied).intersection(ids).cloned().collect())).collect();
        let guards = self.guards(head).await?;
        let planned = order(&edges).into_iter().map(|(id, step)| {
            let (after, protect) = (edges[&id].iter().cloned().collect(), guards.protect(&id));
            async move { InstancePlan { order: step, after, ..self.plan_destroy(head, &id, &protect).await } }
        });
        let instances = futures::future::join_all(planned).await;
        Ok(Plan::new(environment.clone(), head.revision.clone(), None, comment::DESTROY.into(), instances))
    }

    /// `/destroy`: shows what would be destroyed, and does it once its digest is named.
    pub(super) async fn destroy(
        self: &Arc<Self>,
        head: &Arc<Head>,
        meant: &BTreeSet<InstanceId>,
        digests: &[String],
        who: &Principal,
        (selector, pull): (&Selector, Option<PullNumber>),
    ) -> Result<(String, Vec<Plan>, Vec<RunId>), Error> {
        self.only_orphans(head, meant).await?;
        let (mut says, mut plans, mut runs) = (vec![], vec![], vec![]);
        for environment in environments(meant) {
            let ids: BTreeSet<InstanceId> = meant.iter().filter(|id| id.environment == environment).cloned().collect();
            for id in &ids {
                if let Some((_, why)) = self.in_use(head, id, &ids).await? {
                    return Err(Error::Refused(format!("Nothing was destroyed: {why}.")));
                }
            }
            let plan = self.plan_destroys(head, &environment, &ids).await?;
            if let Some((id, why)) = plan.instances.iter().find_map(|i| Some((&i.id, i.problem.as_ref()?))) {
                return Err(Error::Refused(format!("Nothing was destroyed: `{id}` could not be planned: {why}.")));
            }
            let names = |digest: &String| {
                digest.len() >= DIGEST_LENGTH_MIN && plan.digest.to_string().starts_with(digest.as_str())
            };
            if digests.iter().any(names) {
                let run = self.start_destroy(head, &plan, who, pull).await?;
                says.push(format!("Run {run} destroys what is left of {}.", list(&ids)));
                runs.push(run);
                continue;
            }
            self.may_destroy(head, &plan, who).await?;
            if let Some(digest) = digests.first() {
                return Err(Error::Refused(format!(
                    "Nothing was destroyed: the plan of that is `{}`, not `{digest}`; look at it and say that.",
                    plan.digest.short()
                )));
            }
            if let Some(number) = pull {
                self.say_plan(number, &plan, &[]).await?;
            }
            says.push(format!(
                "Nothing was destroyed yet: look at the plan of `{environment}`, and say `/destroy {} {}` to do that and no more.",
                selector.short(),
                plan.digest.short()
            ));
            plans.push(plan);
        }
        Ok((says.join(" "), plans, runs))
    }

    /// Whether a plan of destroying is within what holds now.
    async fn may_destroy(self: &Arc<Self>, head: &Arc<Head>, plan: &Plan, who: &Principal) -> Result<(), Error> {
        let environment = &plan.environment;
        let limits = self.guards(head).await?.limits(environment);
        if let Some(note) = validation::plan(plan, &limits).into_iter().find(|note| note.fatal) {
            return Err(Error::Refused(format!("Nothing was destroyed: {}.", note.says)));
        }
        if let Some(says) = validation::within(&plan.summary, &limits).into_iter().next() {
            let out = if head.desired.environments.contains_key(environment) {
                format!("Raise `limits` of `{environment}` in a pull request of its own, or destroy less.")
            } else {
                format!(
                    "`{environment}` is no longer declared, and the limits that it had still hold: declare it again with higher ones first, or `/forget` what is there."
                )
            };
            return Err(Error::Refused(format!("Nothing was destroyed: {says}. {out}")));
        }
        let ids: BTreeSet<InstanceId> = plan.instances.iter().map(|instance| instance.id.clone()).collect();
        match self.lacking(head, who, Verb::Destroy, plan, &ids).await? {
            Some(says) => Err(Error::Refused(format!("Nothing was destroyed: {says}."))),
            None => Ok(()),
        }
    }

    async fn start_destroy(
        self: &Arc<Self>,
        head: &Arc<Head>,
        plan: &Plan,
        who: &Principal,
        pull: Option<PullNumber>,
    ) -> Result<RunId, Error> {
        self.may_destroy(head, plan, who).await?;
        let approved = plan
            .instances
            .iter()
            .map(|instance| (instance.id.clone(), Approved::Actions { actions: instance.actions.clone() }))
            .collect();
        let authorised = Authorised {
            environment: plan.environment.clone(),
            instances: plan.instances.iter().map(|instance| instance.id.clone()).collect(),
            approved,
            because: format!("`/destroy` of {}", who.name().replace("user:", "@")),
            principal: who.name(),
            word: who.word().map(str::to_owned),
            by_merge: false,
            pull,
            remediation: None,
            destroys: true,
            by_drift: false,
            rebalance: None,
        };
        self.create_run(head, authorised).await
    }

    /// `/forget`: what is applied stays in the world, and nobody here looks after it any more.
    pub(super) async fn forget(
        self: &Arc<Self>,
        head: &Arc<Head>,
        meant: &BTreeSet<InstanceId>,
        who: &Principal,
    ) -> Result<String, Error> {
        self.only_orphans(head, meant).await?;
        if let Some(run) = self.store().open_runs().await?.iter().find(|run| meant.iter().any(|id| run.holds(id))) {
            return Err(Error::Refused(format!("Nothing was forgotten: run {} is under way on it.", run.id)));
        }
        for id in meant {
            self.let_go(id).await?;
            self.store()
                .audit(self.now(), &who.name(), "forget", &id.to_string(), "let go; what it made stays")
                .await?;
        }
        Ok(format!("Forgotten: {}. What was made is still there, and nobody here looks after it.", list(meant)))
    }

    /// Forgets an instance that is destroyed or let go.
    pub(super) async fn let_go(self: &Arc<Self>, id: &InstanceId) -> Result<(), Error> {
        self.hands.target.let_go(id).await;
        self.let_go_identity(id).await?;
        Ok(self.store().let_go(id, self.now()).await?)
    }

    /// Refuses what is declared, or may be.
    async fn only_orphans(&self, head: &Head, meant: &BTreeSet<InstanceId>) -> Result<(), Error> {
        if !head.desired.complete {
            return Err(Error::Refused(
                "Nothing was done: a file of the state repo can't be read, and what it declares is not known; mend it first (R1.9).".into(),
            ));
        }
        let orphans = self.orphans(head).await?;
        match meant.iter().find(|id| !orphans.contains_key(*id)) {
            Some(id) => Err(Error::Refused(format!(
                "Nothing was done: `{id}` is declared; remove it from the branch first, and what is left of it is an orphan."
            ))),
            None => Ok(()),
        }
    }

    /// Whether `onDelete: destroy` needs somebody's word although merges are the authority: where nothing of the
    /// environment is left.
    pub(super) fn waits_for_word(&self, head: &Head, environment: &EnvironmentName) -> bool {
        head.environment(environment).next().is_none()
    }
}

fn list(ids: &BTreeSet<InstanceId>) -> String {
    comment::names(ids.iter().map(ToString::to_string))
}
