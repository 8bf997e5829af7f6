//! Ops on rows: embedding, norms, router, combination.

use tramontane_kernels::ops::{Backend, Combine, Embed, NO_ROW, RmsNorm, Route, WeightFormat};

use super::rig::{Case, Numbers, Rig, Weights, check, roles};

pub(super) struct EmbedCase {
    pub(super) table: Weights,
    pub(super) tokens: Vec<u32>,
    pub(super) before: Vec<Vec<f32>>,
}

impl Case for EmbedCase {
    fn rows(&self) -> usize {
        self.tokens.len()
    }

    fn run<B: Backend>(&self, rig: &mut Rig<'_, B>, order: &[usize], split: bool) -> Vec<Vec<u32>> {
        let table = rig.matrix(&self.table, if split { 13 } else { u32::MAX });
        let tokens: Vec<u32> = order.iter().map(|&row| self.tokens[row]).collect();
        let tokens = rig.words(&tokens);
        let output = rig.picked(&self.before, order);
        let op = Embed {
            tokens: &tokens,
            table: &table,
            output: &output,
            rows: roles(order.len()),
        };
        rig.0.embed(&op).expect("valid");
        rig.rows(&output, order.len(), self.table.cols as usize)
    }
}

#[test]
fn embed_leaves_rows_of_other_tokens_as_they_are() {
    let numbers = &mut Numbers::new(10);
    let case = EmbedCase {
        table: Weights::new(numbers, 40, 272, WeightFormat::Bf16),
        tokens: vec![0, 39, 40, 12, 13, NO_ROW, 26, 25],
        before: numbers.rows(8, 272),
    };
    check("embed", &case, 0.0);
}

pub(super) struct NormCase {
    pub(super) input: Vec<Vec<f32>>,
    pub(super) weight: Vec<u8>,
}

impl Case for NormCase {
    fn rows(&self) -> usize {
        self.input.len()
    }

    /// `split`: rows are picked from all of them.
    fn run<B: Backend>(&self, rig: &mut Rig<'_, B>, order: &[usize], split: bool) -> Vec<Vec<u32>> {
        let all: Vec<usize> = (0..self.input.len()).collect();
        let input = rig.picked(&self.input, if split { &all } else { order });
        let pick: Vec<u32> = order.iter().map(|&row| row as u32).collect();
        let pick = rig.words(&pick);
        let weight = rig.vector(&self.weight);
        let width = self.input[0].len();
        let output = rig.zeros(order.len() * width);
        let op = RmsNorm {
            input: &input,
            pick: split.then_some(&pick),
            weight: &weight,
            output: &output,
            eps: 1e-6,
            rows: roles(order.len()),
        };
        rig.0.rms_norm(&op).expect("valid");
        rig.rows(&output, order.len(), width)
    }
}

#[test]
fn rms_norm() {
    let numbers = &mut Numbers::new(11);
    for (rows, width) in [(1, 16), (7, 272), (33, 256), (2, 7168)] {
        let case = NormCase {
            input: numbers.rows(rows, width),
            weight: numbers.bf16s(width),
        };
        check(&format!("rms_norm {width}"), &case, 1e-5);
    }
}

pub(super) struct RouteCase {
    pub(super) gate: Weights,
    pub(super) input: Vec<Vec<f32>>,
    pub(super) top_k: usize,
}

impl Case for RouteCase {
    /// The gate is a matrix.
    fn has_own_kernels(&self) -> bool {
        true
    }

    fn rows(&self) -> usize {
        self.input.len()
    }

    fn run<B: Backend>(&self, rig: &mut Rig<'_, B>, order: &[usize], split: bool) -> Vec<Vec<u32>> {
        let (count, experts) = (order.len(), self.gate.rows as usize);
        let gate = rig.matrix(&self.gate, if split { 5 } else { u32::MAX });
        let input = rig.picked(&self.input, order);
        let logits = rig.zeros(count * experts);
        let (ids, weights) = (rig.zeros(count * self.top_k), rig.zeros(count * self.top_k));
        let op = Route {
            input: &input,
            gate: &gate,
            top_k: self.top_k as u32,
            routed_scale: 1.5,
            logits: &logits,
            ids: &ids,
            weights: &weights,
            rows: self.roles(order),
        };
        rig.0.route(&op).expect("valid");
        let ids = rig.rows(&ids, count, self.top_k);
        let weights = rig.rows(&weights, count, self.top_k);
        // Ids as numbers, so that a wrong one is more than a rounding away.
        let as_floats = |ids: Vec<u32>| ids.into_iter().map(|id| (10.0 * id as f32).to_bits()).collect();
        let rows = ids.into_iter().map(as_floats).zip(weights);
        rows.map(|(ids, weights): (Vec<u32>, Vec<u32>)| [ids, weights].concat())
            .collect()
    }
}

#[test]
fn route_breaks_ties_to_the_lower_expert() {
    let numbers = &mut Numbers::new(13);
    for (rows, experts, top_k) in [(1, 16, 4), (9, 128, 4), (33, 37, 8), (3, 32, 32)] {
        let mut gate = Weights::new(numbers, experts, 48, WeightFormat::Bf16);
        // Experts in twos are alike: all their logits are ties, and an odd number of choices ends within one.
        for pair in gate.bytes.chunks_exact_mut(2 * 48 * 2) {
            pair.copy_within(..48 * 2, 48 * 2);
        }
        let case = RouteCase {
            gate,
            input: numbers.rows(rows, 48),
            top_k: if top_k == 8 { 7 } else { top_k },
        };
        check(&format!("route {top_k} of {experts}"), &case, 2e-5);
    }
}

pub(super) struct CombineCase {
    pub(super) results: Vec<Vec<f32>>,
    pub(super) weights: Vec<Vec<f32>>,
    pub(super) shared: Vec<Vec<f32>>,
    pub(super) before: Vec<Vec<f32>>,
}

impl Case for CombineCase {
    fn rows(&self) -> usize {
        self.shared.len()
    }

    fn run<B: Backend>(&self, rig: &mut Rig<'_, B>, order: &[usize], _: bool) -> Vec<Vec<u32>> {
        let dim = self.shared[0].len();
        let (results, weights) = (rig.picked(&self.results, order), rig.picked(&self.weights, order));
        let shared = rig.picked(&self.shared, order);
        let output = rig.picked(&self.before, order);
        let op = Combine {
            results: &results,
            weights: &weights,
            top_k: self.weights[0].len() as u32,
            shared: &shared,
            output: &output,
            dim: dim as u32,
            rows: roles(order.len()),
        };
        rig.0.combine(&op).expect("valid");
        rig.rows(&output, order.len(), dim)
    }
}

#[test]
fn combine() {
    let numbers = &mut Numbers::new(14);
    for (rows, dim, top_k) in [(1, 16, 1), (17, 272, 4)] {
        let case = CombineCase {
            results: numbers.rows(rows, top_k * dim),
            weights: numbers.rows(rows, top_k),
            shared: numbers.rows(rows, dim),
            before: numbers.rows(rows, dim),
        };
        check(&format!("combine {dim}"), &case, 1e-6);
    }
}
