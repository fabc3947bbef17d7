//! Word problems made from templates (`problems.toml`): the data that is on every machine. A problem has a question, a
//! program in the form of the authors' data, a chain of thought in GSM8K's form, and an answer that is exact.

use std::collections::BTreeMap;

use rand::Rng;
use replica_core::Seed;
use serde::Deserialize;
use thiserror::Error;

use crate::judge::Answer;

const NAMES: [&str; 16] = [
    "Ada", "Ben", "Clara", "David", "Ella", "Farid", "Grace", "Henry", "Iris", "Jonas", "Kira", "Liam",
    "Mona", "Noah", "Olga", "Paul",
];

const THINGS: [&str; 16] = [
    "apples", "marbles", "books", "stamps", "pencils", "shells", "coins", "cards", "beads", "cookies",
    "flowers", "stickers", "balls", "candles", "lemons", "buttons",
];

/// Draws of one problem before its template counts as impossible.
const DRAWS: usize = 10_000;

/// A problem with the targets a student may be trained on.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// What it was made from, a template for example. Problems of one origin are never both trained on and held out.
    pub origin: String,
    /// The question.
    pub question: String,
    /// `def solution():` as the authors' data has it after post-processing: a line of blanks, assignments, the result.
    pub program: String,
    /// Sentences with their calculations, then "#### " and the answer.
    pub chain: String,
    /// The gold answer.
    pub answer: Answer,
}

/// Templates of problems.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Templates {
    template: Vec<Template>,
}

/// A template.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Template {
    id: String,
    question: String,
    numbers: BTreeMap<String, [u32; 2]>,
    steps: Vec<Step>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    name: String,
    is: String,
    says: String,
}

/// A file of templates that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{file}: template `{template}`: {problem}")]
pub struct TemplateError {
    file: String,
    template: String,
    problem: String,
}

impl Templates {
    /// Reads a TOML file; `file` is its name in messages. Every template is drawn once to see whether it can be.
    ///
    /// # Errors
    /// The message names the file, the template and what is wrong.
    pub fn parse(text: &str, file: &str) -> Result<Self, TemplateError> {
        let error = |template: &str, problem: String| TemplateError {
            file: file.to_owned(),
            template: template.to_owned(),
            problem,
        };
        let templates: Self = toml::from_str(text).map_err(|e| error("?", e.to_string()))?;
        for template in &templates.template {
            template
                .draw(&mut Seed(0).stream("templates"))
                .map_err(|problem| error(&template.id, problem))?;
        }
        Ok(templates)
    }

    /// The templates of this crate.
    ///
    /// # Panics
    /// The embedded file contradicts itself, which a test excludes.
    pub fn embedded() -> Self {
        Self::parse(include_str!("problems.toml"), "replications/pad/src/problems.toml")
            .expect("the embedded templates are well-formed")
    }

    /// Their names, in the order of the file.
    pub fn names(&self) -> Vec<&str> {
        self.template.iter().map(|template| template.id.as_str()).collect()
    }

    /// Only the templates whose names `select` accepts: what is trained on and what is held out.
    #[must_use]
    pub fn only(&self, select: impl Fn(&str) -> bool) -> Self {
        Self { template: self.template.iter().filter(|t| select(&t.id)).cloned().collect() }
    }

    /// The same templates with numbers `factor` times as large.
    #[must_use]
    pub fn enlarged(mut self, factor: u32) -> Self {
        let numbers = self.template.iter_mut().flat_map(|template| template.numbers.values_mut());
        numbers.flatten().for_each(|bound| *bound = bound.saturating_mul(factor));
        self
    }

    /// `count` problems, the templates in turn. Problem i is a function of the seed, `purpose` and i alone.
    pub fn draw(&self, count: usize, seed: Seed, purpose: &str) -> Vec<Problem> {
        let draw = |i: usize| {
            let template = self.template.get(i % self.template.len().max(1))?;
            template.draw(&mut seed.named_stream(purpose, &i.to_string())).ok()
        };
        (0..count).filter_map(draw).collect()
    }
}

