//! Tests that problems of declarations are reported at their positions, all at once.

use std::sync::Arc;

use evenkeel::{
    domain::declaration::{self, Desired, Loader},
    model::Problem,
    ports::Files,
    targets::kinds,
};

use crate::support::Memory;

fn load(files: &dyn Files, root: &str) -> Arc<Desired> {
    declaration::load(kinds(), files, root)
}

const STATE_REPO: &str = "apiVersion: evenkeel.dev/v1alpha1\nkind: StateRepo\nmetadata: { name: acme }\nspec: {}\n";
const DEV: &str =
    "apiVersion: evenkeel.dev/v1alpha1\nkind: Environment\nmetadata: { name: dev }\nspec: { onMerge: apply }\n";

fn component(name: &str, more: &str) -> String {
    format!(
        "apiVersion: evenkeel.dev/v1alpha1\nkind: Component\nmetadata: {{ name: {name} }}\nspec:\n  environments: [dev]\n  tofu: {{ root: tf }}\n{more}"
    )
}

fn repository() -> Memory {
    Memory::new(&[
        ("state-repo/staterepo.yaml", STATE_REPO),
        ("state-repo/environments/dev.yaml", DEV),
        ("state-repo/components/good.yaml", &component("good", "")),
        ("tf/main.tf", "output \"ip\" { value = 1 }"),
    ])
}

fn shown(problem: &Problem) -> String {
    let mut text = problem.to_string();
    for more in [&problem.expected, &problem.hint].into_iter().flatten() {
        text.push_str(&format!(" | {more}"));
    }
    text
}

/// Checks the problems of a repository with one more file; the other component stays valid.
fn check(text: impl AsRef<[u8]>, expected: &[&str]) -> std::sync::Arc<Desired> {
    let desired = load(&repository().with("state-repo/components/x.yaml", text), "state-repo");
    let found: Vec<String> = desired.problems.iter().map(shown).collect();
    assert_eq!(found, expected);
    let good = &desired.instances[&"dev/good".parse().unwrap()];
    assert!(good.problems.is_empty() && good.digest.is_some(), "one bad file never stalls another");
    desired
}

#[test]
fn a_good_repository_has_no_problem() {
    let desired = load(&repository(), "state-repo");
    assert_eq!(desired.problems, []);
    assert!(desired.complete);
    assert_eq!(desired.instances.len(), 1);
}

#[test]
fn unknown_fields_are_named_with_what_was_meant() {
    check(
        "apiVersion: evenkeel.dev/v1alpha1\nkind: Component\nmetadata: { name: x }\nspec:\n  environments: [dev]\n  tofu:\n    root_dir: tf\n    workspaces: w\n",
        &[
            "components/x.yaml:7:5: `root` is missing | expected the field `root`",
            "components/x.yaml:7:5: unknown field `root_dir` | expected one of `backendConfig`, `connection`, `root`, `varFiles`, `variables`, `workspace` | did you mean `root`?",
            "components/x.yaml:8:5: unknown field `workspaces` | expected one of `backendConfig`, `connection`, `root`, `varFiles`, `variables`, `workspace` | did you mean `workspace`?",
        ],
    );
}

#[test]
fn fields_that_are_not_enforced_yet_are_refused() {
    check(
        component("x", "  hooks: {}\n"),
        &[
            "components/x.yaml:7:3: `hooks` is not supported yet | hooks come later | remove it: what is accepted is enforced",
        ],
    );
    check(
        "apiVersion: evenkeel.dev/v1alpha1\nkind: Component\nmetadata: { name: x }\nspec:\n  environments: [dev]\n  secret: { connection: c }\n",
        &[
            "components/x.yaml:5:3: the component has no kind | expected `tofu`",
            "components/x.yaml:6:3: `secret` is not supported yet | this kind of component comes later | remove it: what is accepted is enforced",
        ][1..],
    );
    let state_repo = "apiVersion: evenkeel.dev/v1alpha1\nkind: StateRepo\nmetadata: { name: r }\nspec:\n  permissions:\n  - { allow: [apply, now], to: [permission:write] }\n";
    let loaded = load(&repository().with("state-repo/staterepo.yaml", state_repo), "state-repo");
    let problems: Vec<String> = loaded.problems.iter().map(ToString::to_string).collect();
    assert!(
        problems.iter().any(|problem| problem.contains("a permission for `now` is not supported yet")),
        "{problems:?}"
    );
}

