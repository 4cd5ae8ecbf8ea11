//! Stores the state of a driven run: its document, its revision, and its use of the limits.

use std::{collections::BTreeMap, sync::Arc};

use chrono::{DateTime, Utc};
use tokio::sync::Mutex;

use crate::{
    controller::source::Head,
    domain::{journal::Run, plan::Summary},
    model::InstanceId,
};

/// A run that is being driven.
pub(super) struct Driven {
    pub(crate) run: Mutex<Run>,
    pub(crate) head: Arc<Head>,
    /// The time at which the comment of the run was updated last.
    pub(crate) reported_at: parking_lot::Mutex<DateTime<Utc>>,
    /// The use of the limits by each instance.
    pub(crate) spent: Mutex<BTreeMap<InstanceId, Summary>>,
}
