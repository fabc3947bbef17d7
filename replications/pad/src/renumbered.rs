//! The training set of SVAMP (Patel, Bhattamishra and Goyal, NAACL 2021): problems of MAWPS and ASDiv-A with `number0`,
//! `number1` where numbers stood and an equation in prefix form. With new numbers every time they are as many problems in
//! people's words as one likes, with exact programs, chains of thought and answers (our choice, paper card, section 4).

use std::collections::HashMap;
use std::ops::RangeInclusive;

use rand::Rng;
use replica_core::Seed;
use thiserror::Error;

use crate::csv;
use crate::equations::{self, EXACT, place, slot};
use crate::expressions::{Expression, Operator};
use crate::judge::{Answer, gold_number};
use crate::problems::Problem;

/// Draws of one template before it counts as impossible in a range.
const DRAWS: usize = 300;

/// Digits after the point of numbers that are drawn.
const DECIMALS: usize = 2;

/// Relative difference of a published answer from the equation's that is taken for rounding.
const ROUNDING: f64 = 0.01;

/// Templates whose numbers are drawn.
#[derive(Clone, Debug)]
pub struct Renumbered {
    templates: Vec<Template>,
    dropped: usize,
}

#[derive(Clone, Debug)]
struct Template {
    origin: String,
    /// With `number0` and so on.
    question: String,
    equation: Expression,
    /// The published ones.
    numbers: Vec<f64>,
    answer: f64,
}

/// A file that is not SVAMP's training set.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("MAWPS and ASDiv-A, row {row}: {problem}")]
pub struct TemplateError {
    row: usize,
    problem: String,
}

impl Renumbered {
    /// The templates of a table with the columns Question, Numbers, Equation, Answer. Those whose equation does not give
    /// the published answer are dropped and counted.
    ///
    /// Templates of the same words have one origin, whatever their names and sentences begin with: the number of the
    /// first such row, `template-17`.
    ///
    /// # Errors
    /// A column is missing, or a row has no expression, numbers or answer.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let rows = csv::rows(text).map_err(|e| TemplateError { row: e.row, problem: e.problem })?;
        let mut origins: HashMap<String, usize> = HashMap::new();
        let mut templates = Vec::new();
        let offered = rows.len();
        for (i, row) in rows.into_iter().enumerate() {
            let error = |problem: String| TemplateError { row: i + 2, problem };
            let field = |title: &str| {
                row.get(title)
                    .map(String::as_str)
                    .ok_or_else(|| error(format!("there is no column `{title}`")))
            };
            let number =
                |text: &str| gold_number(text).ok_or_else(|| error(format!("`{text}` is no number")));
            let question = tidy(field("Question")?);
            let numbers =
                field("Numbers")?.split_whitespace().map(number).collect::<Result<Vec<f64>, _>>()?;
            let equation = Expression::prefix(field("Equation")?).map_err(|e| error(e.to_string()))?;
            let answer = number(field("Answer")?)?;
            let origin = format!("template-{}", origins.entry(words(&question)).or_insert(i));
            let template = Template { origin, question, equation, numbers, answer };
            if template.is_consistent() {
                templates.push(template);
            }
        }
        let dropped = offered - templates.len();
        Ok(Self { templates, dropped })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.templates.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.templates.is_empty()
    }

    /// How many were dropped because their equation does not give the published answer.
    pub fn dropped(&self) -> usize {
        self.dropped
    }

    /// The origin of each, in the order of the file.
    pub fn origins(&self) -> Vec<&str> {
        self.templates.iter().map(|template| template.origin.as_str()).collect()
    }

    /// Only the templates whose origin `select` accepts: what is trained on and what is held out.
    #[must_use]
    pub fn only(&self, select: impl Fn(&str) -> bool) -> Self {
        let templates = self.templates.iter().filter(|template| select(&template.origin));
        Self { templates: templates.cloned().collect(), dropped: self.dropped }
    }

    /// Only the templates that share less than this of their words with any of the problems: the words of both divided by
    /// the words of either, numbers left out. MAWPS holds nearly all of MultiArith and ASDiv-A is a part of ASDiv, so what
    /// is trained on must leave out what is tested.
    #[must_use]
    pub fn unlike(&self, problems: &[Problem], similarity: f64) -> Self {
        let mut known = Words::default();
        let tested: Vec<Vec<usize>> = problems.iter().map(|problem| known.of(&problem.question)).collect();
        // texts as similar as that have one of their last words in common, whatever the order of words is
        let last = |words: &[usize]| {
            let needed = (similarity * words.len() as f64).ceil().max(1.0) as usize;
            words[(needed - 1).min(words.len())..].to_vec()
        };
        let mut with: HashMap<usize, Vec<usize>> = HashMap::new();
        for (i, words) in tested.iter().enumerate() {
            last(words).into_iter().for_each(|word| with.entry(word).or_default().push(i));
        }
        let is_unlike = |template: &&Template| {
            let own = known.of(&template.question);
            last(&own).iter().filter_map(|word| with.get(word)).flatten().all(|i| {
                let other = &tested[*i];
                let common = own.iter().filter(|word| other.contains(word)).count();
                (common as f64) < similarity * (own.len() + other.len() - common) as f64
            })
        };
        Self { templates: self.templates.iter().filter(is_unlike).cloned().collect(), dropped: self.dropped }
    }

    /// The problems with their own numbers.
    pub fn published(&self) -> Vec<Problem> {
        self.templates.iter().filter_map(|template| template.with(&template.numbers)).collect()
    }

    /// `count` problems, the templates in turn, with new numbers. Problem i is a function of the seed, `purpose` and i
    /// alone; a template that is impossible in that range gives its place to the next one. Fewer than `count` come back
    /// only if all are impossible.
    ///
    /// Whole numbers are drawn from the range, each number of digits equally likely; fractions keep their digits after
    /// the point, at most two, and stay below 1 where they were. As in the published problem every step is positive, and
    /// whole, where it was.
    pub fn draw(&self, range: RangeInclusive<u32>, count: usize, seed: Seed, purpose: &str) -> Vec<Problem> {
        let draw = |i: usize| {
            let mut rng = seed.named_stream(purpose, &i.to_string());
            let in_turn = self.templates.iter().cycle().skip(i % self.len().max(1)).take(self.len());
            in_turn.filter_map(|template| template.draw(&range, &mut rng)).next()
        };
        (0..count).map_while(draw).collect()
    }
}

