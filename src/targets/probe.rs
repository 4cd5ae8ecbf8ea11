//! Whether something answers, by HTTP or TCP.
//!
//! Never follows a redirect and never reads a body. A check that can't be made is a check that failed.

use std::time::Duration;

use async_trait::async_trait;

use crate::ports::Probe;

/// The network.
pub struct Network;

#[async_trait]
impl Probe for Network {
    async fn probe(&self, http: Option<&str>, tcp: Option<&str>, timeout: Duration) -> Result<(), String> {
        probe(http, tcp, timeout).await
    }
}

/// Asks an address or `host:port` whether it answers; tries until the time is over, for what is still starting.
///
/// # Errors
/// In one line, why it did not answer.
pub async fn probe(http: Option<&str>, tcp: Option<&str>, timeout: Duration) -> Result<(), String> {
    let started = tokio::time::Instant::now();
    let mut wait = Duration::from_millis(100);
    loop {
        let left = timeout.saturating_sub(started.elapsed());
        let why = match tokio::time::timeout(left, attempt(http, tcp)).await {
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
