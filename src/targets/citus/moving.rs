//! Moves shard groups, each in its own session.
//!
//! *Flow:* before each move, check that the group is at its source, and that the window and the load allow the move.
//! Citus then moves the group, and the catalog confirms its new node.
//! *Invariant:* the catalog alone decides where a move ended. No move begins that would exceed the window. No move
//! begins while replicas lag, a disk is full, or the configured query reports load.
//! *Race:* the coordinator restarts during a move. The mover waits until the coordinator responds and the move is not
//! in flight, checks the catalog, and repeats the move if it did not happen.
//! *Race:* another session moved the group. A group at its destination is done; a group on a third node makes the plan
//! stale.

use crate::targets::citus::placement::Address;
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use futures::{FutureExt, StreamExt, stream::FuturesUnordered};

use super::{
    access::{Rights, Session, text},
    apply::{AWAY_TIME_MAX, Applying, CLEAN_UP},
    rebalance::{at_once, moved, shares_colocation},
};
use crate::targets::citus::steps::Moving;
use crate::{
    domain::message::layout::size,
    model::{Backoff, Retry},
    ports::{ProgressEvent, TargetError, TargetErrorKind},
};

/// The maximum attempts of a move after a loss of the coordinator.
const TRIES_MAX: u32 = 3;
/// The poll interval for progress, load and unreachable nodes.
const POLL_INTERVAL: Duration = Duration::from_secs(2);
/// The time that a node may be unresponsive during a move from it or to it.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// The weight of earlier measurements of the speed, relative to the last one.
const MEMORY: u64 = 3;

/// The location of a group.
enum Where {
    /// On its source node.
    Source,
    /// On its destination node.
    Target,
    /// On another node.
    Other(String),
}

