//! Formats all comments and descriptions on pull requests: one named function for each text.

use super::approvals;
use super::list::names;
use super::{counts, diff, layout};
use crate::{
    domain::{
        declaration::schema::Approvals,
        journal::{Run, RunState, Status},
        plan::{InstancePlan, Plan, validation::Violation},
        remediation::Group,
    },
    model::{
        Change, Digest, EnvironmentName, InstanceId, Problem, PullNumber, ResourceChange, Revision, Verdict, WaitingOn,
    },
};

/// Returns the reply to a command that created runs.
pub fn begun(runs: &[Run]) -> String {
    let messages = runs.iter().map(|run| {
        if run.kind.destroys() {
            let gone = names(run.instances.keys().map(ToString::to_string));
            format!("Run {} destroys what is left of {gone}.", run.id)
        } else if run.kind.remediation().is_some() {
            format!("Run {} does what was merged here.", run.id)
        } else {
            format!("Run {} applies `{}`.", run.id, run.environment)
        }
    });
    messages.collect::<Vec<_>>().join(" ")
}

/// The longest body, in characters. GitHub's limit is 65,536; the difference is reserved for the marker.
const BODY_LENGTH_MAX: usize = 64_000;
/// The most lines of one instance's diff.
const DIFF_LINES_MAX: usize = 400;

/// Returns the hidden line that identifies a comment.
pub fn marker(what: &str) -> String {
    format!("<!-- evenkeel:{what} -->")
}

fn close(mut body: String, what: &str) -> String {
    if body.chars().count() > BODY_LENGTH_MAX {
        let cut: String = body.chars().take(BODY_LENGTH_MAX).collect();
        let open_fence = cut.matches("````").count() % 2 == 1;
        let open_details =
            cut.matches("<details>").count() - cut.matches("</details>").count().min(cut.matches("<details>").count());
        body = cut
            + if open_fence { "\n````" } else { "" }
            + &"\n</details>".repeat(open_details)
            + "\n\n*The rest was too long for a comment; `evenkeel plan` shows all of it.*";
    }
    format!("{}\n{}", body.trim_end(), marker(what))
}

/// The `because` of a plan that destroys orphans.
pub const DESTROY: &str = "destroy";

fn title(plan: &Plan) -> String {
    let mut parts: Vec<String> = vec![];
    let summary = &plan.summary;
    parts.push(format!("{} to change", summary.update));
    parts.push(format!("{} to create", summary.create));
    if summary.replace > 0 {
        parts.push(format!("{} to replace", summary.replace));
    }
    parts.push(format!("{} to destroy", summary.destroy));
    if summary.moves > 0 {
        parts.push(format!("{} to move ({})", summary.moves, layout::size(summary.move_bytes)));
    }
    let what = if plan.because == DESTROY { "Plan to destroy in" } else { "Plan for" };
    format!("### {what} `{}` at `{}` · {}", plan.environment, plan.revision.short(), parts.join(", "))
}

/// Returns the condition that an instance waits for, for the table.
pub fn waiting(on: &WaitingOn) -> String {
    match on {
        WaitingOn::KnownAfter { instance } => format!("known after `{}` is applied", instance.component),
        WaitingOn::Upstream { instance } => format!("`{instance}`, which it depends on, has to be applied first"),
        WaitingOn::Promotion { instance } => {
            format!("`{instance}` has to be applied first, with what it has at this revision")
        }
        WaitingOn::Soak { instance, until } => {
            format!("`{instance}` has to stay healthy until {}", until.format("%Y-%m-%d %H:%M UTC"))
        }
        WaitingOn::Rollout { until } => {
            format!("the applied resources to become ready, until {} at most", until.format("%Y-%m-%d %H:%M UTC"))
        }
        WaitingOn::Apply => "a principal's `/apply`".into(),
        WaitingOn::Approval { digest } => {
            format!("a principal's `/apply`: plan `{}` was not covered by what was approved", digest.short())
        }
        WaitingOn::FirstContact => {
            "a principal's `/apply`: the target already holds something that was never applied from here".into()
        }
        WaitingOn::Suspended => "a principal's `/resume`, or a declaration without `suspend: true`".into(),
        WaitingOn::Confirm => "a principal's `/confirm`: the target is not the one that was applied".into(),
    }
}

