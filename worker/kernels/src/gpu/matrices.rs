//! The variants of kernels with matrices, and the parts that their sources are put together from.
//!
//! A part per weight format. Kernels of generated rows by whether rows are grouped by expert, and by rows per tile: on an
//! emulated GPU a workgroup is a few vectors of neighbouring outputs, on a GPU lanes also share a sum. Given rows may have
//! kernels of their own, where tiles are large: [`Given`].

use wgpu::Features;

use super::tuning::Tuning;
use crate::ops::WeightFormat;

/// What a matrix kernel decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Codes {
    Bf16,
    /// With a multiplier per block, or one for all.
    Fp8,
    Nvfp4,
}

impl Codes {
    pub(super) const ALL: [Self; 3] = [Self::Bf16, Self::Fp8, Self::Nvfp4];

    pub(super) fn of(format: WeightFormat) -> Self {
        match format {
            WeightFormat::Bf16 => Self::Bf16,
            WeightFormat::Fp8Block | WeightFormat::Fp8Tensor => Self::Fp8,
            WeightFormat::Nvfp4 => Self::Nvfp4,
        }
    }

    /// The parts of a shader's source that decode them, by way of f16 or not.
    pub(super) fn sources(self, halves: bool) -> [&'static str; 2] {
        let own = match self {
            Self::Bf16 => include_str!("../../shaders/shared/weights_bf16.wgsl"),
            Self::Fp8 => include_str!("../../shaders/shared/weights_fp8.wgsl"),
            Self::Nvfp4 => include_str!("../../shaders/shared/weights_nvfp4.wgsl"),
        };
        let small_floats = match halves {
            true => include_str!("../../shaders/shared/codes_half.wgsl"),
            false => include_str!("../../shaders/shared/codes_float.wgsl"),
        };
        [own, small_floats]
    }
}

const PARAMS: &str = include_str!("../../shaders/shared/matrix_params.wgsl");
const WEIGHTS: &str = include_str!("../../shaders/shared/weights.wgsl");
const LOADS_U32: &str = include_str!("../../shaders/shared/loads_u32.wgsl");
const LOADS_U64: &str = include_str!("../../shaders/shared/loads_u64.wgsl");

/// A variant of a matrix kernel whose tiles are of a few rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Variant {
    pub(super) codes: Codes,
    /// Rows are pairs (row, choice), grouped by expert.
    pub(super) grouped: bool,
    /// Rows of activations that a tile holds.
    pub(super) rows: u32,
}

/// What such kernels have in common, after what is an op's own.
pub(super) fn sources(op: &'static str, tuning: &Tuning) -> Vec<&'static str> {
    let (rows, loads) = match tuning.shares_loads {
        true => (include_str!("../../shaders/shared/rows_subgroup.wgsl"), LOADS_U64),
        false => (include_str!("../../shaders/shared/rows_direct.wgsl"), LOADS_U32),
    };
    let tile = include_str!("../../shaders/shared/tile.wgsl");
    vec![op, PARAMS, tile, rows, loads, WEIGHTS]
}

/// What computes given rows with matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Given {
    /// The kernels of generated rows.
    AsGenerated,
    /// Large tiles, sums in f32.
    Tiled,
    /// Large tiles and cooperative matrices of f16 with sums in f32. BF16 weights, which f16 does not hold, as [`Given::Tiled`].
    Cooperative,
    /// What [`Given::Cooperative`] computes, without cooperative matrices: to test all but these where there are none.
    Halves,
}

