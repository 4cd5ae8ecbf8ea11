//! Implements git over HTTP with rustls, because the vendored libgit2 has no TLS.
//!
//! Carries libgit2's smart protocol over reqwest, with a token if one is known for the address. *Invariant:* this
//! module never logs a token, never follows a redirect to another host with a token, and reads a bounded number
//! of bytes. Calls block, so they run only on blocking threads of a tokio runtime.

use std::{
    collections::HashMap,
    fmt,
    io::{self, Read, Write},
    sync::{Arc, Once, OnceLock},
    time::Duration,
};

use git2::transport::{Service, SmartSubtransport, SmartSubtransportStream, Transport};
use parking_lot::{Mutex, RwLock};
use secrecy::{ExposeSecret, SecretString};
use tokio::runtime::Handle;

/// The maximum size of a response; the first clone of a large repository is smaller.
const ANSWER_BYTES_MAX: u64 = 4 << 30;
/// The maximum wait for the next bytes of a response.
const READ_TIMEOUT: Duration = Duration::from_secs(120);
/// The maximum wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// Tokens by the prefix of an address. The whole process shares them, because libgit2's registry of transports is
/// global.
#[derive(Default)]
pub struct Tokens(RwLock<HashMap<String, SecretString>>);

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tokens(…)")
    }
}

impl Tokens {
    /// Returns the tokens of this process.
    pub fn global() -> &'static Self {
        static TOKENS: OnceLock<Tokens> = OnceLock::new();
        TOKENS.get_or_init(Self::default)
    }
    /// Uses a token for every address with a prefix.
    pub fn set(&self, url: &str, token: SecretString) {
        self.0.write().insert(url.trim_end_matches('/').to_owned(), token);
    }
    fn get(&self, url: &str) -> Option<SecretString> {
        let tokens = self.0.read();
        tokens
            .iter()
            .filter(|(prefix, _)| {
                url.strip_prefix(prefix.as_str())
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || rest.starts_with(".git"))
            })
            .max_by_key(|(prefix, _)| prefix.len())
            .map(|(_, token)| token.clone())
    }
}

/// Registers the transport for `http://` and `https://`, once for the process and before the first use of a
/// remote.
pub fn register() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for scheme in ["http", "https"] {
            #[expect(
                unsafe_code,
                reason = "libgit2's registry is global and unsynchronised; `Once` makes this its only writer"
            )]
            // SAFETY: this runs once, and every use of a remote in this crate happens after a call of this function.
            unsafe {
                git2::transport::register(scheme, |remote| Transport::smart(remote, true, Http { client: client()? }))
                    .expect("registering a new scheme can't fail");
            }
        }
    });
}

fn client() -> Result<reqwest::Client, git2::Error> {
    let same_host = reqwest::redirect::Policy::custom(|attempt| {
        let from = attempt.previous().last().and_then(|url| url.host_str().map(str::to_owned));
        if attempt.previous().len() > 5 || attempt.url().host_str().map(str::to_owned) != from {
            attempt.stop()
        } else {
            attempt.follow()
        }
    });
    reqwest::Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(READ_TIMEOUT)
        .redirect(same_host)
        .build()
        .map_err(|error| git2::Error::from_str(&crate::error_chain(&error)))
}

struct Http {
    client: reqwest::Client,
}

impl SmartSubtransport for Http {
    fn action(&self, url: &str, action: Service) -> Result<Box<dyn SmartSubtransportStream>, git2::Error> {
        let (get, path, service) = match action {
            Service::UploadPackLs => (true, "info/refs?service=git-upload-pack", "git-upload-pack"),
            Service::UploadPack => (false, "git-upload-pack", "git-upload-pack"),
            Service::ReceivePackLs => (true, "info/refs?service=git-receive-pack", "git-receive-pack"),
            Service::ReceivePack => (false, "git-receive-pack", "git-receive-pack"),
        };
        let target = format!("{}/{path}", url.trim_end_matches('/'));
        let mut request = if get { self.client.get(&target) } else { self.client.post(&target) };
        if !get {
            request = request
                .header("Content-Type", format!("application/x-{service}-request"))
                .header("Accept", format!("application/x-{service}-result"));
        }
        request = request.header("User-Agent", "git/2.0 (evenkeel)");
        if let Some(token) = Tokens::global().get(url) {
            request = request.basic_auth("x-access-token", Some(token.expose_secret()));
        }
        let handle = Handle::try_current().map_err(|_| git2::Error::from_str("git over HTTP needs a runtime"))?;
        Ok(Box::new(Stream { handle, state: Arc::new(Mutex::new(State::Request(Box::new(request), vec![]))) }))
    }

    fn close(&self) -> Result<(), git2::Error> {
        Ok(())
    }
}

struct Stream {
    handle: Handle,
    state: Arc<Mutex<State>>,
}

enum State {
    Request(Box<reqwest::RequestBuilder>, Vec<u8>),
    Answer { response: Box<reqwest::Response>, rest: Vec<u8>, at: usize, read: u64 },
    Over,
}

impl Stream {
    fn send(&self, request: reqwest::RequestBuilder, body: Vec<u8>) -> io::Result<reqwest::Response> {
        let request = if body.is_empty() { request } else { request.body(body) };
        let response = self
            .handle
            .block_on(request.send())
            .map_err(|error| io::Error::other(crate::error_chain(&error.without_url())))?;
        match response.status().as_u16() {
            200..=299 => Ok(response),
            401 | 403 => Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "the server refused the credentials; check the token and what it may do",
            )),
            404 => {
                Err(io::Error::new(io::ErrorKind::NotFound, "there is no such repository, or the token may not see it"))
            }
            status => Err(io::Error::other(format!("the server answered {status}"))),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut state = self.state.lock();
        loop {
            match std::mem::replace(&mut *state, State::Over) {
                State::Over => return Ok(0),
                State::Request(request, body) => {
                    let response = self.send(*request, body)?;
                    *state = State::Answer { response: Box::new(response), rest: vec![], at: 0, read: 0 };
                }
                State::Answer { mut response, rest, at, read } => {
                    if at < rest.len() {
                        let count = buffer.len().min(rest.len() - at);
                        buffer[..count].copy_from_slice(&rest[at..at + count]);
                        *state = State::Answer { response, rest, at: at + count, read };
                        return Ok(count);
                    }
                    let chunk = self
                        .handle
                        .block_on(response.chunk())
                        .map_err(|error| io::Error::other(crate::error_chain(&error.without_url())))?;
                    let Some(chunk) = chunk else { return Ok(0) };
                    let read = read + chunk.len() as u64;
                    if read > ANSWER_BYTES_MAX {
                        return Err(io::Error::other(format!("the answer is larger than {ANSWER_BYTES_MAX} bytes")));
                    }
                    *state = State::Answer { response, rest: chunk.to_vec(), at: 0, read };
                }
            }
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.state.lock();
        match &mut *state {
            State::Request(_, body) => body.extend_from_slice(bytes),
            State::Answer { .. } | State::Over => return Err(io::Error::other("written after the answer")),
        }
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