impl Applying<'_> {
    /// Moves groups, as many concurrently as allowed. Returns whether all of them moved, or false at the end of the
    /// window.
    pub(super) async fn moves(&self, moves: Vec<Moving>) -> Result<bool, TargetError> {
        let (parallel, all_at_once) = (at_once(self.version, &self.work.moves), shares_colocation(self.version));
        // Left-overs of an earlier move block a move to the same node.
        drop(self.named_effect(Rights::Apply, " clean up").await?.run(CLEAN_UP).await);
        let mut waiting = moves;
        let mut memory = self.this.memory(&self.job.instance).await?;
        let mut running = FuturesUnordered::new();
        let mut locked: BTreeSet<i32> = BTreeSet::new();
        let (mut is_over, mut stop, mut begun, mut balanced) = (false, None, false, false);
        loop {
            while stop.is_none() && !is_over && running.len() < parallel {
                let free = |moving: &Moving| all_at_once || !locked.contains(&moving.colocation);
                let Some(at) = waiting.iter().position(free) else { break };
                if let Err(error) = self.check_cancelled(begun) {
                    stop = Some(error);
                    break;
                }
                if !self.fits(&waiting[at], memory.bytes_per_second) {
                    is_over = true;
                    (self.progress)(ProgressEvent::Step(format!("{} moves wait for the next window", waiting.len())));
                    break;
                }
                let moving = waiting.remove(at);
                locked.insert(moving.colocation);
                let speed = memory.bytes_per_second;
                running.push(async move { (self.one_move(&moving, speed).await, moving) }.boxed());
            }
            let Some((done, moving)) = running.next().await else { break };
            locked.remove(&moving.colocation);
            match done {
                Ok(took) => {
                    begun = true;
                    if let Some(speed) =
                        took.and_then(|took| moving.bytes.checked_div(took.as_secs())).filter(|speed| *speed > 0)
                    {
                        let known = memory.bytes_per_second.unwrap_or(speed);
                        memory.bytes_per_second = Some((known * (MEMORY - 1) + speed) / MEMORY);
                    }
                    balanced |= moving.for_balance;
                    let speed = memory.bytes_per_second;
                    self.this.note(&self.job.instance, |memory| memory.bytes_per_second = speed).await?;
                }
                // No further move begins; the remaining moves wait for the next window.
                Err(error) if error.kind == TargetErrorKind::WindowOver => {
                    is_over = true;
                    (self.progress)(ProgressEvent::Step(format!(
                        "{} moves wait for the next window: {}",
                        waiting.len() + 1,
                        error.message
                    )));
                }
                // Concurrent moves complete first.
                Err(error) => {
                    let message = format!("{}: {}", moved(&moving.group, &moving.from), error.message);
                    stop = Some(TargetError { message, ..error });
                }
            }
        }
        if balanced && stop.is_none() && !is_over && self.is_whole {
            // The cooldown begins after the last move; an interrupted rebalance continues without one.
            let now = chrono::Utc::now().timestamp();
            self.this.note(&self.job.instance, |memory| memory.rebalanced_at = Some(now)).await?;
        }
        match stop {
            Some(error) => Err(TargetError { effect_may_have_begun: begun || error.effect_may_have_begun, ..error }),
            None => Ok(!is_over),
        }
    }

    /// Whether a move would complete within the window.
    fn fits(&self, moving: &Moving, speed: Option<u64>) -> bool {
        let Some(until) = self.work.until else { return true };
        let seconds = i64::try_from(moving.seconds(speed)).unwrap_or(i64::MAX);
        chrono::Utc::now().timestamp().saturating_add(seconds) <= until.timestamp()
    }

    /// Moves one group. Returns the duration, or `None` if the group was already at its destination.
    async fn one_move(&self, moving: &Moving, speed: Option<u64>) -> Result<Option<Duration>, TargetError> {
        let (mut tries, since) = (0, Instant::now());
        loop {
            tries += 1;
            let owner = self.back(moving.shard, tries > 1).await?;
            match find(&owner, moving).await? {
                Where::Target => return Ok(None),
                Where::Source => {}
                Where::Other(where_) => {
                    return Err(TargetError::new(
                        TargetErrorKind::PlanStale,
                        format!("it is on {where_} now, and not on `{}`", moving.from),
                    ));
                }
            }
            self.wait_for_load(&owner, moving, speed).await?;
            let began = Instant::now();
            (self.progress)(ProgressEvent::Step(format!(
                "moving `{}` ({}) from {} to {}",
                moving.group,
                size(moving.bytes),
                moving.from,
                moving.to
            )));
            let done = self.call(&owner, moving).await;
            let Err(error) = done else {
                if !matches!(find(&owner, moving).await?, Where::Target) {
                    return Err(TargetError::new(
                        TargetErrorKind::Move,
                        format!("Citus reported the move as done, and the shard is not on `{}`", moving.to),
                    ));
                }
                (self.progress)(ProgressEvent::Step(format!(
                    "moved `{}` in {} s",
                    moving.group,
                    began.elapsed().as_secs()
                )));
                return Ok(Some(began.elapsed()));
            };
            // Another session moves a group of the same colocation, and will end.
            if error.message.contains("could not acquire the lock") && since.elapsed() < AWAY_TIME_MAX {
                self.check_cancelled(true)?;
                (self.progress)(ProgressEvent::Now(format!("`{}` waits: {}", moving.group, error.message)));
                tries -= 1;
                tokio::time::sleep(POLL_INTERVAL).await;
                continue;
            }
            let is_lost = error.kind == TargetErrorKind::Unreachable;
            if is_lost && tries < TRIES_MAX {
                self.check_cancelled(true)?;
                tracing::warn!(kind = "move-lost", instance = %self.job.instance, error = error.line(), "the connection was lost during a move; the cluster is observed again");
                continue;
            }
            if !is_lost {
                // Left-overs would block the next move. A failed cleanup is not an error here.
                drop(owner.run(CLEAN_UP).await);
            }
            return Err(TargetError { effect_may_have_begun: true, retry: Retry::WhenInputChanges, ..error });
        }
    }

    /// Opens a session for a move. After a loss, first waits until the coordinator responds and the move is not in
    /// flight.
    async fn back(&self, shard: i64, lost: bool) -> Result<Session, TargetError> {
        let begin = Instant::now();
        loop {
            match self.named_effect(Rights::Apply, &format!(" move {shard}")).await {
                Err(error) if lost && error.kind == TargetErrorKind::Unreachable && begin.elapsed() < AWAY_TIME_MAX => {
                    self.check_cancelled(true)?;
                    tokio::time::sleep(POLL_INTERVAL).await;
                }
                Ok(session) if lost => {
                    // Another run may have begun in the meantime.
                    self.retake_lock().await?;
                    self.settle(&session, shard, begin).await?;
                    return Ok(session);
                }
                done => return done,
            }
        }
    }

    /// Waits until no other session has this move in flight; concurrent moves of other groups do not count.
    async fn settle(&self, session: &Session, shard: i64, begin: Instant) -> Result<(), TargetError> {
        let others = "SELECT count(*) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND state = 'active' AND query LIKE $1";
        let mine = format!("SELECT citus_move_shard_placement({shard}, %");
        while session.row(others, &[&mine]).await?.get::<_, i64>(0) > 0 {
            if begin.elapsed() > AWAY_TIME_MAX {
                return Err(TargetError::new(
                    TargetErrorKind::StateLocked,
                    "a move that was lost goes on; wait for it, and comment `/apply`",
                ));
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }

    /// Runs a move in Citus and reports its progress.
    async fn call(&self, owner: &Session, moving: &Moving) -> Result<(), TargetError> {
        let (from, to) = (address(&moving.from)?, address(&moving.to)?);
        let sql = format!(
            "SELECT citus_move_shard_placement({}, {}, {}, {}, {}, {})",
            moving.shard,
            text(&from.host),
            from.port,
            text(&to.host),
            to.port,
            text(self.work.moves.transfer_mode.word())
        );
        let pid: i32 = owner.row("SELECT pg_backend_pid()", &[]).await?.get(0);
        let mut call = std::pin::pin!(owner.run(&sql));
        let mut silent: Option<Instant> = None;
        let mut beside: Option<Session> = None;
        loop {
            tokio::select! {
                done = &mut call => return done,
                () = tokio::time::sleep(POLL_INTERVAL) => {}
            }
            // A query that a frozen node leaves open would block later ones, so its session is closed.
            if beside.as_ref().is_none_or(Session::is_closed) {
                beside = self.beside().await.ok();
            }
            let Some(aside) = &beside else { continue };
            // Citus itself would wait for hours for an unreachable source.
            let Ok(is_silent) = is_silent(aside, [&from, &to]).await else {
                beside = None;
                continue;
            };
            let since = silent.filter(|_| is_silent).unwrap_or_else(Instant::now);
            silent = is_silent.then_some(since);
            if is_silent && since.elapsed() > SILENCE_MAX {
                aside.row("SELECT pg_cancel_backend($1)", &[&pid]).await?;
                drop(call.await);
                let message =
                    format!("`{}` or `{}` does not answer any more; the move was cancelled", moving.from, moving.to);
                return Err(TargetError::new(TargetErrorKind::Move, message));
            }
            let far = "SELECT sum(source_shard_size)::bigint, sum(target_shard_size)::bigint, min(status::text) FROM get_rebalance_progress() WHERE sourcename = $1 AND sourceport = $2 AND targetname = $3 AND targetport = $4";
            let with: [&(dyn tokio_postgres::types::ToSql + Sync); 4] =
                [&from.host, &i32::from(from.port), &to.host, &i32::from(to.port)];
            // The progress is optional; the move continues without it.
            let Ok(row) = aside.row(far, &with).await else {
                beside = None;
                continue;
            };
            if let (Some(total), Some(done)) = (row.get::<_, Option<i64>>(0), row.get::<_, Option<i64>>(1)) {
                let bytes = |count: i64| size(u64::try_from(count).unwrap_or(0));
                let phase = row.get::<_, Option<String>>(2).unwrap_or_default().to_lowercase();
                (self.progress)(ProgressEvent::Now(format!(
                    "moving `{}`: {} of {}, {phase}",
                    moving.group,
                    bytes(done),
                    bytes(total)
                )));
            }
        }
    }

    /// Opens a session beside a move in flight, with short timeouts.
    async fn beside(&self) -> Result<Session, TargetError> {
        let session = self.this.session(self.job, Rights::Apply, "progress").await?;
        session.run("SET citus.node_connection_timeout TO 5000; SET statement_timeout TO '15s'").await?;
        Ok(session)
    }

    /// Waits while the load delays a move. Gives up when the move would exceed the window, or after the time limit.
    async fn wait_for_load(&self, session: &Session, moving: &Moving, speed: Option<u64>) -> Result<(), TargetError> {
        let begin = Instant::now();
        let mut reported = String::new();
        loop {
            let why = self.load(session, moving).await?;
            if !self.fits(moving, speed) {
                return Err(TargetError::new(
                    TargetErrorKind::WindowOver,
                    why.unwrap_or_else(|| "the window is almost over".into()),
                ));
            }
            let Some(why) = why else { return Ok(()) };
            self.check_cancelled(true)?;
            if self.work.until.is_none() && begin.elapsed() > AWAY_TIME_MAX {
                let message = format!("no move begins while {why}");
                return Err(TargetError {
                    retry: Retry::After(Backoff::REMOTE),
                    ..TargetError::new(TargetErrorKind::Busy, message)
                });
            }
            if reported != why {
                (self.progress)(ProgressEvent::Now(format!("`{}` waits: {why}", moving.group)));
                reported = why;
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Returns why no move may begin at present.
    async fn load(&self, session: &Session, moving: &Moving) -> Result<Option<String>, TargetError> {
        let moves = &self.work.moves;
        if let Some(most) = moves.max_replication_lag {
            let ask = "SELECT coalesce(max(pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn)), 0)::bigint FROM pg_stat_replication WHERE application_name NOT LIKE 'citus%'";
            let rows = session
                .rows("SELECT nodename, nodeport, success, result FROM run_command_on_workers($1)", &[&ask])
                .await?;
            for row in &rows {
                let node = format!("{}:{}", row.get::<_, String>(0), row.get::<_, i32>(1));
                let reported: String = row.get::<_, Option<String>>(3).unwrap_or_default();
                match reported.parse::<u64>() {
                    Ok(lag) if lag <= most.0 => {}
                    Ok(lag) => {
                        return Ok(Some(format!(
                            "a standby of `{node}` is {} behind (`maxReplicationLag` is {most})",
                            size(lag)
                        )));
                    }
                    Err(_) => return Ok(Some(format!("`{node}` does not say how far its standbys are behind"))),
                }
            }
        }
        if let Some((usable, disk)) = moves.usable().zip(moves.disk_size) {
            let (host, port) = address(&moving.to).map(|to| (to.host, i32::from(to.port)))?;
            let ask = "SELECT pg_database_size(current_database())";
            let row = session
                .rows(
                    "SELECT result FROM run_command_on_workers($1) WHERE nodename = $2 AND nodeport = $3 AND success",
                    &[&ask, &host, &port],
                )
                .await?;
            let used =
                row.first().and_then(|row| row.get::<_, Option<String>>(0)).and_then(|text| text.parse::<u64>().ok());
            match used {
                Some(used) if used.saturating_add(moving.bytes) <= usable => {}
                Some(used) => {
                    return Ok(Some(format!(
                        "`{}` has {} of {disk} and no room for {} more",
                        moving.to,
                        size(used),
                        size(moving.bytes)
                    )));
                }
                None => return Ok(Some(format!("`{}` does not say how full it is", moving.to))),
            }
        }
        for pause in &moves.pause_while {
            let sql =
                format!("SELECT (SELECT told FROM ({}) AS q (told))::float8", pause.query.trim().trim_end_matches(';'));
            let measured: Option<f64> = session.row(&sql, &[]).await?.get(0);
            match measured {
                Some(measured) if measured <= pause.over => {}
                Some(measured) => {
                    return Ok(Some(format!("`{}` says {measured}, more than {}", pause.query, pause.over)));
                }
                None => return Ok(Some(format!("`{}` says nothing", pause.query))),
            }
        }
        Ok(None)
    }
}

/// Whether one of two nodes is unresponsive. A query without a response in time is cancelled, and counts as an
/// unresponsive node.
async fn is_silent(session: &Session, nodes: [&Address; 2]) -> Result<bool, TargetError> {
    let ask = "SELECT n.nodename, n.nodeport FROM run_command_on_all_nodes('SELECT 1') a JOIN pg_dist_node n USING (nodeid) WHERE NOT a.success";
    let rows = match session.rows(ask, &[]).await {
        Err(error) if error.kind == TargetErrorKind::Conflict => return Ok(true),
        rows => rows?,
    };
    let is_affected = |row: &tokio_postgres::Row| {
        let (host, port): (String, i32) = (row.get(0), row.get(1));
        nodes.iter().any(|node| node.host == host && i32::from(node.port) == port)
    };
    Ok(rows.iter().any(is_affected))
}

fn address(text: &str) -> Result<Address, TargetError> {
    text.parse()
        .map_err(|error: crate::model::ids::Malformed| TargetError::new(TargetErrorKind::Node, error.to_string()))
}

/// Returns the location of a group, by the tables of its plan.
async fn find(session: &Session, moving: &Moving) -> Result<Where, TargetError> {
    let (from, to) = (address(&moving.from)?, address(&moving.to)?);
    let sql = "SELECT n.nodename, n.nodeport, n.isactive FROM pg_dist_placement p JOIN pg_dist_node n USING (groupid) WHERE p.shardid = $1 AND p.shardstate = 1 AND n.noderole::text = 'primary'";
    let rows = session.rows(sql, &[&moving.shard]).await?;
    let on: Vec<(Address, bool)> = rows
        .iter()
        .map(|row| {
            let address = Address { host: row.get(0), port: u16::try_from(row.get::<_, i32>(1)).unwrap_or(0) };
            (address, row.get(2))
        })
        .collect();
    if on.iter().any(|(node, _)| *node == to) && !on.iter().any(|(node, _)| *node == from) {
        return Ok(Where::Target);
    }
    if on.iter().any(|(node, is_active)| *node == from && *is_active) {
        return Ok(Where::Source);
    }
    let names: Vec<String> = on.iter().map(|(node, _)| format!("`{node}`")).collect();
    Ok(Where::Other(if names.is_empty() { "no node: its table was dropped".into() } else { names.join(" and ") }))
}
