//! Tokens of questions and programs for students trained from scratch (our choice; the authors take CodeT5's byte-level
//! BPE): words, single digits, signs, and a line break with its indentation as one token. A word that training never
//! showed is spelt in bytes, so that every text comes back as it was.

use std::collections::{BTreeMap, HashMap};

/// Fills sequences up, and is what the decoder sees first.
pub const PAD: u32 = 0;
/// Ends a sequence.
pub const END: u32 = 1;
/// Between the parts of a source.
pub const SEPARATOR: u32 = 2;
const FIRST_BYTE: u32 = 3;
const FIRST_PIECE: u32 = FIRST_BYTE + 256;

/// Pieces of text and their ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vocabulary {
    pieces: Vec<String>,
    ids: HashMap<String, u32>,
}

impl Vocabulary {
    /// The pieces that occur at least `fewest` times in the texts, the most frequent first.
    pub fn new<'a>(texts: impl IntoIterator<Item = &'a str>, fewest: usize) -> Self {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for text in texts {
            pieces(text).for_each(|piece| *counts.entry(piece).or_default() += 1);
        }
        let mut kept: Vec<(&str, usize)> = counts.into_iter().filter(|(_, n)| *n >= fewest).collect();
        // stable: equally frequent ones in the order of the alphabet
        kept.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
        let pieces: Vec<String> = kept.into_iter().map(|(piece, _)| piece.to_owned()).collect();
        let ids = pieces.iter().enumerate().map(|(i, piece)| (piece.clone(), FIRST_PIECE + i as u32));
        Self { ids: ids.collect(), pieces }
    }

    /// Number of ids.
    pub fn size(&self) -> usize {
        FIRST_PIECE as usize + self.pieces.len()
    }

    /// The ids of a text, without [`END`].
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        for piece in pieces(text) {
            match self.ids.get(piece) {
                Some(id) => ids.push(*id),
                None => ids.extend(piece.bytes().map(|byte| FIRST_BYTE + u32::from(byte))),
            }
        }
        ids
    }

    /// The text of ids; what is no text is left out, bytes that are no UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut bytes = Vec::new();
        for id in ids.iter().filter(|id| **id >= FIRST_BYTE) {
            match id.checked_sub(FIRST_PIECE) {
                None => bytes.push((id - FIRST_BYTE) as u8),
                Some(piece) => bytes.extend(self.pieces.get(piece as usize).iter().flat_map(|p| p.bytes())),
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// A text cut into a line break with the blanks after it, and, each with one blank before it if there is one, words, single
/// digits and single other characters.
fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let first = rest.chars().next()?;
        let word = |c: char| c.is_alphabetic() || c == '_';
        let end = if first == '\n' {
            1 + rest[1..].bytes().take_while(|b| *b == b' ').count()
        } else {
            let blank = usize::from(first == ' ');
            match rest[blank..].chars().next() {
                Some(c) if word(c) => blank + rest[blank..].find(|c| !word(c)).unwrap_or(rest.len() - blank),
                Some(c) if !matches!(c, '\n' | ' ') => blank + c.len_utf8(),
                _ => 1,
            }
        };
        let (piece, after) = rest.split_at(end);
        rest = after;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn texts_are_cut_where_programs_are() {
        let cut: Vec<&str> = pieces("  total_2 = 41.5\n    \n    return x").collect();
        assert_eq!(cut, [" ", " total_", "2", " =", " 4", "1", ".", "5", "\n    ", "\n    ", "return", " x"]);
    }

    #[test]
    fn frequent_pieces_come_first_and_rare_ones_are_spelt() {
        let vocabulary = Vocabulary::new(["b a a", "c b b b", "d"], 2);
        assert_eq!(vocabulary.pieces, [" b", " a"]);
        assert_eq!(vocabulary.size(), 261);
        assert_eq!(vocabulary.encode(" b d"), [259, 3 + 32, 3 + 100]);
        assert_eq!(vocabulary.decode(&[PAD, 259, SEPARATOR, 3 + 100, END, 9999]), " bd");
    }

    proptest! {
        #[test]
        fn every_text_comes_back(seen in ".{0,40}", text in "(.|\n| ){0,60}") {
            let vocabulary = Vocabulary::new([seen.as_str()], 1);
            prop_assert_eq!(vocabulary.decode(&vocabulary.encode(&text)), text.clone());
            let known = Vocabulary::new([text.as_str()], 1);
            prop_assert_eq!(known.encode(&text).len(), pieces(&text).count());
            prop_assert_eq!(known.decode(&known.encode(&text)), text);
        }
    }
}
