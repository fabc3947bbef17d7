//! Numbers as people read them. Nothing here ever prints `NaN` or `inf`.

/// Narrow no-break space, between digits and before units.
const THIN: char = '\u{202f}';
const MINUS: char = '\u{2212}';
const NOT_FINITE: &str = "not finite";

/// Fixed digits after the decimal point; digits grouped by three from 10 000 on.
pub(crate) fn fixed(x: f64, digits: usize) -> String {
    if !x.is_finite() {
        return NOT_FINITE.to_owned();
    }
    let text = format!("{:.digits$}", x.abs());
    let (whole, fraction) = text.split_once('.').map_or((text.as_str(), None), |(w, f)| (w, Some(f)));
    let mut out = String::new();
    if x < 0.0 && text.bytes().any(|b| (b'1'..=b'9').contains(&b)) {
        out.push(MINUS);
    }
    for (i, digit) in whole.chars().enumerate() {
        if whole.len() > 4 && i > 0 && (whole.len() - i).is_multiple_of(3) {
            out.push(THIN);
        }
        out.push(digit);
    }
    if let Some(fraction) = fraction {
        out.push('.');
        out.push_str(fraction);
    }
    out
}

/// As [`fixed`], with a plus sign where it is positive.
pub(crate) fn signed(x: f64, digits: usize) -> String {
    let text = fixed(x, digits);
    let positive = x > 0.0 && x.is_finite() && text.bytes().any(|b| (b'1'..=b'9').contains(&b));
    if positive { format!("+{text}") } else { text }
}

/// A whole number.
pub(crate) fn count(n: u64) -> String {
    fixed(n as f64, 0)
}

/// A count with its noun: `1 seed`, `5 seeds`.
pub(crate) fn counted(n: usize, noun: &str) -> String {
    format!("{} {noun}{}", count(n as u64), if n == 1 { "" } else { "s" })
}

/// Bytes in SI units with three significant digits.
pub(crate) fn bytes(n: f64) -> String {
    if !n.is_finite() {
        return NOT_FINITE.to_owned();
    }
    scaled(n, &["B", "kB", "MB", "GB", "TB"])
}

fn scaled(n: f64, units: &[&str]) -> String {
    let mut value = n;
    let mut unit = 0;
    while value.abs() >= 999.5 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = match value.abs() {
        _ if unit == 0 => 0,
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    };
    format!("{}{THIN}{}", fixed(value, digits), units[unit])
}

/// A time span: `0.42 s`, `12.3 s`, `3 min 20 s`, `2 h 05 min`.
pub(crate) fn duration(seconds: f64) -> String {
    if !seconds.is_finite() {
        return NOT_FINITE.to_owned();
    }
    let whole = seconds.round().max(0.0) as u64;
    match seconds {
        s if s < 0.9995 => format!("{}{THIN}ms", fixed(s * 1000.0, 0)),
        s if s < 9.995 => format!("{}{THIN}s", fixed(s, 2)),
        s if s < 59.95 => format!("{}{THIN}s", fixed(s, 1)),
        s if s < 3599.5 => format!("{}{THIN}min {:02}{THIN}s", whole / 60, whole % 60),
        _ => {
            let minutes = (whole + 30) / 60;
            format!("{}{THIN}h {:02}{THIN}min", count(minutes / 60), minutes % 60)
        }
    }
}

/// A probability: three decimals, or `< 0.001`.
pub(crate) fn probability(p: f64) -> String {
    match p {
        p if !p.is_finite() => "—".to_owned(),
        p if p < 0.001 => format!("<{THIN}0.001"),
        p => fixed(p, 3),
    }
}

/// A hyper-parameter: the shortest form that reads back as the same number.
pub(crate) fn parameter(x: f64) -> String {
    if !x.is_finite() {
        return NOT_FINITE.to_owned();
    }
    let text = if x != 0.0 && !(1e-3..1e6).contains(&x.abs()) { format!("{x:e}") } else { format!("{x}") };
    text.replace('-', &MINUS.to_string())
}

/// A tick label: `decimals` digits, or thousands and millions by suffix where all labels are round in them.
pub(crate) fn tick(x: f64, decimals: usize, largest: f64) -> String {
    if decimals == 0 && largest >= 1e4 && x != 0.0 {
        let (factor, suffix) = if largest >= 2e6 { (1e6, "M") } else { (1e3, "k") };
        let text = format!("{:.3}", x / factor);
        let text = text.trim_end_matches('0').trim_end_matches('.');
        return format!("{text}{suffix}").replace('-', &MINUS.to_string());
    }
    fixed(x, decimals)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixed_groups_and_signs() {
        assert_eq!(fixed(456_352.0, 0), "456\u{202f}352");
        assert_eq!(fixed(1234.5, 1), "1234.5");
        assert_eq!(fixed(-1_234_567.891, 2), "\u{2212}1\u{202f}234\u{202f}567.89");
        assert_eq!(fixed(-0.0001, 2), "0.00");
        assert_eq!(signed(0.5, 1), "+0.5");
        assert_eq!(signed(0.01, 1), "0.0");
        assert_eq!(fixed(f64::NAN, 2), "not finite");
        assert_eq!(fixed(f64::INFINITY, 2), "not finite");
    }

    #[test]
    fn units() {
        assert_eq!(bytes(999.0), "999\u{202f}B");
        assert_eq!(bytes(1_234_567.0), "1.23\u{202f}MB");
        assert_eq!(bytes(999_999.0), "1.00\u{202f}MB");
        assert_eq!(bytes(302e6), "302\u{202f}MB");
        assert_eq!(duration(0.042), "42\u{202f}ms");
        assert_eq!(duration(12.34), "12.3\u{202f}s");
        assert_eq!(duration(200.0), "3\u{202f}min 20\u{202f}s");
        assert_eq!(duration(59.97), "1\u{202f}min 00\u{202f}s");
        assert_eq!(duration(7500.0), "2\u{202f}h 05\u{202f}min");
        assert_eq!(duration(7170.0), "2\u{202f}h 00\u{202f}min");
    }

    #[test]
    fn small_things() {
        assert_eq!(probability(0.00001), "<\u{202f}0.001");
        assert_eq!(probability(f64::NAN), "—");
        assert_eq!(parameter(0.003), "0.003");
        assert_eq!(parameter(1e-4), "1e\u{2212}4");
        assert_eq!(tick(500_000.0, 0, 1_000_000.0), "500k");
        assert_eq!(tick(2_500_000.0, 0, 5e6), "2.5M");
        assert_eq!(counted(1, "seed"), "1 seed");
    }
}
