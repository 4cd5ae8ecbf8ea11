//! Defines the reasons for which the daemon can't observe or plan an instance, and their text.

use std::fmt;

use crate::model::{EnvironmentName, InstanceId};

/// The reason for which an instance can't be observed or planned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotObservable {
    /// An input names an output that its upstream does not have.
    NoOutput {
        /// The instance.
        id: InstanceId,
        /// The upstream.
        upstream: InstanceId,
        /// The key of the output.
        key: String,
    },
    /// The declaration has problems.
    Problems(InstanceId),
    /// A sensitive output differs from the recorded one.
    OutputChanged {
        /// The upstream.
        upstream: InstanceId,
        /// The name of the output.
        name: String,
    },
    /// An upstream whose sensitive output is used is not applied any more.
    UpstreamNotApplied {
        /// The instance.
        id: InstanceId,
        /// The upstream.
        upstream: InstanceId,
    },
    /// The target of a whole environment belongs to another environment (R1.8).
    SharedEnvironment {
        /// The instance.
        id: InstanceId,
        /// The instance that uses the target.
        other: InstanceId,
    },
    /// The state belongs to another instance (R1.8).
    SharedState {
        /// The instance.
        id: InstanceId,
        /// The instance that uses the state.
        other: InstanceId,
    },
    /// The target is another one than the one that was applied to (R1.8).
    OtherIdentity {
        /// The identity of the target differs from the one at the last apply (R1.8).
        id: InstanceId,
        /// Whether the target belongs to a whole environment, as a cluster does; else it is a state.
        is_shared: bool,
        /// The recorded identity.
        recorded: String,
        /// The observed identity; `None` if there is none.
        observed: Option<String>,
    },
    /// The hosts of a cluster are not known, because it was never applied.
    HostsUnknown {
        /// The cluster.
        cluster: InstanceId,
        /// The instance that would remove hosts.
        id: InstanceId,
    },
    /// A node list of a cluster can't be read.
    Nodes(InstanceId, String),
}

/// Returns the first part of an identity, enough to recognize it.
fn short(identity: &str) -> String {
    identity.chars().take(8).collect()
}

impl fmt::Display for NotObservable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoOutput { id, upstream, key } => {
                write!(f, "`{id}` uses `{}.outputs.{key}`, and `{upstream}` has no such output", upstream.component)
            }
            Self::Problems(id) => write!(f, "`{id}` has problems in its declaration"),
            Self::OutputChanged { upstream, name } => write!(
                f,
                "the sensitive output `{name}` of `{upstream}` is not the one that its last run recorded; `{upstream}` has drifted, or was applied elsewhere"
            ),
            Self::UpstreamNotApplied { id, upstream } => {
                write!(f, "`{upstream}`, whose sensitive output `{id}` uses, is not applied any more")
            }
            Self::SharedEnvironment { id, other } => {
                let (own, theirs): (&EnvironmentName, &EnvironmentName) = (&id.environment, &other.environment);
                write!(
                    f,
                    "the cluster of `{id}` is that of `{theirs}` (`{other}`), and one cluster belongs to one environment; if both use it on purpose, set `sharedWith: [{theirs}]` for the connection of `{own}` in the configuration (R1.8)"
                )
            }
            Self::SharedState { id, other } => write!(
                f,
                "the state of `{id}` is that of `{other}`, or a copy of it: both would change the same resources; give `{id}` a state of its own, or remove one of them (R1.8)"
            ),
            Self::OtherIdentity { id, is_shared, recorded, observed } => {
                let observed = match observed {
                    None => "there is none".to_owned(),
                    Some(observed) => format!("it is `{}`", short(observed)),
                };
                let recorded = short(recorded);
                match is_shared {
                    false => write!(
                        f,
                        "the state of `{id}` is not the one that was applied: its lineage was `{recorded}`, and now {observed}; bring the state back"
                    ),
                    true => write!(
                        f,
                        "the cluster of `{id}` is not the one that was applied to: its uid was `{recorded}`, and now {observed}; fix the connection"
                    ),
                }?;
                write!(f, ", or comment `/confirm {id}` if this is right (R1.8)")
            }
            Self::HostsUnknown { cluster, id } => write!(
                f,
                "nodes of `{cluster}` may run on resources that `{id}` would remove, and `{cluster}` was never applied with its hosts, so no node would be drained first; apply `{cluster}` before, and remove the resources in a later pull request"
            ),
            Self::Nodes(cluster, problem) => write!(f, "`{cluster}`: {problem}"),
        }
    }
}
