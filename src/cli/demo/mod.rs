//! Runs `evenkeel demo`: a scripted session on this machine with real components.
//!
//! The components are the embedded forge, this program as the daemon, and OpenTofu with the test provider. All of
//! them use loopback addresses and one temporary folder.
//!
//! *Invariant:* the demo fails if a step does not succeed, and prints only observed results.

mod drifted;
mod killed;

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use clap::Args;
use serde_json::{Value, json};
use tokio::process::Child;

use super::{Done, Failure, output};
use crate::{
    adapters::git::{Mirror, Tokens},
    controller::Status,
    domain::{
        message::{plain, terminal::Colour},
        plan::Plan,
    },
    forge::{Forge, Settings},
    model::{PullNumber, Verdict},
    ports::Repository,
    targets::kubernetes::local::{ApiServer, free_port},
};

/// The time limit of one step; a step that takes longer fails the demo.
const STEP_TIMEOUT: Duration = Duration::from_secs(90);
/// The interval at which a condition is polled.
const POLL_EVERY: Duration = Duration::from_millis(50);

/// Demonstrate Evenkeel on this machine in about a minute.
#[derive(Args, Debug)]
pub(crate) struct Demo {
    /// The repository of the demo
    #[arg(long, value_name = "FOLDER", default_value = "demo")]
    from: PathBuf,
    /// Keep everything running until Ctrl-C
    #[arg(long)]
    keep: bool,
}

/// The processes and clients of the demo.
struct Stage {
    folder: tempfile::TempDir,
    forge: Forge,
    mirror: Mirror,
    cluster: ApiServer,
    api: String,
    token: String,
    http: reqwest::Client,
    colour: Colour,
    started: Instant,
    daemon: Child,
}

