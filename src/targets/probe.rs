//! Checks whether an endpoint responds, by HTTP or TCP.
//!
//! *Invariant:* never follows a redirect and never reads a body. A check that can't be made is a failed check.

use std::time::Duration;

use async_trait::async_trait;

use crate::ports::Probe;

/// The [`Probe`] that uses the network of this machine.
pub struct Network;

#[async_trait]
impl Probe for Network {
    async fn probe(&self, http: Option<&str>, tcp: Option<&str>, timeout: Duration) -> Result<(), String> {
        probe(http, tcp, timeout).await
    }
}

/// Checks that an HTTP address or a TCP `host:port` responds. Retries until the timeout, since a service may still be
/// starting.
///
/// # Errors
/// A one-line message that explains why the endpoint did not respond.
pub async fn probe(http: Option<&str>, tcp: Option<&str>, timeout: Duration) -> Result<(), String> {
    let started = tokio::time::Instant::now();
    let mut wait = Duration::from_millis(100);
    loop {
        let remaining = timeout.saturating_sub(started.elapsed());
        let why = match tokio::time::timeout(remaining, attempt(http, tcp)).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(why)) => why,
            Err(_) => "no answer".to_owned(),
        };
        if started.elapsed() + wait >= timeout {
            return Err(format!("{why} within {} s", timeout.as_secs()));
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(Duration::from_secs(5));
    }
}

async fn attempt(http: Option<&str>, tcp: Option<&str>) -> Result<(), String> {
    if let Some(address) = tcp {
        return tokio::net::TcpStream::connect(address)
            .await
            .map(drop)
            .map_err(|error| format!("`{address}` did not answer: {error}"));
    }
    let Some(url) = http else { return Err("the check names no address".into()) };
    let client = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .map_err(|error| error.to_string())?;
    let response =
        client.get(url).send().await.map_err(|error| format!("`{url}` did not answer: {}", error.without_url()))?;
    match response.status().as_u16() {
        200..=399 => Ok(()),
        status => Err(format!("`{url}` answered {status}")),
    }
}
