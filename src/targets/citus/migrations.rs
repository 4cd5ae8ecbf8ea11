//! Applies migrations: SQL files, each once, in the order of names.
//!
//! Decides the name, the checksum and the transaction mode of a file. A file is one transaction, unless a line
//! consists of `-- evenkeel: no transaction` or a statement can't run in a transaction.
//! *Invariant:* a transaction is applied completely, together with its record, or not at all. For a file without a
//! transaction, the record counts the statements that are done. After a failure the next run continues with the failed
//! statement, which may be corrected while the statements before it stay the same.
//! *Race:* the daemon stops between a statement and its record. The statement runs again, and fails if it can't be
//! repeated.
//! *Race:* two daemons apply one file. The advisory lock serializes them, and the second finds the migration recorded.

use sha2::Digest as _;

use super::access::Session;
use crate::{
    model::Retry,
    ports::{Job, TargetError, TargetErrorKind},
};

/// The line that disables the transaction.
const WITHOUT_TRANSACTION: &str = "-- evenkeel: no transaction";
/// The stored hexadecimal digits of a checksum: enough to distinguish files.
const CHECKSUM_LENGTH: usize = 16;

/// A migration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Migration {
    /// The name of the file.
    pub name: String,
    /// The checksum of its bytes.
    pub checksum: String,
    /// The text of the file.
    pub sql: String,
    /// Whether the file is one transaction.
    pub in_transaction: bool,
}

impl Migration {
    /// Reads a migration from the text of a file.
    pub fn new(name: &str, text: &str) -> Self {
        let says_so = text.lines().any(|line| line.trim() == WITHOUT_TRANSACTION);
        let in_transaction = !says_so && !statements(text).iter().any(|statement| stands_alone(statement));
        Self { name: name.into(), checksum: checksum(text), sql: text.into(), in_transaction }
    }
}

fn checksum(text: &str) -> String {
    let mut checksum = hex::encode(sha2::Sha256::digest(text.as_bytes()));
    checksum.truncate(CHECKSUM_LENGTH);
    checksum
}

/// Whether PostgreSQL or Citus refuses to run a statement in a transaction.
fn stands_alone(statement: &str) -> bool {
    let words: Vec<String> = statement
        .lines()
        .filter(|line| !line.trim_start().starts_with("--"))
        .collect::<Vec<_>>()
        .join(" ")
        .split_whitespace()
        .map(str::to_uppercase)
        .collect();
    let word = |at: usize| words.get(at).map(String::as_str).unwrap_or_default();
    let is_concurrent = word(0) == "REINDEX" && words.iter().any(|word| word == "CONCURRENTLY")
        || words.windows(2).any(|pair| pair[0] == "INDEX" && pair[1] == "CONCURRENTLY");
    let is_of_server =
        matches!((word(0), word(1)), ("ALTER", "SYSTEM") | ("CREATE" | "DROP", "DATABASE" | "TABLESPACE"));
    let calls = ["CREATE_DISTRIBUTED_TABLE_CONCURRENTLY(", "CITUS_CLEANUP_ORPHANED_RESOURCES("];
    word(0) == "VACUUM"
        || is_concurrent
        || is_of_server
        || words.iter().any(|word| calls.iter().any(|call| word.contains(call)))
}

/// Returns the migrations in a job's folder, in order.
///
/// # Errors
/// When a file can't be read or contains no statement.
pub fn of(job: &Job, folder: Option<&str>) -> Result<Vec<Migration>, TargetError> {
    let Some(folder) = folder else { return Ok(vec![]) };
    let wrong = |why: String| TargetError {
        retry: Retry::WhenInputChanges,
        ..TargetError::new(TargetErrorKind::Migrations, why)
    };
    let mut migrations = vec![];
    for path in job.files.keys() {
        let Some(name) = path.strip_prefix(folder).and_then(|rest| rest.strip_prefix('/')) else { continue };
        let bytes =
            job.content.read(path).map_err(|error| TargetError::new(TargetErrorKind::Files, error.to_string()))?;
        let text = std::str::from_utf8(&bytes).map_err(|_| wrong(format!("`{path}` is no UTF-8")))?;
        if text.lines().all(|line| line.trim().is_empty() || line.trim().starts_with("--")) {
            return Err(wrong(format!("`{path}` holds no statement")));
        }
        let migration = Migration::new(name, text);
        let ends = |statement: &&str| {
            let words = ["BEGIN", "START", "COMMIT", "ROLLBACK", "ABORT", "END", "SAVEPOINT", "RELEASE", "PREPARE"];
            words.contains(&first_word(statement).as_str())
        };
        if migration.in_transaction && statements(text).iter().any(ends) {
            return Err(wrong(format!(
                "`{path}` is one transaction and holds a `BEGIN` or `COMMIT` of its own; leave it out, or write `{WITHOUT_TRANSACTION}` on a line"
            )));
        }
        migrations.push(migration);
    }
    Ok(migrations)
}

