//! Verifies that applied objects became ready, by their status. Pure except for reading the objects.
//!
//! Follows the rules that kubectl and similar tools share. An object that its controller has not observed yet is in
//! progress. Conditions take precedence over the rules for each kind of workload. A running Job is in progress, not
//! done.

use crate::targets::kubernetes::work::KubernetesWork;
use cel::{Context, Program};
use serde_json::Value;

use super::{
    Kubernetes,
    object::{self, Key},
};
use crate::ports::{Health, Job, TargetError, TargetErrorKind};

/// Kinds without a status.
const SILENT: [&str; 14] = [
    "ConfigMap",
    "Secret",
    "ServiceAccount",
    "Role",
    "RoleBinding",
    "ClusterRole",
    "ClusterRoleBinding",
    "NetworkPolicy",
    "LimitRange",
    "PriorityClass",
    "StorageClass",
    "IngressClass",
    "ValidatingWebhookConfiguration",
    "MutatingWebhookConfiguration",
];
/// The maximum number of objects in one message.
const NAMED_MAX: usize = 3;

pub(super) fn condition<'o>(object: &'o Value, sort: &str) -> Option<&'o Value> {
    object["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == sort)
}

fn message(condition: &Value) -> String {
    let text = |name: &str| condition[name].as_str().unwrap_or_default().to_owned();
    let (reason, message) = (text("reason"), text("message"));
    if message.is_empty() { reason } else { message }
}

fn number(object: &Value, pointer: &str) -> i64 {
    object.pointer(pointer).and_then(Value::as_i64).unwrap_or(0)
}

/// Returns the health of an object by its status.
pub(super) fn health(object: &Value) -> Health {
    let progress = |text: String| Health::InProgress(text);
    if object::is_terminating(object) {
        return progress("it is being deleted".into());
    }
    let generation = number(object, "/metadata/generation");
    let observed = object.pointer("/status/observedGeneration").and_then(Value::as_i64);
    if observed.is_some_and(|observed| observed != generation) {
        return progress("its controller has not observed it yet".into());
    }
    if let Some(stalled) = condition(object, "Stalled").filter(|condition| condition["status"] == "True") {
        return Health::Failed(message(stalled));
    }
    if let Some(busy) = condition(object, "Reconciling").filter(|condition| condition["status"] == "True") {
        return progress(message(busy));
    }
    match object["kind"].as_str().unwrap_or_default() {
        "Deployment" => deployment(object, observed),
        "StatefulSet" => stateful_set(object, observed),
        "DaemonSet" => daemon_set(object, observed),
        "ReplicaSet" => {
            let (wanted, ready) = (replicas(object), number(object, "/status/readyReplicas"));
            counted(
                observed.is_some() && ready >= wanted && number(object, "/status/replicas") <= wanted,
                "ready",
                ready,
                wanted,
            )
        }
        "Job" => job(object),
        "Pod" => pod(object),
        "PersistentVolumeClaim" => match object::text(object, "/status/phase") {
            Some("Bound") => Health::Current,
            phase => progress(format!("it is {}", phase.unwrap_or("not bound"))),
        },
        "Service" if object["spec"]["type"] == "LoadBalancer" => {
            let ingress = object.pointer("/status/loadBalancer/ingress").and_then(Value::as_array);
            if ingress.is_some_and(|all| !all.is_empty()) {
                Health::Current
            } else {
                progress("it has no address yet".into())
            }
        }
        "Namespace" => match object::text(object, "/status/phase") {
            None | Some("Active") => Health::Current,
            Some(phase) => progress(format!("it is {phase}")),
        },
        "CustomResourceDefinition" => match (condition(object, "Established"), condition(object, "NamesAccepted")) {
            (_, Some(names)) if names["status"] == "False" => Health::Failed(message(names)),
            (Some(established), _) if established["status"] == "True" => Health::Current,
            _ => progress("it is not established yet".into()),
        },
        "APIService" => by_condition(object, "Available"),
        _ => by_condition(object, "Ready"),
    }
}

