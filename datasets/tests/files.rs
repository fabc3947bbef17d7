//! Data files that are corrupted, truncated, swapped, missing: each refused, kept, and explained.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use replica_core::Digest;
use replica_datasets::{Entry, Error, Refusal, Sources, Split, TextDataset, status_entry, verify_entry};
use serde_json::json;
use tempfile::TempDir;

const TRAIN: &str = "the training text, which is long enough to be worth packing, packing, packing\n";
const TEST: &str = "the test text\n";

fn entry() -> Entry {
    let file = |name: &str, split: &str, text: &str| {
        json!({
            "name": name, "contentUrl": format!("text/{name}.gz"), "encodingFormat": "text/plain",
            "contentSize": format!("{} B", text.len()), "sha256": Digest::of(text.as_bytes()),
            "replica:format": "text", "replica:split": split, "replica:folder": format!("text/{name}.gz")
        })
    };
    let dataset = json!({
        "conformsTo": "http://mlcommons.org/croissant/1.1", "name": "some-set", "alternateName": "Some set",
        "description": "", "citeAs": "", "url": "https://example.org/some-set", "replica:licence": "none",
        "distribution": [file("train.txt", "train", TRAIN), file("test.txt", "test", TEST)]
    });
    Entry::from_croissant("some-set.json", &dataset.to_string()).unwrap()
}

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

struct Place {
    _folder: TempDir,
    data: PathBuf,
    sources: Sources,
}

fn place() -> Place {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    fs::create_dir_all(data.join("text")).unwrap();
    fs::write(data.join("text/train.txt.gz"), gzip(TRAIN)).unwrap();
    fs::write(data.join("text/test.txt.gz"), gzip(TEST)).unwrap();
    let mut sources = Sources::offline(folder.path().join("cache"));
    sources.folder = Some(data.clone());
    Place { _folder: folder, data, sources }
}

impl Place {
    fn load(&self) -> Result<TextDataset, Error> {
        TextDataset::load_entry(&entry(), &Split::ALL, &self.sources)
    }

    /// The refusal, after checking that the file stays, a copy is kept, and status agrees without keeping any.
    fn refused(&self, path: &Path) -> Refusal {
        let quarantine = self.sources.cache.join("quarantine");
        let before = fs::read(path).unwrap();
        let status = status_entry(&entry(), &self.sources).unwrap();
        assert!(status.iter().any(|s| s.path.as_deref() == Some(path) && s.problem.is_some() && !s.verified));
        assert!(!quarantine.exists(), "looking changes nothing");

        let error = self.load().unwrap_err();
        let Error::Refused { path: named, refusal, .. } = &error else { panic!("{error}") };
        assert_eq!(named, path);
        assert!(matches!(verify_entry(&entry(), &self.sources), Err(Error::Refused { .. })));
        assert_eq!(fs::read(path).unwrap(), before);
        let kept = fs::read_dir(&quarantine).unwrap().next().unwrap().unwrap().path();
        assert_eq!(fs::read(&kept).unwrap(), before);
        assert!(error.to_string().contains(kept.to_str().unwrap()), "{error}");
        (**refusal).clone()
    }
}

#[test]
fn good_files_load_packed_or_not() {
    let place = place();
    let data = place.load().unwrap();
    assert_eq!((data.split(Split::Train).unwrap(), data.split(Split::Test).unwrap()), (TRAIN, TEST));
    assert!(data.files.iter().all(|f| f.source == "REPLICA_DATA" && f.verified));

    fs::remove_file(place.data.join("text/test.txt.gz")).unwrap();
    fs::write(place.data.join("text/test.txt"), TEST).unwrap();
    fs::remove_file(place.data.join("text/train.txt.gz")).unwrap();
    fs::write(place.data.join(Digest::of(TRAIN.as_bytes()).as_str()), TRAIN).unwrap();
    assert_eq!(place.load().unwrap().files, data.files);
}

#[test]
fn split_that_is_not_there_is_named() {
    let message = place().load().unwrap().split(Split::Valid).unwrap_err().to_string();
    assert!(message.contains("no valid split") && message.contains("train, test"), "{message}");
    let some = TextDataset::load_entry(&entry(), &[Split::Test], &place().sources).unwrap();
    assert_eq!(some.files.len(), 1);
    assert!(
        some.split(Split::Train).unwrap_err().to_string().contains("not among the splits that were loaded")
    );
}

