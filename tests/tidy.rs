//! Checks rules of the codebase that a program can check: layers, purity, documentation.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that can't go on has failed")]

use std::{
    collections::{BTreeMap, BTreeSet},
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
/// Items that make a function depend on more than its arguments.
const IMPURE: [&str; 7] = ["tokio::", "std::fs", "std::env", "Utc::now", "Instant::now", "SystemTime", "getrandom"];

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

/// Returns the code of a file before its tests.
fn code(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    text.split("#[cfg(test)]").next().unwrap_or_default().to_owned()
}

/// Returns the folder or file directly under `src/` to which a path belongs.
fn top(path: &Path) -> String {
    let rest = path.strip_prefix("src").unwrap();
    rest.components().next().unwrap().as_os_str().to_string_lossy().trim_end_matches(".rs").to_owned()
}

fn layer(top: &str) -> Option<usize> {
    LAYERS.iter().position(|(_, tops)| tops.contains(&top))
}

/// Returns the lines of code of a file before its tests, numbered from 1, without comments.
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

/// The controllers from the lowest to the highest. A controller calls the ones below it; upward it enqueues a request.
const CONTROLLERS: [&str; 15] = [
    "work_queue",
    "context",
    "records",
    "leader",
    "notifier",
    "source",
    "authorization",
    "observe",
    "planning",
    "runs",
    "remediation",
    "pull_requests",
    "merges",
    "status",
    "commands",
];

#[test]
fn a_controller_uses_the_controllers_below_it() {
    let mut wrong = vec![];
    for (module, imports) in imports() {
        let Some(own) = controller(&module) else { continue };
        for import in imports {
            if let Some(other) = controller(&import).filter(|other| *other > own) {
                let (own, other) = (CONTROLLERS[own], CONTROLLERS[other]);
                wrong.push(format!("`{module}` imports `{import}`: `{own}` is below `{other}`"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn controller(module: &str) -> Option<usize> {
    let name = module.strip_prefix("controller::")?.split("::").next()?;
    CONTROLLERS.iter().position(|controller| *controller == name)
}

#[test]
fn no_two_files_import_each_other_in_a_circle() {
    let imports = imports();
    let mut done = BTreeSet::new();
    for module in imports.keys() {
        let mut path = vec![];
        if let Some(circle) = circle(module, &imports, &mut path, &mut done) {
            panic!("these files import each other in a circle: {}", circle.join(" -> "));
        }
    }
}

/// Returns a circle that is reachable from a module, by depth-first search.
fn circle(
    module: &str,
    imports: &BTreeMap<String, BTreeSet<String>>,
    path: &mut Vec<String>,
    done: &mut BTreeSet<String>,
) -> Option<Vec<String>> {
    if let Some(at) = path.iter().position(|above| above == module) {
        return Some(path[at..].iter().cloned().chain([module.to_owned()]).collect());
    }
    if done.contains(module) {
        return None;
    }
    path.push(module.to_owned());
    let found = imports[module].iter().find_map(|import| circle(import, imports, path, done));
    path.pop();
    done.insert(module.to_owned());
    found
}

/// Returns the modules of `src/` that each module imports, by the file that defines the imported item. An item
/// that a parent re-exports counts as an import of the child; a re-export of a child is not an import.
fn imports() -> BTreeMap<String, BTreeSet<String>> {
    let texts: BTreeMap<String, String> = files("src", ".rs")
        .into_iter()
        .filter_map(|path| {
            let name = path.strip_prefix("src").unwrap().with_extension("").to_string_lossy().replace('/', "::");
            let name = name.strip_suffix("::mod").map(str::to_owned).unwrap_or(name);
            let lines: Vec<String> = code_lines(&code(&path)).map(|(_, line)| line.to_owned()).collect();
            (!["lib", "main"].contains(&&*name)).then(|| (name, lines.join("\n")))
        })
        .collect();
    let absolute = |module: &str, path: &str| -> Option<String> {
        if let Some(path) = path.strip_prefix("crate::") {
            return Some(path.to_owned());
        }
        let mut base: Vec<&str> = module.split("::").collect();
        let mut rest = path;
        while let Some(above) = rest.strip_prefix("super::") {
            base.pop();
            rest = above;
        }
        let first = rest.split("::").next()?;
        let is_child = rest == path && texts.contains_key(&format!("{module}::{first}"));
        (rest != path || is_child).then(|| base.into_iter().chain([rest]).collect::<Vec<_>>().join("::"))
    };
    let mut exports: BTreeMap<(String, String), String> = BTreeMap::new();
    let mut uses: BTreeMap<String, Vec<(String, bool)>> = BTreeMap::new();
    for (module, text) in &texts {
        for (path, public) in use_paths(text) {
            let Some(path) = absolute(module, &path) else { continue };
            if public && let Some(name) = path.rsplit("::").next() {
                exports.insert((module.clone(), name.to_owned()), path.clone());
            }
            uses.entry(module.clone()).or_default().push((path, public));
        }
        for (at, _) in text.match_indices("crate::") {
            let end =
                text[at..].find(|c: char| !c.is_alphanumeric() && c != '_' && c != ':').unwrap_or(text.len() - at);
            let path = text[at..at + end].trim_end_matches(':');
            uses.entry(module.clone()).or_default().extend(absolute(module, path).map(|path| (path, false)));
        }
    }
    let defined_in = |path: &str| -> Option<String> {
        let mut path = path.to_owned();
        for _ in 0..8 {
            let parts: Vec<&str> = path.split("::").collect();
            let known = (1..=parts.len()).rev().find(|n| texts.contains_key(&parts[..*n].join("::")))?;
            let module = parts[..known].join("::");
            match parts.get(known).and_then(|item| exports.get(&(module.clone(), (*item).to_owned()))) {
                Some(exported) => path = [&[exported.as_str()], &parts[known + 1..]].concat().join("::"),
                None => return Some(module),
            }
        }
        None
    };
    let mut imports: BTreeMap<String, BTreeSet<String>> =
        texts.keys().map(|module| (module.clone(), BTreeSet::new())).collect();
    for (module, paths) in &uses {
        for (path, public) in paths {
            let Some(from) = defined_in(path).filter(|from| from != module) else { continue };
            if !(*public && from.starts_with(&format!("{module}::"))) {
                imports.entry(module.clone()).or_default().insert(from);
            }
        }
    }
    imports
}

/// Returns the paths of the `use` declarations of a text, one for each item, and whether each is a re-export.
fn use_paths(text: &str) -> Vec<(String, bool)> {
    let mut paths = vec![];
    let mut rest = text;
    while let Some(at) = rest.find("use ") {
        let before = rest[..at].rsplit('\n').next().unwrap_or_default().trim();
        let end = rest[at..].find(';').map_or(rest.len(), |end| at + end);
        if before.is_empty() || before.starts_with("pub") {
            let tree: String = rest[at + 4..end].split_whitespace().collect::<Vec<_>>().join(" ");
            flatten(&tree, "", &mut |path| paths.push((path, !before.is_empty())));
        }
        rest = &rest[end.min(rest.len() - 1) + 1..];
    }
    paths
}

/// Flattens a tree of imports, such as `a::{b, c::d}`, to its items.
fn flatten(tree: &str, prefix: &str, add: &mut dyn FnMut(String)) {
    let tree = tree.trim();
    let Some((head, group)) = tree.split_once('{') else {
        let item = tree.split(" as ").next().unwrap_or_default().trim();
        if item == "self" {
            add(prefix.trim_end_matches("::").to_owned());
        } else if !item.is_empty() {
            add(format!("{prefix}{item}"));
        }
        return;
    };
    let group = group.strip_suffix('}').unwrap_or(group);
    let prefix = format!("{prefix}{head}");
    let (mut depth, mut from) = (0, 0);
    for (at, c) in group.char_indices().chain([(group.len(), ',')]) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                flatten(&group[from..at], &prefix, add);
                from = (at + 1).min(group.len());
            }
            _ => {}
        }
    }
}

#[test]
fn every_module_has_a_doc() {
    let all = files("src", ".rs").into_iter().chain(files("tests", ".rs"));
    let without = all.filter(|path| !std::fs::read_to_string(path).unwrap().starts_with("//! "));
    let without: Vec<String> = without.map(|path| path.display().to_string()).collect();
    assert!(without.is_empty(), "without a module doc: {}", without.join(", "));
}

#[test]
fn a_lock_protects_data() {
    let mut wrong = vec![];
    for path in files("src", ".rs") {
        for (number, line) in code_lines(&code(&path)) {
            if line.contains("Mutex<()>") {
                wrong.push(format!("{}:{number}: a mutex without data", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn goldens_are_short_enough_to_be_read() {
    for path in files("src", ".snap").into_iter().chain(files("tests", ".snap")).chain(files("tests", ".txt")) {
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
        let word = format!("`/{}", verb.name());
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
    // Every rule of the first six chapters has a scenario, and every rule of a scenario exists.
    let mut shown = BTreeSet::new();
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
    let stated: BTreeSet<String> = stated.filter(|rule| !rule.starts_with('7')).collect();
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

#[test]
fn the_documents_name_files_that_exist() {
    for document in ["ARCHITECTURE.md", "CONTRIBUTING.md", "GLOSSARY.md", "README.md"] {
        let text = std::fs::read_to_string(document).unwrap();
        for name in text.split('`').skip(1).step_by(2) {
            let is_path = name.starts_with("src/") || name.starts_with("docs/") || name.starts_with("tests/");
            // A name in a pattern such as `src/targets/<kind>/` is not a path.
            if is_path && !name.contains(['<', '*', '{', ' ']) {
                assert!(std::path::Path::new(name).exists(), "{document} names `{name}`, which does not exist");
            }
        }
    }
}
