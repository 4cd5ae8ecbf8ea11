//! Defines names and ids, which are validated when they are parsed.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

/// The longest name of an environment or component. The name becomes part of branch names, labels and paths.
pub const NAME_LENGTH_MAX: usize = 63;

/// The error of a text that is not a valid id.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
#[error("`{found}` is not {expected}")]
pub struct Malformed {
    /// The text that was found.
    pub found: String,
    /// A description of the expected format, with its article.
    pub expected: &'static str,
}

fn is_name(text: &str) -> bool {
    let edge = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let bytes = text.as_bytes();
    !bytes.is_empty()
        && bytes.len() <= NAME_LENGTH_MAX
        && edge(bytes[0])
        && edge(bytes[bytes.len() - 1])
        && bytes.iter().all(|c| edge(*c) || *c == b'-')
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Returns the name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl FromStr for $name {
            type Err = Malformed;
            fn from_str(text: &str) -> Result<Self, Malformed> {
                if is_name(text) {
                    Ok(Self(text.into()))
                } else {
                    Err(Malformed {
                        found: text.chars().take(80).collect(),
                        expected: "a name (lower-case letters, digits and `-`, 63 at most, no `-` at either end)",
                    })
                }
            }
        }
        impl TryFrom<String> for $name {
            type Error = Malformed;
            fn try_from(text: String) -> Result<Self, Malformed> {
                text.parse()
            }
        }
        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0.to_string()
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }
            fn inline_schema() -> bool {
                true
            }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({"type": "string", "format": "evenkeel-name"})
            }
        }
    };
}

name!(
    /// The name of an environment, such as `staging`.
    EnvironmentName
);
name!(
    /// The name of a component, such as `network`.
    ComponentName
);

/// A component in an environment: `staging/network`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InstanceId {
    /// The environment.
    pub environment: EnvironmentName,
    /// The component.
    pub component: ComponentName,
}

impl InstanceId {
    /// Names a component in an environment.
    pub fn new(environment: &EnvironmentName, component: &ComponentName) -> Self {
        Self { environment: environment.clone(), component: component.clone() }
    }
}

impl FromStr for InstanceId {
    type Err = Malformed;
    fn from_str(text: &str) -> Result<Self, Malformed> {
        let malformed = || Malformed { found: text.to_owned(), expected: "an instance (ENVIRONMENT/COMPONENT)" };
        let (environment, component) = text.split_once('/').ok_or_else(malformed)?;
        Ok(Self { environment: environment.parse()?, component: component.parse()? })
    }
}
impl TryFrom<String> for InstanceId {
    type Error = Malformed;
    fn try_from(text: String) -> Result<Self, Malformed> {
        text.parse()
    }
}
impl From<InstanceId> for String {
    fn from(id: InstanceId) -> String {
        id.to_string()
    }
}
impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}/{}", self.environment, self.component))
    }
}
impl fmt::Debug for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A git commit id, 40 lower-case hex digits.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Revision(Arc<str>);

impl Revision {
    /// Returns the full id.
    pub fn as_str(&self) -> &str {
        &self.0
    }
    /// Returns the first seven digits, for display.
    pub fn short(&self) -> &str {
        &self.0[..7]
    }
}
impl FromStr for Revision {
    type Err = Malformed;
    fn from_str(text: &str) -> Result<Self, Malformed> {
        if text.len() == 40 && text.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f')) {
            Ok(Self(text.into()))
        } else {
            Err(Malformed { found: text.chars().take(80).collect(), expected: "a commit id (40 hex digits)" })
        }
    }
}
impl TryFrom<String> for Revision {
    type Error = Malformed;
    fn try_from(text: String) -> Result<Self, Malformed> {
        text.parse()
    }
}
impl From<Revision> for String {
    fn from(revision: Revision) -> String {
        revision.0.to_string()
    }
}
impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl fmt::Debug for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.short())
    }
}

/// A run, numbered by the store from 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunId(pub i64);

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The number of a pull request.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PullNumber(pub u64);

impl fmt::Display for PullNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}
