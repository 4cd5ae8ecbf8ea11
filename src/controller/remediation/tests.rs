//! Tests of proposals.

use std::collections::BTreeSet;

use crate::{
    controller::{
        Reason, ReconcileRequest,
        context::Error,
        test_stage::{TestStage, local},
    },
    domain::{declaration::schema::Verb, message::Refusal},
    model::InstanceId,
};

#[tokio::test]
async fn r4_4_drift_is_proposed_once_and_the_proposal_closes_when_the_drift_ends() {
    let stage = TestStage::with_network().await;
    let daemon = stage.settled().await;
    let id: InstanceId = "dev/network".parse().unwrap();
    let check = async || {
        daemon.context.queue.enqueue(ReconcileRequest::Instance(id.clone()), Reason::DriftCheckDue);
        stage.settle(&daemon).await;
        stage.forge.pulls().iter().map(|pull| pull.open).collect::<Vec<_>>()
    };
    let selected = BTreeSet::from([id.clone()]);
    let head = daemon.source.head().unwrap();
    let none = daemon.remediations.set_direction(&head, &selected, Verb::Revert, &local()).await.unwrap_err();
    assert!(matches!(none, Error::Refused(Refusal::NoProposal(_))), "{none}");
    stage.world.meddle("dev/network", "gateway", "size", Some("9"));
    assert_eq!(check().await, [true]);
    assert_eq!(check().await, [true]);
    stage.world.meddle("dev/network", "gateway", "size", Some("1"));
    assert_eq!(check().await, [false]);
}
