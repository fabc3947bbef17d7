//! Times as dates in UTC, without a calendar library.

/// `2025-03-01 14:05 UTC`.
pub(crate) fn minute(unix_seconds: u64) -> String {
    let (hour, minute) = (unix_seconds / 3600 % 24, unix_seconds / 60 % 60);
    format!("{} {hour:02}:{minute:02} UTC", day(unix_seconds))
}

/// `2025-03-01`.
pub(crate) fn day(unix_seconds: u64) -> String {
    // Howard Hinnant's days-to-civil algorithm: eras of 400 years that start on 1 March
    let days = unix_seconds / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_days() {
        assert_eq!(day(0), "1970-01-01");
        assert_eq!(day(951_782_400), "2000-02-29");
        assert_eq!(day(1_735_689_599), "2024-12-31");
        assert_eq!(minute(1_740_837_900), "2025-03-01 14:05 UTC");
    }
}
