//! The rows of a call by role, and the kernels of each: given rows may have others than generated ones (DET-1).

use crate::gpu::kernel::Kernel;
use crate::gpu::matrices::{Codes, Sums, TILED_ALIGN, TILED_WIDTH, Tiled, Variant};
use crate::gpu::tuning::Tuning;
use crate::ops::{Rows, WeightFormat};

/// Consecutive rows that go through the same kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Share {
    /// The first of them.
    pub(super) first: u32,
    /// How many, at least one.
    pub(super) rows: u32,
    /// Whether they are given rows where these have kernels of their own.
    is_given: bool,
}

/// The shares there are: one of both roles where they have the same kernels.
pub(super) fn shares(tuning: &Tuning, rows: Rows) -> impl Iterator<Item = Share> + use<> {
    let share = |first, rows, is_given| Share {
        first,
        rows,
        is_given,
    };
    let all = match tuning.given.is_as_generated() {
        true => [share(0, rows.total(), false), share(0, 0, false)],
        false => [
            share(0, rows.generated, false),
            share(rows.generated, rows.given, true),
        ],
    };
    all.into_iter().filter(|share| share.rows > 0)
}

impl Share {
    /// The same rows where each is so many.
    pub(super) fn times(self, count: u32) -> Self {
        Self {
            first: self.first * count,
            rows: self.rows * count,
            ..self
        }
    }

    /// The kernels for weights of a format, so many rows of them in all.
    pub(super) fn plain(self, tuning: &Tuning, format: WeightFormat, weights: u32) -> Way {
        let codes = Codes::of(format);
        match self.sums(tuning, codes) {
            Some(sums) => Way::Tiled(Tiled {
                codes,
                sums,
                rows: tuning.tiled_rows(self.rows, weights.div_ceil(TILED_WIDTH)),
            }),
            None => Way::Lanes(Variant {
                codes,
                grouped: false,
                rows: tuning.tile_rows(self.rows),
            }),
        }
    }

    /// Pairs of a tile, where they are spread over so many experts whose smaller matrix has so many rows.
    pub(super) fn pair_rows(self, tuning: &Tuning, experts: u32, weights: u32) -> u32 {
        match self.is_given {
            true => {
                let beside = experts.saturating_mul(weights.div_ceil(TILED_WIDTH));
                tuning.tiled_rows(self.rows / experts.max(1), beside)
            }
            false => tuning.pair_rows(self.rows, experts),
        }
    }

    /// The kernels for pairs grouped in tiles of so many.
    pub(super) fn grouped(self, tuning: &Tuning, format: WeightFormat, rows: u32) -> Way {
        let codes = Codes::of(format);
        match self.sums(tuning, codes) {
            Some(sums) => Way::Tiled(Tiled { codes, sums, rows }),
            None => Way::Lanes(Variant {
                codes,
                grouped: true,
                rows,
            }),
        }
    }

    fn sums(self, tuning: &Tuning, codes: Codes) -> Option<Sums> {
        tuning.given.sums(codes).filter(|_| self.is_given)
    }
}

/// One of the two kinds of kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Lanes that share a sum, or have one of their own: tiles of a few rows.
    Lanes(Variant),
    /// Large tiles.
    Tiled(Tiled),
}

impl Way {
    /// Rows of a tile.
    pub(super) fn rows(self) -> u32 {
        match self {
            Self::Lanes(variant) => variant.rows,
            Self::Tiled(tiled) => tiled.rows,
        }
    }

    /// Whether rows are rounded to f16: they need factors.
    pub(super) fn rounds_rows(self) -> bool {
        match self {
            Self::Lanes(_) => false,
            Self::Tiled(tiled) => tiled.rounds_rows(),
        }
    }

    pub(super) fn linear(self) -> Kernel {
        match self {
            Self::Lanes(variant) => Kernel::Linear(variant),
            Self::Tiled(tiled) => Kernel::LinearTiled(tiled),
        }
    }

    pub(super) fn gate_up(self) -> Kernel {
        match self {
            Self::Lanes(variant) => Kernel::GateUp(variant),
            Self::Tiled(tiled) => Kernel::GateUpTiled(tiled),
        }
    }

    /// Outputs of a workgroup of the linear kernel.
    pub(super) fn linear_outputs(self, tuning: &Tuning) -> u32 {
        match self {
            Self::Lanes(_) => tuning.linear_outputs(),
            Self::Tiled(_) => TILED_WIDTH,
        }
    }

    /// Outputs of a workgroup of the gate and up kernel, which has two matrices.
    pub(super) fn gate_up_outputs(self, tuning: &Tuning) -> u32 {
        match self {
            Self::Lanes(_) => tuning.gate_up_outputs(),
            Self::Tiled(_) => TILED_WIDTH / 2,
        }
    }

    /// Workgroups, of so many outputs each, across `count` outputs that begin at a row of the matrix; in groups whose first
    /// rows are so far apart.
    pub(super) fn columns(self, first: u32, group: u32, count: u32, outputs: u32) -> u32 {
        let skew = match self {
            Self::Lanes(_) => 0,
            Self::Tiled(_) if group.is_multiple_of(TILED_ALIGN) => first % TILED_ALIGN,
            Self::Tiled(_) => TILED_ALIGN - 1,
        };
        (skew + count).div_ceil(outputs)
    }

    /// What the last of the buffers read is: of pairs their experts, or of rows that are rounded their factors.
    pub(super) fn last_read<'a, B>(self, ids: &'a B, factors: &'a B) -> &'a B {
        match self {
            Self::Lanes(_) => ids,
            Self::Tiled(_) => factors,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::device::Class;
    use crate::gpu::matrices::Given;

    #[test]
    fn roles_are_apart_only_where_their_kernels_are() {
        let tuning = |given| Tuning::new(Class::Gpu, true, given);
        let found = |given, rows| shares(&tuning(given), rows).collect::<Vec<_>>();
        let share = |first, rows, is_given| Share {
            first,
            rows,
            is_given,
        };
        let rows = Rows::new(3, 5);
        assert_eq!(found(Given::AsGenerated, rows), [share(0, 8, false)]);
        assert_eq!(found(Given::Tiled, rows), [share(0, 3, false), share(3, 5, true)]);
        assert_eq!(found(Given::Tiled, Rows::new(0, 2)), [share(0, 2, true)]);
        assert_eq!(found(Given::Tiled, Rows::new(2, 0)), [share(0, 2, false)]);
        assert_eq!(found(Given::Tiled, Rows::new(0, 0)), []);
    }
}
