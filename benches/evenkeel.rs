//! Measures the figures of `docs/performance.md`, each with its bound, in one run on one machine.
//!
//! Prints a table and writes `bench-results/evenkeel.json`. All processes use loopback addresses and are stopped
//! at the end.
#![allow(
    missing_docs,
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a bench is a program for people"
)]

mod citus;
mod kubernetes;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use evenkeel::{
    adapters::{git::Mirror, store::Store},
    domain::{
        declaration::{Loader, schema::Limits},
        message,
        plan::{InstancePlan, Plan, Protection, mark_drifted, mark_protected, order, validation},
        remediation::{self, Drifted},
    },
    forge::{Forge, Settings, seed},
    model::{Change, EnvironmentName, Field, InstanceId, ResourceChange},
    ports::{Observation, Repository},
    targets::{kubernetes::local::free_port, opentofu},
};
use serde_json::{Value, json};

const MODULES: usize = 20;
const ROUNDS: usize = 5;
const MERGES: usize = 20;

struct Row {
    what: &'static str,
    found: String,
    bound: String,
}

fn main() {
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let rows = runtime.block_on(async {
        println!("{:<66} {:>18}   bound", "figure", "median");
        // An argument selects one part: `cargo bench --bench evenkeel -- twenty`.
        let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
        let asked = |name: &str| words.is_empty() || words.iter().any(|word| word == name);
        let mut rows = vec![];
        if asked("loading") {
            rows.extend(told(loading().await));
        }
        if asked("minds") {
            rows.extend(told(minds()));
        }
        if asked("idle") {
            rows.extend(told(start_and_idle().await));
        }
        if asked("merge") {
            rows.extend(told(merge_to_tofu().await));
        }
        if asked("twenty") {
            rows.extend(told(twenty_modules().await));
        }
        if asked("journal") {
            rows.extend(told(journal().await));
        }
        if asked("recovery") {
            rows.extend(told(recovery().await));
        }
        if asked("kubernetes") {
            rows.extend(told(kubernetes::rows().await));
        }
        if asked("many") {
            rows.extend(told(kubernetes::many::rows().await));
        }
        if asked("layout") {
            rows.extend(told(citus::observation::rows().await));
        }
        if asked("planner") {
            rows.extend(told(citus::rows()));
        }
        if asked("fairness") {
            rows.extend(told(fairness().await));
        }
        rows
    });
    std::fs::create_dir_all("bench-results").unwrap();
    let json: Vec<Value> =
        rows.iter().map(|row| json!({"figure": row.what, "median": row.found, "bound": row.bound})).collect();
    std::fs::write("bench-results/evenkeel.json", serde_json::to_string_pretty(&json).unwrap()).unwrap();
}

