//! Masks secrets in the fields of Kubernetes objects.
//!
//! *Invariant:* a value of a Secret is never shown, logged or stored in plaintext. This covers `data`, `stringData`,
//! and the copy in the annotation of `kubectl apply`.

use serde_json::{Map, Value};

use super::{fields::escaped, object::text};
use crate::model::{Field, Redactor, Seal, change::MASKED};

/// The annotation in which `kubectl apply` stores the applied object, including secrets.
pub(super) const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Masks the fields of an object that hold secrets.
pub(super) struct Masks<'m> {
    /// The key for the digests of masked values.
    pub(super) seal: &'m Seal,
    /// The texts that are known to be secrets.
    pub(super) redactor: &'m Redactor,
}

impl Masks<'_> {
    /// Registers the secrets of an object with the redactor.
    pub(super) fn learn(&self, object: &Value) {
        if object["kind"] != "Secret" {
            return;
        }
        let last_applied = text(object, "/metadata/annotations/kubectl.kubernetes.io~1last-applied-configuration");
        if let Some(Ok(applied)) = last_applied.map(serde_json::from_str::<Value>) {
            self.learn(&applied);
        }
        self.redactor.learn(&object["stringData"]);
        self.redactor.learn(&object["data"]);
        for value in object["data"].as_object().into_iter().flat_map(Map::values) {
            use base64::Engine as _;
            let plain = value.as_str().and_then(|text| base64::engine::general_purpose::STANDARD.decode(text).ok());
            if let Some(plain) = plain.and_then(|plain| String::from_utf8(plain).ok()) {
                self.redactor.learn(&Value::String(plain));
            }
        }
    }

    /// Returns a difference as a field. The values of a Secret, of kubectl's annotation, and texts known as secrets are
    /// masked; their sealed values still tell two of them apart (R2.3).
    pub(super) fn field(&self, is_secret: bool, pointer: &str, before: Option<&Value>, after: Option<&Value>) -> Field {
        let of_secret = is_secret && ["/data", "/stringData"].iter().any(|part| pointer.starts_with(part));
        let kept_by_kubectl = pointer.ends_with(&escaped(LAST_APPLIED))
            || [before, after].into_iter().flatten().any(|value| value.get(LAST_APPLIED).is_some());
        let masked = of_secret
            || kept_by_kubectl
            || [before, after].into_iter().flatten().any(|value| self.redactor.touches(value));
        let shown = |value: &Value| if masked { MASKED.into() } else { value.clone() };
        let sealed = |value: Option<&Value>| self.seal.seal(value.unwrap_or(&Value::Null));
        Field {
            path: pointer.to_owned(),
            before: before.map(shown),
            after: after.map(shown),
            sensitive: masked,
            unknown: false,
            sealed: masked.then(|| (sealed(before), sealed(after))),
        }
    }
}
