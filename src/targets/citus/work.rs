//! The shard layout of a cluster with its inputs filled in.

use chrono::{DateTime, Utc};
use serde_json::Value;

use super::declaration::{Citus, CitusNode};
use crate::{
    domain::kind::typed,
    model::{
        Action, Retry,
        citus::{Address, Capacity, Moves, Pin, Placement, Table},
        ids::Malformed,
    },
    ports::{Job, TargetError, TargetErrorKind, join},
};

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

impl CitusWork {
    /// The layout of a job.
    ///
    /// # Errors
    /// When a filled-in value does not fit its field.
    pub fn new(job: &Job) -> Result<Self, TargetError> {
        let wrong = |why: String| TargetError {
            retry: Retry::WhenInputChanges,
            ..TargetError::new(TargetErrorKind::InputWrong, format!("`{}`: {why}", job.instance))
        };
        // Both may come from outputs, and have errors of their own.
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

/// The moves of an approved action.
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

/// The nodes of a list, as a declaration or an output gives it.
pub(super) fn declared_nodes(value: &Value) -> Result<Vec<DeclaredNode>, String> {
    let expected = "expected a list of `host:port`, or of `{host, port, shards, runsOn}`";
    let Value::Array(items) = value else { return Err(format!("`nodes` is no list; {expected}")) };
    if items.is_empty() {
        // An empty list of nodes is more likely a wrong output than the intention to remove every node.
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