/// Returns the health by a condition; an object without the condition is healthy.
fn by_condition(object: &Value, sort: &str) -> Health {
    match condition(object, sort) {
        Some(condition) if condition["status"] != "True" => Health::InProgress(message(condition)),
        _ => Health::Current,
    }
}

fn replicas(object: &Value) -> i64 {
    object.pointer("/spec/replicas").and_then(Value::as_i64).unwrap_or(1)
}

fn counted(done: bool, what: &str, found: i64, wanted: i64) -> Health {
    if done { Health::Current } else { Health::InProgress(format!("{found} of {wanted} are {what}")) }
}

fn deployment(object: &Value, observed: Option<i64>) -> Health {
    if let Some(progressing) = condition(object, "Progressing")
        && progressing["reason"] == "ProgressDeadlineExceeded"
    {
        return Health::Failed(message(progressing));
    }
    if let Some(failure) = condition(object, "ReplicaFailure").filter(|condition| condition["status"] == "True") {
        return Health::InProgress(message(failure));
    }
    let wanted = replicas(object);
    let status = |name: &str| number(object, &format!("/status/{name}"));
    let (all, updated, available) = (status("replicas"), status("updatedReplicas"), status("availableReplicas"));
    if updated < wanted {
        return counted(false, "updated", updated, wanted);
    }
    if all > updated {
        return Health::InProgress(format!("{} of an older version are left", all - updated));
    }
    counted(
        observed.is_some() && available >= wanted && status("readyReplicas") >= wanted,
        "available",
        available,
        wanted,
    )
}

fn stateful_set(object: &Value, observed: Option<i64>) -> Health {
    if object::text(object, "/spec/updateStrategy/type") == Some("OnDelete") {
        return Health::Current;
    }
    let (wanted, ready) = (replicas(object), number(object, "/status/readyReplicas"));
    if observed.is_none() || ready < wanted {
        return counted(false, "ready", ready, wanted);
    }
    let partition = number(object, "/spec/updateStrategy/rollingUpdate/partition");
    let updated = number(object, "/status/updatedReplicas");
    if updated < wanted - partition {
        return counted(false, "updated", updated, wanted - partition);
    }
    let revision = |name: &str| object::text(object, &format!("/status/{name}"));
    if partition == 0 && revision("currentRevision") != revision("updateRevision") {
        return Health::InProgress("it is on its way to its new revision".into());
    }
    Health::Current
}

fn daemon_set(object: &Value, observed: Option<i64>) -> Health {
    let status = |name: &str| number(object, &format!("/status/{name}"));
    let wanted = status("desiredNumberScheduled");
    if status("updatedNumberScheduled") < wanted {
        return counted(false, "updated", status("updatedNumberScheduled"), wanted);
    }
    let done = observed.is_some() && status("numberAvailable") >= wanted && status("numberReady") >= wanted;
    counted(done, "available", status("numberAvailable"), wanted)
}

fn job(object: &Value) -> Health {
    let is_true = |sort: &str| condition(object, sort).filter(|condition| condition["status"] == "True");
    if let Some(failed) = is_true("Failed") {
        return Health::Failed(message(failed));
    }
    if is_true("Complete").is_some() || is_true("Suspended").is_some() {
        return Health::Current;
    }
    let (done, wanted) =
        (number(object, "/status/succeeded"), object.pointer("/spec/completions").and_then(Value::as_i64).unwrap_or(1));
    counted(false, "completed", done, wanted)
}

fn pod(object: &Value) -> Health {
    if let Some(why) = pod_failure(object) {
        return Health::Failed(why);
    }
    match object::text(object, "/status/phase") {
        Some("Succeeded") => Health::Current,
        Some("Failed") => Health::Failed(object::text(object, "/status/message").unwrap_or("it failed").to_owned()),
        Some("Running") if condition(object, "Ready").is_some_and(|ready| ready["status"] == "True") => Health::Current,
        phase => Health::InProgress(format!("it is {}", phase.unwrap_or("not scheduled"))),
    }
}

