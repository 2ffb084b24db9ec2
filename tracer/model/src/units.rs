//! Numbers as people read them: sizes, counts, rates, durations. Knows nothing of what they measure.

/// The plural's `s`.
#[must_use]
pub fn plural(count: u64) -> &'static str {
    if count == 1 { "" } else { "s" }
}

/// `1,234,567`.
#[must_use]
pub fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 block`, `1,024 blocks`.
#[must_use]
pub fn blocks(value: u64) -> String {
    format!("{} block{}", count(value), plural(value))
}

/// `1 page`, `1,024 pages`.
#[must_use]
pub fn pages(value: u64) -> String {
    format!("{} page{}", count(value), plural(value))
}

/// `1 probe hit`, `1,024 probe hits`.
#[must_use]
pub fn probe_hits(value: u64) -> String {
    format!("{} probe hit{}", count(value), plural(value))
}

/// `512 B`, `1.50 KiB`, `12.3 MiB`, `123 GiB`: three significant digits.
#[must_use]
pub fn bytes(value: u64) -> String {
    if value < 1024 {
        format!("{value} B")
    } else {
        scaled(value as f64)
    }
}

/// Bytes that are not whole; the sign is the caller's.
fn scaled(value: f64) -> String {
    let mut value = value;
    let mut unit = "B";
    for next in ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"] {
        // What would be printed as 1024 belongs to the next unit.
        if value < 1023.5 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    let decimals = match value {
        _ if unit == "B" => 0,
        value if value < 9.995 => 2,
        value if value < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.decimals$} {unit}")
}

/// `+1.20 MiB/s`, `-30 B/min`; `None` for less than a byte an hour.
#[must_use]
pub fn rate(bytes_per_s: f64) -> Option<String> {
    let sign = if bytes_per_s < 0.0 { '-' } else { '+' };
    for (seconds, unit) in [(1.0, "s"), (60.0, "min"), (3600.0, "h")] {
        let value = bytes_per_s.abs() * seconds;
        if value >= 1.0 {
            return Some(format!("{sign}{}/{unit}", scaled(value)));
        }
    }
    None
}

/// `+800/s`, `-3.5/s`, `+12/min`; `None` for less than one an hour.
#[must_use]
pub fn count_rate(per_s: f64) -> Option<String> {
    let sign = if per_s < 0.0 { '-' } else { '+' };
    for (seconds, unit) in [(1.0, "s"), (60.0, "min"), (3600.0, "h")] {
        let value = per_s.abs() * seconds;
        if value >= 9.95 {
            return Some(format!("{sign}{}/{unit}", count(value.round() as u64)));
        }
        if value >= 1.0 {
            return Some(format!("{sign}{value:.1}/{unit}"));
        }
    }
    None
}

/// `350 ms`, `12.3 s`, `5 min 20 s`, `3 h 12 min`, `2 d 4 h`.
#[must_use]
pub fn duration(seconds: f64) -> String {
    if seconds < 0.9995 {
        return format!("{:.0} ms", seconds.max(0.0) * 1000.0);
    }
    if seconds < 99.95 {
        return format!("{seconds:.1} s");
    }
    let whole = seconds.round() as u64;
    let (minutes, hours, days) = (whole / 60, whole / 3600, whole / 86_400);
    if hours == 0 {
        format!("{minutes} min {} s", whole % 60)
    } else if days == 0 {
        format!("{hours} h {} min", minutes % 60)
    } else {
        format!("{} d {} h", count(days), hours % 24)
    }
}

/// `50 s`, `14 min`, `14 h`, `3 d`: a duration that is known roughly.
#[must_use]
pub fn about(seconds: f64) -> String {
    let seconds = seconds.max(0.0);
    for (unit, name) in [(86_400.0, "d"), (3600.0, "h"), (60.0, "min")] {
        if seconds >= 1.95 * unit {
            return format!("{} {name}", count((seconds / unit).round() as u64));
        }
    }
    format!("{seconds:.0} s")
}

/// `12.3 %` of a fraction between 0 and 1; what is there and smaller than can be shown is `<0.1 %`.
#[must_use]
pub fn percent(fraction: f64) -> String {
    let percent = fraction * 100.0;
    if percent > 0.0 && percent < 0.05 {
        "<0.1 %".to_owned()
    } else {
        format!("{percent:.1} %")
    }
}

/// A share of a whole; nothing of nothing is 0 %.
#[must_use]
pub fn share(part: u64, whole: u64) -> String {
    if whole == 0 {
        percent(0.0)
    } else {
        percent(part as f64 / whole as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::{about, bytes, count, count_rate, duration, percent, rate};

    #[test]
    fn rates_of_things() {
        assert_eq!(count_rate(812.4).as_deref(), Some("+812/s"));
        assert_eq!(count_rate(-3.46).as_deref(), Some("-3.5/s"));
        assert_eq!(count_rate(0.2).as_deref(), Some("+12/min"));
        assert_eq!(count_rate(0.0001), None);
    }

    #[test]
    fn sizes() {
        for (value, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (10_239, "10.0 KiB"),
            (102_390, "100 KiB"),
            (1_048_063, "1023 KiB"),
            (1_048_064, "1.00 MiB"),
            (1_048_576, "1.00 MiB"),
            (13_000_000, "12.4 MiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(bytes(value), text, "{value}");
        }
    }

    #[test]
    fn counts() {
        for (value, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (1_234_567, "1,234,567"),
            (123_456, "123,456"),
        ] {
            assert_eq!(count(value), text);
        }
    }

    #[test]
    fn rates() {
        for (value, text) in [
            (0.0, None),
            (1e-5, None),
            (0.5, Some("+30 B/min")),
            (-0.01, Some("-36 B/h")),
            (1_258_291.2, Some("+1.20 MiB/s")),
            (-2048.0, Some("-2.00 KiB/s")),
        ] {
            assert_eq!(rate(value).as_deref(), text, "{value}");
        }
    }

    #[test]
    fn durations() {
        for (value, text) in [
            (0.0, "0 ms"),
            (0.35, "350 ms"),
            (0.9996, "1.0 s"),
            (99.9, "99.9 s"),
            (99.97, "1 min 40 s"),
            (3599.4, "59 min 59 s"),
            (3599.6, "1 h 0 min"),
            (90_061.0, "1 d 1 h"),
        ] {
            assert_eq!(duration(value), text, "{value}");
        }
    }

    #[test]
    fn a_forecast_has_no_more_digits_than_are_known() {
        for (value, text) in [
            (-1.0, "0 s"),
            (49.6, "50 s"),
            (100.0, "100 s"),
            (118.0, "2 min"),
            (3600.0, "60 min"),
            (49_560.0, "14 h"),
            (97_200.0, "27 h"),
            (86_400_000.0, "1,000 d"),
        ] {
            assert_eq!(about(value), text, "{value}");
        }
    }

    #[test]
    fn shares() {
        assert_eq!(percent(0.0), "0.0 %");
        assert_eq!(percent(0.0001), "<0.1 %");
        assert_eq!(percent(0.0005), "0.1 %");
        assert_eq!(percent(1.0), "100.0 %");
    }
}
