//! Defines the declared target of an instance, independent of its kind.

use std::fmt;

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error, MapAccess, Visitor},
    ser::SerializeMap,
};
use serde_json::Value;

/// The declared target of an instance: the name of its kind, and the declaration in the kind's normalized form.
///
/// Serialized as one field, named after the kind: `{"tofu": {…}}`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TargetSpec {
    /// The name of the kind, such as `tofu`.
    pub kind: String,
    /// The declaration.
    pub declared: Value,
}

impl Serialize for TargetSpec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(1))?;
        map.serialize_entry(&self.kind, &self.declared)?;
        map.end()
    }
}

impl<'de> Deserialize<'de> for TargetSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneField;
        impl<'de> Visitor<'de> for OneField {
            type Value = TargetSpec;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("one field that names a kind of target")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<TargetSpec, A::Error> {
                let mut found: Option<TargetSpec> = None;
                while let Some((kind, declared)) = map.next_entry::<String, Value>()? {
                    if declared.is_null() {
                        continue;
                    }
                    if let Some(other) = found.replace(TargetSpec { kind, declared }) {
                        return Err(A::Error::custom(format!("a second kind of target beside `{}`", other.kind)));
                    }
                }
                found.ok_or_else(|| A::Error::custom("no kind of target"))
            }
        }
        deserializer.deserialize_map(OneField)
    }
}
