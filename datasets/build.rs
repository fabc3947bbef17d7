//! Embeds the default text.
//!
//! The texts come from two crates that are optional dependencies behind the feature `corpora`, which
//! nobody enables: cargo pins and fetches them but never compiles them. `cargo metadata` says where
//! they lie; their text files are checked against the catalogue, cut into units, split, checked again
//! and packed into `OUT_DIR`. Nothing of this is needed at run time.

use std::env;
use std::error::Error;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use sha2::{Digest as _, Sha256};

#[path = "src/corpora.rs"]
mod corpora;
#[path = "src/unit.rs"]
#[allow(dead_code, reason = "the library uses all of it")]
mod unit;

const CATALOGUE: &str = "catalogue/webster-kjv.json";

fn main() {
    if let Err(error) = embed() {
        eprintln!("\nreplica-datasets cannot embed its default text: {error}\n");
        std::process::exit(1);
    }
}

fn embed() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(env::var("OUT_DIR")?);
    for watched in ["build.rs", "Cargo.toml", "../Cargo.lock", "catalogue", "src/corpora.rs", "src/unit.rs"] {
        println!("cargo::rerun-if-changed={watched}");
    }

    let catalogue: Value = serde_json::from_str(&fs::read_to_string(root.join(CATALOGUE))?)?;
    let metadata = cargo_metadata(&root)?;
    let mut units = corpora::dictionary(&member(&catalogue, &metadata, "dictionary.json")?)?;
    units.extend(corpora::bible(&member(&catalogue, &metadata, "kjv.txt")?)?);

    let embedded =
        catalogue["replica:embedded"].as_array().ok_or("the catalogue has no `replica:embedded`")?;
    for (text, split) in unit::split_units(units).iter().zip(["train", "valid", "test"]) {
        let entry = embedded
            .iter()
            .find(|e| e["split"] == split)
            .ok_or_else(|| format!("{CATALOGUE}: `replica:embedded` has no split `{split}`"))?;
        let (expected, actual) = (string(entry, "sha256")?, hex_digest(text.as_bytes()));
        if expected != actual {
            return Err(format!(
                "the {split} split has the SHA-256 {actual}, but {CATALOGUE} says {expected}: \
                 the parsers in src/corpora.rs changed, or the catalogue did; make them agree"
            )
            .into());
        }
        let path = out.join(format!("{}.gz", string(entry, "name")?));
        let mut encoder =
            flate2::write::GzEncoder::new(fs::File::create(path)?, flate2::Compression::default());
        encoder.write_all(text.as_bytes())?;
        encoder.finish()?;
    }
    Ok(())
}

/// The text of a file inside one of the crates, verified.
fn member(catalogue: &Value, metadata: &Value, id: &str) -> Result<String, Box<dyn Error>> {
    let file = catalogue["distribution"]
        .as_array()
        .and_then(|files| files.iter().find(|f| f["@id"] == id))
        .ok_or_else(|| format!("{CATALOGUE} has no file `{id}`"))?;
    let source = &file["replica:crate"];
    let (name, version) = (string(source, "name")?, string(source, "version")?);
    let manifest = metadata["packages"]
        .as_array()
        .and_then(|packages| packages.iter().find(|p| p["name"] == name && p["version"] == version))
        .ok_or_else(|| {
            format!("cargo metadata does not list {name} {version}; run `cargo fetch --locked`")
        })?;
    let manifest = Path::new(string(manifest, "manifest_path")?);
    let path = manifest.with_file_name(string(source, "member")?);
    println!("cargo::rerun-if-changed={}", path.display());

    let bytes = fs::read(&path).map_err(|e| {
        format!("cannot read {}: {e}; remove that folder and run `cargo fetch --locked`", path.display())
    })?;
    let (expected, actual) = (string(file, "sha256")?, hex_digest(&bytes));
    if expected != actual {
        return Err(format!(
            "{} was changed: its SHA-256 is {actual}, expected {expected}; remove the folder {} and run \
             `cargo fetch --locked`",
            path.display(),
            manifest.parent().unwrap_or(manifest).display(),
        )
        .into());
    }
    Ok(String::from_utf8(bytes)?)
}

/// First without network: after `cargo fetch`, or any earlier build, everything is here. A plain
/// `cargo build` does not download optional dependencies that are switched off, so the second try may.
fn cargo_metadata(root: &Path) -> Result<Value, Box<dyn Error>> {
    let mut complaints = String::new();
    for offline in [true, false] {
        let mut command = Command::new(env::var("CARGO")?);
        command.arg("metadata").arg("--manifest-path").arg(root.join("Cargo.toml"));
        command.args(["--features", "corpora", "--filter-platform", &env::var("TARGET")?]);
        command.args(["--locked", "--format-version", "1"]);
        if offline {
            command.arg("--offline");
        }
        let output = command.output()?;
        if output.status.success() {
            return Ok(serde_json::from_slice(&output.stdout)?);
        }
        complaints = String::from_utf8_lossy(&output.stderr).into_owned();
    }
    Err(format!(
        "cargo could not fetch the two crates it comes from.\nRun `cargo fetch --locked` once while the crate \
         registry can be reached, then build again.\ncargo said:\n{complaints}"
    )
    .into())
}

fn string<'a>(value: &'a Value, key: &str) -> Result<&'a str, String> {
    value[key].as_str().ok_or_else(|| format!("`{key}` is missing or not a string in {value}"))
}

fn hex_digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
