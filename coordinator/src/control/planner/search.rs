//! The search: shapes in order, the first that fits is built.

use tramontane_model::ids::DeviceRef;
use tramontane_model::placement::{ExpertGroup, ExpertRange, KvFormat, KvShape, LayerRange, Replica, Stage};

use super::demand::{Demand, Limits};
use super::devices::{Devices, Members};
use super::movement::Held;
use super::promote::promote;
use super::shapes::{Bounds, Shape, shapes, wished};
use super::tile::{Team, Tiler};
use super::{Missing, Plan, Request};
use crate::control::footprint::{DeviceLimits, ModelFootprint, verify};

/// Plans whose slowest stage and whose cache differ by no more than one part in so many are equally good where there is
/// a placement to keep to: the numbers behind them are no better than that.
const EQUAL_PARTS: u128 = 32;

/// One search.
pub(super) struct Search<'a> {
    pub(super) request: Request<'a>,
    pub(super) tiler: Tiler<'a>,
}

/// A placement with what it was chosen for.
struct Found {
    replica: Replica,
    time: u128,
}

impl<'a> Search<'a> {
    pub(super) fn new(request: Request<'a>, format: KvFormat) -> Self {
        let demand = Demand {
            footprint: request.footprint,
            format,
        };
        Self {
            request,
            tiler: Tiler { demand },
        }
    }

