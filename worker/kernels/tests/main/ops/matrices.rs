//! Ops with matrices: linear, gate and up, values, queries, routed experts.

use tramontane_kernels::gpu::{self, DeviceConfig};
use tramontane_kernels::ops::{
    Backend, ExpertLayout, ExpertScratch, Experts, GateUp, Linear, MlaDims, Queries, RowMeta, Values,
    WeightFormat,
};
use tramontane_model::footprint::expert_plan_words;

use super::rig::{Case, Numbers, Rig, Weights, check, device};

const FORMATS: [WeightFormat; 4] = WeightFormat::ALL;
const WHOLE: u32 = u32::MAX;

pub(super) struct LinearCase {
    pub(super) weights: Weights,
    pub(super) input: Vec<Vec<f32>>,
    pub(super) before: Vec<Vec<f32>>,
    pub(super) add: bool,
    /// Rows before the given ones.
    pub(super) generated: usize,
}

impl Case for LinearCase {
    fn rows(&self) -> usize {
        self.input.len()
    }

    fn generated(&self) -> usize {
        self.generated
    }

    fn has_own_kernels(&self) -> bool {
        true
    }

    fn run<B: Backend>(&self, rig: &mut Rig<'_, B>, order: &[usize], split: bool) -> Vec<Vec<u32>> {
        let step = if split {
            self.weights.rows.div_ceil(3)
        } else {
            WHOLE
        };
        let weight = rig.matrix(&self.weights, step);
        let input = rig.picked(&self.input, order);
        let output = rig.picked(&self.before, order);
        let op = Linear {
            input: &input,
            weight: &weight,
            output: &output,
            add: self.add,
            rows: self.roles(order),
        };
        rig.0.linear(&op).expect("valid");
        rig.rows(&output, order.len(), self.weights.rows as usize)
    }
}

#[test]
fn linear() {
    let numbers = &mut Numbers::new(1);
    for (format, add) in FORMATS.into_iter().zip([true, false, false, true]) {
        for (rows, outputs, columns) in [
            (1, 300, 144),
            (2, 33, 16),
            (5, 130, 272),
            (33, 129, 128),
            (8, 7, 1040),
        ] {
            let case = LinearCase {
                generated: rows / 2,
                weights: Weights::new(numbers, outputs, columns, format),
                input: numbers.rows(rows, columns as usize),
                before: numbers.rows(rows, outputs as usize),
                add,
            };
            check(&format!("linear {format:?} {outputs} x {columns}"), &case, 2e-5);
        }
    }
}

#[test]
fn codes_that_are_decoded_in_another_way_give_the_same_bits() {
    let config = DeviceConfig {
        memory_bytes: Some(1 << 30),
        ..DeviceConfig::default()
    };
    let mut other = gpu::open_without_halves(&config).expect("a Vulkan adapter");
    let mut device = device();
    let numbers = &mut Numbers::new(5);
    for format in FORMATS {
        let case = LinearCase {
            generated: 2,
            weights: Weights::new(numbers, 70, 272, format),
            input: numbers.rows(5, 272),
            before: numbers.rows(5, 70),
            add: false,
        };
        let order = [0, 1, 2, 3, 4];
        let found = case.run(&mut Rig(&mut *device), &order, false);
        assert_eq!(case.run(&mut Rig(&mut other), &order, false), found, "{format:?}");
    }
}

pub(super) struct GateUpCase {
    pub(super) w1: Weights,
    pub(super) w3: Weights,
    pub(super) input: Vec<Vec<f32>>,
    /// Rows before the given ones.
    pub(super) generated: usize,
}

impl Case for GateUpCase {
    fn rows(&self) -> usize {
        self.input.len()
    }

    fn generated(&self) -> usize {
        self.generated
    }

    fn has_own_kernels(&self) -> bool {
        true
    }

