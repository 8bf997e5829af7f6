//! A plan as tables for people and as JSON for programs.

use std::collections::BTreeMap;

use serde::Serialize;
use tramontane_coordinator::control::footprint::{ModelFootprint, usage};
use tramontane_coordinator::control::planner::outlook::{Broken, Loss, Outlook};
use tramontane_coordinator::control::planner::{Candidate, Plan};
use tramontane_model::ids::DeviceRef;
use tramontane_model::spec::ModelSpec;
use tramontane_model::tensors::ModelBytes;

use crate::amounts::bytes;
use crate::table;

/// Lengths of requests, prompt and answer together, for which it is said how many fit at once.
const LENGTHS: [u64; 3] = [8192, 32_768, 131_072];

/// All that a plan says.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    model: Model,
    replicas: Vec<Replica>,
    /// Devices that nothing lies on.
    idle: Vec<String>,
    /// Why there is no further replica.
    no_further: Option<String>,
    losses: Vec<Lost>,
}

#[derive(Debug, Serialize)]
struct Model {
    layers: u32,
    experts: u32,
    experts_per_token: u32,
    weight_bytes: u64,
    cache_bytes_per_token: u64,
    max_context: u32,
}

#[derive(Debug, Serialize)]
struct Replica {
    id: u64,
    stages: usize,
    wishes_met: bool,
    cache_tokens: u64,
    fits: Vec<Fits>,
    devices: Vec<Device>,
}

/// How many requests of a length the cache holds at once.
#[derive(Debug, Serialize)]
struct Fits {
    tokens: u64,
    requests: u64,
}

#[derive(Debug, Serialize)]
struct Device {
    device: String,
    kind: String,
    parts: Vec<String>,
    weight_bytes: u64,
    cache_bytes: u64,
    scratch_bytes: u64,
    free_bytes: u64,
}

#[derive(Debug, Serialize)]
struct Lost {
    host: String,
    /// Replicas that go on as if nothing had happened.
    untouched: usize,
    /// Those that are placed anew on what remains, with what is read for it.
    placed_anew: Vec<PlacedAnew>,
    /// Those that cannot be.
    lost: Vec<Unplaced>,
}

#[derive(Debug, Serialize)]
struct PlacedAnew {
    replica: u64,
    read_bytes: u64,
}

#[derive(Debug, Serialize)]
struct Unplaced {
    replica: u64,
    missing_bytes: u64,
    reason: String,
}

impl Report {
    /// What there is to say; nothing if no replica fits.
    pub(super) fn new(
        spec: &ModelSpec,
        sizes: &ModelBytes,
        footprint: &ModelFootprint,
        candidates: &[Candidate],
        outlook: &Outlook,
    ) -> Option<Self> {
        outlook.replicas.first()?;
        let known: BTreeMap<&DeviceRef, &Candidate> =
            candidates.iter().map(|one| (&one.device, one)).collect();
        let replicas = outlook.replicas.iter();
        let replicas = replicas.map(|plan| Replica::new(spec, footprint, &known, plan));
        let used = |candidate: &&Candidate| {
            let mut plans = outlook.replicas.iter();
            plans.any(|plan| plan.replica.devices().contains(&candidate.device))
        };
        let idle = candidates.iter().filter(|candidate| !used(candidate));
        Some(Self {
            model: Model {
                layers: spec.n_layers,
                experts: spec.n_experts(),
                experts_per_token: footprint.experts_per_token,
                weight_bytes: sizes.total(spec.n_experts()),
                cache_bytes_per_token: footprint.layers.iter().map(|layer| layer.kv_token_bytes).sum(),
                max_context: spec.max_context,
            },
            replicas: replicas.collect(),
            idle: idle.map(|candidate| candidate.device.to_string()).collect(),
            no_further: outlook.missing.as_ref().map(|missing| missing.reason.clone()),
            losses: outlook.losses.iter().map(Lost::new).collect(),
        })
    }

    /// Prints it.
    pub(super) fn print(&self) {
        let model = &self.model;
        let experts = match model.experts {
            0 => "no routed experts".to_owned(),
            count => format!("{count} experts, {} for a token", model.experts_per_token),
        };
        println!(
            "model: {} layers, {experts}; weights {}, cache {} a token, context up to {} tokens",
            model.layers,
            bytes(model.weight_bytes),
            bytes(model.cache_bytes_per_token),
            model.max_context
        );
        for replica in &self.replicas {
            println!();
            replica.print();
        }
        println!();
        if !self.idle.is_empty() {
            println!("nothing lies on {}", self.idle.join(", "));
        }
        if let Some(reason) = &self.no_further {
            println!("no further replica: {reason}");
        }
        println!();
        let mut rows = vec![["LOSS OF", "THEN"].map(String::from)];
        rows.extend(self.losses.iter().map(|lost| [lost.host.clone(), lost.text()]));
        table::print(&rows);
    }
}

