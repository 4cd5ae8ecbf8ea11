//! Manages a file with one text: the smallest kind of target, for tests alone.
//!
//! Shows the parts of a new kind: a declaration, the implementation of [`TargetKind`], an adapter, and its variant in
//! `targets/kind.rs`. No other module names it.

use std::{path::PathBuf, sync::Arc};

use async_trait::async_trait;
use parking_lot::Mutex;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    domain::{
        declaration::walk::{Closure, Looked, Source, WalkError},
        kind::{Adoption, Edits, TargetKind, typed},
        plan::action_digest,
        remediation::edit::edit_component,
    },
    model::{
        Action, Change, Digester, Drift, DriftField, DriftKind, Effect, Field, InstanceId, Overwrite, ResourceChange,
    },
    ports::{Fence, Files, Job, Observation, Prepared, Progress, TargetAdapter, TargetError, TargetErrorKind},
};

/// A file with one text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Declared {
    /// The name of the file.
    name: String,
    /// The text of the file.
    text: String,
}

pub(super) struct File;

impl TargetKind for File {
    fn name(&self) -> &'static str {
        "file"
    }
    fn schema(&self, generator: &mut SchemaGenerator) -> Schema {
        generator.subschema_for::<Declared>()
    }
    fn summary(&self) -> &'static str {
        "A file with one text."
    }
    fn fixed_fields(&self) -> &'static [&'static str] {
        &["name"]
    }
    fn normalize(&self, declared: &Value) -> Result<Value, String> {
        Ok(json!(typed::<Declared>(declared)?))
    }
    fn source(&self, _: &Value) -> Option<Source> {
        Some(Source { kind: self.name(), field: "name", paths: vec![] })
    }
    fn closure(&self, _: &dyn Files, _: &Source, _: &mut Looked) -> Result<Closure, WalkError> {
        Ok(Closure { digest: Some(Digester::new("closure").finish()), ..Closure::default() })
    }
    fn content(&self, declared: &Value) -> Value {
        declared.clone()
    }
    fn connection(&self, _: &Value) -> Option<String> {
        None
    }
    fn drift(&self, observation: &Observation) -> Vec<Drift> {
        let field = |field: &Field| DriftField {
            path: field.path.clone(),
            desired: field.after.clone(),
            observed: field.before.clone(),
        };
        let drift = |change: &ResourceChange| Drift {
            resource: change.resource.clone(),
            drift: if change.change == Change::Create { DriftKind::Missing } else { DriftKind::Changed },
            revertible: true,
            fields: change.fields.iter().map(field).collect(),
            changed_by: None,
            changed_at: None,
            is_output: false,
        };
        observation.changes.iter().map(drift).collect()
    }
    fn actions(&self, id: &InstanceId, observation: &Observation) -> Vec<Action> {
        let action = |change: &ResourceChange| {
            let resources = vec![change.clone()];
            Action {
                digest: action_digest(id, "file.write", &resources),
                r#do: "file.write".into(),
                precondition: Overwrite::default(),
                effect: Effect::NONE,
                resources,
            }
        };
        observation.changes.iter().map(action).collect()
    }
    fn adopt(&self, adoption: &Adoption<'_>, observation: &Observation, edits: &mut dyn Edits) -> Result<(), String> {
        let path = edits.declaration()?;
        let mut text = edits.read(&path)?;
        let InstanceId { component, environment } = adoption.instance;
        for field in observation.changes.iter().flat_map(|change| &change.fields) {
            let value = field.before.as_ref().ok_or("the file was deleted; remove its declaration")?;
            text = edit_component(&text, component.as_str(), self.name(), environment, &[], "text", value)?;
        }
        edits.write(&path, text);
        Ok(())
    }
}

/// The files of a folder, with a record of each apply.
pub(super) struct Folder {
    path: PathBuf,
    applied: Mutex<Vec<String>>,
}

impl Folder {
    fn file(&self, job: &Job) -> Result<(Declared, PathBuf), TargetError> {
        let declared: Declared =
            typed(&job.target.declared).map_err(|why| TargetError::new(TargetErrorKind::InputWrong, why))?;
        let path = self.path.join(&declared.name);
        Ok((declared, path))
    }
}

