//! Implements `evenkeel init`: writes a first state repo for existing root modules.
//!
//! Detects the root modules, the location of their state and the environment of each. Never overwrites a file.
//! Never guesses dependencies: the user adds them.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use clap::Args;
use serde_json::json;

use super::{Done, Failure, Format, Global, output};
use crate::{
    domain::declaration::schema::API_VERSION,
    model::{EnvironmentName, Redactor},
    ports::Files,
    targets::{
        citus::{self, Login},
        kinds,
        opentofu::hcl,
    },
};

/// Write a first state repo for the existing root modules.
#[derive(Args, Debug)]
pub(crate) struct Init {
    /// The repository; the one around the working directory if it is not given
    folder: Option<PathBuf>,
    /// The folder of the declarations, relative to the repository
    #[arg(long, default_value = "state-repo", value_name = "FOLDER")]
    state_repo: String,
    /// A file with the address of a Citus coordinator: print a component that declares the existing cluster, and
    /// write nothing
    #[arg(long, value_name = "FILE")]
    citus: Option<PathBuf>,
    /// The environment of that component
    #[arg(long, value_name = "NAME", default_value = "production", requires = "citus")]
    environment: String,
}

/// Prints the declaration of a running cluster.
async fn cluster(file: &Path, environment: &str) -> Done {
    let name: EnvironmentName =
        environment.parse().map_err(|error| Failure { code: 64, ..Failure::new(format!("{error}")) })?;
    let failed = |error: std::io::Error| Failure::new(format!("could not read `{}`: {error}", file.display()));
    let url = std::fs::read_to_string(file).map_err(failed)?;
    let login = Login { url: url.into(), authorities: None, shared_with: vec![] };
    let (citus, omitted) = citus::declare(&login, &Redactor::default(), "citus").await.map_err(Failure::new)?;
    let document = json!({
        "apiVersion": API_VERSION, "kind": "Component", "metadata": {"name": "shards"},
        "spec": {"environments": [name], "citus": citus},
    });
    let yaml = serde_yaml::to_string(&without_defaults(document)).map_err(|error| Failure::new(error.to_string()))?;
    output::text(&format!(
        "# What is there. `rebalance: report` changes nothing; `docs/citus.md` describes the other values.\n{yaml}"
    ));
    for item in omitted {
        output::note(&format!("Left out: {item}."));
    }
    Ok(0)
}

/// Removes the default values from a document, so that it is shorter to read.
fn without_defaults(mut document: serde_json::Value) -> serde_json::Value {
    let citus = &mut document["spec"]["citus"];
    if let Some(citus) = citus.as_object_mut() {
        citus
            .retain(|key, value| !matches!(key.as_str(), "moves" | "allowRewrite" | "capacity") && *value != json!([]));
        citus.insert("placement".into(), json!({"rebalance": "report"}));
    }
    for table in citus["tables"].as_array_mut().into_iter().flatten().filter_map(serde_json::Value::as_object_mut) {
        table.retain(|key, value| key != "reference" || *value == json!(true));
    }
    document
}

/// Conventional names of folders for environments, in the order of promotion.
const ENVIRONMENTS: [&[&str]; 4] = [
    &["sandbox", "dev", "develop", "development"],
    &["test", "testing", "qa", "integration"],
    &["stage", "staging", "preprod", "pre-production", "uat"],
    &["prod", "production"],
];
/// The maximum depth of the search for root modules.
const DEPTH_MAX: usize = 12;
/// The environment of root modules that belong to no other environment.
const DEFAULT: &str = "main";

/// A root module.
#[derive(Debug, PartialEq, Eq)]
struct Root {
    path: String,
    environment: Option<String>,
    /// The name of its component: the path without the environment.
    component: String,
    backend: bool,
}

pub(super) async fn run(global: &Global, args: &Init) -> Done {
    if let Some(file) = &args.citus {
        return cluster(file, &args.environment).await;
    }
    roots_of_repository(global, args)
}

