//! Values as people type them: what is expected and an example are said where one is wrong. Knows nothing of the options that take
//! them.

use std::{
    net::{SocketAddr, ToSocketAddrs as _},
    ops::RangeInclusive,
    time::Duration,
};

/// The longest duration that is taken: a clock cannot be set further ahead than some hundred years.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 86_400);

/// Parses `30s`, `5m`, `1h 30m`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let number = text.trim();
    if !number.is_empty()
        && number
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'.')
    {
        return Err(format!("add a unit, e.g. {number}s"));
    }
    match humantime::parse_duration(text) {
        Ok(parsed) if parsed.is_zero() => Err("a duration is longer than 0, e.g. 30s".to_owned()),
        Ok(parsed) if parsed <= LONGEST => Ok(parsed),
        Ok(_) | Err(humantime::DurationError::NumberOverflow) => {
            Err("a duration is at most ten years, e.g. 30d".to_owned())
        }
        Err(_) => Err("a duration is a number with a unit, e.g. 30s, 5m or 1h30m".to_owned()),
    }
}

/// Parses `1`, `0.5`, `2%`: percent.
pub(super) fn percent(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').unwrap_or(text).trim_end();
    number
        .parse()
        .ok()
        .filter(|percent| *percent > 0.0 && *percent <= 100.0)
        .ok_or_else(|| "a percentage is more than 0 and at most 100, e.g. 1 or 0.5".to_owned())
}

/// Parses `64KiB`, `1MB`, `4096`.
pub(super) fn size(text: &str) -> Result<u64, String> {
    text.parse::<bytesize::ByteSize>()
        .map(|size| size.as_u64())
        .map_err(|_| {
            "a size is a number of bytes or has a unit, e.g. 4096, 64KiB or 1MB".to_owned()
        })
}

/// Parses a process id.
pub(super) fn pid(text: &str) -> Result<u32, String> {
    text.trim()
        .parse()
        .ok()
        .filter(|pid| *pid > 0)
        .ok_or_else(|| "a process id is a number from 1 on, e.g. 1234".to_owned())
}

/// Parses how many call stacks to show.
pub(super) fn top(text: &str) -> Result<usize, String> {
    number(text, "call stacks")
}

/// Parses how many groups of a heap's blocks to show.
pub(super) fn groups(text: &str) -> Result<usize, String> {
    number(text, "groups")
}

fn number(text: &str, what: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|number| *number > 0)
        .ok_or_else(|| format!("a number of {what} is at least 1, e.g. 20"))
}

/// Parses a whole number within bounds.
pub(super) fn whole(text: &str, bounds: RangeInclusive<u32>) -> Result<u32, String> {
    text.parse()
        .ok()
        .filter(|number| bounds.contains(number))
        .ok_or_else(|| {
            let (least, most) = (bounds.start(), bounds.end());
            format!("a whole number from {least} to {most}, e.g. {least}")
        })
}

/// Parses `127.0.0.1:7117`, `[::1]:7117`, `localhost:7117`. Of a name with several addresses an IPv4 one is taken.
pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    const EXAMPLE: &str = "an address has a port, e.g. 127.0.0.1:7117 or localhost:7117";
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let (host, port) = text.rsplit_once(':').ok_or(EXAMPLE)?;
    let port: u16 = port.parse().map_err(|_| EXAMPLE)?;
    if host.is_empty() || host.contains([':', '/']) {
        return Err(EXAMPLE.to_owned());
    }
    let mut found: Vec<SocketAddr> = (host, port)
        .to_socket_addrs()
        .map_err(|error| format!("no address of {host} is known ({error}); e.g. 127.0.0.1:7117"))?
        .collect();
    found.sort_by_key(|address| !address.is_ipv4());
    found
        .first()
        .copied()
        .ok_or_else(|| format!("no address of {host} is known; e.g. 127.0.0.1:7117"))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests say so by failing")]

    use super::{address, duration, percent, size};
    use std::time::Duration;

    #[test]
    fn durations_and_sizes_are_read_as_people_write_them() {
        assert_eq!(duration("1h 30m").unwrap(), Duration::from_secs(5_400));
        assert_eq!(duration("250ms").unwrap(), Duration::from_millis(250));
        assert!(duration("0s").is_err());
        assert!(duration("5").is_err());
        assert_eq!(size("64KiB").unwrap(), 65_536);
        assert_eq!(size("4096").unwrap(), 4_096);
        for (text, value) in [("1", 1.0), ("0.5", 0.5), ("2 %", 2.0), ("100%", 100.0)] {
            assert!((percent(text).unwrap() - value).abs() < 1e-9, "{text}");
        }
        for text in ["0", "-1", "101", "NaN", "inf", "", "%", "much"] {
            assert!(percent(text).is_err(), "{text}");
        }
        assert!(size("many").is_err());
    }

    #[test]
    fn a_duration_without_a_unit_is_told_what_to_add() {
        assert_eq!(duration("5").unwrap_err(), "add a unit, e.g. 5s");
        assert_eq!(duration("1.5").unwrap_err(), "add a unit, e.g. 1.5s");
        for text in ["-5s", "", "s", "5parsecs", "five"] {
            assert!(duration(text).unwrap_err().contains("e.g. 30s"), "{text}");
        }
        // Beyond what a clock can be set to.
        assert!(duration("584542046090years").is_err());
    }

    #[test]
    fn a_name_of_this_machine_is_an_address() {
        assert_eq!(
            address("localhost:7117").unwrap(),
            "127.0.0.1:7117".parse().unwrap()
        );
        assert_eq!(
            address("[::1]:7117").unwrap(),
            "[::1]:7117".parse().unwrap()
        );
        for text in [
            "localhost",
            ":7117",
            "7117",
            "::1:x",
            "localhost:99999",
            "http://a:1",
        ] {
            assert!(
                address(text).unwrap_err().contains("e.g. 127.0.0.1:7117"),
                "{text}"
            );
        }
    }
}
