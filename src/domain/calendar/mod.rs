//! Computes the due times of five-field cron expressions in a time zone.
//!
//! Decides the meaning of a cron expression. Never reads the clock: the time is an argument.
//! *Race:* none. A clock that is set back can't repeat a due time, because the caller passes the last one as `after`.
//!
//! The `cron` crate numbers the days of the week from Sunday = 1 and combines day of month and day of week with *and*.
//! Cron users write 0 or 7 for Sunday and expect *or*. This module therefore rewrites numbers to names, and splits two
//! restricted day fields into two schedules; the earlier due time counts.

use std::str::FromStr;

use chrono::{DateTime, Utc};
use chrono_tz::Tz;

/// The due times of a cron expression.
#[derive(Clone, Debug)]
pub struct Calendar {
    schedules: Vec<cron::Schedule>,
    zone: Tz,
}

/// The error of an invalid cron expression.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// The expression does not have five valid fields.
    #[error("`{line}` is not a cron line: {why}")]
    Cron {
        /// The expression.
        line: String,
        /// The reason.
        why: String,
    },
    /// The time zone is not an IANA time zone.
    #[error("`{zone}` is not a time zone")]
    Zone {
        /// The name of the time zone.
        zone: String,
    },
}

const DAYS: [&str; 8] = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT", "SUN"];

impl Calendar {
    /// Parses `minute hour day-of-month month day-of-week` in a time zone. The default zone is UTC.
    ///
    /// # Errors
    /// When a field is not valid, no time ever matches, or the time zone is not known.
    pub fn new(line: &str, zone: Option<&str>) -> Result<Self, Error> {
        let zone_name = zone.unwrap_or("UTC");
        let zone = Tz::from_str(zone_name).map_err(|_| Error::Zone { zone: zone_name.to_owned() })?;
        let fail = |why: String| Error::Cron { line: line.to_owned(), why };
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [minute, hour, day, month, weekday] = fields[..] else {
            return Err(fail(format!("it has {} fields and needs 5 (minute hour day month weekday)", fields.len())));
        };
        let weekday = names(weekday).map_err(fail)?;
        let lines = if day != "*" && weekday != "*" {
            vec![format!("0 {minute} {hour} {day} {month} *"), format!("0 {minute} {hour} * {month} {weekday}")]
        } else {
            vec![format!("0 {minute} {hour} {day} {month} {weekday}")]
        };
        let schedules = lines
            .iter()
            .map(|line| cron::Schedule::from_str(line).map_err(|error| fail(error.to_string())))
            .collect::<Result<Vec<_>, _>>()?;
        let calendar = Self { schedules, zone };
        if calendar.next(DateTime::<Utc>::UNIX_EPOCH).is_none() {
            return Err(fail("no day ever fits".into()));
        }
        Ok(calendar)
    }

    /// Returns the first due time strictly later than `after`, also if the clock was set back.
    pub fn next(&self, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let local = after.with_timezone(&self.zone);
        self.schedules
            .iter()
            .filter_map(|schedule| schedule.after(&local).map(|at| at.with_timezone(&Utc)).find(|at| *at > after))
            .min()
    }
}

/// Rewrites the numbers of a day-of-week field to names.
fn names(field: &str) -> Result<String, String> {
    let mut written = String::new();
    for part in field.split(',') {
        let (range, step) = part.split_once('/').map_or((part, None), |(range, step)| (range, Some(step)));
        let ends: Vec<String> = range.split('-').map(day).collect::<Result<_, _>>()?;
        if !written.is_empty() {
            written.push(',');
        }
        // The crate does not support a range across the end of the week, such as 5-7 or FRI-SUN.
        let index = |name: &str| DAYS.iter().position(|day| *day == name);
        if let [from, to] = &ends[..]
            && let (Some(first), Some(last)) = (index(from), index(to))
        {
            let last = if last < first || (last == 0 && range.ends_with('7')) { last + 7 } else { last };
            let step: usize = step.unwrap_or("1").parse().ok().filter(|s| *s > 0).ok_or("the step is not a number")?;
            let days: Vec<&str> = (first..=last).step_by(step).map(|n| DAYS[n % 7]).collect();
            written.push_str(&days.join(","));
        } else {
            written.push_str(&ends.join("-"));
            if let Some(step) = step {
                written.push_str(&format!("/{step}"));
            }
        }
    }
    Ok(written)
}

fn day(text: &str) -> Result<String, String> {
    match text.parse::<usize>() {
        Ok(number) => DAYS
            .get(number)
            .map(|name| (*name).to_owned())
            .ok_or_else(|| format!("`{number}` is not a day of the week (0 to 7)")),
        Err(_) => {
            let upper = text.to_ascii_uppercase();
            if text == "*" || DAYS.contains(&upper.as_str()) {
                Ok(upper)
            } else {
                Err(format!("`{text}` is not a day of the week"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str, zone: &str, from: &str, expected: &[&str]) {
        let calendar = Calendar::new(line, Some(zone)).unwrap();
        let mut at: DateTime<Utc> = from.parse().unwrap();
        for expected in expected {
            at = calendar.next(at).unwrap();
            assert_eq!(at.to_rfc3339(), *expected, "{line}");
        }
    }

    #[test]
    fn numbers_and_names_of_days_follow_cron() {
        check("0 9 * * 1", "UTC", "2026-11-20T00:00:00Z", &["2026-11-23T09:00:00+00:00"]);
        check("0 9 * * 0", "UTC", "2026-11-20T00:00:00Z", &["2026-11-22T09:00:00+00:00"]);
        check("0 9 * * 7", "UTC", "2026-11-20T00:00:00Z", &["2026-11-22T09:00:00+00:00"]);
        check(
            "0 9 * * 6-7",
            "UTC",
            "2026-11-20T00:00:00Z",
            &["2026-11-21T09:00:00+00:00", "2026-11-22T09:00:00+00:00", "2026-11-28T09:00:00+00:00"],
        );
        check("0 9 * * MON-FRI", "UTC", "2026-11-20T10:00:00Z", &["2026-11-23T09:00:00+00:00"]);
        check("0 0 13 * FRI", "UTC", "2026-11-20T00:00:00Z", &["2026-11-27T00:00:00+00:00"]);
    }

    #[test]
    fn a_clock_set_back_fires_once_and_in_order() {
        check(
            "30 1 * * *",
            "Europe/London",
            "2026-10-24T12:00:00Z",
            &["2026-10-25T00:30:00+00:00", "2026-10-26T01:30:00+00:00"],
        );
    }

    #[test]
    fn reports_invalid_expressions() {
        let why = |line: &str, zone| Calendar::new(line, zone).unwrap_err().to_string();
        insta::assert_snapshot!(why("* * *", None), @"`* * *` is not a cron line: it has 3 fields and needs 5 (minute hour day month weekday)");
        insta::assert_snapshot!(why("0 0 31 2 *", None), @"`0 0 31 2 *` is not a cron line: no day ever fits");
        insta::assert_snapshot!(why("0 0 * * 9", None), @"`0 0 * * 9` is not a cron line: `9` is not a day of the week (0 to 7)");
        insta::assert_snapshot!(why("0 0 * * *", Some("Mars/Olympus")), @"`Mars/Olympus` is not a time zone");
    }
}
