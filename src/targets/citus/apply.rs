//! A plan for a cluster, done step by step.
//!
//! *Flow:* the lock of the run, a whole look with the credentials of plan, and then each step in its order: nodes by the
//! administrator, everything else by the owner of the tables; moves several at a time where the version can.
//! *Guarantees:* each step looks once more at what it is about right before it does it, and finds it done if it is. A node
//! goes only if it holds nothing. After `/cancel` the step in flight ends and none begins.
//! *Assumptions:* one run at a time applies an instance; the run lock sees to it, and the advisory lock where a daemon lost it.
//! *Race:* the daemon dies: its sessions end, but a move that Citus had begun goes on and keeps its own lock. Whoever comes
//! next waits for that lock, looks, and does what is left.

use crate::targets::citus::work::CitusWork;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use super::{
    Citus,
    access::{Rights, Session, name, text},
    drift, migrations,
    observe::Version,
};
use crate::targets::citus::steps::Moving;
use crate::targets::citus::steps::{Found, Step, Task};
use crate::{
    model::{Backoff, InstanceId, Retry, citus::Address},
    ports::{Attached, Fence, Job, Observation, Prepared, Progress, ProgressEvent, TargetError, TargetErrorKind},
};

/// The lock of a run; with the instance's own number.
const RUN: i32 = 0x0065_766b;
/// The lock of an effect: shared by all of a run, so that nobody else holds it alone meanwhile.
const EFFECT: i32 = 0x0065_766c;
/// The lock of migrations, of a whole database.
const MIGRATE: i32 = 0x0065_766d;
/// Removes what moves left behind.
pub(super) const CLEAN_UP: &str = "CALL citus_cleanup_orphaned_resources()";
/// How often it is looked whether an effect that was left behind has ended.
const LOOK: Duration = Duration::from_secs(2);
/// How long a coordinator may be away, how long a lost session of ours may hold a lock, and how long load may keep a move from
/// beginning.
pub(super) const AWAY_TIME_MAX: Duration = Duration::from_secs(900);
/// How long Citus may take to clean up what left a node.
const CLEAN_UP_TIME_MAX: Duration = Duration::from_secs(300);
/// How long the lock of a daemon that is gone may be held, before the server lets go of it.
const GONE_TIME_MAX: Duration = Duration::from_secs(90);

/// What stands ready: the session that holds the lock of the run, what would be done, and the version that it is planned for.
struct Ticket {
    guard: Session,
    found: Found,
    version: Version,
}

/// The number of an instance among locks.
fn number(id: &InstanceId) -> i32 {
    // Fowler-Noll-Vo; two instances of one cluster with the same number would only wait for each other.
    let hash =
        id.to_string().bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    i32::from_ne_bytes(hash.to_ne_bytes())
}

/// One run of steps.
pub(super) struct Applying<'a> {
    pub(super) this: &'a Citus,
    pub(super) job: &'a Job,
    pub(super) work: &'a CitusWork,
    pub(super) fence: Fence,
    pub(super) progress: &'a Progress,
    /// What holds the lock of the run.
    guard: Mutex<Session>,
    /// The version of Citus.
    pub(super) version: Version,
    /// Whether every move that the balance asks for is among the steps.
    pub(super) is_whole: bool,
}

impl Citus {
    /// Takes the lock of the run, looks, and keeps what would be done.
    pub(super) async fn prepare_work(&self, job: &Job, work: &CitusWork) -> Result<Prepared, TargetError> {
        let guard = self.session(job, Rights::Apply, "run").await?;
        let number = number(&job.instance);
        let since = Instant::now();
        while !guard.row("SELECT pg_try_advisory_lock($1, $2)", &[&RUN, &number]).await?.get::<_, bool>(0) {
            // The server notices within a while that a daemon is gone with its machine.
            if since.elapsed() > GONE_TIME_MAX {
                return Err(locked(&guard, RUN, number).await);
            }
            tokio::time::sleep(LOOK).await;
        }
        if !self.is_quiet(&guard, number).await? {
            return Err(locked(&guard, EFFECT, number).await);
        }
        let (observation, found, version) = self.look(job, work).await?;
        found.allowed()?;
        Ok(Prepared { observation, ticket: Box::new(Ticket { guard, found, version }) })
    }

    /// Whether no effect is in flight, of this daemon or one before.
    async fn is_quiet(&self, session: &Session, number: i32) -> Result<bool, TargetError> {
        let alone = session.row("SELECT pg_try_advisory_lock($1, $2)", &[&EFFECT, &number]).await?.get::<_, bool>(0);
        if alone {
            session.row("SELECT pg_advisory_unlock($1, $2)", &[&EFFECT, &number]).await?;
        }
        Ok(alone)
    }

