//! Kernels of other sizes than the device's own, for measurements of what the own ones cost.
//!
//! A trial computes the same up to rounding, but not the same bits: nothing that serves may use one.

use super::backend::GpuBackend;
use super::pipelines::Pipelines;
use super::tuning::Tuning;
use crate::ops::OpError;

/// Which ops a trial changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Concerns {
    /// Matrices times rows, those of experts too.
    Matrices,
    /// The tiles of rows alone of matrices and experts.
    Tiles,
    /// The folding of keys into queries.
    Queries,
    /// Attention.
    Attention,
    /// Norms, and the cache write that norms.
    Norms,
    /// What takes each element alone.
    Elements,
    /// The choice of experts.
    Route,
    /// The sampler.
    Sample,
}

/// Sizes to try.
#[derive(Clone, Copy, Debug)]
pub struct Trial {
    concerns: Concerns,
    tuning: Tuning,
    sizes: [Option<(&'static str, u32)>; 3],
}

/// Kernels compiled for sizes.
#[derive(Debug)]
pub struct Kernels {
    tuning: Tuning,
    pipelines: Pipelines,
}

impl Trial {
    /// Which ops it changes.
    pub fn concerns(&self) -> Concerns {
        self.concerns
    }

    /// Its sizes, as `lanes_n 8, outputs 4`.
    pub fn name(&self) -> String {
        let sizes = self.sizes.iter().flatten();
        let sizes: Vec<String> = sizes.map(|(name, size)| format!("{name} {size}")).collect();
        sizes.join(", ")
    }
}

impl GpuBackend {
    /// All sizes that are worth a try on this device, but its own.
    pub fn trials(&self) -> Vec<Trial> {
        let own = *self.tuning();
        let (matrices, lanes, tokens): (&[[u32; 3]], &[u32], &[u32]) =
            match (own.most_rounds, own.shares_loads) {
                // Lanes that share a sum, neighbouring outputs, outputs of a lane.
                (None, _) => (
                    &[
                        [8, 8, 1],
                        [8, 8, 2],
                        [8, 8, 4],
                        [16, 4, 2],
                        [16, 8, 1],
                        [16, 8, 2],
                        [16, 8, 4],
                        [32, 2, 2],
                        [32, 4, 1],
                        [32, 4, 2],
                        [32, 4, 4],
                        [32, 8, 1],
                        [32, 8, 2],
                        [64, 2, 2],
                        [64, 4, 1],
                        [64, 4, 2],
                    ],
                    &[32, 64, 128, 256],
                    &[128, 256, 512, 1024, 4096, 1 << 20],
                ),
                (Some(_), true) => (
                    &[
                        [1, 8, 1],
                        [1, 8, 2],
                        [1, 8, 4],
                        [1, 16, 2],
                        [1, 16, 4],
                        [1, 32, 2],
                        [1, 32, 4],
                    ],
                    &[8, 16, 32, 64],
                    &[128, 256, 512, 1024],
                ),
                (Some(_), false) => (
                    &[
                        [1, 4, 4],
                        [1, 8, 1],
                        [1, 8, 2],
                        [1, 8, 4],
                        [1, 16, 2],
                        [1, 16, 4],
                        [1, 32, 4],
                    ],
                    &[8, 16, 32, 64],
                    &[128, 256, 512, 1024, 4096, 1 << 20],
                ),
            };
        let mut trials = Vec::new();
        let mut add = |concerns, tuning: Tuning, sizes| {
            if tuning != own {
                trials.push(Trial {
                    concerns,
                    tuning,
                    sizes,
                });
            }
        };
        for &[lanes_k, lanes_n, outputs] in matrices {
            let tuning = Tuning {
                lanes_k,
                lanes_n,
                outputs,
                ..own
            };
            let sizes = [("lanes_k", lanes_k), ("lanes_n", lanes_n), ("outputs", outputs)];
            add(Concerns::Matrices, tuning, sizes.map(Some));
        }
        for tiles in [&[1_u32] as &'static [u32], &[1, 4], &[1, 8], &[1, 16]] {
            let tuning = Tuning {
                tiles,
                pair_tiles: tiles,
                ..own
            };
            let tallest = tiles.last().copied().unwrap_or(1);
            add(
                Concerns::Tiles,
                tuning,
                [Some(("rows of a tile", tallest)), None, None],
            );
        }
        for &tokens in tokens {
            let tuning = Tuning {
                split: Some(tokens),
                ..own
            };
            add(
                Concerns::Attention,
                tuning,
                [Some(("tokens of a split", tokens)), None, None],
            );
        }
        for &count in lanes {
            let one = |concerns, tuning| (concerns, tuning, [Some(("lanes", count)), None, None]);
            for (concerns, tuning, sizes) in [
                one(
                    Concerns::Queries,
                    Tuning {
                        lanes_query: count,
                        ..own
                    },
                ),
                one(
                    Concerns::Norms,
                    Tuning {
                        lanes_row: count,
                        ..own
                    },
                ),
                one(
                    Concerns::Elements,
                    Tuning {
                        lanes_each: count,
                        ..own
                    },
                ),
                one(
                    Concerns::Route,
                    Tuning {
                        lanes_route: count,
                        ..own
                    },
                ),
            ] {
                add(concerns, tuning, sizes);
            }
        }
        for lanes_sample in [&[16_u32] as &'static [u32], &[32], &[64], &[128], &[256]] {
            let lanes = lanes_sample.first().copied().unwrap_or(1);
            add(
                Concerns::Sample,
                Tuning { lanes_sample, ..own },
                [Some(("lanes", lanes)), None, None],
            );
        }
        trials
    }

    /// Compiles the kernels of a trial. The device must have its own.
    pub fn kernels(&self, trial: &Trial) -> Result<Kernels, OpError> {
        let pipelines = Pipelines::resized(self.device(), &trial.tuning, self.compiled());
        self.check()?;
        Ok(Kernels {
            tuning: trial.tuning,
            pipelines,
        })
    }

    /// Uses these kernels from now on, and gives those that it used: to be given back before anything else is computed.
    pub fn swap(&mut self, kernels: Kernels) -> Kernels {
        let (tuning, pipelines) = self.swap_kernels(kernels.tuning, kernels.pipelines);
        Kernels { tuning, pipelines }
    }
}
