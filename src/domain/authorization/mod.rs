//! Decides which principal may give which command (R3).
//!
//! Uses the permissions of the base branch that are in force. The first matching line decides, and the default is to
//! refuse. Never queries the forge: the facts about a user are arguments.

pub mod approvals;
pub mod guards;
pub mod paths;

pub use approvals::MissingApprovals;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{
    domain::declaration::schema::{Approvals, Permission, StateRepo, Team, Verb},
    model::EnvironmentName,
};

/// The permission of a user on a repository, from the forge.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "each is the forge's word")]
pub enum Level {
    None,
    Read,
    Triage,
    Write,
    Maintain,
    Admin,
}

impl Level {
    /// Parses the forge's name of a level.
    pub fn parse(name: &str) -> Self {
        match name {
            "admin" => Self::Admin,
            "maintain" => Self::Maintain,
            "write" | "push" => Self::Write,
            "triage" => Self::Triage,
            "read" | "pull" => Self::Read,
            _ => Self::None,
        }
    }
}

/// A principal: a user, a token or the daemon itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "who", rename_all = "camelCase")]
pub enum Principal {
    /// A user of the forge.
    User {
        /// The login.
        login: String,
        /// The user's permission on the repository.
        level: Level,
        /// The user's teams, among the teams of the state repo.
        teams: BTreeSet<String>,
        /// The id of the command's source, if it has one: a comment or a merge. A command is executed once.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        command_id: Option<String>,
    },
    /// A token of Evenkeel's API.
    Token {
        /// The name of the token.
        name: String,
    },
    /// A merge, authorized by the merged declaration.
    Merge,
}

impl Principal {
    /// Returns the name in the audit log: `user:lin`, `token:local`.
    pub fn name(&self) -> String {
        match self {
            Self::User { login, .. } => format!("user:{login}"),
            Self::Token { name } => format!("token:{name}"),
            Self::Merge => "merge".into(),
        }
    }

    /// Returns the principal with the id of the command's source. A command is executed once.
    pub fn by(self, command_id: String) -> Self {
        match self {
            Self::User { login, level, teams, .. } => Self::User { login, level, teams, command_id: Some(command_id) },
            other => other,
        }
    }

    /// Returns the id of the command's source, if it has one.
    pub fn command_id(&self) -> Option<&str> {
        match self {
            Self::User { command_id, .. } => command_id.as_deref(),
            _ => None,
        }
    }

    /// Returns the name in messages: `@lin`, `token:local`.
    pub fn mention(&self) -> String {
        match self {
            Self::User { login, .. } => format!("@{login}"),
            _ => self.name(),
        }
    }

    /// Returns whether the principal is the owner of the daemon's data directory.
    fn is_local(&self) -> bool {
        matches!(self, Self::Token { name } if name == LOCAL_TOKEN)
    }

    /// Returns whether a subject of the permissions matches: `team:platform`, `user:lin`, `permission:write`,
    /// `token:ops`.
    pub fn is(&self, to: &str) -> bool {
        match (self, to.split_once(':')) {
            (Self::User { login, .. }, Some(("user", name))) => login.eq_ignore_ascii_case(name),
            (Self::User { teams, .. }, Some(("team", name))) => teams.contains(name),
            (Self::User { level, .. }, Some(("permission", name))) => {
                *level >= Level::parse(name) && *level > Level::None
            }
            (Self::Token { name }, Some(("token", other))) => name == other,
            _ => false,
        }
    }
}

/// The name of the token of the data directory's owner. The owner can read and change all data of the daemon, so this
/// token may do everything that any user may do.
pub const LOCAL_TOKEN: &str = "local";

/// The permissions in one environment at one revision.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rights {
    /// The teams that the permissions name.
    pub teams: BTreeMap<String, Team>,
    /// The permissions for the environment, in order.
    pub lines: Vec<Permission>,
}

impl Rights {
    /// Selects the permissions of a state repo for an environment.
    pub fn of(state_repo: &StateRepo, environment: &EnvironmentName) -> Self {
        let concerns = |line: &&Permission| line.environments.as_ref().is_none_or(|names| names.contains(environment));
        let lines: Vec<Permission> = state_repo
            .permissions
            .iter()
            .filter(concerns)
            .map(|line| Permission { environments: None, ..line.clone() })
            .collect();
        let named = |name: &String| {
            let mut subjects =
                lines.iter().flat_map(|line| line.to.iter().chain(line.approvals.iter().flat_map(|a| &a.from)));
            subjects.any(|to| to.strip_prefix("team:") == Some(name))
        };
        let teams = state_repo.teams.iter().filter(|(name, _)| named(name));
        Self { teams: teams.map(|(name, team)| (name.clone(), team.clone())).collect(), lines }
    }