fn told(rows: Vec<Row>) -> Vec<Row> {
    for row in &rows {
        println!("{:<66} {:>18}   {}", row.what, row.found, row.bound);
    }
    rows
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn percentile(mut times: Vec<f64>, share: f64) -> f64 {
    times.sort_by(f64::total_cmp);
    let at = ((times.len() as f64 * share).ceil() as usize).clamp(1, times.len());
    times[at - 1]
}

fn tools() -> BTreeMap<String, String> {
    let output = Command::new("tools/tools").arg("env").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines()
        .filter_map(|line| line.strip_prefix("export ")?.split_once('='))
        .map(|(name, value)| {
            (name.to_owned(), value.trim_matches('"').replace("$PATH", &std::env::var("PATH").unwrap()))
        })
        .collect()
}

fn write(folder: &Path, path: &str, text: &str) {
    let place = folder.join(path);
    std::fs::create_dir_all(place.parent().unwrap()).unwrap();
    std::fs::write(place, text).unwrap();
}

fn envelope(kind: &str, name: &str, spec: &str) -> String {
    format!("apiVersion: evenkeel.dev/v1alpha1\nkind: {kind}\nmetadata: {{ name: {name} }}\nspec: {spec}\n")
}

/// Creates a git repository with this many components in three environments, one file each.
fn components(folder: &Path, count: usize) {
    write(folder, "state-repo/staterepo.yaml", &envelope("StateRepo", "bench", "{}"));
    for environment in ["dev", "staging", "production"] {
        write(
            folder,
            &format!("state-repo/environments/{environment}.yaml"),
            &envelope("Environment", environment, "{}"),
        );
    }
    for n in 0..count {
        let before = if n % 10 == 0 { String::new() } else { format!(", dependsOn: [c{}]", n - 1) };
        let spec = format!(
            "{{ environments: [dev, staging, production]{before}, tofu: {{ root: tf/m{}, variables: {{ name: \"${{environment}}-{n}\", size: {n} }} }} }}",
            n % 50
        );
        write(
            folder,
            &format!("state-repo/components/g{}/c{n}.yaml", n / 100),
            &envelope("Component", &format!("c{n}"), &spec),
        );
    }
    for n in 0..50 {
        write(
            folder,
            &format!("tf/m{n}/main.tf"),
            &format!("variable \"name\" {{}}\nvariable \"size\" {{}}\noutput \"n\" {{ value = {n} }}\n"),
        );
    }
}

async fn loading() -> Vec<Row> {
    let mut rows = vec![];
    for (count, what, bound, again) in [
        (
            1000,
            "load + validate 1,000 components / 3 environments",
            "50 ms",
            "the same after a one-file change (1,000)",
        ),
        (
            10_000,
            "load + validate 10,000 components / 3 environments",
            "500 ms",
            "the same after a one-file change (10,000)",
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        components(&folder.path().join("seed"), count);
        seed(&folder.path().join("seed"), &folder.path().join("repository.git")).unwrap();
        let mirror =
            Mirror::open(&folder.path().join("mirror.git"), folder.path().join("repository.git").to_str().unwrap())
                .unwrap();
        let head = mirror.fetch("refs/heads/main").await.unwrap().unwrap();
        let changed = envelope(
            "Component",
            "c7",
            "{ environments: [dev, staging, production], tofu: { root: tf/m7, workspace: other } }",
        );
        let next = mirror
            .push("next", &head, None, vec![("state-repo/components/g0/c7.yaml".into(), Some(changed))], "change")
            .await
            .unwrap();
        let (files, next) = (mirror.files(&head).await.unwrap(), mirror.files(&next).await.unwrap());
        let (mut cold, mut warm) = (vec![], vec![]);
        for _ in 0..ROUNDS {
            let mut loader = Loader::new(evenkeel::targets::kinds());
            let started = Instant::now();
            let desired = loader.load(&*files, "state-repo");
            cold.push(started.elapsed().as_secs_f64() * 1000.0);
            assert!(
                desired.problems.is_empty() && desired.instances.len() == count * 3,
                "{:?}",
                desired.problems.first()
            );
            let started = Instant::now();
            assert!(loader.load(&*next, "state-repo").problems.is_empty());
            warm.push(started.elapsed().as_secs_f64() * 1000.0);
        }
        rows.push(Row { what, found: format!("{:.0} ms", median(cold)), bound: format!("< {bound}") });
        rows.push(Row { what: again, found: format!("{:.1} ms", median(warm)), bound: "< 20 ms".into() });
    }
    rows
}

struct Stage {
    folder: tempfile::TempDir,
    forge: Forge,
    port: u16,
    daemon: Option<Child>,
    http: reqwest::Client,
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.stop();
        self.forge.stop();
    }
}

impl Stage {
    async fn new(fill: impl FnOnce(&Path), parallel: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name);
        let port = free_port().unwrap();
        write(
            &place("seed"),
            "state-repo/staterepo.yaml",
            &envelope(
                "StateRepo",
                "bench",
                "{ permissions: [{ allow: [apply, plan, drift], to: [\"permission:write\"] }], defaults: { drift: { every: 1h } } }",
            ),
        );
        fill(&place("seed"));
        seed(&place("seed"), &place("forge/repository.git")).unwrap();
        let settings: Settings = serde_json::from_value(json!({"owner": "acme", "repository": "infra",
            "users": [{"login": "evenkeel", "token": "t-evenkeel", "permission": "admin"}, {"login": "lin", "token": "t-lin", "permission": "write"}],
            "webhook": {"url": format!("http://127.0.0.1:{port}/webhooks/github"), "secret": "hook"}}))
        .unwrap();
        let forge = Forge::start(place("forge"), settings, ([127, 0, 0, 1], 0).into()).await.unwrap();
        for (name, text) in [("token", "t-evenkeel"), ("hook", "hook")] {
            std::fs::write(place(name), text).unwrap();
        }
        std::fs::create_dir_all(place("world")).unwrap();
        let world = json!({"env": {"WORLD_ROOT": place("world")}});
        let config = json!({"repository": {"url": format!("http://{}/acme/infra.git", forge.address), "poll": "1h"},
            "github": {"baseUrl": format!("http://{}", forge.address), "tokenFile": place("token"), "webhookSecretFile": place("hook")},
            "data": place("data"), "listen": format!("127.0.0.1:{port}"), "telemetry": {"log": "evenkeel=debug"}, "tofu": {"parallel": parallel},
            "connections": {"*": {"world": {"plan": world, "apply": world}}}});
        std::fs::write(place("evenkeel.yaml"), config.to_string()).unwrap();
        Self { folder, forge, port, daemon: None, http: reqwest::Client::builder().no_proxy().build().unwrap() }
    }

    fn place(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn serve(&mut self) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.place("daemon.log")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_evenkeel"));
        command
            .args(["serve", "--config"])
            .arg(self.place("evenkeel.yaml"))
            .envs(tools())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        self.daemon = Some(command.spawn().unwrap());
    }

    fn stop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            drop(Command::new("kill").arg(daemon.id().to_string()).status());
            drop(daemon.wait());
        }
    }

    async fn until(&self, what: &str, mut holds: impl AsyncFnMut() -> bool) {
        let started = Instant::now();
        while !holds().await {
            if started.elapsed() > Duration::from_secs(300) {
                let log = std::fs::read_to_string(self.place("daemon.log")).unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                panic!(
                    "{what} did not come true; the daemon's last lines:\n{}",
                    lines[lines.len().saturating_sub(30)..].join("\n")
                );
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn get(&self, path: &str) -> Value {
        match self.http.get(format!("http://127.0.0.1:{}{path}", self.port)).send().await {
            Ok(answer) if answer.status().is_success() => answer.json().await.unwrap_or(json!("ok")),
            _ => Value::Null,
        }
    }

    async fn in_sync(&self) -> bool {
        self.get("/api/v1/status").await["verdict"] == "inSync"
    }

    fn statistic(&self, name: &str) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.daemon.as_ref().unwrap().id())).unwrap();
        text.lines()
            .find_map(|line| line.strip_prefix(name))
            .and_then(|rest| rest.split_whitespace().next())
            .and_then(|n| n.parse().ok())
            .unwrap_or(0)
    }

    fn ticks(&self) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.daemon.as_ref().unwrap().id())).unwrap();
        let fields: Vec<&str> = text.rsplit(')').next().unwrap().split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }
}

