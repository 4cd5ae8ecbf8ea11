//! Resolves the inputs of instances: recorded (R1.3) or planned (R2.5) outputs of upstreams.
//!
//! *Invariant:* an instance never uses a live output that the last run of its upstream did not record. A sensitive output is
//! recorded as an HMAC, which has to match the value in the state of the upstream; without a match the input counts as
//! changed.
//! *Race:* an upstream is applied while its outputs are read: the recorded HMAC does not match.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde_json::Value;

use crate::{
    controller::{context::Error, observe::Observer, source::Head},
    domain::{
        declaration::{Instance, Reference, resolve},
        journal::Run,
        message::{Refusal, observation::NotObservable},
        plan::Applied,
    },
    model::{InstanceId, TargetSpec, WaitingOn},
    ports::{Files, Job, Output, RecordedOutput, Relocation, TargetError, TargetErrorKind, Use},
    targets,
};

/// The resolved inputs of an instance.
#[derive(Default, Debug)]
pub(crate) struct Inputs {
    values: BTreeMap<InstanceId, Value>,
    /// The inputs as they are recorded with the applied instance.
    pub(crate) recorded: BTreeMap<String, RecordedOutput>,
    /// The inputs that are not known yet.
    pub(crate) waiting_on: Vec<WaitingOn>,
}

/// The planned outputs, by instance.
pub(crate) type Planned = BTreeMap<InstanceId, BTreeMap<String, Output>>;

fn record_key(reference: &Reference, name: &str) -> String {
    format!("{}.outputs.{name}", reference.component)
}

/// Returns the name of the output in the key of a reference. The other parts of the key select a field of the value.
fn output_name<'k, T>(outputs: &BTreeMap<String, T>, key: &'k str) -> &'k str {
    if outputs.contains_key(key) { key } else { key.split('.').next().unwrap_or(key) }
}

impl Inputs {
    /// Fills the references in a value.
    fn fill(&self, id: &InstanceId, value: &Value) -> Result<Value, TargetError> {
        let output = |reference: &Reference| {
            let upstream = InstanceId::new(&id.environment, &reference.component);
            self.values.get(&upstream).and_then(|outputs| resolve::lookup(outputs, &reference.key))
        };
        resolve::fill(value, &output).map_err(|reason| TargetError {
            retry: crate::model::Retry::WhenInputChanges,
            ..TargetError::new(TargetErrorKind::InputMissing, format!("`{id}`: {reason}"))
        })
    }
}

impl Inputs {
    /// Fills a declaration, except the fields without references to outputs.
    fn fill_declaration(&self, id: &InstanceId, fixed: &[&str], declared: &Value) -> Result<Value, TargetError> {
        let Value::Object(fields) = declared else { return self.fill(id, declared) };
        let mut filled = serde_json::Map::new();
        for (name, value) in fields {
            let nested: Vec<&str> =
                fixed.iter().filter_map(|path| path.strip_prefix(name.as_str())?.strip_prefix('.')).collect();
            let value = if fixed.contains(&name.as_str()) {
                value.clone()
            } else if nested.is_empty() {
                self.fill(id, value)?
            } else {
                self.fill_declaration(id, &nested, value)?
            };
            filled.insert(name.clone(), value);
        }
        Ok(Value::Object(filled))
    }

    fn put(&mut self, upstream: &InstanceId, name: &str, value: Value) {
        let outputs = self.values.entry(upstream.clone()).or_insert_with(|| Value::Object(serde_json::Map::new()));
        if let Value::Object(map) = outputs {
            map.insert(name.to_owned(), value);
        }
    }
    fn wait(&mut self, on: WaitingOn) {
        if !self.waiting_on.contains(&on) {
            self.waiting_on.push(on);
        }
    }
}

fn no_output(id: &InstanceId, reference: &Reference) -> Error {
    let upstream = InstanceId::new(&id.environment, &reference.component);
    let reason = NotObservable::NoOutput { id: id.clone(), upstream, key: reference.key.clone() };
    TargetError {
        retry: crate::model::Retry::WhenInputChanges,
        ..TargetError::new(TargetErrorKind::InputMissing, reason.to_string())
    }
    .into()
}

