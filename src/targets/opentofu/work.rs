//! Defines the work of an OpenTofu component, with all inputs resolved.

use std::collections::BTreeMap;

use serde_json::Value;

use super::declaration::Tofu;
use crate::{
    domain::kind::typed,
    model::Retry,
    ports::{Job, TargetError, TargetErrorKind, join},
};

/// An OpenTofu root module with resolved inputs.
#[derive(Clone)]
pub struct TofuWork {
    /// The root module, relative to the root of the repository.
    pub root: String,
    /// The workspace.
    pub workspace: String,
    /// Variable files, relative to the root of the repository.
    pub var_files: Vec<String>,
    /// Variables with all references resolved.
    pub variables: BTreeMap<String, Value>,
    /// Settings of the backend with all references resolved.
    pub backend_config: BTreeMap<String, Value>,
    /// Whether the root module declares a backend.
    pub declares_backend: bool,
    /// Whether all resources are to be destroyed (R1.9).
    pub destroy: bool,
    /// Whether only the state adopts the observed values, without a change of resources.
    pub refresh: bool,
}

impl TofuWork {
    /// Returns the work of a job.
    ///
    /// # Errors
    /// When a resolved value does not fit its field.
    pub fn new(job: &Job) -> Result<Self, TargetError> {
        let tofu: Tofu = typed(&job.target.declared).map_err(|why| TargetError {
            retry: Retry::WhenInputChanges,
            ..TargetError::new(TargetErrorKind::InputWrong, format!("`{}`: {why}", job.instance))
        })?;
        Ok(Self {
            // The closure has verified that these paths stay inside the repository; an absolute path would leave the
            // work tree.
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
