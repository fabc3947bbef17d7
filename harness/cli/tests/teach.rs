//! `replica teach` from end to end, with a local server that plays the teacher.
#![allow(clippy::unwrap_used, reason = "a test that cannot be set up should panic")]

#[allow(dead_code, reason = "most failures of a teacher are tested in its own crate")]
#[path = "../../../replications/pad/tests/api/mod.rs"]
mod api;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use api::{Reply, Request, Server, completion, program};
use serde_json::Value;

const KEY: &str = "sk-very-secret-0123";

const QUESTIONS: &str = r#"{"question": "What is 2 plus 3?", "answer": 5}
{"question": "What is half of 5?", "answer": "half of 5 is <<5/2=2.5>>2.5\n#### 2.5"}
{"question": "Is 3 odd?", "answer": "yes"}
{"question": "What is 1 plus 1?", "answer": "2"}
"#;

/// Right three times of four.
fn right(request: &Request) -> Reply {
    match request.question() {
        "What is 2 plus 3?" => program("return 2 + 3"),
        "What is half of 5?" => program("return 5 / 2"),
        "Is 3 odd?" => program("return 'yes' if 3 % 2 else 'no'"),
        _ => program("return 3"),
    }
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("q.jsonl"), QUESTIONS).unwrap();
    folder
}

fn replica(folder: &Path, url: &str, line: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_replica"));
    command.args(line.split_whitespace()).current_dir(folder).env("NO_COLOR", "1").env("COLUMNS", "100");
    command.env("REPLICA_CACHE", folder.join("cache")).env_remove("REPLICA_DATA").env("REPLICA_OFFLINE", "1");
    for name in ["REPLICA_TEACHER_URL", "REPLICA_TEACHER_MODEL"] {
        command.env_remove(name);
    }
    if !url.is_empty() {
        command.env("REPLICA_TEACHER_URL", url).env("REPLICA_TEACHER_MODEL", "teacher-1");
    }
    command.env("REPLICA_TEACHER_KEY", KEY).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn questions_become_programs_and_a_second_run_asks_nothing() {
    let server = Server::start(|request, _| right(request));
    let folder = folder();
    let line = "teach pad --questions q.jsonl --rounds 2 --out programs.jsonl --prices 1,10";
    let first = replica(folder.path(), &server.url(), line);
    let out = text(&first.stdout);
    assert_eq!(first.status.code(), Some(0), "{}", text(&first.stderr));
    insta::assert_snapshot!("teach", out);
    assert_eq!(server.requests().len(), 8);
    assert!(text(&first.stderr).contains("done    8 of 8"), "{}", text(&first.stderr));

    let file = fs::read_to_string(folder.path().join("programs.jsonl")).unwrap();
    let lines: Vec<Value> = file.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 6);
    assert_eq!(lines[0]["question"], "What is 2 plus 3?");
    assert_eq!(lines[0]["program"], "def solution():\n    \n    return 2 + 3");
    let answers: Vec<&Value> = lines.iter().step_by(2).map(|line| &line["answer"]).collect();
    assert_eq!(answers, [&Value::from(5), &Value::from(2.5), &Value::from("yes")]);

    let second = replica(folder.path(), &server.url(), &format!("{line} --json --quiet"));
    let json: Value = serde_json::from_slice(&second.stdout).unwrap();
    assert_eq!((server.requests().len(), text(&second.stderr).as_str()), (8, ""));
    assert_eq!((&json["usage"]["requests"], &json["usage"]["cached"]), (&0.into(), &8.into()));
    assert_eq!(
        (&json["funnel"]["accepted"], &json["distinct"], &json["cost"]["exactly"]),
        (&6.into(), &3.into(), &0.0.into())
    );
    assert_eq!(fs::read_to_string(folder.path().join("programs.jsonl")).unwrap(), file);
    // the program goes on as a file of questions, and only the first is asked
    let again = "teach pad --questions programs.jsonl --first 1 --out again.jsonl";
    assert_eq!(replica(folder.path(), &server.url(), again).status.code(), Some(0));
    assert_eq!(server.requests().len(), 8, "it has been asked before");
}

#[test]
fn a_refusal_keeps_what_came_and_shows_no_key() {
    let server = Server::start(|request, before| match before {
        0 | 1 => right(request),
        2 => Reply::Whole(401, Vec::new(), format!("{{\"error\": {{\"message\": \"{KEY} has run out\"}}}}")),
        _ => right(request),
    });
    let folder = folder();
    let line = "teach pad --questions q.jsonl --out programs.jsonl --jobs 1";
    let refused = replica(folder.path(), &server.url(), line);
    let err = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(3), "{err}");
    assert!(err.contains("(status 401): [key] has run out; set REPLICA_TEACHER_KEY"), "{err}");
    assert!(text(&refused.stdout).contains("unknown"), "the cost: {}", text(&refused.stdout));
    assert!(!folder.path().join("programs.jsonl").exists());
    let on = replica(folder.path(), &server.url(), line);
    assert_eq!((on.status.code(), server.requests().len()), (Some(0), 5));
    assert_eq!(fs::read_to_string(folder.path().join("programs.jsonl")).unwrap().lines().count(), 3);
}

#[test]
fn nothing_right_is_a_failure() {
    let server = Server::start(|_, _| Reply::Whole(200, Vec::new(), completion("I do not know.", "stop")));
    let folder = folder();
    let output = replica(folder.path(), &server.url(), "teach pad --questions q.jsonl --out programs.jsonl");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("no program is right"), "{}", text(&output.stderr));
    assert!(!folder.path().join("programs.jsonl").exists());
}

#[test]
fn what_is_wrong_on_this_side_is_told_before_anything_is_asked() {
    let server = Server::start(|request, _| right(request));
    let folder = folder();
    fs::write(folder.path().join("bad.jsonl"), "{\"question\": \"a\"}\n").unwrap();
    fs::write(folder.path().join("empty.jsonl"), "\n").unwrap();
    let url = server.url();
    for (url, options, code, message) in [
        ("", "--questions q.jsonl --out o", 3, "REPLICA_TEACHER_URL is not set; set it to"),
        ("localhost", "--questions q.jsonl --out o", 3, "REPLICA_TEACHER_URL is no base URL"),
        (&url, "--questions no.jsonl --out o", 2, "`no.jsonl` is neither gsm8k nor a file that exists"),
        (&url, "--questions gsm8k --out o", 3, "gsm8k"),
        (&url, "--questions bad.jsonl --out o", 3, "bad.jsonl, line 1: missing field `answer`"),
        (&url, "--questions empty.jsonl --out o", 3, "empty.jsonl has no questions"),
        (&url, "--questions q.jsonl --out no/o", 3, "a folder on the way does not exist"),
        (&url, "--questions q.jsonl --out .", 2, "is a folder"),
        (&url, "--questions q.jsonl --out o --prices 1", 2, "two prices with a comma"),
        (&url, "--questions q.jsonl --out o --temperature=-1", 2, "not negative"),
    ] {
        let output = replica(folder.path(), url, &format!("teach pad {options}"));
        let err = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{options}: {err}");
        assert!(err.contains(message), "{options}: {err}");
    }
    assert!(server.requests().is_empty());
    let help = text(&replica(folder.path(), "", "teach --help").stdout);
    insta::assert_snapshot!("help_teach", help);
}
