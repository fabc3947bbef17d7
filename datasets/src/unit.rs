//! Splitting a corpus by its units (an entry, a chapter), never by position.
//!
//! Shared with the build script, which makes the embedded splits. A unit belongs to a split by the
//! SHA-256 of its key modulo 20: 0 is valid, 1 is test, all others train. Units stand in the order of
//! that digest, so that a prefix of a split is a fair sample of the whole corpus, and adding a unit
//! moves no other one.

use sha2::{Digest as _, Sha256};

/// A piece of text that is never cut: it lies in one split as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// What decides its split and its place, such as a headword.
    pub key: String,
    /// Its text, with the blank line that ends it.
    pub text: String,
}

/// SHA-256 of a key, as a big-endian number modulo 20.
pub fn bucket(key: &str) -> u32 {
    bucket_of(&Sha256::digest(key.as_bytes()))
}

fn bucket_of(digest: &[u8]) -> u32 {
    digest.iter().fold(0, |rest, &byte| (rest * 256 + u32::from(byte)) % 20)
}

/// The three splits of a corpus as text: train, valid, test.
pub fn split_units(units: Vec<Unit>) -> [String; 3] {
    let mut keyed: Vec<_> =
        units.into_iter().map(|unit| (Sha256::digest(unit.key.as_bytes()), unit)).collect();
    keyed.sort_by_key(|(digest, _)| *digest);
    let mut splits = [const { String::new() }; 3];
    for (digest, unit) in keyed {
        let split = match bucket_of(&digest) {
            0 => 1,
            1 => 2,
            _ => 0,
        };
        splits[split].push_str(&unit.text);
    }
    splits
}
