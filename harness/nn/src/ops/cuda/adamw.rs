//! AdamW whose state never leaves the GPU: nothing in a step waits for the device.

use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor, bail};

use super::device::{Address, Gpu, Grid, address, int, launch};
use super::{elements, parts};
use crate::parameters::Parameter;

/// Parameters, moments, and what the last steps saw.
pub struct DeviceAdamW {
    gpu: Gpu,
    slots: Vec<Slot>,
    /// Partial sums of squares of all gradients a step.
    total: usize,
    /// Steps whose outcome is kept until it is read.
    window: usize,
    /// Steps taken since.
    taken: usize,
    /// `[window, total]`: every step's, so that a gradient that is not finite can be named later.
    squares: Tensor,
    /// `[window, 3]`: norm, clip factor, whether the norm is finite.
    clips: Tensor,
    /// `[window]`
    losses: Tensor,
    /// `[groups, 3]`: step size, 1 / sqrt of the second moment's correction, decay.
    rates: Tensor,
}

struct Slot {
    parameter: Parameter,
    first_moment: Tensor,
    second_moment: Tensor,
    squares: Range<usize>,
}

/// The numbers of a step that change with it, for one group of parameters.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// Learning rate / (1 - beta1^t).
    pub step_size: f32,
    /// 1 / sqrt(1 - beta2^t).
    pub inverse_root_correction: f32,
    /// 1 - learning rate * weight decay.
    pub decay: f32,
}

/// The numbers of a step that stay.
#[derive(Clone, Copy, Debug)]
pub struct Constants {
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Largest global gradient norm.
    pub clip_norm: f32,
}

/// What a step saw.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// The loss.
    pub loss: f32,
    /// Global gradient norm before clipping. If it is not finite, the step changed nothing.
    pub gradient_norm: f32,
    /// The first parameter, by its place in the list, whose gradient is not finite.
    pub not_finite: Option<usize>,
}

