//! Runs a local Kubernetes API server: etcd and kube-apiserver on loopback, in one folder.
//!
//! Starts no controllers: work of a controller, such as starting pods, does not happen.

use std::{
    fs,
    io::{Error, ErrorKind},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};

use aws_lc_rs::{
    encoding::{AsDer, Pkcs8V1Der},
    rsa::{KeyPair, KeySize},
};
use base64::Engine as _;

/// The first port and the number of ports: below the ephemeral ports of the system.
const FIRST_PORT: u16 = 20_000;
const PORTS: u16 = 12_000;
/// The time limit for the server to become ready.
const START_TIME_MAX: Duration = Duration::from_secs(60);

/// The users of the server with their groups. The token is `token-of-NAME`.
const USERS: [(&str, &str); 2] = [("admin", "system:masters"), ("noor", "system:masters")];

/// A running API server; it stops when it is dropped.
pub struct ApiServer {
    folder: PathBuf,
    etcd: Option<Child>,
    server: Option<Child>,
    etcd_port: u16,
    /// The port on loopback.
    pub port: u16,
}

/// Returns an unused port, each only once in this process. The port is outside the ephemeral range of the system, so
/// that it is still free when the caller binds it.
///
/// # Errors
/// When all ports are taken.
pub fn free_port() -> std::io::Result<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let begin = u16::try_from(std::process::id() % 1000).unwrap_or(0) * 12;
    for _ in 0..PORTS {
        let at = begin.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % PORTS;
        if std::net::TcpListener::bind(("127.0.0.1", FIRST_PORT + at)).is_ok() {
            return Ok(FIRST_PORT + at);
        }
    }
    Err(Error::new(ErrorKind::AddrInUse, "every port is taken"))
}

