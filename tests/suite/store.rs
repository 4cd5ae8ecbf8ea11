//! Tests the contract of the store: one suite for every store.

use chrono::{DateTime, Duration, Utc};
use evenkeel::{
    adapters::store::{Outgoing, Store},
    domain::journal::{Approved, Event, Outcome, Status},
    model::{Digest, InstanceId, PullNumber, RunId},
};

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_790_000_000 + seconds, 0).unwrap()
}

/// A kind of document that only this test uses.
#[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
struct Number(i32);

impl evenkeel::adapters::store::Record for Number {
    const KIND: &'static str = "number";
    type Key = String;
}

async fn on_disk() -> (Store, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    (held(&folder.path().join("evenkeel.db")).await, folder)
}

/// Opens a store and takes its lease.
async fn held(path: &std::path::Path) -> Store {
    let store = Store::open(path).await.unwrap();
    store.take("test", at(0), at(60), true).await.unwrap();
    store
}

fn run() -> evenkeel::domain::journal::Run {
    serde_json::from_value(serde_json::json!({
        "id": 0, "environment": "dev", "revision": "a".repeat(40), "state": {"state": "open"}, "because": "a test", "principal": "merge", "byMerge": true,
        "pull": null, "remediation": null, "instances": {"dev/a": {"status": "new", "order": 1, "says": "", "changed": false, "waitingOn": null}}, "createdAt": at(0), "endedAt": null
    }))
    .unwrap()
}

fn approved() -> std::collections::BTreeMap<InstanceId, Approved> {
    [("dev/a".parse().unwrap(), Approved::Declaration)].into()
}

#[tokio::test]
async fn what_was_approved_is_kept_with_the_run() {
    let (store, _folder) = on_disk().await;
    let mut run = run();
    store.create_run(&mut run, &approved()).await.unwrap();
    let (a, b): (InstanceId, InstanceId) = ("dev/a".parse().unwrap(), "dev/b".parse().unwrap());
    assert_eq!(store.approved(run.id, &a).await.unwrap(), Some(Approved::Declaration));
    assert_eq!(store.approved(run.id, &b).await.unwrap(), None);
    assert!(!store.begun(&a).await.unwrap());
    let digest = Digest::of_json(&serde_json::json!(1));
    store.append(&run, &a, &Event::Planned { digest: Some(digest) }, at(0)).await.unwrap();
    store.append(&run, &a, &Event::Started { digest }, at(0)).await.unwrap();
    assert!(store.begun(&a).await.unwrap());
}

#[tokio::test]
async fn what_came_in_is_kept_once() {
    let (store, _folder) = on_disk().await;
    assert!(store.receive("delivery/1", at(0), &"push").await.unwrap());
    assert!(!store.receive("delivery/1", at(1), &"push").await.unwrap());
    assert!(!store.is_handled("delivery/1").await.unwrap());
    store.handled("delivery/1", at(2)).await.unwrap();
    assert!(store.is_handled("delivery/1").await.unwrap());
}

#[tokio::test]
async fn r7_1_the_journal_refuses_what_cannot_follow() {
    let (store, _folder) = on_disk().await;
    let mut run = run();
    store.create_run(&mut run, &approved()).await.unwrap();
    assert_eq!(run.id, RunId(1));
    let id: InstanceId = "dev/a".parse().unwrap();
    let digest = Digest::of_json(&serde_json::json!(1));
    let started = Event::Started { digest };
    assert!(store.append(&run, &id, &started, at(0)).await.is_err());
    assert_eq!(
        store.append(&run, &id, &Event::Planned { digest: Some(digest) }, at(0)).await.unwrap(),
        Status::Planned
    );
    assert_eq!(store.append(&run, &id, &started, at(1)).await.unwrap(), Status::Running);
    assert!(store.append(&run, &id, &started, at(1)).await.is_err());
    assert_eq!(
        store.append(&run, &id, &Event::Finished { outcome: Outcome::Done }, at(2)).await.unwrap(),
        Status::Effected
    );
    assert_eq!(store.journal(Some(run.id), 10).await.unwrap().len(), 3);
}

#[tokio::test]
async fn r7_3_an_instance_is_held_by_one_run() {
    let (store, _folder) = on_disk().await;
    let id: InstanceId = "dev/a".parse().unwrap();
    let (mut first, mut second) = (run(), run());
    store.create_run(&mut first, &approved()).await.unwrap();
    store.create_run(&mut second, &approved()).await.unwrap();
    assert_eq!(store.lock_instance(&id, first.id).await.unwrap(), first.id);
    assert_eq!(store.lock_instance(&id, second.id).await.unwrap(), first.id);
    first.state = evenkeel::domain::journal::RunState::Ended { message: "done".into() };
    first.ended_at = Some(at(1));
    store.set_run(&first).await.unwrap();
    assert_eq!(store.lock_instance(&id, second.id).await.unwrap(), second.id, "a run that ended holds nothing");
    assert_eq!(store.open_runs().await.unwrap().len(), 1);
}

