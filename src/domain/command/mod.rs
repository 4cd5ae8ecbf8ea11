//! Parses comments to commands (R6.5): one per line, outside of quotes and code.
//!
//! Decides which commands a comment contains. Never decides whether the author may give them, and never parses a
//! comment that is larger than the forge allows.
//! *Invariant:* any text is parsed in bounded time. A text without a command is not an error.

use std::ops::Range;

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

use crate::{
    domain::declaration::{schema::Verb, select::Selector, validate::nearest},
    model::Duration,
};

/// GitHub's limit for a comment, in bytes. A longer comment was not written on GitHub.
pub const COMMENT_BYTES_MAX: usize = 65_536;
/// The most commands that one comment may contain.
const COMMANDS_MAX: usize = 20;

/// The available commands.
pub const VERBS: [Verb; 15] = [
    Verb::Plan,
    Verb::Apply,
    Verb::Drift,
    Verb::Rebalance,
    Verb::Revert,
    Verb::Adopt,
    Verb::Snooze,
    Verb::Suspend,
    Verb::Resume,
    Verb::Confirm,
    Verb::Destroy,
    Verb::Forget,
    Verb::Cancel,
    Verb::Unlock,
    Verb::Help,
];
/// The commands of a later version.
const LATER: [Verb; 3] = [Verb::Rotate, Verb::ApprovePolicy, Verb::Release];

/// A command of a principal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// The verb.
    pub verb: Verb,
    /// The selected instances; `None` selects every instance of the place of the command, such as a pull request.
    pub selector: Option<Selector>,
    /// The digest of the requested plan, or its first digits.
    pub digest: Option<String>,
    /// The duration of `/snooze`.
    pub lasting: Option<Duration>,
}

/// A line that starts like a command and is not valid; the text is the reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unclear(pub String);

/// Returns the commands of a comment, in order.
pub fn parse(comment: &str) -> Vec<Result<Command, Unclear>> {
    let too_long = comment.len() > COMMENT_BYTES_MAX;
    let end = comment.char_indices().map(|(at, _)| at).take_while(|at| *at <= COMMENT_BYTES_MAX).last().unwrap_or(0);
    let text = if too_long { &comment[..end] } else { comment };
    let quoted = quoted(text);
    let mut found = vec![];
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let start = at;
        at += line.len();
        let trimmed = line.trim_end();
        let indent = trimmed.len() - trimmed.trim_start().len();
        let place = start + indent;
        let Some(rest) = trimmed.trim_start().strip_prefix('/') else { continue };
        if indent > 3 || quoted.iter().any(|range| range.contains(&place)) {
            continue;
        }
        match parse_line(rest) {
            None => {}
            Some(_) if too_long => {
                let message = format!(
                    "The comment is longer than {COMMENT_BYTES_MAX} bytes, so none of its commands was read; write the command in a comment of its own."
                );
                return vec![Err(Unclear(message))];
            }
            Some(command) => found.push(command),
        }
        if found.len() >= COMMANDS_MAX {
            found.push(Err(Unclear(format!(
                "Only the first {COMMANDS_MAX} commands of a comment are read; write the others in another one."
            ))));
            break;
        }
    }
    found
}

/// Returns the ranges of a text that are quotes, code or HTML.
fn quoted(text: &str) -> Vec<Range<usize>> {
    let mut ranges = vec![];
    for (event, range) in Parser::new_ext(text, Options::empty()).into_offset_iter() {
        match event {
            Event::Start(Tag::BlockQuote(_) | Tag::CodeBlock(_) | Tag::HtmlBlock)
            | Event::Code(_)
            | Event::Html(_)
            | Event::InlineHtml(_) => ranges.push(range),
            Event::End(TagEnd::BlockQuote(_)) => {}
            _ => {}
        }
    }
    ranges
}

/// Parses one line after its slash; `None` if the line is not a command of Evenkeel.
fn parse_line(rest: &str) -> Option<Result<Command, Unclear>> {
    if rest.starts_with(char::is_whitespace) {
        return None;
    }
    let mut tokens: Vec<&str> = rest.split_whitespace().collect();
    let name = tokens.first().copied()?;
    if !name.bytes().all(|c| c.is_ascii_alphabetic() || matches!(c, b'-' | b',' | b';' | b':' | b'.')) {
        return None;
    }
    tokens.remove(0);
    let Some(verb) = VERBS.into_iter().chain(LATER).find(|verb| verb.name() == name) else {
        let names: Vec<String> = VERBS.into_iter().chain(LATER).map(Verb::name).collect();
        let suggestion = nearest(name, names.iter().map(String::as_str))?;
        return Some(Err(Unclear(format!(
            "`/{name}` is not a command; did you mean `/{suggestion}`? `/help` lists the commands."
        ))));
    };
    if LATER.contains(&verb) {
        return Some(Err(Unclear(format!("`/{name}` is not available in this version; `/help` lists the commands."))));
    }
    if let Some(option) = tokens.iter().find(|token| token.starts_with("--")) {
        return Some(Err(Unclear(format!("`{option}` is not an option of `/{name}`; leave it out."))));
    }
    let lasting = tokens.last().filter(|_| verb == Verb::Snooze).and_then(|token| token.parse::<Duration>().ok());
    if lasting.is_some() {
        tokens.pop();
    }
    let starts_with_digit = |token: &&&str| verb == Verb::Snooze && token.starts_with(|c: char| c.is_ascii_digit());
    if let Some(token) = tokens.last().filter(starts_with_digit) {
        return Some(Err(Unclear(format!(
            "`{token}` is not a duration; write one such as `14d` or `12h`, of one second to ten years."
        ))));
    }
    // After a selector only a digest is possible, so a digest without a decimal digit is accepted there.
    let digest = tokens.last().copied().filter(|token| is_digest(token) || tokens.len() == 2 && is_hex(token));
    let digest = digest.map(str::to_owned);
    if digest.is_some() {
        tokens.pop();
    }
    if digest.is_some() && !matches!(verb, Verb::Apply | Verb::Destroy) {
        return Some(Err(Unclear(format!(
            "a digest belongs to `/apply` and `/destroy`; `/{name}` takes a selector alone."
        ))));
    }
    let selector = match tokens.join(" ") {
        text if text.is_empty() => None,
        text => match text.parse::<Selector>() {
            Ok(selector) => Some(selector),
            Err(error) => {
                return Some(Err(Unclear(format!(
                    "{error}. Write `/{name} staging`, `/{name} staging/network` or `/{name} kind:tofu and not production`."
                ))));
            }
        },
    };
    Some(Ok(Command { verb, selector, digest, lasting }))
}