#[test]
fn the_layout_of_a_cluster_is_declared() {
    let citus = |text: &str| {
        format!(
            "apiVersion: evenkeel.dev/v1alpha1\nkind: Component\nmetadata: {{ name: x }}\nspec:\n  environments: [dev]\n  citus:\n    connection: citus\n{text}"
        )
    };
    let whole = "    nodes: [\"10.0.0.1\", {host: 10.0.0.2, port: 5433, shards: false, runsOn: \"google_compute_instance.worker[3]\"}]\n    tables:\n      - { name: public.tenants, distributionColumn: tenant_id, shardCount: 256, colocation: tenant }\n      - { name: tasks, distributionColumn: tenant_id, colocation: tenant }\n      - { name: public.plans, reference: true }\n    schemas: [{ name: reporting }]\n    placement: { rebalance: scheduled, balance: tenants, skew: 10%, pins: [{ table: public.tenants, tenant: \"42\", node: \"10.0.0.1:5432\" }], drain: [\"10.0.0.2:5433\"] }\n    moves: { transferMode: auto, parallel: 2, maxReplicationLag: 64MiB, diskHeadroom: 20%, diskSize: 1TiB, cooldown: 24h, pauseWhile: [{ query: SELECT 1, over: 2 }] }\n    capacity:\n      - { when: { tenantsPerWorker: 100000, for: 24h }, raise: { component: good, variable: worker_count, by: 1, max: 24 } }\n";
    let desired = check(citus(whole), &[]);
    let instance = &desired.instances[&"dev/x".parse().unwrap()];
    assert_eq!(instance.kind, "citus");
    let before = instance.digest;
    let digest = |text: &str| check(citus(text), &[]).instances[&"dev/x".parse().unwrap()].digest;
    // The way of moving is policy and not part of the layout.
    assert_eq!(digest(&whole.replace("parallel: 2", "parallel: 3")), before);
    assert_ne!(digest(&whole.replace("skew: 10%", "skew: 20%")), before);
    check(citus("    placement: { balance: { query: \"SELECT shardid, 1 FROM pg_dist_shard\" } }\n"), &[]);
}

#[test]
fn a_layout_that_can_not_be_is_refused_with_its_place() {
    let citus = |text: &str| {
        format!(
            "apiVersion: evenkeel.dev/v1alpha1\nkind: Component\nmetadata: {{ name: x }}\nspec:\n  environments: [dev]\n  citus:\n    connection: citus\n    {text}\n"
        )
    };
    for (text, message) in [
        (
            "tables: [{ name: Tasks, distributionColumn: a }]",
            "components/x.yaml:8:22: found `Tasks` | expected the name of a table (such as `public.tenants`, in small letters)",
        ),
        (
            "tables: [{ name: a }]",
            "components/x.yaml:8:14: the table `a` has to be one thing | expected one of `distributionColumn` and `reference: true`",
        ),
        (
            "tables: [{ name: a, reference: true, shardCount: 3 }]",
            "components/x.yaml:8:54: `a` is a reference table and has no `shardCount`",
        ),
        (
            "tables: [{ name: a, reference: true }, { name: a, reference: true }]",
            "components/x.yaml:8:44: the table `a` is here a second time",
        ),
        (
            "placement: { drain: [\"a b\"] }",
            "components/x.yaml:8:26: found `a b` | expected the address of a node (such as `10.0.3.9:5432`)",
        ),
        (
            "placement: { pins: [{ table: a, tenant: \"1\", node: w }], drain: [\"w:5432\"] }",
            "components/x.yaml:8:56: a tenant is pinned to `w:5432`, which is drained | pin it elsewhere, or leave the node out of `drain`",
        ),
        (
            "placement: { pins: [{ table: a, tenant: \"1\", node: v }, { table: a, tenant: \"1\", node: w }] }",
            "components/x.yaml:7:5: the tenant `1` of `a` is pinned to `v` and to `w`",
        ),
        (
            "capacity: [{ when: { for: 1h }, raise: { component: good, variable: v, by: 1, max: 2 } }]",
            "components/x.yaml:8:24: a rule of capacity has to have exactly one limit | expected one of `tenantsPerWorker`, `bytesPerWorker` and `diskUsed`",
        ),
        (
            "migrations: citus/nowhere",
            "components/x.yaml:8:17: `citus/nowhere` is not in the repository | paths are relative to the root of the git repository",
        ),
        (
            "tables: [{ name: \"${good.outputs.x}\", reference: true }]",
            "components/x.yaml:8:22: found `${good.outputs.x}` | expected the name of a table (such as `public.tenants`, in small letters)",
        ),
    ] {
        check(citus(text), &[message]);
    }
}

