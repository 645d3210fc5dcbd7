//! `strftime` in the C locale, for templates that write today's date.

use std::time::{SystemTime, UNIX_EPOCH};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// Now, in UTC: the time zone of the machine would make the same data render differently elsewhere.
pub(crate) fn strftime_now(format: &str) -> Result<String, String> {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    strftime(format, seconds)
}

pub(crate) fn strftime(format: &str, unix_seconds: u64) -> Result<String, String> {
    let days = unix_seconds / 86_400;
    let (hour, minute, second) = (unix_seconds / 3600 % 24, unix_seconds / 60 % 60, unix_seconds % 60);
    let (year, month, day) = civil_date(days);
    let month_name = MONTHS[month as usize - 1];
    let weekday = (days + 4) % 7;
    let day_name = DAYS[weekday as usize];
    let day_of_year = days - days_before_year(year) + 1;
    let hour12 = if hour % 12 == 0 { 12 } else { hour % 12 };

    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let (directive, padded) = match chars.next() {
            // glibc's flag for "no padding", which templates use as `%-d`.
            Some('-') => (chars.next(), false),
            other => (other, true),
        };
        let number = |value: u64, width: usize| {
            if padded { format!("{value:0width$}") } else { value.to_string() }
        };
        match directive {
            Some('Y') => out.push_str(&number(year, 4)),
            Some('y') => out.push_str(&number(year % 100, 2)),
            Some('m') => out.push_str(&number(month, 2)),
            Some('d') => out.push_str(&number(day, 2)),
            Some('e') if padded => out.push_str(&format!("{day:2}")),
            Some('e') => out.push_str(&day.to_string()),
            Some('j') => out.push_str(&number(day_of_year, 3)),
            Some('H') => out.push_str(&number(hour, 2)),
            Some('I') => out.push_str(&number(hour12, 2)),
            Some('M') => out.push_str(&number(minute, 2)),
            Some('S') => out.push_str(&number(second, 2)),
            Some('p') => out.push_str(if hour < 12 { "AM" } else { "PM" }),
            Some('B') => out.push_str(month_name),
            Some('b' | 'h') => out.push_str(&month_name[..3]),
            Some('A') => out.push_str(day_name),
            Some('a') => out.push_str(&day_name[..3]),
            Some('w') => out.push_str(&weekday.to_string()),
            Some('F') => out.push_str(&format!("{year:04}-{month:02}-{day:02}")),
            Some('T') => out.push_str(&format!("{hour:02}:{minute:02}:{second:02}")),
            Some('D') => out.push_str(&format!("{month:02}/{day:02}/{:02}", year % 100)),
            Some('Z') => out.push_str("UTC"),
            Some('z') => out.push_str("+0000"),
            Some('%') => out.push('%'),
            Some(other) => return Err(format!("strftime_now: the directive %{other} is not supported")),
            None => return Err("strftime_now: the format ends in %".to_owned()),
        }
    }
    Ok(out)
}

/// Days from 1 January 1970 to 1 January of `year`.
fn days_before_year(year: u64) -> u64 {
    let leap_days = |y: u64| y / 4 - y / 100 + y / 400;
    365 * (year - 1970) + leap_days(year - 1) - leap_days(1969)
}

/// Year, month (1 to 12) and day (1 to 31) of the Gregorian calendar.
fn civil_date(days: u64) -> (u64, u64, u64) {
    // Never too late: a year has at most 366 days. At most a few steps too early.
    let mut year = 1970 + days / 366;
    while days_before_year(year + 1) <= days {
        year += 1;
    }
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let lengths = [31, if leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut rest = days - days_before_year(year);
    let mut month = 1;
    for length in lengths {
        if rest < length {
            break;
        }
        rest -= length;
        month += 1;
    }
    (year, month, rest + 1)
}

#[cfg(test)]
mod tests {
    use super::strftime;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "01 Jan 1970 Thursday 001 00:00:00"),
            (951_782_400, "29 Feb 2000 Tuesday 060 00:00:00"),
            (1_709_251_199, "29 Feb 2024 Thursday 060 23:59:59"),
            (1_735_689_599, "31 Dec 2024 Tuesday 366 23:59:59"),
            (1_735_689_600, "01 Jan 2025 Wednesday 001 00:00:00"),
            (4_102_444_800, "01 Jan 2100 Friday 001 00:00:00"),
            (4_107_542_400, "01 Mar 2100 Monday 060 00:00:00"),
        ] {
            assert_eq!(strftime("%d %b %Y %A %j %H:%M:%S", seconds).as_deref(), Ok(text));
        }
        assert_eq!(strftime("%-d/%-m %I %p %%", 46_800).as_deref(), Ok("1/1 01 PM %"));
        assert!(strftime("%Q", 0).is_err_and(|e| e.contains("%Q")));
        assert!(strftime("100%", 0).is_err());
    }
}
