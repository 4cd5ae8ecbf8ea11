//! Defines the work of a Citus component, with all inputs resolved.

use crate::targets::citus::placement::{Address, Capacity, Moves, Pin, Placement, Table};
use chrono::{DateTime, Utc};
use serde_json::Value;

use super::declaration::{Citus, CitusNode};
use crate::{
    domain::kind::typed,
    model::{Action, Retry, ids::Malformed},
    ports::{Job, TargetError, TargetErrorKind, join},
};

/// The shard layout of a Citus cluster, with resolved inputs.
#[derive(Clone, Debug, Default)]
pub struct CitusWork {
    /// The workers; `None` if nodes are neither added nor removed.
    pub nodes: Option<Vec<DeclaredNode>>,
    /// Distributed and reference tables.
    pub tables: Vec<Table>,
    /// Distributed schemas, by name.
    pub schemas: Vec<String>,
    /// The placement of shards.
    pub placement: Placement,
    /// The settings of shard moves.
    pub moves: Moves,
    /// Whether a table may be rewritten.
    pub allow_rewrite: bool,
    /// The rules by which a pull request proposes more nodes.
    pub capacity: Vec<Capacity>,
    /// The folder of migrations, relative to the root of the repository.
    pub migrations: Option<String>,
    /// Whether only shards move and nodes stay unchanged, so that no shard moves to a future node.
    pub only_moves: bool,
    /// Whether a command requested the moves.
    pub by_command: bool,
    /// Nodes to drain and remove, whatever else is declared.
    pub vacate: Vec<String>,
    /// Approved moves: they are made as far as possible, in place of newly planned moves.
    pub approved: Vec<ApprovedMove>,
    /// The end of the window: no move begins that would exceed it.
    pub until: Option<DateTime<Utc>>,
    /// Whether everything is to be destroyed (R1.9).
    pub destroy: bool,
}

/// An approved move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApprovedMove {
    /// The resource address of its action.
    pub resource: String,
    /// The source node.
    pub from: String,
    /// The destination node.
    pub to: String,
    /// Whether only the balance requires the move.
    pub for_balance: bool,
}

/// A worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeclaredNode {
    /// The address.
    pub address: Address,
    /// Whether it holds shards.
    pub holds: bool,
    /// The resource that the node runs on.
    pub runs_on: Option<String>,
}

impl CitusWork {
    /// Returns the work of a job.
    ///
    /// # Errors
    /// When a resolved value does not fit its field.
    pub fn new(job: &Job) -> Result<Self, TargetError> {
        let wrong = |why: String| TargetError {
            retry: Retry::WhenInputChanges,
            ..TargetError::new(TargetErrorKind::InputWrong, format!("`{}`: {why}", job.instance))
        };
        // Both fields may come from outputs, and have their own errors.
        let mut rest = job.target.declared.clone();
        let mut take = |field: &str| rest.as_object_mut().and_then(|fields| fields.remove(field));
        let (nodes, placement) = (take("nodes"), take("placement"));
        let citus: Citus = typed(&rest).map_err(wrong)?;
        let placement: Placement = placement
            .map_or_else(|| Ok(Placement::default()), |placement| typed(&placement))
            .map_err(|error| wrong(format!("`placement` is not what it has to be: {error}")))?;
        let address = |text: &String| text.parse::<Address>().map(|address| address.to_string());
        let placement = Placement {
            drain: placement.drain.iter().map(address).collect::<Result<_, _>>().map_err(|e| wrong(e.to_string()))?,
            pins: (placement.pins.iter())
                .map(|pin| Ok(Pin { node: address(&pin.node)?, ..pin.clone() }))
                .collect::<Result<_, Malformed>>()
                .map_err(|error| wrong(error.to_string()))?,
            ..placement
        };
        Ok(Self {
            nodes: nodes.map(|nodes| declared_nodes(&nodes)).transpose().map_err(wrong)?,
            tables: citus.tables,
            schemas: citus.schemas.into_iter().map(|schema| schema.name).collect(),
            placement,
            moves: citus.moves,
            allow_rewrite: citus.allow_rewrite,
            capacity: citus.capacity,
            migrations: citus.migrations.as_ref().and_then(|path| join("", path)),
            until: job.relocation.until,
            only_moves: job.relocation.only,
            by_command: job.relocation.by_command,
            vacate: job.relocation.vacate.clone(),
            approved: job.relocation.approved.iter().flat_map(approved_moves).collect(),
            destroy: job.destroy,
        })
    }
}

/// Returns the moves of an approved action.
fn approved_moves(action: &Action) -> Vec<ApprovedMove> {
    let moves = action.resources.iter().filter_map(|change| {
        let field = change.fields.iter().find(|field| field.path == "/node")?;
        Some(ApprovedMove {
            resource: change.resource.clone(),
            from: field.before.as_ref()?.as_str()?.to_owned(),
            to: field.after.as_ref()?.as_str()?.to_owned(),
            for_balance: action.effect.deferrable,
        })
    });
    moves.collect()
}

/// Parses a list of nodes from a declaration or an output.
pub(super) fn declared_nodes(value: &Value) -> Result<Vec<DeclaredNode>, String> {
    let expected = "expected a list of `host:port`, or of `{host, port, shards, runsOn}`";
    let Value::Array(items) = value else { return Err(format!("`nodes` is no list; {expected}")) };
    if items.is_empty() {
        // An empty list is more likely a wrong output than the intention to remove every node.
        return Err("`nodes` is an empty list; leave `nodes` out where nodes are not to be managed".into());
    }
    let mut nodes: Vec<DeclaredNode> = vec![];
    for item in items {
        let declared: CitusNode =
            serde_json::from_value(item.clone()).map_err(|_| format!("`nodes` holds `{item}`; {expected}"))?;
        let node = match declared {
            CitusNode::Address(text) => {
                let address = text.parse::<Address>().map_err(|error| format!("`nodes`: {error}"))?;
                DeclaredNode { address, holds: true, runs_on: None }
            }
            CitusNode::With(with) => {
                let text = with.port.map_or_else(|| with.host.clone(), |port| format!("{}:{port}", with.host));
                let address = text.parse::<Address>().map_err(|error| format!("`nodes`: {error}"))?;
                DeclaredNode { address, holds: with.shards, runs_on: with.runs_on }
            }
        };
        if nodes.iter().any(|known| known.address == node.address) {
            return Err(format!("`nodes` names `{}` twice", node.address));
        }
        nodes.push(node);
    }
    Ok(nodes)
}
