//! Attention: see `ops/attention.rs`. Matrix products run on tensor cores in bfloat16 for heads of 32, 64 and
//! 128; other head sizes are computed in float32.

use candle_core::{DType, Result, Tensor, bail};

use super::device::{Address, Gpu, Grid, address, int, launch};
use super::{elementwise, kernel, same_type};
use crate::ops::Attention;
use crate::tape::{Grad, Value};

pub(crate) fn attend(q: &Value, k: &Value, v: &Value, attention: Attention) -> Result<Value> {
    let (batch, t, width) = q.tensor().dims3()?;
    let (_, s, _) = k.tensor().dims3()?;
    let heads = attention.heads;
    let fits = k.tensor().dims() == [batch, s, width] && v.tensor().dims() == [batch, s, width];
    if !fits || heads == 0 || width % heads != 0 || (attention.causal && t > s) {
        let (q, k, v) = (q.tensor().dims(), k.tensor().dims(), v.tensor().dims());
        bail!("attention: q {q:?}, k {k:?}, v {v:?} with {heads} heads, causal {}", attention.causal);
    }
    same_type("attention", q.tensor(), &[k.tensor(), v.tensor()])?;
    let gpu = Gpu::of(q.tensor())?;
    let size = Size { batch, t, s, heads, head_dim: width / heads, width, attention };
    let dtype = q.tensor().dtype();
    // the type the kernels compute with
    let inner = size.number_type(dtype);
    let inputs = [q, k, v].map(|x| converted(&gpu, x.tensor(), inner));
    let [q_in, k_in, v_in] = inputs;
    let (q_in, k_in, v_in) = (q_in?, k_in?, v_in?);
    let (y, lse) = size.forward(&gpu, [&q_in, &k_in, &v_in])?;
    let result = converted(&gpu, &y, dtype)?;
    let Some(tape) = Value::recording(&[q, k, v], &[]) else { return Ok(q.unrecorded(result)) };
    let slots = [q.slot(), k.slot(), v.slot()];
    Ok(tape.record(result, move |dy, flow| {
        let dy = converted(&gpu, dy.tensor(), inner)?;
        let gradients = size.backward(&gpu, [&q_in, &k_in, &v_in, &y, &dy], &lse)?;
        for (slot, gradient) in slots.into_iter().zip(gradients) {
            flow.send(slot, Grad::new(converted(&gpu, &gradient, dtype)?))?;
        }
        Ok(())
    }))
}

/// The tensor itself if it has the type.
fn converted(gpu: &Gpu, x: &Tensor, dtype: DType) -> Result<Tensor> {
    if x.dtype() == dtype { Ok(x.clone()) } else { elementwise::cast(gpu, x, dtype) }
}

/// The sizes of one call.
#[derive(Clone, Copy)]
struct Size {
    batch: usize,
    t: usize,
    s: usize,
    heads: usize,
    head_dim: usize,
    width: usize,
    attention: Attention,
}

/// Which of the four kernels.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pass {
    Forward,
    Keys,
    Queries,
}

impl Size {
    fn number_type(&self, dtype: DType) -> DType {
        if dtype == DType::BF16 && matches!(self.head_dim, 32 | 64 | 128) { dtype } else { DType::F32 }
    }

    fn function(&self, pass: Pass, dtype: DType) -> String {
        let stem = match pass {
            Pass::Forward => "attention_forward",
            Pass::Keys => "attention_backward_kv",
            Pass::Queries => "attention_backward_q",
        };
        match dtype {
            DType::BF16 => format!("{stem}_bf16_d{}", self.head_dim),
            _ => format!("{stem}_f32"),
        }
    }

