//! Kills daemons at random moments of runs that change 20 resources in 5 components, on real OpenTofu.
//!
//! Each time the final state is the same, every effect happens once, and no process or lock remains.

use std::{process::Command, time::Duration};

use evenkeel::model::Verdict;

use crate::{
    postgres::Postgres,
    stage::{Stage, component, environment},
};

const COMPONENTS: [(&str, &str); 5] = [("a", ""), ("b", "a"), ("c", "a"), ("d", "b, c"), ("e", "")];
const RESOURCES: usize = 4;

/// A pseudo-random generator (xorshift) with the same numbers in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 33) % end
    }
}

/// Returns the modules with all values set to a round.
fn round(number: usize, backend: &str) -> Vec<(String, String)> {
    let file = |name: &str, n: usize| {
        format!("resource \"world_file\" \"r{n}\" {{\n  path = \"{name}{n}\"\n  content = \"{number}\"\n}}\n")
    };
    COMPONENTS
        .iter()
        .map(|(name, _)| {
            let resources: String = (0..RESOURCES).map(|n| file(name, n)).collect();
            crate::stage::module(name, &format!("{backend}{resources}"))
        })
        .collect()
}

async fn in_sync(stage: &Stage, number: usize) {
    let since = std::time::Instant::now();
    loop {
        let done = |name: &str| (0..RESOURCES).all(|n| stage.world(&format!("{name}{n}")) == number.to_string());
        let status = stage.status().await;
        let message: Vec<String> = status
            .iter()
            .flat_map(|status| &status.instances)
            .map(|instance| format!("{} {:?}: {}", instance.id, instance.verdict, instance.message()))
            .collect();
        let all = status.is_some_and(|status| status.verdict == Verdict::InSync);
        if all && COMPONENTS.iter().all(|(name, _)| done(name)) {
            return;
        }
        assert!(
            since.elapsed() < Duration::from_secs(120),
            "round {number}: {message:#?}\n{}",
            stage.run(&["journal"]).1
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Kills daemons during runs; every third time also all of their child processes.
async fn killed(stage: &mut Stage, backend: &str, kills: usize, seed: u64) {
    let mut numbers = Numbers(seed);
    stage.serve();
    in_sync(stage, 0).await;
    let (mut killed, mut number) = (0, 0);
    while killed < kills {
        number += 1;
        stage.push("main", &round(number, backend));
        let before = stage.writes().len();
        let mut all = false;
        for _ in 0..4 {
            tokio::time::sleep(Duration::from_millis(numbers.below(1200))).await;
            stage.kill();
            killed += 1;
            if numbers.below(3) == 0 {
                all = true;
                for (pid, _) in stage.processes("") {
                    drop(Command::new("kill").args(["-9", &pid.to_string()]).status());
                }
            }
            stage.serve();
        }
        in_sync(stage, number).await;
        let writes = stage.writes().split_off(before);
        assert!(writes.iter().all(|write| write.starts_with("update ")), "{writes:?}");
        // An effect that a killed tofu did not record happens again; an effect that only lost its daemon never does.
        if !all {
            assert_eq!(writes.len(), COMPONENTS.len() * RESOURCES, "round {number}: {writes:?}");
        }
    }
    println!("{killed} kills in {number} rounds");
    let (_, out, _) = stage.run(&["runs"]);
    assert!(!out.contains("running") && !out.contains("waits"), "{out}");
    let made = stage.writes().iter().filter(|write| write.starts_with("create ")).count();
    assert_eq!(made, COMPONENTS.len() * RESOURCES, "nothing is made twice");
    stage.stop();
    stage.until("no process is left", async || stage.processes("").is_empty().then_some(())).await;
}

fn declared(settings: impl Fn(&str) -> String) -> Vec<(String, String)> {
    let mut files = vec![environment("dev", "onMerge: apply, deferred: apply")];
    for (name, after) in COMPONENTS {
        let spec = format!("root: tf/{name}{}", settings(name));
        let after = if after.is_empty() { String::new() } else { format!("  dependsOn: [{after}]\n") };
        files.push(component(name, "dev", &spec, &after));
    }
    files
}

#[tokio::test(flavor = "multi_thread")]
async fn r7_1_killed_at_any_moment_with_states_of_its_own() {
    let mut files = declared(|_| String::new());
    files.extend(round(0, ""));
    let mut stage = Stage::new(&files).await;
    killed(&mut stage, "", 28, 0x9e37_79b9_7f4a_7c15).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r7_1_killed_at_any_moment_with_a_backend_that_locks() {
    let postgres = Postgres::start();
    let address = format!("postgres://evenkeel@127.0.0.1:{}/postgres?sslmode=disable", postgres.port);
    let backend = "terraform {\n  backend \"pg\" {}\n}\n";
    let mut files =
        declared(|name| format!(", backendConfig: {{ conn_str: \"{address}\", schema_name: state_{name} }}"));
    files.extend(round(0, backend));
    let mut stage = Stage::new(&files).await;
    killed(&mut stage, backend, 28, 0x2545_f491_4f6c_dd1d).await;
    // No lock remains: another client gets the lock at once.
    let locks = Command::new("psql")
        .args(["-tA", &address, "-c", "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&locks.stdout).trim(), "0");
}
