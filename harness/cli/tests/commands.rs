//! Every command with a paper in memory: what it prints, and its exit code.
#![allow(clippy::unwrap_used, reason = "a test that cannot be set up should panic")]

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use replica_cli::Streams;
use replica_core::fixture::Toy;
use replica_core::{Replication, TrialError};
use serde_json::Value;

#[derive(Clone, Default)]
struct Text(Arc<Mutex<Vec<u8>>>);

impl Write for Text {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Text {
    fn string(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

struct Bench {
    folder: tempfile::TempDir,
}

struct Output {
    code: u8,
    out: String,
    err: String,
}

impl Output {
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {}\n{}", self.out, self.err))
    }
}

impl Bench {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn run_with(&self, toy: Toy, line: &str) -> Output {
        let registry: Vec<Box<dyn Replication>> = vec![Box::new(toy)];
        let (out, err) = (Text::default(), Text::default());
        let folder = |option: &str, name: &str| [OsString::from(option), self.path(name).into()];
        let args = ["replica".into()]
            .into_iter()
            .chain(line.split_whitespace().map(OsString::from))
            .chain(folder("--runs", "runs"))
            .chain(folder("--golden", "golden"))
            .chain(folder("--site", "site"));
        let code = replica_cli::run(args, &registry, &mut Streams::to(out.clone(), err.clone()));
        Output { code, out: out.string(), err: err.string() }
    }

