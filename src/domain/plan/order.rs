//! Orders instances by their dependencies, and by name within a step.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::InstanceId;

/// Instances in execution order, each with its step, counted from 1. An instance comes after all of its dependencies.
/// Instances of one step may run concurrently.
pub type Order = Vec<(InstanceId, usize)>;

/// Orders instances. Edges to other instances are ignored. Members of dependency cycles, which loading refuses, come
/// last.
pub fn order(edges: &BTreeMap<InstanceId, BTreeSet<InstanceId>>) -> Order {
    let mut steps: BTreeMap<&InstanceId, usize> = BTreeMap::new();
    let mut remaining: BTreeMap<&InstanceId, usize> = edges
        .iter()
        .map(|(id, upstreams)| (id, upstreams.iter().filter(|up| edges.contains_key(*up)).count()))
        .collect();
    let mut dependents: BTreeMap<&InstanceId, Vec<&InstanceId>> = BTreeMap::new();
    for (id, upstreams) in edges {
        for upstream in upstreams.iter().filter(|up| edges.contains_key(*up)) {
            dependents.entry(upstream).or_default().push(id);
        }
    }
    let mut ready: Vec<&InstanceId> = remaining.iter().filter(|(_, count)| **count == 0).map(|(id, _)| *id).collect();
    let mut step = 1;
    while !ready.is_empty() {
        let mut next = vec![];
        for id in ready {
            steps.insert(id, step);
            for dependent in dependents.get(id).into_iter().flatten() {
                let count = remaining.get_mut(dependent).expect("every dependent is among the edges");
                *count -= 1;
                if *count == 0 {
                    next.push(*dependent);
                }
            }
        }
        ready = next;
        step += 1;
    }
    let mut ordered: Order = edges.keys().map(|id| (id.clone(), steps.get(id).copied().unwrap_or(step))).collect();
    ordered.sort_by(|a, b| (a.1, &a.0).cmp(&(b.1, &b.0)));
    ordered
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(number: usize) -> InstanceId {
        format!("dev/c{number:03}").parse().unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
        #[test]
        fn every_instance_comes_after_its_dependencies(pairs in proptest::collection::vec((0_usize..40, 0_usize..40), 0..120)) {
            let mut edges: BTreeMap<InstanceId, BTreeSet<InstanceId>> = (0..40).map(|n| (id(n), BTreeSet::new())).collect();
            for (a, b) in pairs {
                if a != b {
                    edges.get_mut(&id(a.max(b))).unwrap().insert(id(a.min(b)));
                }
            }
            let ordered = order(&edges);
            prop_assert_eq!(ordered.len(), edges.len());
            let position: BTreeMap<_, _> = ordered.iter().enumerate().map(|(at, (id, step))| (id.clone(), (at, *step))).collect();
            for (id, upstreams) in &edges {
                for upstream in upstreams {
                    prop_assert!(position[upstream].0 < position[id].0);
                    prop_assert!(position[upstream].1 < position[id].1);
                }
            }
        }
    }
}
