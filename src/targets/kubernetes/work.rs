//! Defines the work of a Kubernetes component, with all inputs resolved.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde_json::Value;

use super::declaration::{Connection, Impersonate, Kubernetes};
use crate::{
    domain::kind::typed,
    model::{Digest, Digester, Retry},
    ports::{Job, Owners, TargetError, TargetErrorKind, join},
};

/// Kubernetes objects with resolved inputs.
#[derive(Clone, Default)]
pub struct KubernetesWork {
    /// The source of the objects.
    pub source: ManifestSource,
    /// The content hash of the files that the objects are rendered from.
    pub content: Option<Digest>,
    /// The namespace of objects that name none.
    pub namespace: Option<String>,
    /// The address of the API server, if an output supplies it.
    pub server: Option<String>,
    /// The certificate authority of the server, if an output supplies it.
    pub certificate_authority: Option<String>,
    /// The values of `${KEY}`; `None` disables substitution.
    pub substitute: Option<BTreeMap<String, Value>>,
    /// The service account that reads and applies the objects: `namespace/name`.
    pub impersonate: Option<String>,
    /// Objects that may be deleted and created again, by kind and name.
    pub force: Vec<(String, Option<String>)>,
    /// Fields that are neither sent nor compared, by kind, name and JSON pointers.
    pub ignore: Vec<(String, Option<String>, Vec<String>)>,
    /// Health rules as CEL expressions: kind, ready, failed.
    pub health: Vec<(String, String, Option<String>)>,
    /// The time limit for the objects to become ready.
    pub wait: Duration,
    /// Whether all objects are to be deleted (R1.9).
    pub destroy: bool,
    /// The instances of the environment that declare each object in the same cluster; `None` if the job did not request
    /// them.
    pub owners: Option<Arc<Owners>>,
}

/// The source of Kubernetes objects; paths are relative to the root of the repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ManifestSource {
    /// A manifest, or a folder of manifests.
    Manifests(String),
    /// A folder with a `kustomization.yaml`.
    Kustomize(String),
    /// A chart.
    Helm {
        /// The folder of the chart.
        chart: String,
        /// The name of the release.
        release: String,
        /// The value files, in order of precedence.
        value_files: Vec<String>,
        /// Values that override those of files.
        values: BTreeMap<String, Value>,
    },
}

impl Default for ManifestSource {
    fn default() -> Self {
        Self::Manifests(String::new())
    }
}

impl KubernetesWork {
    /// Returns the work of a job.
    ///
    /// # Errors
    /// When a resolved value does not fit its field.
    pub fn new(job: &Job) -> Result<Self, TargetError> {
        let kubernetes: Kubernetes = typed(&job.target.declared).map_err(|why| TargetError {
            retry: Retry::WhenInputChanges,
            ..TargetError::new(TargetErrorKind::InputWrong, format!("`{}`: {why}", job.instance))
        })?;
        let wait = kubernetes.waits();
        let (server, certificate_authority) = match kubernetes.connection {
            Some(Connection::With(with)) => (with.server, with.certificate_authority),
            _ => (None, None),
        };
        let source = match (kubernetes.manifests, kubernetes.kustomize, kubernetes.helm) {
            (Some(path), ..) => ManifestSource::Manifests(join("", &path).unwrap_or_default()),
            (None, Some(path), _) => ManifestSource::Kustomize(join("", &path).unwrap_or_default()),
            (None, None, Some(helm)) => ManifestSource::Helm {
                chart: join("", &helm.chart).unwrap_or_default(),
                release: helm.release.unwrap_or_else(|| job.instance.component.to_string()),
                value_files: helm.value_files.iter().filter_map(|path| join("", path)).collect(),
                values: helm.values,
            },
            (None, None, None) => {
                let message = format!("`{}` is made from nothing", job.instance);
                return Err(TargetError::new(TargetErrorKind::Stalled, message));
            }
        };
        let account =
            |impersonate: Impersonate| match (&kubernetes.namespace, impersonate.service_account.contains('/')) {
                (Some(namespace), false) => format!("{namespace}/{}", impersonate.service_account),
                _ => impersonate.service_account,
            };
        let content = job.files.iter().fold(Digester::new("files"), |digester, (path, (id, program))| {
            digester.field(path.as_bytes()).field(id.as_bytes()).field(&[u8::from(*program)])
        });
        Ok(Self {
            source,
            content: Some(content.finish()),
            server,
            certificate_authority,
            substitute: kubernetes.substitute,
            impersonate: kubernetes.impersonate.map(account),
            force: kubernetes.force.into_iter().map(|objects| (objects.kind, objects.name)).collect(),
            ignore: kubernetes.ignore.into_iter().map(|fields| (fields.kind, fields.name, fields.pointers)).collect(),
            health: kubernetes.health.into_iter().map(|rule| (rule.kind, rule.current, rule.failed)).collect(),
            namespace: kubernetes.namespace,
            wait,
            destroy: job.destroy,
            owners: job.owners.clone(),
        })
    }
}
