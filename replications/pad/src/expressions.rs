//! Arithmetic on numbers and names: what the equations of word problems and the lines of programs are made of.

use std::fmt;

use thiserror::Error;

/// One of the four operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// `+`
    Add,
    /// `-`
    Subtract,
    /// `*`
    Multiply,
    /// `/`
    Divide,
}

/// A tree of operations.
#[derive(Clone, Debug, PartialEq)]
pub enum Expression {
    /// A number that is not negative.
    Number(f64),
    /// A name.
    Name(String),
    /// Left operand, operation, right operand.
    Operation(Box<Expression>, Operator, Box<Expression>),
}

/// A text that is no expression.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "`{text}`: {problem}; numbers, names, + - * / and brackets are expected, in prefix form without brackets"
)]
pub struct ExpressionError {
    text: String,
    problem: String,
}

impl Operator {
    /// All four.
    pub const ALL: [Operator; 4] = [Operator::Add, Operator::Subtract, Operator::Multiply, Operator::Divide];

    /// As Python writes it.
    pub fn sign(self) -> char {
        match self {
            Operator::Add => '+',
            Operator::Subtract => '-',
            Operator::Multiply => '*',
            Operator::Divide => '/',
        }
    }

    fn of(sign: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|operator| sign.chars().eq([operator.sign()]))
    }

    /// Whether its operands may change places.
    pub fn commutes(self) -> bool {
        matches!(self, Operator::Add | Operator::Multiply)
    }

    /// Its result; a division by 0 is no finite number.
    pub fn apply(self, left: f64, right: f64) -> f64 {
        match self {
            Operator::Add => left + right,
            Operator::Subtract => left - right,
            Operator::Multiply => left * right,
            Operator::Divide => left / right,
        }
    }

    fn precedence(self) -> u8 {
        match self {
            Operator::Add | Operator::Subtract => 1,
            Operator::Multiply | Operator::Divide => 2,
        }
    }
}

impl Expression {
    /// Reads the operator before its operands, separated by blanks: `- number0 * number1 number2`.
    ///
    /// # Errors
    /// The text is no such expression.
    pub fn prefix(text: &str) -> Result<Self, ExpressionError> {
        let error = |problem: &str| ExpressionError { text: text.to_owned(), problem: problem.to_owned() };
        let mut stack: Vec<Self> = Vec::new();
        for token in text.split_whitespace().rev() {
            let node = match Operator::of(token) {
                None => Self::leaf(token).ok_or_else(|| error(&format!("`{token}` is neither")))?,
                Some(operator) => match (stack.pop(), stack.pop()) {
                    (Some(left), Some(right)) => left.then(operator, right),
                    _ => return Err(error(&format!("`{token}` lacks an operand"))),
                },
            };
            stack.push(node);
        }
        let root = stack.pop().ok_or_else(|| error("it is empty"))?;
        if stack.is_empty() { Ok(root) } else { Err(error("something follows its end")) }
    }

    /// Reads operators between operands as Python does: `(2 + 3) * x`. There is no sign before a number.
    ///
    /// # Errors
    /// The text is no such expression.
    pub fn infix(text: &str) -> Result<Self, ExpressionError> {
        let error = |problem: String| ExpressionError { text: text.to_owned(), problem };
        let mut reader = Reader { tokens: tokens(text), at: 0 };
        let root = reader.sum(0).map_err(error)?;
        match reader.peek() {
            None => Ok(root),
            Some(token) => Err(error(format!("`{token}` is not expected where it stands"))),
        }
    }

    fn leaf(token: &str) -> Option<Self> {
        if token.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
            let plain = token.bytes().all(|b| b.is_ascii_digit() || b == b'.');
            return token.parse().ok().filter(|_| plain).map(Self::Number);
        }
        let named = token.starts_with(|c: char| c.is_alphabetic() || c == '_')
            && token.chars().all(|c| c.is_alphanumeric() || c == '_');
        named.then(|| Self::Name(token.to_owned()))
    }

    /// This, an operator, and another.
    #[must_use]
    pub fn then(self, operator: Operator, right: Self) -> Self {
        Self::Operation(Box::new(self), operator, Box::new(right))
    }

    /// Its value; none if a name has none.
    pub fn evaluate(&self, value: &impl Fn(&str) -> Option<f64>) -> Option<f64> {
        match self {
            Self::Number(number) => Some(*number),
            Self::Name(name) => value(name),
            Self::Operation(left, operator, right) => {
                Some(operator.apply(left.evaluate(value)?, right.evaluate(value)?))
            }
        }
    }

    /// Every leaf that is a name, from left to right.
    pub fn names(&self) -> Vec<&str> {
        match self {
            Self::Number(_) => Vec::new(),
            Self::Name(name) => vec![name],
            Self::Operation(left, _, right) => [left.names(), right.names()].concat(),
        }
    }

    /// With every leaf replaced, from left to right.
    #[must_use]
    pub fn map_leaves(&self, leaf: &mut impl FnMut(&Self) -> Self) -> Self {
        match self {
            Self::Operation(left, operator, right) => {
                let left = left.map_leaves(leaf);
                left.then(*operator, right.map_leaves(leaf))
            }
            other => leaf(other),
        }
    }

    fn precedence(&self) -> u8 {
        match self {
            Self::Operation(_, operator, _) => operator.precedence(),
            _ => 3,
        }
    }
}

