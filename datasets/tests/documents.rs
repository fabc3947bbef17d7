//! Tasks on text: what is embedded, and what lies in `REPLICA_DATA` if that is set.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{HashMap, HashSet};

use replica_datasets::tasks::{Imdb, SameChapter, Testament, WordOrder};
use replica_datasets::{Error, SequenceTask, Sequences, Sources, TaskSpec};

fn load(spec: TaskSpec) -> SequenceTask {
    let task = spec.load(&Sources::offline("nowhere")).unwrap();
    assert!(task.files.iter().all(|f| f.source == "embedded" && f.verified));
    task
}

/// A document without its end.
fn text(split: &Sequences, item: usize, document: usize) -> String {
    let (end, text) = split.document(item, document).split_last().unwrap();
    assert_eq!(*end, 255);
    String::from_utf8(text.to_vec()).unwrap()
}

fn bytes(text: &str) -> Vec<String> {
    text.chars().map(String::from).collect()
}

fn words(text: &str) -> Vec<String> {
    text.split(|c: char| !c.is_alphabetic()).filter(|w| !w.is_empty()).map(str::to_owned).collect()
}

/// The share that naive Bayes on counts of features gets right, of validation and test passages.
fn naive_bayes(task: &SequenceTask, features: fn(&str) -> Vec<String>) -> f64 {
    let mut counts: HashMap<String, [f64; 2]> = HashMap::new();
    let mut totals = [0.0; 2];
    for item in 0..task.train.len() {
        let label = task.train.label(item) as usize;
        for feature in features(&text(&task.train, item, 0)) {
            counts.entry(feature).or_insert([0.0; 2])[label] += 1.0;
            totals[label] += 1.0;
        }
    }
    let types = counts.len() as f64;
    let (mut right, mut all) = (0, 0);
    for split in [&task.valid, &task.test] {
        for item in 0..split.len() {
            let score: f64 = features(&text(split, item, 0))
                .iter()
                .filter_map(|feature| counts.get(feature))
                .map(|[a, b]| ((b + 1.0) / (totals[1] + types)).ln() - ((a + 1.0) / (totals[0] + types)).ln())
                .sum();
            right += usize::from((score > 0.0) == (split.label(item) == 1));
            all += 1;
        }
    }
    right as f64 / all as f64
}

#[test]
fn testament_is_balanced_and_not_solved_by_counting() {
    let task = load(TaskSpec::Testament(Testament { seed: 0, passage: 255 }));
    assert_eq!((task.classes, task.max_len), (2, 256));
    for split in [&task.train, &task.valid, &task.test] {
        assert!((split.majority() - 0.5).abs() < 1e-9);
    }
    assert!(task.train.len() > 4_000, "{}", task.train.len());
    let (by_bytes, by_words) = (naive_bayes(&task, bytes), naive_bayes(&task, words));
    println!("testament, naive Bayes: {by_bytes:.3} by bytes, {by_words:.3} by words");
    assert!((0.6..0.9).contains(&by_bytes), "{by_bytes}");
    assert!((0.85..0.97).contains(&by_words), "{by_words}");
}

#[test]
fn word_order_cannot_be_counted_out() {
    let task = load(TaskSpec::WordOrder(WordOrder { seed: 0, passage: 255 }));
    let pairs = |text: &str| {
        let words = words(text);
        words.windows(2).map(|pair| pair.join(" ")).collect::<Vec<_>>()
    };
    let (by_bytes, by_words, by_pairs) =
        (naive_bayes(&task, bytes), naive_bayes(&task, words), naive_bayes(&task, pairs));
    println!(
        "word order, naive Bayes: {by_bytes:.3} by bytes, {by_words:.3} by words, {by_pairs:.3} by pairs of words"
    );
    let held_out = (task.valid.len() + task.test.len()) as f64;
    for chance in [by_bytes, by_words] {
        assert!((chance - 0.5).abs() < 4.0 * 0.5 / held_out.sqrt(), "{chance}");
    }
    assert!(by_pairs > 0.8, "the order is there to be learnt: {by_pairs}");
    let all = text(&task.train, 0, 0);
    assert!(all.bytes().all(|b| b == b' ' || b.is_ascii_lowercase()), "{all}");
}

