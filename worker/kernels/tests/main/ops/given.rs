//! Matrices of given rows, with the kernels that these have on GPUs: many rows and few, in whole tiles and not, at the widths
//! of Mistral Large 3 and at awkward ones. A row's result must be the same wherever a prompt is cut, and whatever is beside it.

use tramontane_kernels::ops::{ExpertLayout, MlaDims, WeightFormat};

use super::matrices::{ExpertsCase, GateUpCase, HeadsCase, LinearCase};
use super::rig::{Numbers, Weights, check_cuts, check_given};

const FORMATS: [WeightFormat; 4] = WeightFormat::ALL;
/// Rows that fill tiles of 32 and 64, and that do not.
const ROWS: [usize; 6] = [65, 1, 130, 3, 17, 63];
/// What results may differ by: of sums in f32, and of rows rounded to f16.
const TOLERANCES: (f32, f32) = (1e-4, 2e-3);

/// Rows of numbers of about the size that norms leave.
fn input(numbers: &mut Numbers, rows: usize, width: u32) -> Vec<Vec<f32>> {
    let mut input = numbers.rows(rows, width as usize);
    input.iter_mut().flatten().for_each(|value| *value /= 16.0);
    input
}

fn linear(
    numbers: &mut Numbers,
    format: WeightFormat,
    rows: usize,
    (outputs, columns): (u32, u32),
) -> LinearCase {
    LinearCase {
        generated: 0,
        weights: Weights::new(numbers, outputs, columns, format),
        input: input(numbers, rows, columns),
        before: numbers.rows(rows, outputs as usize),
        add: rows % 2 == 1,
    }
}

fn gate_up(
    numbers: &mut Numbers,
    format: WeightFormat,
    rows: usize,
    (hidden, columns): (u32, u32),
) -> GateUpCase {
    GateUpCase {
        generated: 0,
        w1: Weights::new(numbers, hidden, columns, format),
        w3: Weights::new(numbers, hidden, columns, format),
        input: input(numbers, rows, columns),
    }
}

/// Experts of which every row chooses two neighbours, the first ones more often.
fn experts(
    numbers: &mut Numbers,
    formats: (WeightFormat, WeightFormat),
    rows: usize,
    (dim, hidden): (u32, u32),
) -> ExpertsCase {
    const COUNT: u32 = 6;
    let expert = |numbers: &mut Numbers| {
        [
            Weights::new(numbers, hidden, dim, formats.0),
            Weights::new(numbers, hidden, dim, formats.0),
            Weights::new(numbers, dim, hidden, formats.1),
        ]
    };
    let experts = (0..COUNT).map(|_| expert(numbers)).collect();
    let ids = |numbers: &mut Numbers| {
        let first = numbers.bits().trailing_zeros() % (COUNT - 1);
        vec![first, first + 1]
    };
    ExpertsCase {
        generated: 0,
        layout: ExpertLayout::new(dim, hidden, formats).expect("valid"),
        experts,
        input: input(numbers, rows, dim),
        ids: (0..rows).map(|_| ids(numbers)).collect(),
    }
}

#[test]
fn linear_at_real_widths_and_awkward_ones() {
    let numbers = &mut Numbers::new(60);
    let (exact, rounded) = TOLERANCES;
    for format in FORMATS {
        let shapes = [
            (37, 7168),
            (150, 1536),
            (150, 512),
            (37, 4096),
            (20, 16384),
            (260, 48),
        ];
        for (rows, shape) in ROWS.into_iter().zip(shapes) {
            let case = linear(numbers, format, rows, shape);
            check_given(
                &format!("{rows} given rows, linear {format} {shape:?}"),
                &case,
                exact,
                rounded,
            );
        }
    }
}

#[test]
fn gate_up_at_real_widths_and_awkward_ones() {
    let numbers = &mut Numbers::new(61);
    let (exact, rounded) = TOLERANCES;
    for format in FORMATS {
        for (rows, shape) in [
            (65, (40, 7168)),
            (130, (150, 144)),
            (3, (7, 304)),
            (17, (64, 576)),
        ] {
            let case = gate_up(numbers, format, rows, shape);
            check_given(
                &format!("{rows} given rows, gate_up {format} {shape:?}"),
                &case,
                exact,
                2.0 * rounded,
            );
        }
    }
}

#[test]
fn experts_at_real_widths_and_awkward_ones() {
    let numbers = &mut Numbers::new(62);
    let (exact, rounded) = TOLERANCES;
    let same = FORMATS.map(|format| (format, format));
    let mixed = [
        (WeightFormat::Nvfp4, WeightFormat::Bf16),
        (WeightFormat::Bf16, WeightFormat::Fp8Block),
    ];
    for (place, formats) in same.into_iter().chain(mixed).enumerate() {
        let wide = [(17, (7168, 48)), (33, (48, 4096))][place % 2];
        for (rows, shape) in [(130, (144, 80)), (1, (272, 48)), wide] {
            let case = experts(numbers, formats, rows, shape);
            check_given(
                &format!("{rows} given rows, experts {formats:?} {shape:?}"),
                &case,
                exact,
                2.0 * rounded,
            );
        }
    }
}

#[test]
fn values_of_heads() {
    let numbers = &mut Numbers::new(63);
    let (exact, rounded) = TOLERANCES;
    for format in FORMATS {
        for (rows, (heads, nope, v, latent)) in [(5, (3, 128, 128, 512)), (70, (5, 48, 32, 144))] {
            let dims = MlaDims {
                heads,
                nope,
                rope: 64,
                v,
                latent,
            };
            let case = HeadsCase {
                generated: 0,
                dims,
                wkv_b: Weights::new(numbers, heads * dims.head_rows(), latent, format),
                expanded: input(numbers, rows, heads * (nope + dims.rope)),
                rotary: numbers.rows(rows, dims.rope as usize),
                contexts: input(numbers, rows, heads * latent),
            };
            check_given(
                &format!("{rows} given rows, heads {format} {dims:?}"),
                &case,
                exact,
                rounded,
            );
        }
    }
}

#[test]
fn a_row_is_the_same_wherever_a_prompt_is_cut_and_beside_generated_ones() {
    let numbers = &mut Numbers::new(64);
    // Tiles are of 32 rows up to there, then of 64; those after a cut begin elsewhere.
    let cuts = [1, 32, 33, 64, 97];
    for format in FORMATS {
        let mut case = linear(numbers, format, 130, (150, 304));
        case.generated = 7;
        check_cuts(&format!("linear {format}"), &case, &cuts);
        let mut case = gate_up(numbers, format, 110, (70, 304));
        case.generated = 7;
        check_cuts(&format!("gate_up {format}"), &case, &cuts);
        let mut case = experts(numbers, (format, format), 130, (144, 80));
        case.generated = 7;
        check_cuts(&format!("experts {format}"), &case, &cuts);
    }
}
