//! What students are taught and how they are read: filters, targets, traces, checkpoints.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use candle_core::{DType, Device};
use replica_core::trial::Silent;
use replica_core::{Seed, TrialContext};
use replica_datasets::Sources;
use replica_nn::Parameters;
use replica_nn::t5::{T5, T5Config};
use replica_pad::checkpoint::Checkpoint;
use replica_pad::exam::{Decoding, Exam, LineScorer, LineScores, Retry, examine};
use replica_pad::exec::{Limits, Pool, WorkerCommand, trace};
use replica_pad::lesson::{Filter, Lesson, Problems, Repair, Target};
use replica_pad::source::{Library, Purpose, Source};
use replica_pad::student::{Beginner, Shape, Start, Student, teach};
use replica_train::Recipe;

fn pool() -> Pool {
    let command = WorkerCommand { program: env!("CARGO_BIN_EXE_pad-worker").into(), arguments: Vec::new() };
    Pool::new(command, 2, Limits::default()).unwrap()
}

fn library() -> Library {
    Library::new(Arc::new(Sources::offline(std::env::temp_dir().join("replica-pad-no-cache"))))
}

fn lesson() -> Lesson {
    let source = Source::Templates { only: Vec::new(), factor: 1 };
    Lesson { valid: 5, ..Lesson::of_programs(source, 60) }
}

#[test]
fn filters_keep_what_they_say() {
    let (library, pool) = (library(), pool());
    let prepare = |lesson: Lesson| lesson.prepare(Seed(4), &library, &pool).unwrap();
    let right = prepare(lesson());
    assert_eq!((right.pairs.len(), right.funnel.accepted, right.valid.len()), (60, 60, 5));
    let spoilt = Lesson { corrupted: 0.5, ..lesson() };
    let filtered = prepare(spoilt.clone());
    assert_eq!(filtered.pairs.len(), filtered.funnel.accepted);
    assert!((20..45).contains(&filtered.pairs.len()), "{:?}", filtered.funnel);
    // what the filter keeps is what was never made wrong, or what gives the gold answer all the same
    assert!(
        filtered.pairs.iter().filter(|pair| right.pairs.contains(pair)).count() >= filtered.pairs.len() - 3
    );
    let kept = prepare(Lesson { filter: Filter::None, ..spoilt.clone() });
    assert_eq!((kept.pairs.len(), kept.funnel), (60, filtered.funnel));
    let few = prepare(Lesson { filter: Filter::SameSize, ..spoilt });
    assert_eq!(few.pairs, kept.pairs[..filtered.pairs.len()]);
    let sources = |prepared: &replica_pad::lesson::Prepared| -> Vec<Vec<String>> {
        prepared.pairs.iter().map(|pair| pair.source.clone()).collect()
    };
    for target in [Target::Chain, Target::Answer] {
        let other = prepare(Lesson { target, ..lesson() });
        assert_eq!(sources(&other), sources(&right), "all arms have the same questions");
        assert!(other.pairs.iter().all(|pair| pair.target.contains("#### ")));
    }
}

#[test]
fn several_programs_are_different_and_right() {
    let (library, pool) = (library(), pool());
    let prepared = Lesson { programs: 4, ..lesson() }.prepare(Seed(4), &library, &pool).unwrap();
    assert_eq!(prepared.funnel.accepted, prepared.funnel.offered);
    assert!(prepared.pairs.len() > 150, "{}", prepared.pairs.len());
    let mut texts: Vec<_> = prepared.pairs.iter().map(|pair| (&pair.source, &pair.target)).collect();
    texts.sort();
    texts.dedup();
    assert_eq!(texts.len(), prepared.pairs.len());
}

