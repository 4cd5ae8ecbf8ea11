//! Detects responses that report a rate limit of GitHub, and reads the end of the limit.
//!
//! GitHub has a primary limit (429, or 403 with `x-ratelimit-remaining: 0`) and secondary limits (403 with a
//! message). No request is repeated until a limit ends: repeating extends a secondary limit.

use chrono::{DateTime, Duration, Utc};

/// The longest limit for which a read waits instead of returning an error.
pub(super) const WAIT_MAX: Duration = Duration::seconds(3);
/// The wait that GitHub's documentation requires when a response gives no end of the limit.
const ENDS: Duration = Duration::seconds(60);
/// The longest wait that is accepted from a response.
const ENDS_MAX: Duration = Duration::hours(1);

/// Returns when a rate limit ends, from `retry-after` or `x-ratelimit-reset`; at most an hour from now.
pub(super) fn ends(headers: &http::HeaderMap) -> Option<DateTime<Utc>> {
    let number = |name: &str| headers.get(name)?.to_str().ok()?.trim().parse::<i64>().ok();
    let after = number("retry-after").map(|seconds| Utc::now() + chrono::Duration::seconds(seconds.max(0)));
    let reset = || number("x-ratelimit-reset").filter(|_| number("x-ratelimit-remaining") == Some(0));
    let ends = after.or_else(|| DateTime::from_timestamp(reset()?, 0))?;
    Some(ends.min(Utc::now() + ENDS_MAX))
}

/// Returns the time before which no request may be repeated; `None` if the response reports no rate limit.
pub(super) fn not_before(status: u16, message: &str, ends: Option<DateTime<Utc>>) -> Option<DateTime<Utc>> {
    let text = message.to_ascii_lowercase();
    let limited = status == 429 || (status == 403 && (text.contains("rate limit") || text.contains("abuse")));
    limited.then(|| ends.unwrap_or_else(|| Utc::now() + ENDS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_ends_when_its_headers_say_so() {
        let ends = |all: &[(&'static str, String)]| {
            let headers = all.iter().map(|(name, value)| {
                (http::HeaderName::from_static(name), http::HeaderValue::from_str(value).unwrap())
            });
            super::ends(&headers.collect()).map(|at| (at - Utc::now()).num_seconds())
        };
        let about =
            |found: Option<i64>, seconds: i64| assert!(found.is_some_and(|f| (f - seconds).abs() <= 1), "{found:?}");
        about(ends(&[("retry-after", "7".into())]), 7);
        let reset = (Utc::now().timestamp() + 90).to_string();
        about(ends(&[("x-ratelimit-remaining", "0".into()), ("x-ratelimit-reset", reset.clone())]), 90);
        assert_eq!(ends(&[("x-ratelimit-remaining", "12".into()), ("x-ratelimit-reset", reset)]), None);
        about(ends(&[("retry-after", "999999".into())]), 3600);
        assert_eq!(ends(&[("retry-after", "soon".into())]), None);
    }
}
