//! A learned bias by relative position: see `ops/relative_bias.rs`. Rows of the table by bucket, with the heads
//! moved to the front; a bucket beyond the table gives NaN.

use candle_core::{DType, Result, Tensor, bail};

use super::device::Gpu;
use super::embedding::{add_rows, rows};
use super::transpose::swapped;
use crate::tape::Value;

pub(crate) fn relative_bias(buckets: &Value, table: &Tensor) -> Result<Value> {
    let (t, s) = buckets.tensor().dims2()?;
    let (vocab, heads) = table.dims2()?;
    if buckets.tensor().dtype() != DType::U32 {
        bail!("relative_bias: buckets of type u32 are expected, got {:?}", buckets.tensor().dtype());
    }
    let gpu = Gpu::of(table)?;
    let by_pair = rows(&gpu, table, buckets.tensor(), vec![1, t * s, heads])?;
    let y = swapped(&gpu, &by_pair)?.reshape((heads, t, s))?;
    let Some(tape) = Value::recording(&[buckets], &[table]) else { return Ok(buckets.unrecorded(y)) };
    let (buckets, table) = (buckets.tensor().clone(), table.clone());
    Ok(tape.record(y, move |dy, flow| match flow.parameter(&table)? {
        Some(to) => {
            let by_pair = swapped(&gpu, &dy.tensor().reshape((1, heads, t * s))?)?;
            add_rows(&gpu, &by_pair, &buckets, &to, vocab)
        }
        None => Ok(()),
    }))
}
