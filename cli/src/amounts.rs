//! Amounts as people write and read them. No I/O here.

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
pub(crate) fn percentile(sorted: &[f64], share: f64) -> Option<f64> {
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
    fn percentiles_are_of_the_nearest_rank() {
        assert_eq!(percentile(&[], 0.5), None);
        assert_eq!(percentile(&[3.0], 0.5), Some(3.0));
        assert_eq!(percentile(&[3.0], 0.99), Some(3.0));
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(percentile(&hundred, 0.5), Some(50.0));
        assert_eq!(percentile(&hundred, 0.99), Some(99.0));
        assert_eq!(percentile(&hundred, 1.0), Some(100.0));
        assert_eq!(percentile(&hundred, 0.0), Some(1.0));
    }
}