fn roots_of_repository(global: &Global, args: &Init) -> Done {
    let folder = match &args.folder {
        Some(folder) => folder.clone(),
        None => repository(&std::env::current_dir()?).ok_or_else(|| {
            Failure::new("the working directory is in no git repository").hint("name one: `evenkeel init FOLDER`")
        })?,
    };
    if !folder.is_dir() {
        return Err(Failure::new(format!("`{}` is no folder", folder.display())));
    }
    let target = folder.join(&args.state_repo);
    if target.exists() {
        return Err(Failure::new(format!("`{}` is there already, and nothing is overwritten", target.display()))
            .hint("remove it, or name another folder with --state-repo"));
    }
    let roots = roots(&crate::adapters::git::WorkingFiles::new(&folder))?;
    if roots.is_empty() {
        return Err(Failure::new(format!("there is no root module of OpenTofu below `{}`", folder.display())).hint(
            "a root module is a folder with `*.tf` or `*.tofu` that names a backend or a provider, and that no other module uses",
        ));
    }
    let outside = Path::new(&args.state_repo).is_absolute() || args.state_repo.split('/').any(|part| part == "..");
    if outside {
        let message = format!("`{}` is not a folder inside the repository", args.state_repo);
        return Err(Failure { code: 64, ..Failure::new(message) });
    }
    let files = state_repo(&roots, &name_of(&folder));
    for (path, text) in &files {
        let path = target.join(path);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(path, text)?;
    }
    let desired = crate::domain::declaration::load(
        kinds(),
        &crate::adapters::git::WorkingFiles::new(&folder),
        args.state_repo.trim_matches('/'),
    );
    if let Some(problem) = desired.problems.first() {
        // Do not leave invalid declarations behind.
        std::fs::remove_dir_all(&target)?;
        return Err(Failure::new(format!("what was written has a problem: {problem}")));
    }
    if global.output != Format::Text {
        let written: Vec<String> = files.keys().map(|path| format!("{}/{path}", args.state_repo)).collect();
        let found: Vec<_> = roots.iter().map(|root| json!({"root": root.path, "environment": root.environment, "component": root.component, "declaresBackend": root.backend})).collect();
        output::answer(global.output, "init", &json!({"written": written, "rootModules": found}))?;
        return Ok(0);
    }
    let rows: Vec<Vec<String>> = roots
        .iter()
        .map(|root| {
            let environment = root.environment.as_deref().unwrap_or(DEFAULT);
            let state =
                if root.backend { "its own backend" } else { "no backend: its state is kept with the daemon's data" };
            vec![format!("  {environment}/{}", root.component), root.path.clone(), state.into()]
        })
        .collect();
    let s = if roots.len() == 1 { "" } else { "s" };
    output::text(&format!("Found {} root module{s}:\n{}", roots.len(), output::table(&rows)));
    output::text(&format!(
        "Wrote {} files to `{}`; `evenkeel validate` finds nothing wrong with them. Look them over, add `dependsOn` and outputs as variables where one module needs another, and commit them.",
        files.len(),
        target.display()
    ));
    Ok(0)
}

/// Returns the repository around a folder.
fn repository(folder: &Path) -> Option<PathBuf> {
    folder.ancestors().find(|folder| folder.join(".git").exists()).map(Path::to_path_buf)
}

fn name_of(folder: &Path) -> String {
    let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_path_buf());
    name(&folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default())
}

/// Converts a text to a valid name: lower-case letters, digits and hyphens.
fn name(text: &str) -> String {
    let mut name = String::new();
    for c in text.to_lowercase().chars() {
        match c {
            'a'..='z' | '0'..='9' => name.push(c),
            _ if !name.is_empty() && !name.ends_with('-') => name.push('-'),
            _ => {}
        }
    }
    let name: String = name.trim_end_matches('-').chars().take(60).collect();
    let name = name.trim_end_matches('-').to_owned();
    const TRAPS: [&str; 9] = ["y", "n", "yes", "no", "on", "off", "true", "false", "null"];
    match name.chars().next() {
        None => "infra".into(),
        Some(_) if TRAPS.contains(&name.as_str()) => format!("x-{name}"),
        Some(first) if first.is_ascii_digit() => format!("x-{name}"),
        Some(_) => name,
    }
}

