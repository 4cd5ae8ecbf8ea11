//! Calls the daemon's API on behalf of the commands.

use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::{Failure, Global};
use crate::config::Config;

/// The time limit for a response from recorded state.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// The time limit for a response that needs an observation of the targets.
const LOOK_TIMEOUT: Duration = Duration::from_secs(2 * 3600);

/// The client of a daemon.
pub(crate) struct Client {
    base: String,
    token: Option<SecretString>,
    http: reqwest::Client,
}

/// Reads the configuration, if there is one.
pub(crate) fn config(global: &Global) -> Result<Option<Config>, Failure> {
    let path = match &global.config {
        Some(path) => Some(path.clone()),
        None => std::env::current_dir().ok().and_then(|folder| Config::nearest(&folder)),
    };
    path.map(|path| Config::read(&path).map_err(Failure::from)).transpose()
}

impl Client {
    /// Creates a client for the daemon that the command line, the environment or the configuration names.
    pub(crate) fn new(global: &Global) -> Result<Self, Failure> {
        let config = config(global)?;
        let base = match (&global.server, &config) {
            (Some(server), _) => server.trim_end_matches('/').to_owned(),
            (None, Some(config)) => format!("http://{}", config.listen),
            (None, None) => "http://127.0.0.1:7654".into(),
        };
        if !reqwest::Url::parse(&base).is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host()) {
            let message = format!("`{base}` is not the address of a daemon");
            return Err(Failure {
                code: 64,
                ..Failure::new(message).hint("an address is such as `http://127.0.0.1:7654`")
            });
        }
        let from_file = config.as_ref().and_then(|config| std::fs::read_to_string(config.data.join("api-token")).ok());
        let token =
            std::env::var("EVENKEEL_TOKEN").ok().or(from_file).map(|token| SecretString::from(token.trim().to_owned()));
        let http = reqwest::Client::builder()
            .no_proxy()
            .connect_timeout(Duration::from_secs(3))
            .build()
            .map_err(Failure::from)?;
        Ok(Self { base, token, http })
    }

    /// Returns whether the daemon responds.
    pub(crate) async fn answers(&self) -> bool {
        self.http
            .get(format!("{}/healthz", self.base))
            .timeout(Duration::from_secs(3))
            .send()
            .await
            .is_ok_and(|answer| answer.status().is_success())
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.send(self.http.get(format!("{}{path}", self.base)).timeout(READ_TIMEOUT)).await
    }

    pub(crate) async fn post<B: Serialize, T: DeserializeOwned>(&self, path: &str, body: &B) -> Result<T, Failure> {
        self.send(self.http.post(format!("{}{path}", self.base)).timeout(LOOK_TIMEOUT).json(body)).await
    }

    async fn send<T: DeserializeOwned>(&self, request: reqwest::RequestBuilder) -> Result<T, Failure> {
        let request = match &self.token {
            Some(token) => request.bearer_auth(token.expose_secret()),
            None => request,
        };
        let answer = request.send().await.map_err(|error| {
            let failure = Failure::new(format!(
                "no daemon answers at {}: {}",
                self.base,
                crate::error_chain(&error.without_url())
            ));
            failure.hint("start it with `evenkeel serve`, or name it with --server or EVENKEEL_SERVER")
        })?;
        let status = answer.status();
        let text = answer.text().await.map_err(|error| Failure::new(error.without_url().to_string()))?;
        if status.is_success() {
            return serde_json::from_str(&text).map_err(|error| {
                Failure::new(format!("the daemon's answer could not be read: {error}"))
                    .hint("is it of another version?")
            });
        }
        let body: Value = serde_json::from_str(&text).unwrap_or_default();
        let message = body["error"]["message"]
            .as_str()
            .map_or_else(|| format!("the daemon answered {status}: {text}"), str::to_owned);
        let failure = Failure::new(message);
        Err(if status.as_u16() == 401 {
            failure.hint(
                "run it as the owner of the daemon's data, name the configuration with --config, or set EVENKEEL_TOKEN",
            )
        } else {
            failure
        })
    }
}
