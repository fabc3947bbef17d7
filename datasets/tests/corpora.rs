//! Real text: what is embedded, and what lies in `REPLICA_DATA` if that is set.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashSet;

use proptest::prelude::*;
use replica_datasets::{
    Sources, Split, TextDataset, Tokenizer, TokenizerSpec, Unit, bucket, path, split_units, status,
};

fn embedded() -> (tempfile::TempDir, TextDataset) {
    let folder = tempfile::tempdir().unwrap();
    let data = TextDataset::load("webster-kjv", &Sources::offline(folder.path())).unwrap();
    (folder, data)
}

/// The keys of the units of a split.
fn keys(text: &str) -> Vec<&str> {
    text.split_terminator("\n\n").map(|unit| unit.lines().next().unwrap()).collect()
}

#[test]
fn embedded_text_needs_nothing_else() {
    let (folder, data) = embedded();
    assert!(data.files.iter().all(|f| f.source == "embedded" && f.verified));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "loading writes nothing");
    let sources = Sources::offline(folder.path());
    assert!(status("webster-kjv", &sources).unwrap().iter().all(|s| s.verified));
    assert!(path("webster-kjv", &sources).unwrap().iter().all(|(_, path)| path.is_none()));
}

#[test]
fn embedded_splits_partition_all_units_by_their_keys() {
    let (_folder, data) = embedded();
    let mut seen = HashSet::new();
    for (split, count) in [(Split::Train, 78_358), (Split::Valid, 4_443), (Split::Test, 4_424)] {
        let keys = keys(data.split(split).unwrap());
        assert_eq!(keys.len(), count);
        for key in keys {
            let expected = match bucket(key) {
                0 => Split::Valid,
                1 => Split::Test,
                _ => Split::Train,
            };
            assert_eq!(expected, split, "{key}");
            assert!(seen.insert(key.to_owned()), "{key} twice");
        }
    }
    // 86,036 entries and 1,189 chapters
    assert_eq!(seen.len(), 86_036 + 1_189);
}

#[test]
fn embedded_text_keeps_whole_verses() {
    let (_folder, data) = embedded();
    let all: String = Split::ALL.iter().map(|&split| data.split(split).unwrap()).collect();
    let first = "Genesis 1\nIn the beginning God created the heaven and the earth.\nAnd the earth was without form, and \
                 void; and darkness was upon the face of the deep.";
    assert!(all.contains(first));
    assert!(all.contains("\nZEQUIN\nSee Sequin.\n\n"));
    assert!(all.contains("\nAnd God said, Let there be light: and there was light.\n"));
}

proptest! {
    #[test]
    fn units_go_to_one_split_whatever_else_there_is(
        units in proptest::collection::btree_map("[a-zA-Z ]{1,12}", "[a-z\n]{0,30}", 0..40),
        turn in 0usize..40,
    ) {
        let mut units: Vec<_> = units.into_iter().map(|(key, text)| Unit { text: format!("<{key}|{text}>"), key }).collect();
        let splits = split_units(units.clone());
        for unit in &units {
            let home = match bucket(&unit.key) { 0 => 1, 1 => 2, _ => 0 };
            for (index, split) in splits.iter().enumerate() {
                prop_assert_eq!(split.matches(&unit.text).count(), usize::from(index == home));
            }
        }
        let total: usize = splits.iter().map(String::len).sum();
        prop_assert_eq!(total, units.iter().map(|unit| unit.text.len()).sum::<usize>());
        // the order of the source does not matter
        let len = units.len().max(1);
        units.rotate_left(turn % len);
        prop_assert_eq!(split_units(units), splits);
    }
}

#[test]
fn buckets_never_change() {
    // SHA-256 modulo 20, computed independently
    let known = [("ZEQUIN", 8), ("Genesis 1", 2), ("", 9)];
    for (key, expected) in known {
        assert_eq!(bucket(key), expected, "{key}");
    }
}

#[test]
fn bpe_of_the_embedded_text_compresses_it() {
    let (_folder, data) = embedded();
    let spec = TokenizerSpec::Bpe { vocab_size: 1024, train_bytes: 1 << 20, special_tokens: vec![] };
    let tokenizer = Tokenizer::prepare(&spec, data.split(Split::Train).unwrap()).unwrap();
    let test = data.split(Split::Test).unwrap();
    let ids = tokenizer.encode(test);
    assert_eq!(tokenizer.vocab_size(), 1024);
    assert!(ids.len() * 2 < test.len(), "{} tokens for {} bytes", ids.len(), test.len());
    assert_eq!(tokenizer.decode(&ids), test);
    let one_thread = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    assert_eq!(one_thread.install(|| tokenizer.encode(test)), ids);
}

