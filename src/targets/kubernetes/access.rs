//! Resolves the endpoint and credentials of a Kubernetes API server.
//!
//! Owns the conversion from a configured connection to a client.
//! *Invariant:* credentials come from the daemon's configuration alone. An output may supply an address and a
//! certificate, never a program to run, a file to read or a plaintext endpoint.

use crate::targets::kubernetes::work::KubernetesWork;
use std::{path::PathBuf, time::Duration};

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use secrecy::SecretString;

use crate::{
    model::Retry,
    ports::{TargetError, TargetErrorKind},
};

/// The path of the cluster's CA certificate in a pod.
const CLUSTER_AUTHORITY: &str = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt";

/// The credentials for an API server.
#[derive(Clone, Debug)]
pub enum Access {
    /// The cluster and user of a kubeconfig file on this machine.
    Kubeconfig(PathBuf),
    /// A bearer token, for an address that an output supplies.
    Token(SecretString),
    /// The cluster that the daemon runs in, with a bearer token or else the pod's service account.
    InCluster(Option<SecretString>),
}

/// Builds a client for the server of a connection. Sends no request.
pub(super) async fn client(access: &Access, work: &KubernetesWork) -> Result<Client, TargetError> {
    let failed = |why: String| TargetError {
        retry: Retry::WhenInputChanges,
        ..TargetError::new(TargetErrorKind::Connection, format!("the connection can't be used: {why}"))
    };
    let mut config = match access {
        Access::Kubeconfig(path) => {
            let read = Kubeconfig::read_from(path).map_err(|error| failed(format!("`{}`: {error}", path.display())))?;
            let options = KubeConfigOptions::default();
            Config::from_custom_kubeconfig(read, &options).await.map_err(|error| failed(error.to_string()))?
        }
        Access::Token(token) => {
            let server = work.server.as_ref().ok_or_else(|| failed("it has a token and no `server`".into()))?;
            let mut config = Config::new(address(server).map_err(failed)?);
            config.auth_info.token = Some(token.clone());
            config
        }
        Access::InCluster(None) => Config::incluster().map_err(|error| failed(error.to_string()))?,
        Access::InCluster(Some(token)) => {
            let variable = |name: &str| {
                std::env::var(name).map_err(|_| failed(format!("`{name}` is not set; this runs in no cluster")))
            };
            let (host, port) = (variable("KUBERNETES_SERVICE_HOST")?, variable("KUBERNETES_SERVICE_PORT")?);
            let host = if host.contains(':') { format!("[{host}]") } else { host };
            let mut config = Config::new(address(&format!("https://{host}:{port}")).map_err(failed)?);
            config.root_cert_file = Some(CLUSTER_AUTHORITY.into());
            config.auth_info.token = Some(token.clone());
            config
        }
    };
    if let (Some(server), Access::Kubeconfig(_)) = (&work.server, access) {
        config.cluster_url = address(server).map_err(failed)?;
    }
    if let Some(authority) = &work.certificate_authority {
        config.root_cert = Some(certificates(authority).map_err(failed)?);
        (config.root_cert_file, config.accept_invalid_certs) = (None, false);
    }
    if let Some(account) = &work.impersonate {
        let (namespace, name) = account.split_once('/').unwrap_or(("default", account));
        config.auth_info.impersonate = Some(format!("system:serviceaccount:{namespace}:{name}"));
    }
    // The client decides itself which requests to retry, and follows the server's `Retry-After`.
    config.default_retry = false;
    config.connect_timeout = Some(Duration::from_secs(5));
    Client::try_from(config).map_err(|error| failed(error.to_string()))
}

/// Parses an address from an output. Rejects any other content.
fn address(text: &str) -> Result<http::Uri, String> {
    let whole = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
    let uri: http::Uri = whole.parse().map_err(|error| format!("`server: {text}` is no address: {error}"))?;
    let local = uri.host().is_some_and(|host| host == "127.0.0.1" || host == "localhost" || host == "[::1]");
    match uri.scheme_str() {
        Some("https") => Ok(uri),
        Some("http") if local => Ok(uri),
        _ => Err(format!("`server: {text}` has to be `https://`; credentials are not sent in the open")),
    }
}

/// Parses certificates from an output: PEM or base64 of PEM, never a file name.
fn certificates(text: &str) -> Result<Vec<Vec<u8>>, String> {
    use base64::Engine as _;
    let wrong = || "`certificateAuthority` is neither PEM nor base64 of it".to_owned();
    let pem = if text.contains("-----BEGIN") {
        text.to_owned()
    } else {
        let plain: String = text.split_whitespace().collect();
        let bytes = base64::engine::general_purpose::STANDARD.decode(plain).map_err(|_| wrong())?;
        String::from_utf8(bytes).map_err(|_| wrong())?
    };
    let mut found = vec![];
    for part in pem.split("-----BEGIN CERTIFICATE-----").skip(1) {
        let inner: String = part.split("-----END").next().unwrap_or_default().split_whitespace().collect();
        found.push(base64::engine::general_purpose::STANDARD.decode(inner).map_err(|_| wrong())?);
    }
    if found.is_empty() { Err(wrong()) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_gives_an_address_and_nothing_else() {
        assert!(address("https://10.0.0.1:6443").is_ok() && address("10.0.0.1").is_ok());
        assert!(address("http://127.0.0.1:8080").is_ok());
        assert!(address("http://10.0.0.1").unwrap_err().contains("has to be `https://`"));
        assert!(address("file:///etc/passwd").is_err());
        assert!(certificates("/etc/ssl/ca.pem").is_err() && certificates("").is_err());
        assert_eq!(
            certificates("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----").unwrap(),
            [vec![0, 0, 0]]
        );
    }
}