    fn run<B: Backend>(&self, rig: &mut Rig<'_, B>, order: &[usize], split: bool) -> Vec<Vec<u32>> {
        let step = if split { self.w1.rows.div_ceil(3) } else { WHOLE };
        let (w1, w3) = (rig.matrix(&self.w1, step), rig.matrix(&self.w3, step));
        let input = rig.picked(&self.input, order);
        let output = rig.zeros(order.len() * self.w1.rows as usize);
        let op = GateUp {
            input: &input,
            w1: &w1,
            w3: &w3,
            output: &output,
            rows: self.roles(order),
        };
        rig.0.gate_up(&op).expect("valid");
        rig.rows(&output, order.len(), self.w1.rows as usize)
    }
}

#[test]
fn gate_up() {
    let numbers = &mut Numbers::new(2);
    for format in FORMATS {
        for (rows, hidden, columns) in [(1, 128, 256), (3, 200, 144), (17, 40, 48)] {
            let case = GateUpCase {
                generated: rows / 2,
                w1: Weights::new(numbers, hidden, columns, format),
                w3: Weights::new(numbers, hidden, columns, format),
                input: numbers.rows(rows, columns as usize),
            };
            check(&format!("gate_up {format:?} {hidden} x {columns}"), &case, 1e-4);
        }
    }
}

pub(super) struct HeadsCase {
    pub(super) dims: MlaDims,
    pub(super) wkv_b: Weights,
    pub(super) expanded: Vec<Vec<f32>>,
    pub(super) rotary: Vec<Vec<f32>>,
    pub(super) contexts: Vec<Vec<f32>>,
    /// Rows before the given ones.
    pub(super) generated: usize,
}

impl Case for HeadsCase {
    fn rows(&self) -> usize {
        self.expanded.len()
    }

    fn generated(&self) -> usize {
        self.generated
    }

    fn has_own_kernels(&self) -> bool {
        true
    }

    fn run<B: Backend>(&self, rig: &mut Rig<'_, B>, order: &[usize], split: bool) -> Vec<Vec<u32>> {
        let (dims, count) = (self.dims, order.len());
        let step = if split { 2 * dims.head_rows() } else { WHOLE };
        let wkv_b = rig.matrix(&self.wkv_b, step);
        let meta: Vec<RowMeta> = order
            .iter()
            .map(|&row| RowMeta {
                position: 0,
                slot: 0,
                table: 0,
                query_scale: 1.0 + row as f32 / 8.0,
            })
            .collect();
        let meta = rig.words(&meta);
        let (expanded, rotary) = (rig.picked(&self.expanded, order), rig.picked(&self.rotary, order));
        let contexts = rig.picked(&self.contexts, order);
        let absorbed = (dims.heads * dims.absorbed()) as usize;
        let attended = (dims.heads * dims.v) as usize;
        let (queries, values) = (rig.zeros(count * absorbed), rig.zeros(count * attended));
        let rows = self.roles(order);
        let op = Queries {
            input: &expanded,
            wkv_b: &wkv_b,
            dims,
            rotary: &rotary,
            meta: &meta,
            output: &queries,
            rows,
        };
        rig.0.queries(&op).expect("valid");
        let op = Values {
            input: &contexts,
            wkv_b: &wkv_b,
            dims,
            output: &values,
            rows,
        };
        rig.0.values(&op).expect("valid");
        let queries = rig.rows(&queries, count, absorbed);
        let values = rig.rows(&values, count, attended);
        queries
            .into_iter()
            .zip(values)
            .map(|(a, b)| [a, b].concat())
            .collect()
    }
}

#[test]
fn queries_and_values() {
    let numbers = &mut Numbers::new(3);
    for format in FORMATS {
        for (rows, heads, nope, rope, v, latent) in [
            (1, 8, 32, 16, 32, 64),
            (7, 5, 48, 32, 16, 144),
            (13, 3, 16, 16, 48, 272),
        ] {
            let dims = MlaDims {
                heads,
                nope,
                rope,
                v,
                latent,
            };
            let case = HeadsCase {
                generated: rows / 2,
                dims,
                wkv_b: Weights::new(numbers, heads * dims.head_rows(), latent, format),
                expanded: numbers.rows(rows, (heads * (nope + rope)) as usize),
                rotary: numbers.rows(rows, rope as usize),
                contexts: numbers.rows(rows, (heads * latent) as usize),
            };
            check(&format!("heads {format:?} {dims:?}"), &case, 2e-5);
        }
    }
}

