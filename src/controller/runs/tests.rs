//! Tests of runs, claims and cancellation.

use std::{collections::BTreeSet, sync::Arc};

use super::claims::RunClaims;
use crate::{
    controller::{
        context::Error,
        test_stage::{TestStage, local},
    },
    domain::{
        journal::{RunState, Status},
        message::Refusal,
    },
    model::{InstanceId, RunId},
};

#[test]
fn a_run_is_claimed_by_one_task_at_a_time() {
    let claims = Arc::new(RunClaims::default());
    let claim = claims.claim(RunId(1)).unwrap();
    assert!(claims.claim(RunId(1)).is_none() && claims.claim(RunId(2)).is_some());
    drop(claim);
    assert!(claims.claim(RunId(1)).is_some());
}

#[tokio::test]
async fn a_merge_makes_one_run_and_a_second_handling_makes_none() {
    let stage = TestStage::with_network().await;
    let daemon = stage.settled().await;
    stage.settle(&daemon).await;
    let run = daemon.context.store.run(RunId(1)).await.unwrap().unwrap();
    assert!(matches!(run.state, RunState::Ended { .. }), "{:?}", run.state);
    assert_eq!(run.instances.values().map(|instance| instance.status).collect::<Vec<_>>(), [Status::Applied]);
    assert!(daemon.context.store.run(RunId(2)).await.unwrap().is_none());
    assert_eq!(stage.world.effects(), ["create dev/network gateway"]);
}

#[tokio::test]
async fn a_cancel_without_a_run_is_refused() {
    let stage = TestStage::with_network().await;
    let daemon = stage.settled().await;
    let selected: BTreeSet<InstanceId> = BTreeSet::from(["dev/network".parse().unwrap()]);
    let refused = daemon.runs.cancel(&selected, &local()).await.unwrap_err();
    assert!(matches!(refused, Error::Refused(Refusal::NoRun)), "{refused}");
}
