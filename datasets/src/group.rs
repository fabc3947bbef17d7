//! Fixed-length blocks out of tokenised rows, as LPA's first setting prepares WikiText.

/// Joins `map_batch_size` rows at a time and cuts each joined batch into blocks of `block_size` tokens.
///
/// What is left at the end of every batch is dropped, not carried into the next one: that is what
/// mapping a grouping function over a data set in batches does, and it decides which tokens are seen.
/// A block or batch size of 0 gives no blocks.
///
/// ```
/// let rows = [vec![1, 2, 3], vec![4, 5], vec![6, 7]];
/// assert_eq!(replica_datasets::group_texts(&rows, 2, 2), [[1, 2], [3, 4], [6, 7]]);
/// ```
pub fn group_texts(rows: &[Vec<u32>], block_size: usize, map_batch_size: usize) -> Vec<Vec<u32>> {
    if block_size == 0 || map_batch_size == 0 {
        return Vec::new();
    }
    rows.chunks(map_batch_size)
        .flat_map(|batch| batch.concat().chunks_exact(block_size).map(<[u32]>::to_vec).collect::<Vec<_>>())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remainder_is_dropped_at_the_end_of_every_batch() {
        let rows = [vec![1, 2, 3], vec![], vec![4, 5], vec![6, 7, 8, 9], vec![10]];
        // batches: 1 2 3 | 4 5 6 7 8 9 | 10
        assert_eq!(group_texts(&rows, 2, 2), [[1, 2], [4, 5], [6, 7], [8, 9]]);
        assert_eq!(group_texts(&rows, 4, 100), [[1, 2, 3, 4], [5, 6, 7, 8]]);
        assert!(group_texts(&rows, 11, 100).is_empty());
        assert_eq!(group_texts(&rows, 10, 100).len(), 1);
        assert!(group_texts(&rows, 0, 2).is_empty());
        assert!(group_texts(&rows, 2, 0).is_empty());
    }
}
