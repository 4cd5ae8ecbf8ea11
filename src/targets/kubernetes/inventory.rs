//! What an instance holds in its cluster, and how each object was when it was applied.
//!
//! *Guarantees:* an object is in the inventory before it is made, and leaves it after it is gone: whatever is cut off in
//! between, nothing that we made is forgotten, and nothing that we did not make is deleted.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{Kubernetes, object::Key, render::Mark};
use crate::{
    model::InstanceId,
    ports::{TargetError, TargetErrorKind},
};

/// An object that is held.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Held {
    /// Its uid, once that is known.
    pub uid: Option<Box<str>>,
    /// The mark of what was applied last.
    pub applied: Option<Mark>,
    /// The mark of what that came to: what we own of it, with everything that the cluster made of it.
    pub settled: Option<Mark>,
}

/// Everything that an instance holds.
pub(super) type Inventory = BTreeMap<Key, Held>;

/// The uid of an object, and its marks: applied, settled.
type KeptObject = (Option<Box<str>>, Option<String>, Option<String>);

/// As it is kept: by the name of the object.
#[derive(Serialize, Deserialize, Default)]
struct Kept {
    objects: BTreeMap<String, KeptObject>,
}

fn mark(text: Option<String>) -> Option<Mark> {
    let mut mark = Mark::default();
    hex::decode_to_slice(text?, &mut mark).ok()?;
    Some(mark)
}

fn read(text: &str) -> Result<Inventory, String> {
    let kept: Kept = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let held = |(uid, applied, settled)| Held { uid, applied: mark(applied), settled: mark(settled) };
    kept.objects.into_iter().map(|(name, kept)| Ok((name.parse()?, held(kept)))).collect()
}

fn written(inventory: &Inventory) -> String {
    let objects = inventory
        .iter()
        .map(|(key, held)| {
            (key.to_string(), (held.uid.clone(), held.applied.map(hex::encode), held.settled.map(hex::encode)))
        })
        .collect();
    serde_json::to_string(&Kept { objects }).unwrap_or_default()
}

impl Kubernetes {
    /// What an instance holds; nothing where that is not known.
    pub(super) async fn inventory(&self, id: &InstanceId) -> Result<Option<Arc<Inventory>>, TargetError> {
        if let Some(known) = self.inventories.lock().get(id) {
            return Ok(Some(Arc::clone(known)));
        }
        let Some(text) = self.keeper.kept(id).await? else { return Ok(None) };
        let inventory = read(&text).map_err(|why| {
            TargetError::new(TargetErrorKind::Store, format!("the inventory of `{id}` can't be read: {why}"))
        })?;
        let inventory = Arc::new(inventory);
        self.inventories.lock().insert(id.clone(), Arc::clone(&inventory));
        Ok(Some(inventory))
    }

    /// Keeps what an instance holds, durably.
    pub(super) async fn keep(&self, id: &InstanceId, inventory: Inventory) -> Result<(), TargetError> {
        let known = self.inventories.lock().get(id).cloned();
        if known.is_some_and(|known| *known == inventory) {
            return Ok(());
        }
        self.keeper.keep(id, Some(&written(&inventory))).await?;
        self.inventories.lock().insert(id.clone(), Arc::new(inventory));
        Ok(())
    }

    /// Moves what is kept to another name; nothing happens where that was done before.
    pub(super) async fn rename_inventory(&self, from: &InstanceId, to: &InstanceId) -> Result<(), TargetError> {
        if let Some(inventory) = self.inventory(from).await? {
            self.keep(to, (*inventory).clone()).await?;
            self.forget_inventory(from).await?;
        }
        Ok(())
    }

    /// Lets go of what is kept; the objects stay.
    pub(super) async fn forget_inventory(&self, id: &InstanceId) -> Result<(), TargetError> {
        self.keeper.keep(id, None).await?;
        self.inventories.lock().remove(id);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inventory_is_read_as_it_is_written() {
        let held = Held { uid: Some("u-1".into()), applied: Some([1; 16]), settled: None };
        let inventory: Inventory =
            [("ConfigMap/a/b".parse().unwrap(), held), ("Namespace/a".parse().unwrap(), Held::default())].into();
        assert_eq!(read(&written(&inventory)).unwrap(), inventory);
        assert!(read("{").is_err());
    }
}