#[test]
fn repairs_show_the_interpreters_message_only_where_it_is_asked_for() {
    let (library, pool) = (library(), pool());
    let prepare = |repair| {
        let lesson = Lesson { repair: Some(repair), ..lesson() };
        lesson.prepare(Seed(4), &library, &pool).unwrap().pairs.split_off(60)
    };
    let (told, released) = (prepare(Repair::Message), prepare(Repair::Released));
    let kinds: Vec<&str> = told[..3].iter().map(|pair| pair.source[2].split(':').next().unwrap()).collect();
    assert_eq!(kinds, ["NameError", "UnboundLocalError", "SyntaxError"]);
    assert!(told.iter().all(|pair| pair.source.len() == 3 && pair.source[1] != pair.target));
    assert!(released.iter().all(|pair| pair.source.len() == 2));
}

#[test]
fn traces_show_what_every_line_gave() {
    let programs = [
        "def solution():\n    \n    have = 3\n    more = have * 2  # twice\n    result = have + more\n    return result",
        "def solution():\n    total = 0\n    for i in range(3):\n        total += i\n    return total",
        "def solution():\n    a = 1\n    b = a + missing\n    return b",
        "def solution()\n    return 1",
        "x = 'no function'",
    ];
    let notes = |i: usize| -> Vec<Option<String>> {
        trace(&pool(), &programs).unwrap()[i].iter().map(|step| step.value.clone()).collect()
    };
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(notes(0), [None, None, some("3"), some("6"), some("9"), some("9")]);
    assert_eq!(notes(1), [None, some("0"), None, some("0, 1, 3"), some("3")]);
    let name_error = some("NameError: name 'missing' is not defined");
    assert_eq!(notes(2), [None, some("1"), name_error, None]);
    assert!(notes(3)[0].as_ref().unwrap().starts_with("SyntaxError"), "{:?}", notes(3));
    assert!(notes(4)[0].as_ref().unwrap().contains("solution"), "{:?}", notes(4));
}

/// A student that writes programs of two templates, and fails on others.
fn student(lesson: &Lesson) -> Student {
    let recipe: Recipe = toml::from_str(
        "steps = 250\nbatch_size = 8\nseq_len = 64\nlearning_rate = 0.01\nwarmup_steps = 10\nbeta1 = 0.9\nbeta2 = 0.999\n\
         eps = 1e-8\nweight_decay = 0.0\nclip_norm = 1.0\neval_every = 250\neval_blocks = 0",
    )
    .unwrap();
    let shape =
        Shape { layers: 1, width: 32, heads: 2, inner: 64, dropout: 0.0, fewest: 1, source_tokens: 192 };
    let lessons = lesson.prepare(Seed(4), &library(), &pool()).unwrap();
    let cancel = AtomicBool::new(false);
    let device = replica_core::trial::Device::Cpu;
    let context = TrialContext { device, progress: &Silent, cancel: &cancel, checkpoints: None };
    let start = Start::Scratch(shape);
    let trained =
        teach(&start, Beginner::New(shape), &recipe, &lessons, Seed(4), &context, &Device::Cpu).unwrap();
    Student::restored(&recipe, &trained, &Device::Cpu).unwrap()
}

