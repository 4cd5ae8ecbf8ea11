//! Provides the simulated world with a daemon, and the commands of scripts.

use std::{collections::BTreeMap, sync::Arc};

use chrono::{DateTime, Utc};
use evenkeel::{
    adapters::{
        sim::{Clock, CrashPoints, Fault, Forge, Repository, SimulatedProcess, World},
        store::Store,
    },
    controller::{Daemon, Ports, Settings},
    domain::authorization::{LOCAL_TOKEN, Principal},
    model::{Redactor, Seal},
};

const STATE_REPO: &str = r#"apiVersion: evenkeel.dev/v1alpha1
kind: StateRepo
metadata: { name: acme }
spec:
  teams: { platform: { github: acme/platform }, dba: { users: [noor] } }
  permissions:
    - { allow: [plan, drift, help], to: ["permission:write"] }
    - { allow: [apply, revert, adopt, snooze, suspend, resume], to: ["team:platform", "token:local"] }
    - { allow: [confirm, destroy, forget, cancel, unlock], to: ["team:platform", "token:local"] }
  defaults: { drift: { every: 15m } }
"#;

pub(crate) struct Stage {
    clock: Arc<Clock>,
    repository: Repository,
    forge: Forge,
    world: World,
    store: Store,
    seal: Arc<Seal>,
    daemon: Arc<Daemon>,
    /// The files of the next commit.
    staged: Vec<(String, Option<String>)>,
    /// The last state that was printed, line by line.
    seen: BTreeMap<String, String>,
    /// The state of the random generator that reorders and duplicates events; `None` keeps their order.
    disorder: Option<u64>,
    /// The places where the daemon is killed, and its present process.
    lives: Arc<CrashPoints>,
    life: Arc<SimulatedProcess>,
    generation: u32,
    /// The earlier processes, some of which are only suspended.
    before: Vec<Arc<SimulatedProcess>>,
    /// All effects on the world.
    effects: Vec<String>,
}

/// The number of steps that a resumed process gets, in which it could do harm.
const GOES_ON: usize = 200;

type Done = Result<Vec<String>, String>;

fn two<'t>(text: &'t str, between: &str) -> Result<(&'t str, &'t str), String> {
    text.split_once(between).ok_or_else(|| format!("`{between}` is missing"))
}

fn number(text: &str) -> Result<u64, String> {
    text.trim_start_matches('#').parse().map_err(|_| format!("`{text}` is no number"))
}

impl Stage {
    pub(crate) async fn new(disorder: Option<u64>, lives: Arc<CrashPoints>) -> Self {
        let at: DateTime<Utc> = "2026-11-20T09:00:00Z".parse().unwrap();
        let clock = Arc::new(Clock::new(at));
        let repository = Repository::new(Arc::clone(&clock) as _);
        let people = [("lin", "write"), ("mira", "write"), ("noor", "write"), ("guest", "read"), ("evenkeel", "admin")];
        let forge =
            Forge::new(repository.clone(), Arc::clone(&clock) as _, &people, &[("acme/platform", &["lin", "noor"])]);
        let seal = Arc::new(Seal::new(b"a key that every run of the scenarios has".to_vec()));
        let world = World::new(Arc::clone(&seal), Arc::clone(&clock));
        let store = Store::in_memory().await.unwrap();
        let staged = vec![("state-repo/staterepo.yaml".to_owned(), Some(STATE_REPO.to_owned()))];
        let life = lives.begin();
        let daemon = start(&repository, &forge, &world, &store, &clock, &seal, &life, 1).await;
        Self {
            clock,
            repository,
            forge,
            world,
            store,
            seal,
            daemon,
            staged,
            seen: BTreeMap::new(),
            disorder,
            lives,
            life,
            generation: 1,
            before: vec![],
            effects: vec![],
        }
    }

    /// Starts another daemon over the store of the previous one.
    async fn live_again(&mut self) {
        self.before.push(std::mem::replace(&mut self.life, self.lives.begin()));
        self.generation += 1;
        let Self { repository, forge, world, store, clock, seal, life, generation, .. } = self;
        self.daemon = start(repository, forge, world, store, clock, seal, life, *generation).await;
    }

