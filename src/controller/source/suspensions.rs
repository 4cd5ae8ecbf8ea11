//! Reads the suspensions of environments and instances, by declaration and by command.

use std::collections::{BTreeMap, BTreeSet};

use super::{Head, Source};
use crate::{
    controller::{records::Suspension, source::error::Error},
    domain::message::SuspensionReason,
    model::{EnvironmentName, InstanceId},
};

/// The suspended environments and instances. They are observed, and never changed.
#[derive(Default)]
pub(crate) struct Suspensions {
    /// By `suspend: true`.
    pub(crate) declared: BTreeSet<EnvironmentName>,
    /// By `/suspend`, by the name of an environment or instance.
    pub(crate) commanded: BTreeMap<String, Suspension>,
}

impl Suspensions {
    /// Returns the suspension of a name by a command.
    pub(crate) fn by_command(&self, name: &str) -> Option<SuspensionReason> {
        let suspension = self.commanded.get(name)?;
        let (by, at) = (suspension.by.clone(), suspension.at);
        Some(SuspensionReason::Command { name: name.to_owned(), by, at })
    }

    /// Returns the suspension of a whole environment.
    pub(crate) fn environment(&self, name: &EnvironmentName) -> Option<SuspensionReason> {
        let declared = self.declared.contains(name).then(|| SuspensionReason::Declared(name.clone()));
        declared.or_else(|| self.by_command(name.as_str()))
    }

    /// Returns the suspension of an instance, its own or that of its environment.
    pub(crate) fn instance(&self, id: &InstanceId) -> Option<SuspensionReason> {
        self.environment(&id.environment).or_else(|| self.by_command(&id.to_string()))
    }
}

impl Source {
    /// Returns the suspensions at a head. A command that names an environment includes instances that are declared
    /// later.
    ///
    /// # Errors
    /// When the store can't be read.
    pub(crate) async fn suspensions(&self, head: Option<&Head>) -> Result<Suspensions, Error> {
        let environments = head.into_iter().flat_map(|head| &head.desired.environments);
        let declared = environments.filter(|(_, environment)| environment.suspend).map(|(name, _)| name.clone());
        let commanded = self.context.store.collection::<Suspension>().all().await?;
        Ok(Suspensions { declared: declared.collect(), commanded: commanded.into_iter().collect() })
    }
}
