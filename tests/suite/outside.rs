//! Tests that every parser of external input accepts arbitrary bytes.
//!
//! Noise must lead to no panic, no hang and no authorization.
//!
//! The cases are the same each time, in bounded time; `make fuzz` generates others for any time.

use evenkeel::{
    controller::ReconcileRequest,
    domain::{
        command,
        declaration::{self, Selector},
        remediation,
    },
    model::{Redactor, Seal},
    server,
    targets::opentofu::{plan::observation, plan_json::PlanJson},
};
use proptest::{
    prelude::*,
    test_runner::{Config, RngSeed},
};

use crate::support::Memory;

/// As many cases as FUZZ requests, with another seed each time; otherwise the same few.
fn config() -> Config {
    let cases = std::env::var("FUZZ").ok().and_then(|cases| cases.parse().ok());
    Config {
        cases: cases.unwrap_or(400),
        rng_seed: if cases.is_some() { RngSeed::Random } else { RngSeed::Fixed(20_261_120) },
        failure_persistence: None,
        ..Config::default()
    }
}

/// Mutations of a text: a changed byte, a piece cut out, doubled, or inserted.
fn noise() -> impl Strategy<Value = Vec<(u8, usize, usize, String)>> {
    let piece = prop_oneof![
        "\\PC{0,12}",
        Just("&a [*a, *a]".to_owned()),
        Just("\u{0}".to_owned()),
        Just("\u{202e}".to_owned()),
        Just("${network.outputs.x}".to_owned()),
        Just("\n---\n".to_owned()),
        Just("!!binary ".to_owned()),
        Just("99999999999999999999".to_owned()),
        Just("{".repeat(300)),
        Just("\t".to_owned()),
    ];
    prop::collection::vec((0..4_u8, any::<usize>(), 0..40_usize, piece), 0..6)
}

