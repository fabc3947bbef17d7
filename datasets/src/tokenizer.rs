//! Text to token ids and back.
//!
//! Byte-level BPE is trained by the `tokenizers` crate and kept as its JSON; encoding runs the merges of
//! that JSON directly, in parallel over chunks of the text, and gives the same ids as the crate does.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rayon::prelude::*;
use regex::Regex;
use replica_core::Digest;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Model, Trainer};

use crate::Error;

/// Ids of single bytes; every byte-level vocabulary has at least these.
const BYTES: usize = 256;
/// Text is encoded in parallel in pieces of about this size. It cannot change the result.
const CHUNK: usize = 1 << 16;
const DEFAULT_TRAIN_BYTES: usize = 4 << 20;

/// How a tokenizer is made, as a config states it.
///
/// ```
/// use replica_datasets::TokenizerSpec;
///
/// let spec: TokenizerSpec = toml::from_str("kind = \"bpe\"\nvocab_size = 1024").unwrap();
/// assert_eq!(spec, TokenizerSpec::Bpe { vocab_size: 1024, train_bytes: 4 << 20, special_tokens: vec![] });
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum TokenizerSpec {
    /// A token a byte, no training.
    Bytes {},
    /// Byte-level BPE with GPT-2's word pattern, trained on the training split.
    Bpe {
        /// How many tokens, bytes and special tokens included. A short text may give fewer.
        vocab_size: usize,
        /// Only about this many bytes at the start of the text are trained on.
        #[serde(default = "default_train_bytes")]
        train_bytes: usize,
        /// Tokens that no text encodes to; they come first. See [`Tokenizer::token_id`].
        #[serde(default)]
        special_tokens: Vec<String>,
    },
    /// GPT-2's, of 50,257 tokens.
    Gpt2 {},
    /// A `tokenizer.json` of the `tokenizers` library.
    File {
        /// Where it lies.
        path: PathBuf,
    },
}

impl TokenizerSpec {
    /// How many ids the tokenizer will have, before it exists. A file's is taken for LLaMA's.
    pub fn vocab_size(&self) -> usize {
        match self {
            Self::Bytes {} => 256,
            Self::Bpe { vocab_size, .. } => *vocab_size,
            Self::Gpt2 {} => 50_257,
            Self::File { .. } => 32_000,
        }
    }
}

fn default_train_bytes() -> usize {
    DEFAULT_TRAIN_BYTES
}

/// A tokenizer that is ready.
pub struct Tokenizer {
    kind: Kind,
    vocab_size: usize,
    special: HashMap<String, u32>,
    digest: Digest,
    json: String,
}

enum Kind {
    Bytes,
    Bpe(Box<Merges>),
    Gpt2(&'static tiktoken_rs::CoreBPE),
    File(Box<tokenizers::Tokenizer>),
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size)
            .field("digest", &self.digest)
            .finish()
    }
}

impl Tokenizer {
    /// Makes a tokenizer; only BPE looks at the text.
    ///
    /// # Errors
    /// The vocabulary is too small for the bytes and special tokens, a special token is empty or
    /// repeated, or the file cannot be read.
    pub fn prepare(spec: &TokenizerSpec, train_text: &str) -> Result<Self, Error> {
        match spec {
            TokenizerSpec::Bytes {} => {
                Ok(Self::new(Kind::Bytes, BYTES, HashMap::new(), &json!({"kind": "bytes"})))
            }
            TokenizerSpec::Bpe { vocab_size, train_bytes, special_tokens } => {
                train(*vocab_size, head(train_text, *train_bytes), special_tokens)
            }
            TokenizerSpec::Gpt2 {} => gpt2(),
            TokenizerSpec::File { path } => Self::from_file(path),
        }
    }

    fn new(kind: Kind, vocab_size: usize, special: HashMap<String, u32>, json: &Value) -> Self {
        let json = replica_core::digest::canonical_json(json);
        Self { kind, vocab_size, special, digest: Digest::of(json.as_bytes()), json }
    }

    fn from_file(path: &Path) -> Result<Self, Error> {
        let fail = unreadable(path);
        let text = std::fs::read_to_string(path).map_err(|e| fail(e.to_string()))?;
        let json: Value = serde_json::from_str(&text).map_err(|e| fail(e.to_string()))?;
        Self::from_json(&text, &json).map_err(|e| fail(format!("it is no tokenizer.json: {e}")))
    }