/// Returns the job of an instance as a revision declares it.
///
/// # Errors
/// When the declaration has problems, or an input is missing.
pub(crate) fn declared_job(
    instance: &Instance,
    r#use: Use,
    content: Arc<dyn Files>,
    inputs: &Inputs,
    consumed: bool,
) -> Result<Job, TargetError> {
    let spec = instance.spec.as_ref().ok_or_else(|| {
        TargetError::new(TargetErrorKind::Stalled, NotObservable::Problems(instance.id.clone()).to_string())
    })?;
    Ok(Job {
        r#use,
        files: instance.closure.files.clone(),
        declares_backend: instance.closure.declares_backend,
        consumed,
        ..job(&instance.id, content, &spec.target, inputs)?
    })
}

/// Returns a job without files, with the inputs filled into its declaration.
fn job(id: &InstanceId, content: Arc<dyn Files>, target: &TargetSpec, inputs: &Inputs) -> Result<Job, TargetError> {
    let kind = targets::kind(target)?;
    let declared = inputs.fill_declaration(id, kind.fixed_fields(), &target.declared)?;
    Ok(Job {
        instance: id.clone(),
        r#use: Use::Applied,
        content,
        files: BTreeMap::new(),
        connection: kind.connection(&declared),
        consumed: false,
        formerly: None,
        target: TargetSpec { kind: target.kind.clone(), declared },
        declares_backend: false,
        destroy: false,
        refresh: false,
        owners: None,
        relocation: Relocation::default(),
    })
}

impl Observer {
    /// Returns the inputs of an instance, from planned outputs where they exist and else from recorded outputs.
    ///
    /// # Errors
    /// When an upstream has no such output, a sensitive output changed, or the store can't be read.
    pub(crate) async fn inputs(
        self: &Arc<Self>,
        head: &Head,
        id: &InstanceId,
        references: &BTreeSet<Reference>,
        planned: &Planned,
    ) -> Result<Inputs, Error> {
        let mut inputs = Inputs::default();
        for reference in references.iter().filter(|reference| reference.component != id.component) {
            let upstream = InstanceId::new(&id.environment, &reference.component);
            if let Some(outputs) = planned.get(&upstream) {
                let name = output_name(outputs, &reference.key);
                match outputs.get(name) {
                    Some(output) => match (&output.value, output.record(&self.context.seal)) {
                        (Some(value), Some(recorded)) => {
                            inputs.put(&upstream, name, value.clone());
                            inputs.recorded.insert(record_key(reference, name), recorded);
                        }
                        _ => inputs.wait(WaitingOn::KnownAfter { instance: upstream.clone() }),
                    },
                    None => return Err(no_output(id, reference)),
                }
                continue;
            }
            let former = head.instance(&upstream).and_then(|instance| instance.renamed_from.as_ref());
            let mut record = self.context.store.applied(&upstream).await?;
            if let (None, Some(former)) = (&record, former) {
                record = self.context.store.applied(former).await?;
            }
            let Some(record) = record else {
                inputs.wait(WaitingOn::Upstream { instance: upstream.clone() });
                continue;
            };
            let name = output_name(&record.outputs, &reference.key);
            let Some(recorded) = record.outputs.get(name) else { return Err(no_output(id, reference)) };
            match &recorded.value {
                Some(value) => inputs.put(&upstream, name, value.clone()),
                None => {
                    let value = self.sealed_output(head, &upstream, &record, name, recorded).await?;
                    inputs.put(&upstream, name, value);
                }
            }
            inputs.recorded.insert(record_key(reference, name), recorded.clone());
        }
        Ok(inputs)
    }

