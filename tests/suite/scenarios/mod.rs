//! Scenarios: scripts of `tests/scenarios/*.txt`, run in the simulated world and compared with the `.out` beside them.
//!
//! `UPDATE=1 cargo test --test suite scenarios` writes the `.out` files anew; read the difference before you keep it.

mod script;
mod stage;

use std::{
    path::PathBuf,
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

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

/// The transcript of a script, and what it came to; where hints come in disorder, nothing where a script speaks of
/// something by a number that it does not have then.
async fn told(path: &PathBuf, disorder: Option<u64>) -> (String, Vec<String>) {
    let text = std::fs::read_to_string(path).unwrap();
    let mut stage =
        Stage::new(disorder, evenkeel::adapters::sim::CrashPoints::new(std::collections::BTreeSet::new())).await;
    let mut told = String::new();
    for step in script::steps(&text) {
        told.push_str(&step.text);
        if let Some(command) = &step.command {
            match stage.run(command, &step.block).await {
                Ok(lines) => lines.iter().for_each(|line| told.push_str(&format!("    {line}\n"))),
                Err(_) if disorder.is_some() => return (told, vec![]),
                Err(why) => panic!("{}: `{command}`: {why}\n{told}", path.display()),
            }
        }
    }
    (told, stage.end().await)
}

/// Tells all scripts, on as many threads as there are cores: each has a world of its own.
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

/// What the scripts tell when everything comes in its order; told once for all tests.
fn in_order() -> &'static [(String, Vec<String>)] {
    static TOLD: OnceLock<Vec<(String, Vec<String>)>> = OnceLock::new();
    TOLD.get_or_init(|| tell_all(&scripts(), None))
}

#[test]
fn every_script_comes_out_as_it_is_written() {
    let mut different = vec![];
    let all = scripts();
    assert!(!all.is_empty());
    for (path, (found, _)) in all.iter().zip(in_order()) {
        let out = path.with_extension("out");
        let expected = std::fs::read_to_string(&out).unwrap_or_default();
        if *found == expected {
            continue;
        }
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&out, found).unwrap();
            continue;
        }
        let at = found.lines().zip(expected.lines()).position(|(one, two)| one != two);
        let line = |text: &str| at.and_then(|at| text.lines().nth(at)).unwrap_or("(the end)").to_owned();
        let place = at.map_or(0, |at| at + 1);
        different.push(format!(
            "{}:{place}\n  expected: {}\n  found:    {}",
            out.display(),
            line(&expected),
            line(found)
        ));
    }
    assert!(different.is_empty(), "{}\nUPDATE=1 writes them anew", different.join("\n"));
}

/// R7.5: events carry no facts, so it comes to the same in whatever order they come, when they come twice, and when every
/// fifth of them is lost. Atlantis has only its deliveries, and what it misses it never does.
#[test]
fn r7_5_events_in_another_order_and_twice_lead_to_the_same_world() {
    let all = scripts();
    let expected = in_order();
    let mut compared = 0;
    for seed in [0x9e37_79b9_7f4a_7c15, 0x2545_f491_4f6c_dd1d] {
        for ((path, (_, expected)), (told, found)) in all.iter().zip(expected).zip(tell_all(&all, Some(seed))) {
            if !found.is_empty() {
                compared += 1;
                assert_eq!(found, *expected, "{} with the seed {seed:x}:\n{told}", path.display());
            }
        }
    }
    assert!(compared >= all.len(), "only {compared} of {} came to their end", 2 * all.len());
}
