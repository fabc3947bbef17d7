//! A program's execution line by line: what every assignment gave.

use ruff_python_ast::visitor::source_order::{SourceOrderVisitor, walk_stmt};
use ruff_python_ast::{Expr, Stmt};
use ruff_python_parser::parse_module;
use ruff_text_size::{Ranged, TextRange};

use super::{Outcome, Pool, PoolError};

/// Begins a line of output that is part of a trace; no program of a student prints it.
const MARK: char = '\u{1f}';

/// Values of one line that are shown when it ran more often.
const SHOWN: usize = 6;

/// A line of a program and what it did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The line, with its indentation.
    pub text: String,
    /// What it assigned, raised or returned, as Python writes it; several values if it ran several times.
    pub value: Option<String>,
}

/// Runs programs that define `solution()`, once more, with a look at every assignment. A program that does not parse
/// has its message at the line where reading stopped.
///
/// # Errors
/// A worker cannot be started.
pub fn trace<S: AsRef<str>>(pool: &Pool, programs: &[S]) -> Result<Vec<Vec<Step>>, PoolError> {
    let observed: Vec<String> = programs.iter().map(|program| observed(program.as_ref())).collect();
    let outcomes = pool.run(&observed)?;
    Ok(programs.iter().zip(outcomes).map(|(program, outcome)| steps(program.as_ref(), &outcome)).collect())
}

/// The program with a `print` behind every assignment, and its call, whose exceptions are printed, too.
fn observed(program: &str) -> String {
    let mut found = Assignments { program, after: Vec::new() };
    if let Ok(parsed) = parse_module(program) {
        parsed.suite().iter().for_each(|statement| found.visit_stmt(statement));
    }
    let mut text = String::new();
    for (i, line) in program.lines().enumerate() {
        text.push_str(line);
        text.push('\n');
        for (_, look) in found.after.iter().filter(|(after, _)| *after == i) {
            text.push_str(look);
        }
    }
    let call = "\ntry:\n    print('\\x1f=' + repr(solution()))\nexcept Exception as e:\n    \
                print('\\x1f!' + type(e).__name__ + ': ' + str(e))\n";
    text + call
}

/// Prints to be put behind lines, counted from 0.
struct Assignments<'a> {
    program: &'a str,
    after: Vec<(usize, String)>,
}

impl Assignments<'_> {
    fn line_of(&self, offset: usize) -> usize {
        self.program[..offset].matches('\n').count()
    }

    /// A statement that has its lines for itself gets a print behind it.
    fn look(&mut self, range: TextRange, target: &Expr) {
        let (start, end) = (range.start().to_usize(), range.end().to_usize());
        let line_start = self.program[..start].rfind('\n').map_or(0, |at| at + 1);
        let indentation = &self.program[line_start..start];
        let rest = self.program[end..].split('\n').next().unwrap_or_default().trim_start();
        if !indentation.trim().is_empty() || !(rest.is_empty() || rest.starts_with('#')) {
            return;
        }
        let (first, last) = (self.line_of(start), self.line_of(end));
        let target = &self.program[target.range()];
        self.after.push((last, format!("{indentation}print('\\x1f{first} ' + repr({target}))\n")));
    }
}

impl<'a> SourceOrderVisitor<'a> for Assignments<'_> {
    fn visit_stmt(&mut self, statement: &'a Stmt) {
        match statement {
            Stmt::Assign(assign) => {
                if let [target] = assign.targets.as_slice() {
                    self.look(assign.range(), target);
                }
            }
            Stmt::AugAssign(assign) => self.look(assign.range(), &assign.target),
            _ => walk_stmt(self, statement),
        }
    }
}

fn steps(program: &str, outcome: &Outcome) -> Vec<Step> {
    let mut steps: Vec<Step> =
        program.lines().map(|line| Step { text: line.to_owned(), value: None }).collect();
    let Some(stdout) = outcome.stdout() else {
        let line = match outcome {
            Outcome::Raised { line: Some(line), .. } => (*line as usize).saturating_sub(1),
            _ => usize::MAX,
        };
        let at = line.min(steps.len().saturating_sub(1));
        if let Some(step) = steps.get_mut(at) {
            step.value = outcome.last_line();
        }
        return steps;
    };
    let mut values: Vec<Vec<&str>> = vec![Vec::new(); steps.len()];
    let mut last = 0;
    for mark in stdout.lines().filter_map(|line| line.strip_prefix(MARK)) {
        let (at, value) = match (mark.strip_prefix('='), mark.strip_prefix('!')) {
            (Some(value), _) => {
                (steps.iter().rposition(|s| s.text.trim_start().starts_with("return")).unwrap_or(last), value)
            }
            // the line after the last one that was seen to end
            (_, Some(message)) => (next_line(&steps, last), message),
            _ => {
                let Some((line, value)) = mark.split_once(' ') else { continue };
                let Ok(line) = line.parse() else { continue };
                last = line;
                (line, value)
            }
        };
        if let Some(values) = values.get_mut(at) {
            values.push(value);
        }
    }
    for (step, values) in steps.iter_mut().zip(values).filter(|(_, values)| !values.is_empty()) {
        let more = if values.len() > SHOWN { ", …" } else { "" };
        step.value = Some(values[..values.len().min(SHOWN)].join(", ") + more);
    }
    steps
}

/// The next line that does something.
fn next_line(steps: &[Step], line: usize) -> usize {
    let does = |step: &Step| !step.text.trim().is_empty() && !step.text.trim_start().starts_with('#');
    let after = steps.iter().enumerate().skip(line + 1).find(|(_, step)| does(step));
    after.map_or(line, |(at, _)| at)
}
