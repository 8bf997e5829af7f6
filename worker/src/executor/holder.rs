//! Experts for the owners of other stages: one message in, one result per assigned pair out.
//!
//! Every pair gets a row of its own on the device, so results come back without gaps, and the pair's place in the
//! batch changes nothing in it (DET-1).

use std::time::Instant;

use bytes::Bytes;
use tramontane_proto::{ExpertResults, ExpertWork};

use super::DeviceError;
use super::run::{Device, HeldExperts};
use tramontane_kernels::ops::{Backend, Experts, ReadRange, Rows};

/// Checked expert work, laid out for the device: generated pairs first.
struct Layout {
    rows: Rows,
    /// The assigned pair of each row on the device.
    order: Vec<u32>,
    ids: Vec<u32>,
    values: Vec<u8>,
}

impl<D: Backend> Device<'_, D> {
    /// Computes what an owner asks for, if this device holds it.
    pub(super) fn serve(
        &mut self,
        held: Option<&HeldExperts<D::Buffer>>,
        work: &ExpertWork,
        deadline: Instant,
    ) -> Result<ExpertResults, DeviceError> {
        let error = |problem: String| DeviceError::ExpertWork {
            step: work.step,
            layer: work.layer,
            problem,
        };
        let slice = held.and_then(|held| {
            held.slices
                .iter()
                .find(|slice| (slice.stage, slice.group) == (work.stage, work.group))
        });
        let buffers = held.and_then(|held| held.for_others.as_ref());
        let (Some(held), Some(slice), Some(buffers)) = (held, slice, buffers) else {
            let problem = format!(
                "this device does not hold group {} of stage {}",
                work.group, work.stage
            );
            return Err(error(problem));
        };
        let Some(bank) = self.weights.experts(work.layer, slice.experts) else {
            return Err(error(format!(
                "group {} has experts in layers {}",
                work.group, slice.layers
            )));
        };
        let per_token = self
            .model
            .spec
            .moe
            .as_ref()
            .map_or(0, |moe| moe.n_experts_per_token);
        let limit = self.capacity.rows as usize * per_token as usize;
        let row_bytes = self.model.spec.dim as usize * 4;
        let layout = lay_out(work, slice.experts, row_bytes, limit).map_err(error)?;
        let results = if layout.order.is_empty() {
            Vec::new()
        } else {
            self.backend.write(&buffers.input, 0, &layout.values)?;
            self.backend
                .write(&buffers.expert_ids, 0, bytemuck::cast_slice(&layout.ids))?;
            self.backend.experts(&Experts {
                input: &buffers.input,
                ids: &buffers.expert_ids,
                top_k: 1,
                bank,
                scratch: &held.scratch,
                output: &buffers.results,
                rows: layout.rows,
            })?;
            let range = ReadRange {
                buffer: buffers.results.clone(),
                offset: 0,
                bytes: (layout.order.len() * row_bytes) as u64,
            };
            let read = self.read(&[range], deadline)?;
            in_request_order(&layout.order, &read.concat(), row_bytes)
        };
        Ok(ExpertResults {
            fence: work.fence,
            step: work.step,
            layer: work.layer,
            results: Bytes::from(results),
        })
    }
}

/// Checks a request and gives every pair its row; says what is wrong with it otherwise.
fn lay_out(
    work: &ExpertWork,
    experts: tramontane_model::placement::ExpertRange,
    row_bytes: usize,
    limit: usize,
) -> Result<Layout, String> {
    let rows = work.rows.len() / row_bytes;
    if !work.rows.len().is_multiple_of(row_bytes) {
        return Err(format!(
            "{} bytes are no whole number of rows of {row_bytes}",
            work.rows.len()
        ));
    }
    if work.given_rows as usize > rows {
        return Err(format!("{} given rows of {rows} in all", work.given_rows));
    }
    if work.assigned.len() > limit {
        return Err(format!(
            "{} pairs of row and expert, this device's buffers hold {limit}",
            work.assigned.len()
        ));
    }
    for &(row, expert) in &work.assigned {
        if row as usize >= rows {
            return Err(format!("row {row} of {rows} rows"));
        }
        if !experts.contains(expert) {
            return Err(format!("expert {expert}, the group has {experts}"));
        }
    }
    let is_given = |pair: &u32| work.assigned[*pair as usize].0 < work.given_rows;
    let pairs = 0..work.assigned.len() as u32;
    let (given, mut order): (Vec<u32>, Vec<u32>) = pairs.partition(is_given);
    let split = Rows::new(order.len() as u32, given.len() as u32);
    order.extend(given);
    let mut layout = Layout {
        rows: split,
        ids: Vec::with_capacity(order.len()),
        values: Vec::with_capacity(order.len() * row_bytes),
        order,
    };
    for &pair in &layout.order {
        let (row, expert) = work.assigned[pair as usize];
        layout.ids.push(expert);
        layout
            .values
            .extend_from_slice(&work.rows[row as usize * row_bytes..][..row_bytes]);
    }
    Ok(layout)
}

fn in_request_order(order: &[u32], results: &[u8], row_bytes: usize) -> Vec<u8> {
    let mut ordered = vec![0; results.len()];
    for (result, &pair) in results.chunks_exact(row_bytes).zip(order) {
        ordered[pair as usize * row_bytes..][..row_bytes].copy_from_slice(result);
    }
    ordered
}

#[cfg(test)]
mod tests {
    use tramontane_model::ids::{Fence, Generation, ReplicaId, StepId};
    use tramontane_model::placement::ExpertRange;

    use super::*;

    fn work(assigned: &[(u32, u32)]) -> ExpertWork {
        ExpertWork {
            fence: Fence {
                replica: ReplicaId(1),
                generation: Generation(1),
            },
            stage: 0,
            group: 1,
            step: StepId(0),
            layer: 2,
            given_rows: 1,
            rows: Bytes::from_static(&[1, 1, 1, 1, 2, 2, 2, 2]),
            assigned: assigned.to_vec(),
        }
    }

    fn laid_out(work: &ExpertWork) -> Result<Layout, String> {
        let experts = ExpertRange::new(8, 16).ok_or("an empty range")?;
        lay_out(work, experts, 4, 4)
    }

    #[test]
    fn generated_pairs_come_first_and_results_go_back_in_order() {
        let layout = laid_out(&work(&[(0, 8), (1, 9), (0, 15)])).expect("valid work");
        assert_eq!(layout.rows, Rows::new(1, 2));
        assert_eq!(layout.order, [1, 0, 2]);
        assert_eq!(layout.ids, [9, 8, 15]);
        assert_eq!(layout.values, [2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1]);
        let results = [7, 7, 7, 7, 5, 5, 5, 5, 6, 6, 6, 6];
        assert_eq!(
            in_request_order(&layout.order, &results, 4),
            [5, 5, 5, 5, 7, 7, 7, 7, 6, 6, 6, 6]
        );
    }

    #[test]
    fn work_that_does_not_fit_is_refused() {
        type Change = fn(&mut ExpertWork);
        let changes: [Change; 5] = [
            |work| work.assigned[0].0 = 2,
            |work| work.assigned[0].1 = 7,
            |work| work.given_rows = 3,
            |work| work.rows.truncate(7),
            |work| work.assigned = vec![(0, 8); 5],
        ];
        for (index, change) in changes.iter().enumerate() {
            let mut changed = work(&[(0, 8)]);
            change(&mut changed);
            assert!(laid_out(&changed).is_err(), "change {index} was taken");
        }
    }
}
