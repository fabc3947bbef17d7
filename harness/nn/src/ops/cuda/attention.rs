//! Attention: see `ops/attention.rs`. Matrix products run on tensor cores in bfloat16 for heads of 32, 64 and
//! 128; other head sizes, and values of another width than keys, are computed in float32. Rotary positions are applied to
//! copies of queries and keys.

use candle_core::{DType, Result, Tensor, bail};

use super::device::{Address, Argument, Gpu, Grid, address, int, launch};
use super::rope::turn;
use super::{elementwise, kernel, same_type};
use crate::ops::attention::{Inputs, Size};
use crate::ops::{Attention, RopeTable, Scores};
use crate::tape::{Grad, Value};

/// Numbers of a head's keys that the kernels keep in registers. Values may be of any width.
const MOST_OF_KEYS: usize = 128;

pub(crate) fn attend(inputs: Inputs, attention: Attention, scores: Scores) -> Result<Value> {
    let size = inputs.size(attention)?;
    if size.head_dim > MOST_OF_KEYS {
        bail!("attention: keys of {} numbers a head; on a GPU at most {MOST_OF_KEYS}", size.head_dim);
    }
    scores.check(size)?;
    let values = inputs.values();
    let first = values[0].tensor();
    let others: Vec<&Tensor> =
        values.iter().map(|x| x.tensor()).chain(scores.bias.map(Value::tensor)).collect();
    same_type("attention", first, &others)?;
    let gpu = Gpu::of(first)?;
    let (dtype, width) = (first.dtype(), size.width());
    // the type the kernels compute with
    let on_tensor_cores = matches!(size.head_dim, 32 | 64 | 128) && size.value_dim == size.head_dim;
    let inner = if dtype == DType::BF16 && on_tensor_cores { dtype } else { DType::F32 };
    let given: Vec<Tensor> =
        values.iter().map(|x| converted(&gpu, x.tensor(), inner)).collect::<Result<_>>()?;
    let call = Call {
        operands: operands(&gpu, given, size, scores.rope)?,
        mask: scores.mask.cloned(),
        bias: scores.bias.map(|bias| converted(&gpu, bias.tensor(), DType::F32)).transpose()?,
        size,
        scale: attention.scale as f32,
        gpu,
    };
    let (y, lse) = call.forward(inner)?;
    let result = converted(&call.gpu, &y, dtype)?;
    let recorded: Vec<&Value> = values.iter().copied().chain(scores.bias).collect();
    let Some(tape) = Value::recording(&recorded, &[]) else { return Ok(values[0].unrecorded(result)) };
    let slots: Vec<Option<usize>> = values.iter().map(|x| x.slot()).collect();
    let (bias_slot, rope) = (scores.bias.and_then(Value::slot), scores.rope.cloned());
    Ok(tape.record(result, move |dy, flow| {
        let gpu = &call.gpu;
        let dy = converted(gpu, dy.tensor(), inner)?;
        let widths = [width, width, size.value_width()];
        let shapes = [(size.t, widths[0]), (size.s, widths[1]), (size.s, widths[2])];
        let (gradients, places) = if slots.len() == 1 {
            let packed = gpu.empty((size.batch, size.t, 3 * width), inner)?;
            let places = [0, width, 2 * width].map(|first| Operand::new(&packed, first, 3 * width));
            (vec![packed], places)
        } else {
            let tensors = shapes.map(|(rows, width)| gpu.empty((size.batch, rows, width), inner));
            let tensors: Vec<Tensor> = tensors.into_iter().collect::<Result<_>>()?;
            let places = [0, 1, 2].map(|i: usize| Operand::new(&tensors[i], 0, widths[i]));
            (tensors, places)
        };
        let delta = call.backward(&y, &dy, &lse, &places)?;
        if let Some(table) = &rope {
            let [dq, dk, _] = &places;
            turn_back(gpu, table, dq, size, size.t, size.s - size.t)?;
            turn_back(gpu, table, dk, size, size.s, 0)?;
        }
        if bias_slot.is_some() {
            let dbias = call.backward_bias(&dy, &lse, &delta)?;
            flow.send(bias_slot, Grad::new(converted(gpu, &dbias, dtype)?))?;
        }
        for (slot, gradient) in slots.into_iter().zip(gradients) {
            flow.send(slot, Grad::new(converted(gpu, &gradient, dtype)?))?;
        }
        Ok(())
    }))
}

/// The tensor itself if it has the type.
fn converted(gpu: &Gpu, x: &Tensor, dtype: DType) -> Result<Tensor> {
    if x.dtype() == dtype { Ok(x.clone()) } else { elementwise::cast(gpu, x, dtype) }
}

/// Queries, keys, values or a gradient of them: `[batch, rows, stride]`, of which the columns from `first` on count.
struct Operand {
    tensor: Tensor,
    first: usize,
    stride: usize,
}

