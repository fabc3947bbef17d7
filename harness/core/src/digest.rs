//! SHA-256 digests, and the canonical JSON that trial identities are hashes of.

use std::fmt;
use std::io::{self, Read};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// A SHA-256 digest as 64 lower-case hexadecimal digits.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

impl Digest {
    /// Digest of bytes in memory.
    pub fn of(bytes: &[u8]) -> Self {
        Self::finish(Sha256::new_with_prefix(bytes))
    }

    /// Digest and length of everything a reader yields, without keeping it in memory.
    ///
    /// # Errors
    /// Whatever the reader reports.
    pub fn of_reader(reader: &mut impl Read) -> io::Result<(Self, u64)> {
        let mut hasher = Sha256::new();
        let mut buffer = vec![0u8; 1 << 16];
        let mut length = 0;
        loop {
            let n = reader.read(&mut buffer)?;
            if n == 0 {
                return Ok((Self::finish(hasher), length));
            }
            hasher.update(&buffer[..n]);
            length += n as u64;
        }
    }

    /// Digest of a value's canonical JSON: the identity of whatever the value describes.
    pub fn of_json(value: &serde_json::Value) -> Self {
        Self::of(canonical_json(value).as_bytes())
    }

    fn finish(hasher: Sha256) -> Self {
        Self(hasher.finalize().iter().map(|b| format!("{b:02x}")).collect())
    }

    /// All 64 digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first 12 digits, for people.
    pub fn short(&self) -> &str {
        &self.0[..12]
    }
}

impl TryFrom<String> for Digest {
    type Error = String;

    fn try_from(s: String) -> Result<Self, String> {
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if s.len() == 64 && s.bytes().all(hex) {
            Ok(Self(s))
        } else {
            Err(format!("`{s}` is not a SHA-256 digest: 64 lower-case hexadecimal digits are expected"))
        }
    }
}

impl From<Digest> for String {
    fn from(d: Digest) -> Self {
        d.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// JSON with sorted keys and no white space, so that equal values give equal bytes whatever order
/// their keys were inserted in (serde_json's own order depends on a feature any crate may switch on).
pub fn canonical_json(value: &serde_json::Value) -> String {
    let mut out = String::new();
    write_canonical(value, &mut out);
    out
}

fn write_canonical(value: &serde_json::Value, out: &mut String) {
    use serde_json::Value;
    match value {
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write_canonical(item, out);
            }
            out.push(']');
        }
        Value::Object(map) => {
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort();
            out.push('{');
            for (i, key) in keys.into_iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                out.push_str(&Value::from(key.as_str()).to_string());
                out.push(':');
                write_canonical(&map[key.as_str()], out);
            }
            out.push('}');
        }
        scalar => out.push_str(&scalar.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Map, Value, json};

    #[test]
    fn known_digest() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::of(b"").as_str(), empty);
        assert_eq!(Digest::of_reader(&mut &b""[..]).unwrap(), (Digest::of(b""), 0));
        assert!(Digest::try_from(empty.to_uppercase()).is_err());
        assert!(Digest::try_from(empty[1..].to_owned()).is_err());
    }

    #[test]
    fn canonical_form_is_sorted_and_dense() {
        let v = json!({"b": [1, 2.5, null], "a": {"z": "q\"", "y": true}});
        assert_eq!(canonical_json(&v), r#"{"a":{"y":true,"z":"q\""},"b":[1,2.5,null]}"#);
    }

    proptest! {
        #[test]
        fn identity_ignores_insertion_order(pairs in proptest::collection::btree_map("[a-z]{1,6}", -1e9f64..1e9, 0..12), seed: u64) {
            let mut shuffled: Vec<_> = pairs.iter().collect();
            let mut s = seed;
            for i in (1..shuffled.len()).rev() {
                s = s.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                shuffled.swap(i, (s >> 33) as usize % (i + 1));
            }
            let ordered: Map<String, Value> = pairs.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
            let other: Map<String, Value> = shuffled.into_iter().map(|(k, v)| (k.clone(), json!(v))).collect();
            prop_assert_eq!(Digest::of_json(&Value::Object(ordered)), Digest::of_json(&Value::Object(other)));
        }

        #[test]
        fn identity_sees_every_value(a in -1e9f64..1e9, b in -1e9f64..1e9) {
            let of = |x: f64| Digest::of_json(&json!({"learning_rate": x}));
            prop_assert_eq!(of(a) == of(b), a.to_bits() == b.to_bits());
        }
    }
}