#[tokio::test]
async fn r7_3_a_lease_has_one_holder_and_a_growing_token() {
    let (store, _folder) = on_disk().await;
    let (first, second) = (store.another(None), store.another(None));
    let until = |seconds| at(seconds) + Duration::seconds(60);
    assert_eq!(store.lease().await.unwrap().unwrap().holder, "test");
    assert_eq!(first.take("one", at(0), until(0), true).await.unwrap(), Some(2), "taking over raises the token");
    assert_eq!(second.take("two", at(10), until(10), false).await.unwrap(), None, "somebody has it");
    assert_eq!(first.take("one", at(20), until(20), false).await.unwrap(), Some(2), "taking it again keeps the token");
    first.renew(until(30)).await.unwrap();
    assert_eq!(second.take("two", at(85), until(85), false).await.unwrap(), None, "it was renewed");
    assert_eq!(second.take("two", at(100), until(100), false).await.unwrap(), Some(3), "it is over");
    assert_eq!(first.take("one", at(110), until(110), true).await.unwrap(), Some(4), "its holder is dead");
}

/// The store refuses a writer that lost its lease, for each kind of write and in each environment.
#[tokio::test]
async fn r7_3_a_stale_token_writes_nothing() {
    let (old, _folder) = on_disk().await;
    let id: InstanceId = "dev/a".parse().unwrap();
    let mut run = run();
    old.create_run(&mut run, &approved()).await.unwrap();
    let before = old.token(&id.environment).await.unwrap();
    let new = old.another(None);
    assert!(new.create_run(&mut run.clone(), &approved()).await.is_err(), "it has no lease at all");
    new.take("new", at(1), at(61), true).await.unwrap();
    let digest = Digest::of_json(&serde_json::json!(1));
    let planned = Event::Planned { digest: Some(digest) };
    let comment = Outgoing::Comment { pull: PullNumber(1), marker: "m".into(), body: "b".into(), outdates: None };
    let observed = evenkeel::domain::plan::Observed::new(at(0), None);
    let refusals = [
        old.create_run(&mut run.clone(), &approved()).await.err(),
        old.set_run(&run).await.err(),
        old.append(&run, &id, &planned, at(0)).await.err(),
        old.lock_instance(&id, run.id).await.err(),
        old.set_observed(&id, &observed).await.err(),
        old.let_go(&id, at(0)).await.err(),
        old.collection::<Number>().put(&"name".into(), at(0), &Number(1)).await.err(),
        old.collection::<Number>().remove(&"name".into()).await.err(),
        old.receive("delivery/1", at(0), &"push").await.err(),
        old.handled("delivery/1", at(0)).await.err(),
        old.say("name", &comment, at(0)).await.err(),
        old.said(1, &comment, at(0)).await.err(),
        old.audit(at(0), "lin", "apply", "dev", "").await.err(),
        old.prune(at(0)).await.err(),
        old.renew(at(99)).await.err(),
    ];
    for (n, refused) in refusals.into_iter().enumerate() {
        assert!(matches!(refused, Some(evenkeel::adapters::store::Error::Fenced { .. })), "{n}: {refused:?}");
    }
    let after = new.token(&id.environment).await.unwrap();
    assert!(after > before, "{after} {before}");
    assert!(!new.is_in_force(&id.environment, before).await.unwrap());
    assert!(new.is_in_force(&id.environment, after).await.unwrap());
    new.append(&run, &id, &planned, at(2)).await.unwrap();
    assert_eq!(new.journal(Some(run.id), 10).await.unwrap()[0].token, after);
    // A new environment gets a token with its first write.
    new.collection::<Number>().put(&"name".into(), at(0), &Number(1)).await.unwrap();
    assert_eq!(new.token(&"prod".parse().unwrap()).await.unwrap(), 1);
    assert!(old.token(&"later".parse().unwrap()).await.is_err());
}