    pub(super) fn footprint(&self) -> &'a ModelFootprint {
        self.request.footprint
    }

    /// Blocks that there must be, and that there may be.
    fn blocks(&self) -> (u32, u32) {
        let wishes = &self.request.wishes;
        let per_block = wishes.kv_block_tokens.max(1);
        let least = wishes.kv_tokens_min.div_ceil(per_block).max(1);
        (least, (wishes.kv_tokens_max / per_block).max(least))
    }

    fn tokens(&self, blocks: u32) -> u64 {
        u64::from(blocks) * u64::from(self.request.wishes.kv_block_tokens.max(1))
    }

    /// Tokens of the smallest cache.
    pub(super) fn least_tokens(&self) -> u64 {
        self.tokens(self.blocks().0)
    }

    pub(super) fn run(&self) -> Result<Plan, Missing> {
        let footprint = self.footprint();
        let format = self.tiler.demand.format;
        let caches = footprint.layers.iter().map(|layer| layer.kv_bytes(format));
        let smallest = u128::from(caches.min().unwrap_or(0)) * u128::from(self.least_tokens());
        let devices = Devices::new(self.request.candidates, smallest);
        let bounds = Bounds {
            devices: devices.len(),
            layers: self.tiler.demand.layers(),
            experts: footprint.n_experts as usize,
        };
        for shape in shapes(&self.request.wishes, bounds) {
            if !self.may_fit(&devices, shape) {
                continue;
            }
            if let Some(replica) = self.place(&devices, shape) {
                return Ok(self.judged(replica));
            }
        }
        Err(self.missing(&devices))
    }

    /// What the standbys of devices that are gone make of the last placement, if they can take over all of theirs.
    pub(super) fn promoted(&self) -> Option<Plan> {
        let Request {
            footprint,
            generation,
            standbys,
            steps,
            wishes,
            ..
        } = self.request;
        let limits = self.limits();
        let limits = |device: &DeviceRef| limits.get(device).copied();
        let previous = self.request.previous?;
        let KvShape {
            block_tokens, format, ..
        } = previous.kv;
        let wished = (wishes.kv_block_tokens, self.tiler.demand.format);
        if (previous.steps, (block_tokens, format)) != (steps, wished) {
            return None;
        }
        let replica = promote(footprint, previous, generation, standbys, limits)?;
        Some(self.judged(replica))
    }

    fn judged(&self, replica: Replica) -> Plan {
        let bounds = Bounds {
            devices: self.request.candidates.len(),
            layers: self.tiler.demand.layers(),
            experts: self.footprint().n_experts as usize,
        };
        let wished = wished(&self.request.wishes, bounds);
        Plan {
            wishes_met: all_wished(&replica, wished, usize::eq),
            falls_short: !all_wished(&replica, wished, usize::ge),
            replica,
        }
    }

    /// Whether so many of the largest devices have the room at all.
    fn may_fit(&self, devices: &Devices<'_>, (stages, groups): Shape) -> bool {
        let demand = &self.tiler.demand;
        let scratch = self.footprint().scratch;
        let scratch = stages as u128 * u128::from(scratch.owner_bytes) + u128::from(scratch.head_bytes);
        let needed = self.footprint().weight_bytes() + demand.kv_bytes(self.least_tokens()) + scratch;
        devices.most_memory(stages * groups) >= needed
    }

    fn rooms(devices: &Devices<'_>, members: &[usize], extra: u64) -> Team {
        members.iter().map(|&index| devices.room(index, extra)).collect()
    }

    /// Whether a shape would fit if every device had `extra` bytes more.
    pub(super) fn exists(&self, devices: &Devices<'_>, (stages, groups): Shape, extra: u64) -> bool {
        let Some(teams) = devices.teams(stages, groups) else {
            return false;
        };
        let rooms: Vec<Team> = teams
            .iter()
            .map(|members| Self::rooms(devices, members, extra))
            .collect();
        self.tiler.exists(&rooms, stages, self.least_tokens())
    }

    /// The best placement of a shape.
    fn place(&self, devices: &Devices<'_>, (stages, groups): Shape) -> Option<Replica> {
        let teams = devices.teams(stages, groups)?;
        let rooms: Vec<Team> = teams
            .iter()
            .map(|members| Self::rooms(devices, members, 0))
            .collect();
        let chosen = self.tiler.choose(&rooms, stages, self.least_tokens())?;
        let ordered: Vec<&Members> = chosen.order.iter().map(|&index| &teams[index]).collect();
        let fresh = self.build(devices, &ordered, chosen.time)?;
        let previous = self.request.previous;
        let held = Held::new(self.footprint(), previous, self.request.standbys);
        let mut best = fresh.replica;
        held.settle(&mut best, &devices.sorted);
        if let Some(previous) = previous
            && let Some(kept) = self.keep(devices, previous, (stages, groups), chosen.time)
            && is_as_good(&kept, chosen.time, best.kv.blocks)
            && held.kept_by(&kept.replica) > held.kept_by(&best)
        {
            best = kept.replica;
        }
        self.checked(best)
    }

    /// The placement in which every device of the previous one keeps its place, if it has the same shape.
    fn keep(
        &self,
        devices: &Devices<'_>,
        previous: &Replica,
        (stages, groups): Shape,
        time: u128,
    ) -> Option<Found> {
        if previous.stages.len() != stages {
            return None;
        }
        let place = |device: Option<&DeviceRef>| device.and_then(|device| devices.position(device));
        let mut members: Vec<Vec<Option<usize>>> = Vec::new();
        for stage in &previous.stages {
            let helpers = (1..groups).map(|group| place(stage.groups.get(group).map(|group| &group.holder)));
            members.push(
                std::iter::once(place(Some(&stage.owner)))
                    .chain(helpers)
                    .collect(),
            );
        }
        let used: std::collections::BTreeSet<usize> = members.iter().flatten().copied().flatten().collect();
        let mut unused = (0..devices.len()).filter(|index| !used.contains(index));
        let mut filled: Vec<Members> = Vec::new();
        let mut seen = std::collections::BTreeSet::new();
        for team in members {
            let mut full = Members::new();
            for member in team {
                let index = member
                    .filter(|&index| seen.insert(index))
                    .or_else(|| unused.next())?;
                full.push(index);
            }
            filled.push(full);
        }
        let ordered: Vec<&Members> = filled.iter().collect();
        self.build(devices, &ordered, time + time / EQUAL_PARTS)
    }

    /// Cuts the layers for teams in order, and gives them as much cache as fits within the time.
    fn build(&self, devices: &Devices<'_>, ordered: &[&Members], time: u128) -> Option<Found> {
        let teams: Vec<Team> = ordered
            .iter()
            .map(|members| Self::rooms(devices, members, 0))
            .collect();
        let teams: Vec<&Team> = teams.iter().collect();
        let (least, most) = self.blocks();
        let within = |blocks: u32| Limits {
            time,
            least: self.tokens(least),
            tokens: self.tokens(blocks),
        };
        self.tiler.slowest(&teams, within(least))?;
        let tokens = self
            .tiler
            .most_tokens(&teams, time, (self.tokens(least), self.tokens(most)));
        let per_block = u64::from(self.request.wishes.kv_block_tokens.max(1));
        let blocks = u32::try_from(tokens / per_block)
            .unwrap_or(most)
            .clamp(least, most);
        let previous = self
            .request
            .previous
            .filter(|one| one.stages.len() == teams.len());
        let targets = previous.map_or_else(
            || self.tiler.ideal(&teams),
            |previous| {
                let ends = previous.stages.iter().map(|stage| stage.layers.end() as usize);
                ends.collect()
            },
        );
        let cut = |blocks: u32| {
            let ends = self.tiler.cut(&teams, within(blocks), &targets)?;
            self.assemble(devices, ordered, &ends, within(blocks))
        };
        cut(blocks).or_else(|| cut(least))
    }

    fn assemble(
        &self,
        devices: &Devices<'_>,
        ordered: &[&Members],
        ends: &[usize],
        limits: Limits,
    ) -> Option<Found> {
        let device = |index: usize| devices.sorted[index].device.clone();
        let (mut start, mut slowest, mut tokens) = (0, 0, u64::MAX);
        let mut stages = Vec::with_capacity(ends.len());
        for (&end, members) in ends.iter().zip(ordered) {
            let sums = self.tiler.demand.sums(start..end);
            let team = Self::rooms(devices, members, 0);
            let fit = self.tiler.demand.fit(&sums, (start, end), &team, limits)?;
            slowest = slowest.max(fit.time);
            let share = fit.shares.first().copied().unwrap_or(0);
            let owner = *team.first()?;
            tokens = tokens.min(self.tiler.demand.tokens((start, end), owner, share));
            let mut next = 0;
            let mut groups = Vec::with_capacity(fit.shares.len());
            for (&share, &member) in fit.shares.iter().zip(members.iter()) {
                groups.push(ExpertGroup {
                    experts: ExpertRange::new(next, next + share)?,
                    holder: device(member),
                });
                next += share;
            }
            stages.push(Stage {
                layers: LayerRange::new(u32::try_from(start).ok()?, u32::try_from(end).ok()?)?,
                owner: device(*members.first()?),
                groups,
            });
            start = end;
        }
        let block_tokens = self.request.wishes.kv_block_tokens.max(1);
        let (least, most) = self.blocks();
        let blocks = u32::try_from(tokens / u64::from(block_tokens)).unwrap_or(u32::MAX);
        if blocks < least {
            return None;
        }
        let replica = Replica {
            id: self.request.id,
            generation: self.request.generation,
            stages,
            kv: KvShape {
                block_tokens,
                blocks: blocks.min(most),
                format: self.tiler.demand.format,
            },
            steps: self.request.steps,
        };
        let replica = self.checked(replica)?;
        let time = slowest;
        Some(Found { replica, time })
    }

    /// The placement, if it holds up to the checks that the replicated state makes.
    fn checked(&self, replica: Replica) -> Option<Replica> {
        let footprint = self.footprint();
        let shape = (
            footprint.n_layers(),
            footprint.n_experts,
            footprint.first_moe_layer(),
        );
        replica.validate(shape.0, shape.1, shape.2).ok()?;
        let limits = self.limits();
        verify(footprint, &replica, |device| limits.get(device).copied()).ok()?;
        Some(replica)
    }

    /// What the candidates have.
    fn limits(&self) -> std::collections::BTreeMap<&'a DeviceRef, DeviceLimits> {
        let candidates = self.request.candidates.iter();
        let each = candidates.map(|candidate| {
            let limits = DeviceLimits {
                memory_bytes: candidate.memory_bytes,
                max_binding_bytes: candidate.max_binding_bytes,
            };
            (&candidate.device, limits)
        });
        each.collect()
    }
}

/// Whether the numbers of stages and of every stage's expert groups, where there are routed experts, are to the wishes
/// as `is` says.
fn all_wished(
    replica: &Replica,
    (stages, groups): (Option<usize>, Option<usize>),
    is: impl Fn(&usize, &usize) -> bool,
) -> bool {
    let mut moe = replica.stages.iter().filter(|stage| !stage.groups.is_empty());
    stages.is_none_or(|wish| is(&replica.stages.len(), &wish))
        && groups.is_none_or(|wish| moe.all(|stage| is(&stage.groups.len(), &wish)))
}

fn is_as_good(kept: &Found, time: u128, blocks: u32) -> bool {
    let blocks = u128::from(blocks);
    kept.time <= time + time / EQUAL_PARTS
        && u128::from(kept.replica.kv.blocks) >= blocks - blocks / EQUAL_PARTS
}