/// Returns the position of a folder's name among the conventional environments, if it is one.
fn rank(folder: &str) -> Option<usize> {
    let folder = folder.to_lowercase();
    ENVIRONMENTS.iter().position(|names| names.contains(&folder.as_str()))
}

/// Finds the root modules of a repository: folders whose configuration names a backend or a provider and that no
/// other module uses.
fn roots(files: &dyn Files) -> Result<Vec<Root>, Failure> {
    let mut modules: BTreeMap<String, String> = BTreeMap::new();
    collect(files, "", 0, &mut modules)?;
    let used: BTreeSet<String> = modules
        .iter()
        .flat_map(|(folder, text)| {
            hcl::relative_paths(text).into_iter().filter_map(move |(path, _)| crate::ports::join(folder, &path))
        })
        .collect();
    let is_root = |folder: &str, text: &str| {
        !used.contains(folder)
            && (hcl::declares_backend(text)
                || text.contains("provider \"")
                || text.contains("required_providers")
                || text.contains("resource \""))
    };
    let mut roots: Vec<Root> = modules
        .iter()
        .filter(|(folder, text)| is_root(folder, text))
        .map(|(folder, text)| {
            let parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
            let at = parts.iter().position(|part| rank(part).is_some());
            let environment = at.map(|at| parts[at].to_lowercase());
            Root {
                path: if folder.is_empty() { ".".into() } else { folder.clone() },
                component: component(&parts, at),
                environment,
                backend: hcl::declares_backend(text),
            }
        })
        .collect();
    disambiguate(&mut roots);
    Ok(roots)
}

/// Returns the name of a component: the last folder that is neither the environment nor a generic name.
fn component(parts: &[&str], environment: Option<usize>) -> String {
    const GENERAL: [&str; 9] =
        ["infra", "infrastructure", "terraform", "tofu", "opentofu", "environments", "envs", "live", "stacks"];
    let own: Vec<&str> = parts
        .iter()
        .enumerate()
        .filter(|(at, part)| Some(*at) != environment && !GENERAL.contains(&part.to_lowercase().as_str()))
        .map(|(_, part)| *part)
        .collect();
    own.last().map_or_else(|| "main".to_owned(), |part| name(part))
}

/// Renames root modules of one environment that would have equal names.
fn disambiguate(roots: &mut [Root]) {
    let mut taken: BTreeSet<(Option<String>, String)> = BTreeSet::new();
    for root in roots {
        if !taken.insert((root.environment.clone(), root.component.clone())) {
            root.component = name(&root.path.replace('/', "-"));
            taken.insert((root.environment.clone(), root.component.clone()));
        }
    }
}

