//! The catalogue's files: complete, strict, and valid Croissant.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use replica_datasets::{Entry, Error, HubKind, Split, catalogue, expected_digests};
use serde_json::{Value, json};

fn files() -> Vec<(String, Value)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("catalogue");
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|file| {
            let path = file.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            (name, serde_json::from_slice(&fs::read(&path).unwrap()).unwrap())
        })
        .collect();
    files.sort_by(|(a, _), (b, _)| a.cmp(b));
    files
}

#[test]
fn every_file_is_an_entry_of_its_name() {
    let mut entries: Vec<_> = catalogue().entries.iter().map(|e| e.name.clone()).collect();
    entries.sort();
    assert_eq!(files().into_iter().map(|(name, _)| name).collect::<Vec<_>>(), entries);
    assert_eq!(catalogue().entries[0].name, "webster-kjv");
}

#[test]
fn files_are_croissant() {
    let prefixes =
        |context: &Value| -> BTreeSet<String> { context.as_object().unwrap().keys().cloned().collect() };
    for (name, file) in files() {
        for key in ["name", "description", "license", "citeAs", "url"] {
            assert!(!file[key].is_null(), "{name}: {key}");
        }
        assert_eq!(file["name"], name);
        assert_eq!(file["@type"], "sc:Dataset");
        assert_eq!(file["conformsTo"], "http://mlcommons.org/croissant/1.1");
        assert!(
            prefixes(&file["@context"])
                .is_superset(&["cr", "sc", "dct", "replica", "citeAs"].map(String::from).into())
        );
        let live = file["isLiveDataset"] == true;
        let objects = file["distribution"].as_array().unwrap();
        let ids: BTreeSet<_> = objects.iter().map(|o| o["@id"].as_str().unwrap()).collect();
        assert_eq!(ids.len(), objects.len(), "{name}: identifiers are unique");
        for object in objects {
            assert_eq!(object["@type"], "cr:FileObject");
            for key in ["name", "contentUrl", "encodingFormat"] {
                assert!(object[key].is_string(), "{name}: {key}");
            }
            // Croissant allows to leave the checksum out only where the data is live.
            let known = object["sha256"].is_string();
            assert!(known || live, "{name}: {}", object["@id"]);
            assert!(known != (object["replica:trustOnFirstUse"] == true), "{name}: {}", object["@id"]);
            if let Some(container) = object["containedIn"]["@id"].as_str() {
                assert!(ids.contains(container));
            }
        }
    }
}

#[test]
fn unknown_data_set_lists_the_known() {
    let message = catalogue().get("wikitext").unwrap_err().to_string();
    assert!(message.contains("`wikitext`") && message.contains("webster-kjv, ptb"), "{message}");
}

#[test]
fn digests_are_known_without_loading() {
    assert_eq!(expected_digests("ptb").unwrap().len(), 3);
    assert_eq!(expected_digests("webster-kjv").unwrap().keys().next().unwrap(), "webster-kjv.test.txt");
    assert!(matches!(expected_digests("pile-uncopyrighted"), Err(Error::NoPublishedDigest { .. })));
}

#[test]
fn checkpoints_have_what_a_model_is_made_from() {
    for name in ["codet5-small", "codet5-base", "codet5-large", "t5-small"] {
        let entry = catalogue().model(name).unwrap();
        assert!(entry.splits().is_empty());
        let hub: Vec<_> = entry.files.iter().map(|file| file.hub.as_ref().unwrap()).collect();
        assert!(hub.iter().all(|hub| hub.kind == HubKind::Model && hub.revision.len() == 40), "{name}");
        let has = |path: &str| hub.iter().any(|hub| hub.path == path);
        assert!(
            has("config.json") && (has("tokenizer.json") || has("vocab.json") && has("merges.txt")),
            "{name}"
        );
        assert!(has("model.safetensors") || has("pytorch_model.bin"), "{name}");
        for file in &entry.files {
            let hub = file.hub.as_ref().unwrap();
            assert_eq!(file.folder.as_deref(), Some(format!("models/{name}/{}", hub.path).as_str()));
        }
    }
    let message = catalogue().model("gsm8k").unwrap_err().to_string();
    assert!(message.contains("`gsm8k`") && message.contains("codet5-small, codet5-base"), "{message}");
}

#[test]
fn word_level_wikitext_has_no_training_split() {
    assert_eq!(catalogue().get("wikitext-103-v1").unwrap().splits(), [Split::Valid, Split::Test]);
    assert_eq!(catalogue().get("tinyshakespeare").unwrap().splits(), Split::ALL);
}

/// An entry with one change to its file.
fn read(change: impl Fn(&mut Value)) -> Result<Entry, String> {
    let mut dataset = json!({
        "conformsTo": "http://mlcommons.org/croissant/1.1", "name": "x", "alternateName": "X", "description": "",
        "citeAs": "", "url": "", "replica:licence": "",
        "distribution": [{
            "name": "x.txt", "contentUrl": "https://example.org/x.txt", "contentSize": "3 B",
            "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            "replica:split": "train", "replica:format": "text"
        }]
    });
    change(&mut dataset);
    Entry::from_croissant("x.json", &dataset.to_string()).map_err(|e| e.to_string())
}

#[test]
fn mistakes_in_a_file_are_named() {
    type Change = fn(&mut Value);
    assert!(read(|_| {}).is_ok());
    // a digest without a size is enough; neither, or a size alone, is not
    let no_size: Change = |d| drop(d["distribution"][0].as_object_mut().unwrap().remove("contentSize"));
    assert_eq!(read(no_size).unwrap().files[0].bytes, None);
    let cases: [(Change, &[&str]); 9] = [
        (
            |d| drop(d["distribution"][0].as_object_mut().unwrap().remove("sha256")),
            &["x.txt", "sha256", "size alone"],
        ),
        (|d| d["distribution"][0]["sha256"] = json!("abc"), &["abc", "64"]),
        (|d| d["distribution"][0]["contentSize"] = json!("3 MB"), &["contentSize", "3 MB"]),
        (|d| d["distribution"][0]["replica:format"] = json!("csv"), &["csv", "allowed", "parquet"]),
        (|d| d["distribution"][0]["replica:format"] = json!("parquet"), &["replica:column"]),
        (|d| d["distribution"][0]["replica:splt"] = json!("train"), &["replica:splt", "replica:split"]),
        (|d| d["distribution"][0]["replica:split"] = json!("dev"), &["dev", "valid"]),
        (
            |d| d["distribution"][0]["replica:percent"] = json!({"train": 1, "valid": 1, "test": 1}),
            &["exactly one"],
        ),
        (|d| d["conformsTo"] = json!("http://mlcommons.org/croissant/1.0"), &["conformsTo", "1.1"]),
    ];
    for (change, parts) in cases {
        let message = read(change).unwrap_err();
        assert!(message.starts_with("catalogue/x.json: "), "{message}");
        assert!(parts.iter().all(|part| message.contains(part)), "{parts:?} in {message}");
    }
}