    fn run(&self, line: &str) -> Output {
        self.run_with(Toy::default(), line)
    }
}

fn files(folder: &Path) -> usize {
    fs::read_dir(folder).map_or(0, Iterator::count)
}

#[test]
fn run_judges_reports_and_runs_nothing_twice() {
    let bench = Bench::new();
    let first = bench.run("run toy");
    assert_eq!(first.code, 0, "{}", first.err);
    assert!(first.out.contains("lower-loss  reproduced"), "{}", first.out);
    assert!(first.out.contains("placement: better vs base, test_loss  +5.0"), "{}", first.out);
    assert!(first.out.contains("the data is not public"), "{}", first.out);
    assert!(first.out.contains("22 trials run, 0 had been run before, 0 failed"), "{}", first.out);
    assert!(first.out.contains("report: ") && bench.path("site/index.html").exists());
    assert_eq!(first.err.lines().filter(|l| l.starts_with("start ")).count(), 22);
    assert_eq!(first.err.lines().filter(|l| l.starts_with("done ")).count(), 22);
    assert!(first.err.contains("select  placement/base: learning_rate 0.1"));
    assert!(!first.out.contains('\x1b') && !first.err.contains('\x1b'), "no colour without a terminal");

    let second = bench.run("run toy --quiet");
    assert!(second.out.contains("0 trials run, 22 had been run before"), "{}", second.out);
    assert_eq!(second.err, "");
}

#[test]
fn a_part_can_be_run() {
    let bench = Bench::new();
    let part = bench.run("run toy/facts/better --json");
    assert_eq!(part.code, 0, "{}", part.err);
    assert_eq!(part.json()["finished"], 1);
    let verdicts = &part.json()["papers"][0]["verdicts"];
    assert_eq!(
        (&verdicts[0]["outcome"], &verdicts[1]["outcome"]),
        (&"not-tested".into(), &"reproduced".into())
    );
    let named = bench.run("run toy/extra --json");
    assert_eq!(named.json()["finished"], 2, "what runs on request only");
    let seeds = bench.run("run toy/placement --seeds 5 --jobs 2 --threads 2 --json");
    assert_eq!(seeds.json()["finished"], 8 + 10);
}

#[test]
fn unknown_names_are_usage_errors_with_a_suggestion() {
    let bench = Bench::new();
    for (line, message) in [
        ("run tay", "error: unknown paper `tay`; did you mean `toy`? (known: toy)"),
        ("run toy/placment", "error: unknown experiment of toy `placment`; did you mean `placement`?"),
        ("run toy/facts/beter", "error: unknown variant of toy/facts `beter`; did you mean `better`?"),
        ("run toy/facts/worst", "error: unknown variant of toy/facts `worst`; known: base, better"),
        ("list toy/", "PAPER/EXPERIMENT or PAPER/EXPERIMENT/VARIANT is expected"),
        ("run toy --scale huge", "possible values: smoke, small, gpu, paper"),
        ("run toy --scale paper", "error: toy has no configuration for scale `paper`"),
        ("run toy --device tpu", "unknown device `tpu`; cpu, cuda or cuda:N is expected"),
        ("run toy --device cuda:x", "`x` is not a device index"),
        ("run toy --seeds 0", "invalid value '0'"),
        ("run --config x.toml", "--config belongs to one paper"),
        ("check toy/facts/base", "goldens cover whole experiments"),
        ("diff 12 34", "neither a file nor the beginning of a record's id"),
        ("data list nothing", "nothing"),
    ] {
        let output = bench.run(line);
        assert_eq!(output.code, 2, "{line}: {}", output.err);
        assert!(output.err.contains(message), "{line}: {}", output.err);
        assert_eq!(output.out, "", "{line}");
    }
    assert_eq!(files(&bench.path("runs")), 0);
}

#[test]
fn a_device_that_is_not_there_is_an_environment_error() {
    let output = Bench::new().run("run toy --device cuda:99");
    assert_eq!(output.code, 3);
    assert!(output.err.contains("error: device cuda:99: "), "{}", output.err);
    assert!(output.err.contains("or use --device cpu"), "{}", output.err);
}

#[test]
fn configurations_are_checked() {
    let bench = Bench::new();
    let with = |text: &str| {
        fs::write(bench.path("my.toml"), text).unwrap();
        bench.run(&format!("run toy/facts --json --config {}", bench.path("my.toml").display()))
    };
    assert_eq!(with("steps = 1\nlearning_rate = 0.1").json()["finished"], 2);
    let negative = with("steps = 1\nlearning_rate = -0.1");
    assert_eq!(negative.code, 2);
    assert!(negative.err.contains("my.toml: learning_rate = -0.1: a number above 0"), "{}", negative.err);
    let unknown = with("steps = 1\nlearning_rate = 0.1\nmomentum = 1");
    assert!(unknown.code == 2 && unknown.err.contains("unknown field `momentum`"), "{}", unknown.err);
    let absent = bench.run("run toy --config absent.toml");
    assert!(
        absent.code == 3 && absent.err.contains("cannot read the configuration absent.toml"),
        "{}",
        absent.err
    );
}

#[test]
fn failing_trials_set_the_exit_code() {
    let bench = Bench::new();
    let diverging = Toy::with_hook(Box::new(|spec, step| {
        if spec.experiment == "facts" && spec.variant == "base" {
            Err(TrialError::NonFinite { step, what: "loss".into(), value: f32::NAN, learning_rate: 0.05 })
        } else {
            Ok(())
        }
    }));
    let output = bench.run_with(diverging, "run toy");
    assert_eq!(output.code, 1);
    assert!(output.err.contains("failed  toy/facts/base seed 0"), "{}", output.err);
    assert!(output.err.contains("loss is NaN at step 0: training diverged"), "{}", output.err);
    assert!(output.err.contains("1 trials failed"), "{}", output.err);
    assert!(output.out.contains("lower-loss  reproduced"), "the others were judged: {}", output.out);

    let no_data = Toy::with_hook(Box::new(|_, _| Err(TrialError::Data("train.txt is damaged".into()))));
    let output = Bench::new().run_with(no_data, "run toy/facts --quiet");
    assert_eq!(output.code, 3);
    assert!(
        output.err.contains("data: train.txt is damaged"),
        "problems are shown even when quiet: {}",
        output.err
    );
}

#[test]
fn a_trial_that_is_left_out_is_no_failure() {
    let toy = || {
        Toy::with_hook(Box::new(|spec, _| match spec.experiment.as_str() {
            "facts" => Err(TrialError::Unavailable("no hub at http://127.0.0.1:1".into())),
            _ => Ok(()),
        }))
    };
    let output = Bench::new().run_with(toy(), "run toy --quiet");
    assert_eq!(output.code, 0, "{}", output.err);
    assert_eq!(output.err.matches("no hub at http://127.0.0.1:1").count(), 1, "said once: {}", output.err);
    assert!(output.err.contains("left out toy/facts/"), "{}", output.err);
    assert!(output.out.contains("0 failed, 2 left out"), "{}", output.out);
    let json = Bench::new().run_with(toy(), "run toy/facts --json").json();
    assert_eq!((json["left_out"].as_array().unwrap().len(), &json["finished"]), (2, &0.into()));
}

#[test]
fn an_interrupted_run_says_how_to_go_on() {
    let bench = Bench::new();
    let stopped = Toy::with_hook(Box::new(|spec, step| match step {
        1 if spec.variant == "better" => Err(TrialError::Interrupted),
        _ => Ok(()),
    }));
    let output = bench.run_with(stopped, "run toy/facts");
    assert_eq!(output.code, 130);
    assert!(output.err.contains("--resume"), "{}", output.err);
    let resumed = bench.run("run toy/facts --resume --json");
    assert_eq!((&resumed.json()["finished"], &resumed.json()["already_run"]), (&1.into(), &1.into()));
}

#[test]
fn a_run_folder_that_cannot_be_written_is_an_environment_error() {
    let bench = Bench::new();
    fs::write(bench.path("runs"), "a file").unwrap();
    let output = bench.run("run toy");
    assert_eq!(output.code, 3);
    assert!(output.err.contains("a file stands where a folder is needed"), "{}", output.err);
    let doctor = bench.run("doctor --json");
    assert_eq!(doctor.code, 3);
    let findings = doctor.json()["findings"].clone();
    let of = |what: &str| findings.as_array().unwrap().iter().find(|f| f["what"] == what).unwrap().clone();
    assert_eq!(of("run folder")["state"], "problem");
    assert!(of("run folder")["advice"].as_str().unwrap().contains("--runs DIR"));
}

#[test]
fn list_shows_the_state_of_every_variant() {
    let bench = Bench::new();
    let before = bench.run("list");
    assert_eq!(before.code, 0);
    assert!(before.out.contains("0 of 24 trials have been run"), "{}", before.out);
    assert!(!bench.path("runs").exists(), "looking creates nothing");
    bench.run("run toy/placement");
    let list = bench.run("list toy --json").json();
    let base = &list["papers"][0]["experiments"][0]["variants"][0];
    assert_eq!(
        (&base["tuning"]["run"], &base["main"]["run"], &base["main"]["planned"]),
        (&4.into(), &3.into(), &3.into())
    );
    assert_eq!(base["records"].as_array().unwrap().len(), 3);
    assert_eq!(list["papers"][0]["claims"][0]["outcome"], "reproduced");
    let part = bench.run("list toy/facts/better").out;
    assert!(part.contains("facts") && !part.contains("placement "), "{part}");
}

#[test]
fn bless_proposes_and_check_compares() {
    let bench = Bench::new();
    let nothing = bench.run("check");
    assert!(nothing.code == 1 && nothing.err.contains("nothing was compared"), "{}", nothing.err);
    let too_early = bench.run("bless toy/facts");
    assert!(too_early.code == 1 && too_early.err.contains("has not been run"), "{}", too_early.err);

    bench.run("run toy");
    let proposal = bench.run("bless");
    assert_eq!(proposal.code, 0, "{}", proposal.err);
    assert!(proposal.out.contains("+  \"experiment\": \"placement\","), "{}", proposal.out);
    assert!(proposal.out.contains("2 goldens would change; --write writes them"));
    assert!(!bench.path("golden").exists());
    assert_eq!(bench.run("bless --write").code, 0);
    assert_eq!(files(&bench.path("golden/toy")), 2);
    assert!(bench.run("bless").out.contains("no golden would change"));
    let agrees = bench.run("check");
    assert_eq!(agrees.code, 0, "{}{}", agrees.out, agrees.err);
    assert!(agrees.out.contains("toy/placement  agrees"), "{}", agrees.out);
    assert!(agrees.out.contains("times and memory are shown, not compared"), "{}", agrees.out);
    assert_eq!(bench.run("check --json").json()["agree"], 2);

    let path = bench.path("golden/toy/placement.small.cpu.json");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("2.02", "2.2").replace("2.01", "2.2").replace("2.03", "2.2")).unwrap();
    let differs = bench.run("check");
    assert_eq!(differs.code, 1);
    assert!(differs.out.contains("base: test_loss moved from 2.2 to 2.02"), "{}", differs.out);
    assert!(differs.err.contains("1 of 2 experiments differ"), "{}", differs.err);
    fs::write(&path, "{").unwrap();
    let damaged = bench.run("check");
    assert!(damaged.code == 3 && damaged.err.contains("placement.small.cpu.json"), "{}", damaged.err);
}

#[test]
fn too_few_seeds_are_not_blessed() {
    let bench = Bench::new();
    bench.run("run toy/placement --seeds 2");
    let output = bench.run("bless toy/placement --seeds 2");
    assert_eq!(output.code, 1);
    assert!(output.err.contains("at least 3 are needed"), "{}", output.err);
}

#[test]
fn diff_finds_what_differs() {
    let bench = Bench::new();
    bench.run("run toy/facts");
    let list = bench.run("list toy/facts --json").json();
    let id = |variant: usize| {
        let record = &list["papers"][0]["experiments"][1]["variants"][variant]["records"][0];
        record["id"].as_str().unwrap()[..16].to_owned()
    };
    let (base, better) = (id(0), id(1));
    let output = bench.run(&format!("diff {base} {better}"));
    assert_eq!(output.code, 0);
    assert!(
        output.out.contains("method: base -> better") && output.out.contains("parameters: 100.0 -> 80.0"),
        "{}",
        output.out
    );
    assert!(output.out.contains("the same at every step"), "{}", output.out);
    assert!(bench.run(&format!("diff {base} {base}")).out.contains("no difference"));
    assert_eq!(bench.run(&format!("diff {base} {better} --json")).json()["config"][0]["what"], "method");
}

#[test]
fn reports_keep_a_history() {
    let bench = Bench::new();
    bench.run("run toy --quiet");
    let history = bench.path("history.jsonl");
    let line = format!("report --history {}", history.display());
    assert_eq!(bench.run(&line).code, 0);
    assert_eq!(bench.run(&line).code, 0);
    let text = fs::read_to_string(&history).unwrap();
    assert_eq!(text.lines().count(), 6, "three claims, twice");
    assert!(text.lines().all(|l| serde_json::from_str::<Value>(l).is_ok()));
    fs::write(&history, "not json\n").unwrap();
    let damaged = bench.run(&line);
    assert!(damaged.code == 3 && damaged.err.contains("line 1"), "{}", damaged.err);
}

#[test]
fn a_damaged_record_is_shown_and_run_again() {
    let bench = Bench::new();
    bench.run("run toy/facts");
    let list = bench.run("list toy/facts --json").json();
    let id = list["papers"][0]["experiments"][1]["variants"][0]["records"][0]["id"].as_str().unwrap();
    let path = bench.path("runs").join("toy").join(&id[..2]).join(id).join("record.json");
    fs::write(&path, "{").unwrap();
    let output = bench.run("run toy/facts --json");
    assert_eq!((output.code, &output.json()["finished"]), (0, &1.into()));
    assert!(output.err.contains("refused") && output.err.contains("record.refused-1.json"), "{}", output.err);
}

#[test]
fn data_commands_know_the_catalogue() {
    let bench = Bench::new();
    let list = bench.run("data list --json");
    assert_eq!(list.code, 0, "{}", list.err);
    let sets = list.json()["datasets"].as_array().unwrap().len();
    assert!(sets >= 2);
    let embedded = bench.run("data verify webster-kjv --json");
    assert_eq!(embedded.code, 0, "{}", embedded.err);
    let files = embedded.json()["datasets"][0]["files"].clone();
    assert!(files.as_array().unwrap().iter().all(|f| f["verified"] == true));
    assert!(bench.run("data list webster-kjv").out.contains("verified (embedded)"));
}