#[async_trait]
impl TargetAdapter for Folder {
    async fn observe(&self, job: &Job) -> Result<Observation, TargetError> {
        let (declared, path) = self.file(job)?;
        let live = std::fs::read_to_string(&path).ok();
        let change = match (&live, job.destroy) {
            (Some(_), true) => Some(Change::Destroy),
            (None, true) => None,
            (None, false) => Some(Change::Create),
            (Some(live), false) => (*live != declared.text).then_some(Change::Update),
        };
        let field = Field {
            path: "/text".into(),
            before: live.clone().map(Value::from),
            after: (!job.destroy).then(|| declared.text.into()),
            sensitive: false,
            unknown: false,
            sealed: None,
        };
        let change = change.map(|change| ResourceChange {
            resource: format!("file {}", declared.name),
            r#type: "file".into(),
            change,
            reverts_drift: false,
            protected: false,
            fields: vec![field],
        });
        Ok(Observation {
            changes: change.into_iter().collect(),
            holds_anything: live.is_some(),
            ..Observation::default()
        })
    }
    async fn prepare(&self, job: &Job) -> Result<Prepared, TargetError> {
        Ok(Prepared { observation: self.observe(job).await?, ticket: Box::new(()) })
    }
    async fn apply(&self, job: &Job, _: Prepared, _: Fence, _: Progress) -> Result<(), TargetError> {
        let (declared, path) = self.file(job)?;
        let done = if job.destroy { std::fs::remove_file(&path) } else { std::fs::write(&path, &declared.text) };
        self.applied.lock().push(declared.name);
        done.map_err(|error| TargetError::new(TargetErrorKind::ApplyFailed, error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, Utc};

    use super::*;
    use crate::{
        adapters::{
            sim::{Clock, Forge, Repository, World},
            store::Store,
        },
        controller::{Daemon, Ports, Reason, ReconcileRequest, Settings},
        model::{Redactor, Seal},
        targets::{Kind, Targets},
    };

    const STATE_REPO: &str = "apiVersion: evenkeel.dev/v1alpha1\nkind: StateRepo\nmetadata: { name: acme }\nspec:\n  permissions:\n    - { allow: [plan, apply, adopt, help], to: [\"permission:write\"] }\n";
    const DEV: &str =
        "apiVersion: evenkeel.dev/v1alpha1\nkind: Environment\nmetadata: { name: dev }\nspec: { onMerge: apply }\n";
    const MOTD: &str = "apiVersion: evenkeel.dev/v1alpha1\nkind: Component\nmetadata: { name: motd }\nspec:\n  environments: [dev]\n  file:\n    name: motd\n    text: hello # the greeting\n";
    const PATH: &str = "state-repo/components/motd.yaml";

    /// Runs a kind of target that no other module names through declare, plan, apply, drift and adopt.
    #[tokio::test]
    async fn a_new_kind_is_declared_planned_applied_checked_and_adopted() {
        let at: DateTime<Utc> = "2026-11-20T09:00:00Z".parse().unwrap();
        let clock = Arc::new(Clock::new(at));
        let repository = Repository::new(Arc::clone(&clock) as _);
        let forge =
            Forge::new(repository.clone(), Arc::clone(&clock) as _, &[("lin", "write"), ("evenkeel", "admin")], &[]);
        let seal = Arc::new(Seal::new(b"a key".to_vec()));
        let live = tempfile::tempdir().unwrap();
        let folder = Arc::new(Folder { path: live.path().to_owned(), applied: Mutex::default() });
        let ports = Ports {
            store: Store::in_memory().await.unwrap(),
            repository: Arc::new(repository.clone()),
            target: Arc::new(Targets::new([(Kind::File, Arc::clone(&folder) as _)])),
            probe: Arc::new(World::new(Arc::clone(&seal), Arc::clone(&clock))),
            forge: Some(Arc::new(forge.clone())),
            clock: Arc::clone(&clock) as _,
            seal,
            redactor: Redactor::default(),
        };
        let settings = Settings {
            branch: "main".into(),
            root: "state-repo".into(),
            poll: std::time::Duration::from_secs(60),
            watch: None,
            holder: "test".into(),
            lease: std::time::Duration::from_secs(120),
        };
        let daemon = Daemon::new(settings, ports);
        daemon.leader.take_lease().await.unwrap();
        let file = |path: &str, text: &str| (path.to_owned(), Some(text.to_owned()));
        let files = [file("state-repo/staterepo.yaml", STATE_REPO), file("state-repo/environments/dev.yaml", DEV)];
        repository.commit("main", "lin", "Begin", &files).unwrap();
        daemon.start().await;
        let rest = async || {
            daemon.poll().await.unwrap();
            daemon.drain_queue(|| 0, false).await;
        };
        rest().await;

        // A pull request shows the plan, and its merge applies it.
        repository.commit("motd", "lin", "Greet", &[file(PATH, MOTD)]).unwrap();
        let pull = forge.open("lin", "motd", "Greet", "", false).unwrap();
        rest().await;
        let comments: String = forge.comments(pull.0).iter().map(|(comment, _)| comment.body.clone()).collect();
        assert!(comments.contains("file motd"), "{comments}");
        forge.merge(pull.0, "lin").unwrap();
        rest().await;
        assert_eq!(std::fs::read_to_string(live.path().join("motd")).unwrap(), "hello");
        assert_eq!(*folder.applied.lock(), ["motd"]);

        // A foreign change is drift, and a pull request proposes to revert it.
        std::fs::write(live.path().join("motd"), "good morning").unwrap();
        daemon.context.queue.enqueue(ReconcileRequest::Instance("dev/motd".parse().unwrap()), Reason::DriftCheckDue);
        rest().await;
        let proposal = forge.pulls().into_iter().find(|other| other.open && other.number != pull).expect("a proposal");

        // `/adopt` turns the proposal around: its merge declares the observed text, and nothing is written.
        clock.forward(chrono::Duration::seconds(30));
        forge.comment(proposal.number.0, "lin", "/adopt");
        rest().await;
        rest().await;
        forge.merge(proposal.number.0, "lin").unwrap();
        rest().await;
        let declared = repository.text("refs/heads/main", PATH).unwrap();
        assert!(declared.contains("text: \"good morning\" # the greeting"), "{declared}");
        assert_eq!(std::fs::read_to_string(live.path().join("motd")).unwrap(), "good morning");
        assert_eq!(*folder.applied.lock(), ["motd"]);
        let status = daemon.status.read().await.unwrap();
        let verdicts: Vec<String> =
            status.instances.iter().map(|instance| format!("{} {:?}", instance.id, instance.verdict)).collect();
        assert_eq!(verdicts, ["dev/motd InSync"]);
    }
}
