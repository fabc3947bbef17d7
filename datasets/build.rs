//! Embeds the default text and images.
//!
//! They come from three crates that are optional dependencies behind the feature `corpora`, which
//! nobody enables: cargo pins and fetches them but never compiles them. `cargo metadata` says where
//! they lie; their data files are checked against the catalogue, the texts cut into units, split and
//! checked again, and all packed into `OUT_DIR`. Nothing of this is needed at run time.

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

const TEXT: &str = "catalogue/webster-kjv.json";
const DIGITS: &str = "catalogue/optdigits.json";

fn main() {
    if let Err(error) = embed() {
        eprintln!("\nreplica-datasets cannot embed its default data: {error}\n");
        std::process::exit(1);
    }
}

fn embed() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(env::var("OUT_DIR")?);
    for watched in ["build.rs", "Cargo.toml", "../Cargo.lock", "catalogue", "src/corpora.rs", "src/unit.rs"] {
        println!("cargo::rerun-if-changed={watched}");
    }

    let metadata = cargo_metadata(&root)?;
    let text = Entry::read(&root, TEXT)?;
    let utf8 =
        |id: &str| -> Result<String, Box<dyn Error>> { Ok(String::from_utf8(text.member(&metadata, id)?)?) };
    let mut units = corpora::dictionary(&utf8("dictionary.json")?)?;
    units.extend(corpora::bible(&utf8("kjv.txt")?)?);
    for (content, split) in unit::split_units(units).iter().zip(["train", "valid", "test"]) {
        text.pack(&out, split, content.as_bytes())?;
    }
    let digits = Entry::read(&root, DIGITS)?;
    digits.pack(&out, "test", &digits.member(&metadata, "digits.xy")?)
}

/// A file of the catalogue.
struct Entry {
    file: &'static str,
    json: Value,
}

impl Entry {
    fn read(root: &Path, file: &'static str) -> Result<Self, Box<dyn Error>> {
        Ok(Self { file, json: serde_json::from_str(&fs::read_to_string(root.join(file))?)? })
    }

    /// Packs what the catalogue says is embedded for a split, verified.
    fn pack(&self, out: &Path, split: &str, content: &[u8]) -> Result<(), Box<dyn Error>> {
        let file = self.file;
        let entry = self.json["replica:embedded"]
            .as_array()
            .and_then(|embedded| embedded.iter().find(|e| e["split"] == split))
            .ok_or_else(|| format!("{file}: `replica:embedded` has no split `{split}`"))?;
        let (expected, actual) = (string(entry, "sha256")?, hex_digest(content));
        if expected != actual {
            return Err(format!(
                "the {split} split has the SHA-256 {actual}, but {file} says {expected}: \
                 the parsers in src/corpora.rs changed, or the catalogue did; make them agree"
            )
            .into());
        }
        let path = out.join(format!("{}.gz", string(entry, "name")?));
        let mut encoder =
            flate2::write::GzEncoder::new(fs::File::create(path)?, flate2::Compression::default());
        encoder.write_all(content)?;
        encoder.finish()?;
        Ok(())
    }

    /// The content of a file inside one of the crates, verified.
    fn member(&self, metadata: &Value, id: &str) -> Result<Vec<u8>, Box<dyn Error>> {
        let file = self.json["distribution"]
            .as_array()
            .and_then(|files| files.iter().find(|f| f["@id"] == id))
            .ok_or_else(|| format!("{} has no file `{id}`", self.file))?;
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
        Ok(bytes)
    }
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
        "cargo could not fetch the three crates it comes from.\nRun `cargo fetch --locked` once while the crate \
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