fn what_changes(instance: &InstancePlan) -> String {
    if let Some(problem) = &instance.problem {
        return format!("**no plan**: {}", one_line(problem));
    }
    if let Some(on) =
        instance.waiting_on.iter().find(|on| matches!(on, WaitingOn::KnownAfter { .. } | WaitingOn::Upstream { .. }))
        && instance.digest.is_none()
    {
        return format!("*{}*", waiting(on));
    }
    let resources: Vec<&ResourceChange> = instance.actions.iter().flat_map(|action| &action.resources).collect();
    counts(&resources)
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

/// The most warnings of one instance that are shown.
const WARNINGS_MAX: usize = 10;

fn details(instance: &InstancePlan) -> String {
    let resources: Vec<&ResourceChange> = instance.actions.iter().flat_map(|action| &action.resources).collect();
    if resources.is_empty() {
        return String::new();
    }
    let lines: Vec<String> = resources.iter().flat_map(|resource| diff(resource)).collect();
    let omitted = lines.len().saturating_sub(DIFF_LINES_MAX);
    let more = if omitted > 0 { format!("\n… {omitted} more lines") } else { String::new() };
    let shown = lines.into_iter().take(DIFF_LINES_MAX).collect::<Vec<_>>().join("\n").replace("````", "'''");
    format!(
        "<details><summary><code>{}</code>: {}</summary>\n\n````diff\n{shown}{more}\n````\n\n</details>\n\n",
        instance.id.component,
        counts(&resources)
    )
}

/// Returns the comment on a pull request that can't be merged and therefore not planned.
pub fn conflict(message: &str, what: &str) -> String {
    close(format!("Not planned: {message}. Rebase it on the branch, or merge the branch into it."), what)
}

/// A note above the plan in a comment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Whether the plan is blocked and can't run.
    pub fatal: bool,
    /// The text, without a full stop.
    pub message: String,
}

impl From<Violation> for Note {
    fn from(violation: Violation) -> Self {
        Self { fatal: violation.is_fatal(), message: violation.to_string() }
    }
}

/// Returns the plan of one environment.
pub fn plan(plan: &Plan, notes: &[Note], what: &str) -> String {
    let mut body = plan_table(plan);
    for note in notes {
        body.push_str(&format!("{} {}.\n", if note.fatal { "**Blocked:**" } else { "**Note:**" }, note.message));
    }
    body.push_str(&plan_waits(plan));
    if plan.instances.iter().any(|instance| instance.problem.is_some()) {
        body.push_str("This plan is not complete, so it can't be applied; mend what stands above.\n");
    } else if plan.because == DESTROY {
        body.push_str(&format!("Digest `{}`. `/destroy` with it does this, and no more.\n", plan.digest.short()));
    } else if plan.has_work() {
        let digest = plan.digest.short();
        body.push_str(&format!("Digest `{digest}`. Apply with `/apply {}` once it is merged.\n", plan.environment));
    } else {
        body.push_str(&format!("Nothing would change in `{}`.\n", plan.environment));
    }
    close(body, what)
}

/// A commit of the branch that is part of the pending changes.
pub struct Concerned {
    /// The pull request of which the commit is the merge.
    pub pull: Option<PullNumber>,
    /// The commit.
    pub commit: Revision,
    /// The first line of the commit message.
    pub subject: String,
    /// Whether the pull request has a plan.
    pub shown: bool,
}

/// Returns a note with the other pull requests and commits of a plan of all pending changes; `None` if there are none.
pub fn concerns(all: &[Concerned], own: PullNumber) -> Option<Note> {
    let others = all.iter().filter(|concerned| concerned.pull != Some(own));
    let named: Vec<String> = others
        .map(|concerned| match concerned.pull {
            Some(number) => number.to_string(),
            None => format!("`{}` ({})", concerned.commit.short(), one_line(&concerned.subject)),
        })
        .collect();
    let message = format!("this is all that is pending, and also concerns {}", named.join(", "));
    (!named.is_empty()).then_some(Note { fatal: false, message })
}