/// Whether an origin is held out: a share of all origins, chosen by the seed alone.
pub fn held_out(origin: &str, share: f64, seed: Seed) -> bool {
    let uniform = seed.named_stream("held out", origin).next_u64() >> 11;
    uniform as f64 / ((1u64 << 53) as f64) < share
}

/// Words by number, in the order in which they were first met: rare ones tend to be late.
#[derive(Default)]
struct Words(HashMap<String, usize>);

impl Words {
    /// A question's words, sorted, each once; numbers and the places for them are none.
    fn of(&mut self, question: &str) -> Vec<usize> {
        let is_word = |word: &String| {
            let digits = word.strip_prefix("number").unwrap_or(word);
            !word.is_empty() && (digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()))
        };
        let words = question.split(|c: char| !c.is_alphanumeric()).map(str::to_lowercase).filter(is_word);
        let number = |word| {
            let next = self.0.len();
            *self.0.entry(word).or_insert(next)
        };
        let mut words: Vec<usize> = words.map(number).collect();
        words.sort_unstable();
        words.dedup();
        words
    }
}

impl Template {
    fn is_consistent(&self) -> bool {
        let value = self.equation.evaluate(&among(&self.numbers));
        value
            .is_some_and(|value| (value - self.answer).abs() <= ROUNDING * value.abs().max(self.answer.abs()))
    }

    fn with(&self, numbers: &[f64]) -> Option<Problem> {
        let question = fill(&self.question, numbers);
        let problem = equations::problem(&self.origin, &question, &self.equation, numbers)?;
        matches!(problem.answer, Answer::Number(n) if n.is_finite()).then_some(problem)
    }

