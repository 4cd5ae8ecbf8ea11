//! Reads the daemon's configuration: `evenkeel.yaml`, with each key also as `EVENKEEL_…`.
//!
//! Decides the locations of all resources and the credentials of each connection. *Invariant:* a secret comes
//! from a file or the environment, never from the text of the configuration and never from the state repo.

mod connections;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
};

pub use connections::{Connection, Credentials, EnvValue};
use serde::Deserialize;
use serde_json::Value;

use crate::model::Duration;

/// The name of the configuration file, searched for from the working directory upwards.
pub const FILE_NAME: &str = "evenkeel.yaml";

/// The whole configuration.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// The state repo.
    pub repository: Repository,
    /// The forge. Without a forge, the daemon opens no pull requests and reads no comments.
    #[serde(default)]
    pub github: Option<GitHub>,
    /// The folder of the daemon's data, accessible to its owner alone.
    pub data: PathBuf,
    /// The kind of store; only `sqlite`.
    #[serde(default = "sqlite")]
    pub store: String,
    /// The address on which the API listens.
    #[serde(default = "listen")]
    pub listen: SocketAddr,
    /// The duration of the lease: how long an unresponsive daemon blocks another one from taking over.
    #[serde(default = "lease")]
    pub lease: Duration,
    /// Connections by environment and name; `"*"` stands for all environments.
    #[serde(default)]
    pub connections: BTreeMap<String, BTreeMap<String, Connection>>,
    /// The tofu program.
    #[serde(default)]
    pub tofu: Tofu,
    /// The programs that render Kubernetes objects.
    #[serde(default)]
    pub kubernetes: Kubernetes,
    /// Tokens of the API by name.
    #[serde(default)]
    pub tokens: BTreeMap<String, Token>,
    /// The settings of the logs.
    #[serde(default)]
    pub telemetry: Telemetry,
}

fn sqlite() -> String {
    "sqlite".into()
}

fn listen() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 7654))
}

fn lease() -> Duration {
    Duration::seconds(120)
}

/// The state repo.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Repository {
    /// The address: a path, `file://`, `http://` or `https://`.
    pub url: String,
    /// The branch from which the daemon applies.
    #[serde(default = "main_branch")]
    pub branch: String,
    /// The folder of the declarations, relative to the root of the repository.
    #[serde(default = "state_repo")]
    pub path: String,
    /// The interval at which the daemon polls the repository.
    #[serde(default = "poll")]
    pub poll: Duration,
}

fn main_branch() -> String {
    "main".into()
}
fn state_repo() -> String {
    "state-repo".into()
}
fn poll() -> Duration {
    Duration::seconds(60)
}

/// The forge.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GitHub {
    /// The address of the REST API.
    #[serde(default = "github_api")]
    pub base_url: String,
    /// A GitHub App.
    #[serde(default)]
    pub app: Option<App>,
    /// A file with a token; alternatively `EVENKEEL_GITHUB_TOKEN`.
    #[serde(default)]
    pub token_file: Option<PathBuf>,
    /// A file with the secret of the webhooks.
    #[serde(default)]
    pub webhook_secret_file: Option<PathBuf>,
    /// `owner/name` on the forge, if the repository's address does not contain it.
    #[serde(default)]
    pub repository: Option<String>,
}

fn github_api() -> String {
    "https://api.github.com".into()
}

/// A GitHub App.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct App {
    /// The id of the app.
    pub id: u64,
    /// The file of its private key.
    pub private_key_file: PathBuf,
}

/// The tofu program.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Tofu {
    /// A name on the `PATH`, or a path.
    pub binary: String,
    /// Where tofu runs; only `local`.
    pub runner: String,
    /// The limit of concurrent processes.
    pub parallel: usize,
    /// The folder of the provider cache; below `data` if it is not set.
    pub provider_cache: Option<PathBuf>,
    /// The time limit of one process.
    pub timeout: Duration,
    /// The time for which a process waits for the state lock.
    pub lock_timeout: Duration,
}

impl Default for Tofu {
    fn default() -> Self {
        Self {
            binary: "tofu".into(),
            runner: "local".into(),
            parallel: 4,
            provider_cache: None,
            timeout: Duration::seconds(3600),
            lock_timeout: Duration::seconds(30),
        }
    }
}

/// The programs that render Kubernetes objects.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Kubernetes {
    /// A name on the `PATH`, or a path.
    pub kustomize: String,
    /// A name on the `PATH`, or a path.
    pub helm: String,
    /// The limit of instances that are observed concurrently.
    pub parallel: usize,
}

impl Default for Kubernetes {
    fn default() -> Self {
        Self { kustomize: "kustomize".into(), helm: "helm".into(), parallel: 8 }
    }
}

/// A token of the API.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Token {
    /// The file that contains the token.
    pub file: PathBuf,
}

/// The settings of the logs.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Telemetry {
    /// The level: `error`, `warn`, `info`, `debug`, or a filter such as `evenkeel=debug,info`.
    pub log: String,
    /// The format: `text` or `json`.
    pub format: String,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self { log: "info".into(), format: "text".into() }
    }
}

/// A configuration that is not usable.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file can't be read.
    #[error("could not read the configuration `{path}`: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// The content is invalid.
    #[error("the configuration `{path}` is wrong: {why}")]
    Text {
        /// The file.
        path: PathBuf,
        /// The problem, with its position.
        why: String,
    },
}

