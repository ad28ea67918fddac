//! When something was, for people: in a time zone, to the second or the millisecond.

use jiff::tz::TimeZone;

use crate::event::Time;

/// The time of day to the second.
pub(super) const SECOND: &str = "%H:%M:%S";
/// The time of day to the millisecond.
pub(super) const MILLISECOND: &str = "%H:%M:%S%.3f";
/// Date and time to the second.
pub(super) const DATE_SECOND: &str = "%Y-%m-%d %H:%M:%S";
/// Date and time to the millisecond.
pub(super) const DATE_MILLISECOND: &str = "%Y-%m-%d %H:%M:%S%.3f";

/// A time in one of the forms above.
pub(super) fn moment(time: Time, zone: &TimeZone, form: &str) -> String {
    zone.to_datetime(time.timestamp())
        .strftime(form)
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_less_than_a_form_tells_is_cut_off() {
        let time = Time(1_000_000_001_999_999_999);
        let shown = |form| moment(time, &TimeZone::UTC, form);
        assert_eq!(shown(SECOND), "01:46:41");
        assert_eq!(shown(MILLISECOND), "01:46:41.999");
        assert_eq!(shown(DATE_SECOND), "2001-09-09 01:46:41");
        assert_eq!(shown(DATE_MILLISECOND), "2001-09-09 01:46:41.999");
    }
}