impl Operand {
    fn new(tensor: &Tensor, first: usize, stride: usize) -> Self {
        Self { tensor: tensor.clone(), first, stride }
    }

    fn address(&self) -> Result<Address> {
        Ok(address(&self.tensor)?.offset(self.first, self.tensor.dtype().size_in_bytes()))
    }
}

/// Queries, keys and values, turned if there is a table.
fn operands(gpu: &Gpu, given: Vec<Tensor>, size: Size, rope: Option<&RopeTable>) -> Result<[Operand; 3]> {
    let width = size.width();
    let [q, k, v] = match given.as_slice() {
        [q, k, v] => {
            [(q, width), (k, width), (v, size.value_width())].map(|(x, width)| Operand::new(x, 0, width))
        }
        _ => [0, width, 2 * width].map(|first| Operand::new(&given[0], first, 3 * width)),
    };
    let Some(table) = rope else { return Ok([q, k, v]) };
    table.check(0, size.s, size.head_dim)?;
    let turned = |x: &Operand, rows: usize, start: usize| {
        let to = gpu.empty((size.batch, rows, width), x.tensor.dtype())?;
        let to = Operand::new(&to, 0, width);
        let (from, into) = ((x.address()?, x.stride), (to.address()?, width));
        turn(gpu, table, &to.tensor, from, into, (size.batch * rows, rows, size.heads), start, 1.0)?;
        Ok::<_, candle_core::Error>(to)
    };
    Ok([turned(&q, size.t, size.s - size.t)?, turned(&k, size.s, 0)?, v])
}

/// Turns a gradient of queries or keys back, in place.
fn turn_back(gpu: &Gpu, table: &RopeTable, x: &Operand, size: Size, rows: usize, start: usize) -> Result<()> {
    let place = (x.address()?, x.stride);
    turn(gpu, table, &x.tensor, place, place, (size.batch * rows, rows, size.heads), start, -1.0)
}

/// Everything a call's kernels need beside the result and its gradient.
struct Call {
    gpu: Gpu,
    operands: [Operand; 3],
    mask: Option<Tensor>,
    /// In float32.
    bias: Option<Tensor>,
    size: Size,
    scale: f32,
}

/// Which kernel.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pass {
    Forward,
    Keys,
    Queries,
    Bias,
}

impl Call {
    fn function(&self, pass: Pass, dtype: DType) -> String {
        let stem = match pass {
            Pass::Forward => "attention_forward",
            Pass::Keys => "attention_backward_kv",
            Pass::Queries => "attention_backward_q",
            Pass::Bias => "attention_backward_bias",
        };
        match dtype {
            DType::BF16 => format!("{stem}_bf16_d{}", self.size.head_dim),
            _ => format!("{stem}_f32"),
        }
    }

    /// Tiles and shared memory as the kernels lay them out.
    fn grid(&self, pass: Pass, dtype: DType) -> Grid {
        let Size { batch, t, s, heads, head_dim, value_dim, .. } = self.size;
        // slices of the values' columns
        let mut slices = 1;
        // queries and keys of a tile
        let (m, n, threads, shared) = if dtype == DType::BF16 {
            let row = (head_dim + 8) * 2;
            let n = if head_dim == 128 { 32 } else { 64 };
            let shared = match pass {
                Pass::Forward => (64 + 2 * 64) * row,
                Pass::Keys => (2 * 64 + 2 * n) * row + 2 * n * 4,
                Pass::Queries | Pass::Bias => (2 * 64 + 2 * n) * row,
            };
            (64, if pass == Pass::Bias { n } else { 64 }, 128, shared)
        } else {
            let (m, columns) = if head_dim <= 64 { (64, 64) } else { (32, 128) };
            slices = value_dim.div_ceil(columns);
            let tile = |columns: usize| (columns | 1) * 4 * m;
            let (keys, values, p) = (tile(head_dim), tile(value_dim.min(columns)), m * (m + 1) * 4);
            let shared = match pass {
                Pass::Forward => keys + keys.max(values) + p,
                Pass::Keys => 2 * keys + 2 * values + 2 * p,
                Pass::Queries => 2 * keys + 2 * values + p,
                Pass::Bias => 2 * keys + 2 * values,
            };
            (m, m, 256, shared)
        };
        let blocks = match pass {
            Pass::Forward => (t.div_ceil(m), batch * heads, slices),
            Pass::Queries => (t.div_ceil(m), batch * heads, 1),
            // of several slices each has a block, and the gradient of the keys one more
            Pass::Keys => (s.div_ceil(n), batch * heads, if slices > 1 { slices + 1 } else { 1 }),
            Pass::Bias => (s.div_ceil(n), t.div_ceil(m), heads),
        };
        Grid { blocks, threads, shared }
    }