impl Given {
    /// Part of the device kind.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::AsGenerated => "as generated ones",
            Self::Tiled => "tiled",
            Self::Cooperative => "cooperative matrix",
            Self::Halves => "tiled in f16",
        }
    }

    /// How sums over such codes are taken, if not as those of generated rows.
    pub(super) fn sums(self, codes: Codes) -> Option<Sums> {
        match (self, codes) {
            (Self::AsGenerated, _) => None,
            (Self::Tiled, _) | (_, Codes::Bf16) => Some(Sums::Plain),
            (Self::Cooperative, Codes::Fp8 | Codes::Nvfp4) => Some(Sums::Cooperative),
            (Self::Halves, Codes::Fp8 | Codes::Nvfp4) => Some(Sums::Halves),
        }
    }

    /// What its kernels need of a device.
    pub(super) fn features(self) -> Features {
        match self {
            Self::AsGenerated | Self::Tiled => Features::empty(),
            Self::Cooperative => {
                Features::EXPERIMENTAL_COOPERATIVE_MATRIX | Features::SHADER_F16 | Features::SUBGROUP
            }
            Self::Halves => Features::SHADER_F16,
        }
    }

    /// Whether given rows have the kernels of generated ones.
    pub(super) fn is_as_generated(self) -> bool {
        self == Self::AsGenerated
    }

    /// Whether it rounds rows to f16.
    pub(super) fn rounds_rows(self) -> bool {
        match self {
            Self::AsGenerated | Self::Tiled => false,
            Self::Cooperative | Self::Halves => true,
        }
    }
}

/// Rows of activations that a large tile may hold, ascending.
pub(super) const TILED_ROWS: [u32; 2] = [32, 64];
/// Rows of weights that it holds.
pub(super) const TILED_WIDTH: u32 = 128;
/// Tiles begin at multiples of so many rows of the matrix.
pub(super) const TILED_ALIGN: u32 = 16;

/// Lanes of the subgroups that the kernels with cooperative matrices are for.
pub(super) const SUBGROUP_LANES: u32 = 32;
/// Workgroup memory of these: two tiles of f16 in rows of 80 bytes, three words a row, and 512 sums for each subgroup.
pub(super) const COOPERATIVE_BYTES: u32 = (64 + TILED_WIDTH) * 80 + 64 * 12 + 8 * 512 * 4;

/// How the sums of a large tile are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Sums {
    /// Elements and sums in f32.
    Plain,
    /// Elements in f16, sums in f32 by cooperative matrices.
    Cooperative,
    /// Elements in f16, sums in f32 by plain arithmetic.
    Halves,
}

/// A variant of a matrix kernel whose tiles are large.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Tiled {
    pub(super) codes: Codes,
    pub(super) sums: Sums,
    /// One of [`TILED_ROWS`].
    pub(super) rows: u32,
}

