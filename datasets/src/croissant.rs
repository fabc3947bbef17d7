//! Reading a Croissant file into a catalogue entry.
//!
//! Properties of Croissant itself are read where they say enough; what the loader needs beyond them
//! stands under the prefix `replica:`, where a misspelt key is an error.

use replica_core::Digest;
use serde::Deserialize;
use serde_json::Value;

use crate::catalogue::{Entry, FileEntry, Format, HubFile, Percent};
use crate::{Error, Split};

const CONFORMS_TO: &str = "http://mlcommons.org/croissant/1.1";
const DATASET_KEYS: [&str; 2] = ["replica:licence", "replica:embedded"];
const FILE_KEYS: [&str; 10] = [
    "replica:split",
    "replica:percent",
    "replica:format",
    "replica:column",
    "replica:folder",
    "replica:hub",
    "replica:crate",
    "replica:unpacked",
    "replica:maxTextBytes",
    "replica:trustOnFirstUse",
];

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Dataset {
    conforms_to: String,
    name: String,
    alternate_name: String,
    description: String,
    cite_as: String,
    url: String,
    #[serde(rename = "replica:licence")]
    licence: String,
    #[serde(rename = "replica:embedded", default)]
    embedded: Vec<Embedded>,
    distribution: Vec<FileObject>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Embedded {
    name: String,
    split: Split,
    sha256: Digest,
    bytes: u64,
    #[serde(default = "text")]
    format: String,
}

fn text() -> String {
    "text".to_owned()
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct FileObject {
    name: String,
    content_url: String,
    content_size: Option<String>,
    sha256: Option<Digest>,
    #[serde(rename = "replica:split")]
    split: Option<Split>,
    #[serde(rename = "replica:percent")]
    percent: Option<Percent>,
    #[serde(rename = "replica:format")]
    format: Option<String>,
    #[serde(rename = "replica:column")]
    column: Option<String>,
    #[serde(rename = "replica:folder")]
    folder: Option<String>,
    #[serde(rename = "replica:hub")]
    hub: Option<HubFile>,
    #[serde(rename = "replica:unpacked")]
    unpacked: Option<Unpacked>,
    #[serde(rename = "replica:maxTextBytes")]
    max_text_bytes: Option<u64>,
    #[serde(rename = "replica:trustOnFirstUse", default)]
    first_use: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Unpacked {
    name: String,
    sha256: Digest,
    bytes: u64,
}

pub(crate) fn parse(label: &str, json: &str) -> Result<Entry, Error> {
    read(json).map_err(|problem| Error::Catalogue { file: label.to_owned(), problem })
}

fn read(json: &str) -> Result<Entry, String> {
    let value: Value = serde_json::from_str(json).map_err(|e| e.to_string())?;
    check_keys(&value, &DATASET_KEYS)?;
    for file in value["distribution"].as_array().into_iter().flatten() {
        check_keys(file, &FILE_KEYS)?;
    }
    let dataset: Dataset = serde_json::from_value(value).map_err(|e| e.to_string())?;
    if dataset.conforms_to != CONFORMS_TO {
        return Err(format!("`conformsTo` is `{}`; only `{CONFORMS_TO}` is read", dataset.conforms_to));
    }

    let origins: Vec<String> = dataset.distribution.iter().map(|f| f.content_url.clone()).collect();
    let mut files = Vec::new();
    for embedded in dataset.embedded {
        files.push(FileEntry {
            format: match embedded.format.as_str() {
                "text" => Format::Text,
                "binary" => Format::Binary,
                other => {
                    let name = &embedded.name;
                    return Err(format!(
                        "file `{name}`: `format` is `{other}`; allowed are `text`, `binary`"
                    ));
                }
            },
            name: embedded.name,
            urls: origins.iter().filter(|url| url.contains(':')).cloned().collect(),
            sha256: Some(embedded.sha256),
            bytes: Some(embedded.bytes),
            split: Some(embedded.split),
            percent: None,
            folder: None,
            hub: None,
            first_use: false,
            embedded: true,
        });
    }
    // A file without a format is an origin, such as an archive: named for provenance, never loaded.
    for file in dataset.distribution {
        if let Some(format) = file.format.clone() {
            files.push(loadable(file, &format)?);
        }
    }
    if files.is_empty() {
        return Err("no file has a `replica:format`, so nothing can be loaded".to_owned());
    }
    Ok(Entry {
        name: dataset.name,
        title: dataset.alternate_name,
        description: dataset.description,
        licence: dataset.licence,
        citation: dataset.cite_as,
        url: dataset.url,
        files,
    })
}

fn loadable(file: FileObject, format: &str) -> Result<FileEntry, String> {
    let named = |problem: &str| format!("file `{}`: {problem}", file.name);
    let column = || file.column.clone().ok_or_else(|| named("`replica:column` is missing"));
    let format = match format {
        "text" => Format::Text,
        "gutenberg" => Format::Gutenberg,
        "parquet" => Format::Parquet { column: column()? },
        "binary" => Format::Binary,
        "model" => Format::Model,
        "jsonl.zst" => Format::JsonLinesZstd { column: column()?, max_text_bytes: file.max_text_bytes },
        other => {
            return Err(named(&format!(
                "`replica:format` is `{other}`; allowed are `text`, `gutenberg`, `parquet`, `jsonl.zst`, `binary`, `model`"
            )));
        }
    };
    match (file.split, file.percent) {
        (Some(_), None) => {}
        (None, None) if format == Format::Model => {}
        (None, Some(p)) if p.train + p.valid + p.test == 100 => {}
        (None, Some(_)) => return Err(named("the parts of `replica:percent` must add up to 100")),
        _ => {
            return Err(named("exactly one of `replica:split` and `replica:percent` is expected"));
        }
    }
    let bytes = match &file.content_size {
        None => None,
        Some(size) => {
            Some(size.strip_suffix(" B").and_then(|digits| digits.parse().ok()).ok_or_else(|| {
                named(&format!("`contentSize` is `{size}`; a number of bytes such as `1234 B` is expected"))
            })?)
        }
    };
    // Where the published file is packed, what counts is the text inside: it may lie about packed anew.
    let (name, sha256, bytes) = match file.unpacked {
        Some(unpacked) => (unpacked.name, Some(unpacked.sha256), Some(unpacked.bytes)),
        None => (file.name.clone(), file.sha256, bytes),
    };
    if sha256.is_none() && !file.first_use {
        return Err(format!(
            "file `{name}` has no `sha256`, so it could never be verified: state it (its size alone does not do), or \
             set `replica:trustOnFirstUse` where none is published"
        ));
    }
    Ok(FileEntry {
        name,
        urls: vec![file.content_url],
        sha256,
        bytes,
        split: file.split,
        percent: file.percent,
        format,
        folder: file.folder,
        hub: file.hub,
        first_use: file.first_use,
        embedded: false,
    })
}

fn check_keys(object: &Value, allowed: &[&str]) -> Result<(), String> {
    let unknown = object
        .as_object()
        .into_iter()
        .flat_map(|map| map.keys())
        .find(|key| key.starts_with("replica:") && !allowed.contains(&key.as_str()));
    match unknown {
        Some(key) => Err(format!("unknown key `{key}`; allowed here are {}", allowed.join(", "))),
        None => Ok(()),
    }
}