    /// Launches a pass with `arrays`, the sizes, `strides`, the scale, whether attention is causal, and `last`.
    fn launch(
        &self,
        pass: Pass,
        dtype: DType,
        arrays: &[Address],
        strides: &[usize],
        last: Option<i32>,
    ) -> Result<()> {
        let Size { batch, t, s, heads, head_dim, value_dim, causal } = self.size;
        let mut arguments: Vec<Argument> = arrays.iter().map(|a| (*a).into()).collect();
        for n in [batch, heads, t, s, head_dim, value_dim] {
            arguments.push(int(n)?.into());
        }
        arguments.extend(strides.iter().map(|n| Argument::from(*n)));
        arguments.push(self.scale.into());
        arguments.push(i32::from(causal).into());
        arguments.extend(last.map(Argument::from));
        // SAFETY: the arguments are those of the kernels' signatures, which differ in nothing else; shapes are
        // those of `size`.
        unsafe {
            self.gpu.launch("attention", &self.function(pass, dtype), self.grid(pass, dtype), &arguments)
        }
    }

    fn scores(&self) -> Result<[Address; 2]> {
        let pointer = |t: &Option<Tensor>| t.as_ref().map_or(Ok(Address::NULL), address);
        Ok([pointer(&self.mask)?, pointer(&self.bias)?])
    }

    /// The result and the log-sum-exp of every row of scores, `[batch * heads, t]`.
    fn forward(&self, dtype: DType) -> Result<(Tensor, Tensor)> {
        let Size { batch, t, heads, .. } = self.size;
        let y = self.gpu.empty((batch, t, self.size.value_width()), dtype)?;
        let lse = self.gpu.empty((batch * heads, t), DType::F32)?;
        let ([q, k, v], [mask, bias]) = (&self.operands, self.scores()?);
        let arrays = [q.address()?, k.address()?, v.address()?, address(&y)?, address(&lse)?, mask, bias];
        let strides = [q.stride, k.stride, v.stride, self.size.value_width()];
        self.launch(Pass::Forward, dtype, &arrays, &strides, None)?;
        Ok((y, lse))
    }

    /// Writes dq, dk and dv to their places. The result is what [`Call::backward_bias`] needs.
    fn backward(&self, y: &Tensor, dy: &Tensor, lse: &Tensor, places: &[Operand; 3]) -> Result<Tensor> {
        let Size { batch, t, heads, value_dim, .. } = self.size;
        let (width, dtype) = (self.size.value_width(), y.dtype());
        let delta = self.gpu.empty(lse.shape(), DType::F32)?;
        let grid = Grid { blocks: ((batch * t * heads).div_ceil(8), 1, 1), threads: 256, shared: 0 };
        launch!(
            self.gpu,
            "attention",
            &kernel("attention_delta", y)?,
            grid,
            address(y)?,
            address(dy)?,
            address(&delta)?,
            int(batch)?,
            int(heads)?,
            int(t)?,
            int(value_dim)?,
            width,
            width,
        )?;
        let [q, k, v] = &self.operands;
        let [dq, dk, dv] = places;
        let inputs = self.gradient_inputs(dy, lse, &delta)?;
        let of = |outputs: &[Address]| inputs.iter().chain(outputs).copied().collect::<Vec<_>>();
        let strides = [q.stride, k.stride, v.stride, width];
        let keys = [strides.as_slice(), &[dk.stride, dv.stride]].concat();
        self.launch(Pass::Keys, dtype, &of(&[dk.address()?, dv.address()?]), &keys, None)?;
        let queries = [strides.as_slice(), &[dq.stride]].concat();
        self.launch(Pass::Queries, dtype, &of(&[dq.address()?]), &queries, None)?;
        Ok(delta)
    }

    /// The bias's gradient, in float32.
    fn backward_bias(&self, dy: &Tensor, lse: &Tensor, delta: &Tensor) -> Result<Tensor> {
        let Size { t, s, heads, .. } = self.size;
        let [q, k, v] = &self.operands;
        let dbias = self.gpu.empty((heads, t, s), DType::F32)?;
        let arrays = [self.gradient_inputs(dy, lse, delta)?.as_slice(), &[address(&dbias)?]].concat();
        let strides = [q.stride, k.stride, v.stride, self.size.value_width()];
        self.launch(Pass::Bias, dy.dtype(), &arrays, &strides, Some(0))?;
        Ok(dbias)
    }

    /// What all backward kernels read.
    fn gradient_inputs(&self, dy: &Tensor, lse: &Tensor, delta: &Tensor) -> Result<[Address; 8]> {
        let ([q, k, v], [mask, bias]) = (&self.operands, self.scores()?);
        let (q, k, v) = (q.address()?, k.address()?, v.address()?);
        Ok([q, k, v, address(dy)?, address(lse)?, address(delta)?, mask, bias])
    }
}
