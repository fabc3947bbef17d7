//! Text as bytes: what stands for the end, and for nothing.

use super::sequences::{Coding, Sequences};

/// UTF-8 has neither a byte 255 nor, in text, a byte 0: the first ends a document, the second fills a row up.
const END: u8 = 255;
const CODING: Coding = Coding::Tokens { vocab: 256, pad: 0 };

/// Splits of documents as bytes.
pub(super) fn sequences(documents: usize) -> Sequences {
    Sequences::new(CODING, documents)
}

/// A document's bytes, at most `max_length` with the end, as S4 cuts them.
pub(super) fn ids(text: &[u8], max_length: usize) -> impl Iterator<Item = u8> + '_ {
    let byte = |&byte: &u8| if matches!(byte, 0 | END) { b' ' } else { byte };
    text.iter().map(byte).take(max_length.saturating_sub(1)).chain([END])
}
