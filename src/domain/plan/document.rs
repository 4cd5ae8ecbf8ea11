//! The plan as a stored document (R2.1), in the shape of `plan --output json`.

use serde::{Deserialize, Serialize};

use super::hosts::HostedNode;
use crate::model::{
    Action, Change, Digest, Digester, EnvironmentName, InstanceId, Revision, WaitingOn, citus::LayoutPlan,
};

/// A plan of an environment: the actions in order, and the dependencies of instances.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// The hash of the sorted digests of its instances.
    pub digest: Digest,
    /// The environment.
    pub environment: EnvironmentName,
    /// The revision that it was made for.
    pub revision: Revision,
    /// The revision that it was made against, for a pull request.
    pub base: Option<Revision>,
    /// What it was made for: `pullRequest/12`, `head`.
    pub because: String,
    /// The instances, in order.
    pub instances: Vec<InstancePlan>,
    /// How many of what.
    pub summary: Summary,
}

/// The plan of one instance.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InstancePlan {
    /// The instance.
    pub id: InstanceId,
    /// Its kind.
    pub kind: String,
    /// The hash of its sorted action digests; absent while it is not known.
    pub digest: Option<Digest>,
    /// The step at which it may start.
    pub order: usize,
    /// The upstreams among the instances of this plan.
    pub after: Vec<InstanceId>,
    /// The condition that it waits for.
    pub waiting_on: Vec<WaitingOn>,
    /// The actions.
    pub actions: Vec<Action>,
    /// Why there is no plan of it, where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Warnings.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// The figures of the shard moves; not part of any digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layout: Option<LayoutPlan>,
    /// The nodes of clusters that it may carry, for the checker; not part of any digest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub carried: Vec<HostedNode>,
}

/// How many of what.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "each counts resources of the change of that name")]
pub struct Summary {
    pub create: u64,
    pub update: u64,
    pub destroy: u64,
    pub replace: u64,
    pub moves: u64,
    pub move_bytes: u64,
}

impl Summary {
    /// Counts resources; outputs are not among them.
    pub fn of(actions: &[Action]) -> Self {
        let mut summary = Self::default();
        let resources = actions.iter().flat_map(|action| action.resources.iter().map(move |one| (action.effect, one)));
        for (effect, resource) in resources.filter(|(_, resource)| resource.r#type != "output") {
            match resource.change {
                Change::Create => summary.create += 1,
                Change::Move if effect.relocates => summary.moves += 1,
                Change::Update | Change::Run | Change::Move => summary.update += 1,
                Change::Destroy | Change::Forget => summary.destroy += 1,
                Change::Replace => summary.replace += 1,
            }
        }
        summary
    }
    /// All changes.
    pub fn changes(&self) -> u64 {
        self.create + self.update + self.destroy + self.replace + self.moves
    }
    /// Adds another.
    #[must_use]
    pub fn plus(self, other: &Self) -> Self {
        Self {
            create: self.create + other.create,
            update: self.update + other.update,
            destroy: self.destroy + other.destroy,
            replace: self.replace + other.replace,
            moves: self.moves + other.moves,
            move_bytes: self.move_bytes + other.move_bytes,
        }
    }
}

impl InstancePlan {
    /// How many of what, of this instance.
    pub fn summary(&self) -> Summary {
        let move_bytes = self.layout.as_ref().map_or(0, |layout| layout.bytes);
        Summary { move_bytes, ..Summary::of(&self.actions) }
    }
    /// The instance's digest from its actions.
    pub fn digest_of(actions: &[Action]) -> Digest {
        let mut digests: Vec<String> = actions.iter().map(|action| action.digest.to_string()).collect();
        digests.sort();
        digests.iter().fold(Digester::new("instance"), |digester, digest| digester.field(digest.as_bytes())).finish()
    }
}

impl Plan {
    /// Puts the instances of an environment together. What an instance waits on is not in the digest, nor is an instance
    /// of which nothing would change: it may be settled while somebody reads the plan.
    pub fn new(
        environment: EnvironmentName,
        revision: Revision,
        base: Option<Revision>,
        because: String,
        instances: Vec<InstancePlan>,
    ) -> Self {
        let mut parts: Vec<String> = instances
            .iter()
            .filter(|instance| instance.digest.is_none() || !instance.actions.is_empty())
            .map(|i| format!("{} {}", i.id, i.digest.map_or_else(|| "unknown".into(), |d| d.to_string())))
            .collect();
        parts.sort();
        let digest =
            parts.iter().fold(Digester::new("plan"), |digester, part| digester.field(part.as_bytes())).finish();
        let summary = instances.iter().fold(Summary::default(), |sum, instance| sum.plus(&instance.summary()));
        Self { digest, environment, revision, base, because, instances, summary }
    }
    /// Whether there is an action, or something that is not known yet.
    pub fn has_work(&self) -> bool {
        self.instances.iter().any(|instance| !instance.actions.is_empty() || instance.digest.is_none())
    }
    /// The plan of one instance.
    pub fn instance(&self, id: &InstanceId) -> Option<&InstancePlan> {
        self.instances.iter().find(|instance| instance.id == *id)
    }
}
