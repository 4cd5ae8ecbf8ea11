//! Who may do what (R3).
//!
//! Decides by the permissions of the base branch: the first line that matches wins, and nothing is allowed by default.
//! Never asks the forge; what is known of a person comes in.

pub mod guards;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{
    desired::schema::{Permission, StateRepo, Verb},
    model::EnvironmentName,
};

/// What somebody may do with a repository, from the forge.
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
    /// Reads the forge's word.
    pub fn parse(word: &str) -> Self {
        match word {
            "admin" => Self::Admin,
            "maintain" => Self::Maintain,
            "write" | "push" => Self::Write,
            "triage" => Self::Triage,
            "read" | "pull" => Self::Read,
            _ => Self::None,
        }
    }
}

/// Somebody who says something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "who", rename_all = "camelCase")]
pub enum Principal {
    /// A person on the forge.
    User {
        /// The login.
        login: String,
        /// What they may do with the repository.
        level: Level,
        /// The teams of the state repo that they are in.
        teams: BTreeSet<String>,
    },
    /// A token of the API.
    Token {
        /// Its name.
        name: String,
    },
    /// A merge, by the merged declaration.
    Merge,
}

impl Principal {
    /// As it stands in the audit: `user:lin`, `token:local`.
    pub fn name(&self) -> String {
        match self {
            Self::User { login, .. } => format!("user:{login}"),
            Self::Token { name } => format!("token:{name}"),
            Self::Merge => "merge".into(),
        }
    }

    fn is(&self, to: &str) -> bool {
        match (self, to.split_once(':')) {
            (Self::User { login, .. }, Some(("user", name))) => login.eq_ignore_ascii_case(name),
            (Self::User { teams, .. }, Some(("team", name))) => teams.contains(name),
            (Self::User { level, .. }, Some(("permission", word))) => {
                *level >= Level::parse(word) && *level > Level::None
            }
            (Self::Token { name }, Some(("token", other))) => name == other,
            _ => false,
        }
    }
}

/// The name of the token that the daemon makes for the owner of its data directory: who can read that file can read
/// and change everything that the daemon keeps, so it may do what any person may.
pub const LOCAL_TOKEN: &str = "local";

/// Whether somebody may give a command in an environment.
pub fn may(state_repo: Option<&StateRepo>, who: &Principal, verb: Verb, environment: &EnvironmentName) -> bool {
    if matches!(who, Principal::Token { name } if name == LOCAL_TOKEN) {
        return true;
    }
    let Some(state_repo) = state_repo else { return false };
    let covers = |line: &&Permission| {
        line.allow.contains(&verb) && line.environments.as_ref().is_none_or(|names| names.contains(environment))
    };
    state_repo.permissions.iter().filter(covers).any(|line| line.to.iter().any(|to| who.is(to)))
}

/// To whom a command is allowed in an environment, as the lines of the permissions say.
pub fn allowed<'r>(state_repo: &'r StateRepo, verb: Verb, environment: &EnvironmentName) -> BTreeSet<&'r str> {
    let covers = |line: &&Permission| {
        line.allow.contains(&verb) && line.environments.as_ref().is_none_or(|names| names.contains(environment))
    };
    state_repo.permissions.iter().filter(covers).flat_map(|line| line.to.iter().map(String::as_str)).collect()
}

/// A refusal in one sentence: who, what, where, and who may.
pub fn refusal(state_repo: Option<&StateRepo>, who: &Principal, verb: Verb, environment: &EnvironmentName) -> String {
    let Some(state_repo) = state_repo else {
        return format!(
            "`/{}` is refused: the StateRepo on the base branch can't be read, and without it nobody may do anything; `evenkeel validate` says what is wrong",
            verb.word()
        );
    };
    let allowed = allowed(state_repo, verb, environment);
    let who_may = match allowed.len() {
        0 => "nobody is; add a line to `permissions` in the StateRepo".to_owned(),
        _ => format!("{} may", allowed.into_iter().map(|to| format!("`{to}`")).collect::<Vec<_>>().join(", ")),
    };
    let name = match who {
        Principal::User { login, .. } => format!("@{login}"),
        other => other.name(),
    };
    format!("{name} is not allowed to `/{}` in `{environment}`: {who_may}.", verb.word())
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
        Principal::User { login: login.into(), level, teams: teams.iter().map(|t| (*t).to_owned()).collect() }
    }

    #[test]
    fn r3_8_nothing_is_allowed_by_default() {
        let repo = state_repo();
        let staging = "staging".parse().unwrap();
        let production = "production".parse().unwrap();
        let lin = user("lin", Level::Write, &["platform"]);
        let eve = user("eve", Level::Write, &[]);
        assert!(may(Some(&repo), &lin, Verb::Apply, &staging));
        assert!(!may(Some(&repo), &lin, Verb::Apply, &production));
        assert!(!may(Some(&repo), &eve, Verb::Apply, &staging));
        assert!(may(Some(&repo), &eve, Verb::Plan, &production));
        assert!(!may(Some(&repo), &user("guest", Level::Read, &[]), Verb::Plan, &staging));
        assert!(!may(None, &lin, Verb::Apply, &staging));
        assert!(may(Some(&repo), &Principal::Token { name: "ops".into() }, Verb::Apply, &staging));
        assert!(!may(Some(&repo), &Principal::Token { name: "other".into() }, Verb::Apply, &staging));
        insta::assert_snapshot!(refusal(Some(&repo), &eve, Verb::Apply, &staging), @"@eve is not allowed to `/apply` in `staging`: `team:platform`, `token:ops` may.");
    }
}
