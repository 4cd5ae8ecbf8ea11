//! Lists the kinds of target. No other module does.

use std::sync::OnceLock;

use super::{citus::CitusKind, kubernetes::KubernetesKind, opentofu::OpenTofu};
use crate::{
    domain::{declaration::Kinds, kind::TargetKind},
    model::TargetSpec,
    ports::{TargetError, TargetErrorKind},
};

/// The kinds of target.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// OpenTofu root modules.
    OpenTofu,
    /// Kubernetes objects.
    Kubernetes,
    /// Shard layouts of Citus clusters.
    Citus,
    /// A file with one text: a minimal example of a kind.
    #[cfg(test)]
    File,
}

impl Kind {
    /// All kinds, in the order in which messages list them.
    const ALL: &[Self] = &[
        Self::OpenTofu,
        Self::Kubernetes,
        Self::Citus,
        #[cfg(test)]
        Self::File,
    ];

    /// Returns the implementation of this kind.
    pub fn answers(self) -> &'static dyn TargetKind {
        match self {
            Self::OpenTofu => &OpenTofu,
            Self::Kubernetes => &KubernetesKind,
            Self::Citus => &CitusKind,
            #[cfg(test)]
            Self::File => &super::file::File,
        }
    }
}

/// Returns all kinds, for the loader of declarations.
pub fn kinds() -> &'static Kinds {
    static KINDS: OnceLock<Kinds> = OnceLock::new();
    KINDS.get_or_init(|| Kinds::new(Kind::ALL.iter().map(|kind| kind.answers()).collect()))
}

/// Returns the kind of a declared target.
///
/// # Errors
/// When this version does not have the kind: the record is from a newer version.
pub fn kind(target: &TargetSpec) -> Result<&'static dyn TargetKind, TargetError> {
    kinds().of(target).ok_or_else(|| {
        let message = format!("`{}` is not a kind of target of this version", target.kind);
        TargetError::new(TargetErrorKind::Unsupported, message)
    })
}
