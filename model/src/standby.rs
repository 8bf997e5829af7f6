//! Standbys: devices that keep a copy of some of the model's weights beside what they compute with.
//!
//! Pure data. A copy belongs to no replica and to no generation: any placement may be built on it, none waits for it, and
//! a device that needs the room drops it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::DeviceRef;
use crate::placement::{ExpertRange, LayerRange, Replica, Stage};

/// What one place of a stage holds of the model's weights. Never nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "RawShare")]
pub struct Share {
    layers: LayerRange,
    owned: bool,
    experts: Option<ExpertRange>,
}

/// A share as it is written.
#[derive(Deserialize)]
struct RawShare {
    layers: LayerRange,
    owned: bool,
    experts: Option<ExpertRange>,
}

/// A share of nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the share of layers {layers} has neither their owner's part nor experts, it must have one")]
pub struct EmptyShare {
    /// Its layers.
    pub layers: LayerRange,
}

impl TryFrom<RawShare> for Share {
    type Error = EmptyShare;
    fn try_from(raw: RawShare) -> Result<Self, EmptyShare> {
        Self::new(raw.layers, raw.owned, raw.experts)
    }
}

impl Share {
    /// What the owner of these layers holds of them, if `owned`, and these of their routed experts.
    pub fn new(layers: LayerRange, owned: bool, experts: Option<ExpertRange>) -> Result<Self, EmptyShare> {
        if !owned && experts.is_none() {
            return Err(EmptyShare { layers });
        }
        Ok(Self {
            layers,
            owned,
            experts,
        })
    }

    /// The layers that it is of.
    pub fn layers(&self) -> LayerRange {
        self.layers
    }

    /// Whether it has what the owner of its layers holds: the embedding too if the first is among them, the head if
    /// the last is.
    pub fn owned(&self) -> bool {
        self.owned
    }

    /// Routed experts of each of its layers that has any.
    pub fn experts(&self) -> Option<ExpertRange> {
        self.experts
    }

    /// Whether some weights are in both.
    pub fn overlaps(&self, other: &Self) -> bool {
        let meets = |(a, b): (u32, u32), (c, d): (u32, u32)| a < d && c < b;
        let layers = |share: &Self| (share.layers.start(), share.layers.end());
        let experts = self
            .experts
            .zip(other.experts)
            .is_some_and(|(left, right)| meets((left.start(), left.end()), (right.start(), right.end())));
        meets(layers(self), layers(other)) && (experts || (self.owned && other.owned))
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "layers {}", self.layers)?;
        match (self.owned, self.experts) {
            (true, None) => Ok(()),
            (true, Some(experts)) => write!(f, " with experts {experts}"),
            (false, Some(experts)) => write!(f, ": experts {experts}"),
            (false, None) => write!(f, ": nothing"),
        }
    }
}

/// A device and what it keeps copies of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standby {
    /// The device.
    pub device: DeviceRef,
    /// Its copies: none is of what the device computes with, none is there twice.
    pub shares: Vec<Share>,
}

/// A place in a replica: a stage and a group of it. Group 0 is the owner's place, also where a stage has no groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place<'a> {
    /// Which stage.
    pub stage: usize,
    /// Which of its groups.
    pub group: usize,
    /// Who computes it.
    pub device: &'a DeviceRef,
    /// What it holds.
    pub share: Share,
}

impl Stage {
    /// The places of the stage, the owner's first.
    fn places(&self, stage: usize) -> impl Iterator<Item = Place<'_>> {
        let (layers, experts) = (self.layers, self.groups.first().map(|group| group.experts));
        let owner = Place {
            stage,
            group: 0,
            device: &self.owner,
            share: Share {
                layers,
                owned: true,
                experts,
            },
        };
        let groups = self.groups.iter().enumerate().skip(1);
        let others = groups.map(move |(group, held)| Place {
            stage,
            group,
            device: &held.holder,
            share: Share {
                layers,
                owned: false,
                experts: Some(held.experts),
            },
        });
        std::iter::once(owner).chain(others)
    }
}

impl Replica {
    /// Every place of the replica, in the order of stages and groups.
    pub fn places(&self) -> impl Iterator<Item = Place<'_>> {
        let stages = self.stages.iter().enumerate();
        stages.flat_map(|(index, stage)| stage.places(index))
    }

    /// What it gives to one device.
    pub fn shares_of(&self, device: &DeviceRef) -> impl Iterator<Item = Share> {
        let own = self.places().filter(move |place| place.device == device);
        own.map(|place| place.share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(layers: (u32, u32), owned: bool, experts: Option<(u32, u32)>) -> Share {
        let experts = experts.and_then(|(start, end)| ExpertRange::new(start, end));
        let layers = LayerRange::new(layers.0, layers.1).expect("layers");
        Share::new(layers, owned, experts).expect("not empty")
    }

    #[test]
    fn shares_overlap_where_both_have_the_same_weights() {
        let owner = share((0, 3), true, Some((0, 8)));
        for (other, overlaps) in [
            (share((0, 3), true, Some((0, 8))), true),
            (share((2, 5), true, None), true),
            (share((3, 5), true, Some((0, 8))), false),
            (share((0, 3), false, Some((8, 16))), false),
            (share((1, 2), false, Some((7, 16))), true),
        ] {
            assert_eq!(owner.overlaps(&other), overlaps, "{other}");
            assert_eq!(other.overlaps(&owner), overlaps, "{other}");
        }
    }

    #[test]
    fn a_share_of_nothing_is_refused_wherever_it_comes_from() {
        let layers = LayerRange::new(1, 2).expect("layers");
        assert_eq!(Share::new(layers, false, None), Err(EmptyShare { layers }));
        let written = r#"{"layers":{"start":1,"end":2},"owned":false,"experts":null}"#;
        let error = serde_json::from_str::<Share>(written).expect_err("refused");
        assert!(error.to_string().contains("must have one"), "{error}");
        let whole = share((1, 2), true, Some((0, 4)));
        let text = serde_json::to_string(&whole).expect("writes");
        assert_eq!(serde_json::from_str::<Share>(&text).expect("reads"), whole);
    }
}