/// Returns why a pod does not become ready, by its containers and its scheduling.
pub(super) fn pod_failure(pod: &Value) -> Option<String> {
    for list in ["initContainerStatuses", "containerStatuses"] {
        for container in pod["status"][list].as_array().into_iter().flatten() {
            let name = container["name"].as_str().unwrap_or_default();
            let waiting = &container["state"]["waiting"];
            if let Some(reason) = waiting["reason"].as_str()
                && !matches!(reason, "ContainerCreating" | "PodInitializing")
            {
                let last = &container["lastState"]["terminated"];
                let code = last["exitCode"].as_i64().map(|code| format!(", last exit code {code}")).unwrap_or_default();
                let message = waiting["message"].as_str().map(|text| format!(": {text}")).unwrap_or_default();
                return Some(format!("container `{name}` is in {reason}{code}{message}"));
            }
        }
    }
    let unscheduled = condition(pod, "PodScheduled").filter(|condition| condition["status"] == "False")?;
    Some(format!("it can't be scheduled: {}", message(unscheduled)))
}

/// Evaluates an expression on an object; a missing field makes it false.
fn evaluate(expression: &str, object: &Value) -> Result<bool, String> {
    let program =
        Program::compile(expression).map_err(|error| format!("`{expression}` is no CEL expression: {error}"))?;
    let mut context = Context::default();
    context.add_variable("self", object.clone()).map_err(|error| error.to_string())?;
    for (name, value) in object.as_object().into_iter().flatten() {
        context.add_variable(name.clone(), value.clone()).map_err(|error| error.to_string())?;
    }
    match program.execute(&context) {
        Ok(cel::Value::Bool(flag)) => Ok(flag),
        Ok(_) => Err(format!("`{expression}` is neither true nor false")),
        Err(_) => Ok(false),
    }
}

/// Returns the health of an object by the component's rule for its kind, or by the default rules.
pub(super) fn ruled(object: &Value, rules: &[(String, String, Option<String>)]) -> Result<Health, String> {
    let kind = object["kind"].as_str().unwrap_or_default();
    let Some((_, current, failed)) = rules.iter().find(|(rule_kind, _, _)| rule_kind == kind) else {
        return Ok(health(object));
    };
    if let Some(failed) = failed
        && evaluate(failed, object)?
    {
        return Ok(Health::Failed(format!("`{failed}` holds")));
    }
    Ok(if evaluate(current, object)? {
        Health::Current
    } else {
        Health::InProgress(format!("`{current}` does not hold yet"))
    })
}

/// Joins the first few messages.
fn named(all: &[String]) -> String {
    let more = all.len().saturating_sub(NAMED_MAX);
    let more = (more > 0).then(|| format!("and {more} more"));
    all.iter().take(NAMED_MAX).cloned().chain(more).collect::<Vec<_>>().join("; ")
}