/// Returns the comment on a pull request whose plan is on a newer one.
pub fn superseded(environment: &EnvironmentName, newer: PullNumber, what: &str) -> String {
    let message = format!(
        "The plan of `{environment}` is superseded by {newer}, which carries all that is pending there; comment `/apply {environment}` there."
    );
    close(message, what)
}

/// Returns a note with the approvals that an apply needs.
pub fn needs(environment: &EnvironmentName, needs: &Approvals) -> Note {
    let message = format!("`/apply {environment}` needs {}, given to this plan", approvals::needed(needs));
    Note { fatal: false, message }
}

/// Returns the description of a pull request that proposes pending changes for review.
pub fn proposed_apply(plan: &Plan, path: &str) -> String {
    let mut body = format!(
        "This is pending and came by no pull request. Merging this applies it: the actions in `{path}` are planned afresh and run as far as they are covered by what stands here. Reviews of this pull request are the approvals. Delete a whole action from the file to leave it pending.\n\n"
    );
    body.push_str(&plan_table(plan));
    body.push_str(&plan_waits(plan));
    close(body, &format!("apply env={} digest={}", plan.environment, plan.digest))
}

/// Returns the changes of a plan, in order.
fn plan_table(plan: &Plan) -> String {
    let mut body = title(plan);
    body.push_str("\n\n| order | component | what | changes |\n|---|---|---|---|\n");
    for instance in &plan.instances {
        body.push_str(&format!(
            "| {} | `{}` | {} | {} |\n",
            instance.order,
            instance.id.component,
            instance.kind,
            what_changes(instance)
        ));
    }
    body.push('\n');
    for instance in &plan.instances {
        body.push_str(&details(instance));
        if let Some(plan) = &instance.layout {
            body.push_str(&format!("`{}`: {}", instance.id.component, layout::drawn(plan)));
        }
    }
    for instance in &plan.instances {
        for warning in instance.warnings.iter().take(WARNINGS_MAX) {
            body.push_str(&format!("**Warning:** `{}`: {}\n\n", instance.id.component, one_line(warning)));
        }
    }
    for instance in &plan.instances {
        let drifted: Vec<&str> = instance
            .actions
            .iter()
            .flat_map(|a| &a.resources)
            .filter(|r| r.reverts_drift)
            .map(|r| r.resource.as_str())
            .collect();
        if !drifted.is_empty() {
            body.push_str(&format!(
                "`{}` also reverts drift: {} changed by another writer.\n\n",
                instance.id.component,
                list(&drifted)
            ));
        }
    }
    body
}

fn plan_waits(plan: &Plan) -> String {
    let waits: Vec<String> = plan
        .instances
        .iter()
        .flat_map(|i| i.waiting_on.iter().map(move |on| (i, on)))
        .filter(|(_, on)| !matches!(on, WaitingOn::KnownAfter { .. }))
        .map(|(i, on)| format!("`{}`: {}", i.id.component, waiting(on)))
        .collect();
    if waits.is_empty() { String::new() } else { format!("\nWaits for: {}\n\n", waits.join(" · ")) }
}

fn list(names: &[&str]) -> String {
    let were = if names.len() == 1 { "was" } else { "were" };
    format!("{} {were}", self::names(names.iter().map(|name| (*name).to_owned())))
}

/// Returns the comment on invalid declarations of a pull request.
pub fn problems(problems: &[Problem], what: &str) -> String {
    const SHOWN: usize = 30;
    let mut body = format!(
        "### {} in the declarations\n\n",
        if problems.len() == 1 { "1 problem".into() } else { format!("{} problems", problems.len()) }
    );
    for problem in problems.iter().take(SHOWN) {
        body.push_str(&format!("- `{}:{}:{}`: {}", problem.file, problem.line, problem.column, problem.message));
        for more in [&problem.expected, &problem.hint].into_iter().flatten() {
            body.push_str(&format!("; {more}"));
        }
        body.push('\n');
    }
    if problems.len() > SHOWN {
        body.push_str(&format!("- and {} more; `evenkeel validate` lists all\n", problems.len() - SHOWN));
    }
    close(body, what)
}

/// Returns the reply to a comment.
pub fn answer(to: u64, message: &str) -> String {
    close(message.to_owned(), &format!("answer to={to}"))
}

