//! Renders HTML pages: the list of pull requests, and a page for each of them.
//!
//! A page contains the text, diff, comments, checks and buttons of the pull request.
//!
//! *Invariant:* every text is escaped; of the HTML in Markdown, only `<details>`, `<summary>` and `<code>` pass. A
//! form carries a token of this process, so that another site's page can't submit it.

use axum::{
    Form, Router,
    extract::{Path, State as Extract},
    response::{Html, IntoResponse, Redirect, Response},
    routing::{get, post},
};
use pulldown_cmark::{CowStr, Event, Options, Parser};
use serde::Deserialize;

use super::{
    Shared,
    state::{Pull, Refusal, State},
};

pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/", get(index))
        .route("/{owner}/{repository}/pull/{number}", get(page))
        .route("/{owner}/{repository}/pull/{number}/do", post(act))
}

const STYLE: &str = "
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --good: #1a7f37; --bad: #cf222e; --warn: #9a6700; --accent: #0969da; }
* { box-sizing: border-box }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1.5rem 1rem 4rem }
h1 { font-size: 1.5rem; margin: .2rem 0 .6rem } h3 { margin: 0 0 .6rem; font-size: 1.05rem }
a { color: var(--accent); text-decoration: none } a:hover { text-decoration: underline }
.muted { opacity: .7 } .pill { color: #fff; border-radius: 2rem; padding: .1rem .7rem; font-size: .85rem }
.open { background: var(--good) } .merged { background: #8250df } .closed { background: var(--bad) }
.box { border: 1px solid var(--line); border-radius: .5rem; margin: 1rem 0; overflow: hidden }
.box > header { background: var(--soft); padding: .45rem .9rem; border-bottom: 1px solid var(--line); font-size: .9rem }
.box > div { padding: .7rem .9rem; overflow-x: auto }
table { border-collapse: collapse; margin: .4rem 0 } td, th { border: 1px solid var(--line); padding: .25rem .6rem; text-align: left }
code, pre { font: 13px/1.45 ui-monospace, monospace } code { background: var(--soft); padding: .1rem .3rem; border-radius: .3rem } pre { background: var(--soft); padding: .6rem; border-radius: .4rem; overflow-x: auto; margin: .4rem 0 }
pre code { background: none; padding: 0 } .add { color: var(--good) } .del { color: var(--bad) } .hunk { opacity: .6 }
.success { color: var(--good) } .failure, .error { color: var(--bad) } .pending { color: var(--warn) }
textarea { width: 100%; min-height: 5rem; font: inherit; padding: .5rem; border-radius: .4rem; border: 1px solid var(--line) }
button, select { font: inherit; padding: .3rem .9rem; border-radius: .4rem; border: 1px solid var(--line); cursor: pointer } button.go { background: var(--good); color: #fff }
form { display: inline } ul.plain { list-style: none; padding: 0 } ul.plain li { padding: .3rem 0; border-bottom: 1px solid var(--line) }
";

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;")
}

fn whole(title: &str, body: &str) -> Html<String> {
    Html(format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'><title>{}</title><style>{STYLE}</style><body>{body}</body></html>",
        escape(title)
    ))
}

/// Converts Markdown to HTML; raw HTML becomes text, except `<details>`, `<summary>` and `<code>`.
fn markdown(text: &str) -> String {
    const LET_THROUGH: [&str; 6] = ["<details>", "</details>", "<summary>", "</summary>", "<code>", "</code>"];
    let let_through = |html: &str| -> String {
        let mut rest = html;
        let mut safe = String::new();
        while let Some(at) = rest.find('<') {
            safe.push_str(&escape(&rest[..at]));
            rest = &rest[at..];
            if let Some(comment) = rest.strip_prefix("<!--") {
                rest = comment.find("-->").map_or("", |end| &comment[end + 3..]);
            } else if let Some(tag) = LET_THROUGH.iter().find(|tag| rest.starts_with(**tag)) {
                safe.push_str(tag);
                rest = &rest[tag.len()..];
            } else {
                safe.push_str("&lt;");
                rest = &rest[1..];
            }
        }
        safe + &escape(rest)
    };
    let events = Parser::new_ext(text, Options::ENABLE_TABLES).map(|event| match event {
        Event::Html(html) | Event::InlineHtml(html) => Event::Html(CowStr::from(let_through(&html))),
        Event::Start(pulldown_cmark::Tag::Link { dest_url, .. }) if !dest_url.starts_with("http") => {
            Event::Text("".into())
        }
        other => other,
    });
    let mut html = String::new();
    pulldown_cmark::html::push_html(&mut html, events);
    colour(&html)
}

/// Colours the lines of fenced diffs.
fn colour(html: &str) -> String {
    let mut out = String::with_capacity(html.len());
    let mut inside = false;
    for line in html.split_inclusive('\n') {
        let starts = line.contains("<code class=\"language-diff\">");
        inside |= starts;
        let text = if starts { line.split_once("language-diff\">").map_or(line, |(_, rest)| rest) } else { line };
        if inside && !text.starts_with("</code>") {
            let head = &line[..line.len() - text.len()];
            out.push_str(&format!("{head}{}", diff_line(text)));
        } else {
            out.push_str(line);
        }
        if line.contains("</code></pre>") {
            inside = false;
        }
    }
    out
}

fn diff_line(escaped: &str) -> String {
    let class = match escaped.chars().next() {
        Some('+') => "add",
        Some('-') => "del",
        Some('@' | '!') => "hunk",
        _ => return escaped.to_owned(),
    };
    let (text, end) = escaped.strip_suffix('\n').map_or((escaped, ""), |text| (text, "\n"));
    match text.split_once("</code></pre>") {
        Some((text, rest)) => format!("<span class={class}>{text}</span></code></pre>{rest}{end}"),
        None => format!("<span class={class}>{text}</span>{end}"),
    }
}

fn pill(pull: &Pull) -> &'static str {
    match (pull.open, &pull.merged_as) {
        (true, _) => "<span class='pill open'>Open</span>",
        (false, Some(_)) => "<span class='pill merged'>Merged</span>",
        (false, None) => "<span class='pill closed'>Closed</span>",
    }
}

