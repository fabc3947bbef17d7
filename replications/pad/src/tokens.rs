//! A student's tokens: a vocabulary of the lessons, or the tokenizer of a checkpoint.

use replica_datasets::Tokenizer;

use crate::vocabulary::{END, PAD, SEPARATOR, Vocabulary};

/// Text to ids and back.
pub enum Tokens {
    /// A vocabulary that was made from the lessons.
    Words(Vocabulary),
    /// The tokenizer of a checkpoint.
    Published {
        /// Its `tokenizer.json`.
        tokenizer: Box<Tokenizer>,
        /// What stands before a text, as RoBERTa's `<s>`: CodeT5 writes it, too; T5 does not.
        begin: Option<u32>,
        /// What ends a sequence.
        end: u32,
        /// What fills one up, and is what the decoder sees first.
        pad: u32,
    },
}

impl Tokens {
    /// The ids of a text, without those around it.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        match self {
            Self::Words(vocabulary) => vocabulary.encode(text),
            Self::Published { tokenizer, .. } => tokenizer.encode(text),
        }
    }

    /// The text of ids; what stands around texts is left out.
    pub fn decode(&self, ids: &[u32]) -> String {
        match self {
            Self::Words(vocabulary) => vocabulary.decode(ids),
            Self::Published { tokenizer, .. } => tokenizer.decode(ids),
        }
    }

    /// What fills sequences up, and is what the decoder sees first.
    pub fn pad(&self) -> u32 {
        if let Self::Published { pad, .. } = self { *pad } else { PAD }
    }

    /// What ends a sequence.
    pub fn end(&self) -> u32 {
        if let Self::Published { end, .. } = self { *end } else { END }
    }

    /// A source or target of at most `most` ids: its parts with a separator between them (the end token where a
    /// checkpoint has no other), what begins and what ends it. Whether something was cut.
    pub fn sequence(&self, parts: &[&str], most: usize) -> (Vec<u32>, bool) {
        let (begin, separator) = match self {
            Self::Words(_) => (None, SEPARATOR),
            Self::Published { begin, end, .. } => (*begin, *end),
        };
        let mut ids: Vec<u32> = begin.into_iter().collect();
        for (i, part) in parts.iter().enumerate() {
            ids.extend((i > 0).then_some(separator));
            ids.extend(self.encode(part));
        }
        let cut = ids.len() >= most;
        ids.truncate(most - 1);
        ids.push(self.end());
        (ids, cut)
    }
}
