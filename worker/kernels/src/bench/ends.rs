//! What is before the first layer and after the last one: embedding, final norm, output matrix, sampler.

use tramontane_model::footprint::{HeadScratch, LOGIT_ROWS};
use tramontane_model::placement::KvFormat;
use tramontane_model::spec::ModelSpec;

use super::clock::finish;
use super::measure::{Bench, Work, part_name, rows_name};
use super::probe::{Probe, place_of};
use super::step::{check_room, rows_of};
use super::weights::Maker;
use super::{BenchError, Case, Seen};
use crate::figures::{Part, Role};
use crate::gpu::GpuBackend;
use crate::layers::{Head, HeadBuffers};
use crate::ops::{Backend, DeviceBuffer, Embed, Linear, OpError, RmsNorm, Rows, Sample, SampleParams};

/// What is before the first layer and after the last one.
#[derive(Debug)]
struct Ends<B> {
    head: Head<B>,
    buffers: HeadBuffers<B>,
}

/// The rows of a step at both ends.
#[derive(Debug)]
struct EndRows<B> {
    tokens: B,
    hidden: B,
    rows: Rows,
    /// Those of them that are sampled at once.
    sampled: Rows,
}

impl<B: DeviceBuffer> Ends<B> {
    fn new<D: Backend<Buffer = B>>(maker: &mut Maker<'_, D>) -> Result<Self, String> {
        let matrix = u64::from(maker.spec.vocab_size) * u64::from(maker.spec.dim) * 2;
        check_room(&*maker.backend, matrix + HeadScratch::new(maker.spec).total())?;
        let ends = maker.head().and_then(|head| {
            Ok(Self {
                head,
                buffers: HeadBuffers::new(maker.backend, maker.spec)?,
            })
        });
        ends.map_err(|error| error.to_string())
    }

    /// The rows: those of prompts are sampled once, generated ones as many at once as there is room for logits.
    fn rows<D: Backend<Buffer = B>>(
        &self,
        backend: &mut D,
        spec: &ModelSpec,
        role: Role,
        rows: u32,
    ) -> Result<EndRows<B>, String> {
        let row = u64::from(spec.dim) * 4;
        check_room(backend, u64::from(rows) * (row + 4))?;
        let sampled = match role {
            Role::Generated => Rows::new(rows.min(LOGIT_ROWS), 0),
            Role::Given | Role::Expanded => Rows::new(0, 1),
        };
        let mut made = || {
            let tokens = backend.alloc("tokens", u64::from(rows) * 4)?;
            let hidden = backend.alloc("hidden", u64::from(rows) * row)?;
            // Tokens all over the vocabulary.
            let ids = (0..rows).map(|row| row.wrapping_mul(0x9e37_79b1) % spec.vocab_size);
            backend.write(&tokens, 0, bytemuck::cast_slice(&ids.collect::<Vec<u32>>()))?;
            let picks: Vec<u32> = (0..sampled.total()).collect();
            backend.write(&self.buffers.picks, 0, bytemuck::cast_slice(&picks))?;
            let params: Vec<SampleParams> = (0..sampled.total())
                .map(|row| SampleParams {
                    seed_low: row,
                    temperature: 1.0,
                    top_p: 0.95,
                    ..SampleParams::greedy(0)
                })
                .collect();
            backend.write(&self.buffers.params, 0, bytemuck::cast_slice(&params))?;
            Ok::<_, OpError>((tokens, hidden))
        };
        let (tokens, hidden) = made().map_err(|error| error.to_string())?;
        Ok(EndRows {
            tokens,
            hidden,
            rows: rows_of(role, rows),
            sampled,
        })
    }

    /// Records what the owners of the first and of the last stage record beside layers.
    fn record<D: Backend<Buffer = B>>(
        &self,
        backend: &mut D,
        spec: &ModelSpec,
        rows: &EndRows<B>,
    ) -> Result<(), OpError> {
        let Some(output) = &self.head.output else {
            return Err(OpError::shape("head", "it is not there"));
        };
        backend.embed(&Embed {
            tokens: &rows.tokens,
            table: output,
            output: &rows.hidden,
            rows: rows.rows,
        })?;
        backend.rms_norm(&RmsNorm {
            input: &rows.hidden,
            pick: Some(&self.buffers.picks),
            weight: &self.head.norm,
            output: &self.buffers.normed,
            eps: spec.norm_eps,
            rows: rows.sampled,
        })?;
        backend.linear(&Linear {
            input: &self.buffers.normed,
            weight: output,
            output: &self.buffers.logits,
            add: false,
            rows: rows.sampled,
        })?;
        backend.sample(&Sample {
            logits: &self.buffers.logits,
            params: &self.buffers.params,
            output: &self.buffers.sampled,
            vocab: spec.vocab_size,
            rows: rows.sampled.total(),
        })
    }
}

impl Bench<'_> {
    /// Both ends of the model.
    pub(super) fn ends(&mut self) -> Result<(), BenchError> {
        let made = Ends::new(&mut Maker::new(&mut self.device, self.spec));
        let ends = match made {
            Ok(ends) => ends,
            Err(reason) => return self.miss(part_name(Part::Ends).to_owned(), reason),
        };
        let mut names = vec![(place_of(&ends.head.norm), "norm")];
        if let Some(output) = &ends.head.output {
            names.push((place_of(output), "output"));
        }
        let spec = self.spec;
        let of_roles = self
            .rows()
            .into_iter()
            .filter(|(role, _)| *role != Role::Expanded);
        for (role, rows) in of_roles {
            let case = Case {
                role,
                rows,
                context: 0,
                cached: KvFormat::F32,
            };
            let what = format!("{}, {}", part_name(Part::Ends), rows_name(role, rows));
            let rows = match ends.rows(&mut self.device, spec, role, rows) {
                Ok(rows) => rows,
                Err(reason) => {
                    self.miss(what, reason)?;
                    continue;
                }
            };
            let record = |device: &mut Probe<GpuBackend>, _: usize| ends.record(device, spec, &rows);
            let work = Work {
                part: Part::Ends,
                case,
                names: names.clone(),
                record: &record,
                restore: &|_| Ok(()),
                count: 1,
            };
            let first = record(&mut self.device, 0).and_then(|()| finish(&mut self.device));
            self.device.take();
            let listed = first.and_then(|()| self.device.list(Seen::default(), |device| record(device, 0)));
            match listed {
                Ok(listed) => self.ops(&work, &listed, |_| true)?,
                Err(error) => self.miss(what, error.to_string())?,
            }
        }
        Ok(())
    }
}
