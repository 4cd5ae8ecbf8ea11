//! Rules of the codebase that a program can check: layers, purity, documentation.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that can't go on has failed")]

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// The layers from the lowest to the highest, each with its folders and files under `src/`.
const LAYERS: [(&str, &[&str]); 5] = [
    ("model", &["model", "ports"]),
    ("domain", &["domain"]),
    ("adapters", &["adapters", "targets", "forge"]),
    ("controllers", &["controller"]),
    ("entry points", &["cli", "server", "config", "telemetry"]),
];
const DOMAIN: usize = 1;
const ADAPTERS: usize = 2;

/// Third-party clients, whose types stay in the adapters and targets.
const CLIENTS: [&str; 5] = ["octocrab::", "git2::", "sqlx::", "kube::", "tokio_postgres::"];
/// What makes a function depend on more than its arguments.
const IMPURE: [&str; 7] = ["tokio::", "std::fs", "std::env", "Utc::now", "Instant::now", "SystemTime", "getrandom"];

const FILE_LINES_MAX: usize = 500;
const FUNCTION_LINES_MAX: usize = 70;
const GOLDEN_LINES_MAX: usize = 200;

fn files(folder: &str, ends: &str) -> Vec<PathBuf> {
    let mut found = vec![];
    let mut open = vec![PathBuf::from(folder)];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
            } else if path.to_string_lossy().ends_with(ends) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// The code of a file before its tests.
fn code(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    text.split("#[cfg(test)]").next().unwrap_or_default().to_owned()
}

/// The folder or file directly under `src/` that a path belongs to.
fn top(path: &Path) -> String {
    let rest = path.strip_prefix("src").unwrap();
    rest.components().next().unwrap().as_os_str().to_string_lossy().trim_end_matches(".rs").to_owned()
}

fn layer(top: &str) -> Option<usize> {
    LAYERS.iter().position(|(_, tops)| tops.contains(&top))
}

/// The lines of code of a file before its tests, numbered from 1, without comments.
fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(n, line)| (n + 1, line)).filter(|(_, line)| !line.trim_start().starts_with("//"))
}

