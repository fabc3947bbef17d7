//! The real binary: help, exit codes, streams.
#![allow(clippy::unwrap_used, reason = "a test that cannot be set up should panic")]

use std::process::{Command, Output};

use replica_pad::exec::{Limit, Limits, Outcome, Pool, WorkerCommand};

fn replica(line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_replica"));
    command.args(line.split_whitespace()).env("COLUMNS", "100").env("NO_COLOR", "1");
    command
}

fn output(line: &str) -> Output {
    let folder = tempfile::tempdir().unwrap();
    replica(line).current_dir(folder.path()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn help_teaches() {
    let help = output("--help");
    assert_eq!(help.status.code(), Some(0));
    insta::assert_snapshot!("help", text(&help.stdout));
    insta::assert_snapshot!("help_run", text(&output("run --help").stdout));
    assert_eq!(text(&help.stderr), "");
}

#[test]
fn wrong_usage_is_code_2() {
    for line in ["", "frobnicate", "run no-such-paper", "run --scale huge", "data", "diff one"] {
        let output = output(line);
        assert_eq!(output.status.code(), Some(2), "{line}");
        assert_eq!(text(&output.stdout), "", "{line}");
        assert!(!output.stderr.is_empty(), "{line}");
    }
}

#[test]
fn list_and_doctor_speak_json() {
    let list: serde_json::Value = serde_json::from_slice(&output("list --json").stdout).unwrap();
    assert!(list["papers"].is_array());
    let output = output("doctor --json");
    let doctor: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.success(), doctor["problems"] == 0);
    assert!(doctor["findings"].as_array().unwrap().len() >= 7);
}

#[test]
fn colours_can_be_switched_off() {
    for line in ["list", "doctor", "--help", "run no-such-paper"] {
        let output = output(line);
        assert!(!output.stdout.contains(&0x1b) && !output.stderr.contains(&0x1b), "{line}");
    }
}

/// The program is its own worker for programs of models, under its allocator's count.
#[test]
fn replica_runs_programs() {
    let program = env!("CARGO_BIN_EXE_replica").into();
    let command = WorkerCommand { program, arguments: vec!["program-worker".to_owned()] };
    let pool = Pool::new(command, 1, Limits { memory: 32 << 20, ..Limits::default() }).unwrap();
    let programs = ["print(6 * 7)", "x = []\nwhile True:\n    x.append('x' * 100000)", "print([0] * 10**12)"];
    let outcomes = pool.run(&programs).unwrap();
    let memory = Outcome::Limited { limit: Limit::Memory };
    assert_eq!(outcomes, [Outcome::Finished { stdout: "42\n".to_owned() }, memory.clone(), memory]);
}

#[cfg(unix)]
#[test]
fn a_closed_pipe_is_no_crash() {
    let mut child = replica("data list --json").stdout(std::process::Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert!(child.wait().unwrap().code().is_some());
}

#[cfg(unix)]
#[test]
fn a_read_only_run_folder_is_told_by_the_doctor() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let runs = folder.path().join("runs");
    std::fs::create_dir(&runs).unwrap();
    std::fs::set_permissions(&runs, std::fs::Permissions::from_mode(0o555)).unwrap();
    if std::fs::write(runs.join("probe"), "").is_ok() {
        println!(
            "skipped: rights do not bind this user (root); commands.rs uses a file in the folder's place"
        );
        return;
    }
    let output = replica("doctor").current_dir(folder.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(text(&output.stdout).contains("change its rights"));
}