fn collect(
    files: &dyn Files,
    folder: &str,
    depth: usize,
    modules: &mut BTreeMap<String, String>,
) -> Result<(), Failure> {
    if depth > DEPTH_MAX {
        return Ok(());
    }
    for entry in files.list(folder).map_err(Failure::from)? {
        let path = crate::ports::join(folder, &entry.name).unwrap_or_default();
        match entry.sort {
            crate::ports::EntryKind::Folder if !entry.name.starts_with('.') && entry.name != "node_modules" => {
                collect(files, &path, depth + 1, modules)?;
            }
            crate::ports::EntryKind::File if entry.name.ends_with(".tf") || entry.name.ends_with(".tofu") => {
                let text = files.read(&path).map_err(Failure::from)?;
                modules.entry(folder.to_owned()).or_default().push_str(&String::from_utf8_lossy(&text));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Quotes a path so that YAML reads it back unchanged.
fn quoted(path: &str) -> String {
    let plain = path.chars().all(|c| c.is_ascii_alphanumeric() || "/_-.".contains(c) || "${}".contains(c));
    let first = path.chars().next().is_some_and(|c| c.is_ascii_alphabetic());
    if plain && first && path.contains('/') { path.to_owned() } else { json!(path).to_string() }
}

/// Returns the files of a first state repo, by path.
fn state_repo(roots: &[Root], name: &str) -> BTreeMap<String, String> {
    let header = "apiVersion: evenkeel.dev/v1alpha1\n";
    let mut files = BTreeMap::new();
    let mut environments: Vec<&str> = roots.iter().map(|root| root.environment.as_deref().unwrap_or(DEFAULT)).collect();
    environments.sort_by_key(|name| (rank(name).unwrap_or(0), name.to_string()));
    environments.dedup();
    files.insert(
        "staterepo.yaml".to_owned(),
        format!("{header}kind: StateRepo\nmetadata: {{ name: {name} }}\nspec:\n  # Who may do what; nothing is allowed by default, and the first line that matches counts.\n  permissions:\n    - {{ allow: [plan, drift, help], to: [\"permission:write\"] }}\n    - {{ allow: [apply, revert, adopt, snooze, suspend, resume], to: [\"permission:maintain\"] }}\n    - {{ allow: [confirm, destroy, forget], to: [\"permission:admin\"] }}\n  defaults:\n    drift: {{ every: 15m, mode: propose }}\n"),
    );
    for (at, environment) in environments.iter().enumerate() {
        let before = at.checked_sub(1).map(|at| environments[at]);
        let after = before
            .filter(|before| rank(before) < rank(environment))
            .map_or_else(String::new, |before| format!("  after: {before}\n"));
        files.insert(
            format!("environments/{environment}.yaml"),
            format!("{header}kind: Environment\nmetadata: {{ name: {environment} }}\nspec:\n{after}  # A merge waits for `/apply {environment}`; `apply` makes the merge itself apply.\n  onMerge: wait\n  # What one run may destroy or replace.\n  limits: {{ destroys: 0, replaces: 0 }}\n"),
        );
    }
    let mut components: BTreeMap<&str, Vec<&Root>> = BTreeMap::new();
    for root in roots {
        components.entry(&root.component).or_default().push(root);
    }
    for (component, roots) in components {
        let mut names: Vec<&str> = roots.iter().map(|root| root.environment.as_deref().unwrap_or(DEFAULT)).collect();
        names.sort_by_key(|name| (rank(name).unwrap_or(0), name.to_string()));
        let pattern = |root: &Root| match &root.environment {
            Some(name) => root
                .path
                .split('/')
                .map(|part| if part == name { "${environment}".to_owned() } else { part.replace("${", "$${") })
                .collect::<Vec<_>>()
                .join("/"),
            None => root.path.replace("${", "$${"),
        };
        let shared = pattern(roots[0]);
        let same = roots.len() > 1 && roots.iter().all(|root| pattern(root) == shared);
        let mut text = format!(
            "{header}kind: Component\nmetadata: {{ name: {component} }}\nspec:\n  environments: [{}]\n",
            names.join(", ")
        );
        let own = |root: &Root| root.path.replace("${", "$${");
        let path = if same { shared } else { own(roots[0]) };
        text.push_str(&format!("  tofu:\n    root: {}\n", quoted(&path)));
        if !same && roots.len() > 1 {
            text.push_str("  overrides:\n");
            for root in &roots[1..] {
                let name = root.environment.as_deref().unwrap_or(DEFAULT);
                text.push_str(&format!("    {name}: {{ tofu: {{ root: {} }} }}\n", quoted(&own(root))));
            }
        }
        files.insert(format!("components/{component}.yaml"), text);
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_of_an_environment_is_one_and_the_rest_is_the_name() {
        let split = |path: &str| {
            let parts: Vec<&str> = path.split('/').collect();
            let at = parts.iter().position(|part| rank(part).is_some());
            (at.map(|at| parts[at].to_owned()), component(&parts, at))
        };
        assert_eq!(split("infra/environments/staging/network"), (Some("staging".into()), "network".into()));
        assert_eq!(split("network/prod"), (Some("prod".into()), "network".into()));
        assert_eq!(split("terraform"), (None, "main".into()));
        assert_eq!(split("envs/dev"), (Some("dev".into()), "main".into()));
        assert_eq!(name("My Repo_1"), "my-repo-1");
        assert_eq!(name("1st"), "x-1st");
    }
}