    fn draw(&self, range: &RangeInclusive<u32>, rng: &mut impl Rng) -> Option<Problem> {
        for _ in 0..DRAWS {
            let mut numbers: Vec<f64> = self.numbers.iter().map(|n| redraw(*n, range, rng)).collect();
            if self.divide(&self.equation, &mut numbers, range, rng).is_some() && self.is_like(&numbers) {
                return self.with(&numbers);
            }
        }
        None
    }

    /// Changes dividends so that divisions that were whole are; gives the expression's value, none if that failed.
    fn divide(
        &self,
        expression: &Expression,
        numbers: &mut [f64],
        range: &RangeInclusive<u32>,
        rng: &mut impl Rng,
    ) -> Option<f64> {
        let Expression::Operation(left, operator, right) = expression else {
            return expression.evaluate(&among(numbers));
        };
        self.divide(left, numbers, range, rng)?;
        self.divide(right, numbers, range, rng)?;
        let quotient = expression.evaluate(&among(&self.numbers))?;
        if *operator == Operator::Divide && quotient.fract() == 0.0 {
            let divisor = right.evaluate(&among(numbers))?;
            if divisor.fract() == 0.0 && divisor > 0.0 {
                make_multiple(left, divisor, numbers, range, rng)?;
            }
        }
        expression.evaluate(&among(numbers))
    }

    /// Whether the whole numbers are in the range and every step is positive, whole, and at least 2 where it was.
    fn is_like(&self, numbers: &[f64]) -> bool {
        let (was, is) = (steps(&self.equation, &self.numbers), steps(&self.equation, numbers));
        was.len() == is.len()
            && was.iter().zip(&is).all(|(was, is)| {
                is.is_finite()
                    && is.abs() <= EXACT
                    && (*was <= 0.0 || *is > 0.0)
                    && (*was < 2.0 || *is >= 2.0)
                    && (was.fract() != 0.0 || (is - is.round()).abs() < 1e-6)
            })
    }
}

/// The value of `number0` and so on.
fn among(numbers: &[f64]) -> impl Fn(&str) -> Option<f64> + '_ {
    |name| numbers.get(place(name)?).copied()
}

/// The value of every operation, operands first.
fn steps(expression: &Expression, numbers: &[f64]) -> Vec<f64> {
    let Expression::Operation(left, _, right) = expression else { return Vec::new() };
    let mut values = [steps(left, numbers), steps(right, numbers)].concat();
    values.extend(expression.evaluate(&among(numbers)).map(equations::snapped));
    values
}

/// A number of the same kind.
fn redraw(number: f64, range: &RangeInclusive<u32>, rng: &mut impl Rng) -> f64 {
    let text = number.to_string();
    let decimals = text.split_once('.').map_or(0, |(_, fraction)| fraction.len()).min(DECIMALS);
    let parts = 10u32.pow(decimals as u32);
    let whole = if number < 1.0 { 0 } else { whole_number(range, rng) };
    let fraction = if parts > 1 { 1 + rng.next_u32() % (parts - 1) } else { 0 };
    match number {
        0.0 => 0.0,
        _ => (f64::from(whole) * f64::from(parts) + f64::from(fraction)) / f64::from(parts),
    }
}

/// Each number of digits is equally likely: one digit as often as two from 1 to 99.
fn whole_number(range: &RangeInclusive<u32>, rng: &mut impl Rng) -> u32 {
    let (low, high) = (*range.start(), (*range.end()).max(*range.start()));
    let digits = |n: u32| n.max(1).ilog10();
    let chosen = digits(low) + rng.next_u32() % (digits(high) - digits(low) + 1);
    let first = if chosen == 0 { 0 } else { 10u32.pow(chosen) };
    let last = 10u32.checked_pow(chosen + 1).map_or(u32::MAX, |next| next - 1);
    let (low, high) = (low.max(first), high.min(last));
    low + rng.next_u32() % (high - low).saturating_add(1)
}