    /// Reads a sensitive output from the state of its upstream, and verifies that its HMAC is the recorded one.
    async fn sealed_output(
        self: &Arc<Self>,
        head: &Head,
        upstream: &InstanceId,
        record: &Applied,
        name: &str,
        recorded: &RecordedOutput,
    ) -> Result<Value, Error> {
        // Boxed, because the upstream may use a sensitive output of its own upstream.
        let job = Box::pin(self.applied_job(upstream, record, head)).await?;
        let live = self.context.target.outputs(&job).await?;
        let value = live.get(name).and_then(|output| output.value.clone());
        match value {
            Some(value) if recorded.sealed.as_deref() == Some(&self.context.seal.seal(&value)) => Ok(value),
            _ => {
                let reason = NotObservable::OutputChanged { upstream: upstream.clone(), name: name.to_owned() };
                Err(TargetError::new(TargetErrorKind::InputChanged, reason.to_string()).into())
            }
        }
    }

    /// Returns the job of an instance as it is applied, with the recorded inputs.
    ///
    /// # Errors
    /// When a sensitive input changed, or the store or the repository can't be read.
    pub(crate) async fn applied_job(
        self: &Arc<Self>,
        id: &InstanceId,
        applied: &Applied,
        head: &Head,
    ) -> Result<Job, Error> {
        let mut inputs = Inputs::default();
        for (key, recorded) in &applied.inputs {
            let Some((component, name)) = key.split_once(".outputs.") else { continue };
            let Ok(component) = component.parse() else { continue };
            let upstream = InstanceId::new(&id.environment, &component);
            let value = match &recorded.value {
                Some(value) => value.clone(),
                None => match self.context.store.applied(&upstream).await? {
                    Some(record) => self.sealed_output(head, &upstream, &record, name, recorded).await?,
                    None => {
                        return Err(TargetError::new(
                            TargetErrorKind::InputMissing,
                            NotObservable::UpstreamNotApplied { id: id.clone(), upstream: upstream.clone() }
                                .to_string(),
                        )
                        .into());
                    }
                },
            };
            inputs.put(&upstream, name, value);
        }
        self.applied_job_with(id, applied, &inputs, head).await
    }

    /// Returns the job of a remediation: the applied declaration, or a refresh of the state for drift that no apply changes.
    ///
    /// # Errors
    /// When a sensitive input changed, or the store or the repository can't be read.
    pub(crate) async fn remediation_job(
        self: &Arc<Self>,
        run: &Run,
        id: &InstanceId,
        applied: &Applied,
        head: &Head,
    ) -> Result<Job, Error> {
        let mut job = self.applied_job(id, applied, head).await?;
        let name = run.kind.remediation().and_then(|name| name.parse().ok());
        let listed = name.and_then(|name| head.desired.remediations.get(&name));
        let mut actions = listed.iter().flat_map(|(remediation, _)| &remediation.actions);
        if let Some(rebalance) = run.kind.rebalance() {
            let (until, by_command) = (rebalance.until, !rebalance.by_schedule);
            job.relocation = Relocation { only: true, until, by_command, ..Relocation::default() };
        }
        let refreshes = targets::kind(&job.target)?.refresh_operation();
        job.refresh = actions.any(|action| action.instance == *id && Some(action.r#do.as_str()) == refreshes);
        Ok(job)
    }

    /// Returns the job that destroys an applied instance (R1.9): with the applied files and the recorded inputs.
    ///
    /// # Errors
    /// [`Error::Refused`] where the instance is not applied; else as [`Observer::applied_job`].
    pub(crate) async fn destroy_job(self: &Arc<Self>, id: &InstanceId, head: &Head) -> Result<Job, Error> {
        let Some(applied) = self.context.store.applied(id).await? else {
            return Err(Error::Refused(Refusal::NotApplied(id.clone())));
        };
        let mut job = self.applied_job(id, &applied, head).await?;
        job.destroy = true;
        job.consumed = false;
        Ok(job)
    }

    async fn applied_job_with(
        self: &Arc<Self>,
        id: &InstanceId,
        applied: &Applied,
        inputs: &Inputs,
        head: &Head,
    ) -> Result<Job, Error> {
        let content: Arc<dyn Files> = self.context.repository.files(&applied.revision).await?;
        Ok(Job {
            files: applied.files.clone(),
            declares_backend: applied.declares_backend,
            consumed: head.consumed(id),
            ..job(id, content, &applied.spec.target, inputs)?
        })
    }
}
