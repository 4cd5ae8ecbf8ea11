//! Tests of the permissions and approvals.

use std::collections::BTreeSet;

use crate::{
    controller::{context::Error, test_stage::TestStage},
    domain::{declaration::schema::Verb, message::Refusal},
};

#[tokio::test]
async fn r3_6_a_principal_may_what_the_branch_permits_and_nobody_may_anything_without_it() {
    let stage = TestStage::with_network().await;
    let daemon = stage.settled().await;
    let dev = BTreeSet::from(["dev".parse().unwrap()]);
    let authorization = &daemon.status.authorization;
    let check = async |login: &str, verb: Verb| {
        let head = daemon.source.head().unwrap();
        let who = authorization.principal_of(&head, login).await.unwrap();
        match authorization.allow(&head, &who, verb, &dev).await {
            Ok(()) => "allowed".to_owned(),
            Err(Error::Refused(Refusal::NotPermitted { allowed, .. })) => format!("{allowed:?}"),
            Err(error) => error.to_string(),
        }
    };
    assert_eq!(check("lin", Verb::Apply).await, "allowed");
    assert_eq!(check("mira", Verb::Plan).await, "allowed");
    assert_eq!(check("mira", Verb::Apply).await, "{\"team:platform\"}");
    assert_eq!(check("stranger", Verb::Plan).await, "{\"permission:write\"}");
    stage.commit(&[("state-repo/staterepo.yaml", "kind: StateRepo\n")]);
    daemon.source.refresh().await.unwrap();
    assert_ne!(check("lin", Verb::Apply).await, "allowed");
}
