//! Runs the crash sweep: every scenario runs again with daemons that are killed at crash points.
//!
//! Crash points are after journal records and before, in and after effects. Each run must end with the same
//! world, with every effect and every comment exactly once. Prints the number of crashes.
//!
//! `CUT='AfterWrite journal 1 dev/a started 1' SCRIPT=r2_1 cargo test --test crash -- --nocapture` runs one
//! script with one crash and prints its transcript.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test that can't go on has failed")]

#[path = "suite/scenarios/script.rs"]
mod script;
#[path = "suite/scenarios/stage.rs"]
mod stage;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use evenkeel::adapters::sim::CrashPoints;
use stage::Stage;

/// The number of runs that share the crash points of a script; each run crashes at every sixth point.
const TELLINGS: usize = 6;

/// The result of a run.
struct ProgressEvent {
    text: String,
    places: Vec<String>,
    cuts: Vec<String>,
    end: Vec<String>,
    effects: Vec<String>,
    comments: Vec<String>,
    stuck: Vec<String>,
}

async fn tell(path: &Path, lives: std::sync::Arc<CrashPoints>) -> ProgressEvent {
    let text = std::fs::read_to_string(path).unwrap();
    let mut stage = Stage::new(None, std::sync::Arc::clone(&lives)).await;
    let (mut transcript, mut stuck) = (String::new(), vec![]);
    for step in script::steps(&text) {
        transcript.push_str(&step.text);
        if let Some(command) = &step.command {
            match stage.run(command, &step.block).await {
                Ok(lines) => lines.iter().for_each(|line| transcript.push_str(&format!("< {line}\n"))),
                Err(why) => {
                    transcript.push_str(&format!("< {why}\n"));
                    stuck.push(format!("`{command}`: {why}"));
                    break;
                }
            }
        }
    }
    let (effects, comments) = stage.done();
    stuck.extend(stage.stuck().await);
    ProgressEvent {
        text: transcript,
        places: lives.places(),
        cuts: lives.cuts(),
        end: stage.end().await,
        effects,
        comments,
        stuck,
    }
}

/// Returns whether the daemon crashes at a place.
fn is_cut(place: &str, text: &str) -> bool {
    // A resource that never settles stalls earlier after a partial effect, because the remaining change is not the
    // approved one.
    !(text.contains("never settles") && place.starts_with("InEffect"))
}

/// Summarises a comment of the daemon: the beginning of its text and its marker.
fn gist(comment: &str) -> String {
    let begins = comment.lines().next().unwrap_or_default();
    let line = comment.lines().rev().find(|line| line.starts_with("<!--")).unwrap_or_default();
    // Drop the numbers of runs and comments: they depend on repeated commands.
    let short = |text: &str, keys: &[&str]| {
        keys.iter().fold(text.to_owned(), |text, key| text.split(key).next().unwrap_or_default().to_owned())
    };
    if line.contains("answer to=") {
        let refused = begins.contains("Nothing") || begins.contains("is not allowed");
        return format!("{} an answer, {}", short(begins, &[" "]), if refused { "refused" } else { "obeyed" });
    }
    format!("{} {}", short(begins, &["run ", "Run ", " at `"]), short(line, &["answer to=", "run id="]))
}

/// Compares a run with crashes to a run without, and returns the differences.
fn wrong(whole: &ProgressEvent, cut: &ProgressEvent) -> Vec<String> {
    let mut wrong = vec![];
    let mut differ = |what: &str, whole: &[String], cut: &[String]| {
        let (mut missing, mut extra): (Vec<&String>, Vec<&String>) = (whole.iter().collect(), cut.iter().collect());
        for line in whole {
            if let Some(at) = extra.iter().position(|other| *other == line) {
                extra.remove(at);
            }
        }
        for line in cut {
            if let Some(at) = missing.iter().position(|other| *other == line) {
                missing.remove(at);
            }
        }
        wrong.extend(missing.into_iter().map(|line| format!("{what} is lost: {line}")));
        wrong.extend(extra.into_iter().map(|line| format!("{what} is too much: {line}")));
    };
    // Drop ids: they are assigned in the order of creation, which differs.
    let unnumbered = |lines: &[String]| {
        let id = |line: &String| line.split("id-").next().unwrap_or_default().to_owned();
        lines.iter().map(id).collect::<Vec<_>>()
    };
    differ("of the world", &unnumbered(&whole.end), &unnumbered(&cut.end));
    differ("an effect", &whole.effects, &cut.effects);
    let gists = |result: &ProgressEvent| result.comments.iter().map(|comment| gist(comment)).collect::<Vec<_>>();
    differ("a comment", &gists(whole), &gists(cut));
    differ("a run", &whole.stuck, &cut.stuck);
    wrong
}