pub(super) struct ExpertsCase {
    pub(super) layout: ExpertLayout,
    pub(super) experts: Vec<[Weights; 3]>,
    pub(super) input: Vec<Vec<f32>>,
    pub(super) ids: Vec<Vec<u32>>,
    /// Rows before the given ones.
    pub(super) generated: usize,
}

impl Case for ExpertsCase {
    fn rows(&self) -> usize {
        self.input.len()
    }

    fn generated(&self) -> usize {
        self.generated
    }

    fn has_own_kernels(&self) -> bool {
        true
    }

    fn run<B: Backend>(&self, rig: &mut Rig<'_, B>, order: &[usize], split: bool) -> Vec<Vec<u32>> {
        let top_k = self.ids[0].len();
        let (dim, count) = (self.layout.dim as usize, self.experts.len() as u32);
        let pairs = order.len() * top_k;
        let ids: Vec<u32> = order.iter().flat_map(|&row| self.ids[row].clone()).collect();
        let ids = rig.words(&ids);
        let input = rig.picked(&self.input, order);
        // What is not computed must stay.
        let output = rig.words(&vec![7.0_f32; pairs * dim]);
        let scratch = ExpertScratch {
            plan: rig.zeros(expert_plan_words(pairs as u64, count.into()) as usize),
            hidden: rig.zeros(pairs * self.layout.hidden as usize),
        };
        // The last expert is nobody's.
        let (ranges, step) = match split {
            true => (vec![(0, count / 2), (count / 2, count - 1)], 2),
            false => (vec![(0, count - 1)], WHOLE),
        };
        for (start, end) in ranges {
            let bank = rig.bank(self.layout, &self.experts, start..end, step);
            let op = Experts {
                input: &input,
                ids: &ids,
                top_k: top_k as u32,
                bank: &bank,
                scratch: &scratch,
                output: &output,
                rows: self.roles(order),
            };
            rig.0.experts(&op).expect("valid");
        }
        rig.rows(&output, order.len(), top_k * dim)
    }
}

#[test]
fn experts() {
    let numbers = &mut Numbers::new(4);
    let same = FORMATS.map(|format| (format, format));
    let mixed = [
        (WeightFormat::Nvfp4, WeightFormat::Bf16),
        (WeightFormat::Fp8Block, WeightFormat::Nvfp4),
    ];
    for formats in same.into_iter().chain(mixed) {
        for (rows, dim, hidden, count, top_k) in
            [(1, 256, 128, 16, 4), (21, 144, 48, 6, 2), (33, 32, 160, 9, 3)]
        {
            let expert = |numbers: &mut Numbers| {
                [
                    Weights::new(numbers, hidden, dim, formats.0),
                    Weights::new(numbers, hidden, dim, formats.0),
                    Weights::new(numbers, dim, hidden, formats.1),
                ]
            };
            let experts = (0..count).map(|_| expert(numbers)).collect();
            // Neighbours from a random first one, so that experts have very different numbers of rows.
            let ids = |numbers: &mut Numbers| {
                let first = numbers.bits().trailing_zeros() % (count - top_k + 1);
                (first..first + top_k).collect()
            };
            let case = ExpertsCase {
                generated: rows / 2,
                layout: ExpertLayout::new(dim, hidden, formats).expect("valid"),
                experts,
                input: numbers.rows(rows, dim as usize),
                ids: (0..rows).map(|_| ids(numbers)).collect(),
            };
            check(
                &format!("experts {formats:?} {count} of {hidden} x {dim}"),
                &case,
                1e-4,
            );
        }
    }
}
