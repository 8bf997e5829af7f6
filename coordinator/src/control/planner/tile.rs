//! Cuts the layers among teams in a given order, and finds the order.
//!
//! What fits still fits with layers less, so from each start a stage can end anywhere up to the furthest. Up to
//! [`MAX_EXACT_LAYERS`] layers every end is followed; beyond that the furthest alone, which misses a tiling only where a
//! device can hold none of the layers that are left for it.

use super::demand::{Demand, Fit, Limits, Room, Sums};

/// Most layers of which every cut is looked at.
const MAX_EXACT_LAYERS: usize = 128;
/// Most teams among which the order is searched exactly.
const MAX_EXACT: usize = 8;

/// A team's devices, the owner first.
pub(super) type Team = Vec<Room>;

/// A tiling: which teams in which order, and the time of the slowest.
#[derive(Clone, Debug)]
pub(super) struct Ordered {
    pub(super) order: Vec<usize>,
    pub(super) time: u128,
}

/// Cuts for one model.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tiler<'a> {
    pub(super) demand: Demand<'a>,
}

impl Tiler<'_> {
    /// How far a stage that starts at `start` can go, at most to `cap`, and its time; `None` without one layer.
    fn reach(&self, team: &[Room], start: usize, cap: usize, limits: Limits) -> Option<(usize, Fit)> {
        let mut sums = Sums::default();
        let mut found = None;
        for end in start + 1..=cap {
            self.demand.add(&mut sums, end - 1);
            match self.demand.fit(&sums, (start, end), team, limits) {
                Some(fit) => found = Some((end, fit)),
                None => break,
            }
        }
        found
    }

    /// How early a stage that ends at `end` can start, at least at `floor`.
    fn reach_back(&self, team: &[Room], floor: usize, end: usize, limits: Limits) -> Option<usize> {
        let mut sums = Sums::default();
        let mut found = None;
        for start in (floor..end).rev() {
            self.demand.add(&mut sums, start);
            if self.demand.fit(&sums, (start, end), team, limits).is_none() {
                break;
            }
            found = Some(start);
        }
        found
    }

    /// The time of the slowest stage when each goes as far as it can; `None` if the layers do not end.
    pub(super) fn slowest(&self, teams: &[&Team], limits: Limits) -> Option<u128> {
        let ends = self.cut(teams, limits, &[])?;
        let starts = std::iter::once(0).chain(ends.iter().copied());
        let times = starts.zip(&ends).zip(teams).map(|((start, &end), team)| {
            let sums = self.demand.sums(start..end);
            let fit = self.demand.fit(&sums, (start, end), team, limits);
            fit.map(|fit| fit.time)
        });
        times.collect::<Option<Vec<u128>>>()?.into_iter().max()
    }

    /// The shortest time of the slowest stage in this order.
    pub(super) fn shortest(&self, teams: &[&Team], tokens: u64) -> Option<u128> {
        shrink(|time| self.slowest(teams, Limits::new(time, tokens)))
    }

    /// The most tokens up to `most` for which the order has a tiling within `time`; it has one for `least`.
    pub(super) fn most_tokens(&self, teams: &[&Team], time: u128, (least, most): (u64, u64)) -> u64 {
        let fits = |tokens| {
            let limits = Limits { time, least, tokens };
            self.slowest(teams, limits).is_some()
        };
        if fits(most) {
            return most;
        }
        let (mut low, mut high) = (least, most);
        while low + 1 < high {
            let middle = low + (high - low) / 2;
            *(if fits(middle) { &mut low } else { &mut high }) = middle;
        }
        low
    }

    /// Chooses `stages` of the teams and their order: exact for a few teams, the best of some orders for more.
    pub(super) fn choose(&self, teams: &[Team], stages: usize, tokens: u64) -> Option<Ordered> {
        if stages == 0 || stages > teams.len() || stages > self.demand.layers() {
            return None;
        }
        if stages <= MAX_EXACT {
            let teams = &teams[..teams.len().min(MAX_EXACT)];
            let twins = twins(teams);
            let time = shrink(|time| {
                let limits = Limits::new(time, tokens);
                let order = self.order_within(teams, &twins, stages, limits)?;
                let ordered: Vec<&Team> = order.iter().map(|&index| &teams[index]).collect();
                self.slowest(&ordered, limits)
            })?;
            let order = self.order_within(teams, &twins, stages, Limits::new(time, tokens))?;
            return Some(Ordered { order, time });
        }
        let first: Vec<usize> = (0..stages).collect();
        let mut best: Option<Ordered> = None;
        for order in some_orders(&first) {
            let ordered: Vec<&Team> = order.iter().map(|&index| &teams[index]).collect();
            if let Some(time) = self.shortest(&ordered, tokens)
                && best.as_ref().is_none_or(|best| time < best.time)
            {
                best = Some(Ordered { order, time });
            }
        }
        best
    }

    /// Whether `stages` of the teams have a tiling at all.
    pub(super) fn exists(&self, teams: &[Team], stages: usize, tokens: u64) -> bool {
        let limits = Limits::new(u128::MAX, tokens);
        if stages == 0 || stages > teams.len() || stages > self.demand.layers() {
            return false;
        }
        if stages <= MAX_EXACT {
            let teams = &teams[..teams.len().min(MAX_EXACT)];
            return self.order_within(teams, &twins(teams), stages, limits).is_some();
        }
        let first: Vec<usize> = (0..stages).collect();
        some_orders(&first).into_iter().any(|order| {
            let ordered: Vec<&Team> = order.iter().map(|&index| &teams[index]).collect();
            self.slowest(&ordered, limits).is_some()
        })
    }

    /// An order of `stages` of the teams that ends the layers within the limits: for each set of teams, where it can
    /// end. Among sets that end the layers, the one of the first teams.
    fn order_within(
        &self,
        teams: &[Team],
        twins: &[Option<usize>],
        stages: usize,
        limits: Limits,
    ) -> Option<Vec<usize>> {
        let layers = self.demand.layers();
        let exact = layers <= MAX_EXACT_LAYERS;
        let mut known = vec![vec![None; layers]; teams.len()];
        let mut reach = |index: usize, start: usize, used: usize| {
            if used + 1 == stages {
                let end = self.reach(&teams[index], start, layers, limits)?.0;
                return (end == layers).then_some(end);
            }
            let furthest: &mut Option<usize> = &mut known[index][start];
            let end = *furthest.get_or_insert_with(|| {
                let reach = self.reach(&teams[index], start, layers - 1, limits);
                reach.map_or(start, |(end, _)| end)
            });
            let end = end.min(layers - (stages - used - 1));
            (end > start).then_some(end)
        };
        let mut ends = vec![vec![false; layers + 1]; 1 << teams.len()];
        ends[0][0] = true;
        for set in 0usize..ends.len() {
            let used = set.count_ones() as usize;
            if used >= stages {
                continue;
            }
            let starts: Vec<usize> = (0..layers).filter(|&start| ends[set][start]).collect();
            for (index, &twin) in twins.iter().enumerate() {
                let skip = twin.is_some_and(|twin| set & (1 << twin) == 0);
                if set & (1 << index) != 0 || skip {
                    continue;
                }
                for &start in starts.iter().rev().take(if exact { layers } else { 1 }) {
                    if let Some(end) = reach(index, start, used) {
                        let first = if exact && used + 1 < stages {
                            start + 1
                        } else {
                            end
                        };
                        ends[set | (1 << index)][first..=end].fill(true);
                    }
                }
            }
        }
        let whole = |set: &usize| set.count_ones() as usize == stages && ends[*set][layers];
        let mut set = (0..ends.len()).find(whole)?;
        let (mut end, mut order) = (layers, Vec::new());
        while set != 0 {
            let members = (0..teams.len()).rev().filter(|&index| set & (1 << index) != 0);
            let (last, start) = members.into_iter().find_map(|index| {
                let before = set ^ (1 << index);
                let used = before.count_ones() as usize;
                let starts = (0..end).rev().filter(|&start| ends[before][start]);
                let came = |&start: &usize| reach(index, start, used).is_some_and(|far| far >= end);
                starts.into_iter().find(came).map(|start| (index, start))
            })?;
            order.push(last);
            set ^= 1 << last;
            end = start;
        }
        order.reverse();
        Some(order)
    }

    /// For each stage and for the end, where it may start so that the layers can be ended.
    fn starts(&self, teams: &[&Team], limits: Limits) -> Option<Vec<Vec<bool>>> {
        let layers = self.demand.layers();
        let mut starts = vec![vec![false; layers + 1]; teams.len() + 1];
        starts[teams.len()][layers] = true;
        let mut end = layers;
        for (index, team) in teams.iter().enumerate().rev() {
            let left = teams.len() - 1 - index;
            let cap = layers.checked_sub(left)?;
            if layers > MAX_EXACT_LAYERS {
                end = self.reach_back(team, index, end, limits)?;
                starts[index].get_mut(end..cap)?.fill(true);
                continue;
            }
            for start in index..cap {
                let far = self.reach(team, start, cap, limits).map_or(start, |(end, _)| end);
                starts[index][start] = (start + 1..=far).any(|end| starts[index + 1][end]);
            }
        }
        starts[0][0].then_some(starts)
    }

    /// The ends of the stages within the limits, each as near to its target as the others allow; without a target as
    /// far as can be.
    pub(super) fn cut(&self, teams: &[&Team], limits: Limits, targets: &[usize]) -> Option<Vec<usize>> {
        let layers = self.demand.layers();
        let starts = self.starts(teams, limits)?;
        let mut start = 0;
        let mut ends = Vec::with_capacity(teams.len());
        for (index, team) in teams.iter().enumerate() {
            let cap = layers.checked_sub(teams.len() - 1 - index)?;
            let (latest, _) = self.reach(team, start, cap, limits)?;
            let target = targets.get(index).copied().unwrap_or(latest);
            let possible = (start + 1..=latest).filter(|&end| starts[index + 1][end]);
            let end = possible.min_by_key(|end| end.abs_diff(target))?;
            ends.push(end);
            start = end;
        }
        (start == layers).then_some(ends)
    }

    /// Where stages would end if layers could be cut: bytes read by the teams' memory.
    pub(super) fn ideal(&self, teams: &[&Team]) -> Vec<usize> {
        let layers = self.demand.layers();
        let memory = |team: &Team| -> u128 { team.iter().map(|room| u128::from(room.memory)).sum() };
        let all: u128 = teams.iter().map(|team| memory(team)).sum::<u128>().max(1);
        let read: u128 = (0..layers).map(|layer| self.demand.read_bytes(layer)).sum();
        let (mut end, mut before, mut share) = (0, 0u128, 0u128);
        teams
            .iter()
            .map(|team| {
                share += memory(team);
                let target = read * share / all;
                while end < layers && before + self.demand.read_bytes(end) / 2 < target {
                    before += self.demand.read_bytes(end);
                    end += 1;
                }
                end
            })
            .collect()
    }
}

/// The shortest time for which `slowest` gives one; it gives the time that is really taken.
fn shrink(mut slowest: impl FnMut(u128) -> Option<u128>) -> Option<u128> {
    let mut high = slowest(u128::MAX)?;
    let mut low = 0;
    while low < high {
        let middle = low + (high - low) / 2;
        match slowest(middle) {
            Some(time) => high = time.min(middle),
            None => low = middle + 1,
        }
    }
    Some(high)
}

/// For each team, the nearest one before it that is equal: of equals the first are used first.
fn twins(teams: &[Team]) -> Vec<Option<usize>> {
    let twin = |index: usize| (0..index).rev().find(|&other| teams[other] == teams[index]);
    (0..teams.len()).map(twin).collect()
}

/// Orders worth trying: as they are, reversed, and with the second at the end, as both ends have more to hold.
fn some_orders(first: &[usize]) -> [Vec<usize>; 3] {
    let reversed = first.iter().rev().copied().collect();
    let mut ends = first.to_vec();
    if ends.len() > 1 {
        let second = ends.remove(1);
        ends.push(second);
    }
    [first.to_vec(), reversed, ends]
}
