//! Tests of commands in comments.

use crate::controller::test_stage::TestStage;

#[tokio::test]
async fn r6_10_a_refused_command_is_answered_recorded_and_changes_nothing() {
    let stage = TestStage::with_network().await;
    let daemon = stage.settled().await;
    stage
        .repository
        .commit("size", "lin", "Size", &[("tf/network/main.tf".into(), Some("gateway.size = 2\n".into()))])
        .unwrap();
    let pull = stage.forge.open("lin", "size", "Size", "", false).unwrap();
    stage.settle(&daemon).await;
    let answer = async |author: &str, text: &str| {
        stage.clock.forward(chrono::Duration::seconds(30));
        stage.forge.comment(pull.0, author, text);
        stage.settle(&daemon).await;
        stage.forge.comments(pull.0).last().map(|(comment, _)| comment.body.clone()).unwrap_or_default()
    };
    assert!(answer("mira", "/apply dev").await.contains("is not allowed to `/apply` in `dev`"));
    assert!(answer("lin", "/aply dev").await.contains("`/aply`"));
    assert_eq!(stage.world.effects(), ["create dev/network gateway"]);
    let (entries, _) = daemon.context.store.audit_entries().await.unwrap();
    assert!(entries.iter().any(|entry| entry.action == "refused" && entry.principal == "user:mira"));
}
