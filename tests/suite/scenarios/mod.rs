//! Scenarios: scripts of `tests/scenarios/*.txt`, run in the simulated world and compared with the `.out` beside them.
//!
//! `UPDATE=1 cargo test --test suite scenarios` writes the `.out` files anew; read the difference before you keep it.

mod script;
mod stage;

use std::{
    path::PathBuf,
    sync::{
        Mutex,
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

async fn told(path: &PathBuf) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    let mut stage = Stage::new().await;
    let mut told = String::new();
    for step in script::steps(&text) {
        told.push_str(&step.text);
        if let Some(command) = &step.command {
            match stage.run(command, &step.block).await {
                Ok(lines) => lines.iter().for_each(|line| told.push_str(&format!("    {line}\n"))),
                Err(why) => panic!("{}: `{command}`: {why}\n{told}", path.display()),
            }
        }
    }
    told
}

/// Tells all scripts, on as many threads as there are cores: each has a world of its own.
fn tell_all(paths: &[PathBuf]) -> Vec<String> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let (next, told_all) = (AtomicUsize::new(0), Mutex::new(vec![String::new(); paths.len()]));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                while let Some((at, path)) =
                    Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|at| Some((at, paths.get(at)?)))
                {
                    let text = runtime.block_on(told(path));
                    told_all.lock().unwrap()[at] = text;
                }
            });
        }
    });
    told_all.into_inner().unwrap()
}

#[test]
fn every_script_comes_out_as_it_is_written() {
    let mut different = vec![];
    let all = scripts();
    assert!(!all.is_empty());
    for (path, found) in all.iter().zip(tell_all(&all)) {
        let out = path.with_extension("out");
        let expected = std::fs::read_to_string(&out).unwrap_or_default();
        if found == expected {
            continue;
        }
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&out, &found).unwrap();
            continue;
        }
        let at = found.lines().zip(expected.lines()).position(|(one, two)| one != two);
        let line = |text: &str| at.and_then(|at| text.lines().nth(at)).unwrap_or("(the end)").to_owned();
        let place = at.map_or(0, |at| at + 1);
        different.push(format!(
            "{}:{place}\n  expected: {}\n  found:    {}",
            out.display(),
            line(&expected),
            line(&found)
        ));
    }
    assert!(different.is_empty(), "{}\nUPDATE=1 writes them anew", different.join("\n"));
}
