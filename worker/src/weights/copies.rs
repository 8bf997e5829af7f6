//! What a device keeps for others.
//!
//! Pure: a function of the shares that it is told to keep copies of.

use std::collections::BTreeSet;

use tramontane_model::ids::{DeviceIndex, DeviceRef, WorkerId};
use tramontane_model::placement::{ExpertRange, KvFormat, KvShape, LayerRange};
use tramontane_model::spec::ModelSpec;
use tramontane_model::standby::Share;
use tramontane_model::step::StepBounds;

use super::slices::{DeviceSlices, ExpertSlice, GroupRoute, StageSlice, WeightSlice};

/// Most shares that are rehearsed: what drivers compile for one they need not compile for another.
const MAX_REHEARSALS: usize = 4;
/// Tokens of the one block of a rehearsal's cache.
const REHEARSED_TOKENS: u32 = 16;

/// Copies that a device keeps for others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Copies {
    /// Parts of the weights, in the order of the shares, none twice.
    pub weights: Vec<WeightSlice>,
    /// Placements in which the device would use them, with the smallest of caches: its first steps are made in these, so
    /// that they need not be made when it is waited for.
    pub rehearsals: Vec<DeviceSlices>,
}

impl Copies {
    /// Copies of these shares, on a device that is to cache in this format.
    pub fn of(shares: &[Share], spec: &ModelSpec, format: KvFormat) -> Self {
        let mut seen = BTreeSet::new();
        let weights = shares.iter().flat_map(|share| weights(share, spec));
        let rehearsals = shares.iter().take(MAX_REHEARSALS);
        Self {
            weights: weights.filter(|&slice| seen.insert(slice)).collect(),
            rehearsals: rehearsals.map(|share| rehearsal(share, spec, format)).collect(),
        }
    }
}

fn moe_layers(share: &Share, spec: &ModelSpec) -> Option<LayerRange> {
    let (layers, moe) = (share.layers(), spec.moe_layers());
    LayerRange::new(layers.start().max(moe.start), layers.end().min(moe.end))
}

/// Whether the owner of these layers holds the embedding: as the first stage, or as the last whose head it is.
fn has_embedding(layers: LayerRange, spec: &ModelSpec) -> bool {
    layers.start() == 0 || (spec.tied_embeddings && layers.end() == spec.n_layers)
}

fn weights(share: &Share, spec: &ModelSpec) -> Vec<WeightSlice> {
    let mut weights = Vec::new();
    let layers = share.layers();
    if share.owned() {
        weights.extend(has_embedding(layers, spec).then_some(WeightSlice::Embedding));
        weights.extend(layers.iter().map(WeightSlice::Layer));
    }
    if let (Some(experts), Some(layers)) = (share.experts(), moe_layers(share, spec)) {
        weights.extend(layers.iter().map(|layer| WeightSlice::Experts { layer, experts }));
    }
    weights.extend((share.owned() && layers.end() == spec.n_layers).then_some(WeightSlice::Head));
    weights
}

fn rehearsal(share: &Share, spec: &ModelSpec, format: KvFormat) -> DeviceSlices {
    let layers = share.layers();
    let held = share.experts().zip(moe_layers(share, spec));
    let experts = held.map(|(experts, layers)| ExpertSlice {
        stage: 0,
        group: 0,
        layers,
        experts,
        own_stage: share.owned(),
    });
    let stage = share.owned().then(|| StageSlice {
        stage: 0,
        layers,
        first: layers.start() == 0,
        last: layers.end() == spec.n_layers,
        embedding: has_embedding(layers, spec),
        kv: KvShape {
            block_tokens: REHEARSED_TOKENS,
            blocks: 1,
            format,
        },
        groups: share.experts().map_or_else(Vec::new, |own| routes(own, spec)),
    });
    DeviceSlices {
        stage,
        experts: experts.into_iter().collect(),
        capacity: StepBounds::default().capacity(),
    }
}

