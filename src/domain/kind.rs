//! Questions about a kind of target that pure code asks: its declaration, its drift, its plan.
//!
//! Each kind answers them in its folder under `src/targets`; `targets::KINDS` lists all kinds. The domain sees this trait
//! alone and knows no kind by name. *Invariant:* no answer depends on anything but its arguments.

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

/// The instance whose declaration takes over observed values.
#[derive(Clone, Copy, Debug)]
pub struct Adoption<'a> {
    /// The instance.
    pub instance: &'a InstanceId,
    /// Its declaration at head.
    pub declared: &'a Value,
    /// The paths of its closure.
    pub files: &'a [String],
}

/// The files of a revision while they are edited.
pub trait Edits {
    /// The files as they were before any edit.
    fn content(&self) -> &dyn Files;
    /// The text of a file with the edits so far.
    ///
    /// # Errors
    /// When the file can't be read.
    fn read(&self, path: &str) -> Result<String, String>;
    /// The path of the file that declares the component.
    ///
    /// # Errors
    /// When it can't be found.
    fn declaration(&self) -> Result<String, String>;
    /// Replaces the text of a file.
    fn write(&mut self, path: &str, text: String);
    /// Replaces the text of a file unless other instances are made from it as well; returns whether it did.
    fn write_own(&mut self, path: &str, text: String) -> bool;
}

/// A node that a target lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeclaredNode {
    /// `host:port`.
    pub address: String,
    /// Its host: the address of a resource of another instance.
    pub runs_on: Option<String>,
}

/// One kind of target.
pub trait TargetKind: Send + Sync {
    /// The key under which a Component declares it, such as `tofu`.
    fn name(&self) -> &'static str;

    /// The JSON Schema of its declaration.
    fn schema(&self, generator: &mut SchemaGenerator) -> Schema;

    /// The line that describes its declaration in the schema of a Component.
    fn summary(&self) -> &'static str;

    /// The fields in which only `${environment}` may stand, by their dotted paths: the content of an instance can't
    /// depend on outputs.
    fn fixed_fields(&self) -> &'static [&'static str];

    /// Validates a text against a `format` of its schema; nothing where the format belongs to another kind.
    fn format(&self, _format: &str, _text: &str) -> Option<Result<(), Malformed>> {
        None
    }

    /// Validates a declaration beyond its schema, before anything is filled in.
    fn check(&self, _file: &Arc<str>, _declared: &Node) -> Vec<Problem> {
        vec![]
    }

    /// Whether records of an instance move to its new name; else the reason and the way out (R1.10).
    ///
    /// # Errors
    /// The message and the hint of the problem.
    fn renames(&self) -> Result<(), (&'static str, &'static str)> {
        Ok(())
    }

    /// The declaration with all of its own defaults written out.
    ///
    /// # Errors
    /// The contradiction that no schema shows.
    fn normalize(&self, declared: &Value) -> Result<Value, String>;

    /// The declaration with the defaults of an environment; nothing where none applies.
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

    /// The files that an instance is made from; nothing where the declaration names none.
    fn source(&self, declared: &Value) -> Option<Source>;

    /// Collects the closure of a source, and records every path that was read to find it.
    ///
    /// # Errors
    /// The path that can't be used, and why.
    fn closure(&self, files: &dyn Files, source: &Source, looked: &mut Looked) -> Result<Closure, WalkError>;

    /// The part of the declaration that the component digest covers (R1.2).
    fn content(&self, declared: &Value) -> Value;

    /// An applied declaration with those fields of a newer one that are not content.
    fn with_settings(&self, applied: &Value, _newer: &Value) -> Value {
        applied.clone()
    }

    /// The connection that a declaration names.
    fn connection(&self, declared: &Value) -> Option<String>;

    /// Whether a declaration allows that stored data is rewritten; nothing where the kind has no such data.
    fn allows_rewrites(&self, _declared: &Value) -> Option<bool> {
        None
    }

    /// Whether runs can move the data of such a target, as a rebalance does.
    fn relocates(&self) -> bool {
        false
    }

    /// Whether such a target lists nodes that run on resources of other instances.
    fn lists_nodes(&self) -> bool {
        false
    }

    /// The part of a declaration that lists its nodes, with references as they are written.
    fn nodes<'d>(&self, _declared: &'d Value) -> Option<&'d Value> {
        None
    }

    /// The nodes of such a list once references are filled in.
    ///
    /// # Errors
    /// When the value is no list of nodes.
    fn read_nodes(&self, _nodes: &Value) -> Result<Vec<DeclaredNode>, String> {
        Ok(vec![])
    }

    /// The node that a change removes from such a target.
    fn removed_node<'c>(&self, _change: &'c ResourceChange) -> Option<&'c str> {
        None
    }

    /// Whether a change belongs to the removal of a node.
    fn concerns_node(&self, _change: &ResourceChange, _node: &str) -> bool {
        false
    }

    /// The time that applied resources may take to become ready.
    fn wait(&self, _declared: &Value) -> Duration {
        Duration::ZERO
    }

    /// The drift that an observation at the applied revision shows (R1.4).
    fn drift(&self, observation: &Observation) -> Vec<Drift>;

    /// The actions that an apply would do, in their order.
    fn actions(&self, id: &InstanceId, observation: &Observation) -> Vec<Action>;

    /// The operation of an action that writes observed values into the target's own records; nothing where the kind keeps
    /// none.
    fn refresh_operation(&self) -> Option<&'static str> {
        None
    }

    /// Edits files so that they declare what was observed (R4.3). The caller proves the edits afterwards.
    ///
    /// # Errors
    /// The value that no file can declare, and the way out.
    fn adopt(&self, adoption: &Adoption<'_>, observation: &Observation, edits: &mut dyn Edits) -> Result<(), String>;

    /// The value that a declaration gives to a variable; nothing where the kind has no variables or no such one.
    fn variable<'d>(&self, _declared: &'d Value, _name: &str) -> Option<&'d Value> {
        None
    }

    /// Edits files so that a variable has another value.
    ///
    /// # Errors
    /// Why no file can declare it.
    fn set_variable(
        &self,
        adoption: &Adoption<'_>,
        _name: &str,
        _value: &Value,
        _edits: &mut dyn Edits,
    ) -> Result<(), String> {
        Err(format!("`{}` has no variables", adoption.instance))
    }

    /// The actions that write observed values into the target's own records and change no resource.
    fn refresh(&self, _id: &InstanceId, _observation: &Observation) -> Vec<Action> {
        vec![]
    }
}

/// A declaration as its type.
///
/// # Errors
/// The field that does not fit.
pub fn typed<T: DeserializeOwned>(declared: &Value) -> Result<T, String> {
    T::deserialize(declared).map_err(|error| error.to_string())
}
