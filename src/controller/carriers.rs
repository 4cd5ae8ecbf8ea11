//! A machine goes only after the node on it: the drain of another target's node stands before the action that takes its
//! carrier away, in the same plan and in the same run.
//!
//! *Flow:* whoever plans an instance asks which nodes of the environment's clusters it may carry, as they are applied; the
//! nodes that its actions would take the carrier of become actions of their own, before all others. In a run those are done
//! first: the node is drained, verified to be empty and removed.
//! *Guarantees:* the independent checker works the same out again, of the plan and of what is left of it after a cut.
//! *Race:* the cluster changes between plan and run: what is drained is what is there then. *Race:* the daemon dies in the
//! middle: the next one waits for a move that goes on, and drains what is left.

use std::{
    collections::BTreeSet,
    sync::{Arc, PoisonError},
};

use super::{Daemon, Error, Head, Wake, inputs::declared_nodes, prepare::Stop, run::Driven};
use crate::{
    domain::{
        declaration::{Reference, resolve, schema::Nodes},
        journal::Run,
        plan::{Applied, Carried, carriers},
    },
    model::{Action, Change, InstanceId},
    ports::{Fence, Job, Observation, TargetError, Told, Work},
};

impl Daemon {
    /// The actions of an instance with the drains that have to come before them, and the nodes that it may carry.
    ///
    /// # Errors
    /// When it is not known what would be taken away: a target's error.
    pub(super) async fn with_drains(
        self: &Arc<Self>,
        head: &Head,
        id: &InstanceId,
        actions: Vec<Action>,
        observation: &Observation,
    ) -> Result<(Vec<Action>, Vec<Carried>), Error> {
        let takes = |change: Change| matches!(change, Change::Destroy | Change::Replace | Change::Update);
        if !actions.iter().flat_map(|action| &action.resources).any(|resource| takes(resource.change)) {
            return Ok((actions, vec![]));
        }
        let refused = |why| TargetError {
            retry: crate::model::Retry::WhenInputChanges,
            ..TargetError::new("carrier-unknown", why)
        };
        if carriers::may_take(&actions)
            && let Some(cluster) = self.never_agreed(head, id, observation).await?
        {
            let why = format!(
                "`{cluster}` may run on what `{id}` would take away, and what its nodes run on was never applied, so that none would be drained first; apply `{cluster}` before, and take away in a pull request that comes after"
            );
            return Err(refused(why).into());
        }
        let carried = self.carried(head, id, observation).await?;
        if carried.is_empty() {
            return Ok((actions, carried));
        }
        let drains = carriers::vacates(id, &carriers::taken_away(&carried, &actions).map_err(refused)?);
        Ok((drains.into_iter().chain(actions).collect(), carried))
    }

    /// A declared cluster that an instance may carry, while nothing that was applied says which of its nodes.
    async fn never_agreed(
        &self,
        head: &Head,
        id: &InstanceId,
        observation: &Observation,
    ) -> Result<Option<InstanceId>, Error> {
        // What is just being made carries nothing yet, and may have to be made again.
        let is_new = self.store().applied(id).await?.is_none();
        if is_new && (!observation.holds_anything || self.store().begun(id).await?) {
            return Ok(None);
        }
        for cluster in head.environment(&id.environment).filter(|one| one.kind == "citus") {
            let Some(nodes) = cluster.spec.as_ref().and_then(|spec| spec.citus.as_ref()?.nodes.as_ref()) else {
                continue;
            };
            let says = |nodes: &Nodes| {
                let (reference, says_what_carries) = said(nodes, id);
                says_what_carries || reference.is_some()
            };
            let record = self.store().applied(&cluster.id).await?;
            let agreed = record.as_ref().and_then(|record| record.spec.citus.as_ref()?.nodes.as_ref());
            let is_never = match agreed {
                _ if record.is_none() => says(nodes) || cluster.upstreams.contains(id),
                agreed => says(nodes) && !agreed.is_some_and(says),
            };
            if is_never {
                return Ok(Some(cluster.id.clone()));
            }
        }
        Ok(None)
    }

