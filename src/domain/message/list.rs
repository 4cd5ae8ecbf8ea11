//! Formats lists of names.

/// Returns the first five names in backticks, and the number of the others.
pub fn names(names: impl Iterator<Item = String>) -> String {
    const SHOWN: usize = 5;
    let all: Vec<String> = names.map(|name| format!("`{name}`")).collect();
    let more = if all.len() > SHOWN { format!(" and {} more", all.len() - SHOWN) } else { String::new() };
    format!("{}{more}", all.into_iter().take(SHOWN).collect::<Vec<_>>().join(", "))
}
