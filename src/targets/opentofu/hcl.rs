//! Tokenizes HCL to find the files that a root module references.
//!
//! Returns words and quoted texts without comments. Does not evaluate HCL; tofu does.
//! *Invariant:* any input is read in linear time, without recursion over its size.

/// A token of a `.tf` file.
#[derive(Debug, PartialEq, Eq, Clone)]
pub enum Token<'t> {
    /// A name or keyword.
    Word(&'t str),
    /// The literal part of a quoted text, up to its first interpolation; the flag is true if the whole text is literal.
    Text(&'t str, bool),
    /// Any other character.
    Sign(char),
}

/// Returns the tokens of a text. Heredocs are read as words and signs, which can only add tokens.
pub fn tokens(text: &str) -> Vec<Token<'_>> {
    let bytes = text.as_bytes();
    let mut found = vec![];
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        match rest[0] {
            b'#' => at += line(rest),
            b'/' if rest.get(1) == Some(&b'/') => at += line(rest),
            b'/' if rest.get(1) == Some(&b'*') => {
                at += 2 + find(&rest[2..], b"*/").map_or(rest.len() - 2, |end| end + 2)
            }
            b'"' => at += quoted(text, at, &mut found),
            c if c.is_ascii_alphanumeric() || c == b'_' => {
                let length = rest.iter().take_while(|c| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'-')).count();
                found.push(Token::Word(&text[at..at + length]));
                at += length;
            }
            c if c.is_ascii_whitespace() => at += 1,
            _ => {
                let c = text[at..].chars().next().expect("`at` stands before the end, on a character");
                found.push(Token::Sign(c));
                at += c.len_utf8();
            }
        }
    }
    found
}

fn line(rest: &[u8]) -> usize {
    rest.iter().position(|c| *c == b'\n').unwrap_or(rest.len())
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

/// Reads a quoted text that starts at `start`. Returns its length with both quotes.
fn quoted<'t>(text: &'t str, start: usize, found: &mut Vec<Token<'t>>) -> usize {
    let bytes = text.as_bytes();
    let mut at = start + 1;
    let mut literal_end = None;
    let mut depth = 0_usize;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 1,
            b'$' | b'%' if bytes.get(at + 1) == Some(&b'{') && bytes[at - 1] != bytes[at] => {
                literal_end.get_or_insert(at);
                depth += 1;
                at += 1;
            }
            b'{' if depth > 0 => depth += 1,
            b'}' if depth > 0 => depth -= 1,
            b'"' if depth == 0 => {
                let end = literal_end.unwrap_or(at);
                found.push(Token::Text(&text[start + 1..end], literal_end.is_none()));
                return at + 1 - start;
            }
            b'"' => {
                // A quoted text inside an interpolation: `"${file("x")}"`.
                at += quoted(text, at, found) - 1;
            }
            b'\n' if depth == 0 => return at - start,
            _ => {}
        }
        at += 1;
    }
    bytes.len() - start
}

/// Whether the text of a root module declares a backend.
pub fn declares_backend(text: &str) -> bool {
    let tokens = tokens(text);
    let named = |window: &[Token<'_>]| {
        matches!(
            window,
            [Token::Word("backend"), Token::Text(..), Token::Sign('{')] | [Token::Word("cloud"), Token::Sign('{'), _]
        )
    };
    tokens.windows(3).any(named)
}

/// Returns the literal relative paths in a `.tf` file: `source`, `file(…)`, `"${path.module}/…"`. The flag is true if
/// the whole path is literal; otherwise the path may refer to anything below its folder.
pub fn relative_paths(text: &str) -> Vec<(String, bool)> {
    let mut paths = vec![];
    for token in tokens(text) {
        if let Token::Text(path, whole) = token
            && (path.starts_with("./") || path.starts_with("../"))
        {
            paths.push((path.to_owned(), whole));
        }
    }
    for prefix in ["${path.module}/", "${path.root}/", "${path.cwd}/"] {
        for (at, _) in text.match_indices(prefix) {
            let rest = &text[at + prefix.len()..];
            let end = rest.find(['"', '\n', '$', '%']).unwrap_or(rest.len());
            if rest[..end].contains("..") {
                paths.push((rest[..end].to_owned(), rest[end..].starts_with('"')));
            }
        }
    }
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_paths_and_backends_and_not_those_in_comments() {
        let text = r#"
            # module "a" { source = "../no" }
            /* backend "gcs" {} */
            module "a" { source = "../modules/a" } // "../neither"
            locals { x = file("${path.module}/../shared/x.json"), y = "./templates/${var.name}.tpl", z = "${file("./q")}" }
        "#;
        assert!(!declares_backend(text));
        let paths = relative_paths(text);
        assert!(paths.contains(&("../modules/a".into(), true)));
        assert!(paths.contains(&("./templates/".into(), false)));
        assert!(paths.contains(&("./q".into(), true)));
        assert!(paths.contains(&("../shared/x.json".into(), true)));
        assert_eq!(paths.len(), 4);
        assert!(declares_backend("terraform {\n backend \"gcs\" {\n}\n}"));
        assert!(declares_backend("terraform { cloud { } }"));
    }

    #[test]
    fn any_text_is_read() {
        for text in ["\"", "\"${", "\"\\", "/*", "<<EOT\n\"", "é\"é${\"é", "\"%{ if \"x\" }\""] {
            let _ = (tokens(text), relative_paths(text));
        }
    }
}
