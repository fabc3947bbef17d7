//! Build time: the digest of the sources that can change a result. It is part of a trial's identity, so that
//! a record never speaks for code that did not produce it.
//!
//! In the `build.rs` of a replication:
//! ```no_run
//! fn main() -> Result<(), replica_provenance::ProvenanceError> {
//!     replica_provenance::emit_source_digest(&["src", "../../harness/nn/src", "../../harness/train/src"])
//! }
//! ```
//! and in its sources `env!("REPLICA_SOURCE_DIGEST")`.

use std::env;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

/// Extensions of files that can change a result.
const SOURCES: [&str; 3] = ["rs", "toml", "cu"];

/// Dependencies whose version can change a result: kernels, and the generators behind every random stream.
const NUMERICS: [&str; 7] = ["candle", "gemm", "pulp", "half", "rand", "rayon", "tokenizers"];

/// A file or folder that cannot be read, and why.
#[derive(Debug)]
pub struct ProvenanceError {
    path: PathBuf,
    source: io::Error,
}

impl fmt::Display for ProvenanceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "source digest: {}: {}; check the list in build.rs", self.path.display(), self.source)
    }
}

impl std::error::Error for ProvenanceError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// Sets `REPLICA_SOURCE_DIGEST` for the crate being built: the SHA-256 of the `.rs`, `.toml` and `.cu` files in
/// these folders, and of single files (relative to the crate), and of the numeric dependencies' versions in `Cargo.lock`.
///
/// # Errors
/// A folder that does not exist or cannot be read.
pub fn emit_source_digest(folders: &[&str]) -> Result<(), ProvenanceError> {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| ".".into()));
    let lock = root.ancestors().map(|a| a.join("Cargo.lock")).find(|p| p.is_file());
    for folder in folders {
        println!("cargo:rerun-if-changed={folder}");
    }
    let dependencies = match &lock {
        Some(path) => {
            println!("cargo:rerun-if-changed={}", path.display());
            numeric_dependencies(&fs::read_to_string(path).map_err(at(path))?)
        }
        None => String::new(),
    };
    println!("cargo:rustc-env=REPLICA_SOURCE_DIGEST={}", source_digest(&root, folders, &dependencies)?);
    Ok(())
}

/// SHA-256, in hexadecimal, of the sources in `folders` below `root` and of the dependencies' versions.
///
/// # Errors
/// A folder that does not exist or cannot be read.
pub fn source_digest(root: &Path, folders: &[&str], dependencies: &str) -> Result<String, ProvenanceError> {
    let mut files = Vec::new();
    for folder in folders {
        let path = root.join(folder);
        if path.is_file() {
            files.push(((*folder).to_owned(), path));
        } else {
            collect(&path, folder, &mut files)?;
        }
    }
    files.sort();
    files.dedup();
    let mut hasher = Sha256::new();
    let mut add = |part: &[u8]| {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    };
    for (name, path) in &files {
        add(name.as_bytes());
        // a checkout with other line ends is the same program
        let text = fs::read(path).map_err(at(path))?;
        add(&text.into_iter().filter(|b| *b != b'\r').collect::<Vec<u8>>());
    }
    add(dependencies.as_bytes());
    Ok(hasher.finalize().iter().map(|b| format!("{b:02x}")).collect())
}

/// `name version checksum` of the numeric dependencies in a `Cargo.lock`, one a line.
pub fn numeric_dependencies(lock: &str) -> String {
    let mut lines: Vec<String> = lock
        .split("[[package]]")
        .filter_map(|package| {
            let field = |key: &str| {
                let line = package.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(" = "))?;
                Some(line.trim().trim_matches('"'))
            };
            let name = field("name")?;
            let numeric = NUMERICS.iter().any(|n| {
                name.strip_prefix(n).is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '_']))
            });
            numeric.then(|| {
                format!("{name} {} {}", field("version").unwrap_or(""), field("checksum").unwrap_or(""))
            })
        })
        .collect();
    lines.sort();
    lines.join("\n")
}

fn collect(folder: &Path, name: &str, files: &mut Vec<(String, PathBuf)>) -> Result<(), ProvenanceError> {
    for entry in fs::read_dir(folder).map_err(at(folder))? {
        let path = entry.map_err(at(folder))?.path();
        let Some(last) = path.file_name().and_then(|n| n.to_str()) else { continue };
        let name = format!("{name}/{last}");
        if path.is_dir() {
            collect(&path, &name, files)?;
        } else if path.extension().and_then(|e| e.to_str()).is_some_and(|e| SOURCES.contains(&e)) {
            files.push((name, path));
        }
    }
    Ok(())
}

fn at(path: &Path) -> impl Fn(io::Error) -> ProvenanceError + '_ {
    |source| ProvenanceError { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    fn digest(files: &[(&str, &str)]) -> String {
        source_digest(tree(files).path(), &["src"], "").unwrap()
    }

    #[test]
    fn sees_contents_names_and_nothing_else() {
        let files = [("src/lib.rs", "a"), ("src/ops/k.cu", "b"), ("src/notes.md", "n")];
        let original = digest(&files);
        assert_eq!(original.len(), 64);
        assert_eq!(original, digest(&[files[1], files[2], files[0]]), "where the tree lies does not matter");
        assert_eq!(original, digest(&files[..2]), "prose does not count");
        assert_eq!(original, digest(&[("src/lib.rs", "a\r"), files[1]]), "line ends do not count");
        assert_ne!(original, digest(&[("src/lib.rs", "c"), files[1]]));
        assert_ne!(original, digest(&[("src/lib.rs", "a"), ("src/ops/j.cu", "b")]));
        assert_ne!(original, digest(&[("src/lib.rs", "a")]));
        let single = |text: &str| source_digest(tree(&[("seed.rs", text)]).path(), &["seed.rs"], "").unwrap();
        assert_ne!(single("a"), single("b"));
        // the boundary between two files is part of the digest
        assert_ne!(
            digest(&[("src/a.rs", "xy"), ("src/b.rs", "")]),
            digest(&[("src/a.rs", "x"), ("src/b.rs", "y")])
        );
    }

    #[test]
    fn sees_the_versions_of_numeric_dependencies_only() {
        let lock = |gemm: &str, clap: &str| {
            format!(
                "version = 4\n\n[[package]]\nname = \"gemm-f32\"\nversion = \"{gemm}\"\nchecksum = \"c0\"\n\n\
                 [[package]]\nname = \"clap\"\nversion = \"{clap}\"\n\n[[package]]\nname = \"randomize\"\nversion = \"1\"\n"
            )
        };
        assert_eq!(numeric_dependencies(&lock("0.19.0", "4.6.0")), "gemm-f32 0.19.0 c0");
        assert_eq!(
            numeric_dependencies(&lock("0.19.0", "4.6.0")),
            numeric_dependencies(&lock("0.19.0", "4.7.0"))
        );
        let root = tree(&[("src/lib.rs", "a")]);
        let with = |gemm: &str| {
            source_digest(root.path(), &["src"], &numeric_dependencies(&lock(gemm, "4.6.0"))).unwrap()
        };
        assert_ne!(with("0.19.0"), with("0.19.1"));
    }

    #[test]
    fn a_missing_folder_is_named() {
        let root = tree(&[("src/lib.rs", "a")]);
        let error = source_digest(root.path(), &["src", "../gone/src"], "").unwrap_err().to_string();
        assert!(error.contains("gone/src") && error.contains("build.rs"), "{error}");
    }
}
