//! Tests defects that exploratory testing found: each test describes one defect.

use evenkeel::model::Verdict;

use crate::stage::{Stage, component, environment, module};

fn file(name: &str, content: &str) -> String {
    format!("resource \"world_file\" \"{name}\" {{\n  path = \"{name}\"\n  content = \"{content}\"\n}}\n")
}

/// A component with a duplicate key was applied with the first value and reported as in sync, while `validate`
/// reported an error.
#[tokio::test(flavor = "multi_thread")]
async fn what_validate_refuses_is_stalled_and_never_applied() {
    let mut doubled = component("doubled", "dev", "root: tf/a, root: tf/b", "");
    doubled.1.push_str("---\napiVersion: evenkeel.dev/v1alpha1\nkind: Component\nmetadata: { name: good }\nspec: { environments: [dev], tofu: { connection: world, root: tf/b } }\n");
    let files =
        [environment("dev", "onMerge: apply"), doubled, module("a", &file("a", "1")), module("b", &file("b", "1"))];
    let stage = Stage::start(&files).await;
    stage.verdict("dev/good", Verdict::InSync).await;
    let doubled = stage.verdict("dev/doubled", Verdict::Stalled).await;
    assert!(doubled.reason.unwrap().contains("`root` is here a second time"));
    assert_eq!(stage.writes(), ["create b"]);
}

/// A component that failed half-way and was then removed disappeared: all other instances were in sync.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_failed_run_made_is_not_forgotten_when_it_is_no_longer_declared() {
    let broken = "resource \"world_file\" \"two\" {\n  path = \"two\"\n  content = \"2\"\n  fail = \"no\"\n  depends_on = [world_file.one]\n}\n";
    let half = component("half", "dev", "root: tf/half", "");
    let files = [
        environment("dev", "onMerge: apply"),
        component("whole", "dev", "root: tf/whole", ""),
        half.clone(),
        module("whole", &file("whole", "1")),
        module("half", &(file("one", "1") + broken)),
    ];
    let stage = Stage::start(&files).await;
    stage.verdict("dev/half", Verdict::Stalled).await;
    stage.push("main", &[(half.0, String::new())]);
    let orphan = stage
        .until("it is told as left behind", async || {
            stage.instance("dev/half").await.filter(|i| i.message().contains("no longer declared"))
        })
        .await;
    assert_eq!(orphan.verdict, Verdict::Stalled);
    assert_eq!(stage.run(&["status"]).0, 3);
}

/// `/apply` of an instance with a failing check succeeded, because there were no changes and the check did not
/// run again.
#[tokio::test(flavor = "multi_thread")]
async fn a_silent_check_fails_a_run_that_has_nothing_to_do() {
    let checks = "  checks: [{ name: up, tcp: \"127.0.0.1:1\", timeout: 1s }]\n";
    let files = [
        environment("dev", "onMerge: apply"),
        component("app", "dev", "root: tf/app", checks),
        module("app", &file("app", "1")),
    ];
    let stage = Stage::start(&files).await;
    stage.verdict("dev/app", Verdict::Stalled).await;
    let (code, out, err) = stage.run(&["apply", "dev/app", "--yes"]);
    assert_eq!(code, 1, "{out}{err}");
    assert!(stage.verdict("dev/app", Verdict::Stalled).await.message().contains("check `up`"));
}

/// A merge whose second instance exceeded a limit had already applied the first instance.
#[tokio::test(flavor = "multi_thread")]
async fn r3_3_a_limit_stops_a_run_before_its_first_effect() {
    let files = [
        environment("dev", "onMerge: apply"),
        component("a", "dev", "root: tf/a", ""),
        component("b", "dev", "root: tf/b", "  dependsOn: [a]\n"),
        module("a", &file("a", "1")),
        module("b", &(file("b", "1") + &file("c", "1"))),
    ];
    let stage = Stage::start(&files).await;
    stage.verdict("dev/b", Verdict::InSync).await;
    let pull = stage.pull("less", &[module("a", &file("a", "2")), module("b", &file("b", "1"))]).await;
    stage.comment(pull, "allows 0 in one run").await;
    stage.merge("lin", pull).await;
    stage.comment(pull, "Stopped before the first change").await;
    let a = stage.verdict("dev/a", Verdict::Stalled).await;
    assert!(a.message().contains("1 to destroy, and `limits.destroys` allows 0"), "{}", a.message());
    stage.verdict("dev/b", Verdict::Stalled).await;
    assert_eq!((stage.world("a"), stage.world("c")), ("1".into(), "1".into()));
    // Without a pull request there is no reviewed plan, so the run makes one first.
    stage.push("main", &[module("a", &file("a", "3")), module("b", &file("b", "3"))]);
    stage.until("a second run ended", async || stage.get("/api/v1/runs/3").await["endedAt"].as_str().map(drop)).await;
    stage.verdict("dev/b", Verdict::Stalled).await;
    assert_eq!((stage.world("a"), stage.world("b"), stage.world("c")), ("1".into(), "1".into(), "1".into()));
}

/// `/apply` directly after a merge used the old head of the branch.
#[tokio::test(flavor = "multi_thread")]
async fn r6_6_apply_right_after_a_merge_and_after_a_lost_event_means_the_branch_as_it_is() {
    let files =
        [environment("dev", "onMerge: wait"), component("a", "dev", "root: tf/a", ""), module("a", &file("a", "1"))];
    let stage = Stage::start(&files).await;
    stage.verdict("dev/a", Verdict::Pending).await;
    assert_eq!(stage.run(&["apply", "dev", "--yes"]).0, 0);
    let pull = stage.pull("two", &[module("a", &file("a", "2"))]).await;
    stage.comment(pull, "### Plan for `dev`").await;
    stage.merge("lin", pull).await;
    stage.say_apply("lin", pull, "dev").await;
    stage.comment(pull, "### Applied · `dev`").await;
    assert_eq!(stage.world("a"), "2");
    // The push bypasses the forge, so that no event is sent, and the next poll is an hour away.
    stage.push_unheard(&[module("a", &file("a", "3"))]);
    let (code, out, err) = stage.run(&["apply", "dev", "--yes"]);
    assert_eq!(code, 0, "{out}{err}");
    assert_eq!(stage.world("a"), "3");
}