#[test]
fn wrong_types_values_and_units_are_named() {
    check(
        component(
            "x",
            "  dependsOn: good\n  drift: { every: 5, mode: fix }\n  checks: [{ name: c, tcp: \"a:1\", timeout: 1 hour }]\n",
        ),
        &[
            "components/x.yaml:7:14: found `good` | expected a list",
            "components/x.yaml:8:19: found `5` | expected a text | write \"5\"",
            "components/x.yaml:8:28: found `fix` | expected one of `report`, `propose`, `revert`",
            "components/x.yaml:9:44: found `1 hour` | expected a duration (such as `90d`, `1h30m` or `30s`, of one second to ten years)",
        ],
    );
}

#[test]
fn yaml_1_1_booleans_and_octal_numbers_are_refused_where_a_text_stands() {
    check(
        "apiVersion: evenkeel.dev/v1alpha1\nkind: Component\nmetadata: { name: x, labels: { on: yes } }\nspec:\n  environments: [dev]\n  tofu: { root: tf, variables: { region: no, mode: 0644 } }\n",
        &[
            "components/x.yaml:3:32: the key `on` is a boolean for other YAML readers | write \"on\"",
            "components/x.yaml:3:36: unquoted `yes` is a text here and a boolean for other YAML readers | expected quotes | write \"yes\" for the text, or the value that you mean",
            "components/x.yaml:6:42: unquoted `no` is a text here and a boolean for other YAML readers | expected quotes | write \"no\" for the text, or the value that you mean",
            "components/x.yaml:6:52: unquoted `0644` is a text here and another number for other YAML readers | expected quotes | write \"0644\" for the text, or the value that you mean",
        ],
    );
}

#[test]
fn duplicate_keys_and_names_are_named_with_the_first() {
    check(
        component("x", "  dependsOn: []\n  dependsOn: []\n"),
        &["components/x.yaml:8:3: `dependsOn` is here a second time | the first stands in line 7; keep one of them"],
    );
    let twice = format!("{}---\n{}", component("x", ""), component("x", ""));
    check(
        twice,
        &[
            "components/x.yaml:10:19: the Component `x` is defined a second time | the first stands in components/x.yaml:3; keep one of them",
        ],
    );
    let two = load(&repository().with("state-repo/components/x.yaml", STATE_REPO), "state-repo");
    assert_eq!(
        two.problems.iter().map(shown).collect::<Vec<_>>(),
        ["components/x.yaml:3:19: a second StateRepo | the first stands in staterepo.yaml:3; keep one of them"]
    );
    assert!(
        two.state_repo.is_none() && two.instances.values().all(|instance| !instance.problems.is_empty()),
        "of two StateRepos none is believed"
    );
}

#[test]
fn references_that_lead_nowhere_are_named() {
    let desired = check(
        component("x", "  dependsOn: [nobody, god]\n")
            .replace("tofu: { root: tf }", "tofu: { root: tf, variables: { ip: \"${gone.outputs.ip}\" } }"),
        &[
            "components/x.yaml:6:38: `gone` is used here and there is no `dev/gone` | declare it, or remove the reference",
            "components/x.yaml:7:14: there is no component `god` | did you mean `good`?",
            "components/x.yaml:7:14: there is no component `nobody` | declare it, or remove the reference",
        ],
    );
    assert!(desired.instances[&"dev/x".parse().unwrap()].digest.is_none(), "an instance with a problem is stalled");
}