impl Template {
    fn draw(&self, rng: &mut impl Rng) -> Result<Problem, String> {
        let words = self.words(rng);
        for _ in 0..DRAWS {
            let mut values: BTreeMap<&str, f64> = BTreeMap::new();
            for (name, [low, high]) in &self.numbers {
                if low > high {
                    return Err(format!("numbers.{name}: {low} is above {high}"));
                }
                values.insert(name, f64::from(low + rng.next_u32() % (high - low + 1)));
            }
            if self.follow(&mut values)? {
                return self.write(&words, &values);
            }
        }
        Err(format!("in {DRAWS} draws no step was a positive whole number every time"))
    }

    /// Two different names and two different things.
    fn words(&self, rng: &mut impl Rng) -> BTreeMap<&'static str, &'static str> {
        let mut two = |of: &[&'static str; 16]| {
            let first = rng.next_u32() as usize % of.len();
            let second = (first + 1 + rng.next_u32() as usize % (of.len() - 1)) % of.len();
            (of[first], of[second])
        };
        let ((name, other), (things, goods)) = (two(&NAMES), two(&THINGS));
        BTreeMap::from([("name", name), ("other", other), ("things", things), ("goods", goods)])
    }

    /// Adds the steps' values; false if one is no positive whole number.
    fn follow<'a>(&'a self, values: &mut BTreeMap<&'a str, f64>) -> Result<bool, String> {
        for step in &self.steps {
            let value = evaluate(&step.is, values).map_err(|e| format!("step `{}`: {e}", step.name))?;
            if !(value > 0.0 && value.fract() == 0.0) {
                return Ok(false);
            }
            values.insert(&step.name, value);
        }
        Ok(true)
    }

    fn write(&self, words: &BTreeMap<&str, &str>, values: &BTreeMap<&str, f64>) -> Result<Problem, String> {
        let Some(last) = self.steps.last() else { return Err("steps: at least one is expected".to_owned()) };
        let fill = |text: &str, calculation: &str| {
            let mut filled = text.replace("{=}", calculation);
            words.iter().for_each(|(slot, word)| filled = filled.replace(&format!("{{{slot}}}"), word));
            values
                .iter()
                .for_each(|(slot, v)| filled = filled.replace(&format!("{{{slot}}}"), &v.to_string()));
            match filled.contains('{') {
                true => Err(format!("no value for a slot in `{filled}`")),
                false => Ok(filled),
            }
        };
        let mut program = "def solution():\n    \n".to_owned();
        // numbers in the order in which the question names them
        let mut numbers: Vec<&String> = self.numbers.keys().collect();
        numbers.sort_by_key(|name| self.question.find(&format!("{{{name}}}")));
        for name in numbers {
            program.push_str(&format!("    {name} = {}\n", values[name.as_str()]));
        }
        let mut chain = String::new();
        for step in &self.steps {
            program.push_str(&format!("    {} = {}\n", step.name, step.is));
            let value = values[step.name.as_str()];
            let calculation = format!("{} = {value}", with_values(&step.is, values));
            chain.push_str(&fill(&step.says, &calculation)?);
            chain.push('\n');
        }
        program.push_str(&format!("    result = {}\n    return result", last.name));
        let answer = values[last.name.as_str()];
        chain.push_str(&format!("#### {answer}"));
        let (question, answer) = (fill(&self.question, "")?, Answer::Number(answer));
        Ok(Problem { origin: self.id.clone(), question, program, chain, answer })
    }
}

/// An expression's words and signs.
fn tokens(expression: &str) -> impl Iterator<Item = &str> {
    expression.split(' ').filter(|token| !token.is_empty())
}

fn with_values(expression: &str, values: &BTreeMap<&str, f64>) -> String {
    let value = |token: &str| values.get(token).map_or_else(|| token.to_owned(), f64::to_string);
    tokens(expression).map(value).collect::<Vec<_>>().join(" ")
}

