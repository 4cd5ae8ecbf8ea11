//! Matches changed paths against patterns of `protectedPaths`.

/// Returns whether a path matches a pattern: `*` matches any text without a slash, `**` matches any text.
pub fn matches(pattern: &str, path: &str) -> bool {
    fn from(pattern: &[u8], path: &[u8]) -> bool {
        match pattern {
            [] => path.is_empty(),
            [b'*', b'*', b'/', rest @ ..] if from(rest, path) => true,
            [b'*', b'*', rest @ ..] => (0..=path.len()).any(|at| from(rest, &path[at..])),
            [b'*', rest @ ..] => {
                let end = path.iter().position(|byte| *byte == b'/').unwrap_or(path.len());
                (0..=end).any(|at| from(rest, &path[at..]))
            }
            [byte, rest @ ..] => path.first() == Some(byte) && from(rest, &path[1..]),
        }
    }
    // A pattern with many stars takes exponential time on a long path.
    pattern.len() <= 200
        && pattern.matches('*').count() <= 6
        && path.len() <= 1000
        && from(pattern.as_bytes(), path.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stay_in_a_folder_and_double_stars_do_not() {
        for (pattern, path, is) in [
            ("policies/**", "policies/a/b.rego", true),
            ("policies/**", "policy/a.rego", false),
            ("policies/*", "policies/a/b.rego", false),
            ("**/main.tf", "main.tf", true),
            ("**/main.tf", "a/b/main.tf", true),
            ("state-repo/staterepo.yaml", "state-repo/staterepo.yaml", true),
            ("*.yaml", "a/b.yaml", false),
        ] {
            assert_eq!(matches(pattern, path), is, "{pattern} {path}");
        }
    }
}
