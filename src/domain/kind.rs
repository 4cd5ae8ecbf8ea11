//! Defines the pure part of a kind of target: its declaration, drift and plan.
//!
//! Each kind implements the trait in its folder under `src/targets`; `targets::KINDS` lists all kinds. The domain uses
//! this trait alone and knows no kind by name.
//! *Invariant:* every result depends on the arguments alone.

use std::{sync::Arc, time::Duration};

use schemars::{Schema, SchemaGenerator};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{
    domain::declaration::{
        environment::Environment,
        node::Node,
        walk::{Closure, Looked, Source, WalkError},
    },
    model::{Action, Drift, InstanceId, Problem, ResourceChange, ids::Malformed},
    ports::{Files, Observation},
};

/// The instance whose declaration adopts observed values.
#[derive(Clone, Copy, Debug)]
pub struct Adoption<'a> {
    /// The instance.
    pub instance: &'a InstanceId,
    /// The declaration at head.
    pub declared: &'a Value,
    /// The paths of the instance's closure.
    pub files: &'a [String],
}

/// The files of a revision during edits.
pub trait Edits {
    /// Returns the files without any edit.
    fn content(&self) -> &dyn Files;
    /// Returns the text of a file with the edits so far.
    ///
    /// # Errors
    /// When the file can't be read.
    fn read(&self, path: &str) -> Result<String, String>;
    /// Returns the path of the file that declares the component.
    ///
    /// # Errors
    /// When the file can't be found.
    fn declaration(&self) -> Result<String, String>;
    /// Replaces the text of a file.
    fn write(&mut self, path: &str, text: String);
    /// Replaces the text of a file that no other instance uses; returns whether the text was replaced.
    fn write_own(&mut self, path: &str, text: String) -> bool;
}

/// A node in the node list of a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeclaredNode {
    /// The address of the node, as `host:port`.
    pub address: String,
    /// The host of the node: the address of a resource of another instance.
    pub runs_on: Option<String>,
}

/// The pure functions of one kind of target.
pub trait TargetKind: Send + Sync {
    /// Returns the key under which a Component declares the target, such as `tofu`.
    fn name(&self) -> &'static str;

    /// Returns the JSON Schema of the declaration.
    fn schema(&self, generator: &mut SchemaGenerator) -> Schema;

    /// Returns the description of the declaration in the schema of a Component.
    fn summary(&self) -> &'static str;