impl Replica {
    fn new(
        spec: &ModelSpec,
        footprint: &ModelFootprint,
        known: &BTreeMap<&DeviceRef, &Candidate>,
        plan: &Plan,
    ) -> Self {
        let placed = &plan.replica;
        let cache_tokens = u64::from(placed.kv.blocks) * u64::from(placed.kv.block_tokens);
        let longest = u64::from(spec.max_context).min(cache_tokens);
        let lengths = LENGTHS.into_iter().filter(|&length| length < longest);
        let fits = lengths.chain([longest]).map(|tokens| Fits {
            tokens,
            requests: (cache_tokens / tokens.max(1)).min(placed.steps.max_sequences.into()),
        });
        let mut parts: BTreeMap<&DeviceRef, Vec<String>> = BTreeMap::new();
        for (index, stage) in placed.stages.iter().enumerate() {
            let owner = parts.entry(&stage.owner).or_default();
            owner.push(format!("stage {index}: layers {}", stage.layers));
            for group in stage.groups.iter().filter(|_| stage.groups.len() > 1) {
                for (place, holder) in group.holders.iter().enumerate() {
                    let standby = if place == 0 { "" } else { ", standby" };
                    let text = format!("experts {} of stage {index}{standby}", group.experts);
                    parts.entry(holder).or_default().push(text);
                }
            }
        }
        let devices = usage(footprint, placed).into_iter().map(|(device, used)| {
            let memory = known.get(&device).map_or(0, |candidate| candidate.memory_bytes);
            Device {
                kind: known
                    .get(&device)
                    .map_or_else(String::new, |candidate| candidate.kind.clone()),
                parts: parts.get(&device).cloned().unwrap_or_default(),
                device: device.to_string(),
                weight_bytes: used.weight_bytes,
                cache_bytes: used.kv_bytes,
                scratch_bytes: used.scratch_bytes,
                free_bytes: memory.saturating_sub(used.total_bytes()),
            }
        });
        Self {
            id: placed.id.0,
            stages: placed.stages.len(),
            wishes_met: plan.wishes_met,
            cache_tokens,
            fits: fits.collect(),
            devices: devices.collect(),
        }
    }

    fn print(&self) {
        let fits = self.fits.iter();
        let fits: Vec<String> = fits
            .map(|fits| format!("{} of {} tokens", fits.requests, fits.tokens))
            .collect();
        let unmet = match self.wishes_met {
            true => "",
            false => ", not of the wished stages and expert groups",
        };
        println!(
            "replica {}: {} stages{unmet}; the cache holds {} tokens, so at once: {}",
            self.id,
            self.stages,
            self.cache_tokens,
            fits.join(", or ")
        );
        let mut rows =
            vec![["DEVICE", "KIND", "WEIGHTS", "CACHE", "SCRATCH", "FREE", "HOLDS"].map(String::from)];
        rows.extend(self.devices.iter().map(|device| {
            [
                device.device.clone(),
                device.kind.clone(),
                bytes(device.weight_bytes),
                bytes(device.cache_bytes),
                bytes(device.scratch_bytes),
                bytes(device.free_bytes),
                device.parts.join("; "),
            ]
        }));
        table::print(&rows);
    }
}

impl Lost {
    fn new(loss: &Loss) -> Self {
        let mut of_host = Self {
            host: loss.worker.to_string(),
            untouched: loss.untouched,
            placed_anew: Vec::new(),
            lost: Vec::new(),
        };
        for Broken { replica, outcome } in &loss.broken {
            match outcome {
                Ok(read_bytes) => of_host.placed_anew.push(PlacedAnew {
                    replica: replica.0,
                    read_bytes: *read_bytes,
                }),
                Err(missing) => of_host.lost.push(Unplaced {
                    replica: replica.0,
                    missing_bytes: missing.missing_bytes,
                    reason: missing.reason.clone(),
                }),
            }
        }
        of_host
    }

    fn text(&self) -> String {
        let anew = self.placed_anew.iter().map(|anew| {
            let read = bytes(anew.read_bytes);
            format!(
                "replica {} is placed on what remains, {read} are read",
                anew.replica
            )
        });
        let lost = self.lost.iter().map(|lost| {
            let missing = bytes(lost.missing_bytes);
            format!(
                "replica {} is lost until it is back: {missing} are missing",
                lost.replica
            )
        });
        let untouched = (self.untouched > 0).then(|| format!("{} others go on", self.untouched));
        let texts: Vec<String> = anew.chain(lost).chain(untouched).collect();
        texts.join("; ")
    }
}
