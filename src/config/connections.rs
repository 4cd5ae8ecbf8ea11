//! Resolves connections: the credentials for each environment and connection name.
//!
//! Each use of a secret reads its file anew, so that a replaced secret takes effect at once.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use secrecy::SecretString;
use serde::Deserialize;
use serde_json::Value;

use super::Config;
use crate::{
    model::{EnvironmentName, InstanceId, Redactor},
    targets::{
        citus::{Login, Rights},
        kubernetes::Access,
    },
};

/// The credentials of a connection.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Connection {
    /// The credentials with read access, for observing and planning.
    #[serde(default)]
    pub plan: Option<Credentials>,
    /// The credentials with write access, for applying.
    #[serde(default)]
    pub apply: Option<Credentials>,
    /// The administrative credentials, for adding and removing nodes of a Citus cluster.
    #[serde(default)]
    pub admin: Option<Credentials>,
    /// The other environments that may use the same cluster.
    #[serde(default)]
    pub shared_with: Vec<String>,
}

/// The credentials of one use of a connection.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Credentials {
    /// Environment variables for the process.
    #[serde(default)]
    pub env: BTreeMap<String, EnvValue>,
    /// The path of a kubeconfig.
    #[serde(default)]
    pub kubeconfig_file: Option<PathBuf>,
    /// A file with a bearer token for the API server whose address is an output.
    #[serde(default)]
    pub token_file: Option<PathBuf>,
    /// A file with the address of a database: `postgresql://NAME:PASSWORD@HOST:PORT/DATABASE?sslmode=require`.
    #[serde(default)]
    pub url_file: Option<PathBuf>,
    /// A PEM file with the certificate authorities of a database; the system's authorities if it is not set.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// Use the cluster in which the daemon runs, with `tokenFile`, else with the service account of the pod.
    #[serde(default)]
    pub in_cluster: bool,
}

/// The value of a variable: a literal or the content of a file.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum EnvValue {
    /// A literal, such as a path, a region or a project.
    Text(String),
    /// The content of a file, without its last line end.
    File {
        /// The file.
        file: PathBuf,
    },
}

fn rights(apply: bool) -> Rights {
    if apply { Rights::Apply } else { Rights::Plan }
}

impl Config {
    /// Returns the credentials of a connection, and the other environments that may use it.
    fn connection(&self, id: &InstanceId, name: &str, rights: Rights) -> Result<(&Credentials, &[String]), String> {
        let environment: &EnvironmentName = &id.environment;
        let found = self
            .connections
            .get(environment.as_str())
            .and_then(|all| all.get(name))
            .or_else(|| self.connections.get("*").and_then(|all| all.get(name)));
        let connection = found.ok_or_else(|| format!("there is no connection `{name}` for `{environment}` in the configuration; add it under `connections.{environment}`"))?;
        let (word, credentials) = match rights {
            Rights::Plan => ("plan", &connection.plan),
            Rights::Apply => ("apply", &connection.apply),
            Rights::Admin => ("admin", &connection.admin),
        };
        let credentials = credentials
            .as_ref()
            .ok_or_else(|| format!("the connection `{name}` of `{environment}` has no `{word}` credentials"))?;
        Ok((credentials, &connection.shared_with))
    }

    /// Returns whether a connection leads to a cluster.
    pub fn is_cluster(&self, id: &InstanceId, name: &str, apply: bool) -> bool {
        let has = |credentials: &Credentials| {
            credentials.kubeconfig_file.is_some() || credentials.token_file.is_some() || credentials.in_cluster
        };
        self.connection(id, name, rights(apply)).is_ok_and(|(credentials, _)| has(credentials))
    }

