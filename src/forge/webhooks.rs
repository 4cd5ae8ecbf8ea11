//! Sends events to the receiver: signed, numbered, in order, with retries.

use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use serde_json::Value;
use sha2::Sha256;
use tokio::sync::mpsc;

use crate::forge::settings::Webhook;

/// The maximum number of attempts of a delivery.
const ATTEMPTS_MAX: u32 = 5;
/// The time limit of the receiver; GitHub allows ten seconds.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The maximum number of events that wait for a slow receiver. Later events are dropped, because a poll finds
/// their facts.
const QUEUE_MAX: usize = 10_000;

pub(super) struct Sender(Option<mpsc::Sender<(String, String, Vec<u8>)>>);

impl Sender {
    pub(super) fn new(webhook: Option<Webhook>) -> Self {
        let Some(webhook) = webhook else { return Self(None) };
        let (sender, receiver) = mpsc::channel(QUEUE_MAX);
        tokio::spawn(deliver(webhook, receiver));
        Self(Some(sender))
    }

    pub(super) fn send(&self, event: &str, payload: Value) {
        let Some(sender) = &self.0 else { return };
        let mut id = [0; 16];
        if getrandom::fill(&mut id).is_err() {
            return;
        }
        let text = hex::encode(id);
        let delivery = format!("{}-{}-{}-{}-{}", &text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..]);
        if sender.try_send((event.to_owned(), delivery, payload.to_string().into_bytes())).is_err() {
            tracing::warn!(kind = "event-dropped", event, "an event was dropped: too many wait");
        }
    }
}

/// Returns the signature of a body, as in `X-Hub-Signature-256`.
pub(super) fn signature(secret: &str, body: &[u8]) -> String {
    let mut mac = <Hmac<Sha256>>::new_from_slice(secret.as_bytes()).expect("HMAC takes a key of any length");
    mac.update(body);
    format!("sha256={}", hex::encode(mac.finalize().into_bytes()))
}

async fn deliver(webhook: Webhook, mut receiver: mpsc::Receiver<(String, String, Vec<u8>)>) {
    let Ok(client) = reqwest::Client::builder().timeout(TIMEOUT).redirect(reqwest::redirect::Policy::none()).build()
    else {
        return;
    };
    while let Some((event, delivery, body)) = receiver.recv().await {
        for attempt in 0..ATTEMPTS_MAX {
            let request = client
                .post(&webhook.url)
                .header("Content-Type", "application/json")
                .header("User-Agent", "GitHub-Hookshot/evenkeel")
                .header("X-GitHub-Event", &event)
                .header("X-GitHub-Delivery", &delivery)
                .header("X-Hub-Signature-256", signature(&webhook.secret, &body))
                .body(body.clone());
            match request.send().await {
                Ok(response) if response.status().is_success() => break,
                Ok(response) if response.status().is_client_error() => {
                    tracing::warn!(kind = "event-refused", event, status = %response.status(), "an event was refused");
                    break;
                }
                _ => tokio::time::sleep(Duration::from_millis(200 << attempt)).await,
            }
        }
    }
}
