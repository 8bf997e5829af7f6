// What a matrix kernel is told, of plain rows and of rows grouped by expert.
struct Params {
    rows: u32,
    // Columns / 16, and how many of them a lane of tile.wgsl takes in turn, with one word of scales.
    chunks: u32,
    run: u32,
    // Input: 4-word units from row to row, from group to group (heads; workgroup z), and to the first group.
    in_stride: u32,
    in_group: u32,
    in_first: u32,
    // Weight rows, and outputs, from group to group.
    weight_group: u32,
    out_group: u32,
    out_stride: u32,
    out_first: u32,
    // Outputs per group in this dispatch, and the row of the whole matrix that the first of them is.
    count: u32,
    first: u32,
    // Chunks to the first weight row, words to the scales; of both matrices where there are two.
    weight: u32,
    scale: u32,
    weight2: u32,
    scale2: u32,
    // FP8: scales to those of the next 128 rows, and of the next 128 columns; 0 where one scale is for all.
    scale_stride: u32,
    scale_step: u32,
    // 1: add to the output.
    add: u32,
    // Grouped: chunks, and words, from expert to expert; the bank's first expert; the part's experts; the bank's size, 0
    // where rows are not grouped.
    record: u32,
    record_words: u32,
    bank_first: u32,
    part_first: u32,
    part_end: u32,
    experts: u32,
    // Input row of a pair: pair / pairs_per_row.
    pairs_per_row: u32,
}
var<immediate> p: Params;
