//! Error injection for self-refinement (paper, section on self-refinement; paper card, 2.3): broken forms of a program,
//! which a model learns to repair.
//!
//! Errors are injected into the text, which keeps comments; [`reprinted`] gives the authors' form, which is a printed
//! syntax tree and has none. Of the authors' three kinds the syntax error is none: [`released_syntax_error`] is what
//! their script makes, [`syntax_error`] one that is.

use ruff_python_ast::visitor::source_order::{SourceOrderVisitor, TraversalSignal};
use ruff_python_ast::{AnyNodeRef, Expr, ExprContext, Stmt, StmtFunctionDef};
use ruff_python_parser::parse_module;
use ruff_text_size::{Ranged, TextRange};
use thiserror::Error;

/// A program that nothing can be injected into.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum InjectionError {
    /// It does not parse.
    #[error("the program does not parse: {0}")]
    Syntax(String),
    /// It has no function, or one whose body starts on its first line.
    #[error("the program has no function whose body starts on a line of its own")]
    NoBody,
}

/// A name that something is assigned to: in assignments of any kind, loops, comprehensions, `with`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Store {
    /// The name.
    pub name: String,
    /// Its line, from 1.
    pub line: usize,
    /// Its first byte in that line, from 0.
    pub column: usize,
    range: TextRange,
}

/// The kinds of broken programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// [`name_error`].
    Name,
    /// [`unbound_local_error`].
    UnboundLocal,
    /// [`released_syntax_error`].
    ReleasedSyntax,
    /// [`syntax_error`].
    Syntax,
}

/// A program with an error of this kind. `number` gives the numbers, 0 to 9999, that renamed names end in.
///
/// # Errors
/// See [`InjectionError`].
pub fn inject(program: &str, kind: Kind, number: impl FnMut() -> u32) -> Result<String, InjectionError> {
    match kind {
        Kind::Name => name_error(program, number),
        Kind::UnboundLocal => unbound_local_error(program),
        Kind::ReleasedSyntax => released_syntax_error(program),
        Kind::Syntax => syntax_error(program),
    }
}

fn parse(program: &str) -> Result<ruff_python_parser::Parsed<ruff_python_ast::ModModule>, InjectionError> {
    parse_module(program).map_err(|error| InjectionError::Syntax(error.to_string()))
}

/// All stores, as Python's `ast.walk` finds them: breadth first.
///
/// # Errors
/// The program does not parse.
pub fn stores(program: &str) -> Result<Vec<Store>, InjectionError> {
    let parsed = parse(program)?;
    let mut walk = Walk { levels: vec![Level { depth: 0, elifs: 0 }], found: Vec::new() };
    for statement in parsed.suite() {
        walk.visit_stmt(statement);
    }
    // stable: within a depth the order of the source, which is that of the tree's fields where names are stored
    walk.found.sort_by_key(|(depth, _)| *depth);
    let store = |range: TextRange| {
        let before = &program[..range.start().to_usize()];
        let line_start = before.rfind('\n').map_or(0, |end| end + 1);
        Store {
            name: program[range].to_owned(),
            line: before.matches('\n').count() + 1,
            column: before.len() - line_start,
            range,
        }
    };
    Ok(walk.found.into_iter().map(|(_, range)| store(range)).collect())
}

struct Level {
    /// Depth in CPython's tree.
    depth: usize,
    /// `elif` branches met so far, each of which is an `if` one level deeper there.
    elifs: usize,
}

struct Walk {
    levels: Vec<Level>,
    found: Vec<(usize, TextRange)>,
}

impl<'a> SourceOrderVisitor<'a> for Walk {
    fn enter_node(&mut self, node: AnyNodeRef<'a>) -> TraversalSignal {
        let depth = match (node, self.levels.last_mut()) {
            (_, None) => 0,
            // nodes that CPython's tree does not have
            (AnyNodeRef::Arguments(_) | AnyNodeRef::ParameterWithDefault(_), Some(parent)) => parent.depth,
            (AnyNodeRef::ElifElseClause(clause), Some(parent)) => {
                parent.elifs += usize::from(clause.test.is_some());
                parent.depth + parent.elifs
            }
            (_, Some(parent)) => parent.depth + 1,
        };
        if let AnyNodeRef::ExprName(name) = node
            && name.ctx == ExprContext::Store
        {
            self.found.push((depth, name.range()));
        }
        self.levels.push(Level { depth, elifs: 0 });
        TraversalSignal::Traverse
    }

