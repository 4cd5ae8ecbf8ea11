//! A root module with its inputs filled in.

use std::collections::BTreeMap;

use serde_json::Value;

use super::declaration::Tofu;
use crate::{
    domain::kind::typed,
    model::Retry,
    ports::{Job, TargetError, TargetErrorKind, join},
};

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

impl TofuWork {
    /// The root module of a job.
    ///
    /// # Errors
    /// When a filled-in value does not fit its field.
    pub fn new(job: &Job) -> Result<Self, TargetError> {
        let tofu: Tofu = typed(&job.target.declared).map_err(|why| TargetError {
            retry: Retry::WhenInputChanges,
            ..TargetError::new(TargetErrorKind::InputWrong, format!("`{}`: {why}", job.instance))
        })?;
        Ok(Self {
            // The closure has proved that these stay inside the repository; an absolute path would leave the work tree.
            root: join("", &tofu.root).unwrap_or_default(),
            workspace: tofu.workspace,
            var_files: tofu.var_files.iter().filter_map(|path| join("", path)).collect(),
            variables: tofu.variables,
            backend_config: tofu.backend_config,
            declares_backend: job.declares_backend,
            destroy: job.destroy,
            refresh: job.refresh,
        })
    }
}
