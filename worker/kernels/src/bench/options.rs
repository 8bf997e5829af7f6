//! What is measured, as the command line says it.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, ValueEnum};
use tramontane_model::footprint::StepCapacity;
use tramontane_model::placement::KvFormat;
use tramontane_model::spec::{MAX_CONTEXT, ModelSpec};

use super::BenchError;
use crate::figures::Part;
use crate::synthetic::{Format, Shape, changed};

/// What to measure.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Whose dimensions: mistral-large-3, small-4, ministral-8b, or the params.json of a model.
    #[arg(long, value_name = "NAME|FILE", default_value = "mistral-large-3")]
    pub shape: Source,
    /// Layers of each kind, with weights of their own, that are measured in turn.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub layers: u32,
    /// Routed experts of a layer; absent: as many as the model has.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub experts: Option<u32>,
    /// How the weights are stored that the format quantises; absent: as the shape says.
    #[arg(long, value_enum)]
    pub format: Option<Format>,
    /// Rows of generated tokens, each of a sequence of its own, or none.
    #[arg(long, value_name = "N,..|none", default_value = "1,8,64")]
    pub rows: Counts,
    /// Rows of prompts, or none.
    #[arg(long, value_name = "N,..|none", default_value = "512,2048")]
    pub prefill: Counts,
    /// Tokens of each sequence, the last row included.
    #[arg(long, value_name = "N,..", default_value = "1024,32768,131072")]
    pub context: Counts,
    /// Parts of the model.
    #[arg(
        long,
        value_enum,
        value_name = "PART,..",
        value_delimiter = ',',
        default_value = "moe,dense,ends"
    )]
    pub parts: Vec<Part>,
    /// Most calls of each op; the least time counts.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub repeats: u32,
    /// How the cache stores its values; absent: as a worker's device of this kind does.
    #[arg(long, value_enum)]
    pub cache_format: Option<CacheFormat>,
    /// Also look for the fastest kernels of each op at each number of rows, whatever they do to bits: what it costs that
    /// a token does not depend on the rows beside it.
    #[arg(long)]
    pub det_cost: bool,
    /// Write a JSON object to a file, or to the standard output in place of the table.
    #[arg(long, value_name = "FILE|-")]
    pub json: Option<PathBuf>,
    /// Seconds after which nothing more is begun.
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub budget: u64,
    /// A part of the adapter's name; absent: the best adapter.
    #[arg(long, value_name = "NAME")]
    pub adapter: Option<String>,
    /// Bytes of the device's memory that may be used; absent: as many as a worker uses.
    #[arg(long, value_name = "BYTES")]
    pub memory_bytes: Option<u64>,
    /// Measure the kernels of GPUs where a processor emulates one.
    #[arg(long)]
    pub gpu_kernels: bool,
}

/// How a cache stores its values.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum CacheFormat {
    /// IEEE half.
    F16,
    /// As they are computed.
    F32,
}

impl From<CacheFormat> for KvFormat {
    fn from(format: CacheFormat) -> Self {
        match format {
            CacheFormat::F16 => Self::F16,
            CacheFormat::F32 => Self::F32,
        }
    }
}

/// Where dimensions come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A published model.
    Known(Shape),
    /// A params.json.
    File(PathBuf),
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(shape) = Shape::from_str(text, false) {
            return Ok(Self::Known(shape));
        }
        let path = PathBuf::from(text);
        if path.is_file() {
            return Ok(Self::File(path));
        }
        let known = Shape::value_variants()
            .iter()
            .filter_map(ValueEnum::to_possible_value);
        let known: Vec<String> = known.map(|value| value.get_name().to_owned()).collect();
        Err(format!("no such file, and no shape of {}", known.join(", ")))
    }
}

impl Source {
    /// What was said.
    pub fn name(&self) -> String {
        match self {
            Self::Known(shape) => shape
                .to_possible_value()
                .map_or_else(String::new, |value| value.get_name().to_owned()),
            Self::File(path) => path.display().to_string(),
        }
    }
}

/// Numbers in ascending order, each once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts(Vec<u32>);

impl FromStr for Counts {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self::default());
        }
        let numbers = text.split(',').map(|number| match number.trim().parse::<u32>() {
            Ok(number) if (1..=MAX_CONTEXT).contains(&number) => Ok(number),
            Ok(_) | Err(_) => Err(format!(
                "{number:?} is no number from 1 to {MAX_CONTEXT}: write numbers with commas, as 1,8,64, or none"
            )),
        });
        let mut numbers = numbers.collect::<Result<Vec<u32>, String>>()?;
        numbers.sort_unstable();
        numbers.dedup();
        Ok(Self(numbers))
    }
}

impl Counts {
    /// The numbers.
    pub fn each(&self) -> &[u32] {
        &self.0
    }
}

impl Options {
    /// How the cache stores its values on a device.
    pub(super) fn cached(&self, is_cpu: bool) -> KvFormat {
        self.cache_format.map_or(KvFormat::usual(is_cpu), KvFormat::from)
    }

    /// The model that is measured.
    pub(super) fn model(&self) -> Result<ModelSpec, BenchError> {
        let (text, path) = match &self.shape {
            Source::Known(shape) => (shape.params().to_owned(), PathBuf::from("params.json")),
            Source::File(path) => {
                let read = std::fs::read_to_string(path);
                let text = read.map_err(|source| BenchError::File {
                    path: path.clone(),
                    source,
                })?;
                (text, path.clone())
            }
        };
        let params = changed(&text, None, self.experts, self.format)?;
        let spec = ModelSpec::from_json(params.to_string().as_bytes(), &path)?;
        for (option, counts) in [("--rows", &self.rows), ("--prefill", &self.prefill)] {
            for &rows in counts.each() {
                let capacity = StepCapacity {
                    rows,
                    sequences: if option == "--rows" { rows } else { 1 },
                    expanded_group: 0,
                };
                capacity
                    .validate()
                    .map_err(|error| BenchError::Option(format!("{option} {rows}: {error}")))?;
            }
        }
        if self.context.each().is_empty() {
            return Err(BenchError::Option(
                "--context: name at least one length".to_owned(),
            ));
        }
        Ok(spec)
    }
}
