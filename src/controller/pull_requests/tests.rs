//! Tests of tracked pull requests and their plans.

use crate::controller::test_stage::TestStage;

#[tokio::test]
async fn a_pull_request_is_planned_once_for_each_of_its_heads() {
    let stage = TestStage::with_network().await;
    let daemon = stage.settled().await;
    let file = |size: u8| ("tf/network/main.tf".to_owned(), Some(format!("gateway.size = {size}\n")));
    stage.repository.commit("size", "lin", "Size", &[file(2)]).unwrap();
    let pull = stage.forge.open("lin", "size", "Size", "", false).unwrap();
    let plans = async || {
        stage.settle(&daemon).await;
        stage.forge.comments(pull.0).iter().filter(|(comment, _)| comment.body.starts_with("### Plan")).count()
    };
    assert_eq!(plans().await, 1);
    assert_eq!(plans().await, 1);
    stage.repository.commit("size", "lin", "Larger", &[file(3)]).unwrap();
    assert_eq!(plans().await, 2);
    // A recorded merge stays, whatever an older answer of the forge says.
    stage.forge.merge(pull.0, "lin").unwrap();
    stage.settle(&daemon).await;
    let tracked = daemon.source.tracked(pull).await.unwrap().unwrap();
    let mut older = tracked.clone();
    (older.pull.merged_as, older.pull.open) = (None, true);
    daemon.pull_requests.record(&older).await.unwrap();
    assert_eq!(daemon.source.tracked(pull).await.unwrap().unwrap().pull.merged_as, tracked.pull.merged_as);
}
