// What the shaders of attention have in common: immediates, and where a row, a token and a split are.
//
// A split is p.split tokens of a sequence, at multiples of p.split from position 0. A row with one stores its result; of a
// row with more, each split stores a partial: sums not yet divided, then the largest score and the sum of shares.
const LOWEST: f32 = -3.0e38;

struct Params {
    heads: u32,
    // Heads that share keys and values, and tiles of them.
    group: u32,
    tiles: u32,
    // Widths / 4: a head's key and value, a token's row of the cache; where its values begin.
    key: u32,
    value: u32,
    width: u32,
    first_value: u32,
    table_width: u32,
    table_rows: u32,
    // log2 of the tokens of a block; blocks of the cache; tokens that a table reaches.
    block_bits: u32,
    blocks: u32,
    reach: u32,
    scale: f32,
    // Tokens of a split.
    split: u32,
    // Of this dispatch: its first row, tile and head; partials of a row are [splits, piece_heads].
    first_row: u32,
    first_tile: u32,
    first_head: u32,
    piece_heads: u32,
    splits: u32,
}
var<immediate> p: Params;

// Tokens that a row sees.
fn tokens_of(info: vec4<u32>) -> u32 {
    return min(info.x, p.reach - 1u) + 1u;
}

// Where the partial of a head begins; `row` counts from the first of the dispatch.
fn partial_place(row: u32, split: u32, head: u32) -> u32 {
    return ((row * p.splits + split) * p.piece_heads + head - p.first_head) * (p.value + 1u);
}