/// As Python reads it, with the brackets that it needs.
impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bracketed = |inner: &Self, needed: bool, f: &mut fmt::Formatter<'_>| match needed {
            true => write!(f, "({inner})"),
            false => write!(f, "{inner}"),
        };
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Name(name) => f.write_str(name),
            Self::Operation(left, operator, right) => {
                bracketed(left, left.precedence() < operator.precedence(), f)?;
                write!(f, " {} ", operator.sign())?;
                bracketed(right, right.precedence() <= operator.precedence(), f)
            }
        }
    }
}

/// Words, numbers and single signs.
pub(crate) fn tokens(text: &str) -> Vec<&str> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let word = |c: char| c.is_alphanumeric() || matches!(c, '_' | '.');
        let length = match word(first) {
            true => rest.find(|c| !word(c)).unwrap_or(rest.len()),
            false => first.len_utf8(),
        };
        tokens.push(&rest[..length]);
        rest = rest[length..].trim_start();
    }
    tokens
}

/// Deepest brackets that are read, for the stack's sake.
const DEEPEST: usize = 100;

struct Reader<'a> {
    tokens: Vec<&'a str>,
    at: usize,
}

impl<'a> Reader<'a> {
    fn peek(&self) -> Option<&'a str> {
        self.tokens.get(self.at).copied()
    }

    fn sum(&mut self, depth: usize) -> Result<Expression, String> {
        let mut left = self.product(depth)?;
        while let Some(operator) = self.operator(1) {
            left = left.then(operator, self.product(depth)?);
        }
        Ok(left)
    }

    fn product(&mut self, depth: usize) -> Result<Expression, String> {
        let mut left = self.operand(depth)?;
        while let Some(operator) = self.operator(2) {
            left = left.then(operator, self.operand(depth)?);
        }
        Ok(left)
    }

    fn operator(&mut self, precedence: u8) -> Option<Operator> {
        let operator = self.peek().and_then(Operator::of).filter(|o| o.precedence() == precedence);
        self.at += usize::from(operator.is_some());
        operator
    }

    fn operand(&mut self, depth: usize) -> Result<Expression, String> {
        let token = self.peek().ok_or("it ends too early")?;
        self.at += 1;
        if token != "(" {
            return Expression::leaf(token)
                .ok_or_else(|| format!("`{token}` is not expected where it stands"));
        }
        if depth == DEEPEST {
            return Err(format!("more than {DEEPEST} brackets are open"));
        }
        let inner = self.sum(depth + 1)?;
        let closed = self.peek() == Some(")");
        self.at += usize::from(closed);
        if closed { Ok(inner) } else { Err("a bracket is not closed".to_owned()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng;
    use replica_core::Seed;

    fn none(_: &str) -> Option<f64> {
        None
    }

    #[test]
    fn both_forms_are_read() {
        let prefix = Expression::prefix("- number0 * number1 2.5").unwrap();
        assert_eq!(prefix.to_string(), "number0 - number1 * 2.5");
        assert_eq!(prefix.names(), ["number0", "number1"]);
        assert_eq!(prefix.evaluate(&|name| Some(if name == "number0" { 9.0 } else { 2.0 })), Some(4.0));
        assert_eq!(prefix.evaluate(&none), None);
        let infix = Expression::infix("((8.0-2)*3)/(4.0 + 2)-1").unwrap();
        assert_eq!(infix.to_string(), "(8 - 2) * 3 / (4 + 2) - 1");
        assert_eq!(infix.evaluate(&none), Some(2.0));
    }

    #[test]
    fn what_is_no_expression_is_refused() {
        for (text, problem) in [
            ("", "ends too early"),
            ("2 +", "ends too early"),
            ("(2 + 3", "not closed"),
            ("2 3", "`3` is not expected"),
            ("-2", "`-` is not expected"),
            ("2 ** 3", "`*` is not expected"),
            ("1e5", "`1e5` is not expected"),
            ("f(2)", "`(` is not expected"),
        ] {
            let error = Expression::infix(text).unwrap_err().to_string();
            assert!(error.starts_with(&format!("`{text}`: ")) && error.contains(problem), "{error}");
        }
        let deep = format!("{}1{}", "(".repeat(200), ")".repeat(200));
        assert!(Expression::infix(&deep).unwrap_err().to_string().contains("brackets are open"));
        for text in ["", "+ 1", "1 2", "+ 1 2 3", "? 1"] {
            assert!(Expression::prefix(text).is_err(), "{text}");
        }
    }

    fn random(depth: u32, rng: &mut impl Rng) -> Expression {
        if depth == 0 || rng.next_u32().is_multiple_of(4) {
            return Expression::Number(f64::from(rng.next_u32() % 10_000) / 100.0);
        }
        let operator = Operator::ALL[rng.next_u32() as usize % 4];
        random(depth - 1, rng).then(operator, random(depth - 1, rng))
    }

    /// Brackets are neither missing nor in the way.
    #[test]
    fn printing_and_reading_are_inverse() {
        let mut rng = Seed(1).stream("expressions");
        for _ in 0..2000 {
            let expression = random(5, &mut rng);
            let text = expression.to_string();
            assert_eq!(Expression::infix(&text).unwrap(), expression, "{text}");
            assert_eq!(Expression::infix(&text.replace(' ', "")).unwrap(), expression, "{text}");
        }
    }
}
