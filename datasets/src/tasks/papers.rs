//! Does one paper cite the other? The ACL Anthology Network, byte by byte: the task `Retrieval` of the Long Range Arena.

use std::io::{self, BufRead, BufReader, Cursor};

use serde::{Deserialize, Serialize};

use super::files::{TaskFile, unreadable};
use super::sequences::{SequenceTask, Sequences};
use super::{bytes, longest};
use crate::catalogue::catalogue;
use crate::locate::Content;
use crate::{Error, Sources, Split};

/// Pairs of papers in the published order, which is random already. The three files are those of the Long Range
/// Arena's release, whose digests are recorded when they are first read, as none is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Aan {
    /// Bytes of a paper that are kept, its end included. The Long Range Arena's is 4,000.
    pub max_length: usize,
}

impl Aan {
    const NAME: &'static str = "aan";
    const FORMAT: &'static str = "lines of label, two ids and two texts";

    /// Reads the task.
    ///
    /// # Errors
    /// A file is missing, refused or not of its format.
    pub fn load(&self, sources: &Sources) -> Result<SequenceTask, Error> {
        let entry = catalogue().get(Self::NAME)?;
        let mut files = Vec::new();
        let mut read = |split: Split| {
            let file = entry.files.iter().find(|file| file.split == Some(split));
            let file = TaskFile::open(Self::NAME, file.ok_or_else(|| Error::empty(Self::NAME))?, sources)?;
            let wrong = unreadable(Self::NAME, &file.file.name, Self::FORMAT);
            let parsed = match file.content {
                Content::Memory(bytes) => self.parse(Cursor::new(bytes)),
                Content::File(file) => self.parse(BufReader::new(file)),
            };
            let parsed = parsed.map_err(wrong)?;
            files.push(file.file.clone());
            Ok::<Sequences, Error>(parsed)
        };
        let (train, valid, test) = (read(Split::Train)?, read(Split::Valid)?, read(Split::Test)?);
        Ok(SequenceTask {
            name: Self::NAME,
            title: "ACL Anthology Network, pairs of papers as bytes".to_owned(),
            classes: 2,
            documents: 2,
            max_len: longest([&train, &valid, &test]),
            train,
            valid,
            test,
            files,
        })
    }

    fn parse(&self, mut lines: impl BufRead) -> Result<Sequences, String> {
        let mut split = bytes::sequences(2);
        let mut line = Vec::new();
        for number in 1.. {
            line.clear();
            let read: io::Result<usize> = lines.read_until(b'\n', &mut line);
            if read.map_err(|e| format!("line {number}: {e}"))? == 0 {
                break;
            }
            let columns: Vec<&[u8]> = line.trim_ascii_end().splitn(5, |&byte| byte == b'\t').collect();
            let (label, texts) = match columns.as_slice() {
                [b"0" | b"0.0", _, _, a, b] => (0, [*a, *b]),
                [b"1" | b"1.0", _, _, a, b] => (1, [*a, *b]),
                _ => return Err(format!("line {number}: a label 0 or 1 and five columns are expected")),
            };
            split.push(texts.map(|text| bytes::ids(text, self.max_length)), label);
        }
        Ok(split)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_pairs_cut_at_the_length() {
        let aan = Aan { max_length: 4 };
        let lines = "1.0\ta\tb\tfirst text\tsecond\n0\tc\td\tx\ty\tz\n";
        let split = aan.parse(Cursor::new(lines)).unwrap();
        assert_eq!((split.len(), split.label(0), split.label(1)), (2, 1, 0));
        assert_eq!(split.document(0, 0), b"fir\xff");
        assert_eq!(split.document(1, 0), b"x\xff");
        assert_eq!(split.document(1, 1), b"y\tz\xff");
        assert!(aan.parse(Cursor::new("1\ta\tb\tc\td\n3\ta\tb\tc\td\n")).unwrap_err().contains("line 2"));
    }
}
