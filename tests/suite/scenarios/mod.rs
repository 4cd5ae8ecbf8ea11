//! Runs the scenarios: transcripts in `tests/scenarios/*.txt` with commands for the simulated world.
//!
//! The results are compared with the lines that begin with `<`. `UPDATE=1 cargo test --test suite scenarios`
//! writes the results anew; review the difference before you commit it.

mod script;
mod stage;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use evenkeel::adapters::{sim::CrashPoints, store::Store};
use stage::Stage;

fn scripts() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir("tests/scenarios")
        .unwrap()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|end| end == "txt"))
        .collect();
    found.sort();
    found
}

/// Runs the commands of a transcript and returns the transcript with the results of this run. With events in
/// another order, returns `None` if a command names something by a number that differs in this run.
async fn transcript(stage: &mut Stage, path: &Path, in_order: bool) -> Option<String> {
    let text = std::fs::read_to_string(path).unwrap();
    let mut transcript = String::new();
    for step in script::steps(&text) {
        transcript.push_str(&step.text);
        if let Some(command) = &step.command {
            match stage.run(command, &step.block).await {
                Ok(lines) => lines.iter().for_each(|line| transcript.push_str(&format!("< {line}\n"))),
                Err(_) if !in_order => return None,
                Err(why) => panic!("{}: `{command}`: {why}\n{transcript}", path.display()),
            }
        }
    }
    Some(transcript)
}

/// Returns the transcript of a script, and the world at its end; no world if the script did not finish.
async fn told(path: &Path, disorder: Option<u64>) -> (String, Vec<String>) {
    let mut stage = Stage::new(disorder, CrashPoints::new(BTreeSet::new())).await;
    match transcript(&mut stage, path, disorder.is_none()).await {
        Some(transcript) => (transcript, stage.end().await),
        None => (String::new(), vec![]),
    }
}

/// Compares a transcript with its file and returns the first difference; with `UPDATE=1`, writes the file.
fn difference(path: &Path, found: &str) -> Option<String> {
    let expected = std::fs::read_to_string(path).unwrap_or_default();
    if found == expected {
        return None;
    }
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(path, found).unwrap();
        return None;
    }
    let at = found.lines().zip(expected.lines()).position(|(found, expected)| found != expected);
    let line = |text: &str| at.and_then(|at| text.lines().nth(at)).unwrap_or("(the end)").to_owned();
    let (path, number) = (path.display(), at.map_or(0, |at| at + 1));
    Some(format!("{path}:{number}\n  expected: {}\n  found:    {}", line(&expected), line(found)))
}

/// Runs all scripts, on as many threads as there are cores: each has its own world.
fn tell_all(paths: &[PathBuf], disorder: Option<u64>) -> Vec<(String, Vec<String>)> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let (next, told_all) = (AtomicUsize::new(0), Mutex::new(vec![(String::new(), vec![]); paths.len()]));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                while let Some((at, path)) =
                    Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|at| Some((at, paths.get(at)?)))
                {
                    let text = runtime.block_on(told(path, disorder));
                    told_all.lock().unwrap()[at] = text;
                }
            });
        }
    });
    told_all.into_inner().unwrap()
}

/// Returns the transcripts with events in order; runs once for all tests.
fn in_order() -> &'static [(String, Vec<String>)] {
    static TOLD: OnceLock<Vec<(String, Vec<String>)>> = OnceLock::new();
    TOLD.get_or_init(|| tell_all(&scripts(), None))
}

#[test]
fn every_script_comes_out_as_it_is_written() {
    let all = scripts();
    assert!(!all.is_empty());
    let compared = all.iter().zip(in_order());
    let different: Vec<String> = compared.filter_map(|(path, (found, _))| difference(path, found)).collect();
    assert!(different.is_empty(), "{}\nUPDATE=1 writes them anew", different.join("\n"));
}

/// A store of an older version is opened, with a waiting run, an open proposal, a stalled instance, a snooze and
/// a suspension. Everything continues as in the older version, nothing is pending because a digest changed, and
/// the approval still covers the plan. The version before typed records wrote `tests/fixtures/store.sql`; the
/// file never changes.
#[tokio::test]
async fn a_store_of_an_older_version_goes_on() {
    let mut stage = Stage::new(None, CrashPoints::new(BTreeSet::new())).await;
    transcript(&mut stage, Path::new("tests/fixtures/upgrade_before.txt"), true).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("evenkeel.db");
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&path).create_if_missing(true);
    let options = options.foreign_keys(false);
    let pool = sqlx::SqlitePool::connect_with(options).await.unwrap();
    sqlx::raw_sql(include_str!("../../fixtures/store.sql")).execute(&pool).await.unwrap();
    pool.close().await;
    stage.restart_with(Store::open(&path).await.unwrap()).await;
    let path = Path::new("tests/fixtures/upgrade_after.txt");
    let found = transcript(&mut stage, path, true).await.unwrap();
    let different = difference(path, &found);
    assert!(different.is_none(), "{}", different.unwrap_or_default());
}

/// R7.5: events carry no facts, so the result is the same in any order of events, with duplicates, and with every
/// fifth event lost. Atlantis relies on deliveries alone, and never handles a lost one.
#[test]
fn r7_5_events_in_another_order_and_twice_lead_to_the_same_world() {
    let all = scripts();
    let expected = in_order();
    let mut compared = 0;
    for seed in [0x9e37_79b9_7f4a_7c15, 0x2545_f491_4f6c_dd1d] {
        for ((path, (_, expected)), (transcript, found)) in all.iter().zip(expected).zip(tell_all(&all, Some(seed))) {
            if !found.is_empty() {
                compared += 1;
                assert_eq!(found, *expected, "{} with the seed {seed:x}:\n{transcript}", path.display());
            }
        }
    }
    assert!(compared >= all.len(), "only {compared} of {} came to their end", 2 * all.len());
}
