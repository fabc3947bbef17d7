//! Keys and values of the tokens a decoder has seen, so that the next token costs one position.
//!
//! Keys are kept as the projection gives them, not turned by rotary positions: [`Scores`](crate::ops::Scores)
//! turns key j by position j whenever attention runs, so caching needs no code of its own there.

use candle_core::{Result, Tensor, bail};

use crate::tape::Value;

/// The past of a batch of sequences in every layer of a decoder. Starts empty.
#[derive(Clone, Default)]
pub struct KeyValueCache {
    layers: Vec<LayerCache>,
}

/// The past in one layer.
#[derive(Clone, Default)]
pub struct LayerCache {
    /// Keys and values, `[batch, s, width]` each; nothing before the first token.
    past: Option<(Tensor, Tensor)>,
}

impl KeyValueCache {
    /// The past in a layer; layers count from 0.
    pub fn layer(&mut self, layer: usize) -> &mut LayerCache {
        if layer >= self.layers.len() {
            self.layers.resize_with(layer + 1, LayerCache::default);
        }
        &mut self.layers[layer]
    }

    /// Number of tokens seen, which is the position of the next one; asked for before its forward pass.
    pub fn len(&self) -> usize {
        let keys = self.layers.first().and_then(|layer| layer.past.as_ref()).map(|(k, _)| k.dims()[1]);
        keys.unwrap_or(0)
    }

    /// Whether nothing has been seen.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Makes row i of the batch the past of what was row `rows[i]`: rows may be dropped, repeated and reordered, as
    /// beam search does.
    ///
    /// # Errors
    /// A row that the batch does not have.
    pub fn select(&mut self, rows: &[u32]) -> Result<()> {
        for layer in &mut self.layers {
            let Some((k, v)) = &mut layer.past else { continue };
            let batch = k.dims()[0];
            if let Some(row) = rows.iter().find(|row| **row as usize >= batch) {
                bail!("key-value cache: row {row} was selected from a batch of {batch}");
            }
            let rows = Tensor::new(rows, k.device())?;
            (*k, *v) = (k.index_select(&rows, 0)?, v.index_select(&rows, 0)?);
        }
        Ok(())
    }
}

impl LayerCache {
    /// Adds the keys and values `[batch, t, width]` of the next t tokens; returns those of all tokens so far,
    /// `[batch, s, width]`.
    ///
    /// # Errors
    /// Another batch or width than before, or keys and values that want a gradient, which would end here.
    pub fn append(&mut self, k: &Value, v: &Value) -> Result<(Value, Value)> {
        if k.needs_gradient() || v.needs_gradient() {
            bail!(
                "key-value cache: it is for inference; train without it, or give it ids that are on no tape"
            );
        }
        let (batch, _, width) = k.tensor().dims3()?;
        if v.tensor().dims() != k.tensor().dims() {
            bail!("key-value cache: keys {:?}, values {:?}", k.tensor().dims(), v.tensor().dims());
        }
        let (all_k, all_v) = match &self.past {
            None => (k.tensor().clone(), v.tensor().clone()),
            Some((past_k, past_v)) => {
                let (past_batch, s, past_width) = past_k.dims3()?;
                if (past_batch, past_width) != (batch, width) {
                    let got = k.tensor().dims();
                    bail!("key-value cache: {got:?} after a past of [{past_batch}, {s}, {past_width}]");
                }
                (Tensor::cat(&[past_k, k.tensor()], 1)?, Tensor::cat(&[past_v, v.tensor()], 1)?)
            }
        };
        self.past = Some((all_k.clone(), all_v.clone()));
        Ok((k.constant_beside(all_k), v.constant_beside(all_v)))
    }
}

/// The keys and values attention sees: with a cache those of all tokens so far, else `k` and `v` themselves. Lets
/// one forward pass serve training and generation.
///
/// # Errors
/// As [`LayerCache::append`].
pub fn with_past(cache: Option<&mut LayerCache>, k: Value, v: Value) -> Result<(Value, Value)> {
    match cache {
        Some(cache) => cache.append(&k, &v),
        None => Ok((k, v)),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    /// `[2, t, 1]` whose row b holds 10 b + first, 10 b + first + 1, ..
    fn tokens(t: usize, first: usize) -> Value {
        let numbers: Vec<f32> = (0..2 * t).map(|i| (10 * (i / t) + first + i % t) as f32).collect();
        Tensor::from_vec(numbers, (2, t, 1), &Device::Cpu).unwrap().into()
    }

    fn numbers(value: &Value) -> Vec<f32> {
        value.tensor().flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn rows_grow_and_follow_their_beams() {
        let mut cache = KeyValueCache::default();
        assert!(cache.is_empty());
        for layer in 0..2 {
            cache.layer(layer).append(&tokens(2, 0), &tokens(2, 5)).unwrap();
        }
        assert_eq!(cache.len(), 2);
        cache.select(&[1, 0]).unwrap();
        let (k, v) = cache.layer(1).append(&tokens(1, 2), &tokens(1, 7)).unwrap();
        assert_eq!(numbers(&k), [10.0, 11.0, 2.0, 0.0, 1.0, 12.0]);
        assert_eq!(numbers(&v), [15.0, 16.0, 7.0, 5.0, 6.0, 17.0]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut cache = KeyValueCache::default();
        cache.layer(0).append(&tokens(2, 0), &tokens(2, 0)).unwrap();
        let other: Value = Tensor::zeros((3, 1, 1), DType::F32, &Device::Cpu).unwrap().into();
        let error = cache.layer(0).append(&other, &other).err().unwrap().to_string();
        assert!(error.contains("[3, 1, 1] after a past of [2, 2, 1]"), "{error}");
        let error = cache.select(&[2]).unwrap_err().to_string();
        assert!(error.contains("row 2 was selected from a batch of 2"), "{error}");
        let gradients = crate::Gradients::default();
        let tape = crate::Tape::new(&gradients);
        let var = candle_core::Var::zeros((2, 1, 1), DType::F32, &Device::Cpu).unwrap();
        let wanted = tape.variable(var.as_tensor()).unwrap();
        assert!(cache.layer(0).append(&wanted, &wanted).is_err());
    }
}
