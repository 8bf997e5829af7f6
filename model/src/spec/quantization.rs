//! The `quantization` object of params.json: which weight format the checkpoint says it has.
//!
//! Absent here: which tensors are quantised. The `ignore` list names modules of another layout and the dtypes in
//! the tensor headers are exact, so those decide. Formats of activations are ignored: activations stay unquantised.

use serde_json::{Value, json};

use super::fields::{Fields, Report};
use crate::tensors::NVFP4_GROUP;

/// Side of the square weight block that shares one scale; blocks at the edges may be partial.
pub const FP8_BLOCK: u32 = 128;

/// How a checkpoint says that its quantised weights are stored; the rest is BF16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantization {
    /// Nothing is quantised.
    None,
    /// Linear layers in e4m3 with one multiplier per [`FP8_BLOCK`] x [`FP8_BLOCK`] block.
    Fp8Block,
    /// Linear layers in e4m3 with one multiplier each.
    Fp8Tensor,
    /// Feed-forwards and experts in e2m1 with an e4m3 scale per [`NVFP4_GROUP`] columns and one divisor each.
    Nvfp4,
}

const SERVED: &str = "bf16 weights (no quantization), fp8 weights with one scale per tensor (qformat_weight fp8_e4m3) or \
     per block (float-quantized), or nvfp4 weights (nvfp4-pack-quantized)";

/// Reads the object; `None` after noting why in the report.
pub(super) fn read(mut fields: Fields<'_>, report: &mut Report) -> Option<Quantization> {
    if fields.has("qformat_weight") {
        // Activations stay as they are, whatever is said of them.
        fields.ignore(&["qscheme_act"]);
        fields.fixed(report, "qformat_weight", &json!("fp8_e4m3"), SERVED);
        fields.finish(report);
        return Some(Quantization::Fp8Tensor);
    }
    fields.ignore(&[
        "ignore",
        "quantization_status",
        "kv_cache_scheme",
        "global_compression_ratio",
        "version",
    ]);
    fields.fixed(report, "quant_method", &json!("compressed-tensors"), SERVED);
    let format = match fields.text("format") {
        Some("nvfp4-pack-quantized") => Quantization::Nvfp4,
        _ => {
            fields.fixed(report, "format", &json!("float-quantized"), SERVED);
            Quantization::Fp8Block
        }
    };
    let mut groups = fields.required_object(report, "config_groups", "an object with one group of weights");
    let group = groups
        .as_mut()
        .and_then(|groups| groups.only_member(report, "one group of weights"));
    let right = group.is_some_and(|group| read_group(group, format, report));
    fields.finish(report);
    right.then_some(format)
}

/// Whether the group describes its weights at all; what it says of them is in the report.
fn read_group(mut group: Fields<'_>, format: Quantization, report: &mut Report) -> bool {
    group.ignore(&["targets", "input_activations", "output_activations", "format"]);
    let weights = group.required_object(report, "weights", "an object that describes the weights");
    group.finish(report);
    let Some(mut weights) = weights else {
        return false;
    };
    weights.ignore(&[
        "actorder",
        "observer",
        "observer_kwargs",
        "scale_dtype",
        "zp_dtype",
    ]);
    let mut fixed = |key, right: Value, why| weights.fixed(report, key, &right, why);
    fixed("type", json!("float"), SERVED);
    if format == Quantization::Nvfp4 {
        fixed("num_bits", json!(4), SERVED);
        fixed("strategy", json!("tensor_group"), SERVED);
        fixed(
            "group_size",
            json!(NVFP4_GROUP),
            "the columns that share an nvfp4 scale",
        );
        weights.ignore(&["block_structure"]);
    } else {
        fixed("num_bits", json!(8), SERVED);
        fixed("strategy", json!("block"), SERVED);
        let why = "the only block that is served";
        fixed("block_structure", json!([FP8_BLOCK, FP8_BLOCK]), why);
        weights.ignore(&["group_size"]);
    }
    let why = "weights have a scale and no zero point";
    weights.fixed_if_there(report, "symmetric", &json!(true), why);
    weights.fixed_if_there(report, "dynamic", &json!(false), "weights are quantised once");
    weights.finish(report);
    true
}
