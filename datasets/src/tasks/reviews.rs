//! Is a film review good or bad? IMDB, byte by byte: the task `Text` of the Long Range Arena.

use replica_core::Seed;
use serde::{Deserialize, Serialize};

use super::files::{read_all, unreadable};
use super::sequences::SequenceTask;
use super::{bytes, longest, shuffled};
use crate::{Error, Sources};

/// 25,000 reviews to learn from and 25,000 to report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Imdb {
    /// Decides the order, and which reviews are held out.
    pub seed: u64,
    /// Bytes of a review that are kept, its end included. The Long Range Arena's is 4,096.
    pub max_length: usize,
    /// How many of the training reviews are held out for validation. 0 takes the test split for it, as the Long Range
    /// Arena and S4 do: say so beside such a number.
    pub valid: usize,
}

impl Imdb {
    const NAME: &'static str = "imdb";
    const FORMAT: &'static str = "lines of label, rating, id and text";

    /// Reads the task.
    ///
    /// # Errors
    /// A file is missing, refused or not of its format; more is held out than there is.
    pub fn load(&self, sources: &Sources) -> Result<SequenceTask, Error> {
        let read = read_all(Self::NAME, Self::FORMAT, sources)?;
        let [(train_file, train), (test_file, test)] = read.as_slice() else {
            return Err(Error::empty(Self::NAME));
        };
        let parse = |name, text| Self::parse(text).map_err(unreadable(Self::NAME, name, Self::FORMAT));
        let (train, test) = (parse(&train_file.name, train)?, parse(&test_file.name, test)?);
        if self.valid >= train.len() {
            let problem = format!("valid = {}; fewer than {} can be held out", self.valid, train.len());
            return Err(Error::Task { task: Self::NAME, problem });
        }
        let order = |name: &str, n| shuffled(&mut Seed(self.seed).named_stream(Self::NAME, name), n);
        let train_order = order("train", train.len());
        let (held_out, kept) = train_order.split_at(self.valid);
        let test_order = order("test", test.len());
        let split = |reviews: &[(u8, &[u8])], order: &[usize]| {
            let mut split = bytes::sequences(1);
            for &item in order {
                let (label, text) = reviews[item];
                split.push([bytes::ids(text, self.max_length)], label);
            }
            split
        };
        let test = split(&test, &test_order);
        let valid = if self.valid == 0 { test.clone() } else { split(&train, held_out) };
        let train = split(&train, kept);
        Ok(SequenceTask {
            name: Self::NAME,
            title: "IMDB reviews as bytes".to_owned(),
            classes: 2,
            documents: 1,
            max_len: longest([&train, &valid, &test]),
            train,
            valid,
            test,
            files: vec![train_file.clone(), test_file.clone()],
        })
    }

    /// Labels and texts; a text may hold tabs.
    fn parse(lines: &[u8]) -> Result<Vec<(u8, &[u8])>, String> {
        let lines = lines.strip_suffix(b"\n").unwrap_or(lines).split(|&byte| byte == b'\n');
        lines
            .enumerate()
            .map(|(number, line)| {
                let columns: Vec<&[u8]> = line.splitn(4, |&byte| byte == b'\t').collect();
                match columns.as_slice() {
                    [b"0", _, _, text] => Ok((0, *text)),
                    [b"1", _, _, text] => Ok((1, *text)),
                    _ => Err(format!("line {}: a label 0 or 1 and four columns are expected", number + 1)),
                }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_may_hold_tabs_and_mistakes_are_located() {
        let reviews = Imdb::parse(b"1\t9\t0_9\ta\tb\n0\t2\t0_2\t\n").unwrap();
        assert_eq!(reviews, [(1, &b"a\tb"[..]), (0, &b""[..])]);
        assert!(Imdb::parse(b"1\t9\t0_9\ta\n2\t1\tx\ty\n").unwrap_err().contains("line 2"));
        assert!(Imdb::parse(b"1\t9\ta\n").unwrap_err().contains("line 1"));
    }
}