/// Returns a key for the tokens of service accounts, as PEM.
fn new_key() -> std::io::Result<String> {
    let made = KeyPair::generate(KeySize::Rsa2048).and_then(|pair| AsDer::<Pkcs8V1Der<'static>>::as_der(&pair));
    let made = made.map_err(|_| Error::other("could not make a key"))?;
    let text = base64::engine::general_purpose::STANDARD.encode(made.as_ref());
    Ok(format!("-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n"))
}

impl ApiServer {
    /// Starts etcd and the API server in a folder, with the programs on `PATH`. They accept requests once
    /// [`ApiServer::is_ready`] returns true.
    ///
    /// # Errors
    /// When a program is missing or the folder can't be written.
    pub fn start(folder: &Path, path: Option<&str>) -> std::io::Result<Self> {
        fs::create_dir_all(folder)?;
        fs::write(folder.join("service-accounts.key"), new_key()?)?;
        let tokens: String =
            USERS.iter().map(|(name, groups)| format!("token-of-{name},{name},{name},\"{groups}\"\n")).collect();
        fs::write(folder.join("tokens.csv"), tokens)?;
        let mut all =
            Self { folder: folder.to_owned(), etcd: None, server: None, etcd_port: free_port()?, port: free_port()? };
        all.start_etcd(path)?;
        all.start_server(path)?;
        Ok(all)
    }

    fn command(&self, name: &str, path: Option<&str>) -> std::io::Result<Command> {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.folder.join(format!("{name}.log")))?;
        let mut command = Command::new(name);
        if let Some(path) = path {
            let found = std::env::split_paths(path).map(|folder| folder.join(name)).find(|program| program.is_file());
            command = Command::new(found.ok_or_else(|| {
                Error::new(ErrorKind::NotFound, format!("`{name}` is not there; `make tools` builds it"))
            })?);
        }
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(command)
    }

    /// Starts etcd if it was stopped.
    ///
    /// # Errors
    /// When the program is missing.
    pub fn start_etcd(&mut self, path: Option<&str>) -> std::io::Result<()> {
        let (client, peer) =
            (format!("http://127.0.0.1:{}", self.etcd_port), format!("http://127.0.0.1:{}", free_port()?));
        let mut command = self.command("etcd", path)?;
        command
            .args(["--unsafe-no-fsync", "--log-level=error", "--name=one"])
            .arg(format!("--data-dir={}", self.folder.join("etcd").display()))
            .args([format!("--listen-client-urls={client}"), format!("--advertise-client-urls={client}")])
            .args([format!("--listen-peer-urls={peer}"), format!("--initial-advertise-peer-urls={peer}")])
            .arg(format!("--initial-cluster=one={peer}"));
        self.etcd = Some(command.spawn()?);
        Ok(())
    }

    /// Starts the API server if it was stopped.
    ///
    /// # Errors
    /// When the program is missing.
    pub fn start_server(&mut self, path: Option<&str>) -> std::io::Result<()> {
        let place = |name: &str| self.folder.join(name).display().to_string();
        let mut command = self.command("kube-apiserver", path)?;
        command
            .arg(format!("--etcd-servers=http://127.0.0.1:{}", self.etcd_port))
            .args(["--bind-address=127.0.0.1", "--authorization-mode=RBAC", "--service-cluster-ip-range=10.0.0.0/12"])
            .args([format!("--secure-port={}", self.port), format!("--cert-dir={}", place("certificates"))])
            .args(["--disable-admission-plugins=ServiceAccount", "--service-account-issuer=https://127.0.0.1"])
            .arg(format!("--service-account-key-file={}", place("service-accounts.key")))
            .arg(format!("--service-account-signing-key-file={}", place("service-accounts.key")))
            .arg(format!("--token-auth-file={}", place("tokens.csv")))
            .arg("--max-requests-inflight=800");
        self.server = Some(command.spawn()?);
        Ok(())
    }

    /// Stops etcd.
    pub fn stop_etcd(&mut self) {
        end(&mut self.etcd);
    }

    /// Stops the API server.
    pub fn stop_server(&mut self) {
        end(&mut self.server);
    }

    /// Returns the path of the server's self-signed certificate.
    pub fn certificate(&self) -> PathBuf {
        self.folder.join("certificates/apiserver.crt")
    }

    /// Returns the URL of the server.
    pub fn address(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// Returns a kubeconfig for a user.
    pub fn kubeconfig(&self, user: &str) -> String {
        let config = serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "local",
            "clusters": [{"name": "local", "cluster": {"server": self.address(), "certificate-authority": self.certificate()}}],
            "users": [{"name": user, "user": {"token": format!("token-of-{user}")}}],
            "contexts": [{"name": "local", "context": {"cluster": "local", "user": user}}],
        });
        config.to_string()
    }

    /// Waits until the server is ready and has created its own objects.
    ///
    /// # Errors
    /// When the server does not become ready, with the end of its log.
    pub async fn ready(&self) -> std::io::Result<()> {
        let since = Instant::now();
        loop {
            if self.is_ready().await {
                return Ok(());
            }
            if since.elapsed() > START_TIME_MAX {
                let log = fs::read_to_string(self.folder.join("kube-apiserver.log")).unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                let end = lines[lines.len().saturating_sub(5)..].join("\n");
                return Err(Error::new(ErrorKind::TimedOut, format!("the API server does not answer:\n{end}")));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Whether the server is ready and has created its own objects.
    pub async fn is_ready(&self) -> bool {
        let Some(client) = self.client("admin").await else { return false };
        for path in ["/readyz", "/api/v1/namespaces/kube-system", "/api/v1/namespaces/default"] {
            let Ok(request) = http::Request::get(path).body(vec![]) else { return false };
            if client.request_text(request).await.is_err() {
                return false;
            }
        }
        true
    }

    /// Returns a client of the server for a user.
    pub async fn client(&self, user: &str) -> Option<kube::Client> {
        let config = kube::config::Kubeconfig::from_yaml(&self.kubeconfig(user)).ok()?;
        let mut config = kube::Config::from_custom_kubeconfig(config, &Default::default()).await.ok()?;
        config.default_retry = false;
        kube::Client::try_from(config).ok()
    }
}

fn end(child: &mut Option<Child>) {
    if let Some(mut child) = child.take() {
        drop(child.kill());
        drop(child.wait());
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.stop_server();
        self.stop_etcd();
    }
}
