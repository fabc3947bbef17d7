//! Published problems for testing, and programs that a large model wrote for some of them (paper, experiments; paper card,
//! section 4). Where an equation is published and gives the published answer, a problem has a program and a chain of
//! thought; otherwise both are empty.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use crate::equations;
use crate::expressions::Expression;
use crate::judge::Answer;
use crate::problems::Problem;

/// A file that is not what it should be.
#[derive(Debug, Error)]
#[error("{data}, {place}: {problem}")]
pub struct PublishedError {
    data: String,
    place: String,
    problem: String,
}

impl PublishedError {
    fn new(data: &str, place: impl ToString, problem: impl ToString) -> Self {
        Self { data: data.to_owned(), place: place.to_string(), problem: problem.to_string() }
    }
}

/// The whole file as one JSON value.
fn json<T: DeserializeOwned>(data: &str, text: &str) -> Result<T, PublishedError> {
    serde_json::from_str(text).map_err(|e| PublishedError::new(data, "the file", e))
}

/// A JSON value a line, with the number of its line.
fn json_lines<T: DeserializeOwned>(data: &str, text: &str) -> Result<Vec<(usize, T)>, PublishedError> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let read = |(i, line): (usize, &str)| {
        let value = serde_json::from_str(line);
        Ok((i + 1, value.map_err(|e| PublishedError::new(data, format!("line {}", i + 1), e))?))
    };
    lines.map(read).collect()
}

/// A problem whose equation is in infix form, if it has one that can be read.
fn with_equation(origin: String, question: &str, equation: Option<&str>, gold: f64) -> Problem {
    let question = question.split_whitespace().collect::<Vec<_>>().join(" ");
    let equation = equation.and_then(|equation| Expression::infix(equation).ok());
    let solved = equation.and_then(|equation| equations::located(&origin, &question, &equation));
    let right = |p: &Problem| matches!(p.answer, Answer::Number(value) if (value - gold).abs() < 1e-3);
    let (program, chain) = solved.filter(right).map(|p| (p.program, p.chain)).unwrap_or_default();
    Problem { origin, question, program, chain, answer: Answer::Number(gold) }
}

/// A passage and what is asked about it; some passages lack their full stop.
fn asked(passage: &str, question: &str) -> String {
    let passage = passage.trim();
    let stop = if passage.is_empty() || passage.ends_with(['.', '?', '!', ',']) { "" } else { "." };
    format!("{passage}{stop} {question}")
}

/// SVAMP's 1,000 (Patel, Bhattamishra and Goyal, NAACL 2021).
///
/// # Errors
/// The text is no JSON list of problems.
pub fn svamp(text: &str) -> Result<Vec<Problem>, PublishedError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Item {
        body: String,
        question: String,
        equation: String,
        answer: f64,
    }
    let items: Vec<Item> = json("SVAMP", text)?;
    let problem = |(i, item): (usize, Item)| {
        let question = asked(&item.body, &item.question);
        with_equation(format!("svamp-{i}"), &question, Some(&item.equation), item.answer)
    };
    Ok(items.into_iter().enumerate().map(problem).collect())
}

/// MultiArith's 600 (Roy and Roth, EMNLP 2015), with equations as `X=((32.0+42.0)-35.0)`.
///
/// # Errors
/// The text is no JSON list of problems, or one has no solution.
pub fn multiarith(text: &str) -> Result<Vec<Problem>, PublishedError> {
    #[derive(Deserialize)]
    struct Item {
        #[serde(rename = "sQuestion")]
        question: String,
        #[serde(rename = "lEquations")]
        equations: Vec<String>,
        #[serde(rename = "lSolutions")]
        solutions: Vec<f64>,
    }
    let items: Vec<Item> = json("MultiArith", text)?;
    let problem = |(i, item): (usize, Item)| {
        let gold = item.solutions.first().ok_or_else(|| {
            PublishedError::new("MultiArith", format!("problem {}", i + 1), "it has no solution")
        })?;
        let equation = item.equations.first().and_then(|equation| equation.strip_prefix("X="));
        Ok(with_equation(format!("multiarith-{i}"), &item.question, equation, *gold))
    };
    items.into_iter().enumerate().map(problem).collect()
}

/// The problems of ASDiv (Miao, Liang and Su, ACL 2020) whose answer is a whole number, 2,097 of 2,305 as the authors count.
/// A formula of one step after another, with remainders, units or unknowns, gives no program.
///
/// # Errors
/// A problem lacks its body, question, answer or formula.
pub fn asdiv(text: &str) -> Result<Vec<Problem>, PublishedError> {
    let mut problems = Vec::new();
    for (i, item) in text.split("<Problem ").skip(1).enumerate() {
        let field = |name: &str| {
            let inside = item.split_once(&format!("<{name}>")).and_then(|(_, rest)| rest.split_once("</"));
            let plain = |text: &str| text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&");
            inside.map(|(text, _)| plain(text)).ok_or_else(|| {
                PublishedError::new("ASDiv", format!("problem {}", i + 1), format!("it has no {name}"))
            })
        };
        let (answer, formula) = (field("Answer")?, field("Formula")?);
        let gold = answer.split(" (").next().and_then(|number| number.trim().parse::<u64>().ok());
        let Some(gold) = gold else { continue };
        let equation = formula.split_once('=').map(|(equation, _)| equation);
        let question = asked(&field("Body")?, &field("Question")?);
        problems.push(with_equation(format!("asdiv-{i}"), &question, equation, gold as f64));
    }
    Ok(problems)
}