/// Changes one number so that the expression's value is a multiple of the divisor; none if no number can be changed.
fn make_multiple(
    expression: &Expression,
    divisor: f64,
    numbers: &mut [f64],
    range: &RangeInclusive<u32>,
    rng: &mut impl Rng,
) -> Option<()> {
    match expression {
        Expression::Number(number) => (number % divisor == 0.0).then_some(()),
        Expression::Name(name) => {
            let (low, high) = (f64::from(*range.start()), f64::from(*range.end()));
            let (fewest, most) = ((low / divisor).ceil().max(1.0), (high / divisor).floor());
            let span = (most - fewest + 1.0) as u32;
            let times = fewest + f64::from(rng.next_u32().checked_rem(span)?);
            *numbers.get_mut(place(name)?)? = times * divisor;
            Some(())
        }
        Expression::Operation(left, Operator::Multiply, right) => {
            make_multiple(left, divisor, numbers, range, rng)
                .or_else(|| make_multiple(right, divisor, numbers, range, rng))
        }
        Expression::Operation(_, Operator::Divide, _) => None,
        Expression::Operation(left, Operator::Add | Operator::Subtract, _) => {
            let rest = expression.evaluate(&among(numbers))? % divisor;
            let mut leaf = left;
            while let Expression::Operation(inner, Operator::Add | Operator::Subtract, _) = &**leaf {
                leaf = inner;
            }
            let Expression::Name(name) = &**leaf else { return None };
            let number = numbers.get_mut(place(name)?)?;
            let smaller = *number - rest;
            *number = if smaller >= f64::from(*range.start()) { smaller } else { smaller + divisor };
            (*number <= f64::from(*range.end())).then_some(())
        }
    }
}

/// A question with numbers for `number0` and so on; longer numbers of slots first.
fn fill(question: &str, numbers: &[f64]) -> String {
    let mut filled = question.to_owned();
    for (place, number) in numbers.iter().enumerate().rev() {
        filled = filled.replace(&slot(place), &number.to_string());
    }
    filled
}

/// Without the blanks that the data set has before signs and endings: "shelves , how" becomes "shelves, how".
fn tidy(question: &str) -> String {
    let mut tidy = String::new();
    for token in question.split_whitespace() {
        let joins = token.starts_with(['\'', ')'])
            || matches!(token, "n't" | "," | "." | "?" | "!" | ";" | ":" | "%");
        if !(tidy.is_empty() || joins || tidy.ends_with('(')) {
            tidy.push(' ');
        }
        tidy.push_str(token);
    }
    tidy
}

