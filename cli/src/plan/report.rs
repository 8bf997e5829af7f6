//! A plan as tables for people and as JSON for programs.

use std::collections::BTreeMap;

use serde::Serialize;
use tramontane_coordinator::control::footprint::{DeviceUsage, ModelFootprint, usage};
use tramontane_coordinator::control::planner::outlook::{Broken, Loss, Outlook};
use tramontane_coordinator::control::planner::{Candidate, Plan};
use tramontane_coordinator::control::standby::shares_bytes;
use tramontane_model::ids::DeviceRef;
use tramontane_model::spec::ModelSpec;
use tramontane_model::standby::Share;
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
    /// Devices that only keep copies of weights.
    standbys: Vec<Device>,
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
    max_context: u32,
}

#[derive(Debug, Serialize)]
struct Replica {
    id: u64,
    stages: usize,
    wishes_met: bool,
    cache_tokens: u64,
    cache_format: &'static str,
    cache_bytes_per_token: u64,
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
    /// Weights that it keeps to take others' places.
    copy_bytes: u64,
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
        let copies = outlook.standbys.iter();
        let around = Around {
            footprint,
            known: candidates.iter().map(|one| (&one.device, one)).collect(),
            copies: copies.map(|one| (&one.device, one.shares.as_slice())).collect(),
        };
        let replicas = outlook.replicas.iter();
        let replicas = replicas.map(|plan| Replica::new(spec, &around, plan));
        let used = |candidate: &&Candidate| {
            let mut plans = outlook.replicas.iter();
            plans.any(|plan| plan.replica.devices().contains(&candidate.device))
        };
        let spare = || candidates.iter().filter(|candidate| !used(candidate));
        let copies = |candidate: &&Candidate| around.copies.contains_key(&candidate.device);
        let standbys = spare().filter(copies);
        let idle = spare().filter(|candidate| !copies(candidate));
        Some(Self {
            model: Model {
                layers: spec.n_layers,
                experts: spec.n_experts(),
                experts_per_token: footprint.experts_per_token,
                weight_bytes: sizes.total(spec.n_experts()),
                max_context: spec.max_context,
            },
            replicas: replicas.collect(),
            standbys: standbys
                .map(|candidate| around.device(&candidate.device, DeviceUsage::default(), Vec::new()))
                .collect(),
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
            "model: {} layers, {experts}; weights {}, context up to {} tokens",
            model.layers,
            bytes(model.weight_bytes),
            model.max_context
        );
        for replica in &self.replicas {
            println!();
            replica.print();
        }
        println!();
        if !self.standbys.is_empty() {
            println!("standbys:");
            print_devices(&self.standbys);
            println!();
        }
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
    fn new(spec: &ModelSpec, around: &Around<'_>, plan: &Plan) -> Self {
        let placed = &plan.replica;
        let cache_tokens = u64::from(placed.kv.blocks) * u64::from(placed.kv.block_tokens);
        let format = placed.kv.format;
        let layers = around.footprint.layers.iter();
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
                let text = format!("experts {} of stage {index}", group.experts);
                parts.entry(&group.holder).or_default().push(text);
            }
        }
        let devices = usage(around.footprint, placed).into_iter().map(|(device, used)| {
            let parts = parts.get(&device).cloned().unwrap_or_default();
            around.device(&device, used, parts)
        });
        Self {
            id: placed.id.0,
            stages: placed.stages.len(),
            wishes_met: plan.wishes_met,
            cache_tokens,
            cache_format: format.name(),
            cache_bytes_per_token: layers.map(|layer| layer.kv_bytes(format)).sum(),
            fits: fits.collect(),
            devices: devices.collect(),
        }
    }

    fn print(&self) {
        let fits = self.fits.iter();
        let fits: Vec<String> = fits
            .map(|fits| format!("{} of {} tokens", fits.requests, fits.tokens))
            .collect();
        let stages = match self.stages {
            1 => "1 stage".to_owned(),
            count => format!("{count} stages"),
        };
        let unmet = match self.wishes_met {
            true => "",
            false => ", not of the wished stages and expert groups",
        };
        println!(
            "replica {}: {stages}{unmet}; the cache holds {} tokens in {}, {} each, so at once: {}",
            self.id,
            self.cache_tokens,
            self.cache_format,
            bytes(self.cache_bytes_per_token),
            fits.join(", or ")
        );
        print_devices(&self.devices);
    }
}

fn print_devices(devices: &[Device]) {
    let title = [
        "DEVICE", "KIND", "WEIGHTS", "CACHE", "SCRATCH", "COPIES", "FREE", "HOLDS",
    ];
    let mut rows = vec![title.map(String::from)];
    rows.extend(devices.iter().map(|device| {
        [
            device.device.clone(),
            device.kind.clone(),
            bytes(device.weight_bytes),
            bytes(device.cache_bytes),
            bytes(device.scratch_bytes),
            bytes(device.copy_bytes),
            bytes(device.free_bytes),
            device.parts.join("; "),
        ]
    }));
    table::print(&rows);
}

/// What devices are, and what they keep copies of.
struct Around<'a> {
    footprint: &'a ModelFootprint,
    known: BTreeMap<&'a DeviceRef, &'a Candidate>,
    copies: BTreeMap<&'a DeviceRef, &'a [Share]>,
}

impl Around<'_> {
    fn device(&self, device: &DeviceRef, used: DeviceUsage, mut parts: Vec<String>) -> Device {
        let known = self.known.get(device);
        let copies = self.copies.get(device).copied().unwrap_or_default();
        parts.extend(copies.iter().map(|share| format!("copy of {share}")));
        let copy_bytes = shares_bytes(self.footprint, copies);
        let memory = known.map_or(0, |candidate| candidate.memory_bytes);
        Device {
            device: device.to_string(),
            kind: known.map_or_else(String::new, |candidate| candidate.kind.clone()),
            parts,
            weight_bytes: used.weight_bytes,
            cache_bytes: used.kv_bytes,
            scratch_bytes: used.scratch_bytes,
            copy_bytes,
            free_bytes: memory.saturating_sub(used.total_bytes().saturating_add(copy_bytes)),
        }
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
        let untouched = match self.untouched {
            0 => None,
            1 => Some("the other goes on".to_owned()),
            others => Some(format!("the other {others} go on")),
        };
        let texts: Vec<String> = anew.chain(lost).chain(untouched).collect();
        texts.join("; ")
    }
}
