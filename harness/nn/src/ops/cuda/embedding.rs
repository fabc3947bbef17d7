//! Rows of a table: see `ops/embedding.rs`. Equal ids add up in the order of their positions, in float32.

use candle_core::{DType, Result, Tensor, bail};

use super::device::{Gpu, Grid, address, int, launch};
use super::{elements, kernel};
use crate::tape::{Destination, Value};

/// Positions a block of the backward pass works on.
const POSITIONS: usize = 64;

pub(crate) fn embedding(ids: &Value, table: &Tensor) -> Result<Value> {
    let (vocab, width) = table.dims2()?;
    if ids.tensor().dtype() != DType::U32 {
        bail!("embedding: ids of type u32 are expected, got {:?}", ids.tensor().dtype());
    }
    let gpu = Gpu::of(table)?;
    let mut dims = ids.tensor().dims().to_vec();
    dims.push(width);
    let y = rows(&gpu, table, ids.tensor(), dims)?;
    let Some(tape) = Value::recording(&[ids], &[table]) else { return Ok(ids.unrecorded(y)) };
    let (ids, table) = (ids.tensor().clone(), table.clone());
    Ok(tape.record(y, move |dy, flow| match flow.parameter(&table)? {
        Some(to) => add_rows(&gpu, dy.tensor(), &ids, &to, vocab),
        None => Ok(()),
    }))
}

/// Adds the rows of `dy` to the rows of a table's gradient that `ids` name.
fn add_rows(gpu: &Gpu, dy: &Tensor, ids: &Tensor, to: &Destination, vocab: usize) -> Result<()> {
    let n = ids.elem_count();
    let width = dy.elem_count() / n.max(1);
    if !to.accumulate {
        gpu.clear(&to.tensor)?;
    }
    if n == 0 {
        return Ok(());
    }
    let blocks = n.div_ceil(POSITIONS);
    let order = gpu.empty(n, DType::U32)?;
    let rank = Grid { blocks: (blocks, 1, 1), threads: POSITIONS, shared: 0 };
    launch!(gpu, "embedding", "embedding_rank", rank, address(ids)?, address(&order)?, int(n)?)?;
    let partial = gpu.empty((2 * blocks, width), DType::F32)?;
    let grid = Grid { blocks: (blocks, width.div_ceil(128), 1), threads: 128, shared: 0 };
    let (ids, order, partial) = (address(ids)?, address(&order)?, address(&partial)?);
    // nobody has looked at the ids: the kernels leave out those beyond the table
    let (n, width, vocab) = (int(n)?, int(width)?, int(vocab)?);
    let (backward, dy, to) = (kernel("embedding_backward", dy)?, address(dy)?, address(&to.tensor)?);
    launch!(gpu, "embedding", &backward, grid, dy, ids, order, to, partial, n, width, vocab)?;
    launch!(gpu, "embedding", "embedding_join_f32", grid, partial, ids, order, to, n, width, vocab)
}

/// `table[ids]`, of shape `dims`.
pub(super) fn rows(gpu: &Gpu, table: &Tensor, ids: &Tensor, dims: Vec<usize>) -> Result<Tensor> {
    let (vocab, width) = table.dims2()?;
    let n = ids.elem_count();
    let y = gpu.empty(dims, table.dtype())?;
    launch!(
        gpu,
        "embedding",
        &kernel("embedding_forward", table)?,
        elements(n * width),
        address(ids)?,
        address(table)?,
        address(&y)?,
        n,
        int(width)?,
        int(vocab)?,
    )?;
    Ok(y)
}