    fn leave_node(&mut self, _: AnyNodeRef<'a>) {
        self.levels.pop();
    }
}

/// Every store is renamed to `undefined_var_<number>`, each with a number of its own, in the order of [`stores`]; what
/// reads the names keeps them.
///
/// # Errors
/// The program does not parse.
pub fn name_error(program: &str, mut number: impl FnMut() -> u32) -> Result<String, InjectionError> {
    let renamed = |store: Store| (store.range, format!("undefined_var_{}", number()));
    let mut edits: Vec<(TextRange, String)> = stores(program)?.into_iter().map(renamed).collect();
    edits.sort_by_key(|(range, _)| std::cmp::Reverse(range.start()));
    let mut text = program.to_owned();
    for (range, name) in edits {
        text.replace_range(std::ops::Range::<usize>::from(range), &name);
    }
    Ok(text)
}

/// The function `solution`, or the first one.
fn function(statements: &[Stmt]) -> Result<&StmtFunctionDef, InjectionError> {
    let mut functions = statements.iter().filter_map(Stmt::as_function_def_stmt);
    let named = functions.clone().find(|function| function.name.as_str() == "solution");
    named.or_else(|| functions.next()).ok_or(InjectionError::NoBody)
}

/// Where the line of a function's first statement starts, and its indentation.
fn first_line<'a>(program: &'a str, function: &StmtFunctionDef) -> Result<(usize, &'a str), InjectionError> {
    let first = function.body.first().ok_or(InjectionError::NoBody)?.start().to_usize();
    let line = program[..first].rfind('\n').map_or(0, |end| end + 1);
    let indentation = &program[line..first];
    match line > 0 && indentation.chars().all(char::is_whitespace) {
        true => Ok((line, indentation)),
        false => Err(InjectionError::NoBody),
    }
}

/// In every function the first plain assignment's targets are read at the top, before they have a value; the last one
/// first, as the authors' script has it. A function without plain assignment stays as it is.
///
/// # Errors
/// See [`InjectionError`].
pub fn unbound_local_error(program: &str) -> Result<String, InjectionError> {
    let parsed = parse(program)?;
    function(parsed.suite())?;
    let mut functions = Functions(Vec::new());
    parsed.suite().iter().for_each(|statement| functions.visit_stmt(statement));
    let mut text = program.to_owned();
    // later functions first, so that earlier places stay where they are
    for function in functions.0.into_iter().rev() {
        let Some(assignment) = function.body.iter().find_map(Stmt::as_assign_stmt) else { continue };
        let mut names = Vec::new();
        assignment.targets.iter().for_each(|target| target_names(target, &mut names));
        let (line, indentation) = first_line(program, function)?;
        let read: String = names.iter().rev().map(|name| format!("{indentation}{name}\n")).collect();
        text.insert_str(line, &read);
    }
    Ok(text)
}

/// All functions, in the order of the source.
struct Functions<'a>(Vec<&'a StmtFunctionDef>);

impl<'a> SourceOrderVisitor<'a> for Functions<'a> {
    fn enter_node(&mut self, node: AnyNodeRef<'a>) -> TraversalSignal {
        if let AnyNodeRef::StmtFunctionDef(function) = node {
            self.0.push(function);
        }
        TraversalSignal::Traverse
    }
}

fn target_names(target: &Expr, names: &mut Vec<String>) {
    match target {
        Expr::Name(name) => names.push(name.id.to_string()),
        Expr::Tuple(tuple) => tuple.elts.iter().for_each(|element| target_names(element, names)),
        Expr::List(list) => list.elts.iter().for_each(|element| target_names(element, names)),
        Expr::Starred(starred) => target_names(&starred.value, names),
        _ => {}
    }
}