/// Experts of the device's own, and the others as if another device had them.
fn routes(own: ExpertRange, spec: &ModelSpec) -> Vec<GroupRoute> {
    let route = |start, end, elsewhere: bool| {
        let other = WorkerId::new("elsewhere").ok().map(|worker| DeviceRef {
            worker,
            device: DeviceIndex(0),
        });
        Some(GroupRoute {
            experts: ExpertRange::new(start, end)?,
            remote: other.filter(|_| elsewhere),
        })
    };
    let all = [
        route(0, own.start(), true),
        route(own.start(), own.end(), false),
        route(own.end(), spec.n_experts(), true),
    ];
    all.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tramontane_model::ids::{Generation, ReplicaId};
    use tramontane_model::placement::{ExpertGroup, Replica, Stage};

    use super::*;

    fn device(name: &str) -> DeviceRef {
        DeviceRef {
            worker: WorkerId::new(name).expect("a valid name"),
            device: DeviceIndex(0),
        }
    }

    /// Two stages, the first with its experts in two groups.
    fn replica() -> Replica {
        let stage = |layers: (u32, u32), owner: &str, groups: &[(u32, u32, &str)]| Stage {
            layers: LayerRange::new(layers.0, layers.1).expect("layers"),
            owner: device(owner),
            groups: groups
                .iter()
                .map(|&(start, end, holder)| ExpertGroup {
                    experts: ExpertRange::new(start, end).expect("experts"),
                    holder: device(holder),
                })
                .collect(),
        };
        Replica {
            id: ReplicaId(1),
            generation: Generation(1),
            stages: vec![
                stage((0, 3), "a", &[(0, 8, "a"), (8, 16, "c")]),
                stage((3, 6), "b", &[(0, 16, "b")]),
            ],
            kv: KvShape {
                block_tokens: 16,
                blocks: 8,
                format: KvFormat::F16,
            },
            steps: StepBounds::default(),
        }
    }

    #[test]
    fn copies_of_a_devices_places_are_what_the_device_holds() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cli/assets/mini-large-3/params.json");
        let spec =
            ModelSpec::from_json(&std::fs::read(&file).expect("the fixture"), &file).expect("a valid spec");
        let replica = replica();
        assert_eq!(replica.validate(6, 16, 1), Ok(()));
        for name in ["a", "b", "c"] {
            let shares: Vec<Share> = replica.shares_of(&device(name)).collect();
            let copies = Copies::of(&shares, &spec, KvFormat::F16);
            let held = DeviceSlices::of(&replica, &device(name), &spec).expect("it takes part");
            let sorted = |mut slices: Vec<WeightSlice>| {
                slices.sort_unstable();
                slices
            };
            assert_eq!(sorted(copies.weights.clone()), sorted(held.weights()), "{name}");
            // Told twice, kept once.
            let twice = Copies::of(&[shares.clone(), shares].concat(), &spec, KvFormat::F16);
            assert_eq!(twice.weights, copies.weights);
            let [rehearsal] = &copies.rehearsals[..] else {
                panic!("{:?}", copies.rehearsals);
            };
            assert_eq!(sorted(rehearsal.weights()), sorted(held.weights()), "{name}");
            assert_eq!(rehearsal.serves_others(), name == "c");
            let ends = |slices: &DeviceSlices| slices.stage.as_ref().map(|stage| (stage.first, stage.last));
            assert_eq!(ends(rehearsal), ends(&held));
            let format = |slices: &DeviceSlices| slices.stage.as_ref().map(|stage| stage.kv.format);
            assert_eq!(format(rehearsal), format(&held));
            let experts = |slices: &DeviceSlices| {
                let groups = slices.stage.iter().flat_map(|stage| &stage.groups);
                groups.map(|group| group.experts).collect::<Vec<_>>()
            };
            assert_eq!(experts(rehearsal), experts(&held));
        }
    }
}