pub(super) async fn run(args: Demo) -> Done {
    let mut stage = Stage::set(&args.from).await?;
    let result = stage.tell().await;
    if let Err(failure) = &result {
        output::note(&format!("The story broke off: {}", failure.message));
        let log = std::fs::read_to_string(stage.folder.path().join("daemon.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        output::note(&lines[lines.len().saturating_sub(25)..].join("\n"));
    } else if args.keep {
        output::text(&format!(
            "\nEverything goes on: the forge at http://{}/, the API at {}. Ctrl-C ends it.",
            stage.forge.address, stage.api
        ));
        drop(tokio::signal::ctrl_c().await);
    }
    stage.end().await;
    result.map(|()| 0)
}

impl Stage {
    /// Starts the forge with a repository, and the daemon.
    async fn set(from: &Path) -> Result<Self, Failure> {
        let started = Instant::now();
        let colour = output::colour();
        let folder = tempfile::Builder::new().prefix("evenkeel-demo-").tempdir()?;
        let place = |name: &str| folder.path().join(name);
        let version = crate::targets::opentofu::version("tofu").await.map_err(|why| {
            Failure::new(why)
                .hint("`make demo` finds or builds it; by hand: `make tools`, then eval \"$(make -s env)\"")
        })?;
        let port = free_port()?;
        let settings: Settings = serde_json::from_value(json!({
            "owner": "demo", "repository": "infra",
            "users": [
                {"login": "evenkeel", "token": "token-of-evenkeel", "permission": "admin"},
                {"login": "lin", "token": "token-of-lin", "permission": "write"},
                {"login": "mira", "token": "token-of-mira", "permission": "write"},
            ],
            "teams": {"platform": ["lin"]},
            "webhook": {"url": format!("http://127.0.0.1:{port}/webhooks/github"), "secret": "secret-of-the-demo"},
        }))?;
        let from = from.canonicalize().map_err(|error| {
            Failure::new(format!("could not read `{}`: {error}", from.display()))
                .hint("run it in a checkout, or name the folder with --from")
        })?;
        crate::forge::seed(&from, &place("forge/repository.git"))?;
        let forge = Forge::start(place("forge"), settings, ([127, 0, 0, 1], 0).into()).await?;
        let url = format!("http://{}/demo/infra.git", forge.address);
        Tokens::global().set(&url, "token-of-lin".to_owned().into());
        let mirror = Mirror::open(&place("mirror.git"), &url)?;
        std::fs::create_dir_all(place("world"))?;
        std::fs::write(place("forge-token"), "token-of-evenkeel")?;
        std::fs::write(place("hook-secret"), "secret-of-the-demo")?;
        let cluster = ApiServer::start(&place("cluster"), None).map_err(|error| {
            Failure::new(format!("could not start an API server: {error}"))
                .hint("`make demo` builds it; by hand: `make tools`, then eval \"$(make -s env)\"")
        })?;
        cluster.ready().await?;
        std::fs::write(place("kubeconfig"), cluster.kubeconfig("admin"))?;
        let world = place("world").display().to_string();
        let config = configuration(folder.path(), &url, &forge, port);
        std::fs::write(place("evenkeel.yaml"), serde_json::to_string_pretty(&config)?)?;
        output::text(&format!(
            "{}\n  forge    http://{}/  (users lin of the platform team, mira, and the bot evenkeel)\n  daemon   http://127.0.0.1:{port}\n  world    {world}\n  tofu     {version}, with a provider that keeps files\n  cluster  {}, an API server without controllers\n",
            colour.dim("Everything is on this machine, in a folder that is removed at the end."),
            forge.address,
            cluster.address(),
        ));
        let daemon = crate::cli::serve::start(folder.path())?;
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(60)).build()?;
        Ok(Self {
            folder,
            forge,
            mirror,
            cluster,
            api: format!("http://127.0.0.1:{port}"),
            token: String::new(),
            http,
            colour,
            started,
            daemon,
        })
    }

    async fn end(mut self) {
        if let Some(id) =
            self.daemon.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw)
        {
            let _already_gone = rustix::process::kill_process(id, rustix::process::Signal::TERM);
        }
        if tokio::time::timeout(Duration::from_secs(30), self.daemon.wait()).await.is_err() {
            drop(self.daemon.kill().await);
        }
        self.forge.stop();
    }

    fn place(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn world(&self, name: &str) -> String {
        std::fs::read_to_string(self.place("world").join(name)).unwrap_or_default()
    }

    fn heading(&self, number: usize, text: &str) {
        output::text(&format!("\n{number}. {text}"));
    }

    fn told(&self, since: Instant, text: &str) {
        let seconds = since.elapsed().as_secs_f64();
        output::text(&format!("   {} {text} {}", self.colour.good("✓"), self.colour.dim(&format!("({seconds:.1} s)"))));
    }

    async fn get(&self, path: &str) -> Result<Value, Failure> {
        let answer = self.http.get(format!("{}{path}", self.api)).bearer_auth(&self.token).send().await?;
        Ok(answer.json().await?)
    }

    async fn post(&self, path: &str, body: &Value) -> Result<(u16, Value), Failure> {
        let answer = self.http.post(format!("{}{path}", self.api)).bearer_auth(&self.token).json(body).send().await?;
        Ok((answer.status().as_u16(), answer.json().await?))
    }

    /// Sends a request to the forge as a user.
    async fn as_user(
        &self,
        login: &str,
        method: reqwest::Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, Failure> {
        let mut request = self
            .http
            .request(method, format!("http://{}/repos/demo/infra/{path}", self.forge.address))
            .bearer_auth(format!("token-of-{login}"));
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().await?;
        let status = answer.status();
        let response: Value = answer.json().await?;
        if status.is_success() {
            Ok(response)
        } else {
            Err(Failure::new(format!("the forge refused {path}: {response}")))
        }
    }

    async fn status(&self) -> Result<Status, Failure> {
        Ok(serde_json::from_value(self.get("/api/v1/status").await?)?)
    }

    /// Waits until a condition holds.
    async fn until<T>(
        &self,
        what: &str,
        mut condition: impl AsyncFnMut(&Self) -> Result<Option<T>, Failure>,
    ) -> Result<T, Failure> {
        let since = Instant::now();
        loop {
            let mut last = None;
            match condition(self).await {
                Ok(Some(found)) => return Ok(found),
                Ok(None) => {}
                Err(failure) => last = Some(failure.message),
            }
            if since.elapsed() > STEP_TIMEOUT {
                return Err(Failure::new(format!(
                    "{what} did not come true within {} s{}",
                    STEP_TIMEOUT.as_secs(),
                    last.map(|message| format!(" ({message})")).unwrap_or_default()
                )));
            }
            tokio::time::sleep(POLL_EVERY).await;
        }
    }

    async fn verdict(&self, id: &str, verdict: Verdict) -> Result<(), Failure> {
        self.until(&format!("`{id}` {}", verdict.words()), async |stage| {
            let status = stage.status().await?;
            Ok(status
                .instances
                .iter()
                .any(|instance| instance.id.to_string() == id && instance.verdict == verdict)
                .then_some(()))
        })
        .await
    }

    async fn comments(&self, pull: PullNumber) -> Result<Vec<String>, Failure> {
        let all = self
            .as_user("lin", reqwest::Method::GET, &format!("issues/{}/comments?per_page=100", pull.0), None)
            .await?;
        Ok(all
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|comment| comment["body"].as_str().map(str::to_owned))
            .collect())
    }

    fn page(&self, pull: PullNumber) -> String {
        format!("http://{}/demo/infra/pull/{}", self.forge.address, pull.0)
    }

    async fn tell(&mut self) -> Result<(), Failure> {
        self.begin().await?;
        let drifted = self.drift().await?;
        self.edited().await?;
        let changed = self.change().await?;
        self.killed().await?;
        self.epilogue(drifted, changed).await
    }

    /// Step 1: `dev` applies automatically; `staging` waits for a command.
    async fn begin(&mut self) -> Result<(), Failure> {
        self.heading(1, "A repository, a forge, a daemon");
        let since = Instant::now();
        let path = self.place("data/api-token");
        self.token = self
            .until("the daemon's token", async |_| {
                Ok(std::fs::read_to_string(&path)
                    .ok()
                    .filter(|text| text.len() > 10)
                    .map(|text| text.trim().to_owned()))
            })
            .await?;
        self.until("the daemon's answer", async |stage| {
            Ok(stage
                .http
                .get(format!("{}/readyz", stage.api))
                .send()
                .await
                .is_ok_and(|answer| answer.status().is_success())
                .then_some(()))
        })
        .await?;
        self.told(since, "the daemon has read the state repo: 4 components in `dev` and `staging`");
        for name in ["network", "dns", "backend", "web"] {
            self.verdict(&format!("dev/{name}"), Verdict::InSync).await?;
        }
        self.told(since, "`dev` applied itself in dependency order: network, dns, backend, then the objects of web");
        expect(
            self.world("dev/dns/zone") == "gateway.dev.example. A 10.0.0.1",
            "dns in `dev` has the gateway that network gave out",
        )?;
        let since = Instant::now();
        let status = self.status().await?;
        expect(
            status
                .instances
                .iter()
                .filter(|i| i.environment.as_str() == "staging")
                .all(|i| i.verdict == Verdict::Pending),
            "`staging` waits",
        )?;
        let (_, plans) = self.post("/api/v1/plan", &json!({"selector": "staging"})).await?;
        let plans: Vec<Plan> = serde_json::from_value(plans)?;
        let digest = plans[0].digest.to_string();
        let (code, response) = self.post("/api/v1/apply", &json!({"selector": "staging", "digests": [digest]})).await?;
        expect(code == 200, &format!("`evenkeel apply staging` is taken: {response}"))?;
        for name in ["network", "dns", "backend", "web"] {
            self.verdict(&format!("staging/{name}"), Verdict::InSync).await?;
        }
        self.told(
            since,
            &format!(
                "`staging` waited, and `evenkeel apply staging` applied plan {}: {} resources",
                &digest[..6],
                plans[0].summary.create
            ),
        );
        Ok(())
    }

    /// Step 3: a pull request is planned and merged. `dev` follows, and `/apply` in `staging` is refused to mira and
    /// accepted from lin.
    async fn change(&self) -> Result<PullNumber, Failure> {
        self.heading(3, "A pull request changes a declaration");
        let since = Instant::now();
        let base =
            self.mirror.fetch("refs/heads/main").await?.ok_or_else(|| Failure::new("there is no main branch"))?;
        let path = "state-repo/components/apps.yaml";
        let files = self.mirror.files(&base).await?;
        let text = String::from_utf8_lossy(&crate::ports::Files::read(&*files, path)?)
            .replace("release: 1.4.1", "release: 1.4.2");
        self.mirror.push("release-1.4.2", &base, None, vec![(path.into(), Some(text))], "Release 1.4.2").await?;
        let made = self.as_user("lin", reqwest::Method::POST, "pulls", Some(&json!({"title": "Release 1.4.2", "head": "release-1.4.2", "base": "main", "body": "The backend of this week."}))).await?;
        let pull = PullNumber(made["number"].as_u64().unwrap_or_default());
        self.until("two plans", async |stage| {
            Ok((stage.comments(pull).await?.iter().filter(|body| body.starts_with("### Plan for")).count() == 2)
                .then_some(()))
        })
        .await?;
        self.told(since, &format!("planned by itself: {}", self.page(pull)));
        for body in self.comments(pull).await? {
            output::text(&format!(
                "       {}",
                body.lines().next().unwrap_or_default().trim_start_matches("### ").replace('`', "")
            ));
        }
        let since = Instant::now();
        self.as_user("lin", reqwest::Method::PUT, &format!("pulls/{}/merge", pull.0), Some(&json!({}))).await?;
        self.until("dev follows", async |stage| Ok((stage.world("dev/backend/release") == "1.4.2").then_some(())))
            .await?;
        self.verdict("dev/backend", Verdict::InSync).await?;
        self.told(since, "merged: `dev` follows by itself, from the merge to the changed file");
        self.verdict("staging/backend", Verdict::Pending).await?;
        expect(self.world("staging/backend/release") == "1.4.1", "`staging` still has 1.4.1")?;
        self.told(since, "`staging` waits");
        let since = Instant::now();
        self.say("mira", pull, "/apply staging").await?;
        let refusal = self.answer(pull, "@mira is not allowed").await?;
        self.told(
            since,
            &format!("mira says /apply staging: \"{}\"", plain(refusal.lines().next().unwrap_or_default())),
        );
        expect(self.world("staging/backend/release") == "1.4.1", "nothing was applied for mira")?;
        let since = Instant::now();
        // A command within seconds of a new plan must name the digest of the plan.
        let plan = self.answer(pull, "### Plan for `staging`").await?;
        let digest = plan.split("Digest `").nth(1).and_then(|rest| rest.split('`').next()).unwrap_or_default();
        let command = format!("/apply staging {digest}");
        self.say("lin", pull, &command).await?;
        self.until("staging follows", async |stage| {
            Ok((stage.world("staging/backend/release") == "1.4.2").then_some(()))
        })
        .await?;
        let applied = self.answer(pull, "### Applied · `staging`").await?;
        self.told(
            since,
            &format!(
                "lin says {command}: {}",
                applied.lines().next().unwrap_or_default().trim_start_matches("### ").replace('`', "")
            ),
        );
        Ok(pull)
    }

    async fn say(&self, login: &str, pull: PullNumber, text: &str) -> Result<(), Failure> {
        self.as_user(login, reqwest::Method::POST, &format!("issues/{}/comments", pull.0), Some(&json!({"body": text})))
            .await
            .map(drop)
    }

    async fn answer(&self, pull: PullNumber, begins: &str) -> Result<String, Failure> {
        self.until(&format!("an answer that begins with `{begins}`"), async |stage| {
            Ok(stage.comments(pull).await?.into_iter().find(|body| body.starts_with(begins)))
        })
        .await
    }

    /// The end: all instances are in sync; prints the durations.
    async fn epilogue(&self, drifted: PullNumber, changed: PullNumber) -> Result<(), Failure> {
        self.heading(5, "Everything is in sync");
        self.until("everything in sync", async |stage| {
            Ok((stage.status().await?.verdict == Verdict::InSync).then_some(()))
        })
        .await?;
        output::text(&indent(&crate::cli::status::lines(&self.status().await?)));
        let runs = self.get("/api/v1/runs").await?;
        let rows: Vec<Vec<String>> = runs
            .as_array()
            .into_iter()
            .flatten()
            .rev()
            .map(|run| {
                let text = |name: &str| plain(run[name].as_str().unwrap_or_default());
                let because = text("because").split("](").next().unwrap_or_default().trim_start_matches('[').to_owned();
                vec![
                    format!("run {}", run["id"]),
                    text("environment"),
                    match run["instances"].as_object().map_or(0, serde_json::Map::len) {
                        1 => "1 instance".into(),
                        count => format!("{count} instances"),
                    },
                    because,
                ]
            })
            .collect();
        output::text(&indent(&output::table(&rows)));
        let log = self.world(".world-log");
        let writes = log.lines().count();
        expect(writes == 12 + 1 + 2 + 2, &format!("the world was written 17 times, and never twice: {writes}"))?;
        let memory = std::fs::read_to_string(format!("/proc/{}/status", self.daemon.id().unwrap_or_default()))
            .unwrap_or_default();
        let memory =
            memory.lines().find_map(|line| line.strip_prefix("VmRSS:")).map_or("unknown", str::trim).to_owned();
        let size = |name: &str| std::fs::metadata(self.place(name)).map_or(0, |known| known.len());
        let store = (size("data/evenkeel.db") + size("data/evenkeel.db-wal")) / 1024;
        output::text(&indent(&format!(
            "{} and {}\n{writes} writes to the world, none twice · daemon {memory} · store {store} KiB · {:.1} s in all\n",
            self.page(drifted),
            self.page(changed),
            self.started.elapsed().as_secs_f64()
        )));
        Ok(())
    }
}

/// Returns the configuration of the daemon: one simulated world and one cluster for both environments.
fn configuration(folder: &Path, url: &str, forge: &Forge, port: u16) -> Value {
    let place = |name: &str| folder.join(name);
    let kubeconfig = json!({"kubeconfigFile": place("kubeconfig")});
    let access = |other: &str| json!({"sharedWith": [other], "plan": kubeconfig, "apply": kubeconfig});
    let world = place("world").display().to_string();
    json!({
        "repository": {"url": url, "poll": "5s"},
        "github": {"baseUrl": format!("http://{}", forge.address), "tokenFile": place("forge-token"), "webhookSecretFile": place("hook-secret")},
        "data": place("data"),
        "listen": format!("127.0.0.1:{port}"),
        "connections": {
            "*": {"world": {"plan": {"env": {"WORLD_ROOT": world, "WORLD_READONLY": "1"}}, "apply": {"env": {"WORLD_ROOT": world}}}},
            "dev": {"cluster": access("staging")},
            "staging": {"cluster": access("dev")},
        },
    })
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("   {line}\n")).collect()
}

fn expect(holds: bool, what: &str) -> Result<(), Failure> {
    if holds { Ok(()) } else { Err(Failure::new(format!("it is not true that {what}"))) }
}