    /// Returns the dotted paths of the fields that may contain `${environment}` and no other reference. These fields
    /// determine the content of an instance, which can't depend on outputs.
    fn fixed_fields(&self) -> &'static [&'static str];

    /// Validates a text against a `format` of the kind's schema; `None` if the format belongs to another kind.
    fn format(&self, _format: &str, _text: &str) -> Option<Result<(), Malformed>> {
        None
    }

    /// Validates a declaration beyond its schema, before references are resolved.
    fn check(&self, _file: &Arc<str>, _declared: &Node) -> Vec<Problem> {
        vec![]
    }

    /// Checks whether the records of an instance can move to a new name (R1.10).
    ///
    /// # Errors
    /// The message and the hint of the problem.
    fn renames(&self) -> Result<(), (&'static str, &'static str)> {
        Ok(())
    }

    /// Returns the declaration with all defaults of the kind.
    ///
    /// # Errors
    /// A contradiction that the schema does not express.
    fn normalize(&self, declared: &Value) -> Result<Value, String>;

    /// Returns the declaration with the defaults of an environment; `None` if no default applies.
    fn with_defaults(&self, _declared: &Value, _environment: &Environment) -> Option<Value> {
        None
    }

    /// Validates a declaration that has the defaults of its environment.
    ///
    /// # Errors
    /// The message and the hint of the problem.
    fn is_complete(&self, _declared: &Value) -> Result<(), (&'static str, &'static str)> {
        Ok(())
    }

    /// Returns the source files of an instance; `None` if the declaration names none.
    fn source(&self, declared: &Value) -> Option<Source>;

    /// Collects the closure of a source, and records every path that was read.
    ///
    /// # Errors
    /// The path that can't be used, and the reason.
    fn closure(&self, files: &dyn Files, source: &Source, entries_read: &mut Looked) -> Result<Closure, WalkError>;

    /// Returns the part of the declaration that the component digest covers (R1.2).
    fn content(&self, declared: &Value) -> Value;

    /// Returns an applied declaration with the non-content fields of a newer one.
    fn with_settings(&self, applied: &Value, _newer: &Value) -> Value {
        applied.clone()
    }

    /// Returns the connection that a declaration names.
    fn connection(&self, declared: &Value) -> Option<String>;

    /// Returns whether a declaration allows stored data to be rewritten; `None` if the kind has no such data.
    fn allows_rewrites(&self, _declared: &Value) -> Option<bool> {
        None
    }

    /// Returns whether runs can move the data of this kind, as a rebalance does.
    fn relocates(&self) -> bool {
        false
    }

    /// Returns whether this kind lists nodes that run on resources of other instances.
    fn lists_nodes(&self) -> bool {
        false
    }

    /// Returns the part of a declaration that lists its nodes, with unresolved references.
    fn nodes<'d>(&self, _declared: &'d Value) -> Option<&'d Value> {
        None
    }

    /// Reads the nodes of such a list after references are resolved.
    ///
    /// # Errors
    /// When the value is not a list of nodes.
    fn read_nodes(&self, _nodes: &Value) -> Result<Vec<DeclaredNode>, String> {
        Ok(vec![])
    }

    /// Returns the node that a change removes from the target.
    fn removed_node<'c>(&self, _change: &'c ResourceChange) -> Option<&'c str> {
        None
    }

    /// Returns whether a change belongs to the removal of a node.
    fn concerns_node(&self, _change: &ResourceChange, _node: &str) -> bool {
        false
    }

    /// Returns the time limit for applied resources to become ready.
    fn wait(&self, _declared: &Value) -> Duration {
        Duration::ZERO
    }

    /// Returns the drift in an observation at the applied revision (R1.4).
    fn drift(&self, observation: &Observation) -> Vec<Drift>;

    /// Returns the actions of an apply, in order.
    fn actions(&self, id: &InstanceId, observation: &Observation) -> Vec<Action>;

    /// Returns the operation that writes observed values into the target's own records; `None` if the kind has no such
    /// records.
    fn refresh_operation(&self) -> Option<&'static str> {
        None
    }

    /// Edits files so that they declare the observed values (R4.3). The caller proves by a plan that the edited
    /// declaration gives the observed values.
    ///
    /// # Errors
    /// An observed value that can't be written in a declaration; the text names the value and a solution.
    fn adopt(&self, adoption: &Adoption<'_>, observation: &Observation, edits: &mut dyn Edits) -> Result<(), String>;

    /// Returns the value of a variable in a declaration; `None` if the kind has no variables or the variable is not
    /// set.
    fn variable<'d>(&self, _declared: &'d Value, _name: &str) -> Option<&'d Value> {
        None
    }

    /// Edits files so that a variable has another value.
    ///
    /// # Errors
    /// The reason for which no file can declare the value.
    fn set_variable(
        &self,
        adoption: &Adoption<'_>,
        _name: &str,
        _value: &Value,
        _edits: &mut dyn Edits,
    ) -> Result<(), String> {
        Err(format!("`{}` has no variables", adoption.instance))
    }

    /// Returns the actions that write observed values into the target's own records and change no resource.
    fn refresh(&self, _id: &InstanceId, _observation: &Observation) -> Vec<Action> {
        vec![]
    }
}

/// Deserializes a declaration.
///
/// # Errors
/// The field that does not match the type.
pub fn typed<T: DeserializeOwned>(declared: &Value) -> Result<T, String> {
    T::deserialize(declared).map_err(|error| error.to_string())
}