    /// The nodes of applied clusters that an instance may carry.
    async fn carried(
        self: &Arc<Self>,
        head: &Head,
        id: &InstanceId,
        observation: &Observation,
    ) -> Result<Vec<Carried>, Error> {
        let mut carried = vec![];
        for (cluster, record) in self.applied_clusters(head, id).await? {
            let Some(nodes) = record.spec.citus.as_ref().and_then(|citus| citus.nodes.as_ref()) else { continue };
            let (reference, says_what_carries) = said(nodes, id);
            let (direct, is_output) = (reference.is_some(), matches!(nodes, Nodes::Output(_)));
            let reference = reference.filter(|_| is_output);
            if !direct && !says_what_carries && !is_output {
                continue;
            }
            let job = self.applied_job(&cluster, &record, head).await?;
            let Work::Citus(work) = &job.work else { continue };
            // What the list is once the plan is done, where that is known.
            let planned = reference.and_then(|reference| {
                let name = reference.key.split('.').next().unwrap_or_default();
                declared_nodes(observation.outputs.get(name)?.value.as_ref()?).ok()
            });
            for node in work.nodes.iter().flatten().filter(|node| direct || node.carried_by.is_some()) {
                let stays =
                    |nodes: &Vec<_>| nodes.iter().any(|one: &crate::ports::DeclaredNode| one.address == node.address);
                carried.push(Carried {
                    node: node.address.to_string(),
                    cluster: cluster.clone(),
                    by: node.carried_by.clone(),
                    vanishes: planned.as_ref().is_some_and(|nodes| !stays(nodes)),
                });
            }
        }
        Ok(carried)
    }

    /// The applied clusters of an instance's environment, also those that are no longer declared.
    async fn applied_clusters(&self, head: &Head, id: &InstanceId) -> Result<Vec<(InstanceId, Applied)>, Error> {
        let known = self.undeclared_clusters.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let undeclared = match known.filter(|(revision, _)| *revision == head.revision) {
            Some((_, undeclared)) => undeclared,
            None => {
                // All records are read for it, so that it is asked once for each head.
                let all = self.store().all_applied().await?;
                let is_meant = |id: &InstanceId| head.instance(id).is_none_or(|instance| instance.kind != "citus");
                let found = all.into_iter().filter(|(id, record)| record.spec.citus.is_some() && is_meant(id));
                let found: BTreeSet<InstanceId> = found.map(|(id, _)| id).collect();
                let known = Some((head.revision.clone(), found.clone()));
                *self.undeclared_clusters.lock().unwrap_or_else(PoisonError::into_inner) = known;
                found
            }
        };
        let declared = head.environment(&id.environment).filter(|one| one.kind == "citus").map(|one| one.id.clone());
        let of_environment = undeclared.into_iter().filter(|one| one.environment == id.environment);
        let mut found = vec![];
        for cluster in declared.chain(of_environment) {
            if let Some(record) = self.store().applied(&cluster).await? {
                found.push((cluster, record));
            }
        }
        Ok(found)
    }