/// The keys that an environment variable can set.
const KEYS: [&[&str]; 20] = [
    &["repository", "url"],
    &["repository", "branch"],
    &["repository", "path"],
    &["repository", "poll"],
    &["github", "baseUrl"],
    &["github", "app", "id"],
    &["github", "app", "privateKeyFile"],
    &["github", "tokenFile"],
    &["github", "webhookSecretFile"],
    &["github", "repository"],
    &["data"],
    &["store"],
    &["listen"],
    &["tofu", "binary"],
    &["tofu", "runner"],
    &["tofu", "parallel"],
    &["tofu", "providerCache"],
    &["tofu", "timeout"],
    &["tofu", "lockTimeout"],
    &["telemetry", "log"],
];

fn variable(path: &[&str]) -> String {
    let mut name = "EVENKEEL".to_owned();
    for part in path {
        name.push('_');
        for c in part.chars() {
            if c.is_ascii_uppercase() {
                name.push('_');
            }
            name.push(c.to_ascii_uppercase());
        }
    }
    name
}

impl Config {
    /// Reads a configuration and applies the environment variables over it.
    ///
    /// # Errors
    /// When the file can't be read or is invalid.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
        Self::parse(path, &text, &|name| std::env::var(name).ok())
    }

    fn parse(path: &Path, text: &str, environment: &dyn Fn(&str) -> Option<String>) -> Result<Self, Error> {
        let wrong = |why: String| Error::Text { path: path.to_owned(), why };
        let (nodes, problems) =
            crate::domain::declaration::node::read(&path.display().to_string().into(), text.as_bytes());
        if let Some(problem) = problems.first() {
            return Err(wrong(problem.to_string()));
        }
        let mut value = nodes
            .first()
            .map_or(Value::Object(serde_json::Map::new()), crate::domain::declaration::node::Node::to_json);
        for keys in KEYS {
            if let Some(found) = environment(&variable(keys)) {
                let mut place = &mut value;
                for key in keys {
                    if !place.is_object() {
                        *place = Value::Object(serde_json::Map::new());
                    }
                    place = &mut place[*key];
                }
                *place = found.parse::<u64>().map_or(Value::String(found), Value::from);
            }
        }
        for later in ["pubsub", "notifications"] {
            if value.get(later).is_some_and(|v| !v.is_null()) {
                return Err(wrong(format!("`{later}` is not supported yet; remove it")));
            }
        }
        // The message of serde is precise about values; saphyr finds the first error of the text with its position.
        let mut config: Self = match serde_json::from_value(value) {
            Ok(config) => config,
            Err(error) => {
                let placed = serde_saphyr::from_str::<Self>(text).err().map(|error| error.to_string());
                return Err(wrong(placed.unwrap_or_else(|| error.to_string())));
            }
        };
        if config.store != "sqlite" {
            return Err(wrong(format!("`store: {}` is not supported yet; `sqlite` is", config.store)));
        }
        if config.tofu.runner != "local" {
            return Err(wrong(format!("`tofu.runner: {}` is not supported yet; `local` is", config.tofu.runner)));
        }
        if let Some(folder) = path.parent() {
            // Relative paths are relative to the configuration file, not to the working directory.
            let base = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
            config.data = base.join(&config.data);
            if !config.repository.url.contains("://") {
                config.repository.url = base.join(&config.repository.url).display().to_string();
            }
        }
        Ok(config)
    }

    /// Returns the nearest configuration file in a folder or above it.
    pub fn nearest(folder: &Path) -> Option<PathBuf> {
        folder.ancestors().map(|folder| folder.join(FILE_NAME)).find(|path| path.is_file())
    }

    /// Returns the folder of the repository, if it is on this machine.
    pub fn local_repository(&self) -> Option<PathBuf> {
        let url = &self.repository.url;
        url.strip_prefix("file://").map(PathBuf::from).or_else(|| (!url.contains("://")).then(|| PathBuf::from(url)))
    }

    /// Returns `owner` and `name` of the repository on the forge.
    ///
    /// # Errors
    /// When neither the address nor `github.repository` contains them.
    pub fn forge_repository(&self) -> Result<(String, String), String> {
        let named = self.github.as_ref().and_then(|github| github.repository.clone());
        let text =
            named.unwrap_or_else(|| self.repository.url.trim_end_matches('/').trim_end_matches(".git").to_owned());
        let mut parts = text.rsplit('/');
        match (parts.next(), parts.next()) {
            (Some(name), Some(owner)) if !name.is_empty() && !owner.is_empty() => {
                Ok((owner.to_owned(), name.to_owned()))
            }
            _ => Err(format!(
                "`{}` does not say owner and name; set `github.repository: owner/name`",
                self.repository.url
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config, String> {
        Config::parse(Path::new("/etc/evenkeel.yaml"), text, &|name| {
            (name == "EVENKEEL_GITHUB_BASE_URL").then(|| "http://forge".into())
        })
        .map_err(|error| error.to_string())
    }

    #[test]
    fn reads_with_defaults_and_the_environment_over_it() {
        let config = read("repository: {url: /srv/repo.git}\ndata: data\ngithub: {tokenFile: /t}").unwrap();
        assert_eq!(config.data, PathBuf::from("/etc/data"));
        assert_eq!(config.github.as_ref().unwrap().base_url, "http://forge");
        assert_eq!(config.local_repository(), Some("/srv/repo.git".into()));
        assert_eq!(config.tofu.parallel, 4);
    }

    #[test]
    fn says_what_is_wrong() {
        assert!(
            read("repository: {url: x}\ndata: d\npubsub: {project: p}")
                .unwrap_err()
                .contains("`pubsub` is not supported yet")
        );
        assert!(read("repository: {url: x}\ndata: d\nstore: postgres://x").unwrap_err().contains("not supported yet"));
        let unknown = read("repository: {url: x}\ndata: d\nlisten_on: y").unwrap_err();
        assert!(unknown.contains("listen_on"), "{unknown}");
    }
}