fn disturbed(text: &str, noise: &[(u8, usize, usize, String)]) -> String {
    let mut bytes = text.as_bytes().to_vec();
    for (what, at, length, piece) in noise {
        let at = at % (bytes.len() + 1);
        let end = (at + length).min(bytes.len());
        match what {
            0 => drop(bytes.splice(at..at, piece.bytes())),
            1 => drop(bytes.drain(at..end)),
            2 => {
                let again = bytes[at..end].to_vec();
                drop(bytes.splice(at..at, again));
            }
            _ => drop(bytes.splice(at..end, piece.bytes())),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

const REPO: &str = "apiVersion: evenkeel.dev/v1alpha1\nkind: StateRepo\nmetadata: { name: acme }\nspec: { permissions: [{ allow: [apply], to: [\"permission:write\"] }] }\n";
const ENVIRONMENT: &str = "apiVersion: evenkeel.dev/v1alpha1\nkind: Environment\nmetadata: { name: dev }\nspec: { onMerge: apply, limits: { destroys: 1 } }\n";
const COMPONENT: &str = "apiVersion: evenkeel.dev/v1alpha1\nkind: Component\nmetadata: { name: network, labels: { tier: base } }\nspec:\n  environments: [dev]\n  protect: [world_file.a]\n  tofu:\n    root: tf/network\n    variables: { gateway: 10.0.0.1, size: 3, list: [a, b] }\n  overrides: { dev: { tofu: { variables: { size: 4 } } } }\n";

proptest! {
    #![proptest_config(config())]

    #[test]
    fn declarations_of_any_sort_are_read_or_refused_at_their_place(noise in noise()) {
        let text = disturbed(COMPONENT, &noise);
        let files = Memory::new(&[("state-repo/staterepo.yaml", REPO), ("state-repo/dev.yaml", ENVIRONMENT), ("tf/network/main.tf", "")])
            .with("state-repo/network.yaml", text.as_bytes());
        let loaded = declaration::load(evenkeel::targets::kinds(), &files, "state-repo");
        prop_assert!(loaded.environments.contains_key(&"dev".parse().unwrap()), "one bad file never hides another");
        for problem in &loaded.problems {
            let message = problem.to_string();
            prop_assert!(message.contains("network.yaml") || message.contains("dev.yaml") || message.contains("tf/"), "{message}");
        }
        let read = loaded.instances.values().any(|instance| instance.problems.is_empty());
        prop_assert!(read || !loaded.problems.is_empty() || !text.contains("kind: Component") || loaded.instances.is_empty());
    }

    #[test]
    fn selectors_say_what_they_are_or_why_they_are_none(noise in noise(), base in 0..5_usize) {
        let bases = ["staging", "staging/network and not kind:tofu", "label:tier=app or (changed and pending)", "drifted", "not (dev)"];
        let text = disturbed(bases[base], &noise);
        if let Ok(selector) = text.parse::<Selector>() {
            let again: Selector = selector.to_string().parse().expect("what is printed is read again");
            prop_assert_eq!(selector.to_string(), again.to_string());
        }
    }

    #[test]
    fn comments_of_any_sort_are_commands_or_silence(noise in noise(), base in 0..4_usize) {
        let bases = ["/apply staging 9c1e0f", "Thanks!\n/plan\n/snooze dev 14d\n", "> /apply production\n\n```\n/destroy dev\n```\n", "/cancel dev and not dev/network"];
        let text = disturbed(bases[base], &noise);
        let found = command::parse(&text);
        prop_assert!(found.len() <= 21);
        for parsed in found.into_iter().flatten() {
            let word = format!("/{}", parsed.verb.name());
            prop_assert!(text.lines().any(|line| line.trim_start().starts_with(&word)), "{word} is not in {text:?}");
        }
    }

    /// Argo CD CVE-2024-40634, CVE-2025-59538 and Argo Workflows CVE-2026-42294: malformed bodies crashed servers.
    /// Here a body enqueues the requests of its event, and carries no fact.
    #[test]
    fn webhooks_of_any_shape_wake_and_nothing_else(noise in noise(), event in 0..4_usize) {
        let events = ["push", "pull_request", "issue_comment", "ping"];
        let body = r#"{"action": "created", "number": 7, "issue": {"number": 7}, "pull_request": {"number": 7}, "comment": {"body": "/apply production"}, "ref": "refs/heads/main", "commits": [{"added": ["a"]}]}"#;
        let wakes = server::wakes(events[event], disturbed(body, &noise).as_bytes());
        prop_assert!(wakes.len() <= 3);
        prop_assert!(wakes.iter().all(|wake| matches!(wake, ReconcileRequest::Source | ReconcileRequest::PullRequests | ReconcileRequest::PullRequest(_))));
    }

    #[test]
    fn plans_of_any_shape_are_read_or_refused_and_keep_their_secrets(noise in noise()) {
        const CANARY: &str = "canary-8f3a61c2d4";
        let plan = format!(r#"{{"format_version": "1.2", "resource_changes": [{{"address": "world_file.a", "mode": "managed", "type": "world_file", "name": "a", "change": {{"actions": ["update"], "before": {{"path": "a", "secret": "{CANARY}"}}, "after": {{"path": "a", "secret": "{CANARY}-2"}}, "after_unknown": {{}}, "before_sensitive": {{"secret": true}}, "after_sensitive": {{"secret": true}}}}}}], "output_changes": {{"password": {{"actions": ["create"], "before": null, "after": "{CANARY}", "after_unknown": false, "before_sensitive": true, "after_sensitive": true}}}}}}"#);
        let text = disturbed(&plan, &noise);
        let Ok(json) = serde_json::from_str::<PlanJson>(&text) else { return Ok(()) };
        let Ok(seen) = observation(&json, &Seal::new(vec![1]), &Redactor::default()) else { return Ok(()) };
        // If the mutations left the sensitivity marks intact, the marked values are masked.
        if text.matches(r#""secret": true"#).count() == 2 && text.contains(r#""secret": "canary"#) {
            let shown = format!("{:?}", seen.changes.iter().filter(|change| change.resource == "world_file.a").collect::<Vec<_>>());
            prop_assert!(!shown.contains(CANARY), "{shown}");
        }
    }

    #[test]
    fn remediations_of_any_shape_let_through_what_was_written_and_no_more(noise in noise()) {
        let action = r#"    - digest: 17f3b4a55f2e0c9d8e7f60718293a4b5c6d7e8f90123456789abcdef01234567
      instance: dev/network
      do: tofu.apply
      resources: [{ resource: world_file.a, change: update, fields: [{ path: /content, observed: "x", desired: "y" }] }]
"#;
        let text = format!("apiVersion: evenkeel.dev/v1alpha1\nkind: Remediation\nmetadata: {{ name: network-1 }}\nspec:\n  environment: dev\n  direction: revert\n  because: drift\n  observedAt: 2026-11-20T09:00:00Z\n  expiresAt: 2026-11-27T09:00:00Z\n  actions:\n{action}");
        let read = |text: &str| {
            let files = Memory::new(&[("state-repo/dev.yaml", ENVIRONMENT)]).with("state-repo/remediations/dev/network-1.yaml", text.as_bytes());
            let loaded = declaration::load(evenkeel::targets::kinds(), &files, "state-repo");
            loaded.remediations.values().next().map(|(remediation, _)| remediation.clone())
        };
        let written = read(&text).expect("the one that we wrote is read");
        if let Some(found) = read(&disturbed(&text, &noise)) && remediation::edited(&found, &written).is_none() {
            prop_assert!(found.actions.iter().all(|action| written.actions.contains(action)));
            prop_assert_eq!(&found.environment, &written.environment);
            prop_assert_eq!(found.expires_at, written.expires_at);
        }
    }
}
