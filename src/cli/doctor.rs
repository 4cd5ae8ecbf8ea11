//! Implements `evenkeel doctor`: checks the prerequisites and names a fix for each problem.

use std::{collections::BTreeSet, os::unix::fs::PermissionsExt, sync::Arc, time::Duration};

use clap::Args;
use serde::Serialize;
use serde_json::json;

use super::{Done, Failure, Format, Global, client, offline, output};
use crate::{
    adapters::{git::Mirror, store::Store},
    config::Config,
    domain::declaration::Desired,
    model::EnvironmentName,
    ports::Repository,
    targets::{citus, citus::Rights, kinds, kubernetes, opentofu},
};

/// The fix for a damaged store.
const RESTORE: &str = "stop the daemon and put a copy in its place (`evenkeel doctor --copy-store` makes one); without a copy remove it: then nothing is applied before an operator reads the plan";

/// Check every program, credential, path and permission that the configuration needs.
#[derive(Args, Debug)]
pub(crate) struct Doctor {
    /// Write a consistent copy of the store to a file, also while the daemon runs, and check nothing
    #[arg(long, value_name = "FILE")]
    copy_store: Option<std::path::PathBuf>,
}

#[derive(Serialize)]
struct Finding {
    what: String,
    well: bool,
    #[serde(rename = "says")]
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    mend: Option<String>,
}

fn well(what: &str, message: impl Into<String>) -> Finding {
    Finding { what: what.to_owned(), well: true, message: message.into(), mend: None }
}

fn ill(what: &str, message: impl Into<String>, mend: impl Into<String>) -> Finding {
    Finding { what: what.to_owned(), well: false, message: message.into(), mend: Some(mend.into()) }
}

pub(super) async fn run(global: &Global, args: &Doctor) -> Done {
    if let Some(file) = &args.copy_store {
        return copy_store(global, file).await;
    }
    let mut findings = vec![];
    match client::config(global) {
        Err(failure) => {
            findings.push(ill("configuration", failure.message, "fix the file; the README shows a complete one"))
        }
        Ok(None) => findings.push(ill(
            "configuration",
            "there is no `evenkeel.yaml` here or above",
            "write one, or name it with --config",
        )),
        Ok(Some(config)) => {
            findings.push(well("configuration", "reads"));
            examine(&config, &mut findings).await;
        }
    }
    let sick = findings.iter().any(|finding| !finding.well);
    if global.output == Format::Text {
        let colour = output::colour();
        let rows: Vec<Vec<String>> = findings
            .iter()
            .map(|f| vec![if f.well { colour.good("ok") } else { colour.bad("NO") }, f.what.clone(), f.message.clone()])
            .collect();
        output::text(&output::table(&rows));
        for finding in findings.iter().filter(|finding| !finding.well) {
            output::text(&format!(
                "{} {}: {}",
                colour.warn("Hint:"),
                finding.what,
                finding.mend.as_deref().unwrap_or_default()
            ));
        }
    } else {
        output::answer(global.output, "doctor", &json!({"findings": findings}))?;
    }
    Ok(u8::from(sick))
}

/// Writes a copy of the store.
async fn copy_store(global: &Global, file: &std::path::Path) -> Done {
    let config = client::config(global)?.ok_or_else(|| {
        Failure::new("there is no configuration").hint("name one with --config: it has the path of the store")
    })?;
    if file.exists() {
        return Err(Failure::new(format!("`{}` is there already", file.display())).hint("name another file"));
    }
    Store::open(&config.data.join("evenkeel.db")).await?.copy(file).await?;
    output::note(&format!(
        "The store is copied to {}. To restore it: stop the daemon, remove `evenkeel.db`, `-wal` and `-shm` from its data, and put the copy there as `evenkeel.db`.",
        file.display()
    ));
    Ok(0)
}

async fn examine(config: &Config, findings: &mut Vec<Finding>) {
    findings.push(match opentofu::version(&config.tofu.binary).await {
        Ok(version) if supported(&version) => well("tofu", format!("`{}` is {version}", config.tofu.binary)),
        Ok(version) => ill(
            "tofu",
            format!("`{}` is {version}, and 1.10 or newer of OpenTofu 1 is needed", config.tofu.binary),
            "install OpenTofu 1.10, or set `tofu.binary`",
        ),
        Err(why) => ill("tofu", why, "install OpenTofu 1.10, or set `tofu.binary`"),
    });
    if let Some(path) = std::env::var_os("TF_CLI_CONFIG_FILE") {
        let path = std::path::PathBuf::from(path);
        findings.push(if path.is_file() {
            well("tofu's CLI configuration", path.display().to_string())
        } else {
            ill(
                "tofu's CLI configuration",
                format!("TF_CLI_CONFIG_FILE names `{}`, which is not there", path.display()),
                "unset it, or write the file",
            )
        });
    }
    data(config, findings).await;
    let desired = repository(config, findings).await;
    forge(config, findings).await;
    connections(config, desired.as_deref(), findings).await;
    renderers(config, desired.as_deref(), findings).await;
    findings.push(match tokio::net::TcpListener::bind(config.listen).await {
        Ok(_) => well("listen", format!("{} is free", config.listen)),
        Err(_) if answers(config).await => well("listen", format!("a daemon answers at {}", config.listen)),
        Err(error) => {
            ill("listen", format!("{} can't be used: {error}", config.listen), "set `listen` to a free address")
        }
    });
    for (name, token) in &config.tokens {
        let what = format!("token {name}");
        findings.push(match std::fs::read_to_string(&token.file) {
            Ok(text) if !text.trim().is_empty() => well(&what, "reads"),
            Ok(_) => ill(&what, format!("`{}` is empty", token.file.display()), "write a random text into it"),
            Err(error) => ill(
                &what,
                format!("`{}`: {error}", token.file.display()),
                "write a random text into it, readable by the daemon alone",
            ),
        });
    }
}

