// sample: log-probabilities log_softmax(x); of x or its adjusted copy the token is the largest (ties to the lowest id) at
// temperature 0, else the largest x / temperature + gumbel among tokens of at least three thresholds: the top_k-th
// largest; the nucleus, the largest whose tokens hold at least top_p of the mass that top_k leaves; and min_p of the
// likeliest; or it is given. One workgroup per row; order of sums: lanes take every LANES-th token, then a tree.
// Twin: src/reference/sample.rs
override LANES: u32 = 32;
const LOWEST: f32 = -3.4e38;
const NONE: u32 = 0xffffffffu;
// MAX_TOP of src/ops/sample.rs.
const MAX_TOP: u32 = 20;
@group(0) @binding(0) var<storage, read> logits: array<f32>;
// SampleParams: seed, choice, position; temperature, top_p, top, top_k; min_p, copy, forced.
@group(0) @binding(1) var<storage, read> params: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read_write> results: array<u32>;

struct Params {
    vocab: u32,
    logit_rows: u32,
}
var<immediate> p: Params;

// Unsigned integers in the order of the floats.
fn order_of(value: f32) -> u32 {
    let bits = bitcast<u32>(value);
    return select(~bits, bits | 0x80000000u, bits < 0x80000000u);
}

// Sum of exp((x - largest) / temperature) over tokens of at least `threshold`.
fn mass(lane: u32, start: u32, largest: f32, temperature: f32, threshold: u32) -> f32 {
    var sum = 0.0;
    for (var token = lane; token < p.vocab; token += LANES) {
        let logit = logits[start + token];
        sum += select(0.0, exp((logit - largest) / temperature), order_of(logit) >= threshold);
    }
    return sum_lanes(lane, sum);
}

// How many tokens are of at least `threshold`: exact, vocabularies are below 2^24.
fn count(lane: u32, start: u32, threshold: u32) -> f32 {
    var sum = 0.0;
    for (var token = lane; token < p.vocab; token += LANES) {
        sum += select(0.0, 1.0, order_of(logits[start + token]) >= threshold);
    }
    return sum_lanes(lane, sum);
}

// The best token after `last`, in order of logit and id; `last.id` NONE: of all.
fn next_best(lane: u32, start: u32, last: Best) -> Best {
    var best = Best(LOWEST, NONE);
    for (var token = lane; token < p.vocab; token += LANES) {
        let logit = logits[start + token];
        let is_left = last.id == NONE || is_better(last.value, last.id, logit, token);
        if (is_left && is_better(logit, token, best.value, best.id)) {
            best = Best(logit, token);
        }
    }
    return best_of_lanes(lane, best);
}

fn draw(lane: u32, start: u32, largest: f32, low: vec4<u32>, high: vec4<u32>, min_p: f32) -> u32 {
    let temperature = bitcast<f32>(high.x);
    let top_p = bitcast<f32>(high.y);
    let top_k = high.w;
    var kept = 0u;
    if (top_k > 0u) {
        for (var bit = 0x80000000u; bit > 0u; bit >>= 1u) {
            let reached = count(lane, start, kept | bit);
            kept = select(kept, kept | bit, reached >= f32(top_k));
        }
    }
    var threshold = kept;
    if (top_p < 1.0) {
        let target_mass = top_p * mass(lane, start, largest, temperature, kept);
        threshold = 0u;
        for (var bit = 0x80000000u; bit > 0u; bit >>= 1u) {
            let reached = mass(lane, start, largest, temperature, max(threshold | bit, kept));
            threshold = select(threshold, threshold | bit, reached >= target_mass);
        }
        threshold = max(threshold, kept);
    }
    var below_largest = LOWEST;
    if (min_p > 0.0) {
        below_largest = temperature * log(min_p);
    }
    var best = Best(LOWEST, NONE);
    for (var quad = lane; quad < p.vocab / 4u; quad += LANES) {
        let noise = philox(vec4<u32>(quad, low.w, low.z, 0u), low.xy);
        for (var i = 0u; i < 4u; i += 1u) {
            let token = quad * 4u + i;
            let logit = logits[start + token];
            let value = (logit - largest) / temperature + gumbel(noise[i]);
            let is_left = order_of(logit) >= threshold && logit - largest >= below_largest;
            if (is_left && is_better(value, token, best.value, best.id)) {
                best = Best(value, token);
            }
        }
    }
    return best_of_lanes(lane, best).id;
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = workgroup.x;
    let start = row * p.vocab;
    let low = params[row * 3u];
    let high = params[row * 3u + 1u];
    let more = params[row * 3u + 2u];
    let first = next_best(lane, start, Best(0.0, NONE));
    let logsum = first.value + log(mass(lane, start, first.value, 1.0, 0u));
    var chosen = first;
    var chosen_start = start;
    if (more.y < p.logit_rows) {
        chosen_start = more.y * p.vocab;
        chosen = next_best(lane, chosen_start, Best(0.0, NONE));
    }
    var token = chosen.id;
    if (more.z < p.vocab) {
        token = more.z;
    } else if (bitcast<f32>(high.x) > 0.0) {
        token = draw(lane, chosen_start, chosen.value, low, high, bitcast<f32>(more.x));
    }
    let place = row * (2u + 2u * MAX_TOP);
    if (lane == 0u) {
        token = min(token, p.vocab - 1u);
        results[place] = token;
        results[place + 1u] = bitcast<u32>(logits[start + token] - logsum);
    }
    let top = min(high.z, MAX_TOP);
    var last = first;
    for (var i = 0u; i < top; i += 1u) {
        if (i > 0u) {
            last = next_best(lane, start, last);
        }
        if (lane == 0u) {
            results[place + 2u + i] = last.id;
            results[place + 2u + MAX_TOP + i] = bitcast<u32>(last.value - logsum);
        }
    }
}
