//! Defines the inventory of an instance in its cluster, with the last applied state of each object.
//!
//! *Invariant:* an object is in the inventory before it is created, and is removed after its deletion completes. An
//! interruption at any point neither loses an object that Evenkeel created nor deletes one that it did not create.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{object::Key, rendered::Mark};

/// An object of the inventory.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct InventoryEntry {
    /// The uid, once known.
    pub uid: Option<Box<str>>,
    /// The mark of the object as applied last.
    pub applied: Option<Mark>,
    /// The mark of the live object after the last apply: all owned fields, with the changes of the cluster in them.
    pub settled: Option<Mark>,
}

/// All objects that an instance owns.
pub(super) type Inventory = BTreeMap<Key, InventoryEntry>;

/// The uid of an object and its marks (applied, settled).
type StoredEntry = (Option<Box<str>>, Option<String>, Option<String>);

/// The stored form: objects by name.
#[derive(Serialize, Deserialize, Default)]
struct StoredInventory {
    objects: BTreeMap<String, StoredEntry>,
}

fn mark(text: Option<String>) -> Option<Mark> {
    let mut mark = Mark::default();
    hex::decode_to_slice(text?, &mut mark).ok()?;
    Some(mark)
}

pub(super) fn read(text: &str) -> Result<Inventory, String> {
    let stored: StoredInventory = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let entry = |(uid, applied, settled)| InventoryEntry { uid, applied: mark(applied), settled: mark(settled) };
    stored.objects.into_iter().map(|(name, stored)| Ok((name.parse()?, entry(stored)))).collect()
}

pub(super) fn written(inventory: &Inventory) -> String {
    let objects = inventory
        .iter()
        .map(|(key, entry)| {
            (key.to_string(), (entry.uid.clone(), entry.applied.map(hex::encode), entry.settled.map(hex::encode)))
        })
        .collect();
    serde_json::to_string(&StoredInventory { objects }).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inventory_is_read_as_it_is_written() {
        let entry = InventoryEntry { uid: Some("u-1".into()), applied: Some([1; 16]), settled: None };
        let inventory: Inventory =
            [("ConfigMap/a/b".parse().unwrap(), entry), ("Namespace/a".parse().unwrap(), InventoryEntry::default())]
                .into();
        assert_eq!(read(&written(&inventory)).unwrap(), inventory);
        assert!(read("{").is_err());
    }
}
