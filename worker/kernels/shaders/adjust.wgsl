// adjust: z = HELD_BACK for tokens that the row's mask leaves out; x for tokens that are not in its list; else
// y / repetition - penalty for positive y = x + bias, and y * repetition - penalty for others. One workgroup per copy; lanes
// take every LANES-th token, then every LANES-th entry.
// Twin: src/reference/adjust.rs
override LANES: u32 = 256;
// HELD_BACK of src/ops/adjust.rs.
const HELD_BACK: f32 = -1e30;
// AdjustedRow: from, to, first, count; mask.
@group(0) @binding(0) var<storage, read> rows: array<vec4<u32>>;
// Adjustment: token, and the bits of bias, repetition and penalty.
@group(0) @binding(1) var<storage, read> adjustments: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> masks: array<u32>;
@group(0) @binding(3) var<storage, read_write> logits: array<f32>;

struct Params {
    vocab: u32,
    logit_rows: u32,
    adjustments: u32,
    mask_rows: u32,
}
var<immediate> p: Params;

// Whether the mask that begins at word `mask` has the token; a row without a mask has all.
fn is_allowed(is_masked: bool, mask: u32, token: u32) -> bool {
    if (!is_masked) {
        return true;
    }
    return ((masks[mask + token / 32u] >> (token % 32u)) & 1u) == 1u;
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = rows[workgroup.x * 2u];
    let more = rows[workgroup.x * 2u + 1u];
    let start = min(row.x, p.logit_rows - 1u) * p.vocab;
    let copy = min(row.y, p.logit_rows - 1u) * p.vocab;
    let is_masked = more.x < p.mask_rows;
    let mask = select(0u, more.x, is_masked) * ((p.vocab + 31u) / 32u);
    for (var token = lane; token < p.vocab; token += LANES) {
        logits[copy + token] = select(HELD_BACK, logits[start + token], is_allowed(is_masked, mask, token));
    }
    storageBarrier();
    let first = min(row.z, p.adjustments);
    let end = first + min(row.w, p.adjustments - first);
    for (var i = first + lane; i < end; i += LANES) {
        let entry = adjustments[i];
        if (entry.x < p.vocab && is_allowed(is_masked, mask, entry.x)) {
            let biased = logits[start + entry.x] + bitcast<f32>(entry.y);
            let repetition = bitcast<f32>(entry.z);
            let repeated = select(biased * repetition, biased / repetition, biased > 0.0);
            logits[copy + entry.x] = repeated - bitcast<f32>(entry.w);
        }
    }
}