    /// Starts another daemon over another store, as after an upgrade.
    #[allow(dead_code, reason = "the test of an upgrade needs it")]
    pub(crate) async fn restart_with(&mut self, store: Store) {
        self.store = store;
        self.live_again().await;
        self.daemon.start().await;
        self.rest().await.unwrap();
        self.seen = self.sight().await;
        self.world.effects();
    }

    /// Runs the daemon until it is idle, in as many processes as necessary.
    async fn rest(&mut self) -> Result<(), String> {
        loop {
            let (life, daemon) = (Arc::clone(&self.life), Arc::clone(&self.daemon));
            let disorder = &mut self.disorder;
            let rest = async {
                daemon.poll().await.map_err(|error| error.to_string())?;
                if let Some(state) = disorder.as_mut() {
                    // Every fifth request is lost.
                    for _ in 0..5 {
                        if next(state).is_multiple_of(5)
                            && let Some((lost, _)) = daemon.context.queue.any_now(next(state))
                        {
                            daemon.context.queue.done(&lost);
                        }
                    }
                }
                match disorder {
                    // Run in a separate task, because a suspended daemon remains.
                    None => drop(tokio::spawn(async move { daemon.drain_queue(|| 0, false).await }).await),
                    Some(state) => daemon.drain_queue(|| next(state), true).await,
                }
                Ok(())
            };
            tokio::select! {
                biased;
                () = life.ended() => {}
                done = rest => {
                    // The suspended processes resume, after they have lost the lease.
                    self.before.drain(..).for_each(|life| life.go_on());
                    for _ in 0..GOES_ON {
                        tokio::task::yield_now().await;
                    }
                    return done;
                }
            }
            self.live_again().await;
            let daemon = Arc::clone(&self.daemon);
            let life = Arc::clone(&self.life);
            tokio::select! {
                biased;
                () = life.ended() => {}
                () = async { daemon.start().await; daemon.drain_queue(|| 0, false).await } => {}
            }
        }
    }

    /// Executes a command, runs the daemon until it is idle, and returns the changes.
    pub(crate) async fn run(&mut self, command: &str, block: &[String]) -> Done {
        let (word, rest) = command.split_once(' ').unwrap_or((command, ""));
        self.clock.forward(chrono::Duration::seconds(1));
        let newest = self.newest_run().await;
        let printed = loop {
            let life = Arc::clone(&self.life);
            tokio::select! {
                biased;
                () = life.ended() => {}
                done = self.act(word, rest, block) => break done?,
            }
            // The user repeats the command if the daemon died.
            self.live_again().await;
            self.rest().await?;
            if self.newest_run().await != newest {
                // The run had already started, as the user sees in `status`.
                break vec![];
            }
        };
        if matches!(word, "environment" | "component" | "module" | "file" | "remove" | "show") {
            return Ok(printed);
        }
        // A change of the world outside Evenkeel causes no event.
        if matches!(word, "meddle" | "hold" | "wipe" | "cluster" | "fault" | "silence" | "answer") {
            return Ok(printed);
        }
        // The real forge sends an event for every comment and change, and a poll finds the lost ones.
        let (before, mut effects) = (self.seen.clone(), vec![]);
        // The next polls find the facts of lost events.
        let rounds = if self.disorder.is_some() { 4 } else { 2 };
        for round in 0..rounds {
            self.rest().await?;
            let (current, more) = (self.sight().await, self.world.effects());
            let is_quiet = current == self.seen && more.is_empty();
            self.effects.extend(more.iter().cloned());
            effects.extend(more);
            self.seen = current;
            if is_quiet && (self.disorder.is_none() || round > 1) {
                break;
            }
        }
        Ok(printed.into_iter().chain(self.changes(&before, effects)).collect())
    }

    async fn newest_run(&self) -> i64 {
        self.store.runs(1).await.unwrap().first().map_or(0, |run| run.id.0)
    }

