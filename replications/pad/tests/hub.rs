//! Checkpoints of the hub, served by a local server that plays it. The files in `codet5/` have CodeT5's published form: no
//! `tokenizer.json`, no safetensors.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../../datasets/tests/server/mod.rs"]
#[allow(dead_code, reason = "the tests of replica-datasets use all of it")]
mod server;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use replica_core::replication::ConfigFile;
use replica_core::trial::Silent;
use replica_core::{Plan, Replication, Scale, TrialError, TrialSpec, conformance};
use replica_datasets::Sources;
use replica_pad::Pad;
use replica_pad::checkpoint::{Checkpoint, CheckpointError};
use replica_pad::exec::WorkerCommand;
use server::{Answer, Server, file};

/// What the catalogue says of the base model; it has no digests for it, so that any files will do.
const REPOSITORY: &str = "/Salesforce/codet5-base/resolve/4078456db09ba972a3532827a0b5df4da172323c/";

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/codet5")
}

/// Plays the hub with the files of the folder for whatever repository is asked.
fn hub() -> Server {
    Server::start(|request| {
        let name = request.path.rsplit('/').next().unwrap_or_default();
        match std::fs::read(folder().join(name)) {
            Ok(body) if name != "make.py" => file(request, &body),
            _ => Answer::Reply(404, vec![], vec![]),
        }
    })
}

fn sources(cache: &Path, endpoint: &str) -> Sources {
    let mut sources = Sources::offline(cache);
    sources.offline = false;
    sources.retries = 0;
    sources.retry_pause = Duration::ZERO;
    sources.hub.endpoint = Some(endpoint.to_owned());
    sources.hub.cache = Some(cache.join("hub"));
    sources
}

fn pad(sources: Sources) -> Pad {
    let worker = WorkerCommand { program: env!("CARGO_BIN_EXE_pad-worker").into(), arguments: Vec::new() };
    Pad::new(Arc::new(sources), worker)
}

/// The first study of scale `smoke` with a student that starts from the checkpoint, stopped early.
fn plan(pad: &Pad, student: &str) -> Result<Plan, String> {
    let smoke = include_str!("../configs/smoke.toml");
    let (head, rest) = smoke.split_once("[study.student]").unwrap();
    let (_, rest) = rest.split_once("[study.lesson]").unwrap();
    let rest = rest.split("\n[[study]]").next().unwrap();
    let rest =
        rest.replace("steps = 40", "steps = 12\npatience = 2").replace("eval_every = 20", "eval_every = 2");
    let text = format!(
        "{head}[study.student]\nkind = \"checkpoint\"\nsource_tokens = 64\n{student}\n[study.lesson]{rest}"
    );
    let file = ConfigFile { path: "codet5.toml".to_owned(), text };
    pad.plan(Scale::Smoke, Some(&file)).map_err(|e| e.to_string())
}

fn spec(pad: &Pad, student: &str) -> TrialSpec {
    conformance::spec(pad, &plan(pad, student).unwrap(), "arithmetic", "program", 1)
}

#[test]
fn pickled_weights_and_two_files_of_tokens_are_a_checkpoint() {
    let Checkpoint { config, weights, tokens, used } = Checkpoint::read(&folder()).unwrap();
    assert_eq!((config.d_model, config.eos_token_id, config.tie_word_embeddings), (4, 2, true));
    // as make.py computes them; the copies of the embedding are gone
    let mut names: Vec<&String> = weights.keys().collect();
    names.sort();
    assert_eq!(names.len(), 1 + 10 + 15, "{names:?}");
    assert!(!names.iter().any(|name| name.contains("embed_tokens") || name.contains("lm_head")));
    assert_eq!(weights["shared.weight"].dims(), [config.vocab_size, 4]);
    for (name, tensor) in &weights {
        let values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let length = name.len();
        for (i, value) in values.iter().enumerate() {
            assert_eq!(*value, ((7 * i + 5 * length) % 31) as f32 / 64.0 - 15.0 / 64.0, "{name} at {i}");
        }
    }
    // RoBERTa's ids; merges are applied, a blank belongs to the word after it, and text comes back
    let program = "def solution():\n    the = 3\n    return the";
    let (ids, cut) = tokens.sequence(&[program], 64);
    assert_eq!((ids[0], *ids.last().unwrap(), tokens.pad(), cut), (1, 2, 0, false));
    let the = tokens.encode(" the");
    assert_eq!((the.len(), ids.iter().filter(|id| **id == the[0]).count()), (1, 2));
    assert_eq!(tokens.decode(&ids), program);
    let names: Vec<&str> = used.iter().map(|file| file.name.as_str()).collect();
    assert_eq!(
        names,
        ["codet5/config.json", "codet5/vocab.json", "codet5/merges.txt", "codet5/pytorch_model.bin"]
    );
}

