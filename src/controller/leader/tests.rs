//! Tests of the lease.

use crate::controller::test_stage::TestStage;

#[tokio::test]
async fn r7_3_a_second_daemon_takes_an_expired_lease_and_the_first_one_stops() {
    let stage = TestStage::new().await;
    let (first, second) = (stage.daemon("first"), stage.daemon("second"));
    first.leader.take_lease().await.unwrap();
    // The first daemon renews nothing while the second one watches for the length of a lease.
    assert!(second.leader.wait_for_lease(|| false).await.unwrap());
    let refused = first.leader.context.store.renew(crate::ports::Clock::now(&*stage.clock)).await.unwrap_err();
    first.leader.check(&refused);
    assert!(first.leader.is_fenced() && first.context.stopping());
    assert!(!second.leader.is_fenced() && !second.context.stopping());
}

#[tokio::test]
async fn a_daemon_that_is_stopped_does_not_take_the_lease() {
    let stage = TestStage::new().await;
    let (first, second) = (stage.daemon("first"), stage.daemon("second"));
    first.leader.take_lease().await.unwrap();
    second.context.stop();
    assert!(!second.leader.wait_for_lease(|| true).await.unwrap());
}