impl Tiled {
    /// What it has in common with others, around what is an op's own.
    pub(super) fn sources(self, op: &'static str) -> Vec<&'static str> {
        const HALVES: &str = "enable f16;";
        // That control flow is uniform naga cannot see where it depends on a variable, such as a loop's: it is told so by the
        // name of another rule (naga 30).
        const COOPERATIVE: &str =
            "enable f16;\nenable wgpu_cooperative_matrix;\ndiagnostic(off, derivative_uniformity);";
        let f32 = include_str!("../../shaders/shared/tiles_f32.wgsl");
        let f16 = include_str!("../../shaders/shared/tiles_f16.wgsl");
        let plain = include_str!("../../shaders/shared/sums_plain.wgsl");
        let cooperative = include_str!("../../shaders/shared/sums_cooperative.wgsl");
        let (enabled, elements, sums) = match self.sums {
            Sums::Plain => ("", f32, plain),
            Sums::Cooperative => (COOPERATIVE, f16, cooperative),
            Sums::Halves => (HALVES, f16, plain),
        };
        let tiled = include_str!("../../shaders/shared/tiled.wgsl");
        vec![enabled, op, PARAMS, tiled, elements, sums, LOADS_U32, WEIGHTS]
    }

    /// Whether it rounds rows to f16.
    pub(super) fn rounds_rows(self) -> bool {
        match self.sums {
            Sums::Plain => false,
            Sums::Cooperative | Sums::Halves => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use wgpu::naga::AddressSpace;
    use wgpu::naga::back::{PipelineConstants, pipeline_constants, spv};
    use wgpu::naga::front::wgsl::{Frontend, Options};
    use wgpu::naga::valid::{Capabilities, ValidationFlags, Validator};

    use super::super::device::Class;
    use super::super::kernel::Kernel;
    use super::*;

    const CAPABILITIES: Capabilities = Capabilities::COOPERATIVE_MATRIX
        .union(Capabilities::SHADER_FLOAT16)
        .union(Capabilities::SHADER_FLOAT16_IN_FLOAT32)
        .union(Capabilities::SUBGROUP)
        .union(Capabilities::IMMEDIATES);
    /// `OpCooperativeMatrixMulAddKHR`.
    const MULTIPLY_ADD: u32 = 4459;

    /// What a driver would get, and the bytes of workgroup memory that it takes; or why it would get nothing.
    fn compile(kernel: Kernel, tuning: &Tuning) -> Result<(Vec<u32>, u32), String> {
        let mut options = Options::new();
        options.capabilities = CAPABILITIES;
        let source = kernel.shader(tuning).source();
        let module = Frontend::new_with_options(options).parse(&source);
        let module = module.map_err(|error| error.emit_to_string(&source))?;
        let mut validator = Validator::new(ValidationFlags::all(), CAPABILITIES);
        let info = validator
            .validate(&module)
            .map_err(|error| format!("{error:?}"))?;
        let mut constants = PipelineConstants::default();
        for (name, value) in kernel.constants(tuning) {
            constants.insert(name.to_owned(), value);
        }
        let stage = wgpu::naga::ShaderStage::Compute;
        let (module, info) =
            pipeline_constants::process_overrides(&module, &info, Some((stage, "main")), &constants)
                .map_err(|error| error.to_string())?;
        let options = spv::Options {
            lang_version: (1, 6),
            flags: spv::WriterFlags::empty(),
            fake_missing_bindings: true,
            zero_initialize_workgroup_memory: spv::ZeroInitializeWorkgroupMemoryMode::None,
            bounds_check_policies: wgpu::naga::proc::BoundsCheckPolicies {
                index: wgpu::naga::proc::BoundsCheckPolicy::Unchecked,
                buffer: wgpu::naga::proc::BoundsCheckPolicy::Unchecked,
                image_load: wgpu::naga::proc::BoundsCheckPolicy::Unchecked,
                binding_array: wgpu::naga::proc::BoundsCheckPolicy::Unchecked,
            },
            force_loop_bounding: false,
            ..spv::Options::default()
        };
        let pipeline = spv::PipelineOptions {
            shader_stage: stage,
            entry_point: "main".to_owned(),
        };
        let variables = module.global_variables.iter().map(|(_, variable)| variable);
        let memory = variables
            .filter(|variable| variable.space == AddressSpace::WorkGroup)
            .map(|variable| module.types[variable.ty].inner.size(module.to_ctx()))
            .sum();
        let words = spv::write_vec(&module, &info, &options, Some(&pipeline));
        Ok((words.map_err(|error| error.to_string())?, memory))
    }

    /// Operation codes in order, after the five words of the header.
    fn operations(words: &[u32]) -> Vec<u32> {
        let (mut rest, mut found) = (&words[5..], Vec::new());
        while let Some(&word) = rest.first() {
            found.push(word & 0xffff);
            rest = &rest[(word >> 16) as usize..];
        }
        found
    }

    #[test]
    fn shaders_with_cooperative_matrices_are_valid() {
        let mut seen = 0;
        for halves in [true, false] {
            let tuning = Tuning::new(Class::Gpu, halves, Given::Cooperative);
            for kernel in Kernel::all(&tuning) {
                let (Kernel::LinearTiled(tiled) | Kernel::GateUpTiled(tiled)) = kernel else {
                    continue;
                };
                let (words, memory) =
                    compile(kernel, &tuning).unwrap_or_else(|error| panic!("{kernel:?}: {error}"));
                let multiplied = operations(&words)
                    .iter()
                    .filter(|&&op| op == MULTIPLY_ADD)
                    .count();
                // What is asked of an adapter, or what every one has.
                let (expected, room) = match tiled.sums {
                    Sums::Cooperative => (4, COOPERATIVE_BYTES),
                    Sums::Plain | Sums::Halves => (0, 16_384),
                };
                assert!(memory <= room, "{kernel:?}: {memory} bytes of workgroup memory");
                assert_eq!(multiplied, expected, "{kernel:?}");
                seen += 1;
            }
        }
        assert_eq!(seen, 2 * 3 * 2 * TILED_ROWS.len());
    }
}