/// What decides how a student answers does decide it.
#[test]
fn answers_follow_the_decoding() {
    let of = |names: &[&str]| Source::Templates {
        only: names.iter().map(|&name| name.to_owned()).collect(),
        factor: 1,
    };
    let lesson = Lesson { source: of(&["boxes", "age"]), repair: Some(Repair::Message), ..lesson() };
    let (student, library, pool) = (student(&lesson), library(), pool());
    let graded = |names: &[&str], decoding: Decoding| {
        let source = of(names);
        let problems = library.problems(&source, Purpose::Test, 24, Seed(1)).unwrap();
        let exam = Exam { id: "x".to_owned(), label: String::new(), source, count: 24 };
        let graded = examine(&student, &exam, &problems, (Target::Program, &decoding), &pool, 24).unwrap();
        let metrics: HashMap<String, f64> = graded.metrics.into_iter().collect();
        (metrics, graded.transcripts)
    };
    let known = |decoding| graded(&["boxes", "age"], decoding).1;
    let scored = |weight, scorer| Decoding {
        beams: 3,
        verification: Some(LineScores { weight, scorer }),
        ..Decoding::default()
    };
    let beams = known(Decoding { beams: 3, ..Decoding::default() });
    assert_eq!(known(scored(0.0, LineScorer::Encoder)), beams, "weight 0 is plain beam search");
    let (random, encoder) =
        (known(scored(20.0, LineScorer::Random)), known(scored(20.0, LineScorer::Encoder)));
    assert_ne!(random, beams);
    assert_ne!(random, encoder, "the scorer matters");

    let unknown = |rounds, retry| {
        let decoding = Decoding { beams: 3, rounds, retry, ..Decoding::default() };
        graded(&["two-goods", "saving", "rows", "tank", "profit", "distance"], decoding)
    };
    let (once, _) = unknown(0, Retry::Message);
    let mut texts = Vec::new();
    for retry in [Retry::Message, Retry::Silent, Retry::Candidate] {
        let (again, transcripts) = unknown(2, retry);
        assert_eq!(again["first_executed_x"], once["executed_x"], "{retry:?}");
        assert!(again["executed_x"] > once["executed_x"], "{retry:?}: {again:?}");
        texts.push(transcripts);
    }
    assert!(
        texts[0] != texts[1] && texts[1] != texts[2],
        "each kind of retry shows the student something else"
    );
}

const TOKENIZER: &str = r#"{"version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
 "added_tokens": [
  {"id": 0, "content": "<pad>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true},
  {"id": 1, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true},
  {"id": 2, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
 "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
 "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
 "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
  "vocab": {"<pad>": 0, "<s>": 1, "</s>": 2, "a": 3, "b": 4, "Ġ": 5, "Ċ": 6, "ab": 7}, "merges": [["a", "b"]]}}"#;

#[test]
fn checkpoints_are_read_as_the_hub_has_them() {
    let folder = tempfile::tempdir().unwrap();
    let error = |folder: &std::path::Path| Checkpoint::read(folder).err().unwrap().to_string();
    assert!(error(folder.path()).contains("config.json") && error(folder.path()).contains("codet5-small"));
    let json = r#"{"vocab_size": 8, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2,
        "eos_token_id": 2, "pad_token_id": 0, "decoder_start_token_id": 0, "bos_token_id": 1}"#;
    std::fs::write(folder.path().join("config.json"), json).unwrap();
    assert!(error(folder.path()).contains("there are no weights"));
    let config = T5Config::from_json(json).unwrap();
    let parameters = Parameters::new(Seed(1), DType::F32, &Device::Cpu);
    T5::new(&config, parameters.builder()).unwrap();
    let mut weights: HashMap<String, candle_core::Tensor> =
        parameters.all().into_iter().map(|(name, var)| (name, var.as_tensor().clone())).collect();
    // as published: copies of the embedding under other names
    weights.insert("encoder.embed_tokens.weight".to_owned(), weights["shared.weight"].clone());
    candle_core::safetensors::save(&weights, folder.path().join("model.safetensors")).unwrap();
    assert!(error(folder.path()).contains("there is neither it nor vocab.json"));
    let large = TOKENIZER.replace("\"ab\": 7", "\"ab\": 8");
    std::fs::write(folder.path().join("tokenizer.json"), large).unwrap();
    assert!(error(folder.path()).contains("it has 9 ids, but config.json says vocab_size = 8"));
    std::fs::write(folder.path().join("tokenizer.json"), TOKENIZER).unwrap();
    let read = Checkpoint::read(folder.path()).unwrap();
    assert_eq!(read.config, config);
    assert_eq!(read.weights.len(), parameters.all().len());
    assert_eq!(read.tokens.sequence(&["ab\n", "b"], 9), (vec![1, 7, 6, 2, 4, 2], false));
    assert_eq!(read.tokens.sequence(&["abab"], 3), (vec![1, 7, 2], true));
    assert_eq!(read.tokens.decode(&[1, 7, 6, 3, 2]), "ab\na");
}