    /// Does what was prepared, as far as it still stands in the observation.
    pub(super) async fn apply_work(
        &self,
        job: &Job,
        work: &CitusWork,
        prepared: Prepared,
        fence: Fence,
        progress: Progress,
    ) -> Result<(), TargetError> {
        let Prepared { observation: Observation { changes, .. }, ticket } = prepared;
        let Ok(ticket) = ticket.downcast::<Ticket>() else {
            return Err(TargetError::new(
                TargetErrorKind::PlanMissing,
                format!("the plan of `{}` is of another kind", job.instance),
            ));
        };
        let Ticket { guard, found, version } = *ticket;
        let (steps, is_whole) = drift::meant(found, &changes)?;
        self.interrupted.lock().remove(&job.instance);
        self.in_flight.lock().insert(job.instance.clone());
        let guard = Mutex::new(guard);
        let applying = Applying { this: self, job, work, fence, progress: &progress, guard, version, is_whole };
        let done = applying.run(steps).await;
        self.in_flight.lock().remove(&job.instance);
        done
    }

    /// Makes a named restore point on every node; answers where it is in the coordinator's log.
    pub(super) async fn create_restore_point(&self, job: &Job, name: &str) -> Result<String, TargetError> {
        let admin = self.session(job, Rights::Admin, "restore point").await?;
        Ok(admin.row("SELECT citus_create_restore_point($1)::text", &[&name]).await?.get(0))
    }

