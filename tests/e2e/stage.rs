//! Provides a forge, a daemon and a world on loopback, with real OpenTofu; stopped with the test.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use evenkeel::{
    controller::{InstanceStatus, Status},
    forge::{Forge, Settings, seed},
    model::Verdict,
    targets::kubernetes::local::free_port,
};
use serde_json::{Value, json};

/// The time limit of any condition. A loaded machine is slow; a test that waits longer has failed.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);

/// Returns the programs of `tools/`, by the variables of `tools/tools env`.
pub(crate) fn tools() -> &'static BTreeMap<String, String> {
    static TOOLS: OnceLock<BTreeMap<String, String>> = OnceLock::new();
    TOOLS.get_or_init(|| {
        drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
        let build = Command::new("tools/tools").arg("build").status().expect("tools/tools runs");
        assert!(build.success(), "tools/tools could not provide the programs");
        let output = Command::new("tools/tools").arg("env").output().expect("tools/tools runs");
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines()
            .filter_map(|line| line.strip_prefix("export ")?.split_once('='))
            .map(|(name, value)| {
                (name.to_owned(), value.trim_matches('"').replace("$PATH", &std::env::var("PATH").unwrap()))
            })
            .collect()
    })
}

pub(crate) const STATE_REPO: &str = r#"apiVersion: evenkeel.dev/v1alpha1
kind: StateRepo
metadata: { name: test }
spec:
  teams: { platform: { github: acme/platform } }
  permissions:
    - { allow: [plan, drift, help], to: ["permission:write"] }
    - { allow: [apply], to: ["team:platform"] }
  defaults: { drift: { every: 1h } }
"#;

pub(crate) fn environment(name: &str, spec: &str) -> (String, String) {
    (
        format!("state-repo/environments/{name}.yaml"),
        format!(
            "apiVersion: evenkeel.dev/v1alpha1\nkind: Environment\nmetadata: {{ name: {name} }}\nspec: {{ {spec} }}\n"
        ),
    )
}

pub(crate) fn component(name: &str, environments: &str, tofu: &str, more: &str) -> (String, String) {
    let text = format!(
        "apiVersion: evenkeel.dev/v1alpha1\nkind: Component\nmetadata: {{ name: {name} }}\nspec:\n  environments: [{environments}]\n  tofu: {{ connection: world, {tofu} }}\n{more}"
    );
    (format!("state-repo/components/{name}.yaml"), text)
}

/// Returns a root module; each line `path = expression` becomes one file of the world.
pub(crate) fn module(name: &str, files: &str) -> (String, String) {
    let text = format!(
        "terraform {{\n  required_providers {{\n    world = {{ source = \"evenkeel/world\" }}\n  }}\n}}\n{files}\n"
    );
    (format!("tf/{name}/main.tf"), text)
}

pub(crate) struct Stage {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) forge: Forge,
    pub(crate) port: u16,
    daemon: Option<Child>,
    http: reqwest::Client,
    /// Additional keys of the configuration.
    pub(crate) config: Value,
    /// The git work tree of the test.
    work: PathBuf,
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.kill();
        self.forge.stop();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.folder.path().join("daemon.log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("--- the daemon's log ends so:\n{}", lines[lines.len().saturating_sub(40)..].join("\n"));
        }
    }
}

impl Stage {
    /// Starts a forge with a repository of these files, and no daemon yet.
    pub(crate) async fn new(files: &[(String, String)]) -> Self {
        Self::with_app(files, Value::Null).await
    }

