//! Durations and sizes as people type them.

use std::time::Duration;

/// `30s`, `500ms`, `2m`, `1h`; `0` needs no unit.
///
/// # Errors
/// What is wrong with `text`, fit to follow the option's name.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = number_and_unit(text)?;
    let millis_each: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "" if number == 0 => 1,
        "" => return Err(format!("{text:?} has no unit: write {text}s, {text}ms, {text}m or {text}h")),
        _ => return Err(format!("{text:?} has the unknown unit {unit:?}: ms, s, m and h are known")),
    };
    let millis = number.checked_mul(millis_each).ok_or_else(|| format!("{text:?} is too long"))?;
    Ok(Duration::from_millis(millis))
}

/// `16MB`, `512kB`, `1GiB`; a number alone is bytes. As in PostgreSQL, units are powers of 1024, with or without the i.
///
/// # Errors
/// What is wrong with `text`, fit to follow the option's name.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    let (number, unit) = number_and_unit(text)?;
    let power = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 1,
        "m" | "mb" | "mib" => 2,
        "g" | "gb" | "gib" => 3,
        "t" | "tb" | "tib" => 4,
        _ => return Err(format!("{text:?} has the unknown unit {unit:?}: B, kB, MB, GB and TB are known")),
    };
    number.checked_mul(1 << (10 * power)).ok_or_else(|| format!("{text:?} is too large"))
}

fn number_and_unit(text: &str) -> Result<(u64, &str), String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    if number.is_empty() {
        return Err(format!("{text:?} does not start with a number"));
    }
    if unit.starts_with(['.', ',']) {
        return Err(format!("{text:?} is not whole: use a smaller unit"));
    }
    let number = number.parse().map_err(|_| format!("{text:?} is too large"))?;
    Ok((number, unit.trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let check = |text: &str, expected: Result<u64, &str>| {
            let expected = expected.map(Duration::from_millis).map_err(str::to_owned);
            assert_eq!(duration(text), expected, "{text:?}");
        };
        check("0", Ok(0));
        check("0s", Ok(0));
        check("30s", Ok(30_000));
        check("30 s", Ok(30_000));
        check("500ms", Ok(500));
        check("2m", Ok(120_000));
        check("1h", Ok(3_600_000));
        check("30", Err("\"30\" has no unit: write 30s, 30ms, 30m or 30h"));
        check("", Err("\"\" does not start with a number"));
        check("s", Err("\"s\" does not start with a number"));
        check("-1s", Err("\"-1s\" does not start with a number"));
        check("1.5s", Err("\"1.5s\" is not whole: use a smaller unit"));
        check("1d", Err("\"1d\" has the unknown unit \"d\": ms, s, m and h are known"));
        check("1M", Err("\"1M\" has the unknown unit \"M\": ms, s, m and h are known"));
        check("18446744073709551616s", Err("\"18446744073709551616s\" is too large"));
        check("18446744073709551615h", Err("\"18446744073709551615h\" is too long"));
    }

    #[test]
    fn sizes() {
        let check = |text: &str, expected: Result<u64, &str>| {
            assert_eq!(bytes(text), expected.map_err(str::to_owned), "{text:?}");
        };
        check("0", Ok(0));
        check("1048576", Ok(1 << 20));
        check("5B", Ok(5));
        check("64kB", Ok(64 << 10));
        check("16MB", Ok(16 << 20));
        check("16MiB", Ok(16 << 20));
        check("16 mb", Ok(16 << 20));
        check("2G", Ok(2 << 30));
        check("1TB", Ok(1 << 40));
        check("MB", Err("\"MB\" does not start with a number"));
        check("1.5GB", Err("\"1.5GB\" is not whole: use a smaller unit"));
        check("1XB", Err("\"1XB\" has the unknown unit \"XB\": B, kB, MB, GB and TB are known"));
        check("1é", Err("\"1é\" has the unknown unit \"é\": B, kB, MB, GB and TB are known"));
        check("18446744073709551615kB", Err("\"18446744073709551615kB\" is too large"));
    }
}