async fn answers(config: &Config) -> bool {
    let Ok(http) = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(3)).build() else { return false };
    http.get(format!("http://{}/healthz", config.listen)).send().await.is_ok_and(|answer| answer.status().is_success())
}

fn supported(version: &str) -> bool {
    let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    matches!((parts.next(), parts.next()), (Some(1), Some(minor)) if minor >= 10)
}

async fn data(config: &Config, findings: &mut Vec<Finding>) {
    let path = config.data.display().to_string();
    match std::fs::metadata(&config.data) {
        Err(_) => match config
            .data
            .ancestors()
            .find(|folder| folder.exists())
            .map(|folder| tempfile::tempfile_in(folder).is_ok())
        {
            Some(true) => findings.push(well("data", format!("`{path}` will be made"))),
            _ => findings.push(ill("data", format!("`{path}` can't be made"), "make it, owned by the daemon's user")),
        },
        Ok(known) if !known.is_dir() => {
            findings.push(ill("data", format!("`{path}` is not a folder"), "name a folder"))
        }
        Ok(known) => {
            let mode = known.permissions().mode() & 0o777;
            findings.push(if mode & 0o077 == 0 {
                well("data", format!("`{path}` is private"))
            } else {
                ill("data", format!("`{path}` may be read by others (mode {mode:o})"), format!("chmod 700 {path}"))
            });
            if tempfile::tempfile_in(&config.data).is_err() {
                findings.push(ill("data", format!("`{path}` can't be written"), "check its owner and the disk"));
            }
            if config.data.join("evenkeel.db").is_file() {
                findings.push(match Store::open(&config.data.join("evenkeel.db")).await {
                    Ok(store) => match store.check().await {
                        Ok(()) => well("store", "is whole"),
                        Err(error) => ill("store", crate::error_chain(&error), RESTORE),
                    },
                    Err(error) => ill("store", crate::error_chain(&error), RESTORE),
                });
            }
        }
    }
}

async fn repository(config: &Config, findings: &mut Vec<Finding>) -> Option<Arc<Desired>> {
    let folder = tempfile::tempdir().ok()?;
    let what = "repository";
    if let (Ok(Some(crate::adapters::github::Auth::Token(token))), true) =
        (offline::auth(config), config.repository.url.starts_with("http"))
    {
        crate::adapters::git::Tokens::global().set(&config.repository.url, token);
    }
    let fetched = match Mirror::open(folder.path(), &config.repository.url) {
        Ok(mirror) => match mirror.fetch(&format!("refs/heads/{}", config.repository.branch)).await {
            Ok(Some(revision)) => mirror.files(&revision).await.map(|files| (revision, files)),
            Ok(None) => {
                findings.push(ill(
                    what,
                    format!("`{}` has no branch `{}`", config.repository.url, config.repository.branch),
                    "push it, or set `repository.branch`",
                ));
                return None;
            }
            Err(error) => Err(error),
        },
        Err(error) => Err(error.into()),
    };
    match fetched {
        Err(error) => {
            let hint = match config.repository.url.split_once("://") {
                Some(("http" | "https" | "file", _)) => "check the address, the network and the token",
                Some(_) => "name it by `https://`, or by a path on this machine; no other way is supported",
                None => "is there a git repository at this path?",
            };
            findings.push(ill(what, error.to_string(), hint));
            None
        }
        Ok((revision, files)) => {
            findings.push(well(what, format!("`{}` is at {}", config.repository.branch, revision.short())));
            let desired = crate::domain::declaration::load(kinds(), &*files, config.repository.path.trim_matches('/'));
            let message = format!(
                "{} files (of at most {}), {} instances",
                desired.files,
                crate::domain::declaration::FILES_MAX,
                desired.instances.len()
            );
            findings.push(match desired.problems.first() {
                None => well("declarations", message),
                Some(first) => ill(
                    "declarations",
                    format!("{} problems; the first: {first}", desired.problems.len()),
                    "`evenkeel validate` in a checkout shows all",
                ),
            });
            Some(desired)
        }
    }
}

