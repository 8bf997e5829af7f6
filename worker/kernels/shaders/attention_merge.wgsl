// attention_merge: of rows with several splits, y[r, h] = sum_s exp(m_s - m) a_s / sum_s exp(m_s - m) l_s, m the largest m_s,
// with the sums a_s, the largest score m_s and the sum of shares l_s of split s, in order. Workgroup: x = head, y = row.
// Twin: src/reference/attention.rs
override LANES: u32 = 32;
@group(0) @binding(0) var<storage, read> meta_rows: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read> partials: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = p.first_row + workgroup.y;
    let head = p.first_head + workgroup.x;
    let splits = (tokens_of(meta_rows[row]) + p.split - 1u) / p.split;
    if (splits == 1u) {
        return;
    }
    let first = partial_place(workgroup.y, 0u, head);
    let step = p.piece_heads * (p.value + 1u);
    var largest = LOWEST;
    for (var split = 0u; split < splits; split += 1u) {
        largest = max(largest, partials[first + split * step + p.value].x);
    }
    for (var quad = lane; quad < p.value; quad += LANES) {
        var total = 0.0;
        var sum = vec4<f32>(0.0);
        for (var split = 0u; split < splits; split += 1u) {
            let place = first + split * step;
            let stats = partials[place + p.value];
            let kept = exp(stats.x - largest);
            total = fma(stats.y, kept, total);
            sum = fma(partials[place + quad], vec4<f32>(kept), sum);
        }
        y[(row * p.heads + head) * p.value + quad] = sum / total;
    }
}
