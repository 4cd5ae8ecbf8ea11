//! Defines the plan as a stored document (R2.1), in the format of `plan --output json`.

use serde::{Deserialize, Serialize};

use super::hosts::HostedNode;
use crate::model::{
    Action, Change, Digest, Digester, EnvironmentName, InstanceId, Revision, WaitingOn, layout::LayoutPlan,
};

/// A plan of an environment: the actions in order, and the dependencies of instances.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// The hash of the sorted digests of the plan's instances.
    pub digest: Digest,
    /// The environment.
    pub environment: EnvironmentName,
    /// The revision that the plan applies.
    pub revision: Revision,
    /// The base revision of a pull request's plan.
    pub base: Option<Revision>,
    /// The reason for the plan: `pullRequest/12`, `head`.
    pub because: String,
    /// The instances, in order.
    pub instances: Vec<InstancePlan>,
    /// The number of changes by kind.
    pub summary: Summary,
}

/// The plan of one instance.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InstancePlan {
    /// The instance.
    pub id: InstanceId,
    /// The kind of the component.
    pub kind: String,
    /// The hash of the sorted action digests; `None` while the plan is not known.
    pub digest: Option<Digest>,
    /// The step at which the instance may start, counted from 1.
    pub order: usize,
    /// The upstreams among the instances of this plan.
    pub after: Vec<InstanceId>,
    /// The conditions that the instance waits for.
    pub waiting_on: Vec<WaitingOn>,
    /// The actions.
    pub actions: Vec<Action>,
    /// The reason for which the instance has no plan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Warnings.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// The figures of the shard moves; not part of any digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layout: Option<LayoutPlan>,
    /// The nodes of clusters that the instance may host, for the validation; not part of any digest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub carried: Vec<HostedNode>,
}

/// The number of changes by kind.
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
    /// Counts the changes of resources. Outputs are not counted.
    pub fn of(actions: &[Action]) -> Self {
        let mut summary = Self::default();
        let resources =
            actions.iter().flat_map(|action| action.resources.iter().map(move |resource| (action.effect, resource)));
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
    /// Returns the number of all changes.
    pub fn changes(&self) -> u64 {
        self.create + self.update + self.destroy + self.replace + self.moves
    }
    /// Returns the sum of two summaries.
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
    /// Returns the number of changes of this instance.
    pub fn summary(&self) -> Summary {
        let move_bytes = self.layout.as_ref().map_or(0, |layout| layout.bytes);
        Summary { move_bytes, ..Summary::of(&self.actions) }
    }
    /// Computes the digest of an instance from its actions.
    pub fn digest_of(actions: &[Action]) -> Digest {
        let mut digests: Vec<String> = actions.iter().map(|action| action.digest.to_string()).collect();
        digests.sort();
        digests.iter().fold(Digester::new("instance"), |digester, digest| digester.field(digest.as_bytes())).finish()
    }
}

impl Plan {
    /// Creates the plan of an environment. The plan's digest covers neither the conditions that instances wait for nor
    /// instances without changes, because both may change while a reviewer reads the plan.
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
    /// Returns whether the instance has an action or a plan that is not known yet.
    pub fn has_work(&self) -> bool {
        self.instances.iter().any(|instance| !instance.actions.is_empty() || instance.digest.is_none())
    }
    /// Returns the plan of one instance.
    pub fn instance(&self, id: &InstanceId) -> Option<&InstancePlan> {
        self.instances.iter().find(|instance| instance.id == *id)
    }
}
