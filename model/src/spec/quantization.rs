//! The `quantization` object of params.json: which weight format the checkpoint says it has.
//!
//! Absent here: which tensors are quantised. The `ignore` list names modules of another layout and the dtypes in
//! the tensor headers are exact, so those decide. Formats of activations are ignored: activations stay unquantised.

use serde_json::json;

use super::fields::{Fields, Report};

/// Side of the square weight block that shares one scale; blocks at the edges may be partial.
pub const FP8_BLOCK: u32 = 128;

/// How a checkpoint says that its weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantization {
    /// Everything in BF16.
    None,
    /// Linear layers in e4m3 with one multiplier per [`FP8_BLOCK`] x [`FP8_BLOCK`] block, the rest in BF16.
    Fp8Block,
}

const SERVED: &str = "bf16 weights (no quantization) or fp8 weights with one scale per block (FP8_BLOCK)";

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
    let group = groups
        .as_mut()
        .and_then(|groups| groups.only_member(report, "one group of weights, FP8_BLOCK"));
    let right = group.is_some_and(|group| read_group(group, report));
    fields.finish(report);
    right.then_some(Quantization::Fp8Block)
}

/// Whether the group describes its weights at all; what it says of them is in the report.
fn read_group(mut group: Fields<'_>, report: &mut Report) -> bool {
    group.ignore(&["targets", "input_activations", "output_activations", "format"]);
    let weights = group.required_object(report, "weights", "an object that describes the weights");
    group.finish(report);
    let Some(mut weights) = weights else {
        return false;
    };
    weights.ignore(&["group_size", "actorder", "observer", "observer_kwargs"]);
    weights.fixed(report, "num_bits", &json!(8), SERVED);
    weights.fixed(report, "type", &json!("float"), SERVED);
    weights.fixed(report, "strategy", &json!("block"), SERVED);
    weights.fixed(
        report,
        "block_structure",
        &json!([FP8_BLOCK, FP8_BLOCK]),
        "the only block that is served",
    );
    weights.fixed_if_there(
        report,
        "symmetric",
        &json!(true),
        "weights have a scale and no zero point",
    );
    weights.fixed_if_there(report, "dynamic", &json!(false), "weights are quantised once");
    weights.finish(report);
    true
}
