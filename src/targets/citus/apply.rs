//! Applies a plan to a cluster, step by step.
//!
//! *Flow:* take the run lock; observe the whole cluster with the credentials for plan; execute each step in order. The
//! administrator changes nodes, the owner of the tables everything else. Moves run concurrently if the version allows
//! it.
//! *Invariant:* each step checks its objects again before it runs, and is skipped if it was done before. A node is
//! removed only if it holds nothing. After `/cancel` the step in flight completes and no further step begins.
//! *Assumption:* one run at a time applies an instance. The run lock guarantees this, and the advisory lock if a
//! daemon lost the run lock.
//! *Race:* the daemon stops. Its sessions end, but a move that Citus began continues and keeps its own lock. The next
//! run waits for that lock, observes the cluster, and does the remaining steps.

use crate::targets::citus::placement::{Address, TransferMode};
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
    model::{Backoff, InstanceId, Retry},
    ports::{Attached, Fence, Job, Observation, Prepared, Progress, ProgressEvent, TargetError, TargetErrorKind},
};

/// The class of run locks; the key is the number of the instance.
const RUN: i32 = 0x0065_766b;
/// The class of effect locks: shared by all effects of a run, so that no other session can lock it exclusively
/// meanwhile.
const EFFECT: i32 = 0x0065_766c;
/// The class of the migration lock, one for each database.
const MIGRATE: i32 = 0x0065_766d;
/// Removes the left-overs of moves.
pub(super) const CLEAN_UP: &str = "CALL citus_cleanup_orphaned_resources()";
/// The poll interval while an earlier effect is in flight.
const POLL_INTERVAL: Duration = Duration::from_secs(2);
/// The time limit for an unreachable coordinator, for the locks of a lost session, and for load that delays a move.
pub(super) const AWAY_TIME_MAX: Duration = Duration::from_secs(900);
/// The time limit for Citus to clean up the left-overs on a node.
const CLEAN_UP_TIME_MAX: Duration = Duration::from_secs(300);
/// The time limit for the server to release the run lock of a dead daemon.
const GONE_TIME_MAX: Duration = Duration::from_secs(90);

/// The prepared plan: the session with the run lock, the steps, and the version of Citus that they were planned for.
struct Ticket {
    guard: Session,
    found: Found,
    version: Version,
}

/// Returns the lock key of an instance.
fn number(id: &InstanceId) -> i32 {
    // Fowler-Noll-Vo hash; two instances of one cluster with the same key would only wait for each other.
    let hash =
        id.to_string().bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    i32::from_ne_bytes(hash.to_ne_bytes())
}

/// The execution of the steps of a run.
pub(super) struct Applying<'a> {
    pub(super) this: &'a Citus,
    pub(super) job: &'a Job,
    pub(super) work: &'a CitusWork,
    pub(super) fence: Fence,
    pub(super) progress: &'a Progress,
    /// The session with the run lock.
    guard: Mutex<Session>,
    /// The version of Citus.
    pub(super) version: Version,
    /// Whether the steps include every move for balance.
    pub(super) is_whole: bool,
}