/// Loads a data set from the folder that the environment names.
fn from_folder(name: &str) -> Option<TextDataset> {
    let Some(folder) = std::env::var_os("REPLICA_DATA").filter(|f| !f.is_empty()) else {
        println!("skipped: REPLICA_DATA is not set, so `{name}` is not checked");
        return None;
    };
    let cache = tempfile::tempdir().unwrap();
    let mut sources = Sources::offline(cache.path());
    sources.folder = Some(folder.into());
    let data = TextDataset::load(name, &sources).unwrap();
    assert!(data.files.iter().all(|f| f.source == "REPLICA_DATA" && f.verified));
    Some(data)
}

/// Words and one end a line, and lines.
fn counts(text: &str) -> (usize, usize) {
    (text.split_whitespace().count() + text.lines().count(), text.lines().count())
}

#[test]
fn penn_treebank_has_its_published_counts() {
    let Some(data) = from_folder("ptb") else {
        return;
    };
    assert_eq!(counts(data.split(Split::Train).unwrap()), (929_589, 42_068));
    assert_eq!(counts(data.split(Split::Valid).unwrap()), (73_760, 3_370));
    assert_eq!(counts(data.split(Split::Test).unwrap()), (82_430, 3_761));
    let types: HashSet<_> = data.split(Split::Train).unwrap().split_whitespace().collect();
    assert_eq!(types.len() + 1, 10_000, "with the end of a sentence");
}

#[test]
fn wikitext_has_its_published_counts_and_no_training_split() {
    let Some(data) = from_folder("wikitext-103-v1") else {
        return;
    };
    assert_eq!(counts(data.split(Split::Valid).unwrap()), (217_646, 3_760));
    assert_eq!(counts(data.split(Split::Test).unwrap()), (245_569, 4_358));
    let message = data.split(Split::Train).unwrap_err().to_string();
    assert!(message.contains("no train split") && message.contains("valid, test"), "{message}");
}

#[test]
fn tiny_shakespeare_is_split_at_ninety_percent() {
    let Some(data) = from_folder("tinyshakespeare") else {
        return;
    };
    let length = |split| data.split(split).unwrap().len();
    assert_eq!(length(Split::Train), 1_003_854);
    assert_eq!(length(Split::Valid) + length(Split::Test), 111_540);
    assert!(length(Split::Valid).abs_diff(length(Split::Test)) <= 1);
}

#[test]
fn war_and_peace_lacks_its_licence_text() {
    let Some(data) = from_folder("war-and-peace") else {
        return;
    };
    for split in Split::ALL {
        assert!(
            !data.split(split).unwrap().contains("*** START OF")
                && !data.split(split).unwrap().contains("*** END OF")
        );
    }
    assert!(data.split(Split::Train).unwrap().len() > 2_500_000);
}

#[test]
fn word_problems_have_their_published_counts() {
    let marks = [
        ("svamp", "\"ID\":", 1000),
        ("asdiv", "<Problem ", 2305),
        ("multiarith", "\"iIndex\":", 600),
        ("gsm-hard", "\"input\":", 1319),
        ("coin-flip", "\"question\":", 500),
        ("last-letters", "\"question\":", 500),
    ];
    for (name, mark, count) in marks {
        let Some(data) = from_folder(name) else {
            return;
        };
        assert_eq!(data.split(Split::Test).unwrap().matches(mark).count(), count, "{name}");
    }
}

#[test]
fn a_split_of_several_files_is_read_by_file() {
    for (name, mark) in [("pot-outputs", "\"generated\":"), ("bbh", "\"input\":")] {
        let Some(data) = from_folder(name) else {
            return;
        };
        let files = data.files_of(Split::Test).unwrap();
        let names: Vec<&str> = files.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, data.files.iter().map(|file| file.name.as_str()).collect::<Vec<_>>());
        let texts: String = files.iter().map(|(_, text)| *text).collect();
        assert_eq!(texts, data.split(Split::Test).unwrap());
        let found: Vec<usize> = files.iter().map(|(_, text)| text.matches(mark).count()).collect();
        match name {
            "bbh" => assert_eq!((found.len(), found.iter().sum::<usize>()), (27, 6511)),
            _ => assert_eq!(found, [1318, 1317, 999, 999, 599]),
        }
        assert!(data.files_of(Split::Train).is_err());
    }
}