async fn index(Extract(shared): Extract<Shared>) -> Html<String> {
    let state = shared.lock().await;
    let (owner, name) = (&state.settings.owner, &state.settings.repository);
    let rows: String = state
        .records
        .pulls
        .values()
        .rev()
        .map(|pull| {
            format!(
                "<li>{} <a href='/{owner}/{name}/pull/{}'>#{} {}</a> <span class=muted>by {}</span></li>",
                pill(pull),
                pull.number,
                pull.number,
                escape(&pull.title),
                escape(&pull.author)
            )
        })
        .collect();
    let rows = if rows.is_empty() {
        "<li class=muted>No pull request yet. Push a branch and open one.</li>".into()
    } else {
        rows
    };
    whole(
        &format!("{owner}/{name}"),
        &format!(
            "<h1>{owner}/{name}</h1><p class=muted>git clone {}/{owner}/{name}.git</p><ul class=plain>{rows}</ul>",
            state.url()
        ),
    )
}

async fn page(
    Extract(shared): Extract<Shared>,
    Path((_, _, number)): Path<(String, String, u64)>,
) -> Result<Html<String>, Refusal> {
    let mut state = shared.lock().await;
    state.look("somebody")?;
    let pull = state.pull(number)?.clone();
    let mut body = format!(
        "<p><a href='/'>{}/{}</a></p><h1>{} <span class=muted>#{number}</span></h1><p>{} <b>{}</b> wants to merge <code>{}</code> into <code>{}</code></p>",
        escape(&state.settings.owner),
        escape(&state.settings.repository),
        escape(&pull.title),
        pill(&pull),
        escape(&pull.author),
        escape(&pull.branch),
        escape(&pull.base)
    );
    body.push_str(&said(&pull.author, "wrote", &markdown(&pull.body)));
    for comment in state.records.comments.iter().filter(|comment| comment.pull == number) {
        let html = markdown(&comment.body);
        let html = if comment.minimized {
            format!("<details><summary class=muted>This comment is outdated</summary>{html}</details>")
        } else {
            html
        };
        body.push_str(&said(&comment.author, &format!("at {}", comment.created_at.format("%H:%M:%S")), &html));
    }
    for review in state.records.reviews.iter().filter(|review| review.pull == number) {
        body.push_str(&said(&review.author, &review.state.to_lowercase().replace('_', " "), &markdown(&review.body)));
    }
    body.push_str(&checks(&state, &pull));
    body.push_str(&form(&state, &pull));
    body.push_str("<h3>Files</h3>");
    for file in state.files(number)? {
        let patch: String = file["patch"]
            .as_str()
            .unwrap_or_default()
            .split_inclusive('\n')
            .map(|line| diff_line(&escape(line)))
            .collect();
        body.push_str(&format!(
            "<div class=box><header>{} <span class=muted>{}</span></header><div><pre>{patch}</pre></div></div>",
            escape(file["filename"].as_str().unwrap_or_default()),
            file["status"].as_str().unwrap_or_default()
        ));
    }
    Ok(whole(&format!("{} #{number}", pull.title), &body))
}

