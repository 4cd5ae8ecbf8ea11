//! Builds a daemon without its control loop: for `serve`, and for commands without a running daemon.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use secrecy::SecretString;

use super::Failure;
use crate::{
    adapters::{
        git::{Mirror, WorkingFiles},
        github::{Auth, GitHub},
        store::Store,
    },
    config::Config,
    controller::{Daemon, Head, Ports, Settings, SystemClock},
    domain::declaration,
    model::{InstanceId, Redactor, Revision, Seal},
    ports::{Forge, TargetAdapter},
    targets::{Kind, Targets, citus, kinds, kubernetes, opentofu, probe::Network},
};

/// Returns the executable of this process, also if its file was replaced since the start.
fn supervisor() -> std::path::PathBuf {
    "/proc/self/exe".into()
}

/// Returns the tofu settings of a configuration.
pub(crate) fn tofu_settings(config: &Config, redactor: &Redactor) -> opentofu::Settings {
    let (for_credentials, redactor) = (config.clone(), redactor.clone());
    opentofu::Settings {
        binary: config.tofu.binary.clone(),
        parallel: config.tofu.parallel,
        data: config.data.clone(),
        provider_cache: config.tofu.provider_cache.clone().unwrap_or_else(|| config.data.join("providers")),
        supervisor: supervisor(),
        timeout: config.tofu.timeout.std(),
        lock_timeout: config.tofu.lock_timeout.std(),
        cli_config: std::env::var_os("TF_CLI_CONFIG_FILE").map(Into::into),
        credentials: Arc::new(move |id: &InstanceId, name: &str, apply| {
            for_credentials.credentials(id, name, apply, &redactor)
        }),
    }
}

/// Returns the Kubernetes target of a configuration; without a configuration every connection is missing.
pub(crate) fn kubernetes(
    config: Option<&Config>,
    store: &Store,
    seal: &Arc<Seal>,
    redactor: &Redactor,
) -> kubernetes::Kubernetes {
    let programs = config.map(|config| config.kubernetes.clone()).unwrap_or_default();
    let (for_accesses, for_redactor) = (config.cloned(), redactor.clone());
    let accesses: kubernetes::Accesses = Arc::new(move |id: &InstanceId, name: &str, apply| match &for_accesses {
        Some(config) => config.access(id, name, apply, &for_redactor),
        None => {
            Err(format!("`{id}` names the connection `{name}`, and there is no configuration; name it with --config"))
        }
    });
    let settings = kubernetes::Settings {
        kustomize: programs.kustomize,
        helm: programs.helm,
        parallel: programs.parallel,
        accesses,
    };
    kubernetes::Kubernetes::new(settings, Arc::clone(seal), redactor.clone(), Arc::new(store.clone()))
}

/// Returns the Citus target of a configuration; without a configuration every connection is missing.
pub(crate) fn citus(config: Option<&Config>, store: &Store, redactor: &Redactor) -> citus::Citus {
    let (for_logins, for_redactor) = (config.cloned(), redactor.clone());
    let logins: citus::Logins = Arc::new(move |id: &InstanceId, name: &str, rights| match &for_logins {
        Some(config) => config.login(id, name, rights, &for_redactor),
        None => {
            Err(format!("`{id}` names the connection `{name}`, and there is no configuration; name it with --config"))
        }
    });
    citus::Citus::new(citus::Settings { logins }, redactor.clone(), Arc::new(store.clone()))
}

/// Returns the credentials of the forge client.
pub(crate) fn auth(config: &Config) -> Result<Option<Auth>, Failure> {
    let Some(github) = &config.github else { return Ok(None) };
    if let Some(app) = &github.app {
        return Ok(Some(Auth::App { id: app.id, key: app.private_key_file.clone() }));
    }
    let token = match (&github.token_file, std::env::var("EVENKEEL_GITHUB_TOKEN")) {
        (Some(path), _) => std::fs::read_to_string(path).map_err(|error| {
            Failure::new(format!("could not read `github.tokenFile` `{}`: {error}", path.display()))
        })?,
        (None, Ok(token)) => token,
        (None, Err(_)) => {
            return Err(Failure::new("`github` has neither `app` nor `tokenFile`")
                .hint("set one of them, or EVENKEEL_GITHUB_TOKEN"));
        }
    };
    Ok(Some(Auth::Token(SecretString::from(token.trim().to_owned()))))
}

/// Returns the principal of a user who can read the daemon's data.
pub(crate) fn owner() -> crate::domain::authorization::Principal {
    crate::domain::authorization::Principal::Token { name: crate::domain::authorization::LOCAL_TOKEN.into() }
}

/// Returns the forge client of a configuration, if it declares a forge.
pub(crate) fn forge(config: &Config) -> Result<Option<Arc<dyn Forge>>, Failure> {
    let (Some(github), Some(auth)) = (&config.github, auth(config)?) else { return Ok(None) };
    let (owner, name) = config.forge_repository().map_err(Failure::new)?;
    Ok(Some(Arc::new(GitHub::new(&github.base_url, &owner, &name, auth))))
}

/// Creates the folder of the daemon's data, accessible to its owner alone.
pub(crate) fn make_data(data: &Path) -> Result<(), Failure> {
    use std::os::unix::fs::PermissionsExt;
    let failed =
        |error: std::io::Error| Failure::new(format!("could not use the folder of data `{}`: {error}", data.display()));
    std::fs::create_dir_all(data).map_err(failed)?;
    std::fs::set_permissions(data, std::fs::Permissions::from_mode(0o700)).map_err(failed)
}

