//! Runs the `checks` of an instance and returns the failed ones.

use std::{sync::Arc, time::Duration};

use crate::{
    controller::{context::Error, observe::Observer},
    domain::declaration::schema::{Check, Component},
    model::InstanceId,
};

/// The default timeout of a check.
const CHECK_TIMEOUT: Duration = Duration::from_secs(30);

impl Observer {
    /// Runs the checks of an instance and returns a message for each failed check.
    ///
    /// # Errors
    /// When the store can't be read.
    pub(crate) async fn failed_checks(
        self: &Arc<Self>,
        id: &InstanceId,
        spec: &Component,
    ) -> Result<Vec<String>, Error> {
        let mut failed = vec![];
        for check in &spec.checks {
            if let Err(reason) = self.probe(id, check).await? {
                failed.push(format!("check `{}`: {reason}", check.name));
            }
        }
        Ok(failed)
    }

    async fn probe(self: &Arc<Self>, id: &InstanceId, check: &Check) -> Result<Result<(), String>, Error> {
        let is_filled = [&check.http, &check.tcp].into_iter().flatten().any(|address| address.contains("${"));
        let applied = if is_filled {
            self.context.store.applied_in(&id.environment).await?
        } else {
            std::collections::BTreeMap::new()
        };
        let output = |reference: &crate::domain::declaration::Reference| {
            let upstream = InstanceId::new(&id.environment, &reference.component);
            let outputs = &applied.get(&upstream)?.outputs;
            let shown: serde_json::Map<_, _> =
                outputs.iter().filter_map(|(name, output)| Some((name.clone(), output.value.clone()?))).collect();
            crate::domain::declaration::resolve::lookup(&shown.into(), &reference.key)
        };
        let text = |address: &Option<String>| match address {
            None => Ok(None),
            Some(address) => crate::domain::declaration::resolve::fill(&address.as_str().into(), &output)
                .map(|value| value.as_str().map(str::to_owned)),
        };
        let timeout = check.timeout.map_or(CHECK_TIMEOUT, crate::model::Duration::std);
        match (text(&check.http), text(&check.tcp)) {
            (Ok(http), Ok(tcp)) => Ok(self.context.probe.probe(http.as_deref(), tcp.as_deref(), timeout).await),
            (Err(reason), _) | (_, Err(reason)) => Ok(Err(reason)),
        }
    }
}
