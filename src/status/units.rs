//! Numbers for people.

/// Bytes in the unit in which PostgreSQL would print them (powers of 1024): `0 B`, `1.5 GB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut scaled = count as f64 / 1024.0;
    let mut unit = 0;
    // 1023.95 would be printed as 1024.0.
    while scaled >= 1023.95 && unit + 1 < UNITS.len() {
        scaled /= 1024.0;
        unit += 1;
    }
    format!("{scaled:.1} {}", UNITS[unit])
}

/// Seconds: `0.2 s`, `59 s`, `3m 20s`, `5h 1m`, `2d 3h`.
pub fn seconds(count: f64) -> String {
    if !count.is_finite() || count < 0.0 {
        return "unknown".to_owned();
    }
    if count < 9.95 {
        return format!("{count:.1} s");
    }
    let whole = count.round() as u64;
    match whole {
        0..60 => format!("{whole} s"),
        60..3_600 => format!("{}m {}s", whole / 60, whole % 60),
        3_600..86_400 => format!("{}h {}m", whole / 3_600, whole % 3_600 / 60),
        _ => format!("{}d {}h", whole / 86_400, whole % 86_400 / 3_600),
    }
}

/// A count with its thousands apart: `1,234,567`.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn for_people() {
        let check = |text: String, expected: &str| assert_eq!(text, expected);
        check(bytes(0), "0 B");
        check(bytes(1023), "1023 B");
        check(bytes(1024), "1.0 kB");
        check(bytes(1024 * 1024 - 1), "1.0 MB");
        check(bytes(1536 * 1024 * 1024), "1.5 GB");
        check(bytes(u64::MAX), "16384.0 PB");
        check(seconds(0.0), "0.0 s");
        check(seconds(0.25), "0.2 s");
        check(seconds(9.96), "10 s");
        check(seconds(59.6), "1m 0s");
        check(seconds(200.0), "3m 20s");
        check(seconds(18_060.0), "5h 1m");
        check(seconds(183_600.0), "2d 3h");
        check(seconds(f64::NAN), "unknown");
        check(seconds(-1.0), "unknown");
        check(count(0), "0");
        check(count(999), "999");
        check(count(1000), "1,000");
        check(count(u64::MAX), "18,446,744,073,709,551,615");
    }
}
