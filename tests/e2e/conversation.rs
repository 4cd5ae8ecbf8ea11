//! Tests comments and commands on pull requests.

use evenkeel::model::Verdict;
use serde_json::json;

use crate::stage::{Stage, component, environment, module};

fn release(number: u32) -> (String, String) {
    module(
        "app",
        &format!("resource \"world_file\" \"release\" {{\n  path = \"release\"\n  content = \"{number}\"\n}}"),
    )
}

fn app() -> Vec<(String, String)> {
    vec![environment("staging", "onMerge: wait"), component("app", "staging", "root: tf/app", ""), release(1)]
}

async fn applied() -> Stage {
    let stage = Stage::start(&app()).await;
    stage.verdict("staging/app", Verdict::Pending).await;
    let (code, out, err) = stage.run(&["apply", "staging", "--yes"]);
    assert_eq!(code, 0, "{out}{err}");
    stage
}

#[tokio::test(flavor = "multi_thread")]
async fn r6_1_a_pull_request_is_planned_and_r6_10_each_refusal_is_a_sentence() {
    let stage = applied().await;
    let pull = stage.pull("two", &[release(2)]).await;
    let plan = stage.comment(pull, "### Plan for `staging`").await;
    assert!(plan.contains("-   content: \"1\"\n+   content: \"2\""), "{plan}");
    assert_eq!(stage.check(pull, "evenkeel/plan", "success").await, "staging: 1 to change");
    stage.check(pull, "evenkeel/apply/staging", "pending").await;
    for (who, message, answer) in [
        ("lin", "/apply staging", "this pull request is not merged"),
        ("lin", "/aply", "did you mean `/apply`?"),
        ("lin", "/rotate", "is not available in this version"),
        ("mira", "/apply", "@mira is not allowed to `/apply` in `staging`: `team:platform` may."),
        ("guest", "/plan", "@guest is not allowed to `/plan`"),
        ("lin", "/help", "| `/apply [SELECTOR] [DIGEST]` |"),
        ("lin", "/drift production", "matches no instance"),
        ("lin", "/drift", "| `staging/app` | in sync |"),
    ] {
        stage.say(who, pull, message).await;
        stage.comment(pull, answer).await;
    }
    let before = stage.comments(pull).await.len();
    stage.say("lin", pull, "> /apply staging\n\n```\n/apply staging\n```\nplease `/apply` it").await;
    stage.merge("lin", pull).await;
    stage.verdict("staging/app", Verdict::Pending).await;
    stage.say("mira", pull, "/apply staging").await;
    // The daemon replies once, to mira: quotes and code are not commands.
    stage.until("mira is answered", async || (stage.comments(pull).await.len() > before).then_some(())).await;
    let answers = stage.comments(pull).await;
    assert_eq!(answers.len(), before + 1, "{answers:#?}");
    assert!(answers[before].starts_with("@mira is not allowed"), "{}", answers[before]);
    stage.say("lin", pull, "/apply staging 123456").await;
    stage.comment(pull, "not `123456`").await;
    assert_eq!(stage.world("release"), "1");
    // A command within seconds of a new plan must name the digest of the plan.
    stage.say("lin", pull, "/apply staging").await;
    stage.comment(pull, "the plan of `staging` just changed; read it and repeat").await;
    assert_eq!(stage.world("release"), "1");
    stage.say_apply("lin", pull, "staging").await;
    stage.comment(pull, "### Applied · `staging`").await;
    assert_eq!(stage.world("release"), "2");
    stage.check(pull, "evenkeel/apply/staging", "success").await;
    stage.say("lin", pull, "/apply staging").await;
    stage.comment(pull, "There is nothing to apply in `staging`").await;
    assert_eq!(stage.writes(), ["create release", "update release"]);
}

/// Atlantis #6529: an `/apply` during planning ended as "success 0/0", and the pull request was merged with
/// nothing applied. Here a command without a plan is refused with a reason, and no status succeeds.
#[tokio::test(flavor = "multi_thread")]
async fn atlantis_6529_an_apply_before_the_plan_is_refused() {
    let mut stage = Stage::new(&app()).await;
    let (code, _, err) = stage.run(&["serve", "--once"]);
    assert_eq!(code, 2, "{err}");
    let pull = stage.pull("two", &[release(2)]).await;
    stage.merge("lin", pull).await;
    stage.say("lin", pull, "/apply staging").await;
    stage.serve();
    let answer = stage.comment(pull, "<!-- evenkeel:answer").await;
    assert!(
        answer.contains("Nothing was applied")
            || answer.contains("matches no instance")
            || answer.contains("nothing to apply"),
        "{answer}"
    );
    stage.verdict("staging/app", Verdict::Pending).await;
    assert_eq!(stage.writes(), Vec::<String>::new());
}