    async fn act(&mut self, word: &str, rest: &str, block: &[String]) -> Done {
        let indented = || block.iter().map(|line| format!("  {line}\n")).collect::<String>();
        match word {
            "environment" => {
                let (name, spec) = rest.split_once(' ').unwrap_or((rest, ""));
                let text = format!(
                    "apiVersion: evenkeel.dev/v1alpha1\nkind: Environment\nmetadata: {{ name: {name} }}\nspec: {{ {spec} }}\n"
                );
                self.staged.push((format!("state-repo/environments/{name}.yaml"), Some(text)));
            }
            "component" => {
                let (name, environments) = two(rest, " in ")?;
                let tofu = if block.iter().any(|line| line.starts_with("tofu:") || line.starts_with("citus:")) {
                    String::new()
                } else {
                    format!("  tofu: {{ root: tf/{name} }}\n")
                };
                let more = block
                    .iter()
                    .find(|line| line.starts_with("metadata:"))
                    .map(|line| line["metadata:".len()..].trim())
                    .unwrap_or_default();
                let spec = indented()
                    .lines()
                    .filter(|line| !line.trim_start().starts_with("metadata:"))
                    .map(|line| format!("{line}\n"))
                    .collect::<String>();
                let text = format!(
                    "apiVersion: evenkeel.dev/v1alpha1\nkind: Component\nmetadata: {{ name: {name}, {more} }}\nspec:\n  environments: [{environments}]\n{tofu}{spec}"
                );
                self.staged.push((format!("state-repo/components/{name}.yaml"), Some(text)));
            }
            "module" => self
                .staged
                .push((format!("tf/{rest}/main.tf"), Some(block.iter().map(|line| format!("{line}\n")).collect()))),
            "file" => self.staged.push((rest.to_owned(), Some(block.iter().map(|line| format!("{line}\n")).collect()))),
            "remove" => self.staged.push((rest.to_owned(), None)),
            "start" => self.daemon.start().await,
            "push" => {
                let (who, subject) = two(rest.strip_prefix("by ").unwrap_or(rest), ": ")?;
                let files = std::mem::take(&mut self.staged);
                self.repository.commit("main", who, subject, &files).ok_or("no such branch")?;
            }
            "open" => {
                let (who, title) = two(rest.strip_prefix("by ").unwrap_or(rest), ": ")?;
                let branch = title.to_lowercase().replace(' ', "-");
                let files = std::mem::take(&mut self.staged);
                self.repository.commit(&branch, who, title, &files).ok_or("no such branch")?;
                self.forge.open(who, &branch, title, "", false).ok_or("no such branch")?;
            }
            "commit" => {
                let (pull, more) = two(rest.strip_prefix("on ").unwrap_or(rest), " by ")?;
                let (who, subject) = two(more, ": ")?;
                let number = number(pull)?;
                let pull = self
                    .forge
                    .pulls()
                    .into_iter()
                    .find(|pull| pull.number.0 == number)
                    .ok_or("no such pull request")?;
                let files = std::mem::take(&mut self.staged);
                self.repository.commit(&pull.branch, who, subject, &files).ok_or("no such branch")?;
            }
            "cut" | "edit" => {
                let (pull, more) = two(rest.strip_prefix("on ").unwrap_or(rest), " by ")?;
                let (who, what) = two(more, ": ")?;
                let (branch, path, text) = self.remediation(number(pull)?)?;
                let text = match what.split_once(" -> ") {
                    Some((old, new)) if text.contains(old) => text.replace(old, new),
                    Some((old, _)) => return Err(format!("`{old}` is not in the file")),
                    None => without_action(&text, what),
                };
                self.repository.commit(&branch, who, word, &[(path, Some(text))]).ok_or("no such branch")?;
            }
            "merge" => {
                let (pull, who) = two(rest, " by ")?;
                self.forge.merge(number(pull)?, who)?;
            }
            "close" => self.forge.close(number(rest)?),
            "comment" => {
                let at_once = rest.strip_prefix("at once ");
                if at_once.is_none() {
                    // Users read before they reply (R6.3).
                    self.clock.forward(chrono::Duration::seconds(30));
                }
                let rest = at_once.unwrap_or(rest);
                let (pull, more) = two(rest.strip_prefix("on ").unwrap_or(rest), " by ")?;
                let (who, text) = two(more, ": ")?;
                let text = self.filled(number(pull)?, text);
                self.forge.comment(number(pull)?, who, &text.replace("\\n", "\n"));
            }
            "review" => {
                let (pull, who) = two(rest, " by ")?;
                self.clock.forward(chrono::Duration::seconds(30));
                self.forge.review(number(pull)?, who, true);
            }
            "meddle" | "hold" => {
                let (place, more) = two(rest, " ")?;
                if let Some(resource) = more.strip_suffix(" gone") {
                    self.world.meddle(place, resource, "", None);
                } else {
                    let (attribute, value) = two(more, " = ")?;
                    let (resource, field) = two(attribute, ".")?;
                    if word == "hold" {
                        self.world.hold(place, resource, field, value)
                    } else {
                        self.world.meddle(place, resource, field, Some(value))
                    }
                }
            }
            "fault" => {
                let (id, what) = two(rest, " ")?;
                let fault = match what.split_once(": ") {
                    Some(("out of reach", why)) => Some(Fault::OutOfReach(why.into())),
                    Some(("locked", by)) => Some(Fault::Locked(by.into())),
                    Some(("never settles", resource)) => Some(Fault::NeverSettles(resource.into())),
                    Some((refuses, message)) => Some(Fault::Refuses {
                        resource: refuses.trim_start_matches("refuses ").into(),
                        message: message.into(),
                    }),
                    None => None,
                };
                self.world.set_fault(&id.parse().map_err(|_| "no instance")?, fault);
            }
            "forge" => {
                let why = rest.strip_prefix("out of reach: ").map(str::to_owned);
                self.forge.put_out_of_reach(why);
            }
            "git" => {
                let why = rest.strip_prefix("out of reach: ").map(str::to_owned);
                self.repository.put_out_of_reach(why);
            }
            "wipe" => self.world.wipe(rest),
            "cluster" => {
                let (name, what) = two(rest, " ")?;
                self.world.tell(name, what)?;
            }
            "silence" => self.world.silence(rest, true),
            "answer" => self.world.silence(rest, false),
            "wait" => {
                let by: evenkeel::model::Duration = rest.parse().map_err(|_| format!("`{rest}` is no duration"))?;
                self.clock.forward(chrono::Duration::from_std(by.std()).unwrap());
            }
            "look" => {
                let selector = if rest.is_empty() { None } else { Some(rest.parse().map_err(|_| "no selector")?) };
                return Ok(self
                    .daemon
                    .commands
                    .check_drift_of(selector.as_ref(), &local())
                    .await
                    .err()
                    .map(|error| error.to_string())
                    .into_iter()
                    .collect());
            }
            "apply" => {
                let selector = rest.parse().map_err(|_| "no selector")?;
                let digests: Vec<String> = match self.daemon.commands.plan_now(Some(&selector), &local()).await {
                    Ok(plans) => plans.iter().map(|plan| plan.digest.to_string()).collect(),
                    Err(error) => return Ok(vec![error.to_string()]),
                };
                let done = self.daemon.commands.apply_now(Some(&selector), &digests, None, &local()).await;
                return Ok(done.err().map(|error| error.to_string()).into_iter().collect());
            }
            "propose" => {
                let selector = rest.parse().map_err(|_| "no selector")?;
                let done = self.daemon.commands.propose_apply(Some(&selector), &local()).await;
                return Ok(done.err().map(|error| error.to_string()).into_iter().collect());
            }
            "say" => {
                let parsed =
                    evenkeel::domain::command::parse(&format!("/{rest}")).into_iter().next().ok_or("no command")?;
                let command = parsed.map_err(|unclear| unclear.0)?;
                return Ok(match self.daemon.commands.execute(&command, &local()).await {
                    Ok(outcome) => std::iter::once(outcome.message)
                        .chain(outcome.plans.iter().map(|plan| format!("digest {}", plan.digest.short())))
                        .collect(),
                    Err(error) => vec![error.to_string()],
                });
            }
            "restart" => {
                self.live_again().await;
                self.daemon.start().await;
            }
            "lose" => {
                self.store = Store::in_memory().await.unwrap();
                self.live_again().await;
                self.daemon.start().await;
            }
            "show" => return self.show(rest).await,
            other => return Err(format!("`{other}` is no command")),
        }
        Ok(vec![])
    }

