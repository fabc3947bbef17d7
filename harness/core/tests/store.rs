//! The run store: round trips, refusals, sharing, and disks that say no.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up should panic")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};

use replica_core::record::{Environment, RECORD_VERSION};
use replica_core::store::{Entry, RunStore, Spent, StoreError};
use replica_core::trial::Role;
use replica_core::{Digest, Measurements, Record, Scale, TrialSpec};
use serde_json::json;

fn spec(seed: u64) -> TrialSpec {
    TrialSpec {
        paper: "toy".into(),
        experiment: "e".into(),
        variant: "v".into(),
        scale: Scale::Small,
        role: Role::Main,
        seed,
        backend: "cpu".into(),
        dtype: "f32".into(),
        config: json!({"learning_rate": 0.1}),
        data: BTreeMap::new(),
        code: Digest::of(b"code"),
    }
}

fn record(seed: u64, loss: f64) -> Record {
    let spec = spec(seed);
    Record {
        version: RECORD_VERSION,
        id: spec.id(),
        spec,
        measurements: Measurements { metrics: BTreeMap::from([("loss".into(), loss)]), ..Default::default() },
        environment: Environment::default(),
        started_at: 1,
        seconds: 2.5,
        peak_memory_bytes: None,
    }
}

fn path(store: &RunStore, seed: u64) -> std::path::PathBuf {
    store.folder(&spec(seed)).join("record.json")
}

#[test]
fn what_is_put_is_got() {
    let folder = tempfile::tempdir().unwrap();
    let store = RunStore::open(folder.path().join("runs")).unwrap();
    assert_eq!(store.get(&spec(1)).unwrap(), None);
    store.put(&record(1, 0.1 + 0.2)).unwrap();
    store.put(&record(2, f64::INFINITY)).unwrap();
    assert_eq!(store.get(&spec(1)).unwrap(), Some(record(1, 0.1 + 0.2)));
    assert_eq!(store.records().unwrap(), [record(1, 0.1 + 0.2), record(2, f64::INFINITY)]);
    assert!(matches!(store.begin(&spec(1)).unwrap(), Entry::Finished(r) if *r == record(1, 0.1 + 0.2)));
    let id = spec(1).id();
    let relative = format!("toy/{}/{id}/record.json", &id.as_str()[..2]);
    assert_eq!(path(&store, 1), store.root().join(relative));
    // a store that was never written is empty, and reading does not create it
    let absent = RunStore::at(folder.path().join("absent"));
    assert!(absent.records().unwrap().is_empty() && absent.get(&spec(1)).unwrap().is_none());
    assert!(!absent.root().exists());
}

#[test]
fn records_are_found_by_digits_and_by_path() {
    let folder = tempfile::tempdir().unwrap();
    let store = RunStore::open(folder.path()).unwrap();
    store.put(&record(1, 0.5)).unwrap();
    let by = |reference: &str| store.find(reference);
    assert_eq!(by(&spec(1).id().as_str()[..6]).unwrap(), record(1, 0.5));
    assert_eq!(by(path(&store, 1).to_str().unwrap()).unwrap(), record(1, 0.5));
    assert_eq!(by(store.folder(&spec(1)).to_str().unwrap()).unwrap(), record(1, 0.5));
    let message = |reference: &str| by(reference).unwrap_err().to_string();
    assert!(message("zzzz").contains("neither a file nor"));
    assert!(message("abc").contains("4 hexadecimal digits"));
    let absent = if spec(1).id().as_str().starts_with("0000") { "1111" } else { "0000" };
    assert!(message(absent).contains("names no record"));
}

/// Damages a record, and expects it to be refused, kept for inspection, and the trial to be runnable.
fn refused(damage: impl FnOnce(String) -> String, problem: &str) {
    let folder = tempfile::tempdir().unwrap();
    let store = RunStore::open(folder.path()).unwrap();
    store.put(&record(1, 0.5)).unwrap();
    let path = path(&store, 1);
    let damaged = damage(fs::read_to_string(&path).unwrap());
    fs::write(&path, &damaged).unwrap();
    assert!(store.records().unwrap().is_empty());
    let error = store.begin(&spec(1)).unwrap_err();
    assert!(matches!(error, StoreError::Refused { .. }));
    let message = error.to_string();
    assert!(message.contains(problem) && message.contains("record.refused-1.json"), "{message}");
    assert_eq!(fs::read_to_string(path.with_file_name("record.refused-1.json")).unwrap(), damaged);
    assert_eq!(store.get(&spec(1)).unwrap(), None);
    assert!(matches!(store.begin(&spec(1)).unwrap(), Entry::Claimed(_)));
    // a second refusal does not overwrite the first
    fs::write(&path, &damaged).unwrap();
    assert!(store.get(&spec(1)).unwrap_err().to_string().contains("record.refused-2.json"));
}