    /// The same, with an App installed on the repository.
    pub(crate) async fn with_app(files: &[(String, String)], app: Value) -> Self {
        tools();
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name);
        let seeded = place("seed");
        write(&seeded, &[("state-repo/staterepo.yaml".to_owned(), STATE_REPO.to_owned())]);
        write(&seeded, files);
        seed(&seeded, &place("forge/repository.git")).unwrap();
        let port = free_port().unwrap();
        let settings: Settings = serde_json::from_value(json!({
            "owner": "acme", "repository": "infra",
            "users": [{"login": "evenkeel", "token": "t-evenkeel", "permission": "admin"}, {"login": "lin", "token": "t-lin", "permission": "write"}, {"login": "mira", "token": "t-mira", "permission": "write"}, {"login": "guest", "token": "t-guest", "permission": "read"}],
            "teams": {"platform": ["lin"]}, "app": app,
            "webhook": {"url": format!("http://127.0.0.1:{port}/webhooks/github"), "secret": "hook"},
        }))
        .unwrap();
        let forge = Forge::start(place("forge"), settings, ([127, 0, 0, 1], 0).into()).await.unwrap();
        std::fs::create_dir_all(place("world")).unwrap();
        std::fs::write(place("token"), "t-evenkeel").unwrap();
        std::fs::write(place("hook"), "hook").unwrap();
        let world = place("world").display().to_string();
        let config = json!({
            "repository": {"url": format!("http://{}/acme/infra.git", forge.address), "poll": "1h"},
            "github": {"baseUrl": format!("http://{}", forge.address), "tokenFile": place("token"), "webhookSecretFile": place("hook")},
            "data": place("data"), "listen": format!("127.0.0.1:{port}"), "telemetry": {"log": "evenkeel=debug,info"},
            "connections": {"*": {"world": {"plan": {"env": {"WORLD_ROOT": world, "WORLD_READONLY": "1"}}, "apply": {"env": {"WORLD_ROOT": world}}}}},
        });
        let work = place("checkout");
        let http = reqwest::Client::builder().no_proxy().timeout(LIMIT).build().unwrap();
        let stage = Self { folder, forge, port, daemon: None, http, config, work };
        stage.git(None, &["clone", "-q", &stage.git_url("lin"), stage.work.to_str().unwrap()]);
        stage
    }

    /// The same, with the daemon running.
    pub(crate) async fn start(files: &[(String, String)]) -> Self {
        let mut stage = Self::new(files).await;
        stage.serve();
        stage.ready().await;
        stage
    }

    fn git_url(&self, user: &str) -> String {
        format!("http://{user}:t-{user}@{}/acme/infra.git", self.forge.address)
    }

    pub(crate) fn place(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Returns a command of the program, with the configuration and the tools available.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        std::fs::write(self.place("evenkeel.yaml"), serde_json::to_string(&self.config).unwrap()).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_evenkeel"));
        command.args(arguments).arg("--config").arg(self.place("evenkeel.yaml")).envs(tools()).stdin(Stdio::null());
        command
    }

    /// Runs a command; returns its exit code, stdout and stderr.
    pub(crate) fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        // End a daemon that should refuse and does not, so that the test fails rather than hangs.
        let mut limited = Command::new("timeout");
        let command = self.command(arguments);
        limited.arg("60").arg(command.get_program()).args(command.get_args()).stdin(Stdio::null());
        limited.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let output = limited.output().unwrap();
        (
            output.status.code().unwrap_or(-1),
            String::from_utf8_lossy(&output.stdout).into_owned(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    }

    /// Starts the daemon.
    pub(crate) fn serve(&mut self) {
        self.serve_with(&[]);
    }

    /// Starts the daemon with additional environment variables.
    pub(crate) fn serve_with(&mut self, environment: &[(&str, &Path)]) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.place("daemon.log")).unwrap();
        self.daemon = Some(
            self.command(&["serve"])
                .envs(environment.iter().copied())
                .stdout(Stdio::null())
                .stderr(log)
                .spawn()
                .unwrap(),
        );
    }

    /// Starts another daemon on the same data, with its own port and log.
    pub(crate) fn serve_another(&self) -> (std::process::Child, u16) {
        let port = free_port().unwrap();
        let mut config = self.config.clone();
        config["listen"] = json!(format!("127.0.0.1:{port}"));
        std::fs::write(self.place("another.yaml"), config.to_string()).unwrap();
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.place("another.log")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_evenkeel"));
        command.arg("serve").arg("--config").arg(self.place("another.yaml")).envs(tools()).stdin(Stdio::null());
        (command.stdout(Stdio::null()).stderr(log).spawn().unwrap(), port)
    }

    /// Sends a signal to the daemon.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.daemon.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap().success());
    }

    /// Returns the processes of this machine whose command line belongs to this stage.
    pub(crate) fn processes(&self, with: &str) -> Vec<(i32, String)> {
        let folder = self.folder.path().display().to_string();
        let all = std::fs::read_dir("/proc").unwrap().flatten();
        let mut found: Vec<(i32, String)> = all
            .filter_map(|entry| {
                let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
                let line = std::fs::read(entry.path().join("cmdline")).ok()?;
                let line = String::from_utf8_lossy(&line).replace('\0', " ");
                let cwd = std::fs::read_link(entry.path().join("cwd")).unwrap_or_default();
                let ours = line.contains(&folder) || cwd.starts_with(&folder);
                (ours && !line.is_empty() && line.contains(with)).then_some((pid, line))
            })
            .collect();
        found.sort();
        found
    }

    /// Sends SIGKILL to the daemon.
    pub(crate) fn kill(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            drop(daemon.kill());
            drop(daemon.wait());
        }
    }

    /// Waits until the daemon exits.
    pub(crate) fn wait(&mut self) -> i32 {
        self.daemon.take().unwrap().wait().unwrap().code().unwrap_or(-1)
    }

    /// Returns the log of the daemon.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.place("daemon.log")).unwrap_or_default()
    }

    /// Sends SIGTERM and waits until the daemon exits.
    pub(crate) fn stop(&mut self) -> i32 {
        let mut daemon = self.daemon.take().unwrap();
        drop(Command::new("kill").arg(daemon.id().to_string()).status());
        daemon.wait().unwrap().code().unwrap_or(-1)
    }

    pub(crate) async fn ready(&self) {
        self.until("the daemon is ready", async || {
            self.http
                .get(format!("http://127.0.0.1:{}/readyz", self.port))
                .send()
                .await
                .is_ok_and(|answer| answer.status().is_success())
                .then_some(())
        })
        .await;
    }

    /// Waits until a condition holds.
    pub(crate) async fn until<T>(&self, what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
        let since = Instant::now();
        loop {
            if let Some(found) = condition().await {
                return found;
            }
            assert!(since.elapsed() < LIMIT, "{what} did not come true within {LIMIT:?}");
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        let answer = self.http.get(format!("http://127.0.0.1:{}{path}", self.port)).send().await;
        match answer {
            Ok(answer) => answer.json().await.unwrap_or_default(),
            Err(_) => Value::Null,
        }
    }

    pub(crate) async fn status(&self) -> Option<Status> {
        serde_json::from_value(self.get("/api/v1/status").await).ok()
    }

    pub(crate) async fn instance(&self, id: &str) -> Option<InstanceStatus> {
        self.status().await?.instances.into_iter().find(|instance| instance.id.to_string() == id)
    }

    /// Waits until an instance has a verdict, and returns its status.
    pub(crate) async fn verdict(&self, id: &str, verdict: Verdict) -> InstanceStatus {
        let last = std::sync::Mutex::new(String::new());
        let since = Instant::now();
        loop {
            if let Some(instance) = self.instance(id).await {
                if instance.verdict == verdict {
                    return instance;
                }
                *last.lock().unwrap() = format!("{:?}: {}", instance.verdict, instance.message());
            }
            assert!(since.elapsed() < LIMIT, "`{id}` is not {verdict:?} but {}", last.lock().unwrap());
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }

    pub(crate) fn world(&self, path: &str) -> String {
        std::fs::read_to_string(self.place("world").join(path)).unwrap_or_default()
    }

    /// Returns the changes of the world, in order, as `operation path`.
    pub(crate) fn writes(&self) -> Vec<String> {
        self.world(".world-log")
            .lines()
            .filter_map(|line| line.split_once(' ').map(|(_, rest)| rest.to_owned()))
            .collect()
    }

    fn git(&self, folder: Option<&Path>, arguments: &[&str]) {
        let mut command = Command::new("git");
        if let Some(folder) = folder {
            command.arg("-C").arg(folder);
        }
        let output = command
            .args(["-c", "user.name=lin", "-c", "user.email=lin@localhost", "-c", "init.defaultBranch=main"])
            .args(arguments)
            .env("GIT_TERMINAL_PROMPT", "0")
            .output()
            .unwrap();
        assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Commits files (an empty text removes one) on top of main and pushes them as a branch.
    pub(crate) fn push(&self, branch: &str, files: &[(String, String)]) {
        let work = Some(self.work.as_path());
        self.git(work, &["fetch", "-q", "origin"]);
        self.git(work, &["checkout", "-q", "-B", branch, "origin/main"]);
        self.commit(branch, files);
    }

    /// Commits files on top of main without the forge, which therefore sends no event.
    pub(crate) fn push_unheard(&self, files: &[(String, String)]) {
        let work = Some(self.work.as_path());
        self.git(work, &["fetch", "-q", "origin"]);
        self.git(work, &["checkout", "-q", "-B", "main", "origin/main"]);
        write(&self.work, files);
        self.git(work, &["commit", "-q", "-am", "Unheard"]);
        let place = self.place("forge/repository.git");
        self.git(work, &["push", "-q", place.to_str().unwrap(), "main:main"]);
    }

    /// Commits files on top of a branch of the forge and pushes it.
    pub(crate) fn push_on(&self, branch: &str, files: &[(String, String)]) {
        let work = Some(self.work.as_path());
        self.git(work, &["fetch", "-q", "origin"]);
        self.git(work, &["checkout", "-q", "-B", branch, &format!("origin/{branch}")]);
        self.commit(branch, files);
    }

    fn commit(&self, branch: &str, files: &[(String, String)]) {
        let work = Some(self.work.as_path());
        for (path, text) in files {
            if text.is_empty() {
                std::fs::remove_file(self.work.join(path)).unwrap();
            }
        }
        write(&self.work, &files.iter().filter(|(_, text)| !text.is_empty()).cloned().collect::<Vec<_>>());
        self.git(work, &["add", "-A"]);
        self.git(work, &["commit", "-q", "-m", &format!("Change on {branch}")]);
        self.git(work, &["push", "-q", "origin", &format!("{branch}:{branch}")]);
    }

    /// Sends a request to the forge as a user.
    pub(crate) async fn forge(&self, user: &str, method: reqwest::Method, path: &str, body: Value) -> (u16, Value) {
        let answer = self
            .http
            .request(method, format!("http://{}/repos/acme/infra/{path}", self.forge.address))
            .bearer_auth(format!("t-{user}"))
            .json(&body)
            .send()
            .await
            .unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap_or_default())
    }

    /// Opens a pull request from a branch with these files.
    pub(crate) async fn pull(&self, branch: &str, files: &[(String, String)]) -> u64 {
        self.push(branch, files);
        let (status, pull) = self
            .forge("lin", reqwest::Method::POST, "pulls", json!({"title": branch, "head": branch, "base": "main"}))
            .await;
        assert_eq!(status, 201, "{pull}");
        pull["number"].as_u64().unwrap()
    }

    pub(crate) async fn merge(&self, user: &str, pull: u64) {
        let (status, answer) = self.forge(user, reqwest::Method::PUT, &format!("pulls/{pull}/merge"), json!({})).await;
        assert_eq!(status, 200, "{answer}");
    }

    pub(crate) async fn say(&self, user: &str, pull: u64, text: &str) {
        let (status, answer) =
            self.forge(user, reqwest::Method::POST, &format!("issues/{pull}/comments"), json!({"body": text})).await;
        assert_eq!(status, 201, "{answer}");
    }

    /// Applies the newest plan by its digest, because a command within seconds must name the digest (R6.3).
    pub(crate) async fn say_apply(&self, user: &str, pull: u64, environment: &str) {
        let plans = format!("### Plan for `{environment}`");
        let all = self.comments(pull).await;
        let plan = all.iter().rev().find(|body| body.starts_with(&plans)).expect("a plan stands");
        let digest = plan.split("Digest `").nth(1).and_then(|rest| rest.split('`').next()).expect("with its digest");
        self.say(user, pull, &format!("/apply {environment} {digest}")).await;
    }

    pub(crate) async fn comments(&self, pull: u64) -> Vec<String> {
        let (_, all) =
            self.forge("lin", reqwest::Method::GET, &format!("issues/{pull}/comments?per_page=100"), Value::Null).await;
        all.as_array()
            .into_iter()
            .flatten()
            .filter(|comment| comment["user"]["login"] == "evenkeel")
            .filter_map(|comment| comment["body"].as_str().map(str::to_owned))
            .collect()
    }

    /// Waits for a comment of the daemon that contains a text.
    pub(crate) async fn comment(&self, pull: u64, with: &str) -> String {
        let since = Instant::now();
        loop {
            let all = self.comments(pull).await;
            if let Some(found) = all.iter().find(|body| body.contains(with)) {
                return found.clone();
            }
            assert!(since.elapsed() < LIMIT, "no comment with `{with}`; there are: {all:#?}");
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }

    /// Waits until a status of a pull request's head has a state.
    pub(crate) async fn check(&self, pull: u64, context: &str, state: &str) -> String {
        let (_, known) = self.forge("lin", reqwest::Method::GET, &format!("pulls/{pull}"), Value::Null).await;
        let sha = known["head"]["sha"].as_str().unwrap().to_owned();
        self.until(&format!("{context} {state}"), async || {
            let (_, all) = self.forge("lin", reqwest::Method::GET, &format!("commits/{sha}/status"), Value::Null).await;
            let found = all["statuses"]
                .as_array()?
                .iter()
                .find(|status| status["context"] == context && status["state"] == state)?
                .clone();
            found["description"].as_str().map(str::to_owned)
        })
        .await
    }

    /// Waits for an open pull request of the daemon.
    pub(crate) async fn proposal(&self) -> Value {
        self.until("a remediation pull request", async || {
            let (_, open) = self.forge("lin", reqwest::Method::GET, "pulls?state=open", Value::Null).await;
            open.as_array()?
                .iter()
                .find(|pull| pull["head"]["ref"].as_str().is_some_and(|branch| branch.starts_with("evenkeel/")))
                .cloned()
        })
        .await
    }

    /// Runs a drift check now.
    pub(crate) fn drift(&self, selector: &str) -> (i32, String, String) {
        self.run(&["drift", selector])
    }

    pub(crate) fn http(&self) -> &reqwest::Client {
        &self.http
    }
}

fn write(folder: &Path, files: &[(String, String)]) {
    for (path, text) in files {
        let place = folder.join(path);
        std::fs::create_dir_all(place.parent().unwrap()).unwrap();
        std::fs::write(place, text).unwrap();
    }
}
