//! What is to be looked at or applied: one instance at one revision, with everything filled in.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
    time::Duration,
};

use serde_json::Value;

use chrono::{DateTime, Utc};

use super::Files;
use crate::model::{
    Digest, InstanceId, PullNumber,
    citus::{Address, Capacity, Moves, Placement, Table},
};

/// Which content a work tree holds: each has its own tool data, and merged content one path (R2.2).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Use {
    /// The applied revision.
    Applied,
    /// The head of the branch.
    Head,
    /// A pull request; never used to apply.
    Pull(PullNumber),
}

impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Applied => f.write_str("applied"),
            Self::Head => f.write_str("head"),
            Self::Pull(number) => write!(f, "pr-{}", number.0),
        }
    }
}

/// One instance at one revision, with everything that looking at it or applying it needs.
#[derive(Clone)]
pub struct Job {
    /// The instance.
    pub instance: InstanceId,
    /// Which content.
    pub r#use: Use,
    /// The content of the revision.
    pub content: Arc<dyn Files>,
    /// The files of its closure: path, git's id, whether it may be run.
    pub files: BTreeMap<String, (String, bool)>,
    /// The connection, if one is named.
    pub connection: Option<String>,
    /// Whether another instance consumes its outputs.
    pub consumed: bool,
    /// The name that it had until this is merged, under which the daemon keeps what it keeps for it (R1.10).
    pub formerly: Option<InstanceId>,
    /// The target and source of the work.
    pub work: Work,
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Job({} at {})", self.instance, self.r#use)
    }
}

/// The target and source of the work, by kind.
#[derive(Clone)]
pub enum Work {
    /// An OpenTofu root module.
    Tofu(TofuWork),
    /// Kubernetes objects.
    Kubernetes(Box<KubernetesWork>),
    /// The shard layout of a Citus cluster.
    Citus(Box<CitusWork>),
}

impl Work {
    /// Says that everything is to go (R1.9).
    pub fn destroy(&mut self) {
        match self {
            Self::Tofu(work) => work.destroy = true,
            Self::Kubernetes(work) => work.destroy = true,
            Self::Citus(work) => work.destroy = true,
        }
    }
    /// Whether the target takes over what was observed, and nothing in the world is changed.
    pub fn refreshes(&self) -> bool {
        matches!(self, Self::Tofu(work) if work.refresh)
    }
    /// How long what was applied may take to come up.
    pub fn wait(&self) -> Duration {
        match self {
            Self::Tofu(_) | Self::Citus(_) => Duration::ZERO,
            Self::Kubernetes(work) => work.wait,
        }
    }
    /// The word for its kind.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Tofu(_) => "tofu",
            Self::Kubernetes(_) => "kubernetes",
            Self::Citus(_) => "citus",
        }
    }
}

/// An OpenTofu root module with its inputs filled in.
#[derive(Clone)]
pub struct TofuWork {
    /// The root module, relative to the root of the repository.
    pub root: String,
    /// The workspace.
    pub workspace: String,
    /// Variable files, relative to the root of the repository.
    pub var_files: Vec<String>,
    /// Variables with all references filled in.
    pub variables: BTreeMap<String, Value>,
    /// Settings of the backend, filled in.
    pub backend_config: BTreeMap<String, Value>,
    /// Whether the root module says where its state is kept.
    pub declares_backend: bool,
    /// Whether everything is to go (R1.9).
    pub destroy: bool,
    /// Whether the state alone takes over what was observed, and nothing in the world is changed.
    pub refresh: bool,
}

/// Kubernetes objects with their inputs filled in.
#[derive(Clone, Default)]
pub struct KubernetesWork {
    /// The source of the objects.
    pub source: ManifestSource,
    /// The content hash of what they are made from.
    pub content: Option<Digest>,
    /// The namespace of objects that name none.
    pub namespace: Option<String>,
    /// The address of the API server, where an output gives it.
    pub server: Option<String>,
    /// Its certificate authority, where an output gives it.
    pub certificate_authority: Option<String>,
    /// The values of `${KEY}`; without it nothing is substituted.
    pub substitute: Option<BTreeMap<String, Value>>,
    /// The service account as which objects are read and applied: `namespace/name`.
    pub impersonate: Option<String>,
    /// Objects that may be made again, by kind and name.
    pub force: Vec<(String, Option<String>)>,
    /// Fields that are neither sent nor compared, by kind, name and JSON pointers.
    pub ignore: Vec<(String, Option<String>, Vec<String>)>,
    /// When objects of a kind are healthy and when they failed, as expressions of CEL.
    pub health: Vec<(String, String, Option<String>)>,
    /// How long a rollout may take.
    pub wait: Duration,
    /// Whether everything is to go (R1.9).
    pub destroy: bool,
    /// Which instances of the environment declare an object in the same cluster, where that was asked for.
    pub owners: Option<Arc<Owners>>,
}

/// The shard layout of a Citus cluster with its inputs filled in.
#[derive(Clone, Debug, Default)]
pub struct CitusWork {
    /// The workers; nothing where nodes are not ours to add or remove.
    pub nodes: Option<Vec<DeclaredNode>>,
    /// Distributed and reference tables.
    pub tables: Vec<Table>,
    /// Distributed schemas, by name.
    pub schemas: Vec<String>,
    /// How shards are laid out.
    pub placement: Placement,
    /// How they are moved.
    pub moves: Moves,
    /// Whether a table may be rewritten.
    pub allow_rewrite: bool,
    /// When a pull request asks for more nodes.
    pub capacity: Vec<Capacity>,
    /// The folder of migrations, relative to the root of the repository.
    pub migrations: Option<String>,
    /// Whether shards are moved and nodes stay as they are, so that nothing moves to one that is still to come.
    pub only_moves: bool,
    /// Whether somebody asked for the moves just now.
    pub by_command: bool,
    /// Nodes that have to be empty and gone, whatever else is declared.
    pub vacate: Vec<String>,
    /// Moves that were approved: they are made as far as they still can be, in place of others.
    pub approved: Vec<ApprovedMove>,
    /// No move begins that would not be over by then.
    pub until: Option<DateTime<Utc>>,
    /// Whether everything is to go (R1.9).
    pub destroy: bool,
}

/// A move as it was approved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApprovedMove {
    /// The resource of its action.
    pub resource: String,
    /// From where.
    pub from: String,
    /// To where.
    pub to: String,
    /// Whether nothing but the balance asks for it.
    pub for_balance: bool,
}

/// A worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeclaredNode {
    /// Where it listens.
    pub address: Address,
    /// Whether it holds shards.
    pub holds: bool,
    /// Its host.
    pub runs_on: Option<String>,
}

/// The objects that the instances of an environment declare in one cluster.
#[derive(Clone, Debug, Default)]
pub struct Owners {
    /// Instances by the resource that they declare.
    pub declared: BTreeMap<String, BTreeSet<InstanceId>>,
    /// An instance of which that is not known.
    pub unknown: Option<InstanceId>,
}

/// The source of Kubernetes objects; paths are relative to the root of the repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ManifestSource {
    /// A manifest, or a folder of them.
    Manifests(String),
    /// A folder with a `kustomization.yaml`.
    Kustomize(String),
    /// A chart.
    Helm {
        /// The folder of the chart.
        chart: String,
        /// The name of the release.
        release: String,
        /// The files of values, in order.
        value_files: Vec<String>,
        /// Values that win over those of files.
        values: BTreeMap<String, Value>,
    },
}

impl Default for ManifestSource {
    fn default() -> Self {
        Self::Manifests(String::new())
    }
}