#[test]
fn chapters_are_in_one_split_and_passages_in_one_chapter() {
    let task = load(TaskSpec::SameChapter(SameChapter { seed: 0, passage: 255 }));
    assert_eq!((task.documents, task.classes), (2, 2));
    let passages = |split: &Sequences| -> HashSet<String> {
        (0..split.len()).flat_map(|i| [text(split, i, 0), text(split, i, 1)]).collect()
    };
    let (train, valid, test) = (passages(&task.train), passages(&task.valid), passages(&task.test));
    // a few stretches of the Bible stand in two chapters word for word
    assert!(train.intersection(&test).count() <= 2 && train.intersection(&valid).count() <= 2);
    for split in [&task.train, &task.valid, &task.test] {
        assert!((split.majority() - 0.5).abs() < 4.0 * 0.5 / (split.len() as f64).sqrt());
        for item in 0..split.len() {
            assert!(split.document(item, 0) != split.document(item, 1));
        }
    }
    assert!(task.test.len() > 400, "{}", task.test.len());

    // sharing words tells something, and not all
    let mut shared: Vec<(f64, bool)> = Vec::new();
    for split in [&task.valid, &task.test] {
        for item in 0..split.len() {
            let [a, b] = [0, 1].map(|d| words(&text(split, item, d)).into_iter().collect::<HashSet<_>>());
            let overlap = a.intersection(&b).count() as f64 / a.union(&b).count() as f64;
            shared.push((overlap, split.label(item) == 1));
        }
    }
    shared.sort_by(|a, b| a.0.total_cmp(&b.0));
    let half = shared.len() / 2;
    let right = shared.iter().enumerate().filter(|(rank, (_, same))| (*rank >= half) == *same).count();
    let accuracy = right as f64 / shared.len() as f64;
    println!("same chapter, by shared words: {accuracy:.3}");
    assert!((0.55..0.9).contains(&accuracy), "{accuracy}");
}

#[test]
fn seeds_decide_and_lengths_are_checked() {
    let items = |seed| load(TaskSpec::Testament(Testament { seed, passage: 127 }));
    let (a, b, c) = (items(1), items(1), items(2));
    assert_eq!(text(&a.train, 0, 0), text(&b.train, 0, 0));
    assert!((0..10).any(|i| text(&a.train, i, 0) != text(&c.train, i, 0)));
    assert_eq!(a.max_len, 128);
    let wrong = Testament { seed: 0, passage: 8 }.load(&Sources::offline("nowhere"));
    assert!(matches!(wrong, Err(Error::Task { .. })));
}

#[test]
fn specs_read_from_a_config_and_name_what_they_do_not_know() {
    let spec: TaskSpec = toml::from_str("kind = \"word-order\"\nseed = 1\npassage = 255\n").unwrap();
    assert_eq!(spec, TaskSpec::WordOrder(WordOrder { seed: 1, passage: 255 }));
    assert_eq!(spec.expected_digests().unwrap().len(), 3);
    let error = toml::from_str::<TaskSpec>("kind = \"word-order\"\nseed = 1\npasage = 255\n").unwrap_err();
    assert!(error.to_string().contains("pasage"), "{error}");
    let error = toml::from_str::<TaskSpec>("kind = \"imdbb\"\n").unwrap_err();
    assert!(error.to_string().contains("imdb"), "{error}");
}

#[test]
fn reviews_are_complete_and_cut_where_the_long_range_arena_cuts_them() {
    let Some(folder) = std::env::var_os("REPLICA_DATA").filter(|f| !f.is_empty()) else {
        println!("skipped: REPLICA_DATA is not set");
        return;
    };
    let mut sources = Sources::offline("nowhere");
    sources.folder = Some(folder.into());
    let task = Imdb { seed: 0, max_length: 4096, valid: 0 }.load(&sources).unwrap();
    assert!(task.files.iter().all(|f| f.source == "REPLICA_DATA" && f.verified));
    assert_eq!([task.train.len(), task.valid.len(), task.test.len()], [25_000; 3]);
    assert_eq!(task.max_len, 4096);
    assert!((task.train.majority() - 0.5).abs() < 1e-9 && (task.test.majority() - 0.5).abs() < 1e-9);
    let mut lengths: Vec<usize> = (0..25_000).map(|i| task.train.document(i, 0).len() - 1).collect();
    lengths.sort_unstable();
    assert_eq!(lengths[12_500], 979, "the median that is known of the training reviews");
    let cut = lengths.iter().filter(|&&length| length == 4095).count();
    assert!((600..850).contains(&cut), "{cut} reviews are cut");

    let held_out = Imdb { seed: 0, max_length: 64, valid: 5_000 }.load(&sources).unwrap();
    assert_eq!([held_out.train.len(), held_out.valid.len(), held_out.test.len()], [20_000, 5_000, 25_000]);
    let too_many = Imdb { seed: 0, max_length: 64, valid: 25_000 }.load(&sources);
    assert!(matches!(too_many, Err(Error::Task { .. })));
}