    /// Byte-level BPE in the form of RoBERTa's checkpoints, which is CodeT5's: ids by token in `vocab.json`, a merge a line in
    /// `merges.txt`. No blank is put before a text, and the tokens that RoBERTa and T5 have as special ones are special, if the
    /// vocabulary has them.
    ///
    /// # Errors
    /// A file cannot be read, or is not of that form.
    pub fn from_vocabulary(vocabulary: &Path, merges: &Path) -> Result<Self, Error> {
        let (fail_vocabulary, fail_merges) = (unreadable(vocabulary), unreadable(merges));
        let text = std::fs::read_to_string(vocabulary).map_err(|e| fail_vocabulary(e.to_string()))?;
        let ids: BTreeMap<String, u32> = serde_json::from_str(&text)
            .map_err(|e| fail_vocabulary(format!("an object of ids by token is expected: {e}")))?;
        let text = std::fs::read_to_string(merges).map_err(|e| fail_merges(e.to_string()))?;
        let mut pairs = Vec::new();
        for (i, line) in text.lines().enumerate() {
            // the first line may be `#version: 0.2`
            if line.is_empty() || (i == 0 && line.starts_with("#version")) {
                continue;
            }
            let (left, right) =
                line.split_once(' ').filter(|(_, right)| !right.contains(' ')).ok_or_else(|| {
                    fail_merges(format!("line {}: two tokens with a blank between are expected", i + 1))
                })?;
            // the library panics at what it does not know
            let merged = format!("{left}{right}");
            if let Some(unknown) = [left, right, &merged].into_iter().find(|token| !ids.contains_key(*token))
            {
                return Err(fail_merges(format!(
                    "line {}: `{unknown}` is not in {}",
                    i + 1,
                    vocabulary.display()
                )));
            }
            pairs.push([left, right]);
        }
        let special = |token: &str| {
            matches!(token, "<s>" | "</s>" | "<pad>" | "<unk>" | "<mask>") || token.starts_with("<extra_id_")
        };
        let added: Vec<Value> = ids
            .iter()
            .filter(|(token, _)| special(token))
            .map(|(token, id)| {
                json!({"id": id, "content": token, "single_word": false, "lstrip": token == "<mask>",
                    "rstrip": false, "normalized": false, "special": true})
            })
            .collect();
        let byte_level =
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        let json = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
            "added_tokens": added, "pre_tokenizer": byte_level, "decoder": byte_level,
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                "vocab": ids, "merges": pairs,
            },
        });
        Self::from_json(&json.to_string(), &json).map_err(|e| fail_vocabulary(e.to_string()))
    }

    /// A `tokenizer.json` of the `tokenizers` library, as text and parsed.
    fn from_json(text: &str, json: &Value) -> Result<Self, tokenizers::Error> {
        let tokenizer = tokenizers::Tokenizer::from_bytes(text)?;
        // Ids may have gaps, and models need a row for each.
        let largest = tokenizer.get_vocab(true).into_values().max();
        let special = tokenizer
            .get_vocab(true)
            .into_iter()
            .filter(|(token, _)| tokenizer.get_added_vocabulary().is_special_token(token));
        let special = special.collect();
        let vocab_size = largest.map_or(0, |id| id as usize + 1);
        Ok(Self::new(Kind::File(Box::new(tokenizer)), vocab_size, special, json))
    }

    /// The ids of a text. Text that looks like a special token is text: only a tokenizer from a file
    /// follows that file's own rules, and is run on one thread.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        match &self.kind {
            Kind::Bytes => text.bytes().map(u32::from).collect(),
            Kind::Bpe(merges) => in_chunks(text, HashMap::new, |known, chunk| merges.encode(chunk, known)),
            Kind::Gpt2(bpe) => in_chunks(text, || (), |(), chunk| bpe.encode_ordinary(chunk)),
            // It fails only for models without an unknown token on text outside their alphabet.
            Kind::File(tokenizer) => tokenizer
                .encode_fast(text, false)
                .map(|encoding| encoding.get_ids().to_vec())
                .unwrap_or_default(),
        }
    }

    /// The text of ids; bytes that are no whole character become U+FFFD, unknown ids and special
    /// tokens nothing.
    pub fn decode(&self, ids: &[u32]) -> String {
        let bytes = match &self.kind {
            Kind::Bytes => ids.iter().filter_map(|&id| u8::try_from(id).ok()).collect(),
            Kind::Bpe(merges) => merges.decode(ids),
            Kind::Gpt2(bpe) => ids
                .iter()
                .filter(|id| !self.special.values().any(|special| special == *id))
                .filter_map(|&id| bpe.decode_bytes(&[id]).ok())
                .flatten()
                .collect(),
            Kind::File(tokenizer) => return tokenizer.decode(ids, true).unwrap_or_default(),
        };
        String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
    }

    /// How many ids there are.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The id of a special token.
    pub fn token_id(&self, special: &str) -> Option<u32> {
        self.special.get(special).copied()
    }

    /// Digest of [`json`](Self::json).
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Everything that decides the ids, as canonical JSON; for BPE and files a `tokenizer.json` that
    /// the `tokenizers` library reads.
    pub fn json(&self) -> &str {
        &self.json
    }
}