#[test]
fn a_student_starts_from_a_checkpoint_of_the_hub() {
    let (server, cache) = (hub(), tempfile::tempdir().unwrap());
    let pad = pad(sources(cache.path(), &server.url()));
    let spec = spec(&pad, "model = \"codet5-base\"");
    let measured = conformance::run_silently(&pad, &spec, 1);
    let mut asked: Vec<String> =
        server.requests().iter().map(|r| r.path.replacen(REPOSITORY, "", 1)).collect();
    asked.sort();
    assert_eq!(asked, ["config.json", "merges.txt", "pytorch_model.bin", "vocab.json"]);
    let used: Vec<_> = measured.data.iter().filter(|d| d.name.starts_with("codet5-base.")).collect();
    assert_eq!(used.len(), 4);
    assert!(used.iter().all(|d| d.source == "hub" && !d.verified && d.licence == "Apache-2.0"));
    // early stopping is recorded
    let metric = |name: &str| measured.metrics[name];
    assert_eq!(metric("steps"), measured.trace.0.len() as f64);
    assert!(metric("best_step") <= metric("steps"));
    let valid = &measured.curves["valid_loss"];
    let best = valid.y.iter().copied().fold(f64::INFINITY, f64::min);
    assert_eq!(metric("valid_loss"), best, "the student that is examined is that of the best validation");
    assert_eq!(valid.x.len() as f64, metric("steps") / 2.0);

    // what is in the cache is not asked for again, and gives the same bits
    let offline = self::pad(Sources::offline(cache.path()));
    let again = conformance::run_silently(&offline, &spec, 2);
    assert_eq!(again.trace.first_difference(&measured.trace), None);
    assert_eq!(again.metrics, measured.metrics);
    assert_eq!(server.requests().len(), 4);
}

#[test]
fn files_that_are_not_what_the_catalogue_says_are_refused() {
    let (server, cache) = (hub(), tempfile::tempdir().unwrap());
    let Err(error) = Checkpoint::fetch("codet5-small", &sources(cache.path(), &server.url())) else {
        panic!("the digests of the small model are published")
    };
    assert!(matches!(&error, CheckpointError::Data(replica_datasets::Error::Refused { .. })), "{error}");
}

#[test]
fn without_the_hub_a_trial_fails_or_is_left_out() {
    let cache = tempfile::tempdir().unwrap();
    let run = |student: &str| {
        // nothing listens there
        let pad = pad(sources(cache.path(), "http://127.0.0.1:1"));
        let spec = spec(&pad, student);
        let run = || conformance::run(&pad, &spec, 1, None, &Silent, &AtomicBool::new(false)).unwrap_err();
        let errors = [run(), run()];
        assert_eq!(errors[0].to_string(), errors[1].to_string());
        let [error, _] = errors;
        error
    };
    let needed = run("model = \"codet5-base\"");
    assert!(matches!(needed, TrialError::Data(_)), "{needed}");
    let optional = run("model = \"codet5-base\"\noptional = true");
    assert!(matches!(optional, TrialError::Unavailable(_)), "{optional}");
    for error in [needed.to_string(), optional.to_string()] {
        let parts = [
            "codet5-base.config.json",
            "http://127.0.0.1:1",
            REPOSITORY,
            "REPLICA_DATA",
            "models/codet5-base/config.json",
        ];
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    }
}

#[test]
fn a_student_says_where_its_checkpoint_is() {
    let pad = pad(Sources::offline(std::env::temp_dir().join("replica-pad-no-cache")));
    let error = |student: &str| plan(&pad, student).unwrap_err();
    let unknown = error("model = \"codet6\"");
    assert!(unknown.contains("codet5.toml") && unknown.contains("codet5-small, codet5-base"), "{unknown}");
    for both in ["", "model = \"codet5-base\"\npath = \"models/mine\""] {
        assert!(
            error(both).contains("one of model (a checkpoint of the catalogue) and path"),
            "{}",
            error(both)
        );
    }
    let spec = spec(&pad, "model = \"codet5-small\"");
    assert!(
        spec.data.contains_key("codet5-small.pytorch_model.bin"),
        "published digests are part of a trial's identity"
    );
}
