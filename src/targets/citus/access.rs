//! Opens sessions with a coordinator, and classifies its warnings and errors.
//!
//! *Invariant:* certificates are verified on every TLS connection, a session without a response within the time limit
//! is closed, and no message contains an address, which includes a password.

use std::{
    future::poll_fn,
    sync::{Arc, OnceLock},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio_postgres::{AsyncMessage, Client, Config, Row, types::ToSql};

use crate::{
    model::{Backoff, InstanceId, Redactor, Retry},
    ports::{TargetError, TargetErrorKind},
};

/// The time limit for connecting to a coordinator.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(15);
/// The time limit for a response.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(30);

/// The rights of a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rights {
    /// Reads the cluster.
    Plan,
    /// Owns the tables.
    Apply,
    /// Adds and removes nodes.
    Admin,
}

impl Rights {
    /// Returns the name of the rights in the configuration.
    pub fn word(self) -> &'static str {
        match self {
            Self::Plan => "plan",
            Self::Apply => "apply",
            Self::Admin => "admin",
        }
    }
}

/// The credentials for a coordinator: an address with user and password, and the accepted certificate authorities.
#[derive(Clone, Debug)]
pub struct Login {
    /// `postgresql://…`.
    pub url: secrecy::SecretString,
    /// Certificate authorities as PEM; those of this machine if `None`.
    pub authorities: Option<Vec<u8>>,
    /// The other environments that may use the same cluster.
    pub shared_with: Vec<String>,
}

/// Returns the credentials by (instance, connection, rights).
pub type Logins = Arc<dyn Fn(&InstanceId, &str, Rights) -> Result<Login, String> + Send + Sync>;

/// A session; it ends when it is dropped.
pub(super) struct Session {
    client: Client,
    warnings: Arc<Mutex<Vec<String>>>,
    redactor: Redactor,
    reader: JoinHandle<()>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

fn roots(authorities: Option<&[u8]>) -> Result<rustls::RootCertStore, String> {
    use rustls::pki_types::{CertificateDer, pem::PemObject};
    let mut roots = rustls::RootCertStore::empty();
    let Some(pem) = authorities else {
        // The certificates of the machine are hundreds of files, and each observation and each move opens a session.
        static OF_MACHINE: OnceLock<rustls::RootCertStore> = OnceLock::new();
        let read = || {
            let mut roots = rustls::RootCertStore::empty();
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            roots
        };
        return Ok(OF_MACHINE.get_or_init(read).clone());
    };
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| format!("`caFile` is no PEM: {error}"))?;
        roots.add(certificate).map_err(|error| format!("`caFile` holds no certificate: {error}"))?;
    }
    if roots.is_empty() { Err("`caFile` holds no certificate".into()) } else { Ok(roots) }
}