/// Atlantis #2390: a second push dropped a directory, and `apply` ran it from the older plan of the same pull
/// request.
#[tokio::test(flavor = "multi_thread")]
async fn atlantis_2390_what_a_later_push_drops_is_not_applied() {
    let mut files = app();
    files.push(component("second", "staging", "root: tf/second", ""));
    files.push(module("second", "resource \"world_file\" \"second\" {\n  path = \"second\"\n  content = \"1\"\n}"));
    let stage = Stage::start(&files).await;
    stage.verdict("staging/second", Verdict::Pending).await;
    assert_eq!(stage.run(&["apply", "staging", "--yes"]).0, 0);
    let second = |n: u32| {
        module(
            "second",
            &format!("resource \"world_file\" \"second\" {{\n  path = \"second\"\n  content = \"{n}\"\n}}"),
        )
    };
    let pull = stage.pull("both", &[release(2), second(2)]).await;
    let first = stage.comment(pull, "2 to change").await;
    assert!(first.contains("`second`"));
    stage.push_on("both", &[second(1)]);
    let plan = stage.comment(pull, "### Plan for `staging`").await;
    assert!(plan.contains("evenkeel:plan env=staging"));
    stage.comment(pull, "· 1 to change").await;
    stage.merge("lin", pull).await;
    stage.verdict("staging/app", Verdict::Pending).await;
    stage.say_apply("lin", pull, "staging").await;
    stage.comment(pull, "### Applied · `staging`").await;
    assert_eq!((stage.world("release").as_str(), stage.world("second").as_str()), ("2", "1"));
    assert_eq!(stage.writes().iter().filter(|line| line.ends_with("second")).count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn r4_1_a_remediation_whose_world_moved_is_refused_and_a_closed_one_is_not_proposed_again() {
    let stage = applied().await;
    std::fs::write(stage.place("world/release"), "tampered").unwrap();
    assert_eq!(stage.drift("staging").0, 2);
    let pull = stage.proposal().await["number"].as_u64().unwrap();
    std::fs::write(stage.place("world/release"), "tampered differently").unwrap();
    stage.merge("lin", pull).await;
    let ended = stage.comment(pull, "### Stopped before the first change").await;
    assert!(ended.contains("the plan differs from the one in the remediation"), "{ended}");
    assert_eq!(stage.world("release"), "tampered differently");
    // Closed unmerged: the drift is snoozed until the observation changes.
    stage.drift("staging");
    let second = stage
        .until("another proposal", async || {
            Some(stage.proposal().await["number"].as_u64()?).filter(|number| *number != pull)
        })
        .await;
    let (_, closed) =
        stage.forge("lin", reqwest::Method::PATCH, &format!("pulls/{second}"), json!({"state": "closed"})).await;
    assert_eq!(closed["state"], "closed");
    stage
        .until("the no is noted", async || {
            stage.run(&["status"]).1.contains(&format!("(closed #{second})")).then_some(())
        })
        .await;
    std::fs::write(stage.place("world/release"), "tampered once more").unwrap();
    stage.drift("staging");
    let third = stage.proposal().await["number"].as_u64().unwrap();
    assert!(third > second);
    // The pull request closes automatically when the drift heals.
    std::fs::write(stage.place("world/release"), "1").unwrap();
    stage.drift("staging");
    stage.comment(third, "is gone, so there is nothing to revert").await;
    let (_, known) = stage.forge("lin", reqwest::Method::GET, &format!("pulls/{third}"), json!(null)).await;
    assert_eq!(known["state"], "closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_merge_by_somebody_who_may_not_apply_waits_for_somebody_who_may() {
    let stage = applied().await;
    std::fs::write(stage.place("world/release"), "tampered").unwrap();
    stage.drift("staging");
    let pull = stage.proposal().await["number"].as_u64().unwrap();
    stage.merge("mira", pull).await;
    stage.comment(pull, "Merged and waiting: @mira is not allowed").await;
    assert_eq!(stage.world("release"), "tampered");
    stage.say("lin", pull, "/apply").await;
    stage.comment(pull, "### Applied · `staging`").await;
    assert_eq!(stage.world("release"), "1");
}
