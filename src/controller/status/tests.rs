//! Tests of verdicts and explanations.

use crate::{
    controller::test_stage::TestStage,
    domain::message::explanation::{DriftExplanation, Explanation},
    model::Verdict,
};

#[tokio::test]
async fn a_verdict_is_explained_by_the_fact_that_made_it() {
    let stage = TestStage::with_network().await;
    let daemon = stage.settled().await;
    let explain = async || {
        let status = daemon.status.read().await.unwrap().instances.remove(0);
        (status.verdict, daemon.status.explain(&status).await.unwrap())
    };
    assert_eq!(explain().await, (Verdict::InSync, Explanation::InSync));
    stage.world.meddle("dev/network", "gateway", "size", Some("9"));
    daemon.context.queue.enqueue(
        crate::controller::ReconcileRequest::Instance("dev/network".parse().unwrap()),
        crate::controller::Reason::DriftCheckDue,
    );
    stage.settle(&daemon).await;
    let (verdict, explanation) = explain().await;
    assert_eq!(verdict, Verdict::Drifted);
    assert!(
        matches!(explanation, Explanation::Drifted(DriftExplanation::Proposed { adopts: false, .. })),
        "{explanation:?}"
    );
}