impl Session {
    /// Opens a session with an application name, which `pg_stat_activity` shows.
    pub(super) async fn open(login: &Login, name: &str, redactor: &Redactor) -> Result<Self, TargetError> {
        use secrecy::ExposeSecret;
        let wrong = |why: String| TargetError {
            retry: Retry::WhenInputChanges,
            ..TargetError::new(TargetErrorKind::Connection, format!("the connection can't be used: {why}"))
        };
        // The error of the parser may quote the text, which contains a password.
        let mut config: Config = (login.url.expose_secret().trim().parse())
            .map_err(|_| wrong("its file holds no `postgresql://…` address".into()))?;
        if let Some(password) = config.get_password() {
            redactor.learn(&String::from_utf8_lossy(password).as_ref().into());
        }
        config.application_name(name).connect_timeout(CONNECT_TIME_MAX).keepalives_idle(Duration::from_secs(30));
        let tls = rustls::ClientConfig::builder()
            .with_root_certificates(roots(login.authorities.as_deref()).map_err(wrong)?)
            .with_no_client_auth();
        let connect = config.connect(tokio_postgres_rustls::MakeRustlsConnect::new(tls));
        let opened = tokio::time::timeout(CONNECT_TIME_MAX * 2, connect).await;
        let silent = || TargetError::new(TargetErrorKind::Unreachable, "the coordinator did not answer");
        let (client, mut connection) =
            opened.map_err(|_| silent())?.map_err(|error| session_error(&error, redactor))?;
        let warnings = Arc::<Mutex<Vec<String>>>::default();
        let notices = Arc::clone(&warnings);
        let reader = tokio::spawn(async move {
            while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
                if let AsyncMessage::Notice(notice) = message
                    && notice.severity() == "WARNING"
                {
                    notices.lock().push(notice.message().to_owned());
                }
            }
        });
        let this = Self { client, warnings, redactor: redactor.clone(), reader };
        // The server releases the locks of a dead client within this time.
        this.run("SET tcp_keepalives_idle TO 30; SET tcp_keepalives_interval TO 10; SET tcp_keepalives_count TO 3; SET client_connection_check_interval TO '10s'").await?;
        Ok(this)
    }

    /// Returns the rows of a query.
    pub(super) async fn rows(&self, sql: &str, with: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, TargetError> {
        within(self.client.query(sql, with), &self.redactor).await
    }

    /// Returns the row of a query with exactly one row.
    pub(super) async fn row(&self, sql: &str, with: &[&(dyn ToSql + Sync)]) -> Result<Row, TargetError> {
        within(self.client.query_one(sql, with), &self.redactor).await
    }

    /// Executes a statement without a result and without a time limit.
    pub(super) async fn run(&self, sql: &str) -> Result<(), TargetError> {
        self.client.batch_execute(sql).await.map_err(|error| session_error(&error, &self.redactor))
    }

    /// Returns the warnings of the server since the last call.
    pub(super) fn warnings(&self) -> Vec<String> {
        std::mem::take(&mut *self.warnings.lock())
    }

    /// Whether the connection is closed.
    pub(super) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }
}

/// Waits for a response within the time limit.
async fn within<T>(
    asked: impl Future<Output = Result<T, tokio_postgres::Error>>,
    redactor: &Redactor,
) -> Result<T, TargetError> {
    match tokio::time::timeout(ANSWER_TIME_MAX, asked).await {
        Ok(answer) => answer.map_err(|error| session_error(&error, redactor)),
        Err(_) => {
            let seconds = ANSWER_TIME_MAX.as_secs();
            Err(TargetError::new(
                TargetErrorKind::Unreachable,
                format!("the coordinator did not answer within {seconds} s"),
            ))
        }
    }
}

/// Quotes an identifier.
pub(super) fn name(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

/// Quotes a literal.
pub(super) fn text(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// Converts an error of a session. `kind` is the class of the SQLSTATE, if there is one.
fn session_error(error: &tokio_postgres::Error, redactor: &Redactor) -> TargetError {
    let Some(server) = error.as_db_error() else {
        let why = redactor.redact(&crate::error_chain(error));
        return TargetError::new(TargetErrorKind::Unreachable, format!("the coordinator can't be reached: {why}"));
    };
    let mut text = server.message().to_owned();
    for more in [server.detail(), server.hint()].into_iter().flatten() {
        text = format!("{text}; {more}");
    }
    let text = redactor.redact(&text.split_whitespace().collect::<Vec<_>>().join(" "));
    let code = server.code().code();
    let (kind, retry) = match (&code[..2], code) {
        // The server is starting, stopping, or out of connections.
        ("08", _) | (_, "57P01" | "57P02" | "57P03" | "53300") => {
            (TargetErrorKind::Unreachable, Retry::After(Backoff::REMOTE))
        }
        // An operator may rotate the password in the database before the daemon's file.
        ("28", _) => (TargetErrorKind::Credentials, Retry::After(Backoff::REMOTE)),
        // The statement was cancelled or timed out, a disk is full, or another session holds a lock.
        ("40" | "53" | "55" | "57" | "58", _) => (TargetErrorKind::Conflict, Retry::After(Backoff::REMOTE)),
        _ => (TargetErrorKind::Refused, Retry::WhenInputChanges),
    };
    TargetError { retry, ..TargetError::new(kind, format!("{text} ({code})")) }
}