impl Kubernetes {
    /// Returns whether all declared objects are ready, or all objects are deleted. Otherwise names the first few that
    /// are not, with the reason.
    pub(super) async fn health_of_work(&self, job: &Job, work: &KubernetesWork) -> Result<Health, TargetError> {
        if work.destroy {
            let observed = self.observe_all(job, work, false).await?;
            if let Some(step) = observed.steps.values().next() {
                return Ok(Health::Failed(format!("`{}` is still there", step.key)));
            }
            return Ok(match (&observed.retained[..], &observed.terminating[..]) {
                ([], []) => Health::Current,
                ([], terminating) => Health::InProgress(named(terminating)),
                (retained, _) => Health::Failed(named(retained)),
            });
        }
        let (cluster, _) = self.cluster(job, work, false).await?;
        let (rendered, kinds) = self.declared(job, work, &cluster, super::client::KINDS_KNOWN).await?;
        let (mut waits, mut failed) = (vec![], vec![]);
        let mut by_kind: std::collections::BTreeMap<(String, &str), Vec<&Key>> = std::collections::BTreeMap::new();
        for object in &rendered.objects {
            let is_ruled = work.health.iter().any(|(kind, _, _)| *kind == *object.key.kind);
            if is_ruled || !SILENT.contains(&&*object.key.kind) {
                by_kind.entry((object.version.to_string(), &object.key.kind)).or_default().push(&object.key);
            }
        }
        let labels = format!(
            "{}={},{}={}",
            object::ENVIRONMENT,
            job.instance.environment,
            object::COMPONENT,
            job.instance.component
        );
        for ((version, name), keys) in by_kind {
            let Some(kind) = kinds.exact(&version, name) else { continue };
            let mut live = vec![];
            let failure = |refusal: super::client::Refusal| {
                refusal.into_error(&format!("the `{}` of `{}`", kind.plural, job.instance))
            };
            cluster
                .list(kind, &labels, &mut |mut object| {
                    object["kind"] = name.into();
                    object["apiVersion"] = version.as_str().into();
                    live.push(object);
                })
                .await
                .map_err(failure)?;
            for object in live {
                let Some(key) = Key::of(&object).filter(|key| keys.contains(&key)) else { continue };
                match ruled(&object, &work.health).map_err(|why| TargetError::new(TargetErrorKind::Health, why))? {
                    Health::Current => {}
                    Health::InProgress(why) => waits.push((key, object, why)),
                    Health::Failed(why) => failed.push((key, object, why)),
                }
            }
        }
        let mut messages = vec![];
        let all = if failed.is_empty() { &waits } else { &failed };
        for (key, object, why) in all.iter().take(NAMED_MAX) {
            let more = self.reason(&cluster, &kinds, object).await.map(|more| format!(" ({more})")).unwrap_or_default();
            messages.push(format!("`{key}`: {}{more}", self.redactor.redact(why)));
        }
        if all.len() > NAMED_MAX {
            messages.push(format!("and {} more", all.len() - NAMED_MAX));
        }
        Ok(match (failed.is_empty(), waits.is_empty()) {
            (false, _) => Health::Failed(messages.join("; ")),
            (true, false) => Health::InProgress(messages.join("; ")),
            (true, true) => Health::Current,
        })
    }