/// Measures decisions about 10,000 instances without observations: one drift check of all of them, in sync, and
/// the plan of one that changed.
fn minds() -> Vec<Row> {
    const INSTANCES: usize = 10_000;
    let id = |n: usize| -> InstanceId { format!("dev/c{n}").parse().unwrap() };
    let edges: BTreeMap<InstanceId, BTreeSet<InstanceId>> =
        (0..INSTANCES).map(|n| (id(n), upstreams(n).into_iter().map(&id).collect())).collect();
    let quiet = Observation { holds_anything: true, ..Observation::default() };
    let field = |at: usize| Field {
        path: format!("/f{at}"),
        before: Some("one".into()),
        after: Some("two".into()),
        sensitive: false,
        unknown: false,
        sealed: None,
    };
    let change = |at: usize| ResourceChange {
        resource: format!("world_file.f{at}"),
        r#type: "world_file".into(),
        change: Change::Update,
        reverts_drift: false,
        protected: false,
        fields: (0..5).map(field).collect(),
    };
    let changed =
        Observation { changes: (0..20).map(change).collect(), holds_anything: true, ..Observation::default() };
    let addresses = vec!["world_file.kept".to_owned(), "module.*".to_owned()];
    let protect = Protection { addresses, data: false };
    let environment: EnvironmentName = "dev".parse().unwrap();
    let (mut transient, mut plans) = (vec![], vec![]);
    for _ in 0..ROUNDS {
        let since = Instant::now();
        let mut drifted = vec![];
        for (id, upstreams) in &edges {
            let drift = opentofu::drift::of(&quiet);
            let names: Vec<String> = drift.iter().map(|drift| drift.resource.clone()).collect();
            let mut actions = opentofu::plan::actions(id, &quiet);
            mark_protected(&protect, &mut actions);
            mark_drifted(&names, &mut actions);
            if !actions.is_empty() {
                drifted.push(Drifted {
                    id: id.clone(),
                    actions,
                    upstreams: upstreams.clone(),
                    changed_by: BTreeMap::new(),
                    layout: None,
                });
            }
        }
        let groups = remediation::groups(&environment, drifted);
        let steps = order(&edges);
        assert!(groups.is_empty() && steps.len() == INSTANCES);
        transient.push(since.elapsed().as_secs_f64() * 1000.0);
        let since = Instant::now();
        let changed_id = id(INSTANCES / 2);
        let mut actions = opentofu::plan::actions(&changed_id, &changed);
        mark_protected(&protect, &mut actions);
        let instance = InstancePlan {
            digest: Some(InstancePlan::digest_of(&actions)),
            id: changed_id,
            kind: "tofu".into(),
            order: 1,
            after: vec![],
            waiting_on: vec![],
            actions,
            problem: None,
            warnings: vec![],
            layout: None,
            carried: vec![],
        };
        let revision = "0".repeat(40).parse().unwrap();
        let plan = Plan::new(environment.clone(), revision, None, "head".into(), vec![instance]);
        let notes = validation::plan(&plan, &Limits::default());
        assert!(
            !message::comment::plan(&plan, &notes.into_iter().map(Into::into).collect::<Vec<_>>(), "plan").is_empty()
        );
        plans.push(since.elapsed().as_secs_f64() * 1000.0);
    }
    vec![
        Row {
            what: "a pass over 10,000 instances in sync, without looking",
            found: format!("{:.1} ms", median(transient)),
            bound: "200 ms".into(),
        },
        Row {
            what: "the plan and comment of one changed instance among them",
            found: format!("{:.1} ms", median(plans)),
            bound: "10 ms".into(),
        },
    ]
}

