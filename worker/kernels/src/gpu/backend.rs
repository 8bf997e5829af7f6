//! [`Backend`] over the parts: allocation, writes, submits, reads, and the recording of dispatches.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::bindings::Bindings;
use super::cache::PipelineCache;
use super::commands::{self, Command, Copy, Dispatch, Encode, IMMEDIATE_WORDS};
use super::device::{Memory, OpenDevice};
use super::faults::Faults;
use super::halves;
use super::kernel::Kernel;
use super::memory::{Account, GpuBuffer, USAGE, check_copy};
use super::pipelines::Pipelines;
use super::readback::{ReadFault, Readback};
use super::staging::Staging;
use super::tuning::Tuning;
use super::{direct, ops, staging};
use crate::ops::{
    Adjust, Attention, Backend, Combine, DeviceBuffer, DeviceInfo, Embed, ExpandedAttention, Experts, GateUp,
    LatentWrite, Linear, OpError, Queries, ReadRange, RmsNorm, RotateQkv, Route, Sample, Values,
};

/// Most workgroups in one dimension: what every Vulkan device has.
pub(super) const MAX_WORKGROUPS: u32 = 65_535;
/// Longest wait for staging memory that the device is still copying from.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);
/// Rows that there is room for the factors of from the first on.
const LEAST_FACTORS: u32 = 1 << 14;
/// Commands before they are submitted of themselves, so that the device works while the host records: few at first, each
/// time twice as many, because every submit costs something.
const FIRST_RECORDED: usize = 32;
const MAX_RECORDED: usize = 512;

/// A device on which ops run.
#[derive(Debug)]
pub struct GpuBackend {
    device: wgpu::Device,
    queue: wgpu::Queue,
    info: DeviceInfo,
    faults: Faults,
    max_binding_bytes: u64,
    pipelines: Pipelines,
    tuning: Tuning,
    memory: Memory,
    account: Account,
    bindings: Bindings,
    recorded: Vec<Command>,
    /// So many are submitted of themselves.
    most_recorded: usize,
    staging: Staging,
    /// Submissions that copy from staging memory, oldest first.
    copying: VecDeque<wgpu::SubmissionIndex>,
    readback: Readback,
    /// What rows are multiplied with before they are rounded to f16, of the op that is recorded.
    row_factors: Option<GpuBuffer>,
}

impl GpuBackend {
    /// Compiles the pipelines of an open device. Weights are decoded by way of f16 where that may be and is exact.
    pub(super) fn new(open: OpenDevice, may_use_halves: bool) -> Result<Self, OpError> {
        let halves = may_use_halves && halves::are_exact(&open.device, &open.queue);
        let decoding = if halves { "by way of f16" } else { "bit by bit" };
        tracing::info!(adapter = open.info.name, decoding, "weights are decoded");
        let tuning = match Tuning::new(open.class, halves, open.given) {
            tuning if open.info.is_cpu => tuning.on_processor(),
            tuning => tuning,
        };
        let (began, cache) = (Instant::now(), open.cache.as_ref());
        let pipelines = Pipelines::compile(&open.device, &tuning, cache.map(PipelineCache::get));
        open.faults.check(&open.info.name)?;
        let (took, kept) = (began.elapsed(), cache.is_some_and(PipelineCache::was_kept));
        tracing::info!(adapter = open.info.name, ?took, kept, "pipelines are compiled");
        if let Some(cache) = cache {
            cache.keep();
        }
        Ok(Self {
            device: open.device,
            queue: open.queue,
            info: open.info,
            faults: open.faults,
            max_binding_bytes: open.max_binding_bytes,
            pipelines,
            tuning,
            memory: open.memory,
            account: Account::default(),
            bindings: Bindings::default(),
            recorded: Vec::new(),
            most_recorded: FIRST_RECORDED,
            staging: Staging::new(),
            copying: VecDeque::new(),
            readback: Readback::default(),
            row_factors: None,
        })
    }

