//! Parses and evaluates selectors of instances, for comments, schedules and the command line.
//!
//! `staging` = `env:staging`; `staging/network` = `env:staging and component:network`; `kind:`, `label:tier=app`,
//! `changed`, `drifted`, `pending`; `and`, `or`, `not`, parentheses.
//! Decides which instances a selector matches. The caller decides what an empty selection means (R2.9).

use std::{collections::BTreeMap, fmt, str::FromStr};

use crate::model::{ComponentName, EnvironmentName, InstanceId};

/// The longest accepted selector, in bytes.
pub const SELECTOR_LENGTH_MAX: usize = 1000;
const DEPTH_MAX: usize = 16;

/// A condition on instances.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    /// Every instance.
    All,
    /// The instances of an environment.
    Environment(EnvironmentName),
    /// The instances of a component.
    Component(ComponentName),
    /// The instances of a kind.
    Kind(String),
    /// The instances with a label, and with its value if one is given.
    Label(String, Option<String>),
    /// The instances that the pull request changes.
    Changed,
    /// The drifted instances.
    Drifted,
    /// The pending instances.
    Pending,
    /// The instances that match both selectors.
    And(Box<Selector>, Box<Selector>),
    /// The instances that match either selector.
    Or(Box<Selector>, Box<Selector>),
    /// The instances that do not match the selector.
    Not(Box<Selector>),
}

/// The facts that a selector is evaluated on.
#[derive(Clone, Debug)]
pub struct Candidate<'a> {
    /// The environment and component.
    pub id: &'a InstanceId,
    /// The kind, such as `tofu`.
    pub kind: &'a str,
    /// The labels.
    pub labels: &'a BTreeMap<String, String>,
    /// Whether the pull request changes the instance.
    pub changed: bool,
    /// Whether the instance drifted.
    pub drifted: bool,
    /// Whether the instance is pending.
    pub pending: bool,
}

/// The error of a text that is not a selector.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{text}` is not a selector: {why}")]
pub struct Error {
    /// The text.
    pub text: String,
    /// The reason.
    pub why: String,
}

impl Selector {
    /// Returns whether the selector matches an instance.
    pub fn selects(&self, candidate: &Candidate<'_>) -> bool {
        match self {
            Self::All => true,
            Self::Environment(name) => candidate.id.environment == *name,
            Self::Component(name) => candidate.id.component == *name,
            Self::Kind(kind) => candidate.kind == kind,
            Self::Label(name, value) => {
                candidate.labels.get(name).is_some_and(|found| value.as_ref().is_none_or(|v| v == found))
            }
            Self::Changed => candidate.changed,
            Self::Drifted => candidate.drifted,
            Self::Pending => candidate.pending,
            Self::And(a, b) => a.selects(candidate) && b.selects(candidate),
            Self::Or(a, b) => a.selects(candidate) || b.selects(candidate),
            Self::Not(operand) => !operand.selects(candidate),
        }
    }
}

impl Selector {
    /// Returns the short form that users write, such as `staging/network`, if there is one.
    pub fn short(&self) -> String {
        match self {
            Self::Environment(name) => name.to_string(),
            Self::And(a, b) => match (&**a, &**b) {
                (Self::Environment(environment), Self::Component(component)) => format!("{environment}/{component}"),
                _ => self.to_string(),
            },
            _ => self.to_string(),
        }
    }
}

impl FromStr for Selector {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let fail = |why: &str| Error { text: text.chars().take(80).collect(), why: why.to_owned() };
        if text.len() > SELECTOR_LENGTH_MAX {
            return Err(fail("it is too long"));
        }
        let spaced = text.replace('(', " ( ").replace(')', " ) ");
        let words: Vec<&str> = spaced.split_whitespace().collect();
        if words.is_empty() {
            return Err(fail("it is empty"));
        }
        let mut reader = Reader { words: &words, at: 0, depth: 0 };
        let selector = reader.any().map_err(|why| fail(&why))?;
        match reader.peek() {
            None => Ok(selector),
            Some(token) => Err(fail(&format!("`{token}` stands after its end; join parts with `and` or `or`"))),
        }
    }
}

struct Reader<'w> {
    words: &'w [&'w str],
    at: usize,
    depth: usize,
}

impl Reader<'_> {
    fn peek(&self) -> Option<&str> {
        self.words.get(self.at).copied()
    }
    fn any(&mut self) -> Result<Selector, String> {
        let mut selector = self.all()?;
        while self.peek() == Some("or") {
            self.at += 1;
            selector = Selector::Or(Box::new(selector), Box::new(self.all()?));
        }
        Ok(selector)
    }
    fn all(&mut self) -> Result<Selector, String> {
        let mut selector = self.operand()?;
        while self.peek() == Some("and") {
            self.at += 1;
            selector = Selector::And(Box::new(selector), Box::new(self.operand()?));
        }
        Ok(selector)
    }
    fn operand(&mut self) -> Result<Selector, String> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err("it is nested too deep".into());
        }
        let token =
            self.peek().ok_or("it ends where an environment, a component or a condition is expected")?.to_owned();
        self.at += 1;
        let selector = match token.as_str() {
            "not" => Selector::Not(Box::new(self.operand()?)),
            "(" => {
                let inner = self.any()?;
                if self.peek() != Some(")") {
                    return Err("a `)` is missing".into());
                }
                self.at += 1;
                inner
            }
            ")" | "and" | "or" => return Err(format!("`{token}` stands where a condition is expected")),
            token => term(token)?,
        };
        self.depth -= 1;
        Ok(selector)
    }
}