fn run_title(run: &Run) -> String {
    let what = if run.kind.remediation().is_some() { "Remediation of" } else { "Run for" };
    match &run.state {
        RunState::Open => format!("### {what} `{}` at `{}` · run {}", run.environment, run.revision.short(), run.id),
        RunState::Ended { .. } => {
            let applied = run.instances.values().filter(|i| i.status == Status::Applied).count();
            let changed = run.instances.values().any(|i| i.changed);
            let result = match (applied == run.instances.len(), changed) {
                (true, true) => "Applied",
                (true, false) => "Nothing to do",
                (false, true) => "Applied in part",
                (false, false) => "Stopped before the first change",
            };
            format!("### {result} · `{}` at `{}` · run {}", run.environment, run.revision.short(), run.id)
        }
    }
}

/// Returns the comment of a run, in progress or ended.
pub fn run(run: &Run) -> String {
    let mut body = run_title(run);
    body.push_str(&format!(
        "\n\nAuthorised by {}.\n\n| order | component | state | note |\n|---|---|---|---|\n",
        run.because
    ));
    let mut instances: Vec<_> = run.instances.iter().collect();
    instances.sort_by_key(|(id, instance)| (instance.order, (*id).clone()));
    for (id, instance) in instances {
        let state = match instance.status {
            Status::New => "not started",
            Status::Planned => "planned",
            Status::Waiting => "waits",
            Status::Running | Status::Effected => "running",
            Status::Applied if instance.changed => "**applied**",
            Status::Applied => "nothing to do",
            Status::Failed => "**failed**",
            Status::Skipped => "not tried",
            Status::Superseded => "superseded",
            Status::Cancelled => "cancelled",
        };
        body.push_str(&format!(
            "| {} | `{}` | {state} | {} |\n",
            instance.order,
            id.component,
            one_line(&instance.message)
        ));
    }
    if let RunState::Ended { message } = &run.state {
        body.push_str(&format!("\n{message}\n"));
    }
    close(body, &format!("run id={}", run.id))
}

/// Returns the title of a remediation pull request.
pub fn proposal_title(group: &Group, adopts: bool) -> String {
    let count = group.drifted.len();
    let more = if count > 1 { format!(" and {} more", count - 1) } else { String::new() };
    let what = if adopts || is_refresh(group) { "Adopt" } else { "Revert" };
    format!("{what} drift in {}/{}{more}", group.environment, group.root)
}

/// Returns whether no apply would change any drift of the group.
fn is_refresh(group: &Group) -> bool {
    let mut resources =
        group.drifted.iter().flat_map(|instance| &instance.actions).flat_map(|action| &action.resources);
    resources.all(|resource| resource.change == Change::Run)
}

/// Returns the description of a remediation pull request.
pub fn proposal(group: &Group, path: &str, observed: &str) -> String {
    let environment = &group.environment;
    let (what, end) = if is_refresh(group) {
        (
            format!(
                "Something in `{environment}` differs from the last apply in what the configuration does not set, so no apply would change it. Merging this lets the state take it over, by a refresh; nothing in the world is changed."
            ),
            "`-` is what was applied, `+` is what was observed. `drift.strict: false` leaves such differences out.\n",
        )
    } else {
        (
            format!(
                "The world no longer is what was applied in `{environment}`. Merging this returns it: the actions in `{path}` are planned afresh and run, and no others. Delete a whole action from the file to leave that drift alone."
            ),
            "`-` is what was observed, `+` is what was applied and would be again. Closing this unmerged leaves the drift as it is; `/adopt` makes this declare what was observed instead, where that can be done.\n",
        )
    };
    let body = format!("{what}\n\nSeen {observed}.\n\n{}{end}", drift_diffs(group));
    close(body, &proposal_marker(environment, group.root.as_str(), &group.digest))
}

/// Returns the description of a pull request that adopts drift.
pub fn adoption(group: &Group, files: &[String], observed: &str) -> String {
    let files = names(files.iter().cloned());
    let mut body = format!(
        "The world no longer is what was applied in `{}`. Merging this declares what was observed, in {files}. No other instance is changed by it, and no resource.\n\nSeen {observed}.\n\n",
        group.environment
    );
    body.push_str(&drift_diffs(&swapped(group)));
    body.push_str("`-` is what was applied, `+` is what was observed and would be declared. `/revert` makes this return the world instead.\n");
    close(body, &proposal_marker(&group.environment, group.root.as_str(), &group.digest))
}

