//! Computes content hashes, and the HMACs by which secrets enter them.
//!
//! *Invariant:* an unsalted hash of a secret exists nowhere (R2.3); a secret enters a digest only through [`Seal`].

use std::{fmt, str::FromStr};

use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretSlice};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::ids::Malformed;

/// A SHA-256, written as 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

impl Digest {
    /// Hashes a JSON value in its canonical form: sorted keys, no spaces.
    pub fn of_json(value: &serde_json::Value) -> Self {
        Digester::new("json").field(value.to_string().as_bytes()).finish()
    }
    /// Returns the first six digits, the form that users write in `/apply staging 9c1e0f`.
    pub fn short(&self) -> String {
        hex::encode(&self.0[..3])
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}
impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}
impl FromStr for Digest {
    type Err = Malformed;
    fn from_str(text: &str) -> Result<Self, Malformed> {
        let malformed = || Malformed { found: text.chars().take(80).collect(), expected: "a digest (64 hex digits)" };
        let digits = text.strip_prefix("sha256:").unwrap_or(text);
        let mut bytes = [0; 32];
        hex::decode_to_slice(digits, &mut bytes).map_err(|_| malformed())?;
        Ok(Self(bytes))
    }
}
impl TryFrom<String> for Digest {
    type Error = Malformed;
    fn try_from(text: String) -> Result<Self, Malformed> {
        text.parse()
    }
}
impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.to_string()
    }
}
impl schemars::JsonSchema for Digest {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Digest".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "string", "format": "evenkeel-digest"})
    }
}

/// Builds a digest from fields. The length of a field precedes it, so that different sequences of fields never collide.
pub struct Digester(Sha256);

impl Digester {
    /// Starts a digest for one kind of content. Equal fields of different kinds have different digests.
    pub fn new(sort: &str) -> Self {
        Self(Sha256::new()).field(sort.as_bytes())
    }
    /// Adds one field.
    #[must_use]
    pub fn field(mut self, bytes: &[u8]) -> Self {
        self.0.update((bytes.len() as u64).to_be_bytes());
        self.0.update(bytes);
        self
    }
    /// Ends the digest.
    pub fn finish(self) -> Digest {
        Digest(self.0.finalize().into())
    }
}

/// The HMAC key for secret values in digests. The key never leaves the store.
pub struct Seal(SecretSlice<u8>);

impl Seal {
    /// Creates the seal from the key in the store.
    pub fn new(key: Vec<u8>) -> Self {
        Self(key.into())
    }
    /// Returns the HMAC-SHA-256 of a value's canonical JSON, as hex.
    pub fn seal(&self, value: &serde_json::Value) -> String {
        hex::encode(self.hmac(value.to_string().as_bytes()))
    }
    /// Returns the first half of the HMAC-SHA-256 of bytes. Half the length is enough to distinguish contents.
    pub fn mark(&self, bytes: &[u8]) -> [u8; 16] {
        let mut mark = [0; 16];
        mark.copy_from_slice(&self.hmac(bytes)[..16]);
        mark
    }
    fn hmac(&self, bytes: &[u8]) -> [u8; 32] {
        let mut mac = <Hmac<Sha256>>::new_from_slice(self.0.expose_secret()).expect("HMAC takes a key of any length");
        mac.update(bytes);
        mac.finalize().into_bytes().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_do_not_run_together() {
        let first = Digester::new("x").field(b"ab").field(b"c").finish();
        let second = Digester::new("x").field(b"a").field(b"bc").finish();
        assert_ne!(first, second);
        assert_eq!(format!("sha256:{first}").parse::<Digest>(), Ok(first));
    }

    #[test]
    fn r2_3_a_seal_depends_on_its_key() {
        let value = serde_json::json!("s3cret");
        assert_ne!(Seal::new(vec![1]).seal(&value), Seal::new(vec![2]).seal(&value));
        assert_eq!(Seal::new(vec![1]).seal(&value), Seal::new(vec![1]).seal(&value));
    }
}