    /// Ends the device as if the driver had lost it: what a test of recovery calls.
    pub fn lose(&mut self) {
        self.device.destroy();
        self.faults.lose("ended on purpose".to_owned());
    }

    /// Refuses a shader whose loops the device would end before they are done: results would be wrong.
    pub(super) fn check_rounds(&self, op: &'static str, rounds: u64) -> Result<(), OpError> {
        match self.tuning.most_rounds {
            Some(most) if rounds > most.into() => {
                let detail = format!(
                    "its loops take {rounds} rounds and {} ends them after {most}: it takes a GPU",
                    self.info.name
                );
                Err(OpError::shape(op, detail))
            }
            Some(_) | None => Ok(()),
        }
    }

    pub(super) fn tuning(&self) -> &Tuning {
        &self.tuning
    }

    /// Large tiles of given rows are of the most rows from now on, or of the fewest: for trials.
    pub(super) fn set_enough_tiles(&mut self, tiles: u32) -> u32 {
        std::mem::replace(&mut self.tuning.enough_tiles, tiles)
    }

    /// Records commands that are no op.
    pub(super) fn encode(&mut self, encode: impl Fn(&mut wgpu::CommandEncoder) + Send + 'static) {
        self.recorded.push(Command::Encode(Encode(Box::new(encode))));
    }

    pub(super) fn device(&self) -> &wgpu::Device {
        &self.device
    }

    pub(super) fn queue(&self) -> &wgpu::Queue {
        &self.queue
    }

    /// What the driver has refused since it was last asked.
    pub(super) fn check(&self) -> Result<(), OpError> {
        self.faults.check(&self.info.name)
    }

    pub(super) fn compiled(&self) -> (&Pipelines, &Tuning) {
        (&self.pipelines, &self.tuning)
    }

    /// Compiled kernels of other sizes in place of its own, which it gives.
    pub(super) fn swap_kernels(&mut self, tuning: Tuning, pipelines: Pipelines) -> (Tuning, Pipelines) {
        self.bindings = Bindings::default();
        let own = std::mem::replace(&mut self.tuning, tuning);
        (own, std::mem::replace(&mut self.pipelines, pipelines))
    }

    /// Records a dispatch that binds the buffers whole, in the order of the kernel's bindings.
    pub(super) fn dispatch<P: bytemuck::Pod>(
        &mut self,
        kernel: Kernel,
        buffers: &[&GpuBuffer],
        params: &P,
        workgroups: [u32; 3],
    ) -> Result<(), OpError> {
        if workgroups.contains(&0) {
            return Ok(());
        }
        if let Some(count) = workgroups.iter().find(|&&count| count > MAX_WORKGROUPS) {
            let detail =
                format!("{kernel:?} would take {count} workgroups, at most {MAX_WORKGROUPS} are possible");
            return Err(OpError::shape("dispatch", detail));
        }
        self.faults.check_lost(&self.info.name)?;
        let bindings = self
            .bindings
            .get(&self.device, self.pipelines.get(kernel), buffers);
        let mut immediates = [0; IMMEDIATE_WORDS];
        let words: &[u32] = bytemuck::cast_slice(bytemuck::bytes_of(params));
        for (target, word) in immediates.iter_mut().zip(words) {
            *target = *word;
        }
        self.recorded.push(Command::Dispatch(Dispatch {
            kernel,
            bindings,
            immediates,
            workgroups,
        }));
        if self.recorded.len() >= self.most_recorded {
            self.flush()?;
            self.most_recorded = MAX_RECORDED.min(2 * self.most_recorded);
        }
        Ok(())
    }