    /// Returns a comment with `DIGEST` replaced by the digest of the last plan.
    fn filled(&self, number: u64, text: &str) -> String {
        let comments = self.forge.comments(number);
        let mut plans = comments.iter().rev().filter_map(|(comment, _)| comment.body.split_once("Digest `"));
        match plans.next() {
            Some((_, rest)) => text.replace("DIGEST", rest.split('`').next().unwrap_or_default()),
            None => text.to_owned(),
        }
    }

    /// Returns the branch, path and text of the remediation that a pull request adds.
    fn remediation(&self, number: u64) -> Result<(String, String, String), String> {
        let pull = self.forge.pulls().into_iter().find(|pull| pull.number.0 == number).ok_or("no such pull request")?;
        let name = format!("refs/heads/{}", pull.branch);
        let on_main = self.repository.paths("refs/heads/main");
        let mut paths = self.repository.paths(&name).into_iter();
        let path =
            paths.find(|path| path.contains("/remediations/") && !on_main.contains(path)).ok_or("no remediation")?;
        let text = self.repository.text(&name, &path).ok_or("no such file")?;
        Ok((pull.branch, path, text))
    }

    async fn show(&self, what: &str) -> Done {
        let (word, rest) = what.split_once(' ').unwrap_or((what, ""));
        match word {
            "world" => Ok(self.world.things()),
            "why" => {
                let status = self.daemon.status.read().await.map_err(|error| error.to_string())?;
                let found =
                    status.instances.iter().find(|instance| instance.id.to_string() == rest).ok_or("no instance")?;
                let why = self.daemon.status.explain(found).await.map_err(|error| error.to_string())?;
                Ok(vec![why.to_string()])
            }
            "comments" => {
                let all = self.forge.comments(number(rest)?);
                Ok(all
                    .iter()
                    .flat_map(|(c, folded)| {
                        std::iter::once(format!("@{}{}", c.author, if *folded { " (folded)" } else { "" }))
                            .chain(text(&c.body).map(|line| format!("  {line}")))
                    })
                    .collect())
            }
            "remediation" => Ok(self.remediation(number(rest)?)?.2.lines().map(str::to_owned).collect()),
            "file" => {
                let (branch, path) = two(rest, " ")?;
                let found = self.repository.text(&format!("refs/heads/{branch}"), path).ok_or("no such file")?;
                Ok(found.lines().map(str::to_owned).collect())
            }
            "branch" => Ok(self
                .forge
                .pulls()
                .iter()
                .filter(|pull| rest == pull.number.0.to_string())
                .map(|pull| pull.branch.clone())
                .collect()),
            other => Err(format!("`show {other}` is nothing")),
        }
    }

