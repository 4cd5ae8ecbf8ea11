//! Renders the declared objects of an instance from its files.
//!
//! Decides which objects exist, the place of each, and the fields that are sent: without ignored fields, with the
//! labels of the owner.
//! *Invariant:* a renderer sees a folder with the files of the closure alone. It has no network, no `PATH` and no
//! variables of the daemon's environment, and its time and output are limited.
//! *Invariant:* the same content renders to the same objects. A chart with a nondeterministic rendering is refused.

use crate::targets::kubernetes::work::{KubernetesWork, ManifestSource};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use serde_json::{Map, Value};
use tokio::{io::AsyncReadExt, process::Command};

use super::{
    Kubernetes,
    closure::is_manifest,
    kinds::Kinds,
    manifest::{self, Read, Reader, Written},
    object::{self, COMPONENT, ENVIRONMENT, Key, rank},
    rendered::{Object, Rendered, wrong},
    substitute::substituted,
};
use crate::{
    model::{Digester, InstanceId},
    ports::{Job, TargetError, TargetErrorKind},
    targets::worktree,
};

/// The time limit of a renderer: a large chart takes a second.
const RENDER_TIME_MAX: Duration = Duration::from_secs(60);
/// The maximum output of a renderer in bytes.
const RENDER_BYTES_MAX: usize = 128 << 20;
/// The annotation of hooks, which helm runs itself around an install.
const HOOK: &str = "helm.sh/hook";

impl Kubernetes {
    /// Returns the objects of a job, from the cache if they were rendered before.
    pub(super) async fn rendered(
        &self,
        job: &Job,
        work: &KubernetesWork,
        kinds: &Kinds,
    ) -> Result<Arc<Rendered>, TargetError> {
        let name = self.render_key(job, work, kinds.epoch);
        if let Some(known) = self.rendered.lock().get(&job.instance, &name) {
            return Ok(known);
        }
        let read = self.written(job, work).await?;
        let (id, work, kinds, seal) = (job.instance.clone(), work.clone(), kinds.clone(), Arc::clone(&self.seal));
        let rendered = tokio::task::spawn_blocking(move || finish(&id, &work, &kinds, read, &seal))
            .await
            .map_err(|error| TargetError::new(TargetErrorKind::Render, error.to_string()))??;
        let rendered = Arc::new(rendered);
        let mut cache = self.rendered.lock();
        cache.put(&job.instance, name, Arc::clone(&rendered));
        Ok(rendered)
    }

    /// Returns the cache key: a digest of every input of the rendering. Substituted values enter it under the key of
    /// the store.
    fn render_key(&self, job: &Job, work: &KubernetesWork, epoch: u64) -> String {
        let source = match &work.source {
            ManifestSource::Helm { release, values, .. } => serde_json::json!([release, values]),
            ManifestSource::Manifests(_) => Value::from("manifests"),
            ManifestSource::Kustomize(_) => Value::from("kustomize"),
        };
        let parts = serde_json::json!([source, work.namespace, work.substitute, work.ignore, job.instance]);
        let content = work.content.map(|digest| digest.to_string()).unwrap_or_default();
        let digester = Digester::new("rendered").field(content.as_bytes()).field(&epoch.to_be_bytes());
        digester.field(self.seal.seal(&parts).as_bytes()).finish().to_string()
    }