    /// Returns the credentials for the cluster of a connection, and the other environments that may use it.
    ///
    /// # Errors
    /// When the connection, its credentials or a file is missing; the sentence names the missing part.
    pub fn access(
        &self,
        id: &InstanceId,
        name: &str,
        apply: bool,
        redactor: &Redactor,
    ) -> Result<(Access, Vec<String>), String> {
        let (credentials, shared) = self.connection(id, name, rights(apply))?;
        let fill =
            |path: &Path| PathBuf::from(path.display().to_string().replace("${environment}", id.environment.as_str()));
        let token = match &credentials.token_file {
            None => None,
            Some(path) => {
                let path = fill(path);
                let (environment, file) = (&id.environment, path.display());
                let message =
                    |error| format!("the connection `{name}` of `{environment}` needs the file `{file}`: {error}");
                let text = std::fs::read_to_string(&path).map_err(message)?;
                let token = text.trim().to_owned();
                redactor.learn(&Value::String(token.clone()));
                Some(token.into())
            }
        };
        let access = match (&credentials.kubeconfig_file, token, credentials.in_cluster) {
            (Some(path), None, false) => Access::Kubeconfig(fill(path)),
            (None, Some(token), false) => Access::Token(token),
            (None, token, true) => Access::InCluster(token),
            _ => {
                return Err(format!(
                    "the connection `{name}` of `{}` has to have one of `kubeconfigFile`, `tokenFile` and `inCluster`",
                    id.environment
                ));
            }
        };
        Ok((access, shared.to_vec()))
    }

    /// Returns the environment variables that a connection gives to a process.
    ///
    /// # Errors
    /// When the connection, its credentials or a file is missing; the sentence names the missing part.
    pub fn credentials(
        &self,
        id: &InstanceId,
        name: &str,
        apply: bool,
        redactor: &Redactor,
    ) -> Result<BTreeMap<String, SecretString>, String> {
        let environment: &EnvironmentName = &id.environment;
        let (credentials, _) = self.connection(id, name, rights(apply))?;
        let mut given = BTreeMap::new();
        for (variable, value) in &credentials.env {
            let fill = |text: &str| text.replace("${environment}", environment.as_str());
            let text = match value {
                EnvValue::Text(text) => fill(text),
                EnvValue::File { file } => {
                    let path = fill(&file.display().to_string());
                    let text = std::fs::read_to_string(&path).map_err(|error| {
                        format!("the connection `{name}` of `{environment}` needs the file `{path}`: {error}")
                    })?;
                    redactor.learn(&Value::String(text.clone()));
                    text.trim_end_matches('\n').to_owned()
                }
            };
            given.insert(variable.clone(), text.into());
        }
        Ok(given)
    }

    /// Returns whether a connection leads to a database, with these rights.
    pub fn is_database(&self, id: &InstanceId, name: &str, rights: Rights) -> bool {
        self.connection(id, name, rights).is_ok_and(|(credentials, _)| credentials.url_file.is_some())
    }

    /// Returns the credentials for the database of a connection.
    ///
    /// # Errors
    /// When the connection, its credentials or a file is missing; the sentence names the missing part.
    pub fn login(&self, id: &InstanceId, name: &str, rights: Rights, redactor: &Redactor) -> Result<Login, String> {
        let (credentials, shared) = self.connection(id, name, rights)?;
        let environment = &id.environment;
        let read = |path: &Path| {
            let path = path.display().to_string().replace("${environment}", environment.as_str());
            let message =
                |error| format!("the connection `{name}` of `{environment}` needs the file `{path}`: {error}");
            std::fs::read_to_string(&path).map_err(message)
        };
        let Some(path) = &credentials.url_file else {
            let word = rights.word();
            return Err(format!("the connection `{name}` of `{environment}` has no `urlFile` under `{word}`"));
        };
        let url = read(path)?;
        redactor.learn(&Value::String(url.trim().to_owned()));
        let authorities = credentials.ca_file.as_deref().map(read).transpose()?.map(String::into_bytes);
        Ok(Login { url: url.into(), authorities, shared_with: shared.to_vec() })
    }
}