    /// Returns all effects on the world, and all comments of the daemon, with those that were minimized.
    #[allow(dead_code, reason = "the crash sweep asks")]
    pub(crate) fn done(&self) -> (Vec<String>, Vec<String>) {
        let mut effects = self.effects.clone();
        effects.sort();
        let mut comments: Vec<String> = vec![];
        for pull in self.forge.pulls() {
            let number = pull.number.0;
            for (comment, folded) in self.forge.comments(number) {
                if comment.author == "evenkeel" {
                    comments.push(format!("#{number} {}{}", if folded { "(folded) " } else { "" }, comment.body));
                }
            }
        }
        (effects, comments)
    }

    /// Returns the runs that did not end, with the blockers of each instance.
    #[allow(dead_code, reason = "the crash sweep asks")]
    pub(crate) async fn stuck(&self) -> Vec<String> {
        let open = self.store.open_runs().await.unwrap();
        let rows = open.iter().flat_map(|run| run.instances.iter().map(move |(id, i)| format!("{id} {:?}", i.status)));
        rows.collect()
    }

    /// Returns the final state: the verdict of each instance, and the world.
    pub(crate) async fn end(&self) -> Vec<String> {
        let status = self.daemon.status.read().await.unwrap();
        let verdicts = status.instances.iter().map(|instance| format!("{}: {}", instance.id, instance.verdict.words()));
        verdicts.chain(self.world.things()).collect()
    }