#[test]
fn damaged_records_are_refused() {
    refused(|json| json[..json.len() / 2].to_owned(), "not a complete record");
    refused(|_| String::new(), "not a complete record");
    refused(|_| "[]".to_owned(), "not a complete record");
    refused(|json| json.replace("\"seconds\"", "\"hours\""), "unknown field `hours`");
}

#[test]
fn records_of_another_version_or_trial_are_refused() {
    refused(|json| json.replace("\"version\": 1", "\"version\": 2"), "record format 2");
    refused(|json| json.replace("\"seed\": 1", "\"seed\": 2"), "it was edited");
    refused(|json| json.replace("0.1", "0.2"), "it was edited");
    let other = serde_json::to_string_pretty(&record(7, 0.1)).unwrap();
    refused(|_| other, "lies in the folder of");
}

#[test]
fn records_that_lie_about_themselves_are_not_stored() {
    let folder = tempfile::tempdir().unwrap();
    let store = RunStore::open(folder.path()).unwrap();
    let mut forged = record(1, 0.5);
    forged.spec.seed = 2;
    assert!(store.put(&forged).unwrap_err().to_string().contains("may not be stored"));
    let old = Record { version: RECORD_VERSION + 1, ..record(1, 0.5) };
    assert!(matches!(store.put(&old), Err(StoreError::Unfit { .. })));
    assert!(store.records().unwrap().is_empty());
}

#[test]
fn threads_never_run_a_trial_twice() {
    let folder = tempfile::tempdir().unwrap();
    let store = RunStore::open(folder.path()).unwrap();
    let (runs, barrier) = (AtomicUsize::new(0), Barrier::new(8));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                barrier.wait();
                let mut finished = 0;
                while finished < 20 {
                    finished = 0;
                    for seed in 0..20 {
                        match store.begin(&spec(seed)).unwrap() {
                            Entry::Claimed(_lease) => {
                                runs.fetch_add(1, Ordering::SeqCst);
                                store.put(&record(seed, 0.5)).unwrap();
                            }
                            Entry::Finished(_) => finished += 1,
                            Entry::Busy => std::thread::yield_now(),
                        }
                    }
                }
            });
        }
    });
    assert_eq!(runs.load(Ordering::SeqCst), 20);
}

/// Not a test of its own: the other process of the next one. Claims a trial, says so, and keeps it until told.
#[test]
fn other_process() {
    let Some(folder) = std::env::var_os("REPLICA_TEST_STORE") else { return };
    let store = RunStore::open(folder).unwrap();
    let Entry::Claimed(_lease) = store.begin(&spec(1)).unwrap() else { panic!("the trial was free") };
    println!("\nclaimed");
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    if line.trim() == "finish" {
        store.put(&record(1, 0.5)).unwrap();
    }
}

#[test]
fn processes_never_run_a_trial_twice() {
    let folder = tempfile::tempdir().unwrap();
    let store = RunStore::open(folder.path()).unwrap();
    let claimed_by_other = || {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "other_process", "--nocapture"])
            .env("REPLICA_TEST_STORE", folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(output.any(|line| line.unwrap() == "claimed"), "the other process claims the trial");
        (child, output)
    };
    // killed while it runs the trial: the lock goes with the process, and nothing is finished
    let (mut child, _output) = claimed_by_other();
    assert!(matches!(store.begin(&spec(1)).unwrap(), Entry::Busy));
    assert!(matches!(store.begin(&spec(2)).unwrap(), Entry::Claimed(_)), "other trials are free");
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(matches!(store.begin(&spec(1)).unwrap(), Entry::Claimed(_)));
    // finished by the other process
    let (mut child, _output) = claimed_by_other();
    use std::io::Write;
    child.stdin.take().unwrap().write_all(b"finish\n").unwrap();
    assert!(child.wait().unwrap().success());
    assert!(matches!(store.begin(&spec(1)).unwrap(), Entry::Finished(_)));
}

