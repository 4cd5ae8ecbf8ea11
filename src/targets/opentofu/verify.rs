//! Reads the live outputs of an instance after an apply.

use crate::targets::opentofu::work::TofuWork;
use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::{
    Tofu,
    observe::Ready,
    program::{Read, failure},
};
use crate::ports::{Job, Output, TargetError, TargetErrorKind};

#[derive(Deserialize)]
struct RawOutput {
    #[serde(default)]
    sensitive: bool,
    value: Value,
}

impl Tofu {
    /// Returns the live outputs of an instance.
    pub(super) async fn read_outputs(
        &self,
        job: &Job,
        work: &TofuWork,
    ) -> Result<BTreeMap<String, Output>, TargetError> {
        let ready = self.ready(job, work, false).await?;
        self.outputs_of_state(job, &ready, false).await
    }

    pub(super) async fn outputs_of_state(
        &self,
        job: &Job,
        ready: &Ready,
        apply: bool,
    ) -> Result<BTreeMap<String, Output>, TargetError> {
        let result = self.run(job, &ready.root, &["output".to_owned(), "-json".into()], apply, Read::Answer).await?;
        if result.code != Some(0) {
            return Err(failure(&job.instance, "output", result));
        }
        let raw: BTreeMap<String, RawOutput> = serde_json::from_slice(&result.stdout).map_err(|error| {
            TargetError::new(
                TargetErrorKind::OutputsUnreadable,
                format!("the outputs of `{}` could not be read: {error}", job.instance),
            )
        })?;
        Ok(raw
            .into_iter()
            .map(|(name, raw)| {
                if raw.sensitive {
                    self.redactor.learn(&raw.value);
                }
                (name, Output { value: Some(raw.value), sensitive: raw.sensitive })
            })
            .collect())
    }
}
