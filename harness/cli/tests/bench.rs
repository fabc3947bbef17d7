//! `replica bench` from end to end with a workload of milliseconds, without PyTorch: its place takes a script that
//! speaks the protocol.
#![allow(clippy::unwrap_used, reason = "a test that cannot be set up should panic")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

const REPLICA: &str = env!("CARGO_BIN_EXE_replica");

fn bench(folder: &Path, line: &str) -> Output {
    let mut command = Command::new(REPLICA);
    command.arg("bench").args(line.split_whitespace()).current_dir(folder).env("NO_COLOR", "1");
    command.env_remove("REPLICA_PYTHON").output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A program in Python's place.
#[cfg(unix)]
fn python(folder: &Path, script: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let path = folder.join("python");
    std::fs::write(&path, format!("#!/bin/sh\ncase \"$1\" in -c) echo 0.0-fake; exit;; esac\n{script}\n"))
        .unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// Trains in our own engine: losses are equal.
fn faithful() -> String {
    // our own optimiser is fused in any case
    format!(
        "test -f \"$1\" || exit 1; shift; test \"$1\" = --fused-adamw && shift\n\
         exec {REPLICA} bench decoder-tiny --serve \"$@\""
    )
}

/// Answers quickly with losses of nothing.
const CARELESS: &str = r#"echo '{"ready": true}'
while read word n; do
    if test "$word" = quit; then echo '{"peak_rss_mb": 30, "baseline_rss_mb": 10}'; exit; fi
    list=1; while test $n -gt 1; do list="$list, 1"; n=$((n - 1)); done
    echo "{\"seconds\": [$list], \"losses\": [$list]}"
done"#;

#[test]
fn the_engine_alone() {
    let folder = tempfile::tempdir().unwrap();
    let output = bench(
        folder.path(),
        "decoder-tiny --alone --rounds 6 --steps 2 --threads 2 --trace --output bench.json",
    );
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    // the trace's limit is for steps of a useful size
    assert!(matches!(output.status.code(), Some(0 | 1)), "{err}");
    for part in [
        "decoder-tiny: GPT-style decoder, 2 layers x 32",
        "step ms",
        "tokens/s",
        "of gemm ",
        "the trace costs",
    ] {
        assert!(out.contains(part), "{part}: {out}");
    }
    assert!(err.contains("6 rounds of 2 timed steps"), "{err}");
    let record: Value =
        serde_json::from_str(&std::fs::read_to_string(folder.path().join("bench.json")).unwrap()).unwrap();
    let measured = &record["workloads"][0]["measured"];
    assert_eq!(measured["engine"]["seconds"].as_array().unwrap().len(), 6);
    assert_eq!(measured["engine"]["losses"].as_array().unwrap().len(), 10);
    assert!(measured["engine"]["memory"]["peak_rss_mb"].as_f64().unwrap() > 1.0);
    // weights, gradients and two moments are the least that training holds
    let parameters = measured["parameters"].as_u64().unwrap();
    assert!(measured["engine_peak_bytes"].as_u64().unwrap() > 16 * parameters);
    assert_eq!(measured["products"].as_array().unwrap().len(), 2);
    assert_eq!(record["torch"], Value::Null);
}

#[cfg(unix)]
#[test]
fn a_twin_with_equal_losses_is_compared() {
    let folder = tempfile::tempdir().unwrap();
    let python = python(folder.path(), &faithful());
    let line = format!("decoder-tiny --python {} --rounds 6 --steps 2 --threads 1", python.display());
    let output = bench(folder.path(), &line);
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{out}{err}");
    assert!(out.contains("torch 0.0-fake"), "{out}");
    assert!(out.contains("torch eager, fused AdamW"), "{out}");
    assert!(out.contains("losses of 10 steps agree with torch eager: at most 0.0e0 apart"), "{out}");
    let ratio = out.lines().find(|l| l.trim_start().starts_with("torch eager ")).unwrap();
    assert!(
        ratio.matches(" [").count() == 2 && ratio.ends_with(']'),
        "two ratios with their intervals: {ratio}"
    );
}

#[cfg(unix)]
#[test]
fn a_twin_that_computes_something_else_fails_the_check() {
    let folder = tempfile::tempdir().unwrap();
    let python = python(folder.path(), CARELESS);
    let line = format!("decoder-tiny --python {} --rounds 1 --steps 1 --json", python.display());
    let output = bench(folder.path(), &line);
    let record: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{record}");
    let twin = &record["workloads"][0]["measured"]["twins"][0]["measured"];
    assert!(twin["loss_difference"].as_f64().unwrap() > 1.0, "{twin}");
    assert_eq!(twin["ratio"]["interval"], Value::Null, "one round has none");
    assert!(text(&output.stderr).contains("losses differ from torch eager's"));
}

#[cfg(unix)]
#[test]
fn a_twin_that_fails_is_told_with_its_words() {
    let folder = tempfile::tempdir().unwrap();
    let python = python(folder.path(), "echo 'no such module' >&2; exit 1");
    let output =
        bench(folder.path(), &format!("decoder-tiny --python {} --rounds 1 --steps 1", python.display()));
    assert_eq!(output.status.code(), Some(3));
    assert!(
        text(&output.stdout).contains("torch eager gave no result: torch eager: stopped: no such module")
    );
}

#[test]
fn what_cannot_be_done_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let output = bench(folder.path(), "decodr-small");
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("did you mean `decoder-small`?"));
    let output = bench(folder.path(), "decoder-tiny --python ./none");
    assert_eq!(output.status.code(), Some(3));
    assert!(text(&output.stderr).contains("name another one with --python, or use --alone"));
    let list = text(&bench(folder.path(), "--list").stdout);
    assert!(list.contains("decoder-130m") && list.contains("runs only when named"), "{list}");
}