/// GSM-Hard (Gao et al., ICML 2023): GSM8K's test questions with large numbers, and the programs, written by a large model
/// and changed, that its answers were computed with.
///
/// # Errors
/// A line is no JSON object of a problem.
pub fn gsm_hard(text: &str) -> Result<Vec<Problem>, PublishedError> {
    #[derive(Deserialize)]
    struct Item {
        input: String,
        code: String,
        target: f64,
    }
    let problem = |(line, item): (usize, Item)| Problem {
        origin: format!("gsm-hard-{}", line - 1),
        question: item.input.trim().to_owned(),
        program: without_question(item.code.trim()),
        chain: String::new(),
        answer: Answer::Number(item.target),
    };
    Ok(json_lines("GSM-Hard", text)?.into_iter().map(problem).collect())
}

/// A function without the question in its first lines, as the authors post-process their teacher's programs.
fn without_question(program: &str) -> String {
    let header = "def solution():\n";
    let rest = program.strip_prefix(header).map(str::trim_start);
    let body = rest.and_then(|rest| rest.strip_prefix("\"\"\"")?.split_once("\"\"\"\n"));
    match body {
        Some((_, body)) => format!("{header}    \n{body}"),
        None => program.to_owned(),
    }
}

/// The programs of a file of Program of Thoughts (Chen et al., TMLR 2023), written by a large model: candidates, wrong ones
/// included. `name` is the file's. Those from examples are statements that end in `ans = ...`; those without examples
/// stand in a function `solver()`. Lines without a program are the prompt.
///
/// # Errors
/// A line is no JSON object, or one with a program has no question or no answer.
pub fn program_of_thoughts(name: &str, text: &str) -> Result<Vec<Problem>, PublishedError> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Generated {
        Function(String),
        Statements(Vec<String>),
    }
    #[derive(Deserialize)]
    struct Item {
        generated: Option<Generated>,
        #[serde(default)]
        passage: String,
        question: Option<String>,
        answer: Option<f64>,
    }
    let mut problems = Vec::new();
    for (line, item) in json_lines::<Item>(name, text)? {
        let program = match item.generated {
            None => continue,
            Some(Generated::Function(text)) => from_function(&text),
            Some(Generated::Statements(texts)) => from_statements(texts.first().map_or("", String::as_str)),
        };
        let missing = |what| PublishedError::new(name, format!("line {line}"), format!("it has no `{what}`"));
        let question = item.question.ok_or_else(|| missing("question"))?;
        problems.push(Problem {
            origin: format!("{name}-{line}"),
            question: match item.passage.is_empty() {
                true => question.trim().to_owned(),
                false => asked(&item.passage, &question),
            },
            program,
            chain: String::new(),
            answer: Answer::Number(item.answer.ok_or_else(|| missing("answer"))?),
        });
    }
    Ok(problems)
}

fn from_statements(statements: &str) -> String {
    let lines: Vec<String> = statements.lines().map(|line| format!("    {line}\n")).collect();
    format!("def solution():\n    \n{}    return ans", lines.concat())
}

/// The function alone, with those imports before it that it uses.
fn from_function(text: &str) -> String {
    let (prompt, function) = text.split_once("def solver():\n").unwrap_or(("", text));
    let body = function.trim_end().strip_suffix("ans = solver()").unwrap_or(function).trim_end();
    let used = |line: &&str| {
        let name = line.split_whitespace().last().unwrap_or_default();
        line.starts_with("import ") && body.contains(&format!("{name}."))
    };
    let imports: String = prompt.lines().filter(used).map(|line| format!("    {line}\n")).collect();
    format!("def solution():\n    \n{imports}{body}")
}