/// The authors' "syntax error": a valid program that returns the text 'Syntax Error'.
///
/// # Errors
/// See [`InjectionError`].
pub fn released_syntax_error(program: &str) -> Result<String, InjectionError> {
    let parsed = parse(program)?;
    let (line, indentation) = first_line(program, function(parsed.suite())?)?;
    Ok(format!("{}{indentation}return 'Syntax Error'\n{}", &program[..line], &program[line..]))
}

/// The colon after the function's parameters is left out.
///
/// # Errors
/// See [`InjectionError`].
pub fn syntax_error(program: &str) -> Result<String, InjectionError> {
    let parsed = parse(program)?;
    let function = function(parsed.suite())?;
    let header = function.returns.as_ref().map_or(function.parameters.end(), |returns| returns.end());
    let header = header.to_usize();
    let colon = header + program[header..].find(':').ok_or(InjectionError::NoBody)?;
    Ok(format!("{}{}", &program[..colon], &program[colon + 1..]))
}

/// A program printed from its syntax tree: without comments and empty lines.
///
/// # Errors
/// The program does not parse.
pub fn reprinted(program: &str) -> Result<String, InjectionError> {
    ruff_python_codegen::round_trip(program).map_err(|error| InjectionError::Syntax(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROGRAM: &str = "\
def solution() -> int:
    # a comment: kept
    total, rest = 7, 2
    if rest > 3:
        low = 1
    elif rest > 2:
        mid = 2
    elif rest > 1:
        high = 3
    else:
        none = 4
    for item in [1]:
        total += sum(x for x in [item])
    return total
";

    fn numbers() -> impl FnMut() -> u32 {
        let mut next = 0;
        move || {
            next += 1;
            next
        }
    }

    /// CPython's `ast.walk` gives this order: every `elif` is one level deeper than the one before.
    #[test]
    fn stores_come_breadth_first() {
        let found = stores(PROGRAM).unwrap();
        let names: Vec<&str> = found.iter().map(|store| store.name.as_str()).collect();
        assert_eq!(names, ["item", "total", "rest", "low", "total", "mid", "high", "none", "x"]);
        assert_eq!((found[2].line, found[2].column), (3, 11));
    }

    #[test]
    fn errors_are_put_into_the_text() {
        let renamed = name_error(PROGRAM, numbers()).unwrap();
        assert!(
            renamed.contains("# a comment: kept\n    undefined_var_2, undefined_var_3 = 7, 2\n"),
            "{renamed}"
        );
        assert!(renamed.contains("undefined_var_5 += sum(x for undefined_var_9 in [item])"), "{renamed}");
        let unbound = unbound_local_error(PROGRAM).unwrap();
        assert!(unbound.contains("kept\n    rest\n    total\n    total, rest = 7, 2\n"), "{unbound}");
        let released = released_syntax_error(PROGRAM).unwrap();
        assert!(released.contains("kept\n    return 'Syntax Error'\n    total, rest"), "{released}");
        assert!(syntax_error(PROGRAM).unwrap().starts_with("def solution() -> int\n"));
        assert!(parse(&reprinted(PROGRAM).unwrap()).is_ok());
        assert!(!reprinted(PROGRAM).unwrap().contains('#'));
    }

    #[test]
    fn what_has_no_place_for_an_error_is_refused() {
        assert!(matches!(stores("def f(:"), Err(InjectionError::Syntax(_))));
        assert_eq!(unbound_local_error("x = 1"), Err(InjectionError::NoBody));
        assert_eq!(unbound_local_error("def f(): x = 1"), Err(InjectionError::NoBody));
        assert_eq!(released_syntax_error("def f(): return 1"), Err(InjectionError::NoBody));
        let nothing = "def f():\n    return 1";
        assert_eq!(unbound_local_error(nothing).unwrap(), nothing);
        assert_eq!(name_error(nothing, numbers()).unwrap(), nothing);
    }
}