impl DeviceAdamW {
    /// Zero moments for parameters that are all on one GPU and have `groups` different rates. Outcomes of at most
    /// `window` steps are kept.
    ///
    /// # Errors
    /// A parameter is not on a GPU, or its memory is full.
    pub fn new(parameters: Vec<Parameter>, groups: usize, window: usize) -> Result<Self> {
        let Some(first) = parameters.first() else { bail!("there are no parameters to train") };
        let gpu = Gpu::of(first.master.as_tensor())?;
        let mut total = 0;
        let slots = parameters
            .into_iter()
            .map(|parameter| {
                let shape = parameter.master.shape();
                let count = parts(shape.elem_count(), 16_384, 1024);
                total += count;
                Ok(Slot {
                    first_moment: gpu.zeros(shape, DType::F32)?,
                    second_moment: gpu.zeros(shape, DType::F32)?,
                    squares: total - count..total,
                    parameter,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            squares: gpu.zeros((window, total), DType::F32)?,
            clips: gpu.zeros((window, 3), DType::F32)?,
            losses: gpu.zeros(window, DType::F32)?,
            rates: gpu.zeros((groups, 3), DType::F32)?,
            gpu,
            slots,
            total,
            window,
            taken: 0,
        })
    }

    /// One step: norm, clipping, update of the weights and of the copies the model computes with. `gradients` are
    /// float32, in the order of the parameters, and `membership` says in the same order whose of the `rates` count;
    /// `loss` is a float32 scalar.
    ///
    /// # Errors
    /// As many steps as fit in the window have not been read, numbers of anything that do not fit each other, or a
    /// device failed.
    pub fn step(
        &mut self,
        gradients: &[Tensor],
        loss: &Tensor,
        membership: &[usize],
        rates: &[Rates],
        with: Constants,
    ) -> Result<()> {
        let slots = self.slots.len();
        if self.taken == self.window || gradients.len() != slots || membership.len() != slots {
            let (n, unread) = (gradients.len(), self.taken);
            bail!("{n} gradients for {slots} parameters after {unread} unread steps");
        }
        let groups = self.rates.dim(0)?;
        if rates.len() != groups || membership.iter().any(|group| *group >= groups) {
            bail!("{} rates for {groups} groups of parameters", rates.len());
        }
        if loss.dtype() != DType::F32 || loss.elem_count() != 1 {
            bail!("a float32 scalar is expected as a loss, got {loss:?}");
        }
        let gpu = &self.gpu;
        let here = |buffer: &Tensor, width: usize| {
            Ok::<_, candle_core::Error>(address(buffer)?.offset(self.taken * width, size_of::<f32>()))
        };
        let (squares, clip) = (here(&self.squares, self.total)?, here(&self.clips, 3)?);
        for (slot, gradient) in self.slots.iter().zip(gradients) {
            let n = slot.parameter.master.elem_count();
            if gradient.elem_count() != n || gradient.dtype() != DType::F32 {
                bail!("parameter `{}`: its gradient is {gradient:?}", slot.parameter.name);
            }
            let grid = Grid { blocks: (slot.squares.len(), 1, 1), threads: 256, shared: 0 };
            let to = squares.offset(slot.squares.start, size_of::<f32>());
            launch!(gpu, "adamw", "sum_squares_f32", grid, address(gradient)?, n, to)?;
        }
        let one = Grid { blocks: (1, 1, 1), threads: 256, shared: 0 };
        launch!(gpu, "adamw", "clip_f32", one, squares, int(self.total)?, with.clip_norm, clip)?;
        let words = |r: &Rates| [r.step_size, r.inverse_root_correction, r.decay].map(f32::to_bits);
        gpu.write(address(&self.rates)?, &rates.iter().flat_map(words).collect::<Vec<_>>())?;
        for ((slot, gradient), group) in self.slots.iter().zip(gradients).zip(membership) {
            let n = slot.parameter.master.elem_count();
            launch!(
                gpu,
                "adamw",
                "adamw_f32",
                elements(n),
                address(slot.parameter.master.as_tensor())?,
                address(&slot.first_moment)?,
                address(&slot.second_moment)?,
                address(gradient)?,
                slot.parameter.copy().map_or(Ok(Address::NULL), address)?,
                n,
                address(&self.rates)?.offset(3 * group, size_of::<f32>()),
                clip,
                with.beta1,
                with.beta2,
                with.eps,
            )?;
        }
        gpu.copy(loss, here(&self.losses, 1)?)?;
        self.taken += 1;
        Ok(())
    }

    /// Steps whose outcome has not been read.
    pub fn unread(&self) -> usize {
        self.taken
    }

    /// What the steps since the last call saw; waits for them.
    ///
    /// # Errors
    /// A device failed.
    pub fn outcomes(&mut self) -> Result<Vec<Outcome>> {
        let taken = std::mem::take(&mut self.taken);
        if taken == 0 {
            return Ok(Vec::new());
        }
        let losses = self.losses.to_vec1::<f32>()?;
        let clips = self.clips.to_vec2::<f32>()?;
        let outcome = |step: usize| {
            let gradient_norm = clips[step][0];
            let not_finite = if gradient_norm.is_finite() { None } else { self.first_not_finite(step)? };
            Ok(Outcome { loss: losses[step], gradient_norm, not_finite })
        };
        (0..taken).map(outcome).collect()
    }

    fn first_not_finite(&self, step: usize) -> Result<Option<usize>> {
        let squares = self.squares.get(step)?.to_vec1::<f32>()?;
        Ok(self.slots.iter().position(|slot| squares[slot.squares.clone()].iter().any(|s| !s.is_finite())))
    }

    /// Copies of both moments of every parameter in host memory, in the order of the parameters.
    ///
    /// # Errors
    /// A device failed.
    pub fn moments(&self) -> Result<Vec<(Tensor, Tensor)>> {
        let host = |t: &Tensor| t.to_device(&Device::Cpu);
        self.slots.iter().map(|slot| Ok((host(&slot.first_moment)?, host(&slot.second_moment)?))).collect()
    }

    /// Puts moments back.
    ///
    /// # Errors
    /// A device failed.
    ///
    /// # Panics
    /// A parameter's place is beyond the list.
    pub fn restore(&mut self, place: usize, first: &Tensor, second: &Tensor) -> Result<()> {
        let device = self.gpu.device();
        let slot = &mut self.slots[place];
        slot.first_moment = first.to_dtype(DType::F32)?.to_device(&device)?;
        slot.second_moment = second.to_dtype(DType::F32)?.to_device(&device)?;
        Ok(())
    }
}
