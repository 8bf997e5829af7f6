// route: p = softmax(logits) over all experts; the top_k largest, ties to the lower id, in ascending order of id;
// weights p / sum of the chosen p * routed_scale. One workgroup per row. The logits come from linear.wgsl.
// Twin: src/reference/route.rs
override LANES: u32 = 8;
const LOWEST: f32 = -3.4e38;
const NONE: u32 = 0xffffffffu;
// MAX_TOP_K of src/ops/route.rs.
const MAX_TOP_K: u32 = 32;
@group(0) @binding(0) var<storage, read> logits: array<f32>;
@group(0) @binding(1) var<storage, read_write> ids: array<u32>;
@group(0) @binding(2) var<storage, read_write> weights: array<f32>;

struct Params {
    experts: u32,
    top_k: u32,
    routed_scale: f32,
}
var<immediate> p: Params;
// Chosen so far, in ascending order of id.
var<workgroup> chosen: array<u32, MAX_TOP_K>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let start = workgroup.x * p.experts;
    var largest = LOWEST;
    var last = Best(0.0, NONE);
    for (var i = 0u; i < p.top_k; i += 1u) {
        var best = Best(LOWEST, NONE);
        for (var expert = lane; expert < p.experts; expert += LANES) {
            let logit = logits[start + expert];
            // Those after the last chosen one, in order of logit and id.
            let is_left = last.id == NONE || is_better(last.value, last.id, logit, expert);
            if (is_left && is_better(logit, expert, best.value, best.id)) {
                best = Best(logit, expert);
            }
        }
        last = best_of_lanes(lane, best);
        largest = max(largest, last.value);
        if (lane == 0u) {
            var place = i;
            while (place > 0u && chosen[max(place, 1u) - 1u] > last.id) {
                chosen[place] = chosen[place - 1u];
                place -= 1u;
            }
            chosen[place] = last.id;
        }
    }
    var sum = 0.0;
    for (var expert = lane; expert < p.experts; expert += LANES) {
        sum += exp(logits[start + expert] - largest);
    }
    let total = sum_lanes(lane, sum);
    if (lane == 0u) {
        var mass = 0.0;
        for (var i = 0u; i < p.top_k; i += 1u) {
            mass += exp(logits[start + min(chosen[i], p.experts - 1u)] - largest) / total;
        }
        for (var i = 0u; i < p.top_k; i += 1u) {
            let expert = min(chosen[i], p.experts - 1u);
            let place = workgroup.x * p.top_k + i;
            ids[place] = expert;
            weights[place] = exp(logits[start + expert] - largest) / total / mass * p.routed_scale;
        }
    }
}