/// Returns a group in which `before` is the applied value and `after` the observed one.
fn swapped(group: &Group) -> Group {
    let mut swapped = group.clone();
    let actions = swapped.drifted.iter_mut().flat_map(|instance| &mut instance.actions);
    let resources = actions.flat_map(|action| &mut action.resources);
    for field in resources.flat_map(|resource| &mut resource.fields) {
        std::mem::swap(&mut field.before, &mut field.after);
    }
    swapped
}

/// Returns the drift by instance.
fn drift_diffs(group: &Group) -> String {
    let mut body = String::new();
    for instance in &group.drifted {
        let resources: Vec<&ResourceChange> = instance.actions.iter().flat_map(|action| &action.resources).collect();
        body.push_str(&format!("**`{}`**: {}\n\n````diff\n", instance.id, drift_counts(&resources)));
        // An unknown value is computed from other fields and shows no change by a user.
        let known = |resource: &&ResourceChange| ResourceChange {
            fields: resource.fields.iter().filter(|field| !field.unknown).cloned().collect(),
            ..(*resource).clone()
        };
        let with_author = |resource: ResourceChange| {
            let by = instance.changed_by.get(&resource.resource).map(|by| format!("# changed {by}").replace('`', ""));
            diff(&resource).into_iter().chain(by)
        };
        let lines: Vec<String> =
            resources.iter().filter(|r| r.r#type != "output").map(known).flat_map(with_author).collect();
        let omitted = lines.len().saturating_sub(DIFF_LINES_MAX);
        body.push_str(&lines.into_iter().take(DIFF_LINES_MAX).collect::<Vec<_>>().join("\n").replace("````", "'''"));
        if omitted > 0 {
            body.push_str(&format!("\n… {omitted} more lines"));
        }
        body.push_str("\n````\n\n");
        body.push_str(&instance.layout.as_ref().map(layout::drawn).unwrap_or_default());
    }
    body
}

fn drift_counts(resources: &[&ResourceChange]) -> String {
    let count =
        |changes: &[Change]| resources.iter().filter(|r| r.r#type != "output" && changes.contains(&r.change)).count();
    let parts: Vec<String> = [
        ("missing", count(&[Change::Create])),
        ("changed", count(&[Change::Update, Change::Replace, Change::Run, Change::Move])),
        ("extra", count(&[Change::Destroy, Change::Forget])),
    ]
    .into_iter()
    .filter(|(_, n)| *n > 0)
    .map(|(name, n)| format!("{n} {name}"))
    .collect();
    if parts.is_empty() { "outputs differ".into() } else { parts.join(", ") }
}

/// Returns the name of the marker of a remediation pull request.
pub fn proposal_marker(environment: &EnvironmentName, root: &str, drift: &Digest) -> String {
    format!("remediation env={environment} root={root} drift={drift}")
}

/// Returns the closing comment of a proposal whose drift no longer exists.
pub fn healed(environment: &EnvironmentName, root: &str) -> String {
    let message = format!("The drift in `{environment}/{root}` is gone, so there is nothing to revert.");
    close(message, "withdrawn")
}

/// Returns the closing comment of a proposal whose drift is snoozed.
pub fn snoozed(environment: &EnvironmentName, root: &str) -> String {
    let message = format!("The drift in `{environment}/{root}` is snoozed, so nothing is proposed.");
    close(message, "withdrawn")
}

/// Returns the closing comment of a proposal that another one replaces.
pub fn regrouped(environment: &EnvironmentName, root: &str, group: &Group, other: PullNumber) -> String {
    let message = format!(
        "The drift in `{environment}/{root}` has another cause now, `{environment}/{}`: one pull request is about all of it, {other}.",
        group.root
    );
    close(message, "withdrawn")
}

/// Returns the reply to `/drift`.
pub fn drift(rows: &[(InstanceId, Verdict, String)]) -> String {
    let mut body = "| instance | verdict | |\n|---|---|---|\n".to_owned();
    for (id, verdict, message) in rows {
        body.push_str(&format!("| `{id}` | {} | {} |\n", verdict.words(), one_line(message)));
    }
    body
}