fn world_file(name: &str, content: &str) -> String {
    format!(
        "terraform {{\n  required_providers {{\n    world = {{ source = \"evenkeel/world\" }}\n  }}\n}}\nresource \"world_file\" \"{name}\" {{\n  path = \"{name}\"\n  content = \"{content}\"\n}}\noutput \"content\" {{ value = world_file.{name}.content }}\n"
    )
}

fn one(folder: &Path) {
    write(folder, "state-repo/dev.yaml", &envelope("Environment", "dev", "{ onMerge: apply, deferred: apply }"));
    write(
        folder,
        "state-repo/a.yaml",
        &envelope("Component", "a", "{ environments: [dev], tofu: { connection: world, root: tf/a } }"),
    );
    write(folder, "tf/a/main.tf", &world_file("a", "0"));
}

async fn start_and_idle() -> Vec<Row> {
    let mut stage = Stage::new(one, 4).await;
    stage.serve();
    stage.until("in sync", async || stage.in_sync().await).await;
    stage.stop();
    let mut starts = vec![];
    for _ in 0..ROUNDS {
        let started = Instant::now();
        stage.serve();
        stage
            .until("ready", async || {
                stage
                    .http
                    .get(format!("http://127.0.0.1:{}/readyz", stage.port))
                    .send()
                    .await
                    .is_ok_and(|answer| answer.status().is_success())
            })
            .await;
        starts.push(started.elapsed().as_secs_f64() * 1000.0);
        stage.stop();
    }
    stage.serve();
    stage.until("in sync", async || stage.in_sync().await).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (memory, before) = (stage.statistic("VmRSS:"), stage.ticks());
    tokio::time::sleep(Duration::from_secs(10)).await;
    let used = stage.ticks() - before;
    vec![
        Row { what: "start to /readyz", found: format!("{:.0} ms", median(starts)), bound: "< 300 ms".into() },
        Row {
            what: "memory while idle (RSS)",
            found: format!("{:.1} MB", memory as f64 / 1024.0),
            bound: "< 40 MB".into(),
        },
        Row {
            what: "CPU while idle, of 10 s",
            found: format!("{} ms", used * 10),
            bound: "0 ms (clock ticks of 10 ms)".into(),
        },
    ]
}

