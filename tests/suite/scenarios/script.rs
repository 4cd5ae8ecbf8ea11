//! Parses transcripts: `#` begins a comment, `>` a command, and `<` a line of its result.
//!
//! Indented lines belong to the command above.

/// A comment, an empty line, or a command with its block.
pub(crate) struct Step {
    /// The original text.
    pub(crate) text: String,
    pub(crate) command: Option<String>,
    pub(crate) block: Vec<String>,
}

pub(crate) fn steps(text: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = vec![];
    for line in text.lines() {
        if line.starts_with("< ") {
            continue;
        }
        let whole = format!("{line}\n");
        if let Some(command) = line.strip_prefix("> ") {
            steps.push(Step { text: whole, command: Some(command.to_owned()), block: vec![] });
        } else if let (true, Some(last)) = (line.starts_with("    "), steps.last_mut()) {
            last.text.push_str(&whole);
            last.block.push(line[4..].to_owned());
        } else {
            assert!(line.is_empty() || line.starts_with('#'), "`{line}` is no comment, no command and no block");
            steps.push(Step { text: whole, command: None, block: vec![] });
        }
    }
    steps
}
