//! Tests of the head of the state repo.

use crate::controller::test_stage::{DEV, TestStage};

#[tokio::test]
async fn the_head_stays_while_the_repository_does_not_answer() {
    let stage = TestStage::with_network().await;
    let daemon = stage.settled().await;
    let head = daemon.source.head().unwrap();
    stage.repository.put_out_of_reach(Some("no route to host".into()));
    stage.commit(&[("tf/network/main.tf", "gateway.size = 2\n")]);
    assert!(daemon.source.refresh().await.is_err());
    assert_eq!(daemon.source.head().unwrap().revision, head.revision);
    assert!(daemon.source.problem().unwrap().contains("no route to host"));
    stage.repository.put_out_of_reach(None);
    daemon.source.refresh().await.unwrap();
    assert_ne!(daemon.source.head().unwrap().revision, head.revision);
    assert_eq!(daemon.source.problem(), None);
}

#[tokio::test]
async fn r1_9_a_file_that_does_not_parse_hides_no_other_file_and_removes_nothing() {
    let stage = TestStage::with_network().await;
    let daemon = stage.settled().await;
    stage.commit(&[("state-repo/environments/dev.yaml", &format!("{DEV}---\n{{")), ("state-repo/notes.yaml", "- x")]);
    daemon.source.refresh().await.unwrap();
    let head = daemon.source.head().unwrap();
    assert!(!head.desired.complete && !head.desired.problems.is_empty());
    assert!(head.instance(&"dev/network".parse().unwrap()).is_some());
    assert!(daemon.merges.planner.orphans(&head).await.unwrap().is_empty());
}