fn unreadable(path: &Path) -> impl Fn(String) -> Error + '_ {
    move |problem| Error::Tokenizer(format!("cannot read {}: {problem}", path.display()))
}

/// The start of a text, at most that many bytes, cut where a word ends.
fn head(text: &str, bytes: usize) -> &str {
    if bytes >= text.len() {
        return text;
    }
    let cut = text.floor_char_boundary(bytes);
    let space = text[..cut].rfind(char::is_whitespace);
    &text[..space.unwrap_or(cut)]
}

fn train(vocab_size: usize, text: &str, special_tokens: &[String]) -> Result<Tokenizer, Error> {
    let least = BYTES + special_tokens.len();
    if vocab_size < least {
        return Err(Error::Tokenizer(format!(
            "`vocab_size` is {vocab_size}; {BYTES} bytes and {} special tokens need at least {least}",
            special_tokens.len()
        )));
    }
    if let Some(token) = special_tokens.iter().enumerate().find_map(|(i, token)| {
        (token.chars().count() < 2 || special_tokens[..i].contains(token)).then_some(token)
    }) {
        return Err(Error::Tokenizer(format!(
            "special token `{token}` is repeated or shorter than two characters: choose another, such as `<|endoftext|>`"
        )));
    }
    let fail = |e: tokenizers::Error| Error::Tokenizer(format!("training failed: {e}"));
    let added: Vec<_> = special_tokens.iter().map(|token| AddedToken::from(token, true)).collect();
    let mut trainer = BpeTrainer::builder()
        .vocab_size(vocab_size)
        .min_frequency(2)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(added.clone())
        .show_progress(false)
        .build();
    let letters = byte_letters();
    let spell = |word: &str| word.bytes().map(|byte| letters[usize::from(byte)]).collect::<String>();
    trainer
        .feed(chunks(text, CHUNK).into_iter(), |chunk| Ok(words(chunk).map(spell).collect()))
        .map_err(fail)?;
    let mut model = BPE::default();
    trainer.train(&mut model).map_err(fail)?;
    let special =
        special_tokens.iter().filter_map(|token| Some((token.clone(), model.token_to_id(token)?))).collect();

    let mut tokenizer = tokenizers::Tokenizer::new(model);
    tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, false, true)));
    tokenizer.with_decoder(Some(ByteLevel::new(false, false, true)));
    tokenizer.add_special_tokens(added).map_err(fail)?;
    let json = tokenizer.to_string(false).map_err(fail)?;
    let json: Value = serde_json::from_str(&json).map_err(|e| fail(e.into()))?;
    let merges = Merges::from_json(&json)
        .ok_or_else(|| Error::Tokenizer("the trained JSON is incomplete".to_owned()))?;
    let vocab_size = merges.tokens.len();
    Ok(Tokenizer::new(Kind::Bpe(Box::new(merges)), vocab_size, special, &json))
}