    /// Room for the factors of so many rows: a few bytes a row, the same memory for all ops.
    pub(super) fn row_factors(&mut self, rows: u32) -> Result<GpuBuffer, OpError> {
        let needed = u64::from(rows.max(LEAST_FACTORS).next_power_of_two()) * 4;
        if let Some(buffer) = self
            .row_factors
            .as_ref()
            .filter(|buffer| buffer.bytes() >= needed)
        {
            return Ok(buffer.clone());
        }
        let label = "factors of rows";
        let buffer = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(label),
            size: needed,
            usage: USAGE,
            mapped_at_creation: false,
        });
        self.made(label, needed)?;
        let buffer = self.account.add_own(buffer);
        self.row_factors = Some(buffer.clone());
        Ok(buffer)
    }

    /// Submits what was recorded.
    fn flush(&mut self) -> Result<(), OpError> {
        self.faults.check_lost(&self.info.name)?;
        self.bindings.forget(&self.account.take_dropped());
        if !self.recorded.is_empty() {
            let commands = commands::encode(&self.device, &self.pipelines, &self.recorded);
            let staged = self.staging.unmap();
            let index = self.queue.submit([commands]);
            self.recorded.clear();
            if !staged.is_empty() {
                self.staging.recycle(staged);
                self.copying.push_back(index);
            }
        }
        self.faults.check(&self.info.name)
    }

    /// Waits for the oldest copies from staging memory.
    fn wait_for_staging(&mut self) -> Result<(), OpError> {
        self.flush()?;
        let waited = self.device.poll(wgpu::PollType::Wait {
            submission_index: self.copying.pop_front(),
            timeout: Some(WRITE_TIMEOUT),
        });
        match waited {
            Ok(_) => self.faults.check(&self.info.name),
            Err(error) => Err(self.fault(
                match error {
                    wgpu::PollError::Timeout => ReadFault::Timeout,
                    other @ wgpu::PollError::WrongSubmissionIndex(..) => ReadFault::Failed(other.to_string()),
                },
                WRITE_TIMEOUT,
            )),
        }
    }

    /// What a failed wait or read means: a lost device explains the rest.
    fn fault(&self, fault: ReadFault, waited: Duration) -> OpError {
        let device = self.info.name.clone();
        if let Err(error) = self.faults.check(&device) {
            return error;
        }
        match fault {
            ReadFault::Timeout => OpError::Timeout { device, waited },
            ReadFault::Failed(reason) => OpError::Refused { device, reason },
        }
    }

    /// Checks that a buffer may be made, frees what was dropped, and gives the size that it gets.
    fn make_room(&mut self, label: &str, bytes: u64) -> Result<u64, OpError> {
        self.faults.check(&self.info.name)?;
        let rounded = bytes.max(16).checked_next_multiple_of(16);
        let rounded = rounded.ok_or_else(|| self.out_of_memory(label, bytes))?;
        if rounded > self.max_binding_bytes {
            return Err(OpError::BindingLimit {
                label: label.to_owned(),
                bytes,
                limit: self.max_binding_bytes,
            });
        }
        let total = self.account.held_bytes().checked_add(rounded);
        if total.is_none_or(|total| total > self.info.memory_bytes) {
            return Err(self.out_of_memory(label, bytes));
        }
        let dropped = self.account.take_dropped();
        if !dropped.is_empty() {
            self.bindings.forget(&dropped);
            // Frees what the device is done with.
            let _ = self.device.poll(wgpu::PollType::Poll);
        }
        Ok(rounded)
    }

    /// What the driver said to a buffer that was made just now.
    fn made(&self, label: &str, bytes: u64) -> Result<(), OpError> {
        self.faults.check_lost(&self.info.name)?;
        match self.faults.take_refusal() {
            None => Ok(()),
            Some(refusal) if refusal.out_of_memory => Err(self.out_of_memory(label, bytes)),
            Some(refusal) => Err(OpError::Refused {
                device: self.info.name.clone(),
                reason: refusal.reason,
            }),
        }
    }

    fn out_of_memory(&self, label: &str, bytes: u64) -> OpError {
        OpError::OutOfMemory {
            label: label.to_owned(),
            bytes,
            held: self.account.held_bytes(),
        }
    }
}

