//! Equations of word problems as programs and chains of thought: one line and one sentence an operator.

use crate::expressions::{Expression, Operator};
use crate::judge::Answer;
use crate::problems::Problem;

/// Digits after the point in a chain of thought.
const DIGITS: f64 = 1e4;

/// Beyond it a float does not tell whole numbers apart.
pub(crate) const EXACT: f64 = 9.0e15;

/// The name that an equation has for the number with this place in its question, from 0.
pub(crate) fn slot(place: usize) -> String {
    format!("number{place}")
}

/// The place that a name stands for.
pub(crate) fn place(name: &str) -> Option<usize> {
    name.strip_prefix("number")?.parse().ok()
}

/// The problem whose answer is what an equation gives. `numbers` are those of the question in its order, and the equation
/// calls them `number0`, `number1` and so on; other numbers of the equation are constants, 100 or 12 for example. The
/// program assigns the numbers that it needs, then does one operation a line; so does the chain of thought. None if the
/// value is not finite or too large to be exact, or if a name has no number.
pub fn problem(origin: &str, question: &str, equation: &Expression, numbers: &[f64]) -> Option<Problem> {
    let mut used: Vec<usize> = equation.names().into_iter().map(place).collect::<Option<_>>()?;
    used.sort_unstable();
    used.dedup();
    let mut writer = Writer { program: "def solution():\n    \n".to_owned(), chain: String::new(), steps: 0 };
    for (i, place) in used.iter().enumerate() {
        writer.program.push_str(&format!("    number_{} = {}\n", i + 1, numbers.get(*place)?));
    }
    let (name, value) = writer.step(equation, &|name| {
        let place = place(name)?;
        Some((format!("number_{}", used.binary_search(&place).ok()? + 1), *numbers.get(place)?))
    })?;
    let Writer { mut program, mut chain, .. } = writer;
    program.push_str(&format!("    result = {name}\n    return result"));
    chain.push_str(&format!("#### {}", rounded(value)));
    Some(Problem {
        origin: origin.to_owned(),
        question: question.to_owned(),
        program,
        chain,
        answer: Answer::Number(rounded(value)),
    })
}

/// As [`problem`], for an equation that has the numbers themselves. Equal ones are taken in the order of the question; what
/// the question does not have is a constant.
pub fn located(origin: &str, question: &str, equation: &Expression) -> Option<Problem> {
    let numbers = numbers(question);
    let mut left: Vec<usize> = (0..numbers.len()).collect();
    let equation = equation.map_leaves(&mut |leaf| {
        let Expression::Number(number) = leaf else { return leaf.clone() };
        let next = left.iter().position(|place| numbers[*place] == *number).map(|at| left.remove(at));
        let place = next.or_else(|| numbers.iter().rposition(|known| known == number));
        place.map_or_else(|| leaf.clone(), |place| Expression::Name(slot(place)))
    });
    problem(origin, question, &equation, &numbers)
}

const WORDS: [&str; 21] = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
];

const TENS: [&str; 7] = ["thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"];

/// The numbers of a question in its order, in digits or as one word.
pub fn numbers(question: &str) -> Vec<f64> {
    let part = |c: char| c.is_alphanumeric() || matches!(c, '.' | ',');
    let words = question.split(|c| !part(c)).map(|word| word.trim_matches(['.', ',']));
    let number = |word: &str| {
        let lower = word.to_lowercase();
        let small = WORDS.iter().position(|known| *known == lower);
        let tens = || TENS.iter().position(|known| *known == lower).map(|i| 10 * (i + 3));
        match small.or_else(tens) {
            Some(number) => Some(number as f64),
            None => {
                let digits = word.chars().all(|c| c.is_ascii_digit() || matches!(c, '.' | ','));
                word.replace(',', "").parse().ok().filter(|_| digits)
            }
        }
    };
    words.filter_map(number).collect()
}

/// A whole number where only the arithmetic of floats made it none.
pub(crate) fn snapped(value: f64) -> f64 {
    let whole = value.round();
    let close = (8.0 * f64::EPSILON * whole.abs()).max(1e-9);
    if (value - whole).abs() <= close { whole } else { value }
}

/// As a chain of thought writes it, and as the gold answer is.
fn rounded(value: f64) -> f64 {
    let value = snapped(value);
    if value.fract() == 0.0 { value } else { (value * DIGITS).round() / DIGITS }
}

