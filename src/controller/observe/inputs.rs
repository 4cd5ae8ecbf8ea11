//! What an instance is given: outputs of its upstreams, recorded (R1.3) or planned (R2.5), filled into its declaration.
//!
//! Never lets a live output flow on that its upstream's last run did not record. A recorded HMAC is matched against the
//! value that the upstream's state holds now; without a match the input counts as changed.

use crate::domain::message::Refusal;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde_json::Value;

use crate::{
    controller::{context::Error, observe::Observer, source::Head},
    domain::{
        declaration::{
            Instance, Reference,
            kubernetes::{Connection, Impersonate},
            resolve,
            schema::{Citus, CitusNode, Component, Kubernetes, Tofu},
        },
        journal::Run,
        plan::Applied,
    },
    model::{
        Digester, InstanceId, WaitingOn,
        citus::{Address, Pin, Placement},
        ids::Malformed,
    },
    ports::{
        CitusWork, DeclaredNode, Files, Job, KubernetesWork, ManifestSource, Output, RecordedOutput, TargetError,
        TargetErrorKind, TofuWork, Use, Work, join,
    },
    targets::opentofu,
};

/// The resolved inputs of an instance.
#[derive(Default, Debug)]
pub(crate) struct Inputs {
    values: BTreeMap<InstanceId, Value>,
    /// As they are recorded with what is applied.
    pub(crate) recorded: BTreeMap<String, RecordedOutput>,
    /// The inputs that are not known yet.
    pub(crate) waiting_on: Vec<WaitingOn>,
}

/// Outputs that a plan would bring, by instance.
pub(crate) type Planned = BTreeMap<InstanceId, BTreeMap<String, Output>>;

fn record_key(reference: &Reference, name: &str) -> String {
    format!("{}.outputs.{name}", reference.component)
}

/// The name of the output that a reference means; the rest of its key leads into the value.
fn output_name<'k, T>(outputs: &BTreeMap<String, T>, key: &'k str) -> &'k str {
    if outputs.contains_key(key) { key } else { key.split('.').next().unwrap_or(key) }
}

impl Inputs {
    /// Fills a value.
    fn fill(&self, id: &InstanceId, value: &Value) -> Result<Value, TargetError> {
        let output = |reference: &Reference| {
            let upstream = InstanceId::new(&id.environment, &reference.component);
            self.values.get(&upstream).and_then(|outputs| resolve::lookup(outputs, &reference.key))
        };
        resolve::fill(value, &output).map_err(|why| TargetError {
            retry: crate::model::Retry::WhenInputChanges,
            ..TargetError::new(TargetErrorKind::InputMissing, format!("`{id}`: {why}"))
        })
    }
}

impl Inputs {
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
    let message = format!(
        "`{id}` uses `{}.outputs.{}`, and `{}/{}` has no such output",
        reference.component, reference.key, id.environment, reference.component
    );
    TargetError {
        retry: crate::model::Retry::WhenInputChanges,
        ..TargetError::new(TargetErrorKind::InputMissing, message)
    }
    .into()
}

/// Returns the work of an instance: its source and its inputs.
struct Made<'a> {
    pub(crate) spec: &'a Component,
    pub(crate) files: &'a BTreeMap<String, (String, bool)>,
    pub(crate) declares_backend: bool,
}