/// The items of a task of BIG-Bench Hard (Suzgun et al. 2022), of one file; origin is the task's name. An answer is right
/// if it is the target letter for letter.
///
/// # Errors
/// The text is no JSON object of examples.
pub fn big_bench_hard(task: &str, text: &str) -> Result<Vec<Problem>, PublishedError> {
    #[derive(Deserialize)]
    struct File {
        examples: Vec<Item>,
    }
    #[derive(Deserialize)]
    struct Item {
        input: String,
        target: String,
    }
    let file: File = json(task, text)?;
    let problem = |item: Item| Problem {
        origin: task.to_owned(),
        question: item.input,
        program: String::new(),
        chain: String::new(),
        answer: Answer::Text(item.target),
    };
    Ok(file.examples.into_iter().map(problem).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equations_become_programs() {
        let text = r#"[{"ID": "chal-1", "Body": "A pack of 3 costs $ 7", "Question": "How much are two packs?",
            "Equation": "( 2.0 * 7.0 )", "Answer": 14.0, "Type": "Multiplication"},
            {"ID": "chal-2", "Body": "He has 3.", "Question": "And then?", "Equation": "( 3.0 + 1.0 )", "Answer": 5.0}]"#;
        let problems = svamp(text).unwrap();
        assert_eq!(problems[0].question, "A pack of 3 costs $ 7. How much are two packs?");
        assert!(
            problems[0]
                .program
                .contains("number_1 = 7\n    number_2 = 2\n    step_1 = number_2 * number_1\n")
        );
        assert_eq!((problems[1].program.as_str(), &problems[1].answer), ("", &Answer::Number(5.0)));
        let text = r#"[{"sQuestion": " 2 and 2,500, less 2? ", "lEquations": ["X=((2.0+2500.0)-2.0)"], "lSolutions": [2500.0]}]"#;
        let problems = multiarith(text).unwrap();
        assert_eq!(problems[0].question, "2 and 2,500, less 2?");
        assert!(problems[0].program.contains("number_1 = 2\n    number_2 = 2500\n    number_3 = 2\n"));
        assert!(problems[0].program.contains("step_2 = step_1 - number_3\n"));
        let error = multiarith(r#"[{"sQuestion": "", "lEquations": [], "lSolutions": []}]"#).unwrap_err();
        assert_eq!(error.to_string(), "MultiArith, problem 1: it has no solution");
        assert!(svamp("{}").unwrap_err().to_string().starts_with("SVAMP, the file: invalid type"));
    }

    #[test]
    fn asdiv_is_read() {
        let problem = |answer: &str, formula: &str| {
            format!(
                "<Problem ID=\"1\"><Body>Seven &amp; two.</Body><Question>All?</Question><Answer>{answer}</Answer>\
                 <Formula>{formula}</Formula></Problem>"
            )
        };
        let text =
            [problem("9 (apples)", "7+2=9"), problem("Yes", "7&gt;2"), problem("3", "7/2=3 r1")].concat();
        let problems = asdiv(&format!("<ProblemSet>{text}</ProblemSet>")).unwrap();
        let of: Vec<(&str, bool)> =
            problems.iter().map(|p| (p.origin.as_str(), p.program.is_empty())).collect();
        assert_eq!(of, [("asdiv-0", false), ("asdiv-2", true)]);
        assert_eq!(problems[0].question, "Seven & two. All?");
        let error = asdiv("<Problem ID=\"1\"><Answer>3</Answer>").unwrap_err().to_string();
        assert_eq!(error, "ASDiv, problem 1: it has no Formula");
    }

    #[test]
    fn published_programs_get_the_authors_form() {
        let text = r#"{"prompt": "..."}
{"question": "q", "answer": 3.0, "executed": 3.0, "generated": ["x = 1\nfor i in [1]:\n    ans = x + 2"]}

{"question": "q?", "passage": "p", "answer": 2, "generated": "\nimport math\nimport numpy as np\n\n# Question\ndef solver():\n    # now\n    x = math.sqrt(4)\n    return x\nans = solver()"}"#;
        let problems = program_of_thoughts("file", text).unwrap();
        let flat = "def solution():\n    \n    x = 1\n    for i in [1]:\n        ans = x + 2\n    return ans";
        assert_eq!((problems[0].program.as_str(), problems[0].origin.as_str()), (flat, "file-2"));
        let function =
            "def solution():\n    \n    import math\n    # now\n    x = math.sqrt(4)\n    return x";
        assert_eq!((problems[1].program.as_str(), problems[1].question.as_str()), (function, "p. q?"));
        let error = program_of_thoughts("file", r#"{"question": "q", "generated": "x"}"#).unwrap_err();
        assert_eq!(error.to_string(), "file, line 1: it has no `answer`");
        let text = r#"{"input": "q ", "code": "\ndef solution():\n    \"\"\"q\n    q\"\"\"\n    a = 1\n    return a\n\n", "target": -1.0}"#;
        let problem = gsm_hard(text).unwrap().remove(0);
        assert_eq!(problem.program, "def solution():\n    \n    a = 1\n    return a");
        assert_eq!((problem.question.as_str(), problem.answer), ("q", Answer::Number(-1.0)));
    }

    #[test]
    fn tasks_of_big_bench_hard_are_read() {
        let text = r#"{"canary": "c", "examples": [{"input": "True and False is", "target": "False"}]}"#;
        let problem = big_bench_hard("boolean_expressions", text).unwrap().remove(0);
        assert_eq!(
            (problem.origin.as_str(), problem.answer),
            ("boolean_expressions", Answer::Text("False".to_owned()))
        );
        assert!(big_bench_hard("x", "[]").unwrap_err().to_string().starts_with("x, the file: "));
    }
}
