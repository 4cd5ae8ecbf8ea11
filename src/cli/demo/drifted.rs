//! Runs step 2 of the demo: a file and an object drift, and merged remediations revert them.

use std::time::Instant;

use serde_json::json;

use super::{Failure, Stage, expect, output};
use crate::model::{PullNumber, Verdict};

impl Stage {
    /// Step 2: a file changes outside git, and a merge reverts the drift.
    pub(super) async fn drift(&self) -> Result<PullNumber, Failure> {
        self.heading(2, "Somebody changes the world behind its back");
        let since = Instant::now();
        std::fs::write(self.place("world/staging/network/routes-eu"), "via 10.9.9.9")?;
        self.verdict("staging/network", Verdict::Drifted).await?;
        self.told(since, "seen: world_file.routes[\"eu\"] /content \"via 10.1.0.1\" → \"via 10.9.9.9\"");
        let pull = self.proposed(since).await?;
        let since = Instant::now();
        self.as_user("lin", reqwest::Method::PUT, &format!("pulls/{}/merge", pull.0), Some(&json!({}))).await?;
        self.until("the world is back", async |stage| {
            Ok((stage.world("staging/network/routes-eu") == "via 10.1.0.1").then_some(()))
        })
        .await?;
        self.verdict("staging/network", Verdict::InSync).await?;
        self.told(since, "merged by lin, and the world is back");
        Ok(pull)
    }

    /// Waits for the pull request that proposes the revert, and shows its text.
    async fn proposed(&self, since: Instant) -> Result<PullNumber, Failure> {
        let pull = self
            .until("a remediation pull request", async |stage| {
                let open = stage.as_user("lin", reqwest::Method::GET, "pulls?state=open", None).await?;
                Ok(open.as_array().and_then(|all| all.first()).and_then(|pull| pull["number"].as_u64()).map(PullNumber))
            })
            .await?;
        self.told(since, &format!("proposed: {}", self.page(pull)));
        let known = self.as_user("lin", reqwest::Method::GET, &format!("pulls/{}", pull.0), None).await?;
        let lines = known["body"].as_str().unwrap_or_default().lines();
        for line in lines.filter(|line| line.starts_with(['!', '-', '+']) && !line.starts_with("---")) {
            let painted = match line.chars().next() {
                Some('+') => self.colour.good(line),
                Some('-') => self.colour.bad(line),
                _ => line.to_owned(),
            };
            output::text(&format!("       {painted}"));
        }
        Ok(pull)
    }

    /// A user edits an object in the cluster; a watch reports the change without polling.
    pub(super) async fn edited(&self) -> Result<(), Failure> {
        let path = "/apis/apps/v1/namespaces/demo-dev/deployments/web";
        let image = async |stage: &Self| -> Result<String, Failure> {
            let client = stage.cluster.client("admin").await.ok_or_else(|| Failure::new("there is no cluster"))?;
            let asked = http::Request::get(path).body(vec![]).map_err(|error| Failure::new(error.to_string()))?;
            let text = client.request_text(asked).await.map_err(|error| Failure::new(error.to_string()))?;
            let live: serde_json::Value = serde_json::from_str(&text)?;
            let image = live.pointer("/spec/template/spec/containers/0/image").and_then(serde_json::Value::as_str);
            Ok(image.unwrap_or_default().to_owned())
        };
        let client = self.cluster.client("noor").await.ok_or_else(|| Failure::new("there is no cluster"))?;
        let patch = json!({"spec": {"template": {"spec": {"containers": [{"name": "web", "image": "web:hotfix"}]}}}});
        let request = http::Request::patch(format!("{path}?fieldManager=kubectl-edit"))
            .header("content-type", "application/strategic-merge-patch+json")
            .body(patch.to_string().into_bytes())
            .map_err(|error| Failure::new(error.to_string()))?;
        let since = Instant::now();
        client.request_text(request).await.map_err(|error| Failure::new(error.to_string()))?;
        self.verdict("dev/web", Verdict::Drifted).await?;
        let took = since.elapsed();
        expect(took.as_secs_f64() < 1.0, &format!("an edited object is seen within a second: {took:?}"))?;
        self.told(since, "noor edits a Deployment in the cluster, and it is seen by a watch");
        let pull = self.proposed(since).await?;
        let since = Instant::now();
        self.as_user("lin", reqwest::Method::PUT, &format!("pulls/{}/merge", pull.0), Some(&json!({}))).await?;
        self.until("the object is back", async |stage| Ok((image(stage).await? == "web:1.4.1").then_some(()))).await?;
        self.verdict("dev/web", Verdict::InSync).await?;
        self.told(since, "merged by lin, and the object is back");
        Ok(())
    }
}