async fn merge_to_tofu() -> Vec<Row> {
    let mut stage = Stage::new(one, 4).await;
    stage.serve();
    stage.until("in sync", async || stage.in_sync().await).await;
    let url = format!("http://{}/acme/infra.git", stage.forge.address);
    evenkeel::adapters::git::Tokens::global().set(&url, "t-lin".to_owned().into());
    let mirror = Mirror::open(&stage.place("lin.git"), &url).unwrap();
    let log = stage.place("daemon.log");
    let started = |text: &str| text.matches("tofu starts").count();
    let mut times = vec![];
    for n in 1..=MERGES {
        let head = mirror.fetch("refs/heads/main").await.unwrap().unwrap();
        let before = started(&std::fs::read_to_string(&log).unwrap());
        let branch = format!("change-{n}");
        mirror
            .push(&branch, &head, None, vec![("tf/a/main.tf".into(), Some(world_file("a", &n.to_string())))], "change")
            .await
            .unwrap();
        let base = format!("http://{}/repos/acme/infra/pulls", stage.forge.address);
        let pull: Value = stage
            .http
            .post(&base)
            .bearer_auth("t-lin")
            .json(&json!({"title": branch, "head": branch, "base": "main"}))
            .send()
            .await
            .unwrap()
            .json()
            .await
            .unwrap();
        stage.until("planned", async || started(&std::fs::read_to_string(&log).unwrap()) >= before + 3).await;
        stage
            .until("quiet", async || {
                stage.get("/metrics").await.is_string() && {
                    tokio::time::sleep(Duration::from_millis(300)).await;
                    true
                }
            })
            .await;
        let before = started(&std::fs::read_to_string(&log).unwrap());
        let merged = Instant::now();
        let answer = stage
            .http
            .put(format!("{base}/{}/merge", pull["number"]))
            .bearer_auth("t-lin")
            .json(&json!({}))
            .send()
            .await
            .unwrap();
        assert!(answer.status().is_success());
        stage.until("tofu starts", async || started(&std::fs::read_to_string(&log).unwrap()) > before).await;
        times.push(merged.elapsed().as_secs_f64() * 1000.0);
        let content = stage.place("world/a");
        stage
            .until("applied", async || {
                std::fs::read_to_string(&content).is_ok_and(|text| text == n.to_string()) && stage.in_sync().await
            })
            .await;
    }
    vec![
        Row {
            what: "merge requested → first tofu process, median",
            found: format!("{:.0} ms", median(times.clone())),
            bound: String::new(),
        },
        Row {
            what: "merge requested → first tofu process, 95th percentile",
            found: format!("{:.0} ms", percentile(times, 0.95)),
            bound: "< 300 ms".into(),
        },
    ]
}

/// Returns the dependencies of module `n`: a graph of depth 4.
fn upstreams(n: usize) -> Vec<usize> {
    if n < 5 { vec![] } else { vec![n - 5, (n - 5) / 5 * 5 + (n + 1) % 5] }
}

fn twenty(folder: &Path) {
    write(folder, "state-repo/dev.yaml", &envelope("Environment", "dev", "{ onMerge: wait, deferred: apply }"));
    for n in 0..MODULES {
        let depends: BTreeSet<String> = upstreams(n).iter().map(|n| format!("m{n}")).collect();
        let depends: Vec<String> = depends.into_iter().collect();
        write(
            folder,
            &format!("state-repo/m{n}.yaml"),
            &envelope(
                "Component",
                &format!("m{n}"),
                &format!(
                    "{{ environments: [dev], dependsOn: [{}], tofu: {{ connection: world, root: tf/m{n} }} }}",
                    depends.join(", ")
                ),
            ),
        );
        let files: String = (0..10)
            .map(|f| format!("resource \"world_file\" \"f{f}\" {{\n  path = \"m{n}/f{f}\"\n  content = \"{f}\"\n}}\n"))
            .collect();
        write(
            folder,
            &format!("tf/m{n}/main.tf"),
            &format!(
                "terraform {{\n  required_providers {{\n    world = {{ source = \"evenkeel/world\" }}\n  }}\n}}\n{files}"
            ),
        );
    }
}

