//! Computes the digest and the `protect` marks of actions of every kind.

use serde_json::Value;

use crate::model::{Action, Digest, InstanceId, ResourceChange};

/// Hashes the target, the arguments and the overwritten state of an action (R2.2).
pub fn action_digest(id: &InstanceId, r#do: &str, resources: &[ResourceChange]) -> Digest {
    let canonical: Vec<Value> = resources
        .iter()
        .map(|resource| {
            let ResourceChange { resource: address, r#type, change, reverts_drift: _, protected: _, fields } = resource;
            serde_json::json!({"resource": address, "type": r#type, "change": change, "fields": fields})
        })
        .collect();
    Digest::of_json(&serde_json::json!({"instance": id, "do": r#do, "resources": canonical}))
}

/// Returns whether an entry of `protect` covers an address: the address itself, an address inside the entry, or a match
/// of `*` for any text.
pub fn protects(entry: &str, address: &str) -> bool {
    fn fits(pattern: &[u8], text: &[u8]) -> bool {
        match pattern.split_first() {
            None => text.is_empty() || matches!(text[0], b'.' | b'['),
            Some((b'*', rest)) => (0..=text.len()).any(|at| fits(rest, &text[at..])),
            Some((c, rest)) => text.first() == Some(c) && fits(rest, &text[1..]),
        }
    }
    fits(entry.as_bytes(), address.as_bytes())
}

/// Returns whether a change affects a protected resource, by its present or former address.
pub fn is_protected(protect: &[String], resource: &ResourceChange) -> bool {
    let address = resource.resource.split(" (deposed ").next().unwrap_or_default();
    let moved = resource.fields.iter().find(|field| field.path.is_empty());
    let former = moved.and_then(|field| field.before.as_ref()).and_then(Value::as_str).unwrap_or_default();
    protect.iter().any(|entry| protects(entry, address) || (!former.is_empty() && protects(entry, former)))
}

/// The protections of one instance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Protection {
    /// The addresses that no run may destroy, replace, forget or move.
    pub addresses: Vec<String>,
    /// Whether no run may rewrite stored data.
    pub data: bool,
}

/// Marks protected resources by the present protections, regardless of the time at which the actions were planned.
pub fn mark_protected<'a>(protection: &Protection, actions: impl IntoIterator<Item = &'a mut Action>) {
    for action in actions {
        let is_data = protection.data && action.effect.rewrites_data;
        for resource in &mut action.resources {
            resource.protected = is_data || is_protected(&protection.addresses, resource);
        }
    }
}

/// Marks changes that revert drift (R3.7).
pub fn mark_drifted<'a>(drifted: &[String], actions: impl IntoIterator<Item = &'a mut Action>) {
    for resource in actions.into_iter().flat_map(|action| &mut action.resources) {
        resource.reverts_drift = drifted.contains(&resource.resource);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protect_covers_an_address_and_everything_inside() {
        assert!(protects("a.b", "a.b"));
        assert!(protects("a.b", "a.b[0]"));
        assert!(protects("module.nat", "module.nat.a.b"));
        assert!(protects("module.nat.*", "module.nat.a.b[\"x\"]"));
        assert!(!protects("a.b", "a.bc"));
        assert!(!protects("a.b", "module.x.a.b"));
    }
}