fn scripts() -> Vec<PathBuf> {
    let wanted = std::env::var("SCRIPT").unwrap_or_default();
    let entries = std::fs::read_dir("tests/scenarios").unwrap().flatten().map(|entry| entry.path());
    let mut found: Vec<PathBuf> = entries
        .filter(|path| path.extension().is_some_and(|end| end == "txt") && path.to_string_lossy().contains(&wanted))
        .collect();
    found.sort();
    found
}

/// Runs `work` for each item, on as many threads as there are cores.
fn on_all<T: Sync, R: Send>(things: &[T], work: impl Fn(&tokio::runtime::Runtime, &T) -> R + Sync) -> Vec<R> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(thing) = things.get(next.fetch_add(1, Ordering::Relaxed)) {
                    // The tasks of ended daemon processes end with their runtime.
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                    let result = work(&runtime, thing);
                    done.lock().unwrap().push(result);
                }
            });
        }
    });
    done.into_inner().unwrap()
}

#[test]
fn r7_1_wherever_it_is_killed_it_ends_as_if_nothing_had_happened() {
    let all = scripts();
    if let Ok(cut) = std::env::var("CUT") {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let whole = runtime.block_on(tell(&all[0], CrashPoints::new(BTreeSet::new())));
        let result = runtime.block_on(tell(&all[0], CrashPoints::new(cut.split('|').map(str::to_owned).collect())));
        println!("{}\ncut: {:?}\n{}", result.text, result.cuts, wrong(&whole, &result).join("\n"));
        return;
    }
    let since = std::time::Instant::now();
    let wholes =
        on_all(&all, |runtime, path| (path.clone(), runtime.block_on(tell(path, CrashPoints::new(BTreeSet::new())))));
    let mut tellings = vec![];
    for (path, whole) in &wholes {
        let places: Vec<&String> = whole.places.iter().filter(|place| is_cut(place, &whole.text)).collect();
        for telling in 0..TELLINGS {
            let at = places.iter().skip(telling).step_by(TELLINGS).map(|place| (*place).clone());
            tellings.push((path, whole, at.collect::<BTreeSet<String>>()));
        }
    }
    let results = on_all(&tellings, |runtime, (path, whole, at)| {
        let result = runtime.block_on(tell(path, CrashPoints::new(at.clone())));
        let wrong = wrong(whole, &result);
        (path.display().to_string(), result.cuts, wrong)
    });
    let cuts: usize = results.iter().map(|(_, cuts, _)| cuts.len()).sum();
    let places: usize = tellings.iter().map(|(_, _, at)| at.len()).sum();
    println!("{cuts} cuts of {places} places in {:.1} s", since.elapsed().as_secs_f64());
    let wrong: Vec<String> = results
        .iter()
        .filter(|(_, _, wrong)| !wrong.is_empty())
        .map(|(path, cuts, wrong)| format!("{path}\n  {}\n  CUT='{}'", wrong.join("\n  "), cuts.join("|")))
        .collect();
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), results.len(), wrong.join("\n"));
    assert!(cuts > 1000, "only {cuts} cuts");
}

/// A daemon is suspended for an hour while another takes over, and then resumes: no effect happens twice.
#[test]
fn r7_3_a_daemon_that_is_stopped_and_goes_on_does_no_harm() {
    let all = scripts();
    let wholes =
        on_all(&all, |runtime, path| (path.clone(), runtime.block_on(tell(path, CrashPoints::new(BTreeSet::new())))));
    let mut tellings = vec![];
    for (path, whole) in &wholes {
        let runs = |place: &&String| ["journal ", " apply ", "create a run"].iter().any(|word| place.contains(word));
        let places: Vec<&String> =
            whole.places.iter().filter(|place| is_cut(place, &whole.text)).filter(runs).collect();
        for telling in 0..2 {
            let at = places.iter().skip(telling).step_by(2).map(|place| (*place).clone());
            tellings.push((path, whole, at.collect::<BTreeSet<String>>()));
        }
    }
    let results = on_all(&tellings, |runtime, (path, whole, at)| {
        let result = runtime.block_on(tell(path, CrashPoints::stopping(at.clone())));
        // Requests to the forge carry no token: only effects and the store are fenced.
        let wrong: Vec<String> =
            wrong(whole, &result).into_iter().filter(|line| !line.starts_with("a comment")).collect();
        (path.display().to_string(), result.cuts, wrong)
    });
    let stops: usize = results.iter().map(|(_, cuts, _)| cuts.len()).sum();
    println!("{stops} stops");
    let wrong: Vec<String> = results
        .iter()
        .filter(|(_, _, wrong)| !wrong.is_empty())
        .map(|(path, cuts, wrong)| format!("{path}\n  {}\n  STOP='{}'", wrong.join("\n  "), cuts.join("|")))
        .collect();
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), results.len(), wrong.join("\n"));
    assert!(stops > 300, "only {stops} stops");
}