    /// Returns the objects as written, before defaults and labels are set.
    pub(super) async fn written(&self, job: &Job, work: &KubernetesWork) -> Result<Read, TargetError> {
        match &work.source {
            ManifestSource::Manifests(_) => {
                let (content, files) = (Arc::clone(&job.content), job.files.clone());
                tokio::task::spawn_blocking(move || {
                    let mut all = Read::default();
                    for path in files.keys().filter(|path| is_manifest(path)) {
                        let bytes = content.read(path).map_err(|error| {
                            TargetError::new(TargetErrorKind::Content, format!("could not read it: {error}"))
                        })?;
                        let read = manifest::read(path, &String::from_utf8_lossy(&bytes), Reader::Kubectl);
                        all.objects.extend(read.objects);
                        all.problems.extend(read.problems);
                        all.warnings.extend(read.warnings);
                    }
                    Ok(all)
                })
                .await
                .map_err(|error| TargetError::new(TargetErrorKind::Render, error.to_string()))?
            }
            ManifestSource::Kustomize(folder) => {
                let text = self.run_kustomize(job, folder).await?;
                Ok(manifest::read(folder, &text, Reader::Kustomize))
            }
            ManifestSource::Helm { chart, release, value_files, values } => {
                let text = self.run_helm(job, work, chart, release, value_files, values).await?;
                let mut read = manifest::read(chart, &text, Reader::Kubectl);
                let (hooks, objects): (Vec<Written>, Vec<Written>) = read
                    .objects
                    .into_iter()
                    .partition(|object| object.value()["metadata"]["annotations"].get(HOOK).is_some());
                read.objects = objects;
                read.warnings.extend(hooks.iter().map(|hook| {
                    let value = hook.value();
                    let name = object::text(&value, "/metadata/name").unwrap_or_default();
                    format!("{}: the hook `{name}` is not run", hook.place)
                }));
                Ok(read)
            }
        }
    }

    async fn run_kustomize(&self, job: &Job, folder: &str) -> Result<String, TargetError> {
        let tree = lay_out(job).await?;
        let place = tree.path().join(folder);
        self.run(
            job,
            "kustomize",
            &self.settings.kustomize,
            tree.path(),
            &["build".into(), place.display().to_string()],
        )
        .await
    }

    async fn run_helm(
        &self,
        job: &Job,
        work: &KubernetesWork,
        chart: &str,
        release: &str,
        value_files: &[String],
        values: &BTreeMap<String, Value>,
    ) -> Result<String, TargetError> {
        let tree = lay_out(job).await?;
        let place = |path: &str| tree.path().join(path).display().to_string();
        let mut arguments = vec!["template".to_owned(), release.to_owned(), place(chart), "--include-crds".into()];
        if let Some(namespace) = &work.namespace {
            arguments.extend(["--namespace".to_owned(), namespace.clone()]);
        }
        arguments.extend(value_files.iter().map(|path| format!("--values={}", place(path))));
        if !values.is_empty() {
            let path = tree.path().join(".evenkeel-values.json");
            let text = serde_json::to_vec(values).unwrap_or_default();
            worktree::write(&path, &text, 0o600).map_err(|error| {
                TargetError::new(TargetErrorKind::WorkTree, format!("could not write values: {error}"))
            })?;
            arguments.push(format!("--values={}", path.display()));
        }
        let first = self.run(job, "helm", &self.settings.helm, tree.path(), &arguments).await?;
        let second = self.run(job, "helm", &self.settings.helm, tree.path(), &arguments).await?;
        if first != second {
            let differs =
                first.lines().zip(second.lines()).find(|(first, second)| first != second).map(|(line, _)| line.trim());
            let name = differs.and_then(|line| line.split(':').next()).unwrap_or_default();
            return Err(wrong(
                &job.instance,
                vec![format!(
                    "{chart}: the chart differs each time it is rendered (near `{name}`), so it would never be in sync; set that value, or ignore the field"
                )],
            ));
        }
        Ok(first)
    }

