//! Several programs for one question (paper, data augmentation; paper card, claim 4). The authors ask their teacher again
//! with other examples; these are one program's other surfaces: order of steps, steps inside others, names, comments,
//! order of operands (our choice).

use std::collections::{BTreeMap, BTreeSet};

use rand::Rng;
use replica_core::Seed;

use crate::expressions::Expression;
use crate::problems::Problem;

/// Draws for each variant before there are no more.
const DRAWS: usize = 40;

/// Up to `count` problems for each, with the same question and different programs of which the first is its own; they are
/// candidates for the filter. The variants of problem i are a function of the seed, `purpose` and i, and fewer are a
/// beginning of more.
pub fn augment(problems: Vec<Problem>, count: usize, seed: Seed, purpose: &str) -> Vec<Problem> {
    let different = |(i, problem): (usize, Problem)| {
        let programs = variants(&problem.program, count, &mut seed.named_stream(purpose, &i.to_string()));
        programs.into_iter().map(move |program| Problem { program, ..problem.clone() })
    };
    problems.into_iter().enumerate().flat_map(different).collect()
}

/// Up to `count` different texts of one program, itself first. A program with anything but assignments of arithmetic has
/// no other.
pub fn variants(program: &str, count: usize, rng: &mut impl Rng) -> Vec<String> {
    let mut found: Vec<String> = vec![program.to_owned(); count.min(1)];
    let Some(steps) = Steps::parse(program) else { return found };
    let mut draws = 0;
    while found.len() < count && draws < DRAWS {
        let variant = steps.vary(rng);
        if found.contains(&variant) {
            draws += 1;
        } else {
            found.push(variant);
            draws = 0;
        }
    }
    found
}

/// A program whose lines each give a name to arithmetic.
#[derive(Clone)]
struct Steps {
    lines: Vec<(String, Expression)>,
    result: Expression,
}

fn coin(rng: &mut impl Rng) -> bool {
    rng.next_u32().is_multiple_of(2)
}

impl Steps {
    fn parse(program: &str) -> Option<Self> {
        let body = program.strip_prefix("def solution():\n")?;
        let code = body.lines().map(str::trim).filter(|line| !(line.is_empty() || line.starts_with('#')));
        let mut lines: Vec<(String, Expression)> = Vec::new();
        let mut result = None;
        for line in code {
            // nothing may follow, and a name that changes its value has no place that is free
            if result.is_some() {
                return None;
            }
            if let Some(returned) = line.strip_prefix("return ") {
                result = Some(Expression::infix(returned).ok()?);
                continue;
            }
            let (name, expression) = line.split_once(" = ")?;
            let Ok(Expression::Name(name)) = Expression::infix(name) else { return None };
            if lines.iter().any(|(known, _)| *known == name) {
                return None;
            }
            lines.push((name, Expression::infix(expression).ok()?));
        }
        let mut result = result?;
        if let Some((name, expression)) = lines.last()
            && result == Expression::Name(name.clone())
        {
            result = expression.clone();
            lines.pop();
        }
        Some(Self { lines, result })
    }

    /// One of the surfaces; each change is made or not with equal chances.
    fn vary(&self, rng: &mut impl Rng) -> String {
        let mut steps = self.clone();
        if coin(rng) {
            steps.lines.iter_mut().for_each(|(_, expression)| *expression = swapped(expression, rng));
            steps.result = swapped(&steps.result, rng);
        }
        if coin(rng) {
            steps.inline(rng);
        }
        if coin(rng) {
            steps.reorder(rng);
        }
        let naming = rng.next_u32() as usize % (NAMINGS.len() + 1);
        if let Some(name) = NAMINGS.get(naming) {
            steps.rename(*name);
        }
        steps.write(rng.next_u32() % 4)
    }

    /// Some of the names that are read once are replaced by what they stand for.
    fn inline(&mut self, rng: &mut impl Rng) {
        let mut at = 0;
        while at < self.lines.len() {
            let name = self.lines[at].0.clone();
            let later = || self.lines[at + 1..].iter().map(|(_, e)| e).chain([&self.result]);
            let reads = later().flat_map(Expression::names).filter(|read| *read == name).count();
            if reads == 1 && coin(rng) {
                let (_, value) = self.lines.remove(at);
                self.map_leaves(|leaf| match leaf {
                    Expression::Name(read) if *read == name => value.clone(),
                    other => other.clone(),
                });
            } else {
                at += 1;
            }
        }
    }

    fn map_leaves(&mut self, mut leaf: impl FnMut(&Expression) -> Expression) {
        for expression in self.lines.iter_mut().map(|(_, expression)| expression).chain([&mut self.result]) {
            *expression = expression.map_leaves(&mut leaf);
        }
    }

    /// Any order in which everything is known before it is read.
    fn reorder(&mut self, rng: &mut impl Rng) {
        let mut left = std::mem::take(&mut self.lines);
        while !left.is_empty() {
            let waiting: BTreeSet<&str> = left.iter().map(|(name, _)| name.as_str()).collect();
            let ready = |(_, e): &(String, Expression)| e.names().iter().all(|read| !waiting.contains(read));
            let ready: Vec<usize> = (0..left.len()).filter(|i| ready(&left[*i])).collect();
            // a name that waits for itself cannot run in any order
            let next = rng.next_u32().checked_rem(ready.len() as u32).map_or(0, |i| ready[i as usize]);
            self.lines.push(left.remove(next));
        }
    }