/// Runs the same tofu processes in the same order and parallelism, without Evenkeel.
async fn bare(stage: &Stage, name: &str, commands: &'static [&'static [&'static str]]) -> f64 {
    let slots = Arc::new(tokio::sync::Semaphore::new(2));
    let root = stage.place(name);
    let environment = tools();
    let world = stage.place(&format!("{name}-world"));
    std::fs::create_dir_all(&world).unwrap();
    let cache = stage.place(&format!("{name}-cache"));
    std::fs::create_dir_all(&cache).unwrap();
    let done: Vec<tokio::sync::watch::Sender<bool>> =
        (0..MODULES).map(|_| tokio::sync::watch::channel(false).0).collect();
    let receivers: Vec<_> = done.iter().map(tokio::sync::watch::Sender::subscribe).collect();
    let started = Instant::now();
    let tasks: Vec<_> = done
        .into_iter()
        .enumerate()
        .map(|(n, sender)| {
            let (slots, root, environment, world, cache) =
                (Arc::clone(&slots), root.clone(), environment.clone(), world.clone(), cache.clone());
            let mut before: Vec<_> = upstreams(n).into_iter().map(|up| receivers[up].clone()).collect();
            tokio::spawn(async move {
                for upstream in &mut before {
                    upstream.wait_for(|done| *done).await.unwrap();
                }
                let folder = root.join(format!("tf/m{n}"));
                for arguments in commands {
                    let _slot = slots.acquire().await.unwrap();
                    let mut command = tokio::process::Command::new("tofu");
                    // Without a lock file, an `init` replaces providers in the cache while other processes use them.
                    if folder.join(".terraform.lock.hcl").exists() {
                        command.env("TF_PLUGIN_CACHE_DIR", &cache);
                    }
                    let output = command
                        .args(*arguments)
                        .current_dir(&folder)
                        .envs(&environment)
                        .env("WORLD_ROOT", &world)
                        .env("TF_IN_AUTOMATION", "1")
                        .env("CHECKPOINT_DISABLE", "1")
                        .output()
                        .await
                        .unwrap();
                    assert!(
                        matches!(output.status.code(), Some(0 | 2)),
                        "{arguments:?}: {}",
                        String::from_utf8_lossy(&output.stdout)
                    );
                }
                sender.send(true).unwrap();
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    started.elapsed().as_secs_f64()
}

async fn twenty_modules() -> Vec<Row> {
    const APPLY: &[&[&str]] = &[
        &["init", "-json", "-input=false", "-reconfigure"],
        &["plan", "-json", "-input=false", "-detailed-exitcode", "-concise", "-out=p"],
        &["show", "-json", "p"],
        &["state", "pull"],
        &["apply", "-json", "-input=false", "p"],
        &["plan", "-json", "-input=false", "-detailed-exitcode", "-concise", "-lock=false", "-out=p"],
        &["show", "-json", "p"],
        &["output", "-json"],
    ];
    const INIT: &[&[&str]] = &[&["init", "-json", "-input=false"]];
    const PASS: &[&[&str]] =
        &[&["plan", "-json", "-input=false", "-detailed-exitcode", "-concise", "-lock=false", "-out=p"]];
    const ATTEMPTS: usize = 3;
    let (mut ours, mut theirs, mut our_pass, mut their_pass) = (vec![], vec![], vec![], vec![]);
    for round in 0..ATTEMPTS {
        let mut stage = Stage::new(twenty, 2).await;
        let name = format!("bare{round}");
        twenty(&stage.place(&name));
        // Both sides start with a lock file and a full provider cache.
        bare(&stage, &name, INIT).await;
        for n in 0..MODULES {
            std::fs::remove_dir_all(stage.place(&format!("{name}/tf/m{n}/.terraform"))).unwrap();
        }
        theirs.push(bare(&stage, &name, APPLY).await);
        their_pass.push(bare(&stage, &name, PASS).await);
        stage.serve();
        stage
            .until("planned", async || {
                stage.get("/api/v1/plans").await.as_array().is_some_and(|plans| !plans.is_empty())
            })
            .await;
        let token = std::fs::read_to_string(stage.place("data/api-token")).unwrap().trim().to_owned();
        let post = async |path: &str, body: Value| -> Value {
            stage
                .http
                .post(format!("http://127.0.0.1:{}{path}", stage.port))
                .bearer_auth(&token)
                .json(&body)
                .send()
                .await
                .unwrap()
                .json()
                .await
                .unwrap()
        };
        let plans = stage.get("/api/v1/plans").await;
        let digest = plans[0]["plan"]["digest"].clone();
        // The plan before the approval has already initialised the work trees. Delete them, because a run on a fresh
        // machine initialises them itself.
        for n in 0..MODULES {
            std::fs::remove_dir_all(stage.place(&format!("data/work/dev/m{n}/data-head"))).unwrap();
        }
        let started = Instant::now();
        let answer = post("/api/v1/apply", json!({"selector": "dev", "digests": [digest]})).await;
        assert!(answer["runs"].is_array(), "{answer}");
        // Send no requests to the daemon during the measurement.
        let log = stage.place("daemon.log");
        while !std::fs::read_to_string(&log).unwrap().contains("run ended") {
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        ours.push(started.elapsed().as_secs_f64());
        assert!(stage.in_sync().await);
        post("/api/v1/drift", json!({"selector": "dev"})).await;
        let started = Instant::now();
        let status = post("/api/v1/drift", json!({"selector": "dev"})).await;
        our_pass.push(started.elapsed().as_secs_f64());
        assert_eq!(status["verdict"], "inSync", "{status}");
    }
    let row = |what, ours: Vec<f64>, theirs: Vec<f64>| {
        let (ours, theirs) = (median(ours), median(theirs));
        Row {
            what,
            found: format!("{ours:.2} s"),
            bound: format!("{theirs:.2} s by a bare driver: {:+.1} % (< 5 %)", (ours / theirs - 1.0) * 100.0),
        }
    };
    vec![
        row("20 root modules, depth 4, 200 resources: whole apply", ours, theirs),
        row("the same: whole pass without changes", our_pass, their_pass),
    ]
}

/// Measures a journal record with its whole transaction, next to a bare write of as many bytes and an fsync.
async fn journal() -> Vec<Row> {
    const RECORDS: usize = 400;
    let folder = tempfile::tempdir_in("target").unwrap();
    let file = folder.path().join("evenkeel.db");
    let store = Store::open(&file).await.unwrap();
    let now = chrono::Utc::now();
    store.take("bench", now, now, true).await.unwrap();
    let mut run: evenkeel::domain::journal::Run = serde_json::from_value(json!({
        "id": 0, "environment": "dev", "revision": "a".repeat(40), "state": {"state": "open"}, "because": "a bench", "principal": "merge", "byMerge": true,
        "pull": null, "remediation": null, "createdAt": now, "endedAt": null,
        "instances": (0..20).map(|n| (format!("dev/c{n}"), json!({"status": "new", "order": 1, "says": "", "changed": false, "waitingOn": null}))).collect::<serde_json::Map<_, _>>(),
    }))
    .unwrap();
    store.create_run(&mut run, &BTreeMap::new()).await.unwrap();
    let id: InstanceId = "dev/c0".parse().unwrap();
    let digest = evenkeel::model::Digest::of_json(&json!(1));
    let planned = evenkeel::domain::journal::Event::Planned { digest: Some(digest) };
    // SQLite reuses its log from the start after a checkpoint, so that the file does not grow.
    let log = file.with_extension("db-wal");
    let before = std::fs::metadata(&log).unwrap().len();
    store.append(&run, &id, &planned, now).await.unwrap();
    let bytes = std::fs::metadata(&log).unwrap().len() - before;
    let mut bare = std::fs::File::create(folder.path().join("bare")).unwrap();
    let block = vec![7; bytes as usize];
    let (mut appends, mut writes) = (vec![], vec![]);
    for n in 0..RECORDS {
        if n % 20 == 0 {
            store.create_run(&mut run, &BTreeMap::new()).await.unwrap();
        }
        let id: InstanceId = format!("dev/c{}", n % 20).parse().unwrap();
        // Alternate both, so that a slow moment of the disk affects both.
        let started = Instant::now();
        store.append(&run, &id, &planned, now).await.unwrap();
        appends.push(started.elapsed().as_secs_f64() * 1000.0);
        let started = Instant::now();
        std::io::Write::write_all(&mut bare, &block).unwrap();
        bare.sync_all().unwrap();
        writes.push(started.elapsed().as_secs_f64() * 1000.0);
    }
    let (append, write) = (median(appends), median(writes));
    vec![Row {
        what: "a journal record, durable, in its transaction",
        found: format!("{append:.2} ms"),
        bound: format!("{write:.2} ms for {bytes} bytes and an fsync, {:.2} ×; 1.5 ×", append / write),
    }]
}

/// Measures the time from the start of a daemon until it continues a run whose previous daemon was killed.
async fn recovery() -> Vec<Row> {
    let slow = |folder: &Path| {
        one(folder);
        let text = world_file("a", "1").replace("content =", "delay = \"20s\"\n  content =");
        write(folder, "tf/a/main.tf", &text);
    };
    let mut stage = Stage::new(slow, 4).await;
    let log = |stage: &Stage| std::fs::read_to_string(stage.place("daemon.log")).unwrap_or_default();
    stage.serve();
    stage.until("the apply is under way", async || log(&stage).contains("Creating...")).await;
    let mut times = vec![];
    for n in 1..=ROUNDS {
        let mut daemon = stage.daemon.take().unwrap();
        daemon.kill().unwrap();
        daemon.wait().unwrap();
        let started = Instant::now();
        stage.serve();
        stage.until("the run goes on", async || log(&stage).matches("attached to what went on").count() == n).await;
        times.push(started.elapsed().as_secs_f64() * 1000.0);
    }
    vec![Row {
        what: "SIGKILL in the middle of a run: start → back at it",
        found: format!("{:.0} ms", median(times)),
        bound: "< 1000 ms".into(),
    }]
}

/// Measures the wait of a healthy component among 200, when all are healthy and when 20 of them hang or fail.
async fn fairness() -> Vec<Row> {
    const ALL: usize = 200;
    let clock: Arc<dyn evenkeel::ports::Clock> = Arc::new(evenkeel::controller::SystemClock);
    let repository = evenkeel::adapters::sim::Repository::new(Arc::clone(&clock));
    let seal = Arc::new(evenkeel::model::Seal::new(b"bench".to_vec()));
    // An observation takes 10 ms, and four run at once. A duration of 100 ms is long here, as a minute is for a real
    // plan.
    let world = evenkeel::adapters::sim::World::new(
        Arc::clone(&seal),
        Arc::new(evenkeel::adapters::sim::Clock::new(clock.now())),
    );
    let paced = world.paced(
        evenkeel::targets::concurrency::ConcurrencyLimit::new(4, Duration::from_millis(100)),
        Duration::from_millis(10),
    );
    let mut files = vec![
        (
            "state-repo/staterepo.yaml".to_owned(),
            Some(envelope(
                "StateRepo",
                "bench",
                "{ permissions: [{ allow: [apply, plan, drift], to: [\"token:local\"] }], defaults: { drift: { every: 1h } } }",
            )),
        ),
        ("state-repo/dev.yaml".to_owned(), Some(envelope("Environment", "dev", "{ onMerge: apply }"))),
    ];
    let name = |n: usize| format!("c{n:03}");
    for n in 0..ALL {
        let spec = format!("{{ environments: [dev], tofu: {{ root: tf/{} }} }}", name(n));
        files.push((format!("state-repo/{}.yaml", name(n)), Some(envelope("Component", &name(n), &spec))));
        files.push((format!("tf/{}/main.tf", name(n)), Some("thing.content = one".to_owned())));
    }
    repository.commit("main", "lin", "First", &files).unwrap();
    let store = Store::in_memory().await.unwrap();
    let hands = evenkeel::controller::Ports {
        store: store.clone(),
        repository: Arc::new(repository),
        probe: Arc::new(paced.clone()),
        target: Arc::new(paced),
        forge: None,
        clock,
        seal,
        redactor: evenkeel::model::Redactor::default(),
    };
    let settings = evenkeel::controller::Settings {
        branch: "main".into(),
        root: "state-repo".into(),
        poll: Duration::from_secs(3600),
        watch: None,
        holder: "bench".into(),
        lease: Duration::from_secs(3600),
    };
    let daemon = evenkeel::controller::Daemon::new(settings, hands);
    let serving = Arc::clone(&daemon);
    tokio::spawn(async move { serving.serve().await });
    let started = Instant::now();
    while daemon.status.read().await.unwrap().verdict != evenkeel::model::Verdict::InSync {
        assert!(
            started.elapsed() < Duration::from_secs(120),
            "the world did not come in sync: {:?}",
            daemon.status.read().await.unwrap().instances.iter().map(|i| i.message()).collect::<BTreeSet<_>>()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let ids: Vec<InstanceId> = (0..ALL).map(|n| format!("dev/{}", name(n)).parse().unwrap()).collect();
    let healthy: Vec<&InstanceId> = ids.iter().enumerate().filter(|(n, _)| n % 10 != 0).map(|(_, id)| id).collect();
    let round = async || {
        let (since, started) = (chrono::Utc::now(), Instant::now());
        for id in &ids {
            daemon.context.queue.enqueue(
                evenkeel::controller::ReconcileRequest::Instance(id.clone()),
                evenkeel::controller::Reason::Poll,
            );
        }
        let mut times: BTreeMap<&InstanceId, f64> = BTreeMap::new();
        while times.len() < healthy.len() {
            tokio::time::sleep(Duration::from_millis(5)).await;
            let observed = store.all_observed().await.unwrap();
            for id in &healthy {
                if observed.get(*id).is_some_and(|seen| seen.at > since) {
                    times.entry(id).or_insert_with(|| started.elapsed().as_secs_f64() * 1000.0);
                }
            }
        }
        percentile(times.into_values().collect(), 0.99)
    };
    let mut well = vec![];
    for _ in 0..ROUNDS {
        well.push(round().await);
    }
    for (n, id) in ids.iter().enumerate().filter(|(n, _)| n % 10 == 0) {
        let fault = if n % 20 == 0 {
            evenkeel::adapters::sim::Fault::Hangs
        } else {
            evenkeel::adapters::sim::Fault::OutOfReach("no route to host".into())
        };
        world.set_fault(id, Some(fault));
    }
    let first = round().await;
    let mut ill = vec![];
    for _ in 0..ROUNDS {
        ill.push(round().await);
    }
    let (well, ill) = (median(well), median(ill));
    vec![
        Row {
            what: "200 components, 10 % hang or fail: 99th percentile of the others",
            found: format!("{ill:.0} ms"),
            bound: format!("{well:.0} ms when all are well, {:+.1} %; 20 %", (ill / well - 1.0) * 100.0),
        },
        Row {
            what: "the same, in the round in which they begin to hang",
            found: format!("{first:.0} ms"),
            bound: format!("{well:.0} ms, {:+.1} %", (first / well - 1.0) * 100.0),
        },
    ]
}