fn term(token: &str) -> Result<Selector, String> {
    let name = |text: &str| text.parse().map_err(|e: crate::model::ids::Malformed| e.to_string());
    match token.split_once(':') {
        Some(("env", text)) => Ok(Selector::Environment(name(text)?)),
        Some(("component", text)) => {
            Ok(Selector::Component(text.parse().map_err(|e: crate::model::ids::Malformed| e.to_string())?))
        }
        Some(("kind", text)) => match text {
            "tofu" | "kubernetes" | "citus" | "secret" => Ok(Selector::Kind(text.to_owned())),
            _ => Err(format!("`{text}` is not a kind; expected `tofu`, `kubernetes`, `citus` or `secret`")),
        },
        Some(("label", text)) => Ok(match text.split_once('=') {
            Some((name, value)) => Selector::Label(name.to_owned(), Some(value.to_owned())),
            None => Selector::Label(text.to_owned(), None),
        }),
        Some((other, _)) => Err(format!("`{other}:` is not known; expected `env:`, `component:`, `kind:` or `label:`")),
        None => match token {
            "all" => Ok(Selector::All),
            "changed" => Ok(Selector::Changed),
            "drifted" => Ok(Selector::Drifted),
            "pending" => Ok(Selector::Pending),
            _ => match token.split_once('/') {
                Some((environment, component)) => Ok(Selector::And(
                    Box::new(Selector::Environment(name(environment)?)),
                    Box::new(Selector::Component(
                        component.parse().map_err(|e: crate::model::ids::Malformed| e.to_string())?,
                    )),
                )),
                None => Ok(Selector::Environment(name(token)?)),
            },
        },
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Environment(name) => write!(f, "env:{name}"),
            Self::Component(name) => write!(f, "component:{name}"),
            Self::Kind(kind) => write!(f, "kind:{kind}"),
            Self::Label(name, Some(value)) => write!(f, "label:{name}={value}"),
            Self::Label(name, None) => write!(f, "label:{name}"),
            Self::Changed => f.write_str("changed"),
            Self::Drifted => f.write_str("drifted"),
            Self::Pending => f.write_str("pending"),
            Self::And(a, b) => write!(f, "({a} and {b})"),
            Self::Or(a, b) => write!(f, "({a} or {b})"),
            Self::Not(operand) => write!(f, "not {operand}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selects(text: &str, id: &str) -> bool {
        let labels = BTreeMap::from([("tier".to_owned(), "app".to_owned())]);
        let id = id.parse().unwrap();
        let candidate =
            Candidate { id: &id, kind: "tofu", labels: &labels, changed: false, drifted: true, pending: false };
        text.parse::<Selector>().unwrap().selects(&candidate)
    }

    #[test]
    fn selects_matching_instances() {
        for (text, id, expected) in [
            ("staging", "staging/network", true),
            ("staging", "dev/network", false),
            ("staging/network", "staging/network", true),
            ("staging/network", "staging/dns", false),
            ("kind:tofu and not dev", "staging/network", true),
            ("label:tier=app", "dev/x", true),
            ("label:tier=db or (changed and dev)", "dev/x", false),
            ("drifted and (dev or staging)", "dev/x", true),
            ("all", "dev/x", true),
        ] {
            assert_eq!(selects(text, id), expected, "{text} of {id}");
        }
    }

    #[test]
    fn printing_and_reading_is_the_same() {
        let text = "not (env:dev or label:a=b) and kind:tofu";
        let selector: Selector = text.parse().unwrap();
        assert_eq!(selector.to_string().parse::<Selector>().unwrap(), selector);
    }

    #[test]
    fn reports_invalid_selectors() {
        let why = |text: &str| text.parse::<Selector>().unwrap_err().why;
        insta::assert_snapshot!(why(""), @"it is empty");
        insta::assert_snapshot!(why("staging dev"), @"`dev` stands after its end; join parts with `and` or `or`");
        insta::assert_snapshot!(why("(dev"), @"a `)` is missing");
        insta::assert_snapshot!(why("sort:x"), @"`sort:` is not known; expected `env:`, `component:`, `kind:` or `label:`");
        insta::assert_snapshot!(why("kind:tf"), @"`tf` is not a kind; expected `tofu`, `kubernetes`, `citus` or `secret`");
        assert!("(".repeat(500).parse::<Selector>().is_err());
    }
}
