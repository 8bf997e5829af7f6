//! Amounts as people write and read them. No I/O here.

use std::time::Duration;

/// Suffixes of bytes that are read.
const SUFFIXES: [(&str, u64); 10] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1000),
    ("KB", 1000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("B", 1),
];
/// Most bytes that a device is said to have.
const MAX_BYTES: u64 = 1 << 50;

/// Reads bytes: a whole number, with a unit or without.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    let suffix = SUFFIXES.iter().find_map(|(suffix, factor)| {
        let number = text.strip_suffix(suffix)?;
        Some((number.trim_end(), *factor))
    });
    let (number, factor) = suffix.unwrap_or((text, 1));
    let only_digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    let number: Option<u64> = number.parse().ok().filter(|_| only_digits);
    let Some(number) = number else {
        return Err(format!(
            "{text:?} is no amount of bytes: write a whole number with or without a unit, as 536870912 or 512MiB"
        ));
    };
    match number.checked_mul(factor) {
        Some(bytes) if (1..=MAX_BYTES).contains(&bytes) => Ok(bytes),
        Some(_) | None => Err(format!(
            "{text} is out of bounds: it must be between 1 and 1024TiB"
        )),
    }
}

/// Units of time that are read, in seconds.
const TIMES: [(&str, f64); 5] = [("us", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
/// Longest time that is read.
const MAX_TIME: Duration = Duration::from_secs(7 * 86_400);

/// Reads a time above zero: a number with its unit, as 500ms, 1.5s or 10m.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let unit_at = text.find(|char: char| char.is_ascii_alphabetic());
    let (number, unit) = text.split_at(unit_at.unwrap_or(text.len()));
    let factor = TIMES
        .iter()
        .find(|(name, _)| *name == unit)
        .map(|(_, factor)| factor);
    let digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let seconds = number.parse::<f64>().ok().zip(factor).filter(|_| digits);
    let time = seconds.and_then(|(number, factor)| Duration::try_from_secs_f64(number * factor).ok());
    match time {
        Some(time) if !time.is_zero() && time <= MAX_TIME => Ok(time),
        Some(_) => Err(format!(
            "{text} is out of bounds: it must be above 0 and at most 168h"
        )),
        None => Err(format!(
            "{text:?} is no time: write a number with us, ms, s, m or h, as 500ms or 1.5s"
        )),
    }
}

/// Bytes for people, in powers of 1024.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{count} B")
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

/// The value that `share` (0 to 1) of sorted values do not exceed, by the nearest rank; nothing of nothing.
pub(crate) fn percentile<T: Copy>(sorted: &[T], share: f64) -> Option<T> {
    let rank = (share.clamp(0.0, 1.0) * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_readable() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(80 << 30), "80.0 GiB");
        assert_eq!(bytes(u64::MAX), "16777216.0 TiB");
    }

    #[test]
    fn bytes_are_read_with_and_without_units() {
        assert_eq!(parse_bytes("536870912"), Ok(512 << 20));
        assert_eq!(parse_bytes("512MiB"), Ok(512 << 20));
        assert_eq!(parse_bytes("512 MiB"), Ok(512 << 20));
        assert_eq!(parse_bytes("80GB"), Ok(80_000_000_000));
        assert_eq!(parse_bytes("7B"), Ok(7));
        for bad in ["", "MiB", "x", "1.5GiB", "-1", "+1", "512Mib", "1e9"] {
            let error = parse_bytes(bad).unwrap_err();
            assert!(error.contains("512MiB") && error.contains(bad), "{error}");
        }
        for outside in [
            "0",
            "0GiB",
            "2000TiB",
            "99999999999999999999TiB",
            "18446744073709551615KiB",
        ] {
            assert!(parse_bytes(outside).is_err(), "{outside}");
        }
    }

    #[test]
    fn times_are_read_with_their_units() {
        for (text, milliseconds) in [
            ("500ms", 500.0),
            ("1.5s", 1500.0),
            ("2m", 120_000.0),
            ("0.5h", 1_800_000.0),
            ("1us", 0.001),
        ] {
            let time = parse_duration(text).expect("valid").as_secs_f64();
            assert!((time * 1000.0 - milliseconds).abs() < 1e-6, "{text}");
        }
        for bad in [
            "", "5", "s", "ms5", "5 ms", "-1s", "1e3s", "1..5s", "5d", "0s", "1000h",
        ] {
            let error = parse_duration(bad).unwrap_err();
            assert!(error.contains(bad), "{error}");
        }
    }

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        assert_eq!(percentile::<f64>(&[], 0.5), None);
        assert_eq!(percentile(&[3.0], 0.5), Some(3.0));
        assert_eq!(percentile(&[3.0], 0.99), Some(3.0));
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(percentile(&hundred, 0.5), Some(50.0));
        assert_eq!(percentile(&hundred, 0.99), Some(99.0));
        assert_eq!(percentile(&hundred, 1.0), Some(100.0));
        assert_eq!(percentile(&hundred, 0.0), Some(1.0));
    }
}
