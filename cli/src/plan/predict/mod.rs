//! How many tokens a second a placement would generate: from figures of its devices, which `tramontane bench kernels`
//! measured, and from its links.
//!
//! Pure. A step of some rows goes through the stages in turn; with more sequences than one there are as many steps in flight
//! as stages. A layer takes as long as its owner's weights and cached values, and then the slowest of its expert groups. How
//! long weights take is what the same ops took in the figures for each of their bytes, at about as many rows, and what of that
//! was left where a whole layer was measured.

mod speed;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use tramontane_coordinator::control::footprint::{LayerFootprint, ModelFootprint};
use tramontane_coordinator::control::planner::Candidate;
use tramontane_kernels::figures::{Bound, KernelFigures, Part};
use tramontane_model::ids::DeviceRef;
use tramontane_model::placement::{Replica, Stage};

use self::speed::Speed;
use super::inventory::{Link, Links};

/// Numbers of sequences that are predicted.
const BATCHES: [u32; 2] = [1, 64];

/// What predictions are made of.
pub(super) struct Basis<'a> {
    pub(super) footprint: &'a ModelFootprint,
    pub(super) dim: u32,
    pub(super) candidates: &'a [Candidate],
    pub(super) links: &'a Links,
    /// By the name of the devices that they are of.
    pub(super) figures: &'a BTreeMap<String, KernelFigures>,
}

/// What a replica would generate.
#[derive(Debug, Serialize)]
pub(super) struct Prediction {
    /// Sequences at once.
    sequences: u32,
    /// Tokens of each.
    context: u32,
    /// Tokens of all of them together.
    tokens_per_second: f64,
    /// What most of a step's time goes to.
    bound: String,
    /// Seconds that a step takes from the first stage to the last, and what of it goes to what.
    step_seconds: f64,
    parts: BTreeMap<Resource, f64>,
}

/// What time goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
enum Resource {
    /// Attention, router, shared expert and dense feed-forward.
    OwnerWeights,
    RoutedExperts,
    CachedValues,
    Head,
    Links,
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OwnerWeights => "weights of attention and shared experts",
            Self::RoutedExperts => "weights of routed experts",
            Self::CachedValues => "cached keys and values",
            Self::Head => "the output matrix",
            Self::Links => "links between devices",
        })
    }
}

/// Time by what it goes to, and which ceiling each is nearer to.
#[derive(Clone, Debug, Default)]
struct Time {
    seconds: BTreeMap<Resource, f64>,
    bounds: BTreeMap<Resource, Bound>,
}

impl Time {
    fn add(&mut self, resource: Resource, (seconds, bound): (f64, Bound)) {
        *self.seconds.entry(resource).or_default() += seconds;
        self.bounds.insert(resource, bound);
    }

    fn add_link(&mut self, seconds: f64) {
        *self.seconds.entry(Resource::Links).or_default() += seconds;
    }

    fn add_all(&mut self, other: &Self) {
        for (&resource, seconds) in &other.seconds {
            *self.seconds.entry(resource).or_default() += seconds;
        }
        self.bounds.extend(&other.bounds);
    }

    fn scale(&mut self, factor: f64) {
        self.seconds.values_mut().for_each(|seconds| *seconds *= factor);
    }

    fn total(&self) -> f64 {
        self.seconds.values().sum()
    }

    fn most(&self) -> String {
        let most = self.seconds.iter().max_by(|one, other| one.1.total_cmp(other.1));
        let Some((resource, _)) = most else {
            return String::new();
        };
        match self.bounds.get(resource) {
            None => resource.to_string(),
            Some(Bound::Memory) => format!("{resource}, by memory"),
            Some(Bound::Arithmetic) => format!("{resource}, by arithmetic"),
        }
    }
}

/// What a replica would generate with one sequence and with many; or what is missing to say so.
pub(super) fn predict(basis: &Basis<'_>, replica: &Replica) -> Result<Vec<Prediction>, String> {
    let context = basis.figures.values().flat_map(|figures| &figures.lines);
    let context = context.filter_map(|line| line.context).min().unwrap_or(1);
    let most = replica.steps.max_sequences;
    let batches = BATCHES.into_iter().filter(|&batch| batch <= most);
    batches.map(|batch| basis.of(replica, batch, context)).collect()
}