#[test]
fn corrupted_content_is_refused() {
    let place = place();
    let path = place.data.join("text/train.txt.gz");
    fs::write(&path, gzip(&TRAIN.replace("the", "thé"))).unwrap();
    let refusal = place.refused(&path);
    assert!(matches!(refusal, Refusal::Corrupted { .. }), "{refusal}");
}

#[test]
fn every_flipped_byte_is_noticed() {
    let place = place();
    let path = place.data.join("text/test.txt.gz");
    let good = gzip(TEST);
    for at in 0..good.len() {
        let mut bytes = good.clone();
        bytes[at] ^= 0x10;
        fs::write(&path, &bytes).unwrap();
        // Some bytes of a gzip header say nothing about the content, such as its time.
        match place.load() {
            Err(Error::Refused { .. }) => {}
            Ok(data) => assert_eq!(data.split(Split::Test).unwrap(), TEST),
            Err(other) => panic!("byte {at}: {other}"),
        }
    }
}

#[test]
fn truncated_archive_and_truncated_content_are_told_apart() {
    let place = place();
    let path = place.data.join("text/train.txt.gz");
    fs::write(&path, &gzip(TRAIN)[..40]).unwrap();
    let refusal = place.refused(&path);
    assert!(matches!(&refusal, Refusal::Packed { problem } if problem.contains("truncated")), "{refusal}");

    let place = self::place();
    let path = place.data.join("text/train.txt.gz");
    fs::write(&path, gzip(&TRAIN[..40])).unwrap();
    assert_eq!(place.refused(&path), Refusal::Truncated { bytes: 40, expected: TRAIN.len() as u64 });
}

#[test]
fn file_that_is_no_archive_is_refused() {
    let place = place();
    let path = place.data.join("text/train.txt.gz");
    fs::write(&path, "<html>not what you asked for</html>").unwrap();
    let refusal = place.refused(&path);
    assert!(matches!(refusal, Refusal::Packed { .. }), "{refusal}");
}

#[test]
fn swapped_files_are_recognised() {
    let place = place();
    let path = place.data.join("text/train.txt.gz");
    fs::write(&path, gzip(TEST)).unwrap();
    let expected = Refusal::Swapped { is: "test.txt".into(), file: "train.txt".into() };
    assert_eq!(place.refused(&path), expected);
}

#[test]
fn missing_file_lists_where_it_was_looked_for() {
    let place = place();
    fs::remove_file(place.data.join("text/test.txt.gz")).unwrap();
    let message = place.load().unwrap_err().to_string();
    for part in ["test.txt", "cache: ", "REPLICA_DATA: ", "text/test.txt.gz"] {
        assert!(message.contains(part), "{part} in {message}");
    }
    let nowhere = Sources::offline(place.sources.cache.clone());
    let message = TextDataset::load_entry(&entry(), &Split::ALL, &nowhere).unwrap_err().to_string();
    assert!(
        message.contains("REPLICA_DATA: not set") && message.contains("set REPLICA_DATA to a folder"),
        "{message}"
    );
}

#[test]
fn tampered_cache_file_is_moved_away_and_then_replaced() {
    let place = place();
    let digest = Digest::of(TRAIN.as_bytes());
    let cached = place.sources.cache.join("files").join(&digest.as_str()[..2]).join(digest.as_str());
    fs::create_dir_all(cached.parent().unwrap()).unwrap();
    fs::write(&cached, "rotten").unwrap();
    let error = place.load().unwrap_err();
    assert!(matches!(&error, Error::Refused { path, .. } if *path == cached), "{error}");
    assert!(!cached.exists());
    let kept = fs::read_dir(place.sources.cache.join("quarantine")).unwrap().next().unwrap().unwrap().path();
    assert_eq!(fs::read(kept).unwrap(), b"rotten");
    // the next place serves it
    assert_eq!(place.load().unwrap().files[0].source, "REPLICA_DATA");

    fs::write(&cached, TRAIN).unwrap();
    assert_eq!(place.load().unwrap().files[0].source, "cache");
}

#[test]
fn unwritable_cache_does_not_hide_what_is_wrong() {
    let place = place();
    let path = place.data.join("text/train.txt.gz");
    fs::write(&path, gzip(TEST)).unwrap();
    // A file where the folder should be: no rights can make it writable, not even root's.
    fs::write(&place.sources.cache, "").unwrap();
    let message = place.load().unwrap_err().to_string();
    assert!(message.contains("swapped") && message.contains("no copy could be kept"), "{message}");
}