impl Backend for GpuBackend {
    type Buffer = GpuBuffer;

    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn max_binding_bytes(&self) -> u64 {
        self.max_binding_bytes
    }

    fn held_bytes(&self) -> u64 {
        self.account.held_bytes()
    }

    fn alloc(&mut self, label: &str, bytes: u64) -> Result<GpuBuffer, OpError> {
        let size = self.make_room(label, bytes)?;
        let buffer = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(label),
            size,
            usage: USAGE,
            mapped_at_creation: false,
        });
        self.made(label, bytes)?;
        Ok(self.account.add(buffer, None))
    }

    fn alloc_weights(&mut self, label: &str, bytes: u64) -> Result<GpuBuffer, OpError> {
        if self.memory == Memory::Own {
            return self.alloc(label, bytes);
        }
        let size = self.make_room(label, bytes)?;
        let made = direct::create(&self.device, label, size);
        self.made(label, bytes)?;
        match made {
            Ok((buffer, fresh)) => Ok(self.account.add(buffer, Some(fresh))),
            Err(wgpu::hal::DeviceError::OutOfMemory) => Err(self.out_of_memory(label, bytes)),
            Err(other @ (wgpu::hal::DeviceError::Lost | wgpu::hal::DeviceError::Unexpected)) => {
                Err(OpError::Refused {
                    device: self.info.name.clone(),
                    reason: other.to_string(),
                })
            }
        }
    }

    fn write(&mut self, buffer: &GpuBuffer, offset: u64, bytes: &[u8]) -> Result<(), OpError> {
        check_copy(buffer, offset, bytes.len() as u64)?;
        self.faults.check_lost(&self.info.name)?;
        if buffer.write_fresh(offset, bytes) {
            return Ok(());
        }
        let (mut rest, mut to_offset) = (bytes, offset);
        while !rest.is_empty() {
            let staged = self.staging.put(&self.device, rest);
            let staged = staged.map_err(|reason| self.fault(ReadFault::Failed(reason), WRITE_TIMEOUT))?;
            let Some(staged) = staged else {
                self.wait_for_staging()?;
                continue;
            };
            let length = usize::try_from(staged.bytes).unwrap_or(usize::MAX);
            self.recorded.push(Command::Copy(Copy {
                from: staged.buffer,
                from_offset: staged.offset,
                to: buffer.raw().clone(),
                to_offset,
                bytes: staged.bytes,
            }));
            rest = &rest[length..];
            to_offset += staged.bytes;
            // A chunk that is full may as well be on its way.
            if !rest.is_empty() || staged.offset + staged.bytes == staging::CHUNK_BYTES {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn submit(&mut self) -> Result<(), OpError> {
        self.flush()
    }

    fn read(&mut self, ranges: &[ReadRange<GpuBuffer>], deadline: Instant) -> Result<Vec<Vec<u8>>, OpError> {
        for range in ranges {
            check_copy(&range.buffer, range.offset, range.bytes)?;
        }
        self.faults.check_lost(&self.info.name)?;
        let started = Instant::now();
        let (buffer, copies) = self.readback.record(&self.device, ranges);
        self.recorded.extend(copies);
        self.flush()?;
        self.most_recorded = FIRST_RECORDED;
        let read = self.readback.finish(&self.device, buffer, ranges, deadline);
        let read = read.map_err(|fault| self.fault(fault, started.elapsed()))?;
        self.copying.clear();
        self.faults.check(&self.info.name)?;
        Ok(read)
    }

    fn embed(&mut self, op: &Embed<'_, GpuBuffer>) -> Result<(), OpError> {
        ops::elementwise::embed(self, op)
    }

    fn rms_norm(&mut self, op: &RmsNorm<'_, GpuBuffer>) -> Result<(), OpError> {
        ops::norm::rms_norm(self, op)
    }

    fn linear(&mut self, op: &Linear<'_, GpuBuffer>) -> Result<(), OpError> {
        ops::matmul::linear(self, op)
    }

    fn gate_up(&mut self, op: &GateUp<'_, GpuBuffer>) -> Result<(), OpError> {
        ops::matmul::gate_up(self, op)
    }

    fn latent_write(&mut self, op: &LatentWrite<'_, GpuBuffer>) -> Result<(), OpError> {
        ops::norm::latent_write(self, op)
    }

    fn queries(&mut self, op: &Queries<'_, GpuBuffer>) -> Result<(), OpError> {
        ops::queries::record(self, op)
    }

    fn rotate_qkv(&mut self, op: &RotateQkv<'_, GpuBuffer>) -> Result<(), OpError> {
        ops::rotate_qkv::record(self, op)
    }

    fn attention(&mut self, op: &Attention<'_, GpuBuffer>) -> Result<(), OpError> {
        ops::attention::record(self, op)
    }

    fn expanded_attention(&mut self, op: &ExpandedAttention<'_, GpuBuffer>) -> Result<(), OpError> {
        ops::expanded_attention::record(self, op)
    }

    fn values(&mut self, op: &Values<'_, GpuBuffer>) -> Result<(), OpError> {
        ops::matmul::values(self, op)
    }

    fn route(&mut self, op: &Route<'_, GpuBuffer>) -> Result<(), OpError> {
        ops::route::record(self, op)
    }

    fn experts(&mut self, op: &Experts<'_, GpuBuffer>) -> Result<(), OpError> {
        ops::experts::record(self, op)
    }

    fn combine(&mut self, op: &Combine<'_, GpuBuffer>) -> Result<(), OpError> {
        ops::elementwise::combine(self, op)
    }

    fn adjust(&mut self, op: &Adjust<'_, GpuBuffer>) -> Result<(), OpError> {
        ops::adjust::record(self, op)
    }

    fn sample(&mut self, op: &Sample<'_, GpuBuffer>) -> Result<(), OpError> {
        ops::sample::record(self, op)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{DeviceConfig, open};
    use super::*;
    use crate::ops::Rows;

    #[test]
    fn weights_are_written_where_they_stay_until_a_command_has_them() {
        let mut device = open(&DeviceConfig::default()).expect("an adapter");
        let weights = device.alloc_weights("weights", 64).expect("room");
        device.write(&weights, 16, &[7; 16]).expect("fits");
        let is_direct = device.memory != Memory::Own;
        assert_eq!(device.recorded.is_empty(), is_direct);
        assert_eq!(weights.write_fresh(32, &[8; 16]), is_direct);
        let _ = weights.raw();
        assert!(!weights.write_fresh(32, &[9; 16]));
    }

    #[test]
    fn the_device_begins_while_the_host_records() {
        let mut device = open(&DeviceConfig::default()).expect("an adapter");
        let [results, weights, shared, output] = [(); 4].map(|()| device.alloc("test", 64).expect("room"));
        let combine = Combine {
            results: &results,
            weights: &weights,
            top_k: 1,
            shared: &shared,
            output: &output,
            dim: 16,
            rows: Rows::new(1, 0),
        };
        let range = ReadRange {
            buffer: output.clone(),
            offset: 0,
            bytes: 64,
        };
        for step in 0..2 {
            let mut submitted = Vec::new();
            for op in 1..=2000 {
                device.combine(&combine).expect("valid");
                if device.recorded.is_empty() {
                    submitted.push(op);
                }
            }
            // 32, 64, 128, 256, and 512 from there on.
            assert_eq!(submitted, [32, 96, 224, 480, 992, 1504], "step {step}");
            let deadline = Instant::now() + Duration::from_secs(60);
            device.read(std::slice::from_ref(&range), deadline).expect("runs");
        }
    }
}