/// The job of an instance as a revision declares it.
pub(crate) fn declared_job(
    instance: &Instance,
    r#use: Use,
    content: Arc<dyn Files>,
    inputs: &Inputs,
    consumed: bool,
) -> Result<Job, TargetError> {
    let spec = instance.spec.as_ref().ok_or_else(|| {
        TargetError::new(TargetErrorKind::Stalled, format!("`{}` has problems in its declaration", instance.id))
    })?;
    let made = Made { spec, files: &instance.closure.files, declares_backend: instance.closure.declares_backend };
    job(&instance.id, r#use, content, &made, inputs, consumed)
}

fn job(
    id: &InstanceId,
    r#use: Use,
    content: Arc<dyn Files>,
    made: &Made<'_>,
    inputs: &Inputs,
    consumed: bool,
) -> Result<Job, TargetError> {
    let (connection, work) = match (&made.spec.tofu, &made.spec.kubernetes, &made.spec.citus) {
        (Some(tofu), ..) => (tofu.connection.clone(), Work::Tofu(tofu_work(id, tofu, made, inputs)?)),
        (None, Some(kubernetes), _) => {
            let work = kubernetes_work(id, kubernetes, made, inputs)?;
            (kubernetes.connection.as_ref().map(|one| one.name().to_owned()), Work::Kubernetes(Box::new(work)))
        }
        (None, None, Some(citus)) => {
            (Some(citus.connection.clone()), Work::Citus(Box::new(citus_work(id, citus, inputs)?)))
        }
        (None, None, None) => return Err(TargetError::new(TargetErrorKind::Stalled, format!("`{id}` has no kind"))),
    };
    Ok(Job {
        instance: id.clone(),
        r#use,
        content,
        files: made.files.clone(),
        connection,
        consumed,
        formerly: None,
        work,
    })
}

fn filled(
    id: &InstanceId,
    inputs: &Inputs,
    values: &BTreeMap<String, Value>,
) -> Result<BTreeMap<String, Value>, TargetError> {
    values.iter().map(|(key, value)| Ok((key.clone(), inputs.fill(id, value)?))).collect()
}

fn tofu_work(id: &InstanceId, tofu: &Tofu, made: &Made<'_>, inputs: &Inputs) -> Result<TofuWork, TargetError> {
    Ok(TofuWork {
        // The closure has proved that these stay inside the repository; an absolute path would leave the work tree.
        root: join("", &tofu.root).unwrap_or_default(),
        workspace: tofu.workspace.clone(),
        var_files: tofu.var_files.iter().filter_map(|path| join("", path)).collect(),
        variables: filled(id, inputs, &tofu.variables)?,
        backend_config: filled(id, inputs, &tofu.backend_config)?,
        declares_backend: made.declares_backend,
        destroy: false,
        refresh: false,
    })
}

fn kubernetes_work(
    id: &InstanceId,
    kubernetes: &Kubernetes,
    made: &Made<'_>,
    inputs: &Inputs,
) -> Result<KubernetesWork, TargetError> {
    let text = |value: &Option<String>| match value {
        None => Ok(None),
        Some(text) => inputs.fill(id, &text.as_str().into()).map(|value| value.as_str().map(str::to_owned)),
    };
    let (server, certificate_authority) = match &kubernetes.connection {
        Some(Connection::With(with)) => (text(&with.server)?, text(&with.certificate_authority)?),
        _ => (None, None),
    };
    let source = match (&kubernetes.manifests, &kubernetes.kustomize, &kubernetes.helm) {
        (Some(path), ..) => ManifestSource::Manifests(join("", path).unwrap_or_default()),
        (None, Some(path), _) => ManifestSource::Kustomize(join("", path).unwrap_or_default()),
        (None, None, Some(helm)) => ManifestSource::Helm {
            chart: join("", &helm.chart).unwrap_or_default(),
            release: helm.release.clone().unwrap_or_else(|| id.component.to_string()),
            value_files: helm.value_files.iter().filter_map(|path| join("", path)).collect(),
            values: filled(id, inputs, &helm.values)?,
        },
        (None, None, None) => {
            return Err(TargetError::new(TargetErrorKind::Stalled, format!("`{id}` is made from nothing")));
        }
    };
    let account = |one: &Impersonate| match (&kubernetes.namespace, one.service_account.contains('/')) {
        (Some(namespace), false) => format!("{namespace}/{}", one.service_account),
        _ => one.service_account.clone(),
    };
    let content = made.files.iter().fold(Digester::new("files"), |digester, (path, (id, program))| {
        digester.field(path.as_bytes()).field(id.as_bytes()).field(&[u8::from(*program)])
    });
    Ok(KubernetesWork {
        source,
        content: Some(content.finish()),
        namespace: kubernetes.namespace.clone(),
        server,
        certificate_authority,
        substitute: kubernetes.substitute.as_ref().map(|values| filled(id, inputs, values)).transpose()?,
        impersonate: kubernetes.impersonate.as_ref().map(account),
        force: kubernetes.force.iter().map(|one| (one.kind.clone(), one.name.clone())).collect(),
        ignore: kubernetes
            .ignore
            .iter()
            .map(|one| (one.kind.clone(), one.name.clone(), one.pointers.clone()))
            .collect(),
        health: kubernetes
            .health
            .iter()
            .map(|one| (one.kind.clone(), one.current.clone(), one.failed.clone()))
            .collect(),
        wait: kubernetes.waits(),
        destroy: false,
        owners: None,
    })
}

fn citus_work(id: &InstanceId, citus: &Citus, inputs: &Inputs) -> Result<CitusWork, TargetError> {
    let wrong = |why: String| TargetError {
        retry: crate::model::Retry::WhenInputChanges,
        ..TargetError::new(TargetErrorKind::InputWrong, format!("`{id}`: {why}"))
    };
    let fill =
        |value: Result<Value, serde_json::Error>| inputs.fill(id, &value.map_err(|error| wrong(error.to_string()))?);
    let nodes = match &citus.nodes {
        None => None,
        Some(nodes) => Some(declared_nodes(&fill(serde_json::to_value(nodes))?).map_err(wrong)?),
    };
    let placement: Placement = serde_json::from_value(fill(serde_json::to_value(&citus.placement))?)
        .map_err(|error| wrong(format!("`placement` is not what it has to be: {error}")))?;
    let address = |text: &String| text.parse::<Address>().map(|one| one.to_string());
    let placement = Placement {
        drain: placement.drain.iter().map(address).collect::<Result<_, _>>().map_err(|e| wrong(e.to_string()))?,
        pins: (placement.pins.iter())
            .map(|pin| Ok(Pin { node: address(&pin.node)?, ..pin.clone() }))
            .collect::<Result<_, Malformed>>()
            .map_err(|error| wrong(error.to_string()))?,
        ..placement
    };
    Ok(CitusWork {
        nodes,
        tables: citus.tables.clone(),
        schemas: citus.schemas.iter().map(|schema| schema.name.clone()).collect(),
        placement,
        moves: citus.moves.clone(),
        allow_rewrite: citus.allow_rewrite,
        capacity: citus.capacity.clone(),
        migrations: citus.migrations.as_ref().and_then(|path| join("", path)),
        until: None,
        only_moves: false,
        by_command: false,
        vacate: vec![],
        approved: vec![],
        destroy: false,
    })
}

/// The nodes of a list, as a declaration or an output gives it.
pub(super) fn declared_nodes(value: &Value) -> Result<Vec<DeclaredNode>, String> {
    let expected = "expected a list of `host:port`, or of `{host, port, shards, runsOn}`";
    let Value::Array(items) = value else { return Err(format!("`nodes` is no list; {expected}")) };
    if items.is_empty() {
        // An empty list of nodes is more likely a wrong output than the intention to remove every node.
        return Err("`nodes` is an empty list; leave `nodes` out where nodes are not to be managed".into());
    }
    let mut nodes: Vec<DeclaredNode> = vec![];
    for item in items {
        let declared: CitusNode =
            serde_json::from_value(item.clone()).map_err(|_| format!("`nodes` holds `{item}`; {expected}"))?;
        let node = match declared {
            CitusNode::Address(text) => {
                let address = text.parse::<Address>().map_err(|error| format!("`nodes`: {error}"))?;
                DeclaredNode { address, holds: true, runs_on: None }
            }
            CitusNode::With(with) => {
                let text = with.port.map_or_else(|| with.host.clone(), |port| format!("{}:{port}", with.host));
                let address = text.parse::<Address>().map_err(|error| format!("`nodes`: {error}"))?;
                DeclaredNode { address, holds: with.shards, runs_on: with.runs_on }
            }
        };
        if nodes.iter().any(|known| known.address == node.address) {
            return Err(format!("`nodes` names `{}` twice", node.address));
        }
        nodes.push(node);
    }
    Ok(nodes)
}

impl Observer {
    /// The inputs of an instance, from planned outputs where there are any and from recorded ones else.
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

    /// Reads a sensitive output again from its upstream's state, and proves that it is the recorded one.
    async fn sealed_output(
        self: &Arc<Self>,
        head: &Head,
        upstream: &InstanceId,
        record: &Applied,
        name: &str,
        recorded: &RecordedOutput,
    ) -> Result<Value, Error> {
        // Boxed: the upstream may itself use a sensitive output of its own upstream.
        let job = Box::pin(self.applied_job(upstream, record, head)).await?;
        let live = self.context.target.outputs(&job).await?;
        let value = live.get(name).and_then(|output| output.value.clone());
        match value {
            Some(value) if recorded.sealed.as_deref() == Some(&self.context.seal.seal(&value)) => Ok(value),
            _ => Err(TargetError::new(TargetErrorKind::InputChanged, format!("the sensitive output `{name}` of `{upstream}` is not the one that its last run recorded; `{upstream}` has drifted, or was applied elsewhere")).into()),
        }
    }

    /// The job of an instance as it is applied, with the inputs that were recorded.
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
                            format!("`{upstream}`, whose sensitive output `{id}` uses, is not applied any more"),
                        )
                        .into());
                    }
                },
            };
            inputs.put(&upstream, name, value);
        }
        self.applied_job_with(id, applied, &inputs, head).await
    }

    /// The job of a remediation: what is applied, or the state alone where that takes over what no apply would change.
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
        if let (Work::Citus(work), Some(rebalance)) = (&mut job.work, run.kind.rebalance()) {
            (work.only_moves, work.until, work.by_command) = (true, rebalance.until, !rebalance.by_schedule);
        }
        if let Work::Tofu(work) = &mut job.work {
            work.refresh = actions.any(|action| action.instance == *id && action.r#do == opentofu::plan::REFRESH);
        }
        Ok(job)
    }

    /// The job of destroying what is applied (R1.9): from its own checkout, with the inputs that were recorded.
    pub(crate) async fn destroy_job(self: &Arc<Self>, id: &InstanceId, head: &Head) -> Result<Job, Error> {
        let Some(applied) = self.context.store.applied(id).await? else {
            return Err(Error::Refused(Refusal::NotApplied(id.clone())));
        };
        let mut job = self.applied_job(id, &applied, head).await?;
        job.work.destroy();
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
        let made = Made { spec: &applied.spec, files: &applied.files, declares_backend: applied.declares_backend };
        Ok(job(id, Use::Applied, content, &made, inputs, head.consumed(id))?)
    }
}