async fn forge(config: &Config, findings: &mut Vec<Finding>) {
    let what = "forge";
    let Some(github) = &config.github else {
        findings.push(well(what, "none: nothing is proposed, and no comment is read"));
        return;
    };
    match offline::forge(config) {
        Err(failure) => findings.push(ill(what, failure.message, "check `github` in the configuration")),
        Ok(None) => {}
        Ok(Some(client)) => match client.own_login().await {
            Err(error) => {
                findings.push(ill(what, error.to_string(), "check `github.baseUrl`, the token and the network"))
            }
            Ok(login) => {
                findings.push(well(what, format!("we are {login} at {}", github.base_url)));
                findings.push(match client.list_pulls().await {
                    Ok(pulls) => well("pull requests", format!("{} can be seen", pulls.len())),
                    Err(error) => ill("pull requests", error.to_string(), "give the token or App read and write access to pull requests, issues, contents and commit statuses"),
                });
            }
        },
    }
    match &github.webhook_secret_file {
        None => findings.push(well("webhooks", "none: the forge is polled")),
        Some(path) => findings.push(match std::fs::read_to_string(path) {
            Ok(text) if !text.trim().is_empty() => well("webhooks", "the secret reads"),
            Ok(_) => ill("webhooks", format!("`{}` is empty", path.display()), "write the secret into it"),
            Err(error) => ill(
                "webhooks",
                format!("`{}`: {error}", path.display()),
                "write the secret into it, readable by the daemon alone",
            ),
        }),
    }
}

/// Checks every connection that the configuration or a declaration names, for both of its uses.
async fn connections(config: &Config, desired: Option<&Desired>, findings: &mut Vec<Finding>) {
    let declared: BTreeSet<&EnvironmentName> = desired.iter().flat_map(|desired| desired.environments.keys()).collect();
    let mut pairs: BTreeSet<(EnvironmentName, String)> = BTreeSet::new();
    for (environment, all) in &config.connections {
        let environments: Vec<EnvironmentName> = match environment.parse() {
            Ok(environment) => vec![environment],
            Err(_) => declared.iter().map(|environment| (*environment).clone()).collect(),
        };
        pairs.extend(
            environments.iter().flat_map(|environment| all.keys().map(|name| (environment.clone(), name.clone()))),
        );
    }
    for instance in desired.iter().flat_map(|desired| desired.instances.values()) {
        let target = instance.spec.as_ref().map(|spec| &spec.target);
        let name = target.and_then(|target| kinds().of(target)?.connection(&target.declared));
        pairs.extend(name.map(|name| (instance.id.environment.clone(), name)));
    }
    let Ok(component) = "doctor".parse() else { return };
    for (environment, name) in pairs {
        let id = crate::model::InstanceId::new(&environment, &component);
        let redactor = crate::model::Redactor::default();
        let mut is_database = false;
        for rights in [Rights::Plan, Rights::Apply, Rights::Admin] {
            if !config.is_database(&id, &name, rights) {
                continue;
            }
            is_database = true;
            let what = format!("connection {environment}/{name} ({})", rights.word());
            let reached = match config.login(&id, &name, rights, &redactor) {
                Ok(login) => citus::reach(&login, &redactor).await,
                Err(why) => Err(why),
            };
            findings.push(match reached {
                Ok(message) => well(&what, message),
                Err(why) => ill(&what, why, "check the address in the file, the network, and what the role may do"),
            });
        }
        for apply in [false, true].into_iter().filter(|_| !is_database) {
            let what = format!("connection {environment}/{name} ({})", if apply { "apply" } else { "plan" });
            if config.is_cluster(&id, &name, apply) {
                let reached = match config.access(&id, &name, apply, &crate::model::Redactor::default()) {
                    Ok((access, _)) => kubernetes::reach(&access).await,
                    Err(why) => Err(why),
                };
                findings.push(match reached {
                    Ok(message) => well(&what, message.unwrap_or_else(|| "a token reads".into())),
                    Err(why) => ill(&what, why, "check the kubeconfig, the network, and what the identity may read"),
                });
                continue;
            }
            findings.push(match config.credentials(&id, &name, apply, &crate::model::Redactor::default()) {
                Ok(given) => well(&what, format!("{} variables", given.len())),
                Err(why) => ill(&what, why, "complete it under `connections` in the configuration"),
            });
        }
    }
}

/// Checks the programs that render the declared objects.
async fn renderers(config: &Config, desired: Option<&Desired>, findings: &mut Vec<Finding>) {
    let specs =
        desired.iter().flat_map(|desired| desired.instances.values()).filter_map(|instance| instance.spec.as_ref());
    let sources: Vec<_> =
        specs.filter_map(|spec| Some(kinds().of(&spec.target)?.source(&spec.target.declared)?.field)).collect();
    let (kustomize, helm) = (&config.kubernetes.kustomize, &config.kubernetes.helm);
    let asked = [("kustomize", kustomize, sources.contains(&"kustomize")), ("helm", helm, sources.contains(&"helm"))];
    for (name, program, _) in asked.into_iter().filter(|(_, _, is_used)| *is_used) {
        findings.push(match kubernetes::version(program).await {
            Ok(version) => well(name, format!("`{program}` is {version}")),
            Err(why) => ill(name, why, format!("install it, or set `kubernetes.{name}`")),
        });
    }
}