/// Returns whether a text is six or more hex digits.
fn is_hex(text: &str) -> bool {
    (6..=64).contains(&text.len()) && text.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'))
}

/// Returns whether a text is a digest: hex digits with at least one decimal digit, which excludes names.
fn is_digest(text: &str) -> bool {
    is_hex(text) && text.bytes().any(|c| c.is_ascii_digit())
}

/// Returns the reply to `/help`.
pub fn help() -> String {
    let line = |verb: Verb| match verb {
        Verb::Plan => "| `/plan [SELECTOR]` | plan again and show what would be done |",
        Verb::Apply => "| `/apply [SELECTOR] [DIGEST]` | apply the plan that was posted last |",
        Verb::Drift => "| `/drift [SELECTOR]` | look at the world now and say what drifted |",
        Verb::Rebalance => "| `/rebalance [SELECTOR]` | make the moves that bring shards into balance, now |",
        Verb::Revert => "| `/revert [SELECTOR]` | propose to return the world to what was applied |",
        Verb::Adopt => "| `/adopt [SELECTOR]` | propose to declare what was observed |",
        Verb::Snooze => "| `/snooze [SELECTOR] [14d]` | leave this drift alone, 30 days or as long as you say |",
        Verb::Suspend => "| `/suspend [SELECTOR]` | observe, and do nothing |",
        Verb::Resume => "| `/resume [SELECTOR]` | act again |",
        Verb::Confirm => "| `/confirm SELECTOR` | another target than before is the right one |",
        Verb::Destroy => "| `/destroy SELECTOR [DIGEST]` | destroy what is no longer declared |",
        Verb::Forget => "| `/forget SELECTOR` | stop managing instances that are no longer declared |",
        Verb::Cancel => "| `/cancel [SELECTOR]` | end a run at its next safe point |",
        Verb::Unlock => "| `/unlock SELECTOR` | release a state lock whose holder is dead |",
        Verb::Help => "| `/help` | this |",
        _ => "",
    };
    let lines: Vec<&str> = VERBS.into_iter().map(line).collect();
    format!(
        "| command | what it does |\n|---|---|\n{}\n\nA selector is `staging`, `staging/network`, `kind:tofu`, `label:tier=app`, `changed`, `drifted`, `pending`, joined by `and`, `or`, `not` and parentheses. Commands stand one to a line.",
        lines.join("\n")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(comment: &str) -> String {
        let shown = |found: Result<Command, Unclear>| match found {
            Ok(c) => format!(
                "{} {} {}",
                c.verb.name(),
                c.selector.map_or("-".into(), |s| s.to_string()),
                c.digest.unwrap_or("-".into())
            ),
            Err(Unclear(message)) => format!("! {message}"),
        };
        parse(comment).into_iter().map(shown).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn r6_5_reads_commands_and_nothing_else() {
        assert_eq!(check("/apply staging"), "apply env:staging -");
        assert_eq!(
            check("looks good\n\n/apply staging/network 9c1e0f\n/drift"),
            "apply (env:staging and component:network) 9c1e0f\ndrift - -"
        );
        assert_eq!(check("> /apply staging"), "");
        assert_eq!(check("```\n/apply staging\n```"), "");
        assert_eq!(check("    /apply staging"), "");
        assert_eq!(check("`/apply staging`"), "");
        assert_eq!(check("please /apply staging"), "");
        assert_eq!(check("<!--\n/apply staging\n-->"), "");
        assert_eq!(check("/etc/passwd and /lgtm"), "");
        assert_eq!(check("/lgtm"), "");
    }

    #[test]
    fn replies_to_invalid_commands() {
        insta::assert_snapshot!(check("/aply staging"), @"! `/aply` is not a command; did you mean `/apply`? `/help` lists the commands.");
        insta::assert_snapshot!(check("/rotate"), @"! `/rotate` is not available in this version; `/help` lists the commands.");
        insta::assert_snapshot!(check("/apply --now"), @"! `--now` is not an option of `/apply`; leave it out.");
        insta::assert_snapshot!(check("/apply staging dev"), @"! `staging dev` is not a selector: `dev` stands after its end; join parts with `and` or `or`. Write `/apply staging`, `/apply staging/network` or `/apply kind:tofu and not production`.");
    }

    #[test]
    fn a_comment_of_a_megabyte_is_answered_and_not_read() {
        assert!(check(&format!("/apply staging\n{}", "x".repeat(1 << 20))).starts_with("! The comment is longer"));
        assert_eq!(check(&"é".repeat(1 << 20)), "");
    }
}