    /// Waits for an effect that goes on without the daemon that began it; then the world tells what became of it.
    pub(super) async fn wait_for_effect(&self, job: &Job, progress: Progress) -> Result<Attached, TargetError> {
        let session = self.session(job, Rights::Apply, "run").await?;
        let number = number(&job.instance);
        let mut said = false;
        while !self.is_quiet(&session, number).await? {
            if !said {
                let whose = locked(&session, EFFECT, number).await;
                progress(ProgressEvent::Now(format!("waits for what goes on without the daemon: {}", whose.message)));
                said = true;
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(Attached::Gone)
    }
}

/// Returns the holder of a lock.
async fn locked(session: &Session, class: i32, number: i32) -> TargetError {
    let whose = "SELECT a.application_name || coalesce(', ' || left(a.query, 80), '') FROM pg_locks l JOIN pg_stat_activity a USING (pid) \
                 WHERE l.locktype = 'advisory' AND l.granted AND l.classid::bigint = $1 AND l.objid::bigint = $2 AND pid <> pg_backend_pid()";
    let (class, number) = (i64::from(class), i64::from(u32::from_ne_bytes(number.to_ne_bytes())));
    let rows = session.rows(whose, &[&class, &number]).await.unwrap_or_default();
    let who = rows.first().and_then(|row| row.get::<_, Option<String>>(0)).unwrap_or_else(|| "another session".into());
    TargetError {
        retry: Retry::After(Backoff::REMOTE),
        ..TargetError::new(TargetErrorKind::StateLocked, format!("the cluster is being changed by `{who}`"))
    }
}

impl Applying<'_> {
    async fn run(&self, steps: Vec<Step>) -> Result<(), TargetError> {
        let mut begun = false;
        let mut steps = steps.into_iter().peekable();
        while let Some(step) = steps.next() {
            self.heed(begun)?;
            self.keep_lock().await?;
            let done = match step.task {
                Task::Move(first) => {
                    let mut moves: Vec<Moving> = vec![first];
                    while let Some(Step { task: Task::Move(moving), .. }) =
                        steps.next_if(|step| matches!(step.task, Task::Move(_)))
                    {
                        moves.push(moving);
                    }
                    match self.moves(moves).await {
                        // The window is over: what is left waits for the next one, and nothing after it can be done.
                        Ok(false) => return Ok(()),
                        done => done.map(drop),
                    }
                }
                task => {
                    if matches!(task, Task::Rewrite { .. }) {
                        let name = format!("evenkeel_run_{}", self.fence.run.0);
                        let at = self.this.create_restore_point(self.job, &name).await?;
                        (self.progress)(ProgressEvent::Step(format!("restore point `{name}` at {at}")));
                    }
                    (self.progress)(ProgressEvent::Step(format!(
                        "{} {}",
                        step.change.change.verb(),
                        step.change.resource
                    )));
                    self.one(task).await
                }
            };
            done.map_err(|error| {
                let begun = begun || error.effect_may_have_begun;
                TargetError {
                    // A part is done, and the rest is planned again.
                    kind: if begun && error.kind == TargetErrorKind::PlanStale {
                        TargetErrorKind::ApplyStale
                    } else {
                        error.kind
                    },
                    effect_may_have_begun: begun,
                    message: format!("{}: {}", step.change.resource, error.message),
                    ..error
                }
            })?;
            begun = true;
        }
        Ok(())
    }

    /// Ends here if that was asked for.
    pub(super) fn heed(&self, begun: bool) -> Result<(), TargetError> {
        if !self.this.interrupted.lock().contains(&self.job.instance) {
            return Ok(());
        }
        Err(TargetError {
            retry: Retry::WhenInputChanges,
            effect_may_have_begun: begun,
            ..TargetError::new(TargetErrorKind::Interrupted, "it was asked to end, and began no further step")
        })
    }

    /// Takes the lock of the run again where the coordinator restarted, unless somebody else has it.
    pub(super) async fn keep_lock(&self) -> Result<(), TargetError> {
        let mut guard = self.guard.lock().await;
        let since = Instant::now();
        while guard.is_closed() {
            let number = number(&self.job.instance);
            let again = self.this.session(self.job, Rights::Apply, "run").await?;
            if again.row("SELECT pg_try_advisory_lock($1, $2)", &[&RUN, &number]).await?.get::<_, bool>(0) {
                *guard = again;
            } else if since.elapsed() > AWAY_TIME_MAX {
                return Err(locked(&again, RUN, number).await);
            } else {
                self.heed(true)?;
                tokio::time::sleep(LOOK).await;
            }
        }
        Ok(())
    }

    /// A session for one effect, with the effect's own lock.
    async fn effect(&self, rights: Rights) -> Result<Session, TargetError> {
        self.named_effect(rights, "").await
    }

    /// The same, named after what it does.
    pub(super) async fn named_effect(&self, rights: Rights, what: &str) -> Result<Session, TargetError> {
        let session = self.this.session(self.job, rights, &format!("run {}{what}", self.fence.run.0)).await?;
        session.row("SELECT pg_advisory_lock_shared($1, $2)", &[&EFFECT, &number(&self.job.instance)]).await?;
        Ok(session)
    }

    async fn one(&self, task: Task) -> Result<(), TargetError> {
        match task {
            Task::Add { address, holds } => self.add(&address, holds).await,
            Task::Activate(address) => {
                let admin = self.effect(Rights::Admin).await?;
                admin.run(&format!("SELECT citus_activate_node({}, {})", text(&address.host), address.port)).await
            }
            Task::Holds { address, holds } => {
                let admin = self.effect(Rights::Admin).await?;
                if holds && let Some(why) = self.unfit(&admin, &address).await? {
                    let message = format!("`{address}` does not get shards: {why}");
                    return Err(TargetError {
                        retry: Retry::WhenInputChanges,
                        ..TargetError::new(TargetErrorKind::Node, message)
                    });
                }
                set_holds(&admin, &address, holds).await
            }
            Task::Remove(address) => self.remove(&address).await,
            Task::Along(_) => Ok(()),
            Task::CleanUp => self.effect(Rights::Apply).await?.run(CLEAN_UP).await,
            Task::Replicate => self.effect(Rights::Admin).await?.run(&replicate(self.work)).await,
            Task::Migrate(migration) => {
                let owner = self.effect(Rights::Apply).await?;
                // Whoever else applies one waits, and finds it recorded.
                owner.run(&format!("SELECT pg_advisory_lock({MIGRATE}, 0)")).await?;
                migrations::apply(&owner, &migration).await
            }
            task => {
                let owner = self.effect(Rights::Apply).await?;
                if is_done(&owner, &task).await? {
                    return Ok(());
                }
                for statement in statements(&task) {
                    owner.run(&statement).await?;
                }
                Ok(())
            }
        }
    }

    /// Adds a node once it is what it has to be, and takes it out again where it is not.
    async fn add(&self, address: &Address, holds: bool) -> Result<(), TargetError> {
        let admin = self.effect(Rights::Admin).await?;
        let (host, port) = (text(&address.host), address.port);
        // It gets nothing before it has proved that it can be reached from everywhere, also where we die in between.
        admin.run(&format!("BEGIN; SELECT citus_add_node({host}, {port}); SELECT citus_set_node_property({host}, {port}, 'shouldhaveshards', false); COMMIT")).await?;
        let unfit = self.unfit(&admin, address).await.unwrap_or_else(|error| Some(error.message));
        if let Some(why) = unfit {
            admin.run(&format!("SELECT citus_remove_node({host}, {port})")).await?;
            let message = format!("`{address}` was not added: {why}");
            return Err(TargetError {
                retry: Retry::WhenInputChanges,
                ..TargetError::new(TargetErrorKind::Node, message)
            });
        }
        set_holds(&admin, address, holds).await?;
        let references = "SELECT count(*) FROM pg_dist_partition WHERE repmodel = 't'";
        if admin.row(references, &[]).await?.get::<_, i64>(0) > 0 {
            admin.run(&replicate(self.work)).await?;
        }
        Ok(())
    }

    /// Why a node can't take part.
    async fn unfit(&self, admin: &Session, address: &Address) -> Result<Option<String>, TargetError> {
        let (host, port) = (&address.host, i32::from(address.port));
        let ask = "SELECT json_build_object('wal', current_setting('wal_level'), 'prepared', current_setting('max_prepared_transactions')::int, 'version', (SELECT extversion FROM pg_extension WHERE extname = 'citus'))::text";
        let asked = admin
            .rows("SELECT success, result, (SELECT extversion FROM pg_extension WHERE extname = 'citus') FROM run_command_on_workers($1) WHERE nodename = $2 AND nodeport = $3", &[&ask, host, &port])
            .await?;
        let Some(row) = asked.first() else { return Ok(Some("Citus does not reach it".into())) };
        let said: String = row.get::<_, Option<String>>(1).unwrap_or_default();
        if !row.get::<_, bool>(0) {
            return Ok(Some(said));
        }
        let said: serde_json::Value = serde_json::from_str(&said).unwrap_or_default();
        let version: String = row.get(2);
        if said["version"] != version.as_str() {
            return Ok(Some(format!("it has Citus {}, and the coordinator {version}", said["version"])));
        }
        if self.work.moves.transfer_mode != crate::model::citus::TransferMode::BlockWrites && said["wal"] != "logical" {
            return Ok(Some(format!(
                "it has `wal_level = {}`; set `logical` and restart it",
                said["wal"].as_str().unwrap_or_default()
            )));
        }
        if said["prepared"] == 0 {
            return Ok(Some("it has `max_prepared_transactions = 0`; Citus commits in two phases".into()));
        }
        let health = "SELECT from_nodename, from_nodeport, to_nodename, to_nodeport FROM citus_check_cluster_node_health() WHERE NOT coalesce(result, false)";
        let silent = admin.rows(health, &[]).await?;
        Ok(silent.first().map(|row| {
            let node = |at: usize| format!("{}:{}", row.get::<_, String>(at), row.get::<_, i32>(at + 1));
            format!("`{}` does not reach `{}`", node(0), node(2))
        }))
    }

    /// Removes a node that holds nothing.
    async fn remove(&self, address: &Address) -> Result<(), TargetError> {
        let admin = self.effect(Rights::Admin).await?;
        let held = "SELECT count(*) FROM pg_dist_placement p JOIN pg_dist_node n USING (groupid) JOIN pg_dist_shard s USING (shardid) JOIN pg_dist_partition t USING (logicalrelid) \
                    WHERE n.nodename = $1 AND n.nodeport = $2 AND p.shardstate = 1 AND t.repmodel <> 't'";
        let held: i64 = admin.row(held, &[&address.host, &i32::from(address.port)]).await?.get(0);
        if held > 0 {
            let message = format!("`{address}` still holds {held} shards and is not removed");
            return Err(TargetError {
                retry: Retry::WhenInputChanges,
                ..TargetError::new(TargetErrorKind::InUse, message)
            });
        }
        self.cleaned(&admin, address).await?;
        admin.run(&format!("SELECT citus_remove_node({}, {})", text(&address.host), address.port)).await
    }

    /// Waits until nothing is left of the shards that left a node: once the node is gone, Citus could clean up no more, and
    /// would refuse to move those shards ever again.
    async fn cleaned(&self, admin: &Session, address: &Address) -> Result<(), TargetError> {
        let left = "SELECT count(*) FROM pg_dist_cleanup c JOIN pg_dist_node n ON n.groupid = c.node_group_id WHERE n.nodename = $1 AND n.nodeport = $2";
        let since = Instant::now();
        loop {
            admin.run(CLEAN_UP).await?;
            let count: i64 = admin.row(left, &[&address.host, &i32::from(address.port)]).await?.get(0);
            if count == 0 {
                return Ok(());
            }
            if since.elapsed() > CLEAN_UP_TIME_MAX {
                let message =
                    format!("{count} left-overs of moves on `{address}` can't be cleaned up, and it is not removed");
                return Err(TargetError {
                    retry: Retry::WhenInputChanges,
                    ..TargetError::new(TargetErrorKind::InUse, message)
                });
            }
            self.heed(true)?;
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Brings reference tables to every node, as the declaration lets shards be moved.
fn replicate(work: &CitusWork) -> String {
    format!("SELECT replicate_reference_tables({})", text(work.moves.transfer_mode.word()))
}

/// A table in SQL.
fn quoted(table: &str) -> String {
    text(&table.split('.').map(name).collect::<Vec<_>>().join("."))
}

/// Whether a table already is what it is to become: a migration before may have distributed it.
async fn is_done(owner: &Session, task: &Task) -> Result<bool, TargetError> {
    let (table, column) = match task {
        Task::Distribute { table, column, .. } => (table, Some(column)),
        Task::Refer(table) => (table, None),
        _ => return Ok(false),
    };
    let sql = format!(
        "SELECT partmethod::text, repmodel::text, column_to_column_name(logicalrelid, partkey) FROM pg_dist_partition WHERE logicalrelid = to_regclass({})",
        quoted(table)
    );
    let rows = owner.rows(&sql, &[]).await?;
    let Some(row) = rows.first() else { return Ok(false) };
    let (method, model, by): (String, String, Option<String>) = (row.get(0), row.get(1), row.get(2));
    let is_local = method == "n" && model != "t";
    match column {
        _ if is_local => Ok(false),
        Some(column) if method == "h" && by.as_ref() == Some(column) => Ok(true),
        None if model == "t" => Ok(true),
        _ => Err(TargetError::new(
            TargetErrorKind::PlanStale,
            format!("`{table}` was distributed in another way meanwhile"),
        )),
    }
}

async fn set_holds(admin: &Session, address: &Address, holds: bool) -> Result<(), TargetError> {
    let (host, port) = (text(&address.host), address.port);
    admin.run(&format!("SELECT citus_set_node_property({host}, {port}, 'shouldhaveshards', {holds})")).await
}

/// What the owner of the tables says for a step, statement by statement.
fn statements(task: &Task) -> Vec<String> {
    match task {
        Task::MakeSchema(schema) => {
            vec!["SET citus.enable_schema_based_sharding TO on".into(), format!("CREATE SCHEMA {}", name(schema))]
        }
        Task::DistributeSchema(schema) => {
            vec![format!("SELECT citus_schema_distribute({}::regnamespace)", text(&name(schema)))]
        }
        Task::Distribute { table, column, with, shards, has_rows } => {
            let function = if *has_rows { "create_distributed_table_concurrently" } else { "create_distributed_table" };
            let count = shards.map(|count| format!(", shard_count => {count}")).unwrap_or_default();
            let with = if with.contains('.') { quoted(with) } else { text(with) };
            vec![format!("SELECT {function}({}, {}, colocate_with => {with}{count})", quoted(table), text(column))]
        }
        Task::Refer(table) => vec![format!("SELECT create_reference_table({})", quoted(table))],
        Task::Rewrite { table, column, shards, with, undistribute } => {
            let table = quoted(table);
            if *undistribute {
                let mut all = vec![format!("SELECT undistribute_table({table})")];
                all.push(match column {
                    Some(column) => {
                        let with = with.as_ref().map(|with| format!(", colocate_with => {}", quoted(with)));
                        let count = shards.filter(|_| with.is_none()).map(|count| format!(", shard_count => {count}"));
                        let more: String = with.into_iter().chain(count).collect();
                        format!("SELECT create_distributed_table({table}, {}{more})", text(column))
                    }
                    None => format!("SELECT create_reference_table({table})"),
                });
                return all;
            }
            let mut arguments = vec![table];
            arguments.extend(column.as_ref().map(|column| format!("distribution_column => {}", text(column))));
            arguments.extend(with.as_ref().map(|with| format!("colocate_with => {}", quoted(with))));
            if let Some(count) = shards {
                arguments.push(format!("shard_count => {count}, cascade_to_colocated => true"));
            }
            vec![format!("SELECT alter_distributed_table({})", arguments.join(", "))]
        }
        Task::Add { .. }
        | Task::Activate(_)
        | Task::Holds { .. }
        | Task::Remove(_)
        | Task::Migrate(_)
        | Task::Along(_)
        | Task::CleanUp
        | Task::Replicate
        | Task::Move(_) => vec![],
    }
}