#[test]
fn unknown_environments_are_named() {
    check(
        component("x", "").replace("[dev]", "[dev, deV2, def]"),
        &[
            "components/x.yaml:5:23: found `deV2` | expected a name (lower-case letters, digits and `-`, 63 at most, no `-` at either end)",
            "components/x.yaml:5:29: there is no environment `def` | did you mean `dev`?",
        ],
    );
    check(
        component("x", "  overrides: { staging: { protect: [a] } }\n"),
        &[
            "components/x.yaml:7:16: an override for `staging`, which is not among its environments | add it to `environments`, or remove the override",
        ],
    );
}

#[test]
fn a_ring_is_named_whole() {
    let text = format!(
        "{}---\n{}---\n{}",
        component("a", "  dependsOn: [c]\n"),
        component("b", "  dependsOn: [a]\n"),
        component("c", "  dependsOn: [b]\n")
    );
    let desired = check(
        text,
        &[
            "components/x.yaml:7:14: instances depend on each other: dev/a → dev/c → dev/b → dev/a | remove one `dependsOn` or reference",
        ],
    );
    for name in ["dev/a", "dev/b", "dev/c"] {
        assert!(!desired.instances[&name.parse().unwrap()].problems.is_empty());
    }
}

#[test]
fn interpolation_knows_two_words() {
    check(
        component("x", "").replace(
            "root: tf",
            "root: \"tf/${good.outputs.ip}\", variables: { a: \"${env}\", b: \"${good.outputs.ip\", c: \"$${kept}\" }",
        ),
        &[
            "components/x.yaml:6:17: an output is used where only `${environment}` may stand | what an instance is made from may not depend on outputs; pass the output as a variable",
            "components/x.yaml:6:58: `${env}` is not known | expected `${environment}` or `${NAME.outputs.KEY}` | write `$${` for a literal `${`",
            "components/x.yaml:6:71: `${` without its `}` | expected `${environment}` or `${NAME.outputs.KEY}` | write `$${` for a literal `${`",
        ],
    );
}

#[test]
fn texts_that_attack_the_reader_are_refused_in_bounded_time() {
    let mut bomb = "a: &a [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for (name, before) in ["b", "c", "d", "e", "f", "g", "h"].iter().zip(["a", "b", "c", "d", "e", "f", "g"]) {
        bomb.push_str(&format!("{name}: &{name} [*{before}, *{before}, *{before}, *{before}, *{before}, *{before}, *{before}, *{before}, *{before}, *{before}]\n"));
    }
    let bombed = load(&repository().with("state-repo/components/x.yaml", bomb), "state-repo");
    assert_eq!(bombed.problems[0].kind, "too-many-values");
    for open in ["[", "{a: ", "- "] {
        let deep = load(&repository().with("state-repo/components/x.yaml", open.repeat(20_000)), "state-repo");
        assert_eq!(
            deep.problems.iter().map(|p| p.kind.as_str()).collect::<Vec<_>>(),
            ["too-deep"],
            "{open}: {}",
            deep.problems[0]
        );
    }
    let large = load(&repository().with("state-repo/components/x.yaml", vec![b'#'; (4 << 20) + 1]), "state-repo");
    assert_eq!(
        large.problems[0].to_string(),
        "components/x.yaml: the file has 4194305 bytes, more than the 4194304 that are read"
    );
    check(
        [b"a: 1\nb: \xff\n".as_slice()].concat(),
        &["components/x.yaml:2:1: the file is not UTF-8 from this line on | save it as UTF-8"],
    );
    check("a: [1, 2\n", &["components/x.yaml:1:4: not YAML: unclosed bracket '[' | nothing after this place was read"]);
    check("", &["components/x.yaml: the file holds no document | remove it, or write a declaration"]);
    check(
        "kind: Nothing\n",
        &[
            "components/x.yaml:1:7: unknown kind \"Nothing\" | expected one of `StateRepo`, `Environment`, `Component`, `Schedule`, `Remediation`",
        ],
    );
}

