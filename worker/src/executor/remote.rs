//! What of a MoE layer goes to which remote group, and what must come back.
//!
//! Pure: from a routing that was read back to messages. In a message given rows come first, on the device generated
//! ones: `places` keeps where each result belongs.

use bytes::Bytes;
use tramontane_model::ids::{DeviceRef, Fence, StepId};
use tramontane_model::step::StepBatch;
use tramontane_proto::{ExpertResults, ExpertWork};

use crate::weights::GroupRoute;
use tramontane_kernels::ops::Rows;

/// A group's share of a layer, while it is computed elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Share {
    pub(super) group: u32,
    pub(super) holder: DeviceRef,
    /// For each result in order: its pair, `row on the device * top_k + choice`.
    pub(super) places: Vec<u32>,
}

/// Where in which step a share comes from.
pub(super) struct Origin {
    pub(super) fence: Fence,
    pub(super) stage: u32,
    pub(super) step: StepId,
    pub(super) layer: u32,
}

/// The shares of all remote groups that any row has chosen, with their messages.
///
/// `ids` is `[rows, top_k]`, `normed` is `[rows, dim]` f32 as bytes, both as on the device: generated rows first.
pub(super) fn shares(
    groups: &[GroupRoute],
    origin: &Origin,
    ids: &[u32],
    top_k: u32,
    rows: Rows,
    normed: &[u8],
) -> Vec<(Share, ExpertWork)> {
    let (top_k, total) = (top_k as usize, rows.total() as usize);
    let row_bytes = normed.len().checked_div(total).unwrap_or(0);
    let given_first = (rows.generated as usize..total).chain(0..rows.generated as usize);
    let mut shares = Vec::new();
    for (group, route) in (0_u32..).zip(groups) {
        let Some(holder) = &route.remote else {
            continue;
        };
        let mut places = Vec::new();
        let mut assigned = Vec::new();
        let mut values = Vec::new();
        let (mut sent_rows, mut given_rows) = (0_u32, 0_u32);
        for row in given_first.clone() {
            let chosen = &ids[row * top_k..(row + 1) * top_k];
            let before = assigned.len();
            for (choice, &expert) in chosen.iter().enumerate() {
                if route.experts.contains(expert) {
                    assigned.push((sent_rows, expert));
                    places.push((row * top_k + choice) as u32);
                }
            }
            if assigned.len() > before {
                values.extend_from_slice(&normed[row * row_bytes..(row + 1) * row_bytes]);
                sent_rows += 1;
                given_rows += u32::from(row >= rows.generated as usize);
            }
        }
        if assigned.is_empty() {
            continue;
        }
        let work = ExpertWork {
            fence: origin.fence,
            stage: origin.stage,
            group,
            step: origin.step,
            layer: origin.layer,
            given_rows,
            rows: Bytes::from(values),
            assigned,
        };
        let share = Share {
            group,
            holder: holder.clone(),
            places,
        };
        shares.push((share, work));
    }
    shares
}

impl Share {
    /// Whether these are the results that the share waits for; if not, what is wrong.
    pub(super) fn check(
        &self,
        results: &ExpertResults,
        batch: &StepBatch,
        layer: u32,
        row_bytes: usize,
    ) -> Result<(), String> {
        if (results.fence, results.step, results.layer) != (batch.fence, batch.step, layer) {
            return Err(format!(
                "answered for layer {} of step {} of {}",
                results.layer, results.step, results.fence
            ));
        }
        let (found, needed) = (results.results.len(), self.places.len() * row_bytes);
        if found != needed {
            return Err(format!("answered with {found} bytes, {needed} are needed"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tramontane_model::ids::{DeviceIndex, Generation, ReplicaId, WorkerId};
    use tramontane_model::placement::ExpertRange;

    use super::*;

    fn route(start: u32, end: u32, worker: Option<&str>) -> GroupRoute {
        GroupRoute {
            experts: ExpertRange::new(start, end).expect("a range"),
            remote: worker.map(|name| DeviceRef {
                worker: WorkerId::new(name).expect("a name"),
                device: DeviceIndex(0),
            }),
        }
    }

    #[test]
    fn each_group_gets_the_rows_that_chose_it_given_rows_first() {
        let origin = Origin {
            fence: Fence {
                replica: ReplicaId(1),
                generation: Generation(2),
            },
            stage: 1,
            step: StepId(7),
            layer: 4,
        };
        let groups = [
            route(0, 2, None),
            route(2, 4, Some("b")),
            route(4, 6, Some("c")),
            route(6, 8, Some("d")),
        ];
        // Two generated rows, then one given row; nobody chose group 3.
        let ids = [0, 3, 1, 4, 2, 3];
        let normed: Vec<u8> = (0..12).collect();
        let shares = shares(&groups, &origin, &ids, 2, Rows::new(2, 1), &normed);
        let found: Vec<_> = (shares.iter())
            .map(|(share, work)| (share.group, share.places.clone(), work.assigned.clone()))
            .collect();
        assert_eq!(
            found,
            [
                (1, vec![4, 5, 1], vec![(0, 2), (0, 3), (1, 3)]),
                (2, vec![3], vec![(0, 4)]),
            ]
        );
        let (_, first) = &shares[0];
        assert_eq!(first.given_rows, 1);
        assert_eq!(first.rows[..], [8, 9, 10, 11, 0, 1, 2, 3]);
        assert_eq!(shares[1].1.given_rows, 0);
        assert_eq!(shares[1].1.rows[..], [4, 5, 6, 7]);
    }
}