#[test]
fn a_bad_record_is_not_moved_under_the_nose_of_whoever_runs_the_trial() {
    let folder = tempfile::tempdir().unwrap();
    let store = RunStore::open(folder.path()).unwrap();
    let lease = store.claim(&spec(1)).unwrap().unwrap();
    fs::write(path(&store, 1), "{").unwrap();
    assert!(store.get(&spec(1)).unwrap_err().to_string().contains("it is still there"));
    assert!(path(&store, 1).exists());
    drop(lease);
    assert!(store.get(&spec(1)).unwrap_err().to_string().contains("moved to"));
}

#[test]
fn progress_is_kept_only_for_a_resumed_trial() {
    let folder = tempfile::tempdir().unwrap();
    let store = RunStore::open(folder.path()).unwrap();
    let lease = store.claim(&spec(1)).unwrap().unwrap();
    let spent = Spent { started_at: 7, seconds: 1.5 };
    lease.note_spent(spent).unwrap();
    fs::write(lease.checkpoints(false).unwrap().join("weights"), "w").unwrap();
    assert_eq!(lease.spent(), None, "a new start forgets the old one");
    lease.note_spent(spent).unwrap();
    assert!(lease.checkpoints(true).unwrap().join("weights").exists());
    assert_eq!(lease.spent(), Some(spent));
    assert!(!lease.checkpoints(false).unwrap().join("weights").exists());
    lease.discard_progress().unwrap();
    assert!(!lease.folder().join("checkpoint").exists());
}

#[test]
fn a_folder_that_cannot_be_written_is_a_clear_error() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("runs");
    fs::write(&file, "a file").unwrap();
    let message = RunStore::open(&file).unwrap_err().to_string();
    assert!(
        message.contains("cannot write") && message.contains("a file stands where a folder"),
        "{message}"
    );
    // a file where the trial's folder should be: rights do not bind root, this does
    let store = RunStore::open(folder.path().join("store")).unwrap();
    fs::write(store.root().join("toy"), "a file").unwrap();
    assert!(matches!(store.put(&record(1, 0.5)), Err(StoreError::Write { .. })));
    assert!(matches!(store.begin(&spec(1)), Err(StoreError::Write { .. })));
    assert_eq!(fs::read_to_string(store.root().join("toy")).unwrap(), "a file");
}

#[cfg(unix)]
#[test]
fn a_read_only_folder_can_be_read_and_not_written() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let store = RunStore::open(folder.path()).unwrap();
    store.put(&record(1, 0.5)).unwrap();
    let trial = store.folder(&spec(1));
    fs::set_permissions(&trial, fs::Permissions::from_mode(0o555)).unwrap();
    if fs::write(trial.join("probe"), "").is_ok() {
        println!("skipped: rights do not bind this user (root)");
        return;
    }
    assert_eq!(store.get(&spec(1)).unwrap(), Some(record(1, 0.5)));
    let message = store.put(&record(1, 0.6)).unwrap_err().to_string();
    assert!(message.contains("may not be written"), "{message}");
    assert_eq!(store.get(&spec(1)).unwrap(), Some(record(1, 0.5)));
    fs::set_permissions(&trial, fs::Permissions::from_mode(0o755)).unwrap();
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_leaves_nothing_half_written() {
    let folder = tempfile::tempdir().unwrap();
    let mount = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=256k", "tmpfs"])
        .arg(folder.path())
        .stderr(Stdio::null())
        .status();
    if !mount.is_ok_and(|status| status.success()) {
        println!("skipped: no right to mount a small tmpfs");
        return;
    }
    struct Unmount<'a>(&'a std::path::Path);
    impl Drop for Unmount<'_> {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg(self.0).status();
        }
    }
    let _unmount = Unmount(folder.path());
    let store = RunStore::open(folder.path()).unwrap();
    store.put(&record(1, 0.5)).unwrap();
    let mut large = record(1, 0.6);
    large.measurements.notes.push("x".repeat(1 << 20));
    let message = store.put(&large).unwrap_err().to_string();
    assert!(message.contains("the disk is full"), "{message}");
    assert_eq!(store.get(&spec(1)).unwrap(), Some(record(1, 0.5)), "the old record stands");
    let left = fs::read_dir(store.folder(&spec(1))).unwrap().count();
    assert_eq!(left, 1, "no temporary file stays");
}
