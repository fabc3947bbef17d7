//! Programs with a mistake, for what the execution filter is worth (paper card, claim 3): a wrong operator, a wrong operand
//! or a name that does not exist. Questions and gold answers stay.

use std::ops::Range;

use rand::Rng;
use replica_core::Seed;

use crate::expressions::{Operator, tokens};
use crate::problems::Problem;

/// A mistake in a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// Another one of + - * /.
    Operator,
    /// Another number, or another name that is known there.
    Operand,
    /// A name that does not exist: the program crashes.
    UndefinedName,
}

impl Mistake {
    /// All three.
    pub const ALL: [Mistake; 3] = [Mistake::Operator, Mistake::Operand, Mistake::UndefinedName];
}

/// The problems, a share of them with a mistake in the program, each kind equally likely. What happens to problem i is a
/// function of the seed, `purpose` and i; those with a mistake at a smaller share have the same one at a larger. A program
/// without place for a mistake stays.
pub fn corrupted(problems: &[Problem], share: f64, seed: Seed, purpose: &str) -> Vec<Problem> {
    let one = |(i, problem): (usize, &Problem)| {
        let mut rng = seed.named_stream(purpose, &i.to_string());
        let uniform = (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        let first = rng.next_u32() as usize;
        let kinds = (0..3).map(|i| Mistake::ALL[(first % 3 + i) % 3]);
        let program = match uniform < share {
            true => kinds.filter_map(|kind| corrupt(&problem.program, kind, &mut rng)).next(),
            false => None,
        };
        Problem { program: program.unwrap_or_else(|| problem.program.clone()), ..problem.clone() }
    };
    problems.iter().enumerate().map(one).collect()
}

/// The program with one mistake of that kind; none if it has no place for it. Text in quotation marks and comments stays.
pub fn corrupt(program: &str, kind: Mistake, rng: &mut impl Rng) -> Option<String> {
    let sites: Vec<Site> = sites(program).into_iter().filter(|site| site.suits(kind)).collect();
    let site = sites.get((rng.next_u32() as usize).checked_rem(sites.len())?)?;
    let old = &program[site.range.clone()];
    let new = match kind {
        Mistake::Operator => {
            let others: Vec<char> = Operator::ALL.map(Operator::sign).into_iter().collect();
            let others: Vec<char> = others.into_iter().filter(|sign| !old.starts_with(*sign)).collect();
            others[rng.next_u32() as usize % others.len()].to_string()
        }
        Mistake::Operand if site.is_number => {
            let more = 1.0 + f64::from(rng.next_u32() % 9);
            (old.parse::<f64>().ok()? + more).to_string()
        }
        Mistake::Operand => site.others[rng.next_u32() as usize % site.others.len()].clone(),
        Mistake::UndefinedName => format!("{old}_value"),
    };
    Some(format!("{}{new}{}", &program[..site.range.start], &program[site.range.end..]))
}

/// A place for a mistake.
struct Site {
    range: Range<usize>,
    is_operator: bool,
    is_number: bool,
    /// Names that could stand there.
    others: Vec<String>,
}

impl Site {
    fn suits(&self, kind: Mistake) -> bool {
        match kind {
            Mistake::Operator => self.is_operator,
            Mistake::Operand => self.is_number || !(self.is_operator || self.others.is_empty()),
            Mistake::UndefinedName => !(self.is_operator || self.is_number),
        }
    }
}

/// Operators, numbers and names to the right of assignments and after `return`.
fn sites(program: &str) -> Vec<Site> {
    let mut sites = Vec::new();
    let mut known: Vec<String> = Vec::new();
    let mut start = 0;
    for line in program.split_inclusive('\n') {
        let code = line.split('#').next().unwrap_or_default();
        let assigned = code.split_once(" = ").map(|(name, expression)| (name.trim(), expression));
        let returned = code.trim_start().strip_prefix("return ");
        let expression = assigned.map(|(_, expression)| expression).or(returned);
        if let Some(expression) = expression.filter(|expression| !expression.contains(['\'', '"'])) {
            let offset = start + (expression.as_ptr() as usize - line.as_ptr() as usize);
            // what is returned may have had another name just before, which would change nothing
            let others = if returned.is_some() { &[] } else { known.as_slice() };
            sites_of(expression, offset, &known, others, &mut sites);
        }
        if let Some((name, _)) = assigned {
            known.push(name.to_owned());
        }
        start += line.len();
    }
    sites
}

fn sites_of(expression: &str, offset: usize, known: &[String], others: &[String], sites: &mut Vec<Site>) {
    let tokens = tokens(expression);
    let at = |token: &str| token.as_ptr() as usize - expression.as_ptr() as usize;
    for (i, token) in tokens.iter().enumerate() {
        let range = offset + at(token)..offset + at(token) + token.len();
        let before = i.checked_sub(1).and_then(|i| tokens.get(i)).copied().unwrap_or_default();
        let after = tokens.get(i + 1).copied().unwrap_or_default();
        let ends_operand =
            before.ends_with(|c: char| c.is_alphanumeric() || matches!(c, '_' | '.' | ')' | ']'));
        // `**` and `//` are two tokens here
        let is_operator = Operator::ALL.iter().any(|operator| token.chars().eq([operator.sign()]))
            && ends_operand
            && after != *token;
        let is_number = token.parse::<f64>().is_ok() && token.starts_with(|c: char| c.is_ascii_digit());
        let is_name = known.iter().any(|name| name == token);
        if is_operator || is_number || is_name {
            let others = others.iter().filter(|name| is_name && name != token).cloned().collect();
            sites.push(Site { range, is_operator, is_number, others });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROGRAM: &str = "def solution():\n    \n    have = 3\n    # 5 more\n    more = have + 4\n    text = 'have 7'\n    \
                           result = -more ** 2\n    return result";

    fn all(kind: Mistake) -> Vec<String> {
        let mut rng = Seed(1).stream("mistakes");
        let mut found: Vec<String> = (0..300).filter_map(|_| corrupt(PROGRAM, kind, &mut rng)).collect();
        found.sort();
        found.dedup();
        found
    }

    fn with(old: &str, new: &str) -> String {
        assert!(PROGRAM.contains(old));
        PROGRAM.replacen(old, new, 1)
    }

    #[test]
    fn a_mistake_is_one_change() {
        let operators = all(Mistake::Operator);
        let expected = ["*", "-", "/"].map(|sign| with("have + 4", &format!("have {sign} 4")));
        assert_eq!(operators, expected);
        let operands = all(Mistake::Operand);
        for program in
            [with("have = 3", "have = 12"), with("+ 4", "+ 5"), with("** 2", "** 3"), with("-more", "-have")]
        {
            assert!(operands.contains(&program), "{program}");
        }
        assert!(operands.iter().all(|program| program.contains("# 5 more\n    more = ")
            && program.ends_with("\n    return result")
            && program.contains("'have 7'")));
        let undefined = [
            ("have + 4", "have_value + 4"),
            ("-more", "-more_value"),
            ("return result", "return result_value"),
        ];
        let mut undefined = undefined.map(|(old, new)| with(old, new));
        undefined.sort();
        assert_eq!(all(Mistake::UndefinedName), undefined);
    }

    #[test]
    fn what_has_no_place_for_a_mistake_stays() {
        let program = "def solution():\n    pass";
        for kind in Mistake::ALL {
            assert_eq!(corrupt(program, kind, &mut Seed(1).stream("")), None);
        }
    }

    #[test]
    fn a_share_has_mistakes_and_a_larger_share_the_same_ones() {
        let problems = crate::problems::Templates::embedded().draw(400, Seed(1), "train");
        let at = |share| corrupted(&problems, share, Seed(2), "mistakes");
        let changed = |now: &[Problem]| -> Vec<usize> {
            (0..400).filter(|i| now[*i].program != problems[*i].program).collect()
        };
        assert_eq!(at(0.0), problems);
        let (some, more) = (at(0.3), at(0.5));
        assert!((90..150).contains(&changed(&some).len()), "{}", changed(&some).len());
        assert!(changed(&some).iter().all(|i| some[*i] == more[*i]));
        assert_eq!(changed(&at(1.0)).len(), 400);
        let rest = |p: &Problem| Problem { program: String::new(), ..p.clone() };
        assert!(some.iter().zip(&problems).all(|(a, b)| rest(a) == rest(b)));
    }
}
