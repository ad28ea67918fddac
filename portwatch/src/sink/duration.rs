//! How long something took, for people.

use std::fmt;

const SECOND: u64 = 1000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// A number of milliseconds, shown in the unit that suits it with at most one decimal: `850 ms`,
/// `2.4 s`, `60 s`, `12 min`, `3.2 h`, `5 d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Duration(pub(crate) u64);

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let milliseconds = self.0;
        // A unit begins at two of it: 90 s says more than 1.5 min, and 60 s is what the kernel's
        // source calls the time of TIME_WAIT.
        let (unit, name) = match milliseconds {
            0..SECOND => return write!(f, "{milliseconds} ms"),
            SECOND..120_000 => (SECOND, "s"),
            120_000..7_200_000 => (MINUTE, "min"),
            7_200_000..172_800_000 => (HOUR, "h"),
            _ => (DAY, "d"),
        };
        let tenths = milliseconds.saturating_add(unit / 20) / (unit / 10);
        match (tenths / 10, tenths % 10) {
            (whole, 0) => write!(f, "{whole} {name}"),
            (whole, tenth) => write!(f, "{whole}.{tenth} {name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_duration_is_shown_in_the_unit_that_suits_it() {
        for (milliseconds, shown) in [
            (0, "0 ms"),
            (850, "850 ms"),
            (999, "999 ms"),
            (1000, "1 s"),
            (1049, "1 s"),
            (1050, "1.1 s"),
            (2400, "2.4 s"),
            (9_960, "10 s"),
            (59_960, "60 s"),
            (60_000, "60 s"),
            (60_004, "60 s"),
            (90_500, "90.5 s"),
            (119_999, "120 s"),
            (120_000, "2 min"),
            (12 * MINUTE, "12 min"),
            (12 * MINUTE + 30 * SECOND, "12.5 min"),
            (2 * HOUR - 1, "120 min"),
            (2 * HOUR, "2 h"),
            (192 * MINUTE, "3.2 h"),
            (2 * DAY - 1, "48 h"),
            (2 * DAY, "2 d"),
            (5 * DAY + 12 * HOUR, "5.5 d"),
        ] {
            assert_eq!(Duration(milliseconds).to_string(), shown, "{milliseconds}");
        }
    }

    #[test]
    fn no_duration_overflows() {
        assert_eq!(Duration(u64::MAX).to_string(), "213503982334.6 d");
    }
}
