//! Whether an answer is right: the authors' rule and a strict one, side by side (paper card, section 6.1).

use std::fmt;

use crate::exec::Outcome;

/// Unicode's decimal digits zero of the scripts in the basic plane, beside ASCII's; Python's `float` reads them all.
const ZEROS: [u32; 36] = [
    0x0660, 0x06F0, 0x07C0, 0x0966, 0x09E6, 0x0A66, 0x0AE6, 0x0B66, 0x0BE6, 0x0C66, 0x0CE6, 0x0D66, 0x0DE6,
    0x0E50, 0x0ED0, 0x0F20, 0x1040, 0x1090, 0x17E0, 0x1810, 0x1946, 0x19D0, 0x1A80, 0x1A90, 0x1B50, 0x1BB0,
    0x1C40, 0x1C50, 0xA620, 0xA8D0, 0xA900, 0xA9D0, 0xA9F0, 0xAA50, 0xABF0, 0xFF10,
];

/// Largest difference that the strict rule takes for rounding (PAL's rule).
const CLOSE: f64 = 1e-3;

/// A gold answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// Of an arithmetic problem.
    Number(f64),
    /// Of a symbolic one: yes or no, letters.
    Text(String),
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Answer::Number(number) => number.fmt(f),
            Answer::Text(text) => f.write_str(text),
        }
    }
}

impl From<f64> for Answer {
    fn from(number: f64) -> Self {
        Answer::Number(number)
    }
}

/// What both rules say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// The authors' rule: exactly one line is printed, and it rounds to the gold answer cut to an integer. 17.6 counts
    /// as 18.
    pub paper: bool,
    /// The last line that is not empty is within 0.001 of the gold answer.
    pub strict: bool,
}

/// Judges what a program printed. For a text both rules are the same: the last line that is not empty, letter for letter
/// (our choice, the authors' rule was not seen).
pub fn judge(outcome: &Outcome, gold: &Answer) -> Verdict {
    let Some(stdout) = outcome.stdout() else { return Verdict::default() };
    match gold {
        Answer::Number(gold) => judge_lines(&lines(stdout), *gold),
        Answer::Text(gold) => {
            let last = lines(stdout).into_iter().rev().find(|line| !line.trim().is_empty());
            let right = last.is_some_and(|line| line.trim() == gold.trim());
            Verdict { paper: right, strict: right }
        }
    }
}

/// As [`judge`], of lines.
pub fn judge_lines(lines: &[&str], gold: f64) -> Verdict {
    let paper = match lines {
        [line] => python_float(line).is_some_and(|x| x.is_finite() && x.round_ties_even() == gold.trunc()),
        _ => false,
    };
    let last = lines.iter().rev().find(|line| !line.trim().is_empty());
    let strict = last.and_then(|line| python_float(line)).is_some_and(|x| (x - gold).abs() < CLOSE);
    Verdict { paper, strict }
}

/// The lines of a text; an end of line at its end starts no further one.
pub fn lines(text: &str) -> Vec<&str> {
    match text.strip_suffix('\n').unwrap_or(text) {
        "" if text.is_empty() => Vec::new(),
        text => text.split('\n').collect(),
    }
}

/// Judges a chain of thought. A text is compared letter for letter with what stands after "####", or with all there is.
pub fn judge_chain(chain: &str, gold: &Answer) -> Verdict {
    match gold {
        Answer::Number(gold) => {
            let line = answer_of_chain(chain).map(|answer| answer.to_string());
            judge_lines(&line.iter().map(String::as_str).collect::<Vec<_>>(), *gold)
        }
        Answer::Text(gold) => {
            let answer = chain.rsplit_once("####").map_or(chain, |(_, answer)| answer);
            let right = answer.trim() == gold.trim();
            Verdict { paper: right, strict: right }
        }
    }
}

/// The answer of a chain of thought: the number after "####", else the last number. Our choice, the authors' rule was
/// not seen.
pub fn answer_of_chain(chain: &str) -> Option<f64> {
    let after = chain.rsplit_once("####").map_or(chain, |(_, after)| after);
    let plain: String = after.chars().filter(|c| !matches!(c, ',' | '$')).collect();
    let bytes = plain.as_bytes();
    let mut last = None;
    let mut at = 0;
    while at < bytes.len() {
        let rest = &plain[at..];
        let length = number_length(rest);
        if length == 0 {
            at += rest.chars().next().map_or(1, char::len_utf8);
            continue;
        }
        let negative =
            at > 0 && bytes[at - 1] == b'-' && !plain[..at - 1].ends_with(|c: char| c.is_ascii_digit());
        last = rest[..length].parse::<f64>().ok().map(|x| if negative { -x } else { x });
        at += length;
    }
    last
}

