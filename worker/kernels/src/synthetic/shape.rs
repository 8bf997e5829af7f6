//! Which model, and how its weights are stored.

use clap::ValueEnum;
use tramontane_model::spec::Quantization;

/// Models whose dimensions are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shape {
    /// Mistral Large 3, 675 billion parameters.
    #[value(name = "mistral-large-3")]
    MistralLarge3,
    /// Mistral Small 4, 119 billion.
    #[value(name = "small-4")]
    Small4,
    /// Ministral 3 of 8 billion.
    #[value(name = "ministral-8b")]
    Ministral8b,
}

impl Shape {
    /// Its params.json, as published.
    pub fn params(self) -> &'static str {
        match self {
            Self::MistralLarge3 => include_str!("../../assets/shapes/mistral-large-3.json"),
            Self::Small4 => include_str!("../../assets/shapes/small-4.json"),
            Self::Ministral8b => include_str!("../../assets/shapes/ministral-8b.json"),
        }
    }
}

/// Weight formats as they are published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Everything in BF16.
    Bf16,
    /// FP8 with one scale per block.
    Fp8,
    /// FP8 with one scale per tensor.
    Fp8Tensor,
    /// NVFP4: feed-forwards and experts in four bits, the rest in BF16.
    Nvfp4,
}

impl Format {
    /// What a spec calls it.
    pub fn quantization(self) -> Quantization {
        match self {
            Self::Bf16 => Quantization::None,
            Self::Fp8 => Quantization::Fp8Block,
            Self::Fp8Tensor => Quantization::Fp8Tensor,
            Self::Nvfp4 => Quantization::Nvfp4,
        }
    }

    /// The format of a spec.
    pub fn of(quantization: Quantization) -> Self {
        match quantization {
            Quantization::None => Self::Bf16,
            Quantization::Fp8Block => Self::Fp8,
            Quantization::Fp8Tensor => Self::Fp8Tensor,
            Quantization::Nvfp4 => Self::Nvfp4,
        }
    }

    /// What it is called on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::Fp8 => "fp8",
            Self::Fp8Tensor => "fp8-tensor",
            Self::Nvfp4 => "nvfp4",
        }
    }
}
