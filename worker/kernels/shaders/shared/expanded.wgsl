// What the shaders of expanded attention have in common: immediates, and how a tile of the context is added to those before.
//
// A workgroup has up to 4 BLOCKS rows of one sequence, counted from its first, and one head. keys_values, which stands in the
// place of a cache, is [tokens, heads, nope + value], then [tokens, rope].
const LOWEST: f32 = -3.0e38;

struct Params {
    heads: u32,
    // Widths / 4: a head's key without and with position, its value.
    nope: u32,
    rope: u32,
    value: u32,
    // The sequence's rows: the first, how many, and the first one's position.
    first_row: u32,
    rows: u32,
    first_position: u32,
    // The tile's tokens: the first one's position, how many there are and may be.
    first_token: u32,
    tokens: u32,
    most_tokens: u32,
    // Where the keys' rotated parts begin / 4.
    first_rope: u32,
    scale: f32,
}
var<immediate> p: Params;

// The largest score and the sum of shares of four rows so far.
struct Before {
    largest: vec4<f32>,
    total: vec4<f32>,
}

fn before(rows: vec4<u32>, head: u32) -> Before {
    if (p.first_token == 0u) {
        return Before(vec4<f32>(LOWEST), vec4<f32>(0.0));
    }
    let place = (rows + p.first_row) * p.heads + head;
    let a = state[place.x];
    let b = state[place.y];
    let c = state[place.z];
    let d = state[place.w];
    return Before(vec4<f32>(a.x, b.x, c.x, d.x), vec4<f32>(a.y, b.y, c.y, d.y));
}

// Whether a row exists and sees any token of the tile.
fn takes_part(row: u32) -> bool {
    return row < p.rows && p.first_position + row >= p.first_token;
}

fn keep(row: u32, head: u32, largest: f32, total: f32) {
    if (takes_part(row)) {
        state[(p.first_row + row) * p.heads + head] = vec4<f32>(largest, total, 0.0, 0.0);
    }
}

// Adds the tile's sum for four columns to what is kept of the tiles before; a row's last tile divides.
fn merge(row: u32, head: u32, quad: u32, sum: vec4<f32>, fade: f32, total: f32) {
    if (!takes_part(row) || quad >= p.value) {
        return;
    }
    let place = ((p.first_row + row) * p.heads + head) * p.value + quad;
    var result = sum;
    if (p.first_token > 0u) {
        result = fma(y[place], vec4<f32>(fade), sum);
    }
    if (p.first_position + row < p.first_token + p.most_tokens) {
        result /= total;
    }
    y[place] = result;
}
