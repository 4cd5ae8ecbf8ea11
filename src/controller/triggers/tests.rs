//! Tests of schedules.

use super::schedules::jitter;
use crate::domain::declaration::schema::Schedule;

#[test]
fn the_jitter_of_a_time_is_stable_and_below_its_limit() {
    let schedule: Schedule =
        serde_json::from_value(serde_json::json!({"cron": "0 2 * * *", "run": "drift", "jitter": "10m"})).unwrap();
    let name = "nightly".parse().unwrap();
    let at = |day: u32| chrono::DateTime::parse_from_rfc3339(&format!("2026-11-{day:02}T02:00:00Z")).unwrap().into();
    let delays: Vec<i64> = (1..=28).map(|day| jitter(&name, &schedule, at(day)).num_seconds()).collect();
    assert!(delays.iter().all(|delay| (0..=600).contains(delay)), "{delays:?}");
    assert!(delays.iter().collect::<std::collections::BTreeSet<_>>().len() > 20, "{delays:?}");
    assert_eq!(delays[0], jitter(&name, &schedule, at(1)).num_seconds());
}
