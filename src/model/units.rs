//! Parses durations, sizes and percentages in their text forms: `1h30m`, `64MiB`, `10%`.

use std::{fmt, str::FromStr, time};

use serde::{Deserialize, Serialize};

use super::ids::Malformed;

macro_rules! text_unit {
    ($name:ident, $format:literal) => {
        impl TryFrom<String> for $name {
            type Error = Malformed;
            fn try_from(text: String) -> Result<Self, Malformed> {
                text.parse()
            }
        }
        impl From<$name> for String {
            fn from(unit: $name) -> String {
                unit.to_string()
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
                schemars::json_schema!({"type": "string", "format": $format})
            }
        }
    };
}

/// A length of time in whole seconds, at least one: `90d`, `1h30m`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Duration(u64);
text_unit!(Duration, "evenkeel-duration");

const UNITS: [(&str, u64); 5] = [("w", 604_800), ("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)];

impl Duration {
    /// Creates a duration from seconds.
    pub const fn seconds(seconds: u64) -> Self {
        Self(seconds)
    }
    /// Returns the duration as a standard duration, for timers.
    pub const fn std(self) -> time::Duration {
        time::Duration::from_secs(self.0)
    }
    /// Returns the duration in whole seconds.
    pub const fn as_seconds(self) -> u64 {
        self.0
    }
}

impl FromStr for Duration {
    type Err = Malformed;
    fn from_str(text: &str) -> Result<Self, Malformed> {
        let malformed = || Malformed {
            found: text.chars().take(80).collect(),
            expected: "a duration (such as `90d`, `1h30m` or `30s`, of one second to ten years)",
        };
        let mut rest = text;
        let mut total: u64 = 0;
        let mut below = u64::MAX;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(malformed)?;
            let count: u64 = rest[..digits].parse().map_err(|_| malformed())?;
            rest = &rest[digits..];
            let (name, seconds) = UNITS.iter().find(|(name, _)| rest.starts_with(name)).ok_or_else(malformed)?;
            if *seconds >= below {
                return Err(malformed());
            }
            below = *seconds;
            total = count.checked_mul(*seconds).and_then(|s| total.checked_add(s)).ok_or_else(malformed)?;
            rest = &rest[name.len()..];
        }
        // Ten years bounds every timer, so that no arithmetic on instants can overflow.
        if (1..=315_576_000).contains(&total) { Ok(Self(total)) } else { Err(malformed()) }
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0;
        for (name, seconds) in UNITS.iter().skip(1) {
            if rest >= *seconds {
                write!(f, "{}{name}", rest / seconds)?;
                rest %= seconds;
            }
        }
        Ok(())
    }
}

/// A number of bytes: `64MiB`, `200GiB`, `10GB`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Size(pub u64);
text_unit!(Size, "evenkeel-size");

const SIZES: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
];

impl FromStr for Size {
    type Err = Malformed;
    fn from_str(text: &str) -> Result<Self, Malformed> {
        let malformed =
            || Malformed { found: text.chars().take(80).collect(), expected: "a size (such as `64MiB` or `10GB`)" };
        let (name, factor) = SIZES.iter().find(|(name, _)| text.ends_with(name)).ok_or_else(malformed)?;
        let count: u64 = text[..text.len() - name.len()].parse().map_err(|_| malformed())?;
        count.checked_mul(*factor).map(Self).ok_or_else(malformed)
    }
}
impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, factor) =
            SIZES.iter().find(|(_, factor)| self.0 >= *factor && self.0.is_multiple_of(*factor)).unwrap_or(&("B", 1));
        write!(f, "{}{name}", self.0 / factor)
    }
}

/// A percentage from 0 to 1000: `10%`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Percent(pub u32);
text_unit!(Percent, "evenkeel-percent");

impl FromStr for Percent {
    type Err = Malformed;
    fn from_str(text: &str) -> Result<Self, Malformed> {
        text.strip_suffix('%')
            .and_then(|digits| digits.parse().ok())
            .filter(|percent| *percent <= 1000)
            .map(Self)
            .ok_or_else(|| Malformed {
                found: text.chars().take(80).collect(),
                expected: "a percentage (such as `10%`)",
            })
    }
}
impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_and_print() {
        for text in ["90d", "1h30m", "30s", "1d2h3m4s"] {
            assert_eq!(text.parse::<Duration>().map(|d| d.to_string()), Ok(text.to_owned()));
        }
        for text in ["", "5", "s", "0s", "1m1h", "-1s", "1.5h", "99999999999999999999s", "100000d"] {
            assert!(text.parse::<Duration>().is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_and_percentages_read_and_print() {
        assert_eq!("64MiB".parse::<Size>(), Ok(Size(64 << 20)));
        assert_eq!(Size(64 << 20).to_string(), "64MiB");
        assert!("64".parse::<Size>().is_err());
        assert_eq!("10%".parse::<Percent>(), Ok(Percent(10)));
        assert!("ten".parse::<Percent>().is_err());
    }
}