    /// Returns the first permission of a principal for a command. For the owner of the data directory, the first
    /// permission of any subject counts, because it determines the required approvals.
    fn line(&self, who: &Principal, verb: Verb) -> Option<&Permission> {
        let mut lines = self.lines.iter().filter(|line| line.allow.contains(&verb));
        lines.find(|line| who.is_local() || line.to.iter().any(|to| who.is(to)))
    }

    /// Returns the subjects that may give a command.
    pub fn allowed(&self, verb: Verb) -> BTreeSet<&str> {
        let lines = self.lines.iter().filter(|line| line.allow.contains(&verb));
        lines.flat_map(|line| line.to.iter().map(String::as_str)).collect()
    }

    /// Returns the approvals of a command, from the first permission that requires any.
    pub fn approvals(&self, verb: Verb) -> Option<&Approvals> {
        self.lines.iter().filter(|line| line.allow.contains(&verb)).find_map(|line| line.approvals.as_ref())
    }
}

/// Returns the approvals that a command of a principal needs; `None` if the principal may not give the command. Every
/// definition of the permissions that is in force must allow the command.
pub fn permit<'r>(rights: &'r [Rights], who: &Principal, verb: Verb) -> Option<Vec<&'r Approvals>> {
    let allowed = !rights.is_empty() && rights.iter().all(|rights| rights.line(who, verb).is_some());
    if !allowed && !who.is_local() {
        return None;
    }
    let lines = rights.iter().filter_map(|rights| rights.line(who, verb));
    Some(lines.filter_map(|line| line.approvals.as_ref()).collect())
}

/// Returns the subjects that every definition in force allows a command, such as `team:platform`; `None` if no
/// definition is in force.
pub fn allowed(rights: &[Rights], verb: Verb) -> Option<BTreeSet<String>> {
    let (last, before) = rights.split_last()?;
    let mut allowed = last.allowed(verb);
    before.iter().for_each(|rights| allowed = allowed.intersection(&rights.allowed(verb)).copied().collect());
    Some(allowed.into_iter().map(ToString::to_string).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state_repo() -> StateRepo {
        serde_json::from_value(serde_json::json!({
            "teams": {"platform": {"users": ["lin"]}},
            "permissions": [
                {"allow": ["plan"], "to": ["permission:write"]},
                {"allow": ["apply"], "to": ["team:platform", "token:ops"], "environments": ["staging"]},
            ]
        }))
        .unwrap()
    }

    fn user(login: &str, level: Level, teams: &[&str]) -> Principal {
        Principal::User {
            login: login.into(),
            level,
            teams: teams.iter().map(|t| (*t).to_owned()).collect(),
            command_id: None,
        }
    }

    #[test]
    fn r3_8_nothing_is_allowed_by_default() {
        let repo = state_repo();
        let rights = |environment: &str| [Rights::of(&repo, &environment.parse().unwrap())];
        let (staging, production) = (rights("staging"), rights("production"));
        let may = |rights: &[Rights], who: &Principal, verb| permit(rights, who, verb).is_some();
        let lin = user("lin", Level::Write, &["platform"]);
        let eve = user("eve", Level::Write, &[]);
        assert!(may(&staging, &lin, Verb::Apply));
        assert!(!may(&production, &lin, Verb::Apply));
        assert!(!may(&staging, &eve, Verb::Apply));
        assert!(may(&production, &eve, Verb::Plan));
        assert!(!may(&staging, &user("guest", Level::Read, &[]), Verb::Plan));
        assert!(!may(&[], &lin, Verb::Apply));
        assert!(may(&staging, &Principal::Token { name: "ops".into() }, Verb::Apply));
        assert!(!may(&staging, &Principal::Token { name: "other".into() }, Verb::Apply));
        // Former permissions that are still in force must allow the command too.
        assert!(!may(&[staging[0].clone(), production[0].clone()], &lin, Verb::Apply));
        insta::assert_snapshot!(crate::domain::message::Refusal::not_permitted(&staging, &eve, Verb::Apply, &"staging".parse().unwrap()), @"@eve is not allowed to `/apply` in `staging`: `team:platform`, `token:ops` may.");
    }

    #[test]
    fn r3_6_the_owner_of_the_data_needs_the_approvals_that_anybody_needs() {
        let mut repo = state_repo();
        repo.permissions[1].approvals = Some(Approvals { count: 2, from: vec!["team:platform".into()] });
        let staging = [Rights::of(&repo, &"staging".parse().unwrap())];
        let local = Principal::Token { name: LOCAL_TOKEN.into() };
        assert_eq!(permit(&staging, &local, Verb::Apply).unwrap()[0].count, 2);
        assert_eq!(permit(&staging, &local, Verb::Drift), Some(vec![]));
    }
}
