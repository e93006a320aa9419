//! [`ByteSize`]: a number of bytes as people write it.

use std::fmt;
use std::str::FromStr;

use crate::quoted::quoted;

const UNITS: [(&str, u32); 6] =
    [("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40), ("PiB", 50), ("EiB", 60)];

/// A number of bytes. Reads `4096`, `4K`, `4KiB`, `1.5G`: units are powers of two, and a bare number counts bytes. Prints
/// with the largest unit that is exact (`4 MiB`, `1536 MiB`), or with `{:#}` rounded to three digits (`1.5 GiB`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct ByteSize(pub u64);

/// Why a text is no size.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SizeError {
    /// Not a number with a known unit.
    #[error(
        "'{0}' is not a size; write bytes, or a number with K, M, G, T, P or E (powers of two), such as 4096, 4K or 1.5G"
    )]
    Unreadable(String),
    /// Not a whole number of bytes.
    #[error("'{0}' is not a whole number of bytes")]
    Fraction(String),
    /// More than a `u64` holds.
    #[error("'{0}' is more than 16 EiB")]
    TooLarge(String),
}

impl FromStr for ByteSize {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let unreadable = || SizeError::Unreadable(quoted(text));
        let trimmed = text.trim();
        let digits_end =
            trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(digits_end);
        let shift = shift_of(unit.trim_start()).ok_or_else(unreadable)?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty()
            || number.ends_with('.')
            || fraction.contains('.')
            || fraction.len() > 18
        {
            return Err(unreadable());
        }
        let too_large = || SizeError::TooLarge(quoted(text));
        let whole: u128 = whole.parse().map_err(|_| too_large())?;
        let scale = 10u128.pow(fraction.len() as u32);
        let fraction: u128 =
            if fraction.is_empty() { 0 } else { fraction.parse().map_err(|_| unreadable())? };
        let scaled = whole
            .checked_mul(scale)
            .and_then(|whole| whole.checked_add(fraction))
            .ok_or_else(too_large)?;
        let bytes = scaled.checked_mul(1 << shift).ok_or_else(too_large)?;
        if !bytes.is_multiple_of(scale) {
            return Err(SizeError::Fraction(quoted(text)));
        }
        u64::try_from(bytes / scale).map(ByteSize).map_err(|_| too_large())
    }
}

fn shift_of(unit: &str) -> Option<u32> {
    if unit.is_empty() || unit.eq_ignore_ascii_case("b") {
        return Some(0);
    }
    UNITS
        .iter()
        .find(|(name, _)| unit.eq_ignore_ascii_case(name) || unit.eq_ignore_ascii_case(&name[..1]))
        .map(|(_, shift)| *shift)
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = if f.alternate() {
            UNITS.iter().rev().find(|(_, shift)| self.0 >> shift > 0)
        } else {
            UNITS.iter().rev().find(|(_, shift)| self.0 != 0 && self.0.is_multiple_of(1 << shift))
        };
        let text = match unit {
            None => format!("{} B", self.0),
            Some((name, shift)) if self.0.is_multiple_of(1 << shift) => {
                format!("{} {name}", self.0 >> shift)
            }
            Some((name, shift)) => {
                let value = self.0 as f64 / (1u64 << shift) as f64;
                let decimals = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
                let digits = format!("{value:.decimals$}");
                let digits = if decimals > 0 {
                    digits.trim_end_matches('0').trim_end_matches('.')
                } else {
                    &digits
                };
                format!("{digits} {name}")
            }
        };
        f.pad(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_people_write() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("4096B", 4096),
            ("4K", 4096),
            ("4k", 4096),
            ("4KiB", 4096),
            ("10G", 10 << 30),
            ("10 GiB", 10 << 30),
            ("1.5G", 3 << 29),
            ("0.5k", 512),
            ("1P", 1 << 50),
            ("15E", 15 << 60),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
        for bad in [
            "",
            "G",
            "-1",
            "1.G",
            ".5G",
            "1..5",
            "4KB",
            "1e3",
            "0.0001K",
            "16E",
            "999999999999999999999999",
            "4 M M",
        ] {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn what_people_read() {
        for (bytes, exact, rounded) in [
            (0, "0 B", "0 B"),
            (512, "512 B", "512 B"),
            (4096, "4 KiB", "4 KiB"),
            (4097, "4097 B", "4 KiB"),
            (3 << 29, "1536 MiB", "1.5 GiB"),
            (1 << 50, "1 PiB", "1 PiB"),
            (123 << 20, "123 MiB", "123 MiB"),
            ((123 << 20) + 1, "128974849 B", "123 MiB"),
        ] {
            assert_eq!(ByteSize(bytes).to_string(), exact);
            assert_eq!(format!("{:#}", ByteSize(bytes)), rounded);
        }
    }

    proptest! {
        #[test]
        fn the_exact_form_reads_back(bytes in any::<u64>(), shift in 0u32..64) {
            let size = ByteSize(bytes >> shift << (shift / 2));
            prop_assert_eq!(size.to_string().parse(), Ok(size));
        }
    }
}