    /// Tiles and shared memory as the kernels lay them out.
    fn grid(&self, pass: Pass, dtype: DType) -> Grid {
        let length = if pass == Pass::Keys { self.s } else { self.t };
        let (tile, threads, shared) = if dtype == DType::BF16 {
            let row = (self.head_dim + 8) * 2;
            let n = if self.head_dim == 128 { 32 } else { 64 };
            let shared = match pass {
                Pass::Forward => (64 + 2 * 64) * row,
                Pass::Keys => (2 * 64 + 2 * n) * row + 2 * n * 4,
                Pass::Queries => (2 * 64 + 2 * n) * row,
            };
            (64, 128, shared)
        } else {
            let m = if self.head_dim <= 64 { 64 } else { 32 };
            let (row, p) = ((self.head_dim | 1) * 4 * m, m * (m + 1) * 4);
            let shared = match pass {
                Pass::Forward => 2 * row + p,
                Pass::Keys => 4 * row + 2 * p,
                Pass::Queries => 4 * row + p,
            };
            (m, 256, shared)
        };
        Grid { blocks: (length.div_ceil(tile), self.batch * self.heads, 1), threads, shared }
    }

    /// The result and the log-sum-exp of every row of scores, `[batch * heads, t]`.
    fn forward(&self, gpu: &Gpu, [q, k, v]: [&Tensor; 3]) -> Result<(Tensor, Tensor)> {
        let y = gpu.empty(q.shape(), q.dtype())?;
        let lse = gpu.empty((self.batch * self.heads, self.t), DType::F32)?;
        launch!(
            gpu,
            "attention",
            &self.function(Pass::Forward, q.dtype()),
            self.grid(Pass::Forward, q.dtype()),
            address(q)?,
            address(k)?,
            address(v)?,
            address(&y)?,
            address(&lse)?,
            Address::NULL,
            Address::NULL,
            int(self.batch)?,
            int(self.heads)?,
            int(self.t)?,
            int(self.s)?,
            int(self.head_dim)?,
            self.width,
            self.width,
            self.width,
            self.width,
            self.attention.scale as f32,
            i32::from(self.attention.causal),
        )?;
        Ok((y, lse))
    }

    /// dq, dk, dv.
    fn backward(&self, gpu: &Gpu, [q, k, v, y, dy]: [&Tensor; 5], lse: &Tensor) -> Result<[Tensor; 3]> {
        let (batch, heads, t, s) = (int(self.batch)?, int(self.heads)?, int(self.t)?, int(self.s)?);
        let (head_dim, width) = (int(self.head_dim)?, self.width);
        let (scale, causal) = (self.attention.scale as f32, i32::from(self.attention.causal));
        let delta = gpu.empty(lse.shape(), DType::F32)?;
        let rows = self.batch * self.t * self.heads;
        let grid = Grid { blocks: (rows.div_ceil(8), 1, 1), threads: 256, shared: 0 };
        launch!(
            gpu,
            "attention",
            &kernel("attention_delta", y)?,
            grid,
            address(y)?,
            address(dy)?,
            address(&delta)?,
            batch,
            heads,
            t,
            head_dim,
            width,
            width,
        )?;
        let empty = |like: &Tensor| gpu.empty(like.shape(), like.dtype());
        let (dq, dk, dv) = (empty(q)?, empty(k)?, empty(v)?);
        let dtype = q.dtype();
        launch!(
            gpu,
            "attention",
            &self.function(Pass::Keys, dtype),
            self.grid(Pass::Keys, dtype),
            address(q)?,
            address(k)?,
            address(v)?,
            address(dy)?,
            address(lse)?,
            address(&delta)?,
            Address::NULL,
            Address::NULL,
            address(&dk)?,
            address(&dv)?,
            batch,
            heads,
            t,
            s,
            head_dim,
            width,
            width,
            width,
            width,
            width,
            width,
            scale,
            causal,
        )?;
        launch!(
            gpu,
            "attention",
            &self.function(Pass::Queries, dtype),
            self.grid(Pass::Queries, dtype),
            address(q)?,
            address(k)?,
            address(v)?,
            address(dy)?,
            address(lse)?,
            address(&delta)?,
            Address::NULL,
            Address::NULL,
            address(&dq)?,
            batch,
            heads,
            t,
            s,
            head_dim,
            width,
            width,
            width,
            width,
            width,
            scale,
            causal,
        )?;
        Ok([dq, dk, dv])
    }
}
