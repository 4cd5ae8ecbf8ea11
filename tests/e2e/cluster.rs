//! Provides a real API server, shared by concurrent tests and stopped after the last one.

use std::sync::{Arc, OnceLock, Weak};

use evenkeel::targets::kubernetes::local::ApiServer;
use http::Method;
use serde_json::{Value, json};
use tokio::sync::Mutex;

use crate::stage::{Stage, tools};

/// Returns the `PATH` of the programs.
pub(crate) fn path() -> &'static str {
    &tools()["PATH"]
}

/// A running cluster.
pub(crate) struct Cluster {
    pub(crate) server: ApiServer,
    pub(crate) folder: tempfile::TempDir,
}

impl Cluster {
    /// Starts a separate cluster, which the test may break.
    pub(crate) async fn own() -> Self {
        tools();
        let folder = tempfile::tempdir().unwrap();
        let server = ApiServer::start(folder.path(), Some(path())).unwrap();
        server.ready().await.unwrap();
        for user in ["admin", "noor"] {
            std::fs::write(folder.path().join(user), server.kubeconfig(user)).unwrap();
        }
        Self { server, folder }
    }

    /// Returns the shared cluster; each test uses its own namespaces.
    pub(crate) async fn shared() -> Arc<Self> {
        static SHARED: OnceLock<Mutex<Weak<Cluster>>> = OnceLock::new();
        let mut shared = SHARED.get_or_init(Mutex::default).lock().await;
        if let Some(cluster) = shared.upgrade() {
            return cluster;
        }
        let cluster = Arc::new(Self::own().await);
        *shared = Arc::downgrade(&cluster);
        cluster
    }

    /// Gives the daemon of a stage the cluster as connection `cluster`, as an administrator.
    pub(crate) fn connect(&self, stage: &mut Stage) {
        let place = |user: &str| self.folder.path().join(user);
        stage.config["connections"]["*"]["cluster"] =
            json!({"plan": {"kubeconfigFile": place("admin")}, "apply": {"kubeconfigFile": place("admin")}});
    }

    /// Sends a request as a user; returns the status and the response.
    pub(crate) async fn ask(
        &self,
        user: &str,
        method: Method,
        path: &str,
        sort: &str,
        body: Option<&Value>,
    ) -> (u16, Value) {
        use http_body_util::BodyExt;
        let client = self.server.client(user).await.unwrap();
        let mut request = http::Request::builder().method(method).uri(path);
        if !sort.is_empty() {
            request = request.header("content-type", sort);
        }
        let body = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
        let answer = client.send(request.body(kube::client::Body::from(body)).unwrap()).await.unwrap();
        let status = answer.status().as_u16();
        let text = answer.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&text).unwrap_or_default())
    }

    /// Returns one object; null if it does not exist.
    pub(crate) async fn get(&self, path: &str) -> Value {
        let (status, object) = self.ask("admin", Method::GET, path, "", None).await;
        if status == 404 { Value::Null } else { object }
    }

    /// Creates an object, as `kubectl create` does.
    pub(crate) async fn create(&self, path: &str, object: &Value) {
        let (status, answer) = self.ask("admin", Method::POST, path, "application/json", Some(object)).await;
        assert!(status == 201, "{status} {answer}");
    }

    /// Changes an object by a merge patch with the field manager of `kubectl edit`.
    pub(crate) async fn edit(&self, path: &str, patch: &Value) {
        let path = format!("{path}?fieldManager=kubectl-edit");
        let (status, answer) =
            self.ask("admin", Method::PATCH, &path, "application/merge-patch+json", Some(patch)).await;
        assert!(status == 200, "{status} {answer}");
    }

    /// Changes an object by a strategic merge patch, which merges lists by key.
    pub(crate) async fn patch(&self, path: &str, patch: &Value) {
        let path = format!("{path}?fieldManager=kubectl-edit");
        let sort = "application/strategic-merge-patch+json";
        let (status, answer) = self.ask("admin", Method::PATCH, &path, sort, Some(patch)).await;
        assert!(status == 200, "{status} {answer}");
    }

    pub(crate) async fn delete(&self, path: &str) {
        let (status, answer) = self.ask("admin", Method::DELETE, path, "", None).await;
        assert!(status == 200 || status == 202, "{status} {answer}");
    }
}

/// Returns a component of Kubernetes objects in `dev`.
pub(crate) fn component(name: &str, kubernetes: &str, more: &str) -> (String, String) {
    let text = format!(
        "apiVersion: evenkeel.dev/v1alpha1\nkind: Component\nmetadata: {{ name: {name} }}\nspec:\n  environments: [dev]\n  kubernetes: {{ {kubernetes} }}\n{more}"
    );
    (format!("state-repo/components/{name}.yaml"), text)
}
