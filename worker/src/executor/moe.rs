//! The routed experts of a layer: here, and on the devices that hold the stage's other groups.
//!
//! Where every group is the owner's, nothing is read back. Else the routing and the normed rows are read once; every
//! remote group gets one message, all at once; shared and own experts run meanwhile; answers are put beside the own
//! results, and the sum is in expert order whoever computed what.

use std::collections::BTreeMap;
use std::time::Instant;

use super::remote::{self, Share};
use super::run::StageRun;
use super::{DeviceError, ExchangeError, ExchangeEvent};
use tramontane_kernels::layers::FeedForward;
use tramontane_kernels::ops::{Backend, Matrix, OpError, ReadRange};
use tramontane_model::spec::MoeSpec;

impl<D: Backend> StageRun<'_, D> {
    /// Adds shared and routed experts' results to the residual stream.
    pub(super) fn moe(
        &mut self,
        layer: u32,
        gate: &Matrix<D::Buffer>,
        shared: Option<&FeedForward<D::Buffer>>,
    ) -> Result<(), DeviceError> {
        let model = self.device.model;
        let Some(moe) = model.spec.moe_at(layer) else {
            return Err(OpError::shape("moe", format!("layer {layer} has no experts")).into());
        };
        let stage = self.stage;
        self.pass().route(gate, moe)?;
        let shares = if stage.slice.groups.iter().any(|group| group.remote.is_some()) {
            self.send_shares(layer, moe.n_experts_per_token)?
        } else {
            Vec::new()
        };
        // Without shared experts the buffer keeps the zeros that it was made with.
        if let Some(shared) = shared {
            self.pass().shared(shared)?;
        }
        self.own_experts(layer, moe)?;
        if !shares.is_empty() {
            self.device.backend.submit()?;
            let began = Instant::now();
            self.receive(layer, shares)?;
            metrics::histogram!("tramontane_expert_wait_seconds").record(began.elapsed().as_secs_f64());
        }
        self.pass().combine(moe)?;
        Ok(())
    }

    fn own_experts(&mut self, layer: u32, moe: &MoeSpec) -> Result<(), DeviceError> {
        let own = (self.stage.slice.groups.iter()).filter(|group| group.remote.is_none());
        for group in own {
            let bank = self.device.weights.experts(layer, group.experts);
            let (Some(bank), Some(held)) = (bank, self.held) else {
                let detail = format!("experts {} of layer {layer} are not loaded", group.experts);
                return Err(OpError::shape("experts", detail).into());
            };
            self.pass().experts(bank, &held.scratch, moe)?;
        }
        Ok(())
    }

    /// Reads the routing back and sends every remote group that a row has chosen its share.
    fn send_shares(&mut self, layer: u32, top_k: u32) -> Result<Vec<Share>, DeviceError> {
        let (buffers, rows) = (&self.stage.buffers, self.plan.rows);
        let dim = self.device.model.spec.dim;
        let range = |buffer: &D::Buffer, width: u32| ReadRange {
            buffer: buffer.clone(),
            offset: 0,
            bytes: u64::from(rows.total()) * u64::from(width) * 4,
        };
        let ranges = [range(&buffers.expert_ids, top_k), range(&buffers.normed, dim)];
        let began = Instant::now();
        let read = self.device.read(&ranges, self.deadline)?;
        metrics::histogram!("tramontane_expert_read_seconds").record(began.elapsed().as_secs_f64());
        let [ids, normed] = read.as_slice() else {
            return Err(OpError::shape("moe", "a read of two ranges gave another number").into());
        };
        let ids: Vec<u32> = bytemuck::pod_collect_to_vec(ids);
        let origin = remote::Origin {
            fence: self.batch.fence,
            stage: self.stage.slice.stage,
            step: self.batch.step,
            layer,
        };
        let groups = &self.stage.slice.groups;
        let shares = remote::shares(groups, &origin, &ids, top_k, rows, normed);
        shares
            .into_iter()
            .map(|(share, work)| {
                self.experts
                    .send(share.group, &share.holder, work)
                    .map_err(|error| self.exchange_error(layer, error))?;
                Ok(share)
            })
            .collect()
    }

    /// Waits for every share's results and puts them where they belong; serves others' requests meanwhile.
    fn receive(&mut self, layer: u32, shares: Vec<Share>) -> Result<(), DeviceError> {
        let deadline = self.deadline.min(Instant::now() + self.device.timeout);
        let row_bytes = self.device.model.spec.dim as usize * 4;
        let mut open: BTreeMap<u32, Share> = shares.into_iter().map(|share| (share.group, share)).collect();
        while !open.is_empty() {
            let event = self.experts.next(deadline);
            match event.map_err(|error| self.exchange_error(layer, error))? {
                ExchangeEvent::Request(request) => {
                    let results = if request.work.fence == self.batch.fence {
                        self.device.serve(self.held, &request.work, request.deadline)
                    } else {
                        Err(DeviceError::Fenced {
                            asked: request.work.fence,
                            serving: format!("serves {}", self.batch.fence),
                        })
                    };
                    let lost = results
                        .as_ref()
                        .err()
                        .filter(|error| error.ends_device())
                        .cloned();
                    request.reply.send(results);
                    if let Some(error) = lost {
                        return Err(error);
                    }
                }
                ExchangeEvent::Results { group, results } => {
                    let Some(share) = open.remove(&group) else {
                        continue;
                    };
                    share
                        .check(&results, self.batch, layer, row_bytes)
                        .map_err(|problem| self.group_error(layer, group, problem))?;
                    self.put(&share, &results.results, row_bytes)?;
                }
            }
        }
        Ok(())
    }

    /// Writes a share's results to their places, neighbours together.
    fn put(&mut self, share: &Share, results: &[u8], row_bytes: usize) -> Result<(), OpError> {
        let mut start = 0;
        while start < share.places.len() {
            let run = &share.places[start..];
            let length = (run.iter().zip(run[0]..))
                .take_while(|&(&place, next)| place == next)
                .count();
            let bytes = &results[start * row_bytes..(start + length) * row_bytes];
            let offset = u64::from(run[0]) * row_bytes as u64;
            self.device
                .backend
                .write(&self.stage.buffers.expert_results, offset, bytes)?;
            start += length;
        }
        Ok(())
    }

    fn exchange_error(&self, layer: u32, error: ExchangeError) -> DeviceError {
        match error {
            ExchangeError::Group { group, problem } => self.group_error(layer, group, problem),
            ExchangeError::Deadline => DeviceError::Deadline {
                what: "waiting for experts of other devices",
            },
            ExchangeError::Interrupted => DeviceError::Interrupted {
                step: self.batch.step,
            },
        }
    }

    fn group_error(&self, layer: u32, group: u32, problem: String) -> DeviceError {
        let route = self.stage.slice.groups.get(group as usize);
        let holder = route.and_then(|route| route.remote.as_ref());
        DeviceError::Experts {
            step: self.batch.step,
            layer,
            group,
            holder: holder.map_or_else(|| "this device".to_owned(), ToString::to_string),
            problem,
        }
    }
}