#[test]
fn a_layer_uses_the_layers_below_it() {
    let mut wrong = vec![];
    for path in files("src", ".rs") {
        let top = top(&path);
        if top == "main" || top == "lib" {
            continue;
        }
        let own = layer(&top).unwrap_or_else(|| panic!("`src/{top}` belongs to no layer"));
        for (number, line) in code_lines(&code(&path)) {
            for (at, (name, tops)) in LAYERS.iter().enumerate() {
                for other in tops.iter().filter(|other| {
                    line.contains(&format!("crate::{other}::")) || line.trim_start().starts_with(&format!("{other}::"))
                }) {
                    if at > own {
                        let (path, own) = (path.display(), LAYERS[own].0);
                        wrong.push(format!("{path}:{number}: the layer `{own}` uses `{other}` of the layer `{name}`"));
                    }
                    if *other == "forge" && !["forge", "cli"].contains(&&*top) {
                        let path = path.display();
                        wrong.push(format!("{path}:{number}: `{top}` uses the embedded forge; only `cli` may"));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn clients_stay_in_adapters_and_the_domain_is_pure() {
    let mut wrong = vec![];
    for path in files("src", ".rs") {
        let Some(layer) = layer(&top(&path)) else { continue };
        let pure = ["balance", "bound", "capacity", "catalog", "rebalance", "solve", "tables"];
        let is_pure = |name: &&str| path.ends_with(format!("citus/{name}.rs"));
        let in_target = path.starts_with("src/targets") && (path.ends_with("drift.rs") || path.ends_with("plan.rs"));
        let pure_slice = in_target || pure.iter().any(is_pure);
        let text = code(&path);
        for (number, line) in code_lines(&text) {
            let mut add = |what: &str| wrong.push(format!("{}:{number}: {what}", path.display()));
            if layer != ADAPTERS && CLIENTS.iter().any(|client| line.contains(client)) {
                add("a third-party client's type outside of the adapters");
            }
            if (layer <= DOMAIN && top(&path) != "ports" || pure_slice) && IMPURE.iter().any(|word| line.contains(word))
            {
                add("the domain depends on more than its arguments");
            }
            let forbidden = ["println!", "#[should_panic", "todo!(", "unimplemented!("];
            if forbidden.iter().any(|word| line.contains(word)) {
                add("a construct that this project does not use");
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_module_says_what_it_is_and_stays_small() {
    let mut wrong = vec![];
    for path in files("src", ".rs").into_iter().chain(files("tests", ".rs")) {
        let text = std::fs::read_to_string(&path).unwrap();
        if !text.starts_with("//! ") {
            wrong.push(format!("{}: has no module doc", path.display()));
        }
        let before_tests = text.split("#[cfg(test)]").next().unwrap_or_default();
        if path.starts_with("src") && before_tests.lines().count() > FILE_LINES_MAX {
            wrong.push(format!(
                "{}: {} lines, more than {FILE_LINES_MAX}",
                path.display(),
                before_tests.lines().count()
            ));
        }
        if path.starts_with("src") {
            wrong.extend(long_functions(&path, before_tests));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Functions that begin at some indent and end with a brace at the same.
fn long_functions(path: &Path, text: &str) -> Vec<String> {
    let mut long = vec![];
    let mut open: Option<(usize, usize, String)> = None;
    for (number, line) in text.lines().enumerate() {
        let indent = line.len() - line.trim_start().len();
        let begins = [
            "fn ",
            "pub fn ",
            "async fn ",
            "pub async fn ",
            "pub(super) fn ",
            "pub(super) async fn ",
            "pub(crate) fn ",
            "pub(crate) async fn ",
        ]
        .iter()
        .any(|word| line.trim_start().starts_with(word));
        if begins && open.is_none() && !line.trim_end().ends_with(';') {
            open = Some((number, indent, line.trim().chars().take(60).collect()));
        } else if let Some((start, at, name)) = &open
            && indent == *at
            && line.trim_start().starts_with('}')
        {
            if number - start > FUNCTION_LINES_MAX {
                long.push(format!(
                    "{}:{}: `{name}` has {} lines, more than {FUNCTION_LINES_MAX}",
                    path.display(),
                    start + 1,
                    number - start
                ));
            }
            open = None;
        }
    }
    long
}

#[test]
fn goldens_are_short_enough_to_be_read() {
    for path in files("src", ".snap").into_iter().chain(files("tests", ".snap")).chain(files("tests", ".out")) {
        let lines = std::fs::read_to_string(&path).unwrap().lines().count();
        assert!(lines <= GOLDEN_LINES_MAX, "{}: {lines} lines", path.display());
    }
}

#[test]
fn unsafe_code_is_in_one_file() {
    let places: Vec<String> = files("src", ".rs")
        .iter()
        .filter(|path| std::fs::read_to_string(path).unwrap().contains("unsafe {"))
        .map(|path| path.display().to_string())
        .collect();
    assert_eq!(places, ["src/adapters/git/http.rs"], "libgit2's transport registry alone needs it");
}

#[test]
fn the_documents_name_what_is_there() {
    let reference = std::fs::read_to_string("docs/reference.md").unwrap();
    let help = std::fs::read_to_string("src/domain/command/mod.rs").unwrap();
    for verb in evenkeel::domain::command::VERBS {
        let word = format!("`/{}", verb.word());
        assert!(reference.contains(&word) && help.contains(&word), "`{word}` is not in both");
    }
    let rules = std::fs::read_to_string("docs/rules.md").unwrap();
    let mut tests: BTreeMap<String, usize> = BTreeMap::new();
    for path in files("src", ".rs").into_iter().chain(files("tests", ".rs")) {
        for line in std::fs::read_to_string(path).unwrap().lines().filter(|line| line.contains("fn r")) {
            for rule in rules.lines().filter_map(|line| line.strip_prefix("- **R")?.split("**").next()) {
                let name = format!("fn r{}_", rule.replace('.', "_"));
                let also = format!("_r{}_", rule.replace('.', "_"));
                if line.contains(&name) || line.contains(&also) {
                    *tests.entry(rule.to_owned()).or_default() += 1;
                }
            }
        }
    }
    // The rules of the first six chapters are shown by scenarios, and nothing is shown that is no rule.
    let mut shown = std::collections::BTreeSet::new();
    for path in files("tests/scenarios", ".txt") {
        let text = std::fs::read_to_string(path).unwrap();
        let comments =
            text.lines().filter(|line| line.starts_with('#')).flat_map(|line| line.split([' ', ',', ':', ';']));
        let number = |word: &&str| word.starts_with(|c: char| c.is_ascii_digit());
        shown.extend(
            comments
                .filter_map(|word| word.strip_prefix('R'))
                .filter(number)
                .map(|rule| rule.trim_end_matches('.').to_owned()),
        );
    }
    let stated = rules.lines().filter_map(|line| line.strip_prefix("- **R")?.split("**").next()).map(str::to_owned);
    let stated: std::collections::BTreeSet<String> = stated.filter(|rule| !rule.starts_with('7')).collect();
    assert_eq!(shown, stated, "the rules that scenarios show, and those that docs/rules.md states");
    for rule in shown {
        *tests.entry(rule).or_default() += 1;
    }
    let untested: Vec<&str> = rules
        .lines()
        .filter_map(|line| line.strip_prefix("- **R")?.split("**").next())
        .filter(|rule| !tests.contains_key(*rule))
        .collect();
    assert!(untested.is_empty(), "rules that no test carries by its number: {untested:?}");
}