    /// Runs a renderer with access to the files of the closure alone.
    async fn run(
        &self,
        job: &Job,
        name: &str,
        program: &str,
        tree: &Path,
        arguments: &[String],
    ) -> Result<String, TargetError> {
        let failed = |why: String| {
            TargetError::new(TargetErrorKind::Render, format!("could not run `{name}` for `{}`: {why}", job.instance))
        };
        let program = find(program).ok_or_else(|| {
            failed(format!(
                "`{program}` is not there; install it, or name it in the configuration: `kubernetes.{name}`"
            ))
        })?;
        let home = tempfile::tempdir().map_err(|error| failed(error.to_string()))?;
        // A proxy address without a listener, so that requests to the network fail.
        let nobody = "http://127.0.0.1:9";
        let mut child = Command::new(program)
            .args(arguments)
            .env_clear()
            .envs([("HOME", home.path()), ("TMPDIR", home.path()), ("PATH", Path::new("/nonexistent"))])
            .envs([("HTTP_PROXY", nobody), ("HTTPS_PROXY", nobody), ("ALL_PROXY", nobody)])
            .current_dir(home.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| failed(error.to_string()))?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let done = tokio::time::timeout(RENDER_TIME_MAX, async {
            let (text, errors) = tokio::join!(bounded(stdout), bounded(stderr));
            Ok::<_, std::io::Error>((text?, errors?, child.wait().await?))
        });
        let (text, errors, status) = match done.await {
            Ok(done) => done.map_err(|error| failed(error.to_string()))?,
            Err(_) => return Err(failed(format!("it took longer than {} s", RENDER_TIME_MAX.as_secs()))),
        };
        if text.len() >= RENDER_BYTES_MAX {
            return Err(failed(format!("it printed more than {RENDER_BYTES_MAX} bytes")));
        }
        if !status.success() {
            let errors = String::from_utf8_lossy(&errors).replace(&format!("{}/", tree.display()), "");
            let errors = errors.trim().trim_start_matches("Error: ").to_owned();
            return Err(wrong(&job.instance, vec![format!("`{name}` reported: {}", self.redactor.redact(&errors))]));
        }
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

async fn bounded(from: Option<impl tokio::io::AsyncRead + Unpin>) -> std::io::Result<Vec<u8>> {
    let mut text = vec![];
    if let Some(from) = from {
        from.take(RENDER_BYTES_MAX as u64).read_to_end(&mut text).await?;
    }
    Ok(text)
}

/// Finds a program by name or path.
fn find(program: &str) -> Option<std::path::PathBuf> {
    if program.contains('/') {
        return Some(program.into());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|place| place.is_file())
}

/// Creates a temporary folder with the files of the closure.
async fn lay_out(job: &Job) -> Result<tempfile::TempDir, TargetError> {
    let job = job.clone();
    tokio::task::spawn_blocking(move || {
        let tree = tempfile::tempdir().map_err(|error| {
            TargetError::new(TargetErrorKind::WorkTree, format!("could not make a folder: {error}"))
        })?;
        worktree::lay_out(tree.path(), &job)?;
        Ok(tree)
    })
    .await
    .map_err(|error| TargetError::new(TargetErrorKind::Render, error.to_string()))?
}

/// Converts written objects to the form that is applied: substituted, with namespace and labels, without duplicates.
fn finish(
    id: &InstanceId,
    work: &KubernetesWork,
    kinds: &Kinds,
    read: Read,
    seal: &crate::model::Seal,
) -> Result<Rendered, TargetError> {
    let Read { objects, mut problems, warnings } = read;
    let crds = crds(&objects);
    let (mut made, mut seen): (Vec<Object>, BTreeMap<Key, String>) = (vec![], BTreeMap::new());
    let mut unknown = BTreeSet::new();
    for written in objects {
        let (mut value, place) = (written.value(), written.place);
        if let Some(substitute) = &work.substitute
            && let Err(why) = substituted(&mut value, substitute)
        {
            problems.push(format!("{place}: {why}"));
            continue;
        }
        let Some(mut key) = Key::of(&value) else { continue };
        let version = value["apiVersion"].as_str().unwrap_or_default().to_owned();
        let namespaced = match kinds
            .scope(&version, &key.kind)
            .or_else(|| crds.get(&(key.group.to_string(), key.kind.to_string())).copied())
        {
            Some(namespaced) => namespaced,
            None => {
                unknown.insert(format!("{place}: the cluster has no `{}` in `{version}`", key.kind));
                continue;
            }
        };
        if let Err(why) = at_home(&mut value, &mut key, namespaced, work.namespace.as_deref()) {
            problems.push(format!("{place}: {why}"));
            continue;
        }
        tidy(&mut value, id);
        for (_, _, pointers) in work
            .ignore
            .iter()
            .filter(|(kind, name, _)| *kind == *key.kind && name.as_ref().is_none_or(|name| *name == *key.name))
        {
            pointers.iter().for_each(|pointer| remove(&mut value, pointer));
        }
        if let Some(before) = seen.insert(key.clone(), place.clone()) {
            problems.push(format!("{place}: `{key}` is here a second time; the first is at {before}"));
            continue;
        }
        let json = value.to_string();
        made.push(Object {
            key,
            version: version.into(),
            mark: seal.mark(json.as_bytes()),
            place: place.into(),
            json: json.into(),
        });
    }
    if problems.is_empty() && !unknown.is_empty() {
        // An upstream may create the kind; the planner decides.
        return Err(TargetError { kind: TargetErrorKind::NotThereYet, ..wrong(id, unknown.into_iter().collect()) });
    }
    problems.extend(unknown);
    if !problems.is_empty() {
        return Err(wrong(id, problems));
    }
    made.sort_by(|a, b| (rank(&a.key.kind), &a.key).cmp(&(rank(&b.key.kind), &b.key)));
    Ok(Rendered { objects: made, warnings })
}

/// Sets the namespace of an object to its own or the component's; removes it for cluster-scoped kinds.
fn at_home(value: &mut Value, key: &mut Key, namespaced: bool, home: Option<&str>) -> Result<(), String> {
    if namespaced && key.namespace.is_none() {
        let Some(namespace) = home else {
            return Err(format!("`{key}` names no namespace; name one there, in the component or in the environment"));
        };
        value["metadata"]["namespace"] = namespace.into();
        key.namespace = Some(namespace.into());
    } else if !namespaced
        && key.namespace.take().is_some()
        && let Some(metadata) = value["metadata"].as_object_mut()
    {
        metadata.remove("namespace");
    }
    Ok(())
}

/// Returns the kinds that the definitions among the objects create, and whether they are namespaced.
fn crds(objects: &[Written]) -> BTreeMap<(String, String), bool> {
    let definitions =
        objects.iter().filter(|object| object.json.contains("CustomResourceDefinition")).map(Written::value);
    let definitions = definitions.filter(|value| value["kind"] == "CustomResourceDefinition");
    definitions
        .filter_map(|value| {
            let (group, kind) = (value["spec"]["group"].as_str()?, value["spec"]["names"]["kind"].as_str()?);
            Some(((group.to_owned(), kind.to_owned()), value["spec"]["scope"] == "Namespaced"))
        })
        .collect()
}

/// Removes the fields that the cluster decides, and sets the labels of the owner.
fn tidy(value: &mut Value, id: &InstanceId) {
    if let Some(object) = value.as_object_mut() {
        object.remove("status");
    }
    if value["kind"] == "Secret" {
        encode(value);
    }
    let Some(metadata) = value["metadata"].as_object_mut() else { return };
    for name in ["creationTimestamp", "managedFields", "resourceVersion", "uid", "generation", "selfLink"] {
        metadata.remove(name);
    }
    let labels = metadata.entry("labels").or_insert_with(|| Value::Object(Map::new()));
    if labels.is_null() {
        *labels = Value::Object(Map::new());
    }
    if let Some(labels) = labels.as_object_mut() {
        labels.insert(ENVIRONMENT.into(), id.environment.as_str().into());
        labels.insert(COMPONENT.into(), id.component.as_str().into());
    }
}

/// Moves `stringData` of a Secret to `data`, its stored form: no manager owns fields under `stringData`.
fn encode(secret: &mut Value) {
    use base64::Engine as _;
    let Some(Value::Object(plain)) = secret.as_object_mut().and_then(|secret| secret.remove("stringData")) else {
        return;
    };
    if !secret["data"].is_object() {
        secret["data"] = Value::Object(Map::new());
    }
    for (key, value) in plain {
        secret["data"][key] = match value {
            Value::String(text) => base64::engine::general_purpose::STANDARD.encode(text).into(),
            // The server reports the error in the value.
            other => other,
        };
    }
}

/// Removes the value at a pointer.
fn remove(value: &mut Value, pointer: &str) {
    let Some((parent, last)) = pointer.rsplit_once('/') else { return };
    let last = last.replace("~1", "/").replace("~0", "~");
    match value.pointer_mut(parent) {
        Some(Value::Object(map)) => drop(map.remove(&last)),
        Some(Value::Array(items)) => {
            if let Ok(at) = last.parse::<usize>()
                && at < items.len()
            {
                items.remove(at);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_ignored_is_not_sent() {
        let mut value = json!({"spec": {"replicas": 3, "list": [1, 2], "a/b": 1}});
        for pointer in ["/spec/replicas", "/spec/list/0", "/spec/a~1b", "/nowhere/x", ""] {
            remove(&mut value, pointer);
        }
        assert_eq!(value, json!({"spec": {"list": [2]}}));
    }
}
