//! Ops at the widths of Mistral Large 3: sums of 512 to 16384 terms, 128 experts, records of several MiB.
//!
//! Outputs are few, so that the twins are quick. Attention at these widths is in `long_sequences`, the sampler's vocabulary in
//! `sampler`.

use tramontane_kernels::ops::{ExpertLayout, MlaDims, WeightFormat};

use super::matrices::{ExpertsCase, GateUpCase, HeadsCase, LinearCase};
use super::rig::{Numbers, Weights, check};
use super::rows::{CombineCase, EmbedCase, NormCase, RouteCase};

const FORMATS: [WeightFormat; 4] = WeightFormat::ALL;
/// The model's width, the compressed query's, the latent's, the latent's with the rotated key, an expert's, and what `wo` and
/// the dense layers sum over; and two that no tile divides.
const WIDTHS: [u32; 8] = [7168, 1536, 512, 576, 4096, 16384, 7184, 48];

#[test]
fn linear() {
    let numbers = &mut Numbers::new(20);
    for format in FORMATS {
        for (columns, rows) in WIDTHS.into_iter().zip([1, 2, 19, 5, 8, 3, 1, 16]) {
            let outputs = 37;
            let case = LinearCase {
                generated: rows / 2,
                weights: Weights::new(numbers, outputs, columns, format),
                input: numbers.rows(rows, columns as usize),
                before: numbers.rows(rows, outputs as usize),
                add: rows % 2 == 0,
            };
            check(&format!("linear {format:?} {outputs} x {columns}"), &case, 1e-4);
        }
    }
}

#[test]
fn gate_up() {
    let numbers = &mut Numbers::new(21);
    for format in FORMATS {
        for rows in [1, 9] {
            let case = GateUpCase {
                generated: rows / 2,
                w1: Weights::new(numbers, 37, 7168, format),
                w3: Weights::new(numbers, 37, 7168, format),
                input: numbers.rows(rows, 7168),
            };
            check(&format!("gate_up {format:?}"), &case, 5e-4);
        }
    }
}

#[test]
fn experts() {
    let numbers = &mut Numbers::new(22);
    for (formats, (dim, hidden)) in [
        ((WeightFormat::Fp8Block, WeightFormat::Fp8Block), (7168, 48)),
        ((WeightFormat::Nvfp4, WeightFormat::Nvfp4), (7168, 48)),
        ((WeightFormat::Bf16, WeightFormat::Fp8Tensor), (48, 4096)),
        ((WeightFormat::Nvfp4, WeightFormat::Nvfp4), (48, 4096)),
    ] {
        let expert = |numbers: &mut Numbers| {
            [
                Weights::new(numbers, hidden, dim, formats.0),
                Weights::new(numbers, hidden, dim, formats.0),
                Weights::new(numbers, dim, hidden, formats.1),
            ]
        };
        let case = ExpertsCase {
            generated: 2,
            layout: ExpertLayout::new(dim, hidden, formats).expect("valid"),
            experts: (0..5).map(|_| expert(numbers)).collect(),
            input: numbers.rows(5, dim as usize),
            ids: (0..5).map(|row| vec![row % 5, (row + 2) % 5]).collect(),
        };
        check(&format!("experts {formats:?} of {hidden} x {dim}"), &case, 5e-4);
    }
}

#[test]
fn queries_and_values() {
    let numbers = &mut Numbers::new(23);
    let dims = MlaDims {
        heads: 3,
        nope: 128,
        rope: 64,
        v: 128,
        latent: 512,
    };
    for format in FORMATS {
        let case = HeadsCase {
            generated: 2,
            dims,
            wkv_b: Weights::new(numbers, dims.heads * dims.head_rows(), dims.latent, format),
            expanded: numbers.rows(5, (dims.heads * (dims.nope + dims.rope)) as usize),
            rotary: numbers.rows(5, dims.rope as usize),
            contexts: numbers.rows(5, (dims.heads * dims.latent) as usize),
        };
        check(&format!("heads {format:?}"), &case, 1e-4);
    }
}

#[test]
fn rows() {
    let numbers = &mut Numbers::new(24);
    for width in [7168, 1536, 512] {
        let case = NormCase {
            input: numbers.rows(5, width),
            weight: numbers.bf16s(width),
        };
        check(&format!("rms_norm {width}"), &case, 1e-5);
    }
    let case = EmbedCase {
        table: Weights::new(numbers, 40, 7168, WeightFormat::Bf16),
        tokens: vec![0, 39, 12],
        before: numbers.rows(3, 7168),
    };
    check("embed 7168", &case, 0.0);
    let case = CombineCase {
        results: numbers.rows(3, 4 * 7168),
        weights: numbers.rows(3, 4),
        shared: numbers.rows(3, 7168),
        before: numbers.rows(3, 7168),
    };
    check("combine 7168", &case, 1e-6);
}

#[test]
fn route() {
    let numbers = &mut Numbers::new(25);
    let case = RouteCase {
        gate: Weights::new(numbers, 128, 7168, WeightFormat::Bf16),
        input: numbers.rows(5, 7168),
        top_k: 4,
    };
    check("route 4 of 128 by 7168", &case, 2e-4);
}