impl Citus {
    /// Takes the run lock, observes the cluster, and stores the plan.
    pub(super) async fn prepare_work(&self, job: &Job, work: &CitusWork) -> Result<Prepared, TargetError> {
        let guard = self.session(job, Rights::Apply, "run").await?;
        let number = number(&job.instance);
        let since = Instant::now();
        while !guard.row("SELECT pg_try_advisory_lock($1, $2)", &[&RUN, &number]).await?.get::<_, bool>(0) {
            // The server detects only after a delay that a daemon stopped with its machine.
            if since.elapsed() > GONE_TIME_MAX {
                return Err(locked(&guard, RUN, number).await);
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        if !self.is_quiet(&guard, number).await? {
            return Err(locked(&guard, EFFECT, number).await);
        }
        let (observation, found, version) = self.observe_cluster(job, work).await?;
        found.allowed()?;
        Ok(Prepared { observation, ticket: Box::new(Ticket { guard, found, version }) })
    }

    /// Whether no effect of this daemon or an earlier one is in flight.
    async fn is_quiet(&self, session: &Session, number: i32) -> Result<bool, TargetError> {
        let alone = session.row("SELECT pg_try_advisory_lock($1, $2)", &[&EFFECT, &number]).await?.get::<_, bool>(0);
        if alone {
            session.row("SELECT pg_advisory_unlock($1, $2)", &[&EFFECT, &number]).await?;
        }
        Ok(alone)
    }

    /// Applies the prepared steps that remain in the observation.
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

    /// Creates a named restore point on every node. Returns its position in the coordinator's write-ahead log.
    pub(super) async fn create_restore_point(&self, job: &Job, name: &str) -> Result<String, TargetError> {
        let admin = self.session(job, Rights::Admin, "restore point").await?;
        Ok(admin.row("SELECT citus_create_restore_point($1)::text", &[&name]).await?.get(0))
    }

    /// Waits for an effect that continues without the daemon that began it; the caller then observes the cluster.
    pub(super) async fn wait_for_effect(&self, job: &Job, progress: Progress) -> Result<Attached, TargetError> {
        let session = self.session(job, Rights::Apply, "run").await?;
        let number = number(&job.instance);
        let mut is_reported = false;
        while !self.is_quiet(&session, number).await? {
            if !is_reported {
                let holder = locked(&session, EFFECT, number).await;
                progress(ProgressEvent::Now(format!("waits for what goes on without the daemon: {}", holder.message)));
                is_reported = true;
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        Ok(Attached::Gone)
    }
}

/// Returns an error that names the holder of a lock.
async fn locked(session: &Session, class: i32, number: i32) -> TargetError {
    let holder = "SELECT a.application_name || coalesce(', ' || left(a.query, 80), '') FROM pg_locks l JOIN pg_stat_activity a USING (pid) \
                 WHERE l.locktype = 'advisory' AND l.granted AND l.classid::bigint = $1 AND l.objid::bigint = $2 AND pid <> pg_backend_pid()";
    let (class, number) = (i64::from(class), i64::from(u32::from_ne_bytes(number.to_ne_bytes())));
    let rows = session.rows(holder, &[&class, &number]).await.unwrap_or_default();
    let holder_name =
        rows.first().and_then(|row| row.get::<_, Option<String>>(0)).unwrap_or_else(|| "another session".into());
    TargetError {
        retry: Retry::After(Backoff::REMOTE),
        ..TargetError::new(TargetErrorKind::StateLocked, format!("the cluster is being changed by `{holder_name}`"))
    }
}

impl Applying<'_> {
    async fn run(&self, steps: Vec<Step>) -> Result<(), TargetError> {
        let mut begun = false;
        let mut steps = steps.into_iter().peekable();
        while let Some(step) = steps.next() {
            self.check_cancelled(begun)?;
            self.retake_lock().await?;
            let done = match step.task {
                Task::Move(first) => {
                    let mut moves: Vec<Moving> = vec![first];
                    while let Some(Step { task: Task::Move(moving), .. }) =
                        steps.next_if(|step| matches!(step.task, Task::Move(_)))
                    {
                        moves.push(moving);
                    }
                    match self.moves(moves).await {
                        // The window is over: the remaining moves wait for the next window, and later steps depend on
                        // them.
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
                    self.execute(task).await
                }
            };
            done.map_err(|error| {
                let begun = begun || error.effect_may_have_begun;
                TargetError {
                    // Some steps are done; the others are planned again.
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

    /// Returns an error if the run was cancelled.
    pub(super) fn check_cancelled(&self, begun: bool) -> Result<(), TargetError> {
        if !self.this.interrupted.lock().contains(&self.job.instance) {
            return Ok(());
        }
        Err(TargetError {
            retry: Retry::WhenInputChanges,
            effect_may_have_begun: begun,
            ..TargetError::new(TargetErrorKind::Interrupted, "it was asked to end, and began no further step")
        })
    }

    /// Takes the run lock again after a restart of the coordinator, unless another session has it.
    pub(super) async fn retake_lock(&self) -> Result<(), TargetError> {
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
                self.check_cancelled(true)?;
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        }
        Ok(())
    }

    /// Opens a session for one effect, with the effect lock.
    async fn effect(&self, rights: Rights) -> Result<Session, TargetError> {
        self.named_effect(rights, "").await
    }

    /// Opens a session for one effect, with the effect in its application name.
    pub(super) async fn named_effect(&self, rights: Rights, what: &str) -> Result<Session, TargetError> {
        let session = self.this.session(self.job, rights, &format!("run {}{what}", self.fence.run.0)).await?;
        session.row("SELECT pg_advisory_lock_shared($1, $2)", &[&EFFECT, &number(&self.job.instance)]).await?;
        Ok(session)
    }

    async fn execute(&self, task: Task) -> Result<(), TargetError> {
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
                // A concurrent session waits for the lock and finds the migration recorded.
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

    /// Adds a node if it fulfils the requirements, and removes it again if it does not.
    async fn add(&self, address: &Address, holds: bool) -> Result<(), TargetError> {
        let admin = self.effect(Rights::Admin).await?;
        let (host, port) = (text(&address.host), address.port);
        // The node holds no shards until it is proved reachable from all nodes, even if the daemon stops in between.
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

    /// Returns why a node does not fulfil the requirements.
    async fn unfit(&self, admin: &Session, address: &Address) -> Result<Option<String>, TargetError> {
        let (host, port) = (&address.host, i32::from(address.port));
        let ask = "SELECT json_build_object('wal', current_setting('wal_level'), 'prepared', current_setting('max_prepared_transactions')::int, 'version', (SELECT extversion FROM pg_extension WHERE extname = 'citus'))::text";
        let asked = admin
            .rows("SELECT success, result, (SELECT extversion FROM pg_extension WHERE extname = 'citus') FROM run_command_on_workers($1) WHERE nodename = $2 AND nodeport = $3", &[&ask, host, &port])
            .await?;
        let Some(row) = asked.first() else { return Ok(Some("Citus does not reach it".into())) };
        let report: String = row.get::<_, Option<String>>(1).unwrap_or_default();
        if !row.get::<_, bool>(0) {
            return Ok(Some(report));
        }
        let report: serde_json::Value = serde_json::from_str(&report).unwrap_or_default();
        let version: String = row.get(2);
        if report["version"] != version.as_str() {
            return Ok(Some(format!("it has Citus {}, and the coordinator {version}", report["version"])));
        }
        if self.work.moves.transfer_mode != TransferMode::BlockWrites && report["wal"] != "logical" {
            return Ok(Some(format!(
                "it has `wal_level = {}`; set `logical` and restart it",
                report["wal"].as_str().unwrap_or_default()
            )));
        }
        if report["prepared"] == 0 {
            return Ok(Some("it has `max_prepared_transactions = 0`; Citus commits in two phases".into()));
        }
        let health = "SELECT from_nodename, from_nodeport, to_nodename, to_nodeport FROM citus_check_cluster_node_health() WHERE NOT coalesce(result, false)";
        let silent = admin.rows(health, &[]).await?;
        Ok(silent.first().map(|row| {
            let node = |at: usize| format!("{}:{}", row.get::<_, String>(at), row.get::<_, i32>(at + 1));
            format!("`{}` does not reach `{}`", node(0), node(2))
        }))
    }

    /// Removes an empty node.
    async fn remove(&self, address: &Address) -> Result<(), TargetError> {
        let admin = self.effect(Rights::Admin).await?;
        let shards = "SELECT count(*) FROM pg_dist_placement p JOIN pg_dist_node n USING (groupid) JOIN pg_dist_shard s USING (shardid) JOIN pg_dist_partition t USING (logicalrelid) \
                    WHERE n.nodename = $1 AND n.nodeport = $2 AND p.shardstate = 1 AND t.repmodel <> 't'";
        let shards: i64 = admin.row(shards, &[&address.host, &i32::from(address.port)]).await?.get(0);
        if shards > 0 {
            let message = format!("`{address}` still holds {shards} shards and is not removed");
            return Err(TargetError {
                retry: Retry::WhenInputChanges,
                ..TargetError::new(TargetErrorKind::InUse, message)
            });
        }
        self.cleaned(&admin, address).await?;
        admin.run(&format!("SELECT citus_remove_node({}, {})", text(&address.host), address.port)).await
    }

    /// Waits until the left-overs on a node are cleaned up. After the removal of the node Citus could not clean them
    /// up, and would refuse to move those shards again.
    async fn cleaned(&self, admin: &Session, address: &Address) -> Result<(), TargetError> {
        let left_overs = "SELECT count(*) FROM pg_dist_cleanup c JOIN pg_dist_node n ON n.groupid = c.node_group_id WHERE n.nodename = $1 AND n.nodeport = $2";
        let since = Instant::now();
        loop {
            admin.run(CLEAN_UP).await?;
            let count: i64 = admin.row(left_overs, &[&address.host, &i32::from(address.port)]).await?.get(0);
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
            self.check_cancelled(true)?;
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }
}

/// Returns the statement that copies reference tables to every node, with the declared transfer mode.
fn replicate(work: &CitusWork) -> String {
    format!("SELECT replicate_reference_tables({})", text(work.moves.transfer_mode.word()))
}

/// Quotes the name of a table.
fn quoted(table: &str) -> String {
    text(&table.split('.').map(name).collect::<Vec<_>>().join("."))
}

/// Whether a table already has its target state: an earlier migration may have distributed it.
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

/// Returns the statements that the owner of the tables executes for a step.
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