impl Basis<'_> {
    fn of(&self, replica: &Replica, sequences: u32, context: u32) -> Result<Prediction, String> {
        let stages = replica.stages.len() as u32;
        let in_flight = sequences.min(stages).max(1);
        let rows = f64::from(sequences) / f64::from(in_flight);
        let mut whole = Time::default();
        let mut slowest: f64 = 0.0;
        for (index, stage) in replica.stages.iter().enumerate() {
            let mut time = Time::default();
            for layer in stage.layers.iter() {
                let Some(sizes) = self.footprint.layers.get(layer as usize) else {
                    continue;
                };
                let cached = sizes.kv_bytes(replica.kv.format) as f64 * f64::from(context) * rows;
                time.add_all(&self.layer(stage, sizes, rows, (cached, context))?);
            }
            if index + 1 == replica.stages.len() {
                // A tied output matrix is the embedding.
                let bytes = self.footprint.head_bytes + self.footprint.tied_bytes;
                time.add(
                    Resource::Head,
                    self.speed(&stage.owner)?.head(bytes as f64, rows)?,
                );
            }
            slowest = slowest.max(time.total());
            whole.add_all(&time);
            // To the next stage hidden states go, from the last one tokens go back to the head.
            let next = replica.stages.get(index + 1).or(replica.stages.first());
            if let Some(next) = next.filter(|next| next.owner != stage.owner) {
                let bytes = if index + 1 == replica.stages.len() {
                    64.0
                } else {
                    f64::from(self.dim) * 4.0
                };
                let seconds = self.link(&stage.owner, &next.owner).seconds(bytes * rows);
                slowest = slowest.max(seconds);
                whole.add_link(seconds);
            }
        }
        let step_seconds = whole.total();
        // The steps in flight wait for the slowest stage, or each of them for its own way through all.
        let round = step_seconds.max(slowest * f64::from(in_flight));
        Ok(Prediction {
            sequences,
            context,
            tokens_per_second: f64::from(sequences) / round,
            bound: whole.most(),
            step_seconds,
            parts: whole.seconds,
        })
    }

    /// What a layer takes: its owner's part, then the slowest of its expert groups.
    fn layer(
        &self,
        stage: &Stage,
        sizes: &LayerFootprint,
        rows: f64,
        (cached, context): (f64, u32),
    ) -> Result<Time, String> {
        let owner = self.speed(&stage.owner)?;
        let part = if sizes.expert_bytes > 0 {
            Part::MoeLayer
        } else {
            Part::DenseLayer
        };
        let together = owner.together(part, rows);
        let mut time = Time::default();
        time.add(
            Resource::OwnerWeights,
            owner.weights(part, sizes.owner_bytes as f64, rows)?,
        );
        time.add(
            Resource::CachedValues,
            owner.cache(part, (cached, context), rows)?,
        );
        time.scale(together);
        if sizes.expert_bytes == 0 {
            return Ok(time);
        }
        let all = f64::from(self.footprint.n_experts.max(1));
        let chosen = f64::from(self.footprint.experts_per_token);
        let mut slowest = Time::default();
        for group in &stage.groups {
            let experts = f64::from(group.experts.len());
            // With every expert as likely as any other: different ones of the group, and pairs of rows and experts.
            let distinct = experts * (1.0 - (1.0 - chosen / all).powf(rows));
            let pairs = rows * chosen * experts / all;
            let bytes = distinct * sizes.expert_bytes as f64;
            let mut own = Time::default();
            let holder = self.speed(&group.holder)?;
            own.add(Resource::RoutedExperts, holder.experts(bytes, rows)?);
            own.scale(holder.together(part, rows));
            if group.holder != stage.owner {
                let link = self.link(&stage.owner, &group.holder);
                let row = f64::from(self.dim) * 4.0;
                own.add_link(link.seconds(rows.min(pairs) * row) + link.seconds(pairs * row));
            }
            if own.total() > slowest.total() {
                slowest = own;
            }
        }
        time.add_all(&slowest);
        Ok(time)
    }

    fn speed(&self, device: &DeviceRef) -> Result<Speed<'_>, String> {
        let known = self.candidates.iter().find(|known| known.device == *device);
        let kind = known.map_or("", |known| known.kind.as_str());
        let figures = self.figures.get(kind);
        figures.map(|figures| Speed { kind: kind.to_owned(), figures }).ok_or_else(|| {
            format!("there are no figures of {kind:?}: measure one with `tramontane bench kernels --json FILE`, and add --figures \"{kind}=FILE\"")
        })
    }

    fn link(&self, from: &DeviceRef, to: &DeviceRef) -> Link {
        match from.worker == to.worker {
            true => self.links.within_host,
            false => self.links.between_hosts,
        }
    }
}

impl Link {
    /// From handing bytes over to their being there.
    fn seconds(self, bytes: f64) -> f64 {
        self.latency_s + bytes / self.bytes_per_s
    }
}

impl Links {
    /// What predictions take them for.
    pub(super) fn text(&self) -> String {
        let of = |link: Link| {
            format!(
                "{:.1} GB/s after {:.0} us",
                link.bytes_per_s / 1e9,
                link.latency_s * 1e6
            )
        };
        let (within, between) = (of(self.within_host), of(self.between_hosts));
        let assumed = if self.assumed {
            ", in part assumed: see [links] of the inventory"
        } else {
            ""
        };
        format!("links: {within} within a host, {between} between hosts{assumed}")
    }
}

impl Prediction {
    pub(super) fn text(&self) -> String {
        let sequences = match self.sequences {
            1 => "1 sequence".to_owned(),
            many => format!("{many} sequences"),
        };
        format!(
            "predicted with {sequences} of {} tokens: {:.1} tokens/s, a step takes {:.1} ms; most of it {}",
            self.context,
            self.tokens_per_second,
            self.step_seconds * 1e3,
            self.bound
        )
    }
}