/// Numbers and names with + - * / between them, separated by blanks; * and / first.
fn evaluate(expression: &str, values: &BTreeMap<&str, f64>) -> Result<f64, String> {
    let number = |token: Option<&str>| {
        let token = token.ok_or_else(|| format!("`{expression}` ends in a sign"))?;
        let known = values.get(token).copied().or_else(|| token.parse().ok());
        known.ok_or_else(|| format!("`{token}` in `{expression}` is neither a number nor an earlier name"))
    };
    let mut tokens = tokens(expression);
    let (mut sum, mut product) = (0.0, number(tokens.next())?);
    while let Some(sign) = tokens.next() {
        let right = number(tokens.next())?;
        match sign {
            "*" => product *= right,
            "/" => product /= right,
            "+" | "-" => {
                sum += product;
                product = if sign == "+" { right } else { -right };
            }
            other => return Err(format!("`{other}` in `{expression}`: one of + - * / is expected")),
        }
    }
    Ok(sum + product)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_follow_their_template() {
        let text = r#"
[[template]]
id = "one"
question = "{name} has {b} {things} and {a} more."
numbers = { a = [3, 3], b = [4, 4] }
steps = [
    { name = "twice", is = "a + b * 2", says = "That is {=}." },
    { name = "rest", is = "twice - a / 3", says = "Then {=} {things}." },
]"#;
        let templates = Templates::parse(text, "t.toml").unwrap();
        let problem = templates.draw(1, Seed(1), "train").remove(0);
        assert!(problem.question.ends_with("and 3 more.") && !problem.question.contains('{'));
        let body =
            "    b = 4\n    a = 3\n    twice = a + b * 2\n    rest = twice - a / 3\n    result = rest\n";
        assert_eq!(problem.program, format!("def solution():\n    \n{body}    return result"));
        assert!(
            problem.chain.starts_with("That is 3 + 4 * 2 = 11.\nThen 11 - 3 / 3 = 10 "),
            "{}",
            problem.chain
        );
        assert!(problem.chain.ends_with("\n#### 10"));
        assert_eq!(problem.answer, Answer::Number(10.0));
    }

    #[test]
    fn problems_are_a_function_of_seed_and_number() {
        let templates = Templates::embedded();
        let draw = |seed, count| templates.draw(count, Seed(seed), "train");
        assert_eq!(draw(1, 40)[..20], draw(1, 20));
        assert_ne!(draw(1, 20), draw(2, 20));
        assert_ne!(draw(1, 20), templates.draw(20, Seed(1), "test"));
        let few = templates.only(|name| name == "age" || name == "share");
        assert_eq!(few.names(), ["share", "age"]);
        assert!(few.draw(9, Seed(1), "train").iter().all(|p| p.origin == "age" || p.origin == "share"));
    }

    #[test]
    fn errors_name_file_and_template() {
        let error = |numbers: &str, step: &str| {
            let text = format!(
                "[[template]]\nid = \"x\"\nquestion = \"{{a}}\"\nnumbers = {numbers}\nsteps = [{step}]"
            );
            Templates::parse(&text, "t.toml").unwrap_err().to_string()
        };
        let step = |is: &str| format!("{{ name = \"s\", is = \"{is}\", says = \"{{=}}\" }}");
        let numbers = "{ a = [1, 5] }";
        assert!(
            error(numbers, &step("a ^ 2"))
                .starts_with("t.toml: template `x`: step `s`: `^` in `a ^ 2`: one of")
        );
        assert!(error(numbers, &step("b + 1")).contains("`b` in `b + 1` is neither"));
        assert!(error(numbers, &step("a +")).contains("ends in a sign"));
        assert!(error(numbers, &step("a - 9")).contains("no step was a positive whole number"));
        assert!(error("{ a = [5, 1] }", &step("a")).contains("numbers.a: 5 is above 1"));
        assert!(error(numbers, "").contains("steps: at least one"));
        assert!(error("{}", &step("1")).contains("no value for a slot"));
    }
}