/// The lock of a data folder. While a process holds it, no other process of this machine uses the folder.
pub(crate) struct Alone {
    file: std::fs::File,
    held: bool,
}

impl Alone {
    /// Opens the lock of a folder without taking it.
    pub(crate) fn new(data: &Path) -> Result<Self, Failure> {
        make_data(data)?;
        let file = std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(data.join("lock"))?;
        Ok(Self { file, held: false })
    }
    /// Takes the lock if it is free; returns whether this process holds it.
    pub(crate) fn is(&mut self) -> bool {
        let free = || rustix::fs::flock(&self.file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_ok();
        self.held = self.held || free();
        self.held
    }
}

/// Returns the adapters of all kinds of targets.
fn targets(
    config: Option<&Config>,
    tofu: opentofu::Settings,
    store: &Store,
    seal: &Arc<Seal>,
    redactor: &Redactor,
) -> Targets {
    let adapters: [(Kind, Arc<dyn TargetAdapter>); 3] = [
        (Kind::OpenTofu, Arc::new(opentofu::Tofu::new(tofu, Arc::clone(seal), redactor.clone()))),
        (Kind::Kubernetes, Arc::new(kubernetes(config, store, seal, redactor))),
        (Kind::Citus, Arc::new(citus(config, store, redactor))),
    ];
    Targets::new(adapters)
}

/// Takes the lock of a data folder. Fails if a daemon, or a command that observes with the store, already holds
/// it.
pub(crate) fn only_one(data: &Path) -> Result<Alone, Failure> {
    let mut alone = Alone::new(data)?;
    if alone.is() {
        return Ok(alone);
    }
    Err(Failure::new(format!("another daemon works on `{}`", data.display()))
        .hint("stop it first, or give this one another `data`; --server names its address"))
}

/// Builds a daemon from a configuration; it has not observed anything yet.
pub(crate) async fn daemon(config: &Config, redactor: Redactor) -> Result<Arc<Daemon>, Failure> {
    make_data(&config.data)?;
    let store = Store::open(&config.data.join("evenkeel.db")).await.map_err(|error| {
        Failure::from(error).hint("`evenkeel doctor` shows what is wrong with it; a copy restores it")
    })?;
    store.check().await.map_err(|error| Failure::from(error).hint("`evenkeel doctor` shows what to do"))?;
    let seal = Arc::new(store.seal().await?);
    let targets = targets(Some(config), tofu_settings(config, &redactor), &store, &seal, &redactor);
    let hands = Ports {
        repository: Arc::new(Mirror::open(&config.data.join("mirror.git"), &config.repository.url)?),
        forge: forge(config)?,
        target: Arc::new(targets),
        probe: Arc::new(Network),
        clock: Arc::new(SystemClock),
        store,
        seal,
        redactor,
    };
    Ok(Daemon::new(settings(config), hands))
}

fn settings(config: &Config) -> Settings {
    Settings {
        branch: config.repository.branch.clone(),
        root: config.repository.path.trim_matches('/').to_owned(),
        poll: config.repository.poll.std(),
        watch: config.local_repository(),
        holder: crate::adapters::supervisor::Who::me().to_string(),
        lease: config.lease.std(),
    }
}

/// Builds a daemon over a checkout. Its store is empty, so it knows no applied state.
pub(crate) async fn offline(
    config: Option<&Config>,
    state_repo: Option<&Path>,
) -> Result<(Arc<Daemon>, tempfile::TempDir), Failure> {
    let (root, below) = super::validate::find(state_repo)?;
    let folder = tempfile::tempdir()?;
    let redactor = Redactor::default();
    let store = Store::in_memory().await?;
    let seal = Arc::new(store.seal().await?);
    let mut settings_of_tofu = match config {
        Some(config) => tofu_settings(config, &redactor),
        None => {
            let none: opentofu::Credentials = Arc::new(|id: &InstanceId, name: &str, _| {
                Err::<BTreeMap<String, SecretString>, _>(format!(
                    "`{id}` names the connection `{name}`, and there is no configuration; name it with --config"
                ))
            });
            opentofu::Settings {
                binary: "tofu".into(),
                parallel: 4,
                data: folder.path().to_owned(),
                provider_cache: folder.path().join("providers"),
                supervisor: supervisor(),
                timeout: std::time::Duration::from_secs(3600),
                lock_timeout: std::time::Duration::from_secs(30),
                cli_config: std::env::var_os("TF_CLI_CONFIG_FILE").map(Into::into),
                credentials: none,
            }
        }
    };
    settings_of_tofu.data = folder.path().to_owned();
    let files: Arc<dyn crate::ports::Files> = Arc::new(WorkingFiles::new(&root));
    let desired = declaration::load(kinds(), &*files, &below);
    let revision: Revision = "0".repeat(40).parse()?;
    let hands = Ports {
        repository: Arc::new(Mirror::open(&folder.path().join("mirror.git"), &root.display().to_string())?),
        forge: None,
        target: Arc::new(targets(config, settings_of_tofu, &store, &seal, &redactor)),
        probe: Arc::new(Network),
        clock: Arc::new(SystemClock),
        store,
        seal,
        redactor,
    };
    let settings = Settings {
        branch: "main".into(),
        root: below,
        poll: std::time::Duration::from_secs(60),
        watch: None,
        holder: "offline".into(),
        lease: std::time::Duration::from_secs(60),
    };
    let daemon = Daemon::new(settings, hands);
    daemon.source.set_head(Head { revision, desired, content: files });
    Ok((daemon, folder))
}