/// A question's words without those in capitals, which are names or begin sentences.
fn words(question: &str) -> String {
    let words = question.split(' ').filter(|word| !word.starts_with(char::is_uppercase));
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
Question,Numbers,Equation,Answer,group_nums
\"Bob has number0 books , in number1 boxes . How many numbers ( a box ) ?\",56.0 8.0,/ number0 number1,7.0,\"[1, 2]\"
Ann has number0 books and number1 in number2 boxes . How many ?,7.0 8 3.0,/ + number0 number1 number2,5.0,[]
Tim 's cup did n't hold number0 of number1 . How much ?,0.25 5.5,* number0 number1,1.375,[]
Eve has number0 books and number1 in number2 boxes . How many ?,7.0 8 3.0,- number0 number2,4.0,[]
Wrong number0 and number1,1.0 2.0,+ number0 number1,4.0,[]
";

    fn templates() -> Renumbered {
        Renumbered::parse(TABLE).unwrap()
    }

    fn numbers(question: &str) -> Vec<f64> {
        let words = question.split([' ', ',']).filter(|w| w.starts_with(|c: char| c.is_ascii_digit()));
        words.map(|word| word.trim_end_matches('.').parse().unwrap()).collect()
    }

    #[test]
    fn the_table_is_read() {
        let templates = templates();
        assert_eq!((templates.len(), templates.dropped()), (4, 1));
        assert_eq!(templates.origins(), ["template-0", "template-1", "template-2", "template-1"]);
        let published = templates.published();
        assert_eq!(published[0].question, "Bob has 56 books, in 8 boxes. How many numbers (a box)?");
        assert_eq!(published[2].question, "Tim's cup didn't hold 0.25 of 5.5. How much?");
        let answers = [7.0, 5.0, 1.375, 4.0].map(Answer::Number);
        assert_eq!(published.iter().map(|p| p.answer.clone()).collect::<Vec<_>>(), answers);
        assert_eq!(templates.only(|origin| origin == "template-1").len(), 2);
        let error = Renumbered::parse("Question,Numbers\na,1 x").unwrap_err().to_string();
        assert_eq!(error, "MAWPS and ASDiv-A, row 2: `x` is no number");
        let error = Renumbered::parse("Question\na").unwrap_err().to_string();
        assert_eq!(error, "MAWPS and ASDiv-A, row 2: there is no column `Numbers`");
    }

    #[test]
    fn templates_like_the_tested_problems_are_left_out() {
        let question =
            |text: &str| Problem { question: text.to_owned(), ..templates().published()[0].clone() };
        // the words of the first template; half of those in it or in the second are in both
        let tested = [question("BOB has 1 books, in 2.5 boxes. How many numbers (a box)?")];
        let left = |similarity| templates().unlike(&tested, similarity).origins().len();
        assert_eq!((left(1.0), left(1.01), left(0.5)), (3, 4, 1));
        assert_eq!(templates().unlike(&[], 0.5).len(), 4);
        let others = templates().unlike(&templates().published()[1..2], 0.75);
        assert_eq!(others.origins(), ["template-0", "template-2"]);
    }

    #[test]
    fn new_numbers_are_of_the_same_kind() {
        let templates = templates();
        for range in [2..=20, 10..=99, 100..=999_999] {
            let problems = templates.draw(range.clone(), 200, Seed(1), "train");
            assert_eq!(problems.len(), 200);
            for problem in &problems {
                let Answer::Number(answer) = problem.answer else { panic!("{problem:?}") };
                let n = numbers(&problem.question);
                let fractions = problem.origin == "template-2";
                assert!(fractions || n.iter().all(|n| range.contains(&(*n as u32))), "{problem:?}");
                let expected = match n.as_slice() {
                    [n0, n1] if fractions => {
                        assert!(*n0 < 1.0 && range.contains(&(n1.trunc() as u32)) && n1.fract() > 0.0);
                        n0 * n1
                    }
                    [n0, n1] => n0 / n1,
                    [n0, _, n2] if problem.program.contains('-') => n0 - n2,
                    [n0, n1, n2] => (n0 + n1) / n2,
                    _ => panic!("{problem:?}"),
                };
                assert!((answer - expected).abs() < 1e-9, "{problem:?}");
                assert!(answer > 0.0 && (fractions || answer.fract() == 0.0 && answer >= 2.0), "{problem:?}");
            }
            let long = problems.iter().filter(|p| numbers(&p.question).iter().any(|n| *n >= 1e5)).count();
            assert_eq!(long > 20, *range.end() > 99_999, "every number of digits has its share");
        }
    }

    #[test]
    fn problems_are_a_function_of_seed_and_number() {
        let draw = |seed, count, purpose| templates().draw(2..=99, count, Seed(seed), purpose);
        assert_eq!(draw(1, 40, "train")[..20], draw(1, 20, "train"));
        assert_ne!(draw(1, 20, "train"), draw(2, 20, "train"));
        assert_ne!(draw(1, 20, "train"), draw(1, 20, "test"));
        // no quotient of two numbers in this range is at least 2, so the others take that template's turn
        let few = templates().draw(50..=60, 8, Seed(1), "train");
        assert_eq!(few.len(), 8);
        assert!(few.iter().all(|problem| problem.origin != "template-0"), "{few:?}");
        assert!(templates().only(|origin| origin == "template-0").draw(50..=60, 8, Seed(1), "").is_empty());
    }

    #[test]
    fn a_share_is_held_out() {
        let held = |seed| (0..1000).filter(|i| held_out(&format!("template-{i}"), 0.2, Seed(seed))).count();
        assert!((150..250).contains(&held(1)), "{}", held(1));
        assert!(!held_out("template-1", 0.0, Seed(1)) && held_out("template-1", 1.0, Seed(1)));
        let chosen = |seed| (0..64).map(|i| held_out(&i.to_string(), 0.5, Seed(seed))).collect::<Vec<_>>();
        assert_ne!(chosen(1), chosen(2));
    }
}