fn said(who: &str, what: &str, html: &str) -> String {
    if html.trim().is_empty() {
        return format!("<p class=muted><b>{}</b> {}</p>", escape(who), escape(what));
    }
    format!(
        "<div class=box><header><b>{}</b> <span class=muted>{}</span></header><div>{html}</div></div>",
        escape(who),
        escape(what)
    )
}

fn checks(state: &State, pull: &Pull) -> String {
    let mut rows = String::new();
    let shas: Vec<&String> = [Some(&pull.head), pull.merged_as.as_ref()].into_iter().flatten().collect();
    let mut shown = std::collections::BTreeSet::new();
    // The statuses of the merge commit are newer than those of the head.
    for sha in shas.into_iter().rev() {
        for status in state.statuses_of(sha).into_iter().filter(|status| shown.insert(status.context.clone())) {
            let mark = match status.state.as_str() {
                "success" => "✓",
                "pending" => "●",
                _ => "✗",
            };
            rows.push_str(&format!(
                "<li><span class={}>{mark}</span> <b>{}</b> <span class=muted>{}</span></li>",
                status.state,
                escape(&status.context),
                escape(&status.description)
            ));
        }
    }
    if rows.is_empty() {
        String::new()
    } else {
        format!("<div class=box><header>Checks</header><div><ul class=plain>{rows}</ul></div></div>")
    }
}

fn form(state: &State, pull: &Pull) -> String {
    // List people first: the first user is the bot in most settings.
    let users: String = state
        .settings
        .users
        .iter()
        .skip(1)
        .chain(state.settings.users.first())
        .map(|user| format!("<option>{}</option>", escape(&user.login)))
        .collect();
    let buttons = if pull.open {
        "<button name=what value=approve>Approve</button> <button class=go name=what value=merge>Merge</button> <button name=what value=close>Close</button>"
    } else {
        ""
    };
    format!(
        "<div class=box><header>Say something</header><div><form method=post action='/{}/{}/pull/{}/do' style='display:block'><input type=hidden name=token value='{}'><textarea name=body placeholder='A comment, or a command such as /plan or /apply staging'></textarea><p>as <select name=user>{users}</select> <button name=what value=comment>Comment</button> {buttons}</p></form></div></div>",
        state.settings.owner, state.settings.repository, pull.number, state.page_token
    )
}

#[derive(Deserialize)]
struct Act {
    token: String,
    what: String,
    user: String,
    #[serde(default)]
    body: String,
}

async fn act(
    Extract(shared): Extract<Shared>,
    Path((owner, repository, number)): Path<(String, String, u64)>,
    Form(act): Form<Act>,
) -> Result<Response, Refusal> {
    let mut state = shared.lock().await;
    if act.token != state.page_token {
        return Err(Refusal(403, "this page is older than the forge; load it again".into()));
    }
    let user = state.user(&act.user).cloned().ok_or_else(|| Refusal(422, format!("{} is not a user", act.user)))?;
    let writes = matches!(user.permission.as_str(), "write" | "maintain" | "admin");
    match act.what.as_str() {
        "comment" => drop(state.comment(number, &user.login, &act.body)?),
        "approve" => drop(state.review(number, &user.login, "APPROVED", &act.body)?),
        "merge" if writes => drop(state.merge(number, &user.login, None)?),
        "close" if writes => state.edit_pull(number, &user.login, &serde_json::json!({"state": "closed"}))?,
        _ => return Err(Refusal(403, format!("{} may not do that", user.login))),
    }
    Ok(Redirect::to(&format!("/{owner}/{repository}/pull/{number}")).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markdown_lets_no_script_through() {
        let html = markdown(
            "<script>alert(1)</script>\n\n<details><summary><code>x</code></summary>\n\nbody <img src=x onerror=y>\n\n</details>\n<!-- evenkeel:plan -->\n\nsee [a](javascript:alert(1))",
        );
        assert!(
            !html.contains("<script")
                && !html.contains("<img")
                && !html.contains("javascript:")
                && !html.contains("evenkeel:plan"),
            "{html}"
        );
        assert!(html.contains("<details>") && html.contains("<summary>"), "{html}");
    }
}