/// Bytes of the unsigned number at a text's start: digits with a fraction.
fn number_length(text: &str) -> usize {
    let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
    let whole = digits(text);
    let fraction = text[whole..].strip_prefix('.').map_or(0, digits);
    match (whole, fraction) {
        (whole, 0) => whole,
        (whole, fraction) => whole + 1 + fraction,
    }
}

/// A gold answer as data sets write it: thousands separated by commas.
pub fn gold_number(text: &str) -> Option<f64> {
    python_float(&text.replace(',', ""))
}

/// What Python's `float` reads: white space around, single underscores between digits, inf and nan in any case; neither
/// thousands separators nor hexadecimal numbers.
pub fn python_float(text: &str) -> Option<f64> {
    let space = |c: char| c.is_whitespace() || ('\x1c'..='\x1f').contains(&c);
    let ascii: String = text.trim_matches(space).chars().map(ascii_digit).collect();
    let unsigned = ascii.strip_prefix(['+', '-']).unwrap_or(&ascii);
    let word = ["inf", "infinity", "nan"].iter().any(|word| unsigned.eq_ignore_ascii_case(word));
    if !word && !unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return None;
    }
    let bytes = ascii.as_bytes();
    let digit = |i: usize| bytes.get(i).is_some_and(u8::is_ascii_digit);
    let underscores = bytes.iter().enumerate().filter(|(_, b)| **b == b'_');
    if underscores.clone().any(|(i, _)| i == 0 || !digit(i - 1) || !digit(i + 1)) {
        return None;
    }
    ascii.replace('_', "").parse().ok()
}

fn ascii_digit(c: char) -> char {
    let value = ZEROS.iter().find_map(|zero| (c as u32).checked_sub(*zero).filter(|v| *v < 10));
    value.and_then(|v| char::from_digit(v, 10)).unwrap_or(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn python_reads_what_rust_does_not_and_the_other_way_round() {
        for (text, value) in [
            ("1_000.5_0", 1000.5),
            (" \t-7\n", -7.0),
            ("+.5", 0.5),
            ("7.", 7.0),
            ("1e-2", 0.01),
            ("\u{0663}\u{0660}", 30.0),
            ("-Infinity", f64::NEG_INFINITY),
        ] {
            assert_eq!(python_float(text), Some(value), "{text}");
        }
        for text in [
            "", ".", "1__0", "1_", "_1", "1_.5", "1,000", "0x10", "1e", "e5", "--1", "1 2", "infin", "+",
            "1.e_5",
        ] {
            assert_eq!(python_float(text), None, "{text}");
        }
        assert!(python_float("NaN").unwrap().is_nan());
    }

    #[test]
    fn chains_end_in_their_answer() {
        for (chain, answer) in [
            ("5 + 3 = <<5+3=8>>8 apples\n#### 8", Some(8.0)),
            ("She has 1,250.50 dollars.", Some(1250.5)),
            ("It falls to -4 degrees", Some(-4.0)),
            ("10-4 is 6, so 10-4", Some(4.0)),
            ("the end of 3.", Some(3.0)),
            ("#### $12", Some(12.0)),
            ("nothing", None),
            ("3 apples ####", None),
        ] {
            assert_eq!(answer_of_chain(chain), answer, "{chain}");
        }
    }

    #[test]
    fn words_are_compared_letter_for_letter() {
        let printed = |stdout: &str| Outcome::Finished { stdout: stdout.to_owned() };
        let right = |stdout: &str| judge(&printed(stdout), &Answer::Text("yes".to_owned())).strict;
        assert!(right("ignored\nyes\n\n"));
        assert!(!right("Yes\n"));
        assert!(!right(""));
    }

    #[test]
    fn lines_are_what_was_printed() {
        assert!(lines("").is_empty());
        assert_eq!(lines("\n"), [""]);
        assert_eq!(lines("1\n\n2"), ["1", "", "2"]);
    }
}
