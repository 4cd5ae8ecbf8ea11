//! Formats the pull request that raises a component's variable for a target that needs more capacity.

use crate::model::InstanceId;

/// The raise of a variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Raise<'r> {
    /// The target that needs more capacity.
    pub target: &'r InstanceId,
    /// The figures, from the kind of target.
    pub figures: &'r str,
    /// The instance whose variable is raised.
    pub id: &'r InstanceId,
    /// The variable.
    pub variable: &'r str,
    /// The present value.
    pub from: u64,
    /// The new value.
    pub to: u64,
    /// The highest value that the rule allows.
    pub max: u64,
}

impl Raise<'_> {
    /// Returns the title of the pull request and of its commit.
    pub fn title(&self) -> String {
        format!("Raise {} of {} to {}", self.variable, self.id, self.to)
    }
    /// Returns the description of the pull request.
    pub fn body(&self) -> String {
        let Self { target, figures, id, variable, from, to, max } = self;
        format!(
            "`{target}` needs more nodes: {figures}\n\nMerging this raises `{variable}` of `{id}` from {from} to {to}; the rule allows {max} at most. Closing this unmerged rejects the value.\n"
        )
    }
}
