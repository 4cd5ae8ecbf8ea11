//! Tests of the outbox.

use crate::controller::test_stage::TestStage;

#[tokio::test]
async fn r7_2_a_comment_waits_for_the_forge_and_is_written_once() {
    let stage = TestStage::with_network().await;
    let daemon = stage.settled().await;
    stage.repository.commit("side", "lin", "Side", &[("x".into(), Some("y".into()))]).unwrap();
    let pull = stage.forge.open("lin", "side", "Side", "", false).unwrap();
    stage.forge.put_out_of_reach(Some("no route to host".into()));
    daemon.notifier.comment_on(pull, "topic", "first", None).await.unwrap();
    daemon.notifier.deliver().await.unwrap();
    stage.forge.put_out_of_reach(None);
    assert_eq!(stage.forge.comments(pull.0).len(), 0);
    // A newer text replaces the one that waits.
    daemon.notifier.comment_on(pull, "topic", "second", None).await.unwrap();
    stage.clock.forward(chrono::Duration::minutes(10));
    daemon.notifier.deliver().await.unwrap();
    daemon.notifier.deliver().await.unwrap();
    let comments = stage.forge.comments(pull.0);
    assert_eq!(comments.len(), 1);
    assert!(comments[0].0.body.starts_with("second"), "{}", comments[0].0.body);
}