#[test]
fn links_that_leave_the_repository_are_refused() {
    check(
        "link:/etc/passwd",
        &["components/x.yaml: the link leads out of the repository, to `/etc/passwd` | replace the link by the file"],
    );
    check(
        "link:../../../../etc/passwd",
        &[
            "components/x.yaml: the link leads out of the repository, to `../../../../etc/passwd` | replace the link by the file",
        ],
    );
    let inside = load(
        &repository()
            .with("state-repo/components/x.yaml", "link:../../elsewhere/x.yaml")
            .with("elsewhere/x.yaml", component("x", "")),
        "state-repo",
    );
    assert_eq!(inside.problems, []);
    let module = repository().with("tf/link.tf", "link:../../outside.tf");
    let desired = load(&module, "state-repo");
    assert_eq!(
        shown(&desired.problems[0]),
        "components/good.yaml:6:17: `tf/link.tf` leads out of the repository | paths are relative to the root of the git repository"
    );
}

#[test]
fn a_root_that_is_not_there_is_named() {
    check(
        component("x", "").replace("root: tf", "root: nowhere"),
        &[
            "components/x.yaml:6:17: `nowhere` is not in the repository | paths are relative to the root of the git repository",
        ],
    );
    check(
        component("x", "").replace("root: tf", "root: ../etc"),
        &[
            "components/x.yaml:6:17: `../etc` leads out of the repository | paths are relative to the root of the git repository",
        ],
    );
}

#[test]
fn schedules_and_principals_are_checked() {
    check(
        "apiVersion: evenkeel.dev/v1alpha1\nkind: Schedule\nmetadata: { name: s }\nspec: { cron: \"0 0 31 2 *\", timeZone: Mars/Olympus, run: drift, select: \"sort:x\" }\n",
        &[
            "components/x.yaml:4:39: `Mars/Olympus` is not a time zone | such as `Europe/London`",
            "components/x.yaml:4:73: `sort:x` is not a selector: `sort:` is not known; expected `env:`, `component:`, `kind:` or `label:` | such as `env:staging and kind:tofu`",
        ],
    );
    let broken = load(
        &repository().with(
            "state-repo/staterepo.yaml",
            STATE_REPO.replace("spec: {}", "spec: { permissions: [{ allow: [apply], to: [\"team:nobody\"] }] }"),
        ),
        "state-repo",
    );
    assert!(
        shown(&broken.problems[0]).starts_with("staterepo.yaml:4:46: `team:nobody` is no known principal"),
        "{}",
        shown(&broken.problems[0])
    );
    assert!(broken.state_repo.is_none(), "nobody may do anything without a StateRepo that reads");
    assert!(broken.instances.values().all(|instance| !instance.problems.is_empty()));
}

#[test]
fn an_empty_repository_is_a_problem() {
    let desired = load(&Memory::default(), "state-repo");
    assert_eq!(desired.problems.len(), 1);
    assert!(!desired.complete);
}

