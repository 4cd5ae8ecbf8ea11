//! Tests of observations, identities and jobs.

use serde_json::json;

use super::*;
use crate::{
    controller::test_stage::TestStage,
    model::InstanceId,
    ports::{Observation, TargetErrorKind},
};

fn seen(identity: &str) -> Observation {
    Observation { identity: Some(identity.into()), ..Observation::default() }
}

fn kind(result: Result<(), Error>) -> Option<TargetErrorKind> {
    match result {
        Ok(()) => None,
        Err(Error::Target(error)) => Some(error.kind),
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test]
async fn r1_8_a_state_belongs_to_one_instance_and_another_state_has_to_be_confirmed() {
    let stage = TestStage::with_network().await;
    let daemon = stage.settled().await;
    let (network, twin): (InstanceId, InstanceId) = ("dev/network".parse().unwrap(), "dev/twin".parse().unwrap());
    let observer = &daemon.observer;
    let lineage = daemon.context.target.observe(&observer_job(&daemon).await).await.unwrap().identity.unwrap();
    assert_eq!(kind(observer.identify(&network, &seen(&lineage), true).await), None);
    assert_eq!(kind(observer.identify(&twin, &seen(&lineage), true).await), Some(TargetErrorKind::IdentityShared));
    assert_eq!(kind(observer.identify(&network, &seen("other"), true).await), Some(TargetErrorKind::Identity));
    assert!(observer.confirm_identity(&network).await.unwrap());
    assert_eq!(kind(observer.identify(&network, &seen("other"), true).await), None);
    assert!(!observer.confirm_identity(&network).await.unwrap());
}

async fn observer_job(daemon: &crate::controller::Daemon) -> Job {
    let id: InstanceId = "dev/network".parse().unwrap();
    let record = daemon.context.store.applied(&id).await.unwrap().unwrap();
    daemon.observer.applied_job(&id, &record, &daemon.source.head().unwrap()).await.unwrap()
}

#[tokio::test]
async fn a_job_has_the_declaration_with_its_inputs_and_leaves_fixed_fields_alone() {
    let stage = TestStage::with_network().await;
    let daemon = stage.settled().await;
    let job = observer_job(&daemon).await;
    assert_eq!((job.target.kind.as_str(), &job.target.declared["root"]), ("tofu", &json!("tf/network")));
    assert!(!job.destroy && !job.refresh && job.owners.is_none());
}