#[tokio::test]
async fn r7_2_what_is_said_is_said_once_and_replaced_by_what_differs() {
    let (store, _folder) = on_disk().await;
    let comment =
        |body: &str| Outgoing::Comment { pull: PullNumber(1), marker: "m".into(), body: body.into(), outdates: None };
    store.say("comment/1/m", &comment("one"), at(0)).await.unwrap();
    let undelivered = store.undelivered(at(0), 10).await.unwrap();
    assert_eq!(undelivered.len(), 1);
    store.said(undelivered[0].0, &comment("one"), at(1)).await.unwrap();
    store.say("comment/1/m", &comment("one"), at(2)).await.unwrap();
    assert_eq!(store.undelivered(at(9), 10).await.unwrap().len(), 0, "the same is not said again");
    store.say("comment/1/m", &comment("two"), at(3)).await.unwrap();
    let undelivered = store.undelivered(at(9), 10).await.unwrap();
    assert_eq!(undelivered.len(), 1);
    // The message was replaced during the delivery of the older text, so the new text stays undelivered.
    store.say("comment/1/m", &comment("three"), at(4)).await.unwrap();
    store.said(undelivered[0].0, &comment("two"), at(5)).await.unwrap();
    assert_eq!(store.undelivered(at(9), 10).await.unwrap()[0].2, comment("three"));
    let id = store.undelivered(at(9), 10).await.unwrap()[0].0;
    store.mark_undeliverable(id, &comment("three"), "503", Some(at(100)), at(9)).await.unwrap();
    assert_eq!(store.undelivered(at(50), 10).await.unwrap().len(), 0);
    assert_eq!(store.undelivered(at(100), 10).await.unwrap()[0].1, 1);
}

#[tokio::test]
async fn the_audit_is_a_chain() {
    let (store, folder) = on_disk().await;
    for n in 0..3 {
        store.audit(at(n), "user:lin", "apply", "staging", "plan").await.unwrap();
    }
    let (entries, broken) = store.audit_entries().await.unwrap();
    assert_eq!((entries.len(), broken), (3, None));
    store.close().await;
    let pool =
        sqlx::SqlitePool::connect(&format!("sqlite://{}", folder.path().join("evenkeel.db").display())).await.unwrap();
    sqlx::query("UPDATE audit SET detail = 'another' WHERE seq = 2").execute(&pool).await.unwrap();
    pool.close().await;
    let store = Store::open(&folder.path().join("evenkeel.db")).await.unwrap();
    assert_eq!(store.audit_entries().await.unwrap().1, Some(2));
}

#[tokio::test]
async fn a_store_that_is_opened_again_is_the_same_and_a_broken_one_is_refused() {
    let (store, folder) = on_disk().await;
    let value = serde_json::json!("secret");
    let sealed = store.seal().await.unwrap().seal(&value);
    store.collection::<Number>().put(&"name".into(), at(0), &Number(1)).await.unwrap();
    store.close().await;
    let path = folder.path().join("evenkeel.db");
    let store = Store::open(&path).await.unwrap();
    assert_eq!(store.seal().await.unwrap().seal(&value), sealed);
    assert_eq!(store.collection::<Number>().get(&"name".into()).await.unwrap(), Some(Number(1)));
    store.check().await.unwrap();
    store.close().await;
    std::fs::write(&path, vec![b'x'; 100_000]).unwrap();
    let refused = Store::open(&path).await.err().unwrap();
    assert!(evenkeel::error_chain(&refused).contains("not a database"), "{}", evenkeel::error_chain(&refused));
}

#[tokio::test]
async fn a_store_of_the_first_schema_is_brought_up_to_date() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("evenkeel.db");
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&path).create_if_missing(true);
    let pool = sqlx::SqlitePool::connect_with(options).await.unwrap();
    let mut first = sqlx::migrate!("src/adapters/store/migrations");
    first.migrations = first.migrations[..1].to_vec().into();
    first.run(&pool).await.unwrap();
    let mut document = serde_json::to_value(run()).unwrap();
    document["id"] = 1.into();
    document["approved"] =
        serde_json::json!({"dev/a": {"approved": "declaration"}, "dev/b": {"approved": "actions", "actions": []}});
    sqlx::query("INSERT INTO runs (environment, state, created_at, document) VALUES ('dev', 'open', '2026', ?)")
        .bind(document.to_string())
        .execute(&pool)
        .await
        .unwrap();
    sqlx::query("INSERT INTO records (sort, name, at, document) VALUES ('begun', 'dev/a', '2026', 'true')")
        .execute(&pool)
        .await
        .unwrap();
    pool.close().await;
    let store = held(&path).await;
    let (a, b): (InstanceId, InstanceId) = ("dev/a".parse().unwrap(), "dev/b".parse().unwrap());
    assert_eq!(store.approved(RunId(1), &a).await.unwrap(), Some(Approved::Declaration));
    assert_eq!(store.approved(RunId(1), &b).await.unwrap(), Some(Approved::Actions { actions: vec![] }));
    assert_eq!(store.run(RunId(1)).await.unwrap().unwrap().because, "a test");
    assert!(store.begun(&a).await.unwrap() && !store.begun(&b).await.unwrap());
}

