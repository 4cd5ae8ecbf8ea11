//! A daemon over simulated ports, for the unit tests of controllers.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Utc};

use super::{Daemon, Ports, Settings};
use crate::{
    adapters::{
        sim::{Clock, Forge, Repository, World},
        store::Store,
    },
    domain::authorization::{LOCAL_TOKEN, Principal},
    model::{Redactor, Seal},
};

/// A StateRepo in which writers may plan and members of `platform` may do everything else.
pub(super) const STATE_REPO: &str = "apiVersion: evenkeel.dev/v1alpha1\nkind: StateRepo\nmetadata: { name: acme }\nspec:\n  teams: { platform: { users: [lin] } }\n  permissions:\n    - { allow: [plan], to: [\"permission:write\"] }\n    - { allow: [apply, cancel, destroy, snooze], to: [\"team:platform\"] }\n";

/// An environment that applies what is merged.
pub(super) const DEV: &str =
    "apiVersion: evenkeel.dev/v1alpha1\nkind: Environment\nmetadata: { name: dev }\nspec: { onMerge: apply }\n";

/// A component `network` of one resource in `dev`.
pub(super) const NETWORK: &str = "apiVersion: evenkeel.dev/v1alpha1\nkind: Component\nmetadata: { name: network }\nspec:\n  environments: [dev]\n  tofu: { root: tf/network }\n";

/// The simulated ports, which outlive a daemon.
pub(super) struct TestStage {
    pub(super) clock: Arc<Clock>,
    pub(super) repository: Repository,
    pub(super) forge: Forge,
    pub(super) world: World,
    store: Store,
    seal: Arc<Seal>,
}

impl TestStage {
    /// Ports with an empty repository, and the users `lin` and `mira` who may write.
    pub(super) async fn new() -> Self {
        let at: DateTime<Utc> = "2026-11-20T09:00:00Z".parse().expect("a time");
        let clock = Arc::new(Clock::new(at));
        let repository = Repository::new(Arc::clone(&clock) as _);
        let users = [("lin", "write"), ("mira", "write"), ("evenkeel", "admin")];
        let forge = Forge::new(repository.clone(), Arc::clone(&clock) as _, &users, &[]);
        let seal = Arc::new(Seal::new(b"a key".to_vec()));
        let world = World::new(Arc::clone(&seal), Arc::clone(&clock));
        let store = Store::in_memory().await.expect("a store in memory opens");
        Self { clock, repository, forge, world, store, seal }
    }

    /// Ports whose branch declares `dev/network`.
    pub(super) async fn with_network() -> Self {
        let stage = Self::new().await;
        stage.commit(&[
            ("state-repo/staterepo.yaml", STATE_REPO),
            ("state-repo/environments/dev.yaml", DEV),
            ("state-repo/components/network.yaml", NETWORK),
            ("tf/network/main.tf", "gateway.size = 1\n"),
        ]);
        stage
    }

    /// Commits files on the branch.
    pub(super) fn commit(&self, files: &[(&str, &str)]) {
        let files: Vec<_> = files.iter().map(|(path, text)| ((*path).to_owned(), Some((*text).to_owned()))).collect();
        self.repository.commit("main", "lin", "A change", &files).expect("the branch can be committed to");
    }

    /// A daemon over these ports that has not started.
    pub(super) fn daemon(&self, holder: &str) -> Arc<Daemon> {
        let ports = Ports {
            store: self.store.another(None),
            repository: Arc::new(self.repository.clone()),
            target: Arc::new(self.world.clone()),
            probe: Arc::new(self.world.clone()),
            forge: Some(Arc::new(self.forge.clone())),
            clock: Arc::clone(&self.clock) as _,
            seal: Arc::clone(&self.seal),
            redactor: Redactor::default(),
        };
        let settings = Settings {
            branch: "main".into(),
            root: "state-repo".into(),
            poll: Duration::from_secs(60),
            watch: None,
            holder: holder.to_owned(),
            lease: Duration::from_millis(50),
        };
        Daemon::new(settings, ports)
    }

    /// A daemon that has the lease and has handled everything that the branch asks for.
    pub(super) async fn settled(&self) -> Arc<Daemon> {
        let daemon = self.daemon("test");
        daemon.leader.take_lease().await.expect("the lease is free");
        daemon.start().await;
        self.settle(&daemon).await;
        daemon
    }

    /// Lets a daemon handle all requests.
    pub(super) async fn settle(&self, daemon: &Arc<Daemon>) {
        daemon.poll().await.expect("the ports answer");
        daemon.drain_queue(|| 0, false).await;
    }
}

/// The owner of the daemon's data directory.
pub(super) fn local() -> Principal {
    Principal::Token { name: LOCAL_TOKEN.into() }
}