    /// Returns the messages of a workload's pods, or of its events if it has no pods.
    async fn reason(
        &self,
        cluster: &super::client::Cluster,
        kinds: &super::kinds::Kinds,
        workload: &Value,
    ) -> Option<String> {
        let namespace = object::text(workload, "/metadata/namespace")?;
        let selector = workload["spec"]["selector"]["matchLabels"].as_object()?;
        let labels: Vec<String> =
            selector.iter().map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())).collect();
        let mut found = vec![];
        let mut add_pod = |pod: Value| {
            if object::text(&pod, "/metadata/namespace") == Some(namespace)
                && let Some(why) = pod_failure(&pod)
            {
                found.push(format!("pod `{}`: {why}", object::text(&pod, "/metadata/name").unwrap_or_default()));
            }
        };
        cluster.list(kinds.exact("v1", "Pod")?, &labels.join(","), &mut add_pod).await.ok()?;
        if let Some(first) = found.into_iter().next() {
            return Some(self.redactor.redact(&first));
        }
        let name = object::text(workload, "/metadata/name")?;
        let mut last: Option<(String, String)> = None;
        let mut add_event = |event: Value| {
            let about = object::text(&event, "/involvedObject/name").unwrap_or_default();
            let mine = about == name || about.starts_with(&format!("{name}-"));
            if mine && object::text(&event, "/metadata/namespace") == Some(namespace) && event["type"] == "Warning" {
                let at = object::text(&event, "/lastTimestamp").unwrap_or_default().to_owned();
                let message = object::text(&event, "/message").unwrap_or_default().to_owned();
                if last.as_ref().is_none_or(|(before, _)| *before <= at) {
                    last = Some((at, message));
                }
            }
        };
        cluster.list(kinds.exact("v1", "Event")?, "", &mut add_event).await.ok()?;
        last.map(|(_, message)| self.redactor.redact(&message))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn health_of(kind: &str, spec: Value, status: Value) -> String {
        match health(&json!({"kind": kind, "metadata": {"generation": 2}, "spec": spec, "status": status})) {
            Health::Current => "current".into(),
            Health::InProgress(why) => format!("in progress: {why}"),
            Health::Failed(why) => format!("failed: {why}"),
        }
    }

    #[test]
    fn each_kind_by_its_own_rules() {
        let condition = |sort: &str, status: &str, reason: &str| json!([{"type": sort, "status": status, "reason": reason, "message": ""}]);
        assert_eq!(health_of("Deployment", json!({"replicas": 2}), json!({})), "in progress: 0 of 2 are updated");
        assert_eq!(
            health_of("Deployment", json!({}), json!({"observedGeneration": 1})),
            "in progress: its controller has not observed it yet"
        );
        let up = json!({"observedGeneration": 2, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2, "readyReplicas": 2});
        assert_eq!(health_of("Deployment", json!({"replicas": 2}), up.clone()), "current");
        assert_eq!(health_of("Deployment", json!({"replicas": 1}), up), "current");
        let late = json!({"observedGeneration": 2, "conditions": condition("Progressing", "False", "ProgressDeadlineExceeded")});
        assert_eq!(health_of("Deployment", json!({}), late), "failed: ProgressDeadlineExceeded");
        assert_eq!(health_of("Job", json!({}), json!({})), "in progress: 0 of 1 are completed");
        assert_eq!(health_of("Job", json!({}), json!({"conditions": condition("Complete", "True", "")})), "current");
        assert_eq!(
            health_of("Job", json!({}), json!({"conditions": condition("Failed", "True", "BackoffLimitExceeded")})),
            "failed: BackoffLimitExceeded"
        );
        assert_eq!(
            health_of("PersistentVolumeClaim", json!({}), json!({"phase": "Pending"})),
            "in progress: it is Pending"
        );
        assert_eq!(
            health_of("Service", json!({"type": "LoadBalancer"}), json!({})),
            "in progress: it has no address yet"
        );
        assert_eq!(health_of("Service", json!({}), json!({})), "current");
        assert_eq!(health_of("StatefulSet", json!({"updateStrategy": {"type": "OnDelete"}}), json!({})), "current");
        assert_eq!(
            health_of(
                "StatefulSet",
                json!({}),
                json!({"observedGeneration": 2, "readyReplicas": 1, "updatedReplicas": 1, "currentRevision": "a", "updateRevision": "b"})
            ),
            "in progress: it is on its way to its new revision"
        );
        assert_eq!(
            health_of(
                "DaemonSet",
                json!({}),
                json!({"observedGeneration": 2, "desiredNumberScheduled": 2, "updatedNumberScheduled": 1})
            ),
            "in progress: 1 of 2 are updated"
        );
        assert_eq!(
            health_of("Widget", json!({}), json!({"conditions": condition("Ready", "False", "Broken")})),
            "in progress: Broken"
        );
        assert_eq!(health_of("Widget", json!({}), json!({})), "current");
        assert_eq!(
            health_of("Widget", json!({}), json!({"conditions": condition("Stalled", "True", "Gone")})),
            "failed: Gone"
        );
    }

    #[test]
    fn a_component_may_say_when_a_kind_is_healthy() {
        let rules =
            [("Widget".to_owned(), "status.phase == 'Up'".to_owned(), Some("self.status.phase == 'Lost'".to_owned()))];
        let health_of = |status: Value| ruled(&json!({"kind": "Widget", "status": status}), &rules);
        assert_eq!(health_of(json!({"phase": "Up"})), Ok(Health::Current));
        assert!(matches!(health_of(json!({})), Ok(Health::InProgress(_))));
        assert!(matches!(health_of(json!({"phase": "Lost"})), Ok(Health::Failed(_))));
        let wrong = [("Widget".to_owned(), "status.(".to_owned(), None)];
        assert!(ruled(&json!({"kind": "Widget"}), &wrong).is_err());
    }

    #[test]
    fn a_pod_says_why_it_does_not_come_up() {
        let pod = json!({"status": {"containerStatuses": [{"name": "web", "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}}, "lastState": {"terminated": {"exitCode": 1}}}]}});
        assert_eq!(pod_failure(&pod).unwrap(), "container `web` is in CrashLoopBackOff, last exit code 1: back-off");
        assert_eq!(
            pod_failure(
                &json!({"status": {"containerStatuses": [{"name": "web", "state": {"waiting": {"reason": "ContainerCreating"}}}]}})
            ),
            None
        );
    }
}