fn gpt2() -> Result<Tokenizer, Error> {
    const END: &str = "<|endoftext|>";
    const END_ID: u32 = 50_256;
    let bpe = tiktoken_rs::r50k_base_singleton();
    // Every token's bytes, so that the digest is of the vocabulary itself, whatever crate carries it.
    let mut tokens = Vec::new();
    for id in 0..END_ID {
        let bytes = bpe.decode_bytes(&[id]).map_err(|_| {
            Error::Tokenizer(format!("GPT-2's vocabulary lacks id {id}: the crate tiktoken-rs changed"))
        })?;
        tokens.extend((bytes.len() as u32).to_le_bytes());
        tokens.extend(bytes);
    }
    let json = json!({"kind": "gpt2", "special": {END: END_ID}, "tokens": Digest::of(&tokens)});
    let special = HashMap::from([(END.to_owned(), END_ID)]);
    Ok(Tokenizer::new(Kind::Gpt2(bpe), END_ID as usize + 1, special, &json))
}

/// The merges of a trained BPE.
struct Merges {
    /// The id of every byte.
    byte_ids: [u32; BYTES],
    /// Rank and result of a pair.
    pairs: HashMap<(u32, u32), (u32, u32)>,
    /// The bytes of every id; none for special tokens.
    tokens: Vec<Vec<u8>>,
}

impl Merges {
    fn from_json(json: &Value) -> Option<Self> {
        let letters = byte_letters();
        let bytes: HashMap<char, u8> = (0..=u8::MAX).map(|byte| (letters[usize::from(byte)], byte)).collect();
        let vocab = json["model"]["vocab"].as_object()?;
        let ids: HashMap<&str, u32> = vocab
            .iter()
            .map(|(token, id)| Some((token.as_str(), u32::try_from(id.as_u64()?).ok()?)))
            .collect::<Option<_>>()?;
        let special: Vec<&str> =
            json["added_tokens"].as_array()?.iter().filter_map(|token| token["content"].as_str()).collect();

        let mut tokens = vec![Vec::new(); ids.values().max().map_or(0, |&id| id as usize + 1)];
        for (token, &id) in &ids {
            if !special.contains(token) {
                tokens[id as usize] = token.chars().map(|c| bytes.get(&c).copied()).collect::<Option<_>>()?;
            }
        }
        let mut byte_ids = [0; BYTES];
        for (byte, letter) in letters.iter().enumerate() {
            byte_ids[byte] = *ids.get(letter.to_string().as_str())?;
        }
        let mut pairs = HashMap::new();
        for (rank, merge) in json["model"]["merges"].as_array()?.iter().enumerate() {
            let (left, right) = (merge[0].as_str()?, merge[1].as_str()?);
            let result = *ids.get(format!("{left}{right}").as_str())?;
            pairs.insert((*ids.get(left)?, *ids.get(right)?), (u32::try_from(rank).ok()?, result));
        }
        Some(Self { byte_ids, pairs, tokens })
    }

    /// `known` keeps the ids of words that were met before.
    fn encode<'a>(&self, text: &'a str, known: &mut HashMap<&'a str, Vec<u32>>) -> Vec<u32> {
        let mut ids = Vec::with_capacity(text.len() / 3);
        for word in words(text) {
            ids.extend(known.entry(word).or_insert_with(|| self.merge(word)).iter());
        }
        ids
    }

    /// Applies the merge of lowest rank, leftmost first, until there is none.
    fn merge(&self, word: &str) -> Vec<u32> {
        let mut ids: Vec<u32> = word.bytes().map(|byte| self.byte_ids[usize::from(byte)]).collect();
        loop {
            let best = ids
                .windows(2)
                .enumerate()
                .filter_map(|(at, pair)| {
                    self.pairs.get(&(pair[0], pair[1])).map(|&(rank, id)| (rank, at, id))
                })
                .min();
            let Some((_, at, id)) = best else { return ids };
            ids[at] = id;
            ids.remove(at + 1);
        }
    }

    fn decode(&self, ids: &[u32]) -> Vec<u8> {
        ids.iter().filter_map(|&id| self.tokens.get(id as usize)).flatten().copied().collect()
    }
}

/// The printable letter that byte-level BPE spells a byte with.
fn byte_letters() -> [char; BYTES] {
    let mut letters = ['\0'; BYTES];
    let mut spare = 256;
    for (byte, letter) in letters.iter_mut().enumerate() {
        let printable = matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
        let code = if printable { byte as u32 } else { spare };
        spare += u32::from(!printable);
        *letter = char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER);
    }
    letters
}

