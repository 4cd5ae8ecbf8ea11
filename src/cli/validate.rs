//! Implements `evenkeel validate` and `evenkeel schema`, which need no daemon.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::Args;
use serde_json::json;

use super::{Done, Failure, Format, Global, output};
use crate::{
    adapters::git::WorkingFiles,
    domain::{
        declaration::{self, Desired, schema},
        message::terminal,
    },
    targets,
};

/// Check the declarations of a state repo.
#[derive(Args, Debug)]
pub(crate) struct Validate {
    /// The folder of the declarations; the nearest `state-repo` above the working directory if it is not given
    #[arg(long, value_name = "FOLDER")]
    state_repo: Option<PathBuf>,
}

/// Print the JSON Schemas of the declarations.
#[derive(Args, Debug)]
pub(crate) struct Schema {
    /// StateRepo, Environment, Component, Schedule or Remediation; all if it is not given
    kind: Option<String>,
    /// Write each schema into a file of this folder
    #[arg(long, value_name = "FOLDER")]
    write: Option<PathBuf>,
}

/// Locates the declarations on disk: the root of the repository, and the folder below it.
pub(crate) fn find(state_repo: Option<&Path>) -> Result<(PathBuf, String), Failure> {
    let folder = match state_repo {
        Some(folder) => folder.to_owned(),
        None => {
            let here = std::env::current_dir()?;
            let found = here.ancestors().map(|folder| folder.join("state-repo")).find(|folder| folder.is_dir());
            found.ok_or_else(|| {
                Failure::new("there is no folder `state-repo` here or above").hint("name it with --state-repo")
            })?
        }
    };
    let folder = folder
        .canonicalize()
        .map_err(|error| Failure::new(format!("could not read `{}`: {error}", folder.display())))?;
    // Paths are relative to the root of the repository, which contains the declarations in one folder.
    let root = folder.parent().unwrap_or(&folder).to_owned();
    let below = folder.strip_prefix(&root).map(|path| path.display().to_string()).unwrap_or_default();
    Ok((root, below))
}

/// Loads the declarations from disk.
pub(crate) fn load(state_repo: Option<&Path>) -> Result<Arc<Desired>, Failure> {
    let (root, below) = find(state_repo)?;
    Ok(declaration::load(targets::kinds(), &WorkingFiles::new(root), &below))
}

pub(super) fn run(global: &Global, args: &Validate) -> Done {
    let desired = load(args.state_repo.as_deref())?;
    let files: std::collections::BTreeSet<&str> = desired.problems.iter().map(|problem| &*problem.file).collect();
    let broken: std::collections::BTreeSet<_> =
        desired.instances.values().filter(|i| !i.problems.is_empty()).map(|i| i.id.component.clone()).collect();
    let fine = desired
        .instances
        .values()
        .map(|i| i.id.component.clone())
        .collect::<std::collections::BTreeSet<_>>()
        .difference(&broken)
        .count();
    match global.output {
        Format::Text => {
            let colour = output::colour();
            let mut text = String::new();
            for problem in &desired.problems {
                text.push_str(&terminal::problem(problem, colour));
            }
            for note in &desired.notes {
                text.push_str(&format!("Note: {note}\n"));
            }
            let plural =
                |count: usize, word: &str| if count == 1 { format!("1 {word}") } else { format!("{count} {word}s") };
            if desired.problems.is_empty() {
                text.push_str(&format!(
                    "{}: {}, {} in {}.\n",
                    colour.good("No problem"),
                    plural(desired.files, "file"),
                    plural(desired.components, "component"),
                    plural(desired.environments.len(), "environment")
                ));
            } else {
                text.push_str(&format!(
                    "{} in {} of {}; {} fine.\n",
                    plural(desired.problems.len(), "problem"),
                    files.len(),
                    plural(desired.files, "file"),
                    if fine == 1 { "1 component is".into() } else { format!("{fine} components are") }
                ));
            }
            output::text(&text);
        }
        format => output::answer(
            format,
            "validate",
            &json!({"files": desired.files, "components": desired.components, "instances": desired.instances.len(),
                "problems": desired.problems, "notes": desired.notes,
            }),
        )?,
    }
    Ok(u8::from(!desired.problems.is_empty()))
}

pub(super) fn schema(global: &Global, args: &Schema) -> Done {
    // A schema is JSON, even if the format is text.
    let print = |schema: &serde_json::Value| output::document(global.output, schema);
    let documents: Vec<&str> = match &args.kind {
        None => schema::DOCUMENTS.to_vec(),
        Some(name) => {
            let found = schema::DOCUMENTS.into_iter().find(|kind| kind.eq_ignore_ascii_case(name));
            vec![found.ok_or_else(|| {
                Failure::new(format!("there is no kind `{name}`"))
                    .hint(format!("one of {}", schema::DOCUMENTS.join(", ")))
            })?]
        }
    };
    for kind in &documents {
        let schema = targets::kinds().schema(kind).ok_or_else(|| Failure::new("a kind without a schema"))?;
        let text = serde_json::to_string_pretty(&schema)? + "\n";
        match &args.write {
            None if documents.len() == 1 => print(&schema)?,
            None => {}
            Some(folder) => {
                std::fs::create_dir_all(folder)?;
                std::fs::write(folder.join(format!("{}.json", kind.to_lowercase())), text)?;
            }
        }
    }
    if args.write.is_none() && documents.len() > 1 {
        let all: serde_json::Map<_, _> =
            documents.iter().filter_map(|kind| Some(((*kind).to_owned(), targets::kinds().schema(kind)?))).collect();
        print(&all.into())?;
    }
    Ok(0)
}