#[test]
fn r1_2_the_digest_is_the_content_and_never_the_path() {
    let digest = |memory: &Memory| load(memory, "state-repo").instances[&"dev/good".parse().unwrap()].digest;
    let base = repository()
        .with("tf/main.tf", "module \"m\" { source = \"../modules/m\" }")
        .with("modules/m/main.tf", "a")
        .with("modules/other/main.tf", "b");
    let first = digest(&base);
    assert!(first.is_some());
    assert_eq!(first, digest(&base.clone().with("modules/other/main.tf", "changed")), "another module is not in it");
    assert_ne!(first, digest(&base.clone().with("modules/m/main.tf", "changed")), "local modules are in it");
    assert_ne!(first, digest(&base.clone().with("tf/.terraform.lock.hcl", "x")), "the lock file is in it");
    let guarded = base
        .clone()
        .with("state-repo/components/good.yaml", component("good", "  protect: [a.b]\n  drift: { every: 1h }\n"));
    assert_eq!(first, digest(&guarded), "guards and policies are not in it");
    let moved = Memory::default()
        .with("state-repo/staterepo.yaml", STATE_REPO)
        .with("state-repo/environments/dev.yaml", DEV)
        .with("state-repo/components/good.yaml", component("good", "").replace("root: tf", "root: infra/tf"))
        .with("infra/tf/main.tf", "module \"m\" { source = \"../modules/m\" }")
        .with("infra/modules/m/main.tf", "a");
    assert_eq!(first, digest(&moved), "a folder that moved as a whole is the same content");
    let varied = base.with(
        "state-repo/components/good.yaml",
        component("good", "").replace("root: tf", "root: tf, variables: { a: \"${environment}\" }"),
    );
    assert_ne!(first, digest(&varied));
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(300))]

    /// Whatever changes from one revision to the next, an incremental load equals a first load.
    #[test]
    fn a_load_after_others_is_a_first_load(steps in proptest::collection::vec((0..14_usize, 0..4_usize, 0..4_usize), 1..25)) {
        let mut loader = Loader::new(kinds());
        let mut files = repository().with("tf/b/main.tf", "module \"m\" { source = \"../m\" }\n").with("tf/m/main.tf", "");
        for (what, index, other) in steps {
            let path = format!("state-repo/components/{}/c{index}.yaml", index % 2);
            let depends = |on: &str| component(&format!("c{index}"), &format!("  dependsOn: [{on}]\n"));
            let environment = "state-repo/environments/staging.yaml";
            files = match what {
                0..3 => files.with(&path, depends(&format!("c{other}"))),
                3 => files.with(&path, component(&format!("c{index}"), "").replace("root: tf", "root: tf/b, variables: { v: \"${c1.outputs.x}\" }")),
                4 => files.with(&path, component(&format!("c{index}"), "").replace("[dev]", "[dev, staging]")),
                5 => files.with(&path, component(&format!("c{other}"), "")),
                6 => files.with(&path, "a: [\n"),
                7 => files.with("tf/m/main.tf", format!("# {index}\n")),
                8 => files.with("tf/b/a.tfvars", format!("# {index}\n")),
                9 => files.with(environment, DEV.replace("name: dev", "name: staging").replace("spec: { onMerge: apply }", ["spec: {}", "spec: { after: dev }", "spec: { suspend: true }", "spec: { after: nowhere }"][other])),
                10 => files.with("state-repo/schedules/s.yaml", format!("apiVersion: evenkeel.dev/v1alpha1\nkind: Schedule\nmetadata: {{ name: s{index} }}\nspec: {{ cron: \"{other} 1 * * *\", run: drift, select: \"dev\" }}\n")),
                _ => {
                    files.0.remove(if what == 13 { environment } else { path.as_str() });
                    files
                }
            };
            let (incremental, fresh) = (loader.load(&files, "state-repo"), load(&files, "state-repo"));
            proptest::prop_assert_eq!(format!("{incremental:#?}"), format!("{fresh:#?}"));
        }
    }
}

#[test]
fn overrides_merge_for_their_environment_alone() {
    let staging = DEV.replace("name: dev", "name: staging");
    let text = component("x", "  overrides: { staging: { tofu: { workspace: w, variables: { a: 2 } } } }\n")
        .replace("[dev]", "[dev, staging]")
        .replace("root: tf", "root: tf, variables: { a: 1, b: \"${environment}\" }");
    let desired = load(
        &repository().with("state-repo/environments/staging.yaml", staging).with("state-repo/components/x.yaml", text),
        "state-repo",
    );
    assert_eq!(desired.problems, []);
    let tofu = |id: &str| desired.instances[&id.parse().unwrap()].spec.clone().unwrap().target.declared.clone();
    assert_eq!(
        (
            tofu("dev/x")["workspace"].clone(),
            tofu("dev/x")["variables"]["a"].clone(),
            tofu("dev/x")["variables"]["b"].clone()
        ),
        ("default".into(), 1.into(), "dev".into())
    );
    assert_eq!(
        (
            tofu("staging/x")["workspace"].clone(),
            tofu("staging/x")["variables"]["a"].clone(),
            tofu("staging/x")["variables"]["b"].clone()
        ),
        ("w".into(), 2.into(), "staging".into())
    );
}