#[tokio::test]
async fn what_is_old_and_over_is_forgotten_and_nothing_else() {
    let (store, _folder) = on_disk().await;
    let id: InstanceId = "dev/a".parse().unwrap();
    let digest = Digest::of_json(&serde_json::json!(1));
    for n in 0..1002 {
        let mut run = run();
        store.create_run(&mut run, &approved()).await.unwrap();
        store.append(&run, &id, &Event::Planned { digest: Some(digest) }, at(n)).await.unwrap();
        if n != 0 {
            run.state = evenkeel::domain::journal::RunState::Ended { message: String::new() };
            run.ended_at = Some(at(n));
            store.set_run(&run).await.unwrap();
        }
    }
    for name in ["delivery/1", "comment/1"] {
        store.receive(name, at(0), &"push").await.unwrap();
    }
    store.handled("comment/1", at(0)).await.unwrap();
    store.audit(at(0), "lin", "apply", "dev", "").await.unwrap();
    store.prune(at(60)).await.unwrap();
    assert_eq!(store.runs(2000).await.unwrap().len(), 1002, "nothing is old yet");
    store.prune(at(0) + Duration::days(200)).await.unwrap();
    let remaining: Vec<i64> = store.runs(2000).await.unwrap().iter().map(|run| run.id.0).rev().collect();
    assert_eq!(
        (remaining.len(), remaining[0], remaining[1]),
        (1001, 1, 3),
        "the second run is over and old; the first is open"
    );
    assert_eq!(store.approved(RunId(2), &id).await.unwrap(), None);
    assert_eq!(store.journal(Some(RunId(2)), 10).await.unwrap(), []);
    assert_eq!(store.journal(Some(RunId(1)), 10).await.unwrap().len(), 1);
    assert!(store.is_handled("comment/1").await.unwrap(), "a comment is obeyed once, however old it is");
    assert!(store.receive("delivery/1", at(1), &"push").await.unwrap());
    assert_eq!(store.audit_entries().await.unwrap().0.len(), 1);
}

#[tokio::test]
async fn r3_5_what_was_applied_is_a_fact_with_its_time() {
    let (store, _folder) = on_disk().await;
    let id: InstanceId = "dev/a".parse().unwrap();
    let (first, second) = (Digest::of_json(&serde_json::json!(1)), Digest::of_json(&serde_json::json!(2)));
    let applied = |digest: Digest, seconds: i64| -> evenkeel::domain::plan::Applied {
        serde_json::from_value(serde_json::json!({
            "revision": "a".repeat(40), "digest": digest, "spec": {"environments": ["dev"], "tofu": {"root": "tf"}}, "files": {},
            "declaresBackend": false, "inputs": {}, "outputs": {}, "run": null, "at": at(seconds)
        }))
        .unwrap()
    };
    let observed = |seconds| evenkeel::domain::plan::Observed::new(at(seconds), None);
    store.advance(&id, &applied(first, 0), &observed(0)).await.unwrap();
    // Applied again with the same content, the span continues; `restart_soak` starts a new span.
    store.advance(&id, &applied(first, 10), &observed(10)).await.unwrap();
    assert_eq!(store.had_applied(&id, first).await.unwrap(), [(at(0), None)]);
    store.restart_soak(&id, at(20)).await.unwrap();
    store.advance(&id, &applied(second, 30), &observed(30)).await.unwrap();
    assert_eq!(store.had_applied(&id, first).await.unwrap(), [(at(20), Some(at(30)))]);
    assert_eq!(store.had_applied(&id, second).await.unwrap(), [(at(30), None)]);
    store.advance(&id, &applied(first, 40), &observed(40)).await.unwrap();
    assert_eq!(store.had_applied(&id, first).await.unwrap(), [(at(40), None), (at(20), Some(at(30)))]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fresh_store_opens_however_its_connections_meet() {
    for _ in 0..20 {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("evenkeel.db");
        let store = Store::open(&path).await.unwrap();
        store.check().await.unwrap();
        store.close().await;
    }
}

#[tokio::test]
async fn a_document_is_updated_in_one_transaction() {
    let (store, _folder) = on_disk().await;
    let numbers = store.collection::<Number>();
    let key = "name".to_owned();
    let add = |known: Option<&Number>| Number(known.map_or(0, |number| number.0) + 1);
    let added = futures::future::join_all((0..20).map(|_| numbers.update(&key, at(0), add))).await;
    assert!(added.iter().all(Result::is_ok), "{added:?}");
    assert_eq!(numbers.get(&key).await.unwrap(), Some(Number(20)));
    let claim = |all: &[(String, Number)]| if all.is_empty() { Ok(Number(1)) } else { Err(all.len()) };
    assert_eq!(numbers.put_among(&"other".into(), at(0), claim).await.unwrap(), Err(1));
    assert_eq!(numbers.get(&"other".into()).await.unwrap(), None);
    numbers.remove(&key).await.unwrap();
    assert_eq!(numbers.put_among(&"other".into(), at(0), claim).await.unwrap(), Ok(()));
    assert_eq!(numbers.all().await.unwrap(), [("other".to_owned(), Number(1))]);
}