/// GPT-2's words, which merges never cross. Its pattern ends a run of white space before the blank
/// that belongs to the next word by a look-ahead; here that is done by hand, since the linear-time
/// engine has none.
fn words(text: &str) -> impl Iterator<Item = &str> {
    static PATTERN: OnceLock<Regex> = OnceLock::new();
    let pattern = PATTERN.get_or_init(|| {
        Regex::new(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+")
            .expect("a constant pattern")
    });
    let mut start = 0;
    std::iter::from_fn(move || {
        let found = pattern.find_at(text, start)?;
        let mut word = found.as_str();
        if found.end() < text.len()
            && word.chars().all(char::is_whitespace)
            && let Some((last, _)) = word.char_indices().next_back().filter(|&(last, _)| last > 0)
        {
            word = &word[..last];
        }
        start = found.start() + word.len();
        Some(word)
    })
}

/// Encodes pieces in parallel and joins the results in order. Each run of pieces on one thread has a
/// scratch of its own.
fn in_chunks<'a, T>(
    text: &'a str,
    scratch: impl Fn() -> T + Send + Sync,
    encode: impl Fn(&mut T, &'a str) -> Vec<u32> + Send + Sync,
) -> Vec<u32> {
    let encoded: Vec<Vec<u32>> = chunks(text, CHUNK).into_par_iter().map_init(scratch, encode).collect();
    encoded.concat()
}

/// Cuts a text into pieces of about that size, only where white space follows something else: a word
/// always ends there, and how the text goes on does not depend on what came before.
fn chunks(text: &str, size: usize) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while rest.len() > size {
        let from = rest.floor_char_boundary(size.max(1));
        let mut previous_is_space = true;
        let cut = rest[from..].char_indices().find(|&(_, c)| {
            let cut = c.is_whitespace() && !previous_is_space;
            previous_is_space = c.is_whitespace();
            cut
        });
        let Some((offset, _)) = cut else { break };
        let (piece, tail) = rest.split_at(from + offset);
        pieces.push(piece);
        rest = tail;
    }
    if !rest.is_empty() {
        pieces.push(rest);
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT: &str =
        "The cat sat on the mat. The dog didn't sit; it's 42 years old!\n\n  The cat's mat\u{a0}was flat.\n";

    fn bpe(vocab_size: usize) -> Tokenizer {
        let text = TEXT.repeat(20);
        let spec = TokenizerSpec::Bpe { vocab_size, train_bytes: 1 << 20, special_tokens: vec![] };
        Tokenizer::prepare(&spec, &text).unwrap()
    }

    /// Strings rich in what word patterns care about.
    fn tricky() -> impl Strategy<Value = String> {
        prop_oneof![
            any::<String>(),
            proptest::collection::vec(
                prop_oneof![
                    Just(" "),
                    Just("  "),
                    Just("\n"),
                    Just("\t"),
                    Just("\u{a0}"),
                    Just("\u{2003}"),
                    Just("\u{85}"),
                    Just("'s"),
                    Just("'ll"),
                    Just("'"),
                    Just("cat"),
                    Just("Ü"),
                    Just("42"),
                    Just("½"),
                    Just("٣"),
                    Just("."),
                    Just("¿?"),
                    Just("猫"),
                    Just("\u{301}"),
                    Just("🦀"),
                    Just("\0")
                ],
                0..40
            )
            .prop_map(|parts| parts.concat()),
        ]
    }

    proptest! {
        #[test]
        fn every_string_survives_a_round_trip(text in tricky()) {
            for spec in [TokenizerSpec::Bytes {}, TokenizerSpec::Gpt2 {}] {
                let tokenizer = Tokenizer::prepare(&spec, "").unwrap();
                let ids = tokenizer.encode(&text);
                prop_assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()));
                prop_assert_eq!(tokenizer.decode(&ids), text.as_str());
            }
        }

        #[test]
        fn own_encoding_is_the_librarys(text in tricky()) {
            static BOTH: OnceLock<(Tokenizer, tokenizers::Tokenizer)> = OnceLock::new();
            let (own, library) = BOTH.get_or_init(|| {
                let own = bpe(330);
                let library = tokenizers::Tokenizer::from_bytes(own.json()).unwrap();
                (own, library)
            });
            let ids = own.encode(&text);
            let theirs = library.encode_fast(text.as_str(), false).unwrap();
            prop_assert_eq!(ids.as_slice(), theirs.get_ids());
            prop_assert_eq!(own.decode(&ids), text.as_str());
        }

        #[test]
        fn vocabulary_and_merges_are_the_tokenizer_json(text in tricky()) {
            static BOTH: OnceLock<(Tokenizer, Tokenizer)> = OnceLock::new();
            let (one, two) = BOTH.get_or_init(in_two_files);
            let ids = two.encode(&text);
            prop_assert_eq!(&ids, &one.encode(&text));
            prop_assert_eq!(two.decode(&ids), one.decode(&ids));
        }

        #[test]
        fn chunks_never_change_the_words(text in tricky(), size in 0usize..20) {
            let pieces = chunks(&text, size);
            prop_assert_eq!(pieces.concat(), text.as_str());
            let separate: Vec<&str> = pieces.iter().flat_map(|piece| words(piece)).collect();
            prop_assert_eq!(separate, words(&text).collect::<Vec<_>>());
        }
    }

    #[test]
    fn long_texts_are_really_cut() {
        let text = TEXT.repeat(CHUNK / 20);
        assert!(chunks(&text, CHUNK).len() > 3);
        let own = bpe(300);
        let line = own.encode(TEXT);
        assert!(own.encode(&text).len().abs_diff(line.len() * (CHUNK / 20)) <= CHUNK / 20);
    }

    #[test]
    fn training_does_not_depend_on_threads_or_luck() {
        let digests: Vec<_> = [1, 1, 2, 3, 8]
            .into_iter()
            .map(|threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| {
                    let own = bpe(400);
                    (own.digest().clone(), own.encode(&TEXT.repeat(2000)))
                })
            })
            .collect();
        assert!(digests.windows(2).all(|pair| pair[0] == pair[1]));
        assert_ne!(&digests[0].0, bpe(401.min(bpe(400).vocab_size() - 1)).digest());
    }

    #[test]
    fn bpe_learns_and_respects_its_size() {
        let own = bpe(290);
        assert_eq!(own.vocab_size(), 290);
        assert!(own.encode(" The cat").len() <= 3, "{:?}", own.encode(" The cat"));
        assert_eq!(bpe(256).encode("cat").len(), 3);
        // a short text has no more pairs that occur twice
        assert!(bpe(100_000).vocab_size() < 1000);
    }

    #[test]
    fn only_the_start_of_the_text_is_trained_on() {
        let prepare = |text: &str| {
            let spec =
                TokenizerSpec::Bpe { vocab_size: 300, train_bytes: TEXT.len() * 3, special_tokens: vec![] };
            Tokenizer::prepare(&spec, text).unwrap().digest().clone()
        };
        let start = TEXT.repeat(3);
        assert_eq!(
            prepare(&(start.clone() + &"zzzz ".repeat(500))),
            prepare(&(start + &"qqqq ".repeat(500)))
        );
    }

    #[test]
    fn special_tokens_are_never_read_from_text() {
        let end = "<|endoftext|>";
        let spec =
            TokenizerSpec::Bpe { vocab_size: 300, train_bytes: 1 << 20, special_tokens: vec![end.into()] };
        for tokenizer in [
            Tokenizer::prepare(&spec, &TEXT.repeat(20)).unwrap(),
            Tokenizer::prepare(&TokenizerSpec::Gpt2 {}, "").unwrap(),
        ] {
            let id = tokenizer.token_id(end).unwrap();
            let ids = tokenizer.encode(end);
            assert!(!ids.contains(&id));
            assert_eq!(tokenizer.decode(&ids), end);
            assert_eq!(tokenizer.decode(&[id]), "");
        }
    }

    #[test]
    fn gpt2_ids_are_the_published_ones() {
        let gpt2 = Tokenizer::prepare(&TokenizerSpec::Gpt2 {}, "").unwrap();
        assert_eq!(gpt2.encode("Hello world"), [15496, 995]);
        assert_eq!(gpt2.vocab_size(), 50_257);
    }

    #[test]
    fn a_file_gives_what_it_was_made_from() {
        let own = bpe(320);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), own.json()).unwrap();
        let spec = TokenizerSpec::File { path: file.path().to_owned() };
        let read = Tokenizer::prepare(&spec, "").unwrap();
        assert_eq!(read.encode(TEXT), own.encode(TEXT));
        assert_eq!(read.decode(&read.encode(TEXT)), TEXT);
        assert_eq!((read.vocab_size(), read.digest()), (own.vocab_size(), own.digest()));
        std::fs::write(file.path(), "{}").unwrap();
        assert!(Tokenizer::prepare(&spec, "").unwrap_err().to_string().contains("no tokenizer.json"));
    }

    /// A trained tokenizer as RoBERTa's checkpoints have theirs: beside itself, its two files.
    fn in_two_files() -> (Tokenizer, Tokenizer) {
        let special_tokens =
            ["<pad>", "<s>", "</s>", "<unk>", "<mask>", "<extra_id_0>"].map(String::from).into();
        let spec = TokenizerSpec::Bpe { vocab_size: 340, train_bytes: 1 << 20, special_tokens };
        let own = Tokenizer::prepare(&spec, &TEXT.repeat(20)).unwrap();
        let json: Value = serde_json::from_str(own.json()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("tokenizer.json"), own.json()).unwrap();
        std::fs::write(path("vocab.json"), json["model"]["vocab"].to_string()).unwrap();
        let merges = json["model"]["merges"].as_array().unwrap().iter();
        let lines: String =
            merges.map(|m| format!("{} {}\n", m[0].as_str().unwrap(), m[1].as_str().unwrap())).collect();
        std::fs::write(path("merges.txt"), format!("#version: 0.2\n{lines}")).unwrap();
        let spec = TokenizerSpec::File { path: path("tokenizer.json") };
        let two = Tokenizer::from_vocabulary(&path("vocab.json"), &path("merges.txt")).unwrap();
        (Tokenizer::prepare(&spec, "").unwrap(), two)
    }

    #[test]
    fn vocabulary_and_merges_keep_ids_and_special_tokens() {
        let (one, two) = in_two_files();
        assert_eq!(two.vocab_size(), one.vocab_size());
        for token in ["<pad>", "<s>", "</s>", "<unk>", "<mask>", "<extra_id_0>"] {
            assert_eq!(
                (two.token_id(token), two.token_id(token).is_some()),
                (one.token_id(token), true),
                "{token}"
            );
        }
        assert_eq!(["<pad>", "<s>", "</s>"].map(|token| two.token_id(token).unwrap()), [0, 1, 2]);
        let program = "def solution():\n    \n    a = 3\n    return a";
        let ids = two.encode(program);
        assert_eq!(ids, one.encode(program));
        let around: Vec<u32> = [&[1][..], &ids, &[2, 0, 0]].concat();
        assert_eq!(two.decode(&around), program);
    }

    #[test]
    fn files_of_another_form_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let (vocab, merges) = (folder.path().join("vocab.json"), folder.path().join("merges.txt"));
        let message = || Tokenizer::from_vocabulary(&vocab, &merges).unwrap_err().to_string();
        assert!(message().contains("vocab.json"));
        std::fs::write(&vocab, "[]").unwrap();
        assert!(message().contains("ids by token"));
        std::fs::write(&vocab, r#"{"a": 0, "b": 1}"#).unwrap();
        assert!(message().contains("merges.txt"));
        std::fs::write(&merges, "#version: 0.2\na b c\n").unwrap();
        assert!(message().contains("merges.txt: line 2: two tokens"), "{}", message());
        std::fs::write(&merges, "a b\n").unwrap();
        assert!(
            message().contains("line 1: `ab` is not in") && message().contains("vocab.json"),
            "{}",
            message()
        );
    }

    #[test]
    fn impossible_specs_say_why() {
        let message = |vocab_size, special: &[&str]| {
            let special_tokens = special.iter().map(|&s| s.to_owned()).collect();
            let spec = TokenizerSpec::Bpe { vocab_size, train_bytes: 100, special_tokens };
            Tokenizer::prepare(&spec, TEXT).unwrap_err().to_string()
        };
        assert!(message(256, &["<s>"]).contains("257"));
        assert!(message(300, &["<s>", "<s>"]).contains("repeated"));
        let unknown = toml::from_str::<TokenizerSpec>("kind = \"bytes\"\nsize = 3").unwrap_err().to_string();
        assert!(unknown.contains("size"), "{unknown}");
        let kind = toml::from_str::<TokenizerSpec>("kind = \"words\"").unwrap_err().to_string();
        assert!(kind.contains("bytes") && kind.contains("gpt2"), "{kind}");
    }
}