/// Splits a text into statements; semicolons inside quotes, dollar quotes and comments do not end a statement.
pub fn statements(sql: &str) -> Vec<&str> {
    let bytes = sql.as_bytes();
    let (mut found, mut begin, mut at) = (vec![], 0, 0);
    while at < bytes.len() {
        match bytes[at] {
            b'\'' | b'"' => at = after_quote(bytes, at),
            b'-' if bytes[at..].starts_with(b"--") => {
                at = sql[at..].find('\n').map_or(bytes.len(), |end| at + end + 1);
            }
            b'/' if bytes[at..].starts_with(b"/*") => at = after_comment(bytes, at),
            b'$' => at = after_dollar(sql, at),
            b';' => {
                found.push(&sql[begin..at]);
                at += 1;
                begin = at;
            }
            _ => at += 1,
        }
    }
    found.push(&sql[begin..]);
    let is_something = |text: &&str| {
        let mut lines = text.lines().map(str::trim);
        lines.any(|line| !line.is_empty() && !line.starts_with("--"))
    };
    found.into_iter().filter(is_something).map(str::trim).collect()
}

fn after_quote(bytes: &[u8], begin: usize) -> usize {
    let quote = bytes[begin];
    let escapes = quote == b'\'' && begin > 0 && matches!(bytes[begin - 1], b'e' | b'E');
    let mut at = begin + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' if escapes => at += 2,
            c if c == quote && bytes.get(at + 1) == Some(&quote) => at += 2,
            c if c == quote => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// Block comments nest.
fn after_comment(bytes: &[u8], begin: usize) -> usize {
    let (mut at, mut depth) = (begin, 0_usize);
    while at < bytes.len() {
        if bytes[at..].starts_with(b"/*") {
            (at, depth) = (at + 2, depth + 1);
        } else if bytes[at..].starts_with(b"*/") {
            (at, depth) = (at + 2, depth - 1);
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    bytes.len()
}

/// Returns the position after `$tag$ … $tag$`, or after the `$` if it opens no quote.
fn after_dollar(sql: &str, begin: usize) -> usize {
    let is_in_word =
        begin > 0 && (sql.as_bytes()[begin - 1].is_ascii_alphanumeric() || sql.as_bytes()[begin - 1] == b'_');
    let rest = &sql[begin + 1..];
    let Some(end) = rest.find('$').filter(|_| !is_in_word) else { return begin + 1 };
    let tag = &rest[..end];
    let is_tag = tag.chars().all(|c| c.is_alphanumeric() || c == '_') && !tag.starts_with(|c: char| c.is_ascii_digit());
    if !is_tag {
        return begin + 1;
    }
    let mark = &sql[begin..begin + end + 2];
    sql[begin + mark.len()..].find(mark).map_or(sql.len(), |at| begin + at + 2 * mark.len())
}

/// Creates the table of applied migrations, which all users may read.
const RECORDS: &str = "CREATE SCHEMA IF NOT EXISTS evenkeel; GRANT USAGE ON SCHEMA evenkeel TO PUBLIC; \
    CREATE TABLE IF NOT EXISTS evenkeel.migrations (name text PRIMARY KEY, checksum text NOT NULL, statements int NOT NULL DEFAULT 0, applied_at timestamptz); \
    GRANT SELECT ON evenkeel.migrations TO PUBLIC";
/// Records the progress of a migration.
const RECORD: &str = "INSERT INTO evenkeel.migrations (name, checksum, statements, applied_at) VALUES ($1, $2, $3, CASE WHEN $4 THEN now() END) \
    ON CONFLICT (name) DO UPDATE SET checksum = excluded.checksum, statements = excluded.statements, applied_at = excluded.applied_at";

/// Runs one transaction. Each statement is a separate message: Citus forwards a message to shards as a whole, and they
/// refuse several statements in one message.
async fn transaction(session: &Session, sql: &str, record: &str) -> Result<(), TargetError> {
    session.run("BEGIN").await?;
    for statement in statements(sql) {
        session.run(statement).await?;
    }
    session.run(record).await?;
    session.run("COMMIT").await
}

/// Returns the first keyword of a statement, after its comments.
fn first_word(statement: &str) -> String {
    let mut rest = statement.trim_start();
    loop {
        rest = match rest.get(..2) {
            Some("--") => rest.split_once('\n').map_or("", |(_, rest)| rest).trim_start(),
            Some("/*") => rest[after_comment(rest.as_bytes(), 0)..].trim_start(),
            _ => return rest.split_whitespace().next().unwrap_or_default().to_uppercase(),
        };
    }
}

/// Applies a migration and records it, unless another session has applied it.
pub(super) async fn apply(session: &Session, migration: &Migration) -> Result<(), TargetError> {
    session.run(RECORDS).await?;
    let Migration { name, checksum: current, sql, in_transaction } = migration;
    let known = "SELECT checksum, statements, applied_at IS NOT NULL FROM evenkeel.migrations WHERE name = $1";
    let known = session.rows(known, &[name]).await?;
    let known = known.first().map(|row| (row.get::<_, String>(0), row.get::<_, i32>(1), row.get::<_, bool>(2)));
    if known.as_ref().is_some_and(|(_, _, is_applied)| *is_applied) {
        return Ok(());
    }
    if *in_transaction {
        let quoted = |text: &str| format!("'{}'", text.replace('\'', "''"));
        let record = format!(
            "INSERT INTO evenkeel.migrations (name, checksum, applied_at) VALUES ({}, {}, now()) ON CONFLICT (name) DO UPDATE SET checksum = excluded.checksum, applied_at = excluded.applied_at",
            quoted(name),
            quoted(current)
        );
        let done = transaction(session, sql, &record).await;
        if let Err(error) = done {
            session.run("ROLLBACK").await?;
            let message = format!("the migration `{name}` failed, and nothing of it was applied: {}", error.message);
            return Err(TargetError { message, ..error });
        }
        return Ok(());
    }
    let all = statements(sql);
    let so_many = |done: i32| usize::try_from(done).unwrap_or(0);
    let done = known.as_ref().map_or(0, |(_, done, _)| so_many(*done));
    // A separate checksum identifies the done statements, so that the remaining ones may be corrected.
    let so_far = |count: usize| checksum(&all[..count.min(all.len())].join(";"));
    if let Some((before, ..)) = known.filter(|(before, done, _)| *done > 0 && *before != so_far(so_many(*done))) {
        return Err(TargetError {
            retry: Retry::WhenInputChanges,
            ..TargetError::new(
                TargetErrorKind::Migrations,
                format!(
                    "the first {done} statements of the migration `{name}` were applied with the checksum {before} and have {} now; put them back as they were",
                    so_far(done)
                ),
            )
        });
    }
    for (at, statement) in all.iter().enumerate().skip(done) {
        session.run(statement).await.map_err(|error| TargetError {
            message: format!("statement {} of {} of the migration `{name}` failed, which is no transaction; those before it stand: {}", at + 1, all.len(), error.message),
            effect_may_have_begun: true,
            ..error
        })?;
        let is_last = at + 1 == all.len();
        let checksum = if is_last { current.clone() } else { so_far(at + 1) };
        let count = i32::try_from(at + 1).unwrap_or(i32::MAX);
        session.rows(RECORD, &[name, &checksum, &count, &is_last]).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_end_where_postgres_ends_them() {
        let sql = "-- a; b\nSELECT ';', \"a;b\", E'\\';' ; /* x; /* y; */ z; */ SELECT $$;$$, $a$ ; $b$ $a$, $1;\n;\nSELECT a$1; -- end;\n";
        assert_eq!(
            statements(sql),
            [
                "-- a; b\nSELECT ';', \"a;b\", E'\\';'",
                "/* x; /* y; */ z; */ SELECT $$;$$, $a$ ; $b$ $a$, $1",
                "SELECT a$1"
            ]
        );
        assert_eq!(statements(" \n-- nothing\n"), Vec::<&str>::new());
        assert_eq!(statements("SELECT 'open; "), ["SELECT 'open;"]);
    }

    #[test]
    fn a_file_says_whether_it_is_one_transaction() {
        assert!(Migration::new("1.sql", "CREATE TABLE a (b int);").in_transaction);
        let single = Migration::new("2.sql", "-- evenkeel: no transaction\nALTER TABLE a ADD c int;");
        assert!(!single.in_transaction);
        for alone in [
            "CREATE UNIQUE INDEX CONCURRENTLY i ON a (b);",
            "SELECT create_distributed_table_concurrently('a', 'b');",
            "vacuum a",
        ] {
            assert!(!Migration::new("3.sql", alone).in_transaction, "{alone}");
        }
        assert!(Migration::new("4.sql", "CREATE TABLE concurrently (a int); -- VACUUM\n").in_transaction);
        assert_eq!(single.checksum.len(), CHECKSUM_LENGTH);
    }
}
