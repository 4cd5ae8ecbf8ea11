//! Tests of orphans and first contacts.

use crate::controller::test_stage::TestStage;

#[tokio::test]
async fn r1_9_an_instance_is_an_orphan_once_every_file_parses_and_none_declares_it() {
    let stage = TestStage::with_network().await;
    let daemon = stage.settled().await;
    let planner = &daemon.merges.planner;
    let orphans = async || {
        daemon.source.refresh().await.unwrap();
        let found = planner.orphans(&daemon.source.head().unwrap()).await.unwrap();
        found.keys().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert!(orphans().await.is_empty());
    let gone =
        [("state-repo/components/network.yaml".to_owned(), None), ("state-repo/x.yaml".into(), Some("{".into()))];
    stage.repository.commit("main", "lin", "Remove", &gone).unwrap();
    assert!(orphans().await.is_empty());
    stage.repository.commit("main", "lin", "Mend", &[("state-repo/x.yaml".into(), None)]).unwrap();
    assert_eq!(orphans().await, ["dev/network"]);
}

#[tokio::test]
async fn r1_6_an_instance_that_was_never_begun_here_is_a_first_contact_where_its_target_holds_something() {
    let stage = TestStage::with_network().await;
    let daemon = stage.settled().await;
    let planner = &daemon.merges.planner;
    let (known, unknown) = ("dev/network".parse().unwrap(), "dev/other".parse().unwrap());
    assert!(!planner.is_first_contact(&known, true).await.unwrap());
    assert!(planner.is_first_contact(&unknown, true).await.unwrap());
    assert!(!planner.is_first_contact(&unknown, false).await.unwrap());
}