    /// Does the drains that stand among the actions of an instance.
    pub(super) async fn vacate(
        self: &Arc<Self>,
        driven: &Driven,
        run: &Run,
        of_run: &InstanceId,
        (actions, carried): (&[Action], &[Carried]),
        fence: Fence,
        progress: &crate::ports::Progress,
    ) -> Result<(), TargetError> {
        let asked: BTreeSet<&str> = (actions.iter())
            .filter(|action| action.r#do == carriers::VACATE)
            .flat_map(|action| action.resources.iter().map(|resource| resource.resource.as_str()))
            .collect();
        let clusters: BTreeSet<&InstanceId> =
            carried.iter().filter(|one| asked.contains(one.resource().as_str())).map(|one| &one.cluster).collect();
        for cluster in clusters {
            let of = |one: &&Carried| one.cluster == *cluster && asked.contains(one.resource().as_str());
            let nodes: BTreeSet<String> = carried.iter().filter(of).map(|one| one.node.clone()).collect();
            let failed = |error: Error| error.into_target("drain");
            let Some(record) = self.store().applied(cluster).await.map_err(Error::from).map_err(failed)? else {
                continue;
            };
            // Two machines of one run may go at the same time; their nodes leave a cluster one after the other.
            let turn = {
                let mut turns = self.vacate_turns.lock().unwrap_or_else(PoisonError::into_inner);
                Arc::clone(turns.entry(cluster.clone()).or_default())
            };
            let _turn = turn.lock().await;
            if self.store().lock_instance(cluster, run.id).await.map_err(Error::from).map_err(failed)? != run.id {
                return Err(TargetError::new(
                    "drain",
                    format!("another run works on `{cluster}`; say `/apply` once it is over"),
                ));
            }
            let mut job = self.applied_job(cluster, &record, &driven.head).await.map_err(failed)?;
            let Work::Citus(work) = &mut job.work else { continue };
            work.only_moves = true;
            work.vacate = nodes.iter().cloned().collect();
            let suspended = self.suspensions(Some(&driven.head)).await.map_err(failed)?;
            if let Some(says) = suspended.instance(cluster) {
                return Err(TargetError::new("drain", format!("`{cluster}` has to let go of a node first: {says}")));
            }
            self.vacating.lock().unwrap_or_else(PoisonError::into_inner).insert(of_run.clone(), cluster.clone());
            let emptied = self.empty(&driven.head, &job, &nodes, fence, progress).await;
            self.vacating.lock().unwrap_or_else(PoisonError::into_inner).remove(of_run);
            if !run.instances.contains_key(cluster) {
                // Nobody else of this run needs it.
                self.store().unlock_instance(cluster, run.id).await.map_err(Error::from).map_err(failed)?;
            }
            // What changed meanwhile was looked at by nobody.
            self.queue.wake(Wake::Instance(cluster.clone()), "it let go of a node");
            emptied.map_err(|error| TargetError {
                message: format!(
                    "`{cluster}` has to let go of {} first: {}",
                    nodes.iter().cloned().collect::<Vec<_>>().join(", "),
                    error.message
                ),
                ..error
            })?;
        }
        Ok(())
    }

    /// Drains nodes of a cluster and removes them.
    async fn empty(
        self: &Arc<Self>,
        head: &Head,
        job: &Job,
        nodes: &BTreeSet<String>,
        fence: Fence,
        progress: &crate::ports::Progress,
    ) -> Result<(), TargetError> {
        // However what was begun before ended: what is there now counts.
        self.hands.target.attach(job, fence, Arc::clone(progress)).await?;
        let (job, mut prepared) = self.prepare_job(head, job).await.map_err(stopped)?;
        // Another cluster than the one that is applied may not have the node, and would call it empty (R1.8).
        let identified = self.identify(&job.instance, &prepared.observation, true).await;
        identified.map_err(|error| error.into_target("drain"))?;
        let (gone, others): (Vec<&str>, Vec<&str>) = (prepared.observation.changes.iter())
            .filter(|change| change.change == Change::Destroy)
            .filter_map(|change| change.resource.strip_prefix("node "))
            .partition(|node| nodes.contains(*node));
        if let (Some(node), Some(other)) = (nodes.iter().find(|node| !gone.contains(&&***node)), others.first()) {
            let message = format!(
                "`{node}` is not in the cluster, and `{other}`, which nobody declares, is: look whether they are the same node, and declare it"
            );
            return Err(TargetError {
                retry: crate::model::Retry::WhenInputChanges,
                ..TargetError::new("drain", message)
            });
        }
        // What else differs there is none of this run's business.
        let is_meant = |resource: &str| {
            nodes.iter().any(|node| resource == format!("node {node}") || resource.ends_with(&format!(" on {node}")))
        };
        prepared.observation.changes.retain(|change| is_meant(&change.resource));
        if !prepared.observation.changes.is_empty() {
            progress(Told::Step(format!("drains {}", nodes.iter().cloned().collect::<Vec<_>>().join(", "))));
            self.hands.target.apply(&job, prepared, fence, Arc::clone(progress)).await?;
        }
        // Whatever was done: it counts that nothing is left to do.
        let (_, again) = self.prepare_job(head, &job).await.map_err(stopped)?;
        match again.observation.changes.iter().find(|change| is_meant(&change.resource)) {
            None => Ok(()),
            Some(left) => Err(TargetError::new("drain", format!("`{}` is still there", left.resource))),
        }
    }
}

/// The output of an instance that a list of nodes is made from, and whether the list says what carries them.
fn said(nodes: &Nodes, id: &InstanceId) -> (Option<Reference>, bool) {
    let nodes = serde_json::to_value(nodes).unwrap_or_default();
    let mut found = BTreeSet::new();
    resolve::references(&nodes, &mut found);
    let reference = found.into_iter().find(|reference| reference.component == id.component);
    (reference, nodes.to_string().contains("carriedBy"))
}

fn stopped(stop: Stop) -> TargetError {
    match stop {
        Stop::Fails(says) | Stop::Waits(_, says) => TargetError::new("drain", says),
        Stop::Error(error) => TargetError::new("drain", crate::error_chain(&error)),
        _ => TargetError::new("drain", "the daemon stops"),
    }
}
