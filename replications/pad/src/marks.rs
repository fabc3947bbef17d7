//! Programs without a teacher: GSM8K's solutions carry calculator marks, `<<3*5=15>>`, and each is a line of a program
//! (paper card, section 4; the rule is ours).

use std::fmt;

/// Why a solution gives no program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoProgram {
    /// No marks.
    NoAnnotation,
    /// A mark that is no arithmetic on numbers.
    NotArithmetic(String),
}

impl fmt::Display for NoProgram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NoProgram::NoAnnotation => f.write_str("no-annotation"),
            NoProgram::NotArithmetic(mark) => write!(f, "not-arithmetic: {mark}"),
        }
    }
}

/// A solution's text and its gold answer, which stands after "####".
pub fn parts(solution: &str) -> (&str, Option<&str>) {
    match solution.split_once("####") {
        Some((text, gold)) => (text, Some(gold.trim())),
        None => (solution, None),
    }
}

/// The program of a solution: one step a mark, in which numbers that an earlier step gave become that step. It is right
/// only if running it gives the gold answer.
///
/// # Errors
/// See [`NoProgram`].
pub fn program(solution: &str) -> Result<String, NoProgram> {
    let marks = marks(parts(solution).0);
    if marks.is_empty() {
        return Err(NoProgram::NoAnnotation);
    }
    let mut program = "def solution():\n    \n".to_owned();
    let mut values: Vec<f64> = Vec::new();
    for (expression, value) in &marks {
        let wrong = || NoProgram::NotArithmetic(format!("{expression}={value}"));
        let clean = clean(expression);
        if clean.is_empty() || !clean.chars().all(|c| c.is_ascii_digit() || ".+-*/() ".contains(c)) {
            return Err(wrong());
        }
        let number: String = value.chars().filter(|c| !matches!(c, ',' | '$')).collect();
        let number = number.trim().trim_end_matches('%');
        let step = values.len() + 1;
        program.push_str(&format!("    step_{step} = {}\n", with_steps(&clean, &values)));
        values.push(crate::judge::python_float(number).ok_or_else(wrong)?);
    }
    program.push_str(&format!("    result = step_{}\n    return result", values.len()));
    Ok(program)
}

/// All marks `<<E=V>>`: E without `<`, `>`, `=`, V without `<`, `>`, neither empty.
fn marks(text: &str) -> Vec<(&str, &str)> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find("<<") {
        let inside = &rest[start + 2..];
        let end = inside.find(['<', '>']).unwrap_or(inside.len());
        let mark = inside[..end].split_once('=').filter(|(e, v)| !e.is_empty() && !v.is_empty());
        match mark.filter(|_| inside[end..].starts_with(">>")) {
            Some(mark) => {
                found.push(mark);
                rest = &inside[end + 2..];
            }
            None => rest = &rest[start + 1..],
        }
    }
    found
}

/// Without "," and "$", `n%` as `(n/100)`, and integers without leading zeros, which Python refuses.
fn clean(expression: &str) -> String {
    let plain: String = expression.chars().filter(|c| !matches!(c, ',' | '$')).collect();
    let mut clean = String::new();
    for (run, is_number) in runs(&plain) {
        match run.strip_prefix('%') {
            Some(rest) if !is_number => {
                let digits = clean.len() - trailing_number(&clean).len();
                let percent = format!("({}/100)", &clean[digits..]);
                clean.truncate(digits);
                clean.push_str(&percent);
                clean.push_str(rest);
            }
            _ if is_number => {
                let zeros = run.bytes().take_while(|b| *b == b'0').count();
                let digit_follows = run[zeros..].starts_with(|c: char| c.is_ascii_digit());
                clean.push_str(&run[if digit_follows { zeros } else { zeros.saturating_sub(1) }..]);
            }
            _ => clean.push_str(run),
        }
    }
    clean
}

/// The number that ends a text.
fn trailing_number(text: &str) -> &str {
    &text[text.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.').len()..]
}

/// Numbers that equal an earlier step's value as that step, the latest one if several do.
fn with_steps(expression: &str, values: &[f64]) -> String {
    let step = |run: &str| {
        let literal = run.split('.').count() <= 2 && run.ends_with(|c: char| c.is_ascii_digit());
        let number: f64 = run.parse().ok().filter(|_| literal)?;
        values.iter().rposition(|value| *value == number)
    };
    let replaced = |(run, is_number): (&str, bool)| match step(run).filter(|_| is_number) {
        Some(j) => format!("step_{}", j + 1),
        None => run.to_owned(),
    };
    runs(expression).into_iter().map(replaced).collect()
}

/// A text cut where numbers, runs of digits and dots, begin and end.
fn runs(text: &str) -> Vec<(&str, bool)> {
    let numeric = |c: char| c.is_ascii_digit() || c == '.';
    let mut runs = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let is_number = numeric(first);
        let end = rest.find(|c| numeric(c) != is_number).unwrap_or(rest.len());
        runs.push((&rest[..end], is_number));
        rest = &rest[end..];
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(solution: &str) -> Vec<String> {
        let program = program(solution).unwrap();
        let body = program.strip_prefix("def solution():\n    \n    ").unwrap();
        let (steps, _) = body.split_once("\n    result = ").unwrap();
        let expression =
            |(i, step): (usize, &str)| step.strip_prefix(&format!("step_{} = ", i + 1)).unwrap().to_owned();
        steps.split("\n    ").enumerate().map(expression).collect()
    }

    #[test]
    fn marks_become_steps() {
        assert_eq!(
            program("2 and 3 are <<2+3=5>>5, twice <<5*2=10>>10\n#### 10").unwrap(),
            "def solution():\n    \n    step_1 = 2+3\n    step_2 = step_1*2\n    result = step_2\n    return result"
        );
        // the latest step of a value, no part of a number, no number after the gold answer's sign
        assert_eq!(steps("<<2+3=5>> <<10-5=5>> <<5*15=75>> #### <<1+1=2>>")[2], "step_2*15");
        assert_eq!(steps("<<1/4=.25>><<.25+0.25+1.25=1.75>>")[1], "step_1+step_1+1.25");
    }

    #[test]
    fn numbers_are_written_as_python_reads_them() {
        assert_eq!(steps("<<$1,200*20%=240>>"), ["1200*(20/100)"]);
        assert_eq!(steps("<<007+0.5+00.5+0+10%=8>>"), ["7+0.5+0.5+0+(10/100)"]);
        assert_eq!(steps("<<50%=50%>><<50*2=100>>")[1], "step_1*2");
    }

    #[test]
    fn what_is_no_mark_is_not_read() {
        for none in ["no marks", "<<>>", "<<=5>>", "<<5=>>", "<<2<3=1>>", "<<2+3=5>"] {
            assert_eq!(program(none), Err(NoProgram::NoAnnotation), "{none}");
        }
        assert_eq!(steps("<<<1+1=2>> <<2+ <<2+2=4>>"), ["1+1", "step_1+step_1"]);
        for wrong in ["<<x*2=4>>", "<<2^2=4>>", "<<2+2=four>>"] {
            assert!(matches!(program(wrong), Err(NoProgram::NotArithmetic(_))), "{wrong}");
        }
    }
}
