//! ListOps against the Long Range Arena's generator: the same expressions, values and statistics.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashSet;

use proptest::prelude::*;
use replica_core::Digest;
use replica_datasets::tasks::{ListOps, expressions};
use replica_datasets::{Error, Inputs, Sequences, Sources, Split, TextDataset};
use serde_json::Value;

fn reference() -> Value {
    replica_oracle::json(&replica_oracle::folder("smr").join("listops.json"))
}

fn tokens(split: &Sequences, item: usize) -> Vec<u8> {
    let (eos, tokens) = split.document(item, 0).split_last().unwrap();
    assert_eq!(expressions::VOCABULARY[usize::from(*eos)], "<eos>");
    tokens.to_vec()
}

#[test]
fn expressions_of_the_reference_have_its_tokens_ids_and_values() {
    let reference = reference();
    assert_eq!(reference["vocab"], serde_json::json!(expressions::VOCABULARY));
    let mut cases = 0;
    for part in ["edge_cases", "short", "long"] {
        for case in reference[part].as_array().unwrap() {
            let source = case["source"].as_str().unwrap();
            let tokens = expressions::read(source).unwrap();
            assert_eq!(expressions::write(&tokens), case["tokens"].as_str().unwrap(), "{source}");
            assert_eq!(tokens.len() as u64, case["n_tokens"].as_u64().unwrap(), "{source}");
            assert_eq!(
                u64::from(expressions::value(&tokens).unwrap()),
                case["value"].as_u64().unwrap(),
                "{source}"
            );
            let ids: Vec<u8> = expressions::ids(&tokens).collect();
            assert_eq!(serde_json::json!(ids), case["ids"], "{source}");
            cases += 1;
        }
    }
    assert!(cases > 70, "only {cases} cases");
}

/// |got - want| in units of the standard error of their difference.
fn deviation(got: f64, got_n: f64, want: f64, want_n: f64) -> f64 {
    let variance = |p: f64, n: f64| p * (1.0 - p) / n;
    (got - want).abs() / (variance(got, got_n) + variance(want, want_n)).sqrt()
}

#[test]
fn statistics_agree_with_the_reference_within_four_standard_errors() {
    let stats = &reference()["stats"];
    let number = |key: &str| stats[key].as_f64().unwrap();
    let reference_trees = number("accepted");
    let task = ListOps { seed: 7, train: 4000, valid: 0, test: 0, ..ListOps::full() }.generate().unwrap();
    let trees = task.train.len();
    let lengths: Vec<f64> = (0..trees).map(|i| (task.train.document(i, 0).len() - 1) as f64).collect();
    let n = trees as f64;
    let mean = lengths.iter().sum::<f64>() / n;
    let std = (lengths.iter().map(|l| (l - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt();
    let error = (std.powi(2) / n + number("len_std").powi(2) / reference_trees).sqrt();
    assert!((mean - number("len_mean")).abs() < 4.0 * error, "mean length {mean}");
    // the standard error of a standard deviation, for tails no heavier than the normal's
    let error = (std.powi(2) / (2.0 * n) + number("len_std").powi(2) / (2.0 * reference_trees)).sqrt();
    assert!((std - number("len_std")).abs() < 4.0 * error, "standard deviation of the length {std}");
    assert!(lengths.iter().all(|&l| l > 500.0 && l < 2000.0));
    for (quantile, at) in stats["len_quantiles"].as_object().unwrap() {
        let share = lengths.iter().filter(|&&l| l < at.as_f64().unwrap()).count() as f64 / n;
        let quantile: f64 = quantile.parse().unwrap();
        if (0.01..0.99).contains(&quantile) {
            let off = deviation(share, n, quantile, reference_trees);
            assert!(off < 4.0, "{share} of the lengths lie below the reference's {quantile} quantile");
        }
    }
    for (label, want) in stats["label_freq"].as_object().unwrap() {
        let label: u32 = label.parse().unwrap();
        let got = (0..trees).filter(|&i| task.train.label(i) == label).count() as f64 / n;
        let off = deviation(got, n, want.as_f64().unwrap(), reference_trees);
        assert!(off < 4.0, "label {label}: {got} against {want}");
    }
    let mut counts = [0usize; 18];
    (0..trees).for_each(|i| tokens(&task.train, i).iter().for_each(|&t| counts[usize::from(t)] += 1));
    let total: f64 = lengths.iter().sum();
    for (token, want) in stats["token_freq"].as_object().unwrap() {
        let id = expressions::VOCABULARY.iter().position(|t| t == token).unwrap();
        let (got, want) = (counts[id] as f64 / total, want.as_f64().unwrap());
        // tokens of one tree hang together less than this allows for: 1 in 4 counts as independent
        let off = deviation(got, total / 4.0, want, reference_trees * number("len_mean") / 4.0);
        assert!(off < 4.0, "token {token}: {got} against {want}");
    }
}

#[test]
fn mini_set_is_the_published_one_on_any_number_of_threads() {
    let generate = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| ListOps::mini().generate().unwrap())
    };
    let task = generate(1);
    assert_eq!(task.files, generate(5).files);
    assert_eq!(task.files[0].sha256.as_str(), ListOps::mini().published_digest().unwrap());
    assert!(task.files[0].verified);
    assert_eq!([task.train.len(), task.valid.len(), task.test.len()], [10_000, 1_000, 1_000]);

    // the digest is that of the lines that anyone can write down
    let mut text = String::new();
    let mut distinct = HashSet::new();
    for split in [&task.train, &task.valid, &task.test] {
        for item in 0..split.len() {
            let tokens = tokens(split, item);
            assert!((20..=100).contains(&tokens.len()));
            let value = expressions::value(&tokens).unwrap();
            assert_eq!(u32::from(value), split.label(item));
            text += &format!("{}\t{value}\n", expressions::write(&tokens));
            assert!(distinct.insert(tokens), "no tree twice, whatever the split");
        }
        text.push('\n');
    }
    assert_eq!(Digest::of(text.as_bytes()), task.files[0].sha256);
    assert!(task.train.majority() < 0.25, "{}", task.train.majority());
}

#[test]
#[ignore = "100,000 trees, 4 s and 0.5 GB: cargo test -p replica-datasets --test listops -- --ignored"]
fn full_set_is_the_published_one() {
    let task = ListOps::full().generate().unwrap();
    assert_eq!(task.files[0].sha256.as_str(), ListOps::full().published_digest().unwrap());
    assert_eq!([task.train.len(), task.valid.len(), task.test.len()], [96_000, 2_000, 2_000]);
}

#[test]
fn parameters_without_trees_are_refused() {
    let narrow = ListOps { min_length: 5000, max_length: 5002, max_depth: 2, ..ListOps::mini() };
    let message = narrow.generate().unwrap_err().to_string();
    assert!(message.contains("listops") && message.contains("5002"), "{message}");
    assert!(matches!(ListOps { max_args: 1, ..ListOps::mini() }.generate(), Err(Error::Task { .. })));
}

#[test]
fn malformed_expressions_are_refused() {
    for source in ["", "[MIN 1", "1 2", "[MIN X", "X", "[MIN 1 X 2"] {
        assert!(expressions::value(&expressions::read(source).unwrap()).is_err(), "{source}");
    }
    let message = expressions::read("[MIN 1 12 ]").unwrap_err().to_string();
    assert!(message.contains("`12`"), "{message}");
    assert!(expressions::read("<eos>").is_err());
}

proptest! {
    #[test]
    fn value_of_one_operator(operator in 0usize..4, digits in proptest::collection::vec(0u8..10, 1..12)) {
        let source = format!("{} {} ]", ["[MIN", "[MAX", "[MED", "[SM"][operator],
            digits.iter().map(u8::to_string).collect::<Vec<_>>().join(" "));
        let mut sorted = digits.clone();
        sorted.sort_unstable();
        let middle = f64::from(sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2]) / 2.0;
        let want = [
            sorted[0],
            sorted[sorted.len() - 1],
            middle as u8,
            (digits.iter().map(|&d| u32::from(d)).sum::<u32>() % 10) as u8,
        ];
        prop_assert_eq!(expressions::value(&expressions::read(&source).unwrap()).unwrap(), want[operator]);
    }
}