    /// Returns the visible state, line by line.
    async fn sight(&self) -> BTreeMap<String, String> {
        let mut sight = BTreeMap::new();
        let status = self.daemon.status.read().await.unwrap();
        if let Some(reason) = &status.reason {
            sight.insert("1 repository".into(), format!("the repository: {reason}"));
        }
        for instance in status.instances {
            sight.insert(
                format!("1 {}", instance.id),
                [format!("{}: {}", instance.id, instance.verdict.words()), instance.message()]
                    .into_iter()
                    .filter(|part| !part.is_empty())
                    .collect::<Vec<_>>()
                    .join(" · "),
            );
        }
        for pull in self.forge.pulls() {
            let n = pull.number.0;
            let state = match (&pull.merged_by, pull.open) {
                (Some(by), _) => format!("merged by @{by}"),
                (None, true) => "open".into(),
                (None, false) => "closed".into(),
            };
            sight.insert(format!("2 {n:03}"), format!("#{n} {state}: {} (@{})", pull.title, pull.author));
            for (context, word, message) in self.forge.statuses(&pull.head) {
                sight.insert(format!("3 {n:03} {context}"), format!("#{n} {context} {word}: {message}"));
            }
            for (comment, folded) in self.forge.comments(n) {
                if comment.author == "evenkeel" {
                    let mark = if folded { " (folded)" } else { "" };
                    let shown: Vec<String> = if comment.body.starts_with("###") {
                        text(&comment.body).take(1).collect()
                    } else {
                        text(&comment.body).collect()
                    };
                    sight.insert(
                        format!("4 {n:03} {:05}", comment.id),
                        format!("#{n} @evenkeel{mark}: {}", shown.join(" / ")),
                    );
                }
            }
        }
        sight
    }

    fn changes(&self, before: &BTreeMap<String, String>, effects: Vec<String>) -> Vec<String> {
        let now = &self.seen;
        let mut lines: Vec<String> = effects.into_iter().map(|effect| format!("world: {effect}")).collect();
        lines.extend(now.iter().filter(|(key, line)| before.get(*key) != Some(line)).map(|(_, line)| line.clone()));
        let gone = before.keys().filter(|key| key.starts_with('1') && !now.contains_key(*key));
        lines.extend(gone.map(|key| format!("{}: gone", &key[2..])));
        if lines.is_empty() { vec!["nothing".into()] } else { lines }
    }
}

/// Returns the next pseudo-random number (xorshift), the same in every run.
fn next(state: &mut u64) -> usize {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    usize::try_from(*state >> 33).unwrap()
}

fn local() -> Principal {
    Principal::Token { name: LOCAL_TOKEN.into() }
}

/// Returns the non-empty lines of a text, without the daemon's marker.
fn text(body: &str) -> impl Iterator<Item = String> + '_ {
    body.lines().map(str::trim_end).filter(|line| !line.is_empty() && !line.starts_with("<!--")).map(str::to_owned)
}

#[expect(clippy::too_many_arguments, reason = "each is a part of the world")]
async fn start(
    repository: &Repository,
    forge: &Forge,
    world: &World,
    store: &Store,
    clock: &Arc<Clock>,
    seal: &Arc<Seal>,
    life: &Arc<SimulatedProcess>,
    generation: u32,
) -> Arc<Daemon> {
    let store = store.another(Some(Arc::clone(life) as _));
    let hands = Ports {
        store: store.clone(),
        repository: Arc::new(repository.in_life(Arc::clone(life))),
        target: Arc::new(world.in_life(Arc::clone(life), store)),
        probe: Arc::new(world.clone()),
        forge: Some(Arc::new(forge.in_life(Arc::clone(life)))),
        clock: Arc::clone(clock) as _,
        seal: Arc::clone(seal),
        redactor: Redactor::default(),
    };
    let settings = Settings {
        branch: "main".into(),
        root: "state-repo".into(),
        poll: std::time::Duration::from_secs(60),
        watch: None,
        holder: format!("scenario-{generation}"),
        lease: std::time::Duration::from_secs(120),
    };
    let daemon = Daemon::new(settings, hands);
    daemon.leader.take_lease().await.unwrap();
    daemon
}

/// Returns a remediation without the action of an instance.
fn without_action(text: &str, instance: &str) -> String {
    let begin = |line: &str| line.trim_start().starts_with("- digest:");
    let mut parts: Vec<Vec<&str>> = vec![vec![]];
    for line in text.lines() {
        if begin(line) {
            parts.push(vec![]);
        }
        parts.last_mut().unwrap().push(line);
    }
    parts.retain(|part| !part.iter().any(|line| line.trim() == format!("instance: {instance}")));
    parts.concat().join("\n") + "\n"
}
