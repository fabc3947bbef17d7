//! A learned bias by relative position: see `ops/relative_bias.rs`. A bucket beyond the table gives NaN, and nothing to the
//! table's gradient.

use candle_core::{DType, Result, Tensor, bail};

use super::device::{Gpu, Grid, address, int, launch};
use super::{elements, kernel, sum_parts};
use crate::tape::Value;

const MODULE: &str = "relative_bias";
/// Pairs a block of the backward pass works on.
const PAIRS: usize = 2048;

pub(crate) fn relative_bias(buckets: &Value, (t, s): (usize, usize), table: &Tensor) -> Result<Value> {
    let (rows, heads) = table.dims2()?;
    if buckets.tensor().dtype() != DType::U32 {
        bail!("relative_bias: buckets of type u32 are expected, got {:?}", buckets.tensor().dtype());
    }
    let gpu = Gpu::of(table)?;
    let (pairs, queries, keys, heads_, rows_) = (t * s, int(t)?, int(s)?, int(heads)?, int(rows)?);
    let y = gpu.empty((heads, t, s), table.dtype())?;
    let (forward, grid, to) =
        (kernel("relative_bias_forward", table)?, elements(heads * pairs), address(&y)?);
    let from = address(buckets.tensor())?;
    launch!(gpu, MODULE, &forward, grid, from, address(table)?, to, queries, keys, heads_, rows_)?;
    let Some(tape) = Value::recording(&[buckets], &[table]) else { return Ok(buckets.unrecorded(y)) };
    let (buckets, table) = (buckets.tensor().clone(), table.clone());
    Ok(tape.record(y, move |dy, flow| {
        let Some(to) = flow.parameter(&table)? else { return Ok(()) };
        let parts = pairs.div_ceil(PAIRS).max(1);
        let partial = gpu.empty((parts, rows, heads), DType::F32)?;
        let (backward, from) = (kernel("relative_bias_backward", dy.tensor())?, address(&buckets)?);
        let grid = Grid { blocks: (parts, heads, 1), threads: 256, shared: 0 };
        let (dy, sums) = (address(dy.tensor())?, address(&partial)?);
        launch!(gpu, MODULE, &backward, grid, from, dy, sums, queries, keys, heads_, rows_)?;
        sum_parts(&gpu, &partial, &to)
    }))
}
