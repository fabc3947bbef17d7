//! Questions and programs as JSON lines.

use replica_core::digest::canonical_json;
use serde::Deserialize;
use serde_json::{Value, json};
use thiserror::Error;

use crate::judge::{Answer, gold_number};
use crate::marks;
use crate::problems::Problem;

/// A line that is no question.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "{file}, line {line}: {problem}; a line is a JSON object such as {{\"question\": \"...\", \"answer\": 42}}"
)]
pub struct QuestionsError {
    file: String,
    line: usize,
    problem: String,
}

#[derive(Deserialize)]
struct Line {
    question: String,
    answer: Value,
}

/// The problems, without programs, of JSON lines with `question` and `answer`; other fields are ignored. An answer is a
/// number, a text, or a solution that ends in "#### " and the answer, as GSM8K's; a text that reads as a number is one.
/// `name` is the data set's: problem i comes from `name-i`.
///
/// # Errors
/// Names the file and the line that is no question.
pub fn questions(text: &str, name: &str) -> Result<Vec<Problem>, QuestionsError> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let parse = |(i, (number, line)): (usize, (usize, &str))| {
        let problem = problem(line, format!("{name}-{i}"));
        problem.map_err(|problem| QuestionsError { file: name.to_owned(), line: number + 1, problem })
    };
    lines.enumerate().map(parse).collect()
}

fn problem(line: &str, origin: String) -> Result<Problem, String> {
    let line: Line = serde_json::from_str(line).map_err(|error| error.to_string())?;
    if line.question.trim().is_empty() {
        return Err("`question` is empty".to_owned());
    }
    let (answer, chain) = match line.answer {
        Value::Number(number) => {
            (Answer::Number(number.as_f64().ok_or("`answer` is too large")?), String::new())
        }
        Value::String(text) => match marks::parts(&text) {
            (_, Some(gold)) => {
                let gold = number_or_text(gold);
                (gold, text)
            }
            (_, None) => (number_or_text(&text), String::new()),
        },
        other => return Err(format!("`answer` is {other}, neither a number nor a text")),
    };
    if matches!(&answer, Answer::Text(text) if text.trim().is_empty()) {
        return Err("`answer` is empty".to_owned());
    }
    Ok(Problem { origin, question: line.question, program: String::new(), chain, answer })
}

fn number_or_text(text: &str) -> Answer {
    let number = gold_number(text).filter(|number| number.is_finite());
    number.map_or_else(|| Answer::Text(text.to_owned()), Answer::Number)
}

/// A problem with its program as a line: `answer`, `program`, `question`.
pub fn line(problem: &Problem) -> String {
    let answer = match &problem.answer {
        // whole numbers as the data sets write them
        Answer::Number(x) if x.fract() == 0.0 && x.abs() < 1e15 => json!(*x as i64),
        Answer::Number(x) => json!(x),
        Answer::Text(text) => json!(text),
    };
    canonical_json(&json!({ "question": problem.question, "program": problem.program, "answer": answer }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_numbers_texts_or_solutions() {
        let text = r#"{"question": "a", "answer": 4.5, "more": []}

{"question": "b", "answer": "1,005"}
{"question": "c", "answer": "2+3 = <<2+3=5>>5\n#### 5"}
{"question": "d", "answer": "yes"}"#;
        let problems = questions(text, "mine").unwrap();
        let answers: Vec<&Answer> = problems.iter().map(|p| &p.answer).collect();
        let yes = Answer::Text("yes".to_owned());
        assert_eq!(answers, [&Answer::Number(4.5), &Answer::Number(1005.0), &Answer::Number(5.0), &yes]);
        assert_eq!((problems[3].origin.as_str(), problems[2].chain.contains("<<")), ("mine-3", true));
        let lines: Vec<String> = problems.iter().map(line).collect();
        assert_eq!(lines[1], r#"{"answer":1005,"program":"","question":"b"}"#);
        let again = questions(&lines.join("\n"), "mine").unwrap();
        assert_eq!(again.iter().map(|p| &p.answer).collect::<Vec<_>>(), answers);
    }

    #[test]
    fn errors_name_file_and_line() {
        let error = |line: &str| {
            let text = format!("{{\"question\": \"a\", \"answer\": 1}}\n{line}");
            questions(&text, "q.jsonl").unwrap_err().to_string()
        };
        assert!(error("{\"question\": \"b\"}").starts_with("q.jsonl, line 2: missing field `answer`"));
        assert!(error("{\"question\": \"b\", \"answer\": true}").contains("`answer` is true, neither"));
        assert!(error("{\"question\": \" \", \"answer\": 1}").contains("`question` is empty"));
        assert!(error("{\"question\": \"b\", \"answer\": \"#### \"}").contains("`answer` is empty"));
        assert!(error("[]").contains("a line is a JSON object"));
    }
}