struct Writer {
    program: String,
    chain: String,
    steps: usize,
}

impl Writer {
    /// Writes the steps of an expression, operands first; gives the name of the result and its value.
    fn step(
        &mut self,
        expression: &Expression,
        known: &impl Fn(&str) -> Option<(String, f64)>,
    ) -> Option<(String, f64)> {
        let (left, operator, right) = match expression {
            Expression::Number(number) => return Some((number.to_string(), *number)),
            Expression::Name(name) => return known(name),
            Expression::Operation(left, operator, right) => (left, *operator, right),
        };
        let (left_name, left) = self.step(left, known)?;
        let (right_name, right) = self.step(right, known)?;
        let value = operator.apply(left, right);
        if !value.is_finite() || value.abs() > EXACT {
            return None;
        }
        self.steps += 1;
        let (name, sign) = (format!("step_{}", self.steps), operator.sign());
        self.program.push_str(&format!("    {name} = {left_name} {sign} {right_name}\n"));
        let is = match operator {
            Operator::Add => "sum",
            Operator::Subtract => "difference",
            Operator::Multiply => "product",
            Operator::Divide => "quotient",
        };
        let [left, right, result] = [left, right, value].map(rounded);
        self.chain.push_str(&format!("The {is} is {left} {sign} {right} = {result}.\n"));
        Some((name, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operator_is_a_line_and_a_sentence() {
        let equation = Expression::prefix("* - number2 number0 12.0").unwrap();
        let problem = problem("t-1", "3, 8 and 7.5?", &equation, &[3.0, 8.0, 7.5]).unwrap();
        let body = "    number_1 = 3\n    number_2 = 7.5\n    step_1 = number_2 - number_1\n    step_2 = step_1 * 12\n";
        let end = "    result = step_2\n    return result";
        assert_eq!(problem.program, format!("def solution():\n    \n{body}{end}"));
        let chain = "The difference is 7.5 - 3 = 4.5.\nThe product is 4.5 * 12 = 54.\n#### 54";
        assert_eq!(problem.chain, chain);
        assert_eq!(problem.answer, Answer::Number(54.0));
        assert_eq!((problem.origin.as_str(), problem.question.as_str()), ("t-1", "3, 8 and 7.5?"));
    }

    #[test]
    fn floats_are_written_for_people() {
        let equation = Expression::infix("(number0 + number1) / 3").unwrap();
        let sum = problem("", "", &equation, &[0.1, 0.2]).unwrap();
        assert!(sum.chain.starts_with("The sum is 0.1 + 0.2 = 0.3.\nThe quotient is 0.3 / 3 = 0.1.\n"));
        assert_eq!(sum.answer, Answer::Number(0.1));
        let third = problem("", "", &equation, &[1.0, 1.0]).unwrap();
        assert!(third.chain.ends_with("= 0.6667.\n#### 0.6667"));
        assert_eq!(third.answer, Answer::Number(0.6667));
    }

    #[test]
    fn numbers_of_a_question_are_found() {
        let question = "Seven of 1,250.5 apples cost $0.75, ONE in 12. Forty-two? 3rd, $5/2.";
        assert_eq!(numbers(question), [7.0, 1250.5, 0.75, 1.0, 12.0, 40.0, 2.0, 5.0, 2.0]);
        assert_eq!(numbers("none."), [0.0; 0]);
        let equation = Expression::infix("(2 * 5) - 2 + 100").unwrap();
        let problem = located("", "5 and 2, less 2, is?", &equation).unwrap();
        let body = "    number_1 = 5\n    number_2 = 2\n    number_3 = 2\n    step_1 = number_2 * number_1\n    \
                    step_2 = step_1 - number_3\n    step_3 = step_2 + 100\n";
        assert!(problem.program.contains(body), "{}", problem.program);
    }

    #[test]
    fn what_has_no_value_is_no_problem() {
        let equation = |text| Expression::infix(text).unwrap();
        for text in ["number0 / (number1 - number1)", "number2 + 1", "apples + 1"] {
            assert_eq!(problem("", "", &equation(text), &[2.0, 3.0]), None, "{text}");
        }
        assert_eq!(problem("", "", &equation("number0 * number0"), &[1e9]), None);
        let alone = problem("", "", &equation("number0"), &[4.0]).unwrap();
        assert_eq!(alone.chain, "#### 4");
    }
}