    fn rename(&mut self, name: fn(usize) -> String) {
        let new = self.lines.iter().enumerate().map(|(i, (old, _))| (old.clone(), name(i)));
        let new: BTreeMap<String, String> = new.collect();
        self.lines.iter_mut().for_each(|(old, _)| *old = new[old].clone());
        self.map_leaves(|leaf| match leaf {
            Expression::Name(old) => Expression::Name(new.get(old).unwrap_or(old).clone()),
            other => other.clone(),
        });
    }

    /// As text: 0 and 1 without comments, 2 with one before the numbers and one before the calculation, 3 with one before
    /// each step.
    fn write(&self, comments: u32) -> String {
        let mut text = "def solution():\n    \n".to_owned();
        let mut last = "";
        let result = ("result".to_owned(), self.result.clone());
        for (i, (name, expression)) in self.lines.iter().chain([&result]).enumerate() {
            let kind = match expression {
                Expression::Operation(..) => "# calculate",
                Expression::Number(_) => "# numbers",
                Expression::Name(_) => "# answer",
            };
            match comments {
                2 if kind != last => text.push_str(&format!("    {kind}\n")),
                3 => text.push_str(&format!("    # step {}\n", i + 1)),
                _ => {}
            }
            last = kind;
            text.push_str(&format!("    {name} = {expression}\n"));
        }
        text + "    return result"
    }
}

/// Names by their place.
const NAMINGS: [fn(usize) -> String; 4] = [
    |i| match u8::try_from(i) {
        Ok(letter @ 0..26) => char::from(b'a' + letter).to_string(),
        _ => format!("z{i}"),
    },
    |i| format!("x{}", i + 1),
    |i| format!("value_{}", i + 1),
    |i| format!("n_{}", i + 1),
];

/// Some operands of + and * change places.
fn swapped(expression: &Expression, rng: &mut impl Rng) -> Expression {
    let Expression::Operation(left, operator, right) = expression else { return expression.clone() };
    let (left, right) = (swapped(left, rng), swapped(right, rng));
    if operator.commutes() && coin(rng) { right.then(*operator, left) } else { left.then(*operator, right) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROGRAM: &str = "def solution():\n    \n    have = 3\n    more = 4\n    # all\n    total = have + more\n    \
                           left = total - 1\n    result = left * 2\n    return result";

    /// The value of a program of assignments, which fails if a name is read before it is assigned.
    fn value(program: &str) -> f64 {
        let steps = Steps::parse(program).unwrap();
        let mut values: BTreeMap<String, f64> = BTreeMap::new();
        for (name, expression) in &steps.lines {
            let value = expression.evaluate(&|name| values.get(name).copied()).unwrap();
            values.insert(name.clone(), value);
        }
        steps.result.evaluate(&|name| values.get(name).copied()).unwrap()
    }

    #[test]
    fn variants_are_different_and_the_same() {
        let found = variants(PROGRAM, 200, &mut Seed(1).stream("variants"));
        assert_eq!((found.len(), found[0].as_str()), (200, PROGRAM));
        assert_eq!(found.iter().collect::<BTreeSet<_>>().len(), 200);
        assert!(found.iter().all(|program| value(program) == 12.0));
        for part in [
            "    have = 3\n    total = have + 4\n",
            "    more = 4\n    have = 3\n",
            "total = more + have",
            "    result = 2 * left\n",
            "result = (3 + 4 - 1) * 2",
            "    # step 3\n",
            "    # numbers\n    have = 3\n    more = 4\n    # calculate\n",
            "a = 3\n    b = 4\n    c = a + b\n",
        ] {
            assert!(found.iter().any(|program| program.contains(part)), "{part}");
        }
    }

    #[test]
    fn fewer_are_a_beginning_of_more() {
        let found = |count| variants(PROGRAM, count, &mut Seed(3).stream("variants"));
        for count in [0, 1, 2, 4, 8] {
            assert_eq!(found(count), found(8)[..count]);
        }
        assert_ne!(found(8), variants(PROGRAM, 8, &mut Seed(4).stream("variants")));
    }

    #[test]
    fn other_programs_have_no_other_surface() {
        for body in [
            "for i in range(3):\n        x = i\n    return x",
            "x = 1\n    x = x + 1\n    return x",
            "x = max(1, 2)\n    return x",
            "return 1\n    x = 2",
            "x = 1",
            "x, y = 1\n    return x",
        ] {
            let program = format!("def solution():\n    {body}");
            assert_eq!(variants(&program, 8, &mut Seed(1).stream("")), [program]);
        }
    }

    #[test]
    fn values_stay() {
        let mut rng = Seed(1).stream("programs");
        for _ in 0..200 {
            let mut below = |n: usize| rng.next_u32() as usize % n;
            let mut names: Vec<String> = Vec::new();
            let mut program = "def solution():\n    \n".to_owned();
            for i in 0..1 + below(3) {
                program.push_str(&format!("    n{i} = {}\n", 1 + below(50)));
                names.push(format!("n{i}"));
            }
            for i in 0..1 + below(5) {
                let (left, right) = (&names[below(names.len())], &names[below(names.len())]);
                let sign = ['+', '-', '*', '/'][below(4)];
                program.push_str(&format!("    s{i} = {left} {sign} {right}\n"));
                names.push(format!("s{i}"));
            }
            program.push_str(&format!("    result = {}\n    return result", names[names.len() - 1]));
            let expected = value(&program);
            for variant in variants(&program, 8, &mut rng) {
                // the operands of one + or * change places, which does not change its float
                let found = value(&variant);
                assert!(found == expected || found.is_nan() && expected.is_nan(), "{variant}");
            }
        }
    }
}