#[test]
fn batches_hold_what_the_split_holds() {
    let task = ListOps { train: 50, valid: 3, test: 3, ..ListOps::mini() }.generate().unwrap();
    assert_eq!(task.files[0].source, "generated");
    assert!(!task.files[0].verified, "no digest is published for these sizes");
    let batch = task.train.batch(&[7, 7, 2], Some(128));
    let Inputs::Tokens(ids) = &batch.inputs else { panic!("tokens") };
    assert_eq!((batch.width, batch.lengths[0]), (128, batch.lengths[1]));
    assert_eq!(ids[..128], ids[128..256]);
    assert!(ids[batch.lengths[0]..128].iter().all(|&id| id == 0));
}

/// The lines of a file in the folder that the environment names, cut at the tab.
fn from_folder(name: &str) -> Vec<(String, String)> {
    let Some(folder) = std::env::var_os("REPLICA_DATA").filter(|f| !f.is_empty()) else {
        println!("skipped: REPLICA_DATA is not set, so `{name}` is not checked");
        return Vec::new();
    };
    let mut sources = Sources::offline("nowhere");
    sources.folder = Some(folder.into());
    let data = TextDataset::load(name, &sources).unwrap();
    let lines = data.split(Split::Test).unwrap().lines();
    lines
        .map(|line| {
            let (left, right) = line.split_once('\t').unwrap();
            (left.to_owned(), right.to_owned())
        })
        .collect()
}

#[test]
fn trees_of_the_long_range_arena_have_their_values_and_lengths() {
    let lines = from_folder("lra-listops-sample");
    if let Some((header, lines)) = lines.split_first() {
        assert_eq!(header, &("Source".to_owned(), "Target".to_owned()));
        assert_eq!(lines.len(), 600);
        for (source, target) in lines {
            let tokens = expressions::read(source).unwrap();
            assert_eq!(expressions::value(&tokens).unwrap().to_string(), *target, "{source}");
            assert!((501..2000).contains(&tokens.len()), "{} tokens", tokens.len());
        }
    }
}

#[test]
fn trees_of_nangia_and_bowman_have_their_values() {
    let lines = from_folder("listops-nb2018-test");
    assert!(lines.is_empty() || lines.len() == 10_000);
    for (value, source) in lines {
        assert_eq!(
            expressions::value(&expressions::read(&source).unwrap()).unwrap().to_string(),
            value,
            "{source}"
        );
    }
}
