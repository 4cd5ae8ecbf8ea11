//! Runs step 4 of the demo: SIGKILL during a run.

use std::time::Instant;

use serde_json::json;

use super::{Stage, expect};
use crate::{
    cli::{Failure, serve},
    domain::{
        journal::{Event, JournalRecord, Outcome},
        plan::Plan,
    },
    model::Verdict,
    ports::{Files, Repository},
};

impl Stage {
    /// Step 4: the daemon is killed while tofu runs, and started again.
    pub(super) async fn killed(&mut self) -> Result<(), Failure> {
        self.heading(4, "The daemon is killed in the middle of a run");
        let since = Instant::now();
        let base =
            self.mirror.fetch("refs/heads/main").await?.ok_or_else(|| Failure::new("there is no main branch"))?;
        let files = self.mirror.files(&base).await?;
        let edited = |path: &str, old: &str, new: &str| -> Result<(String, Option<String>), Failure> {
            let text = Files::read(&*files, path)?;
            Ok((path.to_owned(), Some(String::from_utf8_lossy(&text).replace(old, new))))
        };
        let changes = vec![
            edited("state-repo/components/apps.yaml", "release: 1.4.2", "release: 1.4.3")?,
            edited(
                "opentofu/backend/main.tf",
                "  content = var.release\n",
                "  content = var.release\n  delay   = \"2s\"\n",
            )?,
        ];
        let log = self.place("daemon.log");
        let modifying = || {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            text.lines().filter(|line| line.contains("instance=dev/backend") && line.contains("Modifying...")).count()
        };
        let before = modifying();
        self.mirror.push("main", &base, Some(&base), changes, "Release 1.4.3, slowly").await?;
        let run = self
            .until("a run of dev/backend", async |stage| {
                let begun = stage
                    .records()
                    .await?
                    .into_iter()
                    .rev()
                    .find(|record| record.instance.to_string() == "dev/backend");
                Ok(begun.filter(|record| matches!(record.event, Event::Started { .. })).map(|record| record.run))
            })
            .await?;
        // Kill the daemon only after tofu has begun to modify resources. Between the journal record and the first
        // modification, the next daemon would correctly start the action again.
        self.until("tofu at work", async |_| Ok((modifying() > before).then_some(()))).await?;
        self.daemon.kill().await?;
        self.told(
            since,
            &format!("SIGKILL: run {run} had begun to change `dev/backend`, and tofu goes on without the daemon"),
        );
        let since = Instant::now();
        self.daemon = serve::start(self.folder.path())?;
        self.verdict("dev/backend", Verdict::InSync).await?;
        expect(self.world("dev/backend/release") == "1.4.3", "`dev` has 1.4.3")?;
        let records: Vec<JournalRecord> =
            self.records().await?.into_iter().filter(|record| record.run == run).collect();
        let count = |is: fn(&Event) -> bool| records.iter().filter(|record| is(&record.event)).count();
        let once = count(|event| matches!(event, Event::Started { .. })) == 1
            && count(|event| matches!(event, Event::Finished { outcome: Outcome::Done })) == 1;
        expect(once, &format!("run {run} started one action and finished it"))?;
        self.told(since, &format!("started again: it went back to run {run}, which ended, and nothing was done twice"));
        let since = Instant::now();
        let (_, plans) = self.post("/api/v1/plan", &json!({"selector": "staging"})).await?;
        let plans: Vec<Plan> = serde_json::from_value(plans)?;
        let digests: Vec<String> = plans.iter().map(|plan| plan.digest.to_string()).collect();
        let (code, response) = self.post("/api/v1/apply", &json!({"selector": "staging", "digests": digests})).await?;
        expect(code == 200, &format!("`evenkeel apply staging` is taken: {response}"))?;
        self.verdict("staging/backend", Verdict::InSync).await?;
        self.told(since, "`evenkeel apply staging` brings `staging` there too");
        Ok(())
    }

    async fn records(&self) -> Result<Vec<JournalRecord>, Failure> {
        Ok(serde_json::from_value(self.get("/api/v1/journal").await?)?)
    }
}
