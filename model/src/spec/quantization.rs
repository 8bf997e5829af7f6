//! The `quantization` object of params.json: which weight format the checkpoint says it has.
//!
//! Absent here: which tensors are quantised. The `ignore` list names modules of another layout and the dtypes in
//! the tensor headers are exact, so those decide. Formats of activations are ignored: activations stay unquantised.

use serde_json::json;

use super::fields::{Fields, Report};

/// Rows and columns of the weight block that shares one scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockShape {
    /// Rows (outputs).
    pub rows: u32,
    /// Columns (inputs).
    pub cols: u32,
}

impl BlockShape {
    /// Rows and columns of the scale matrix of a `rows x cols` weight; blocks at the edges may be partial.
    pub fn scale_shape(self, rows: u32, cols: u32) -> (u32, u32) {
        (rows.div_ceil(self.rows), cols.div_ceil(self.cols))
    }
}

/// How a checkpoint's weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantization {
    /// Everything in BF16.
    None,
    /// Linear layers in e4m3 with one multiplier per block, the rest in BF16.
    Fp8Block(BlockShape),
}

impl Quantization {
    /// The block that shares a scale, if weights are quantised.
    pub fn block(self) -> Option<BlockShape> {
        match self {
            Self::None => None,
            Self::Fp8Block(block) => Some(block),
        }
    }
}

const SERVED: &str = "bf16 weights (no quantization) or fp8 weights with one scale per block (FP8_BLOCK)";
const BLOCK_EXPECTED: &str = "two powers of two from 16 to 1024, such as [128, 128]";

/// Reads the object; `None` after noting why in the report.
pub(super) fn read(mut fields: Fields<'_>, report: &mut Report) -> Option<Quantization> {
    if let Some(format) = fields.text("qformat_weight") {
        let found = format!("{format:?} (one scale per tensor)");
        report.refuse(fields.key("qformat_weight"), found, SERVED);
        return None;
    }
    fields.ignore(&[
        "ignore",
        "quantization_status",
        "kv_cache_scheme",
        "global_compression_ratio",
        "version",
    ]);
    fields.fixed(report, "quant_method", &json!("compressed-tensors"), SERVED);
    fields.fixed(report, "format", &json!("float-quantized"), SERVED);
    let mut groups = fields.required_object(report, "config_groups", "an object with one group, FP8_BLOCK");
    let block = groups
        .as_mut()
        .and_then(|groups| groups.only_member(report, "one group of weights, FP8_BLOCK"))
        .and_then(|(_, group)| read_group(group, report));
    fields.finish(report);
    block.map(Quantization::Fp8Block)
}

fn read_group(mut group: Fields<'_>, report: &mut Report) -> Option<BlockShape> {
    group.ignore(&["targets", "input_activations", "output_activations", "format"]);
    let weights = group.required_object(report, "weights", "an object that describes the weights");
    let block = weights.and_then(|mut weights| {
        weights.ignore(&["group_size", "actorder", "observer", "observer_kwargs"]);
        weights.fixed(report, "num_bits", &json!(8), SERVED);
        weights.fixed(report, "type", &json!("float"), SERVED);
        weights.fixed(report, "strategy", &json!("block"), SERVED);
        weights.fixed_if_there(
            report,
            "symmetric",
            &json!(true),
            "weights have a scale and no zero point",
        );
        weights.fixed_if_there(report, "dynamic", &json!(false), "weights are quantised once");
        let side = |n: u32| n.is_power_of_two() && (16..=1024).contains(&n);
        let block = weights.counts(report, "block_structure", BLOCK_EXPECTED, side);
        weights.finish(report);
        block.map(|[rows, cols]| BlockShape { rows, cols })
    });
    group.finish(report);
    block
}
