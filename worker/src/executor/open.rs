//! What the last stage keeps of an open sequence: its parameters, if a penalty looks at them its tokens, and what it is
//! held to.
//!
//! From the chunks of a sequence to what is done to its next token's logits. Nothing is learnt from what was
//! sampled here: tokens count once they come in as rows, so that what a sequence's next token depends on is its ids
//! alone, also when they are computed again (DET-1).

use std::collections::BTreeMap;
use std::time::Instant;

use tramontane_model::grammar::GrammarError;
use tramontane_model::sampling::SamplingParams;
use tramontane_model::step::{Opening, SequenceChunk};

use super::masks::Constraint;
use tramontane_kernels::ops::{AdjustedRow, Adjustment, HELD_BACK, NO_ROW, SampleParams};

/// An open sequence.
#[derive(Debug)]
pub struct OpenSequence {
    #[cfg(feature = "deliberate-bugs")]
    first_position: u32,
    sampling: SamplingParams,
    prompt_tokens: u32,
    /// There if a penalty looks at the tokens.
    seen: Option<Seen>,
    /// There if the answer is held to a grammar.
    constraint: Option<Constraint>,
}

/// What is done to the logits of a token.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Changes {
    /// To some tokens; each once.
    pub(super) adjustments: Vec<Adjustment>,
    /// Which tokens are left, if not all are.
    pub(super) mask: Option<Vec<u32>>,
    /// Why none is: what is sampled is then no token of the sequence.
    pub(super) failure: Option<GrammarError>,
}

impl Changes {
    pub(super) fn is_empty(&self) -> bool {
        self.adjustments.is_empty() && self.mask.is_none()
    }
}

/// The tokens of a sequence that penalties look at.
#[derive(Debug)]
struct Seen {
    /// Rows at positions below this are counted.
    positions: u32,
    /// How often each was generated; 0 for those that are in the prompt only.
    generated: BTreeMap<u32, u32>,
}

impl OpenSequence {
    /// A sequence whose first chunk begins at `first_position`, held to nothing.
    pub fn unconstrained(opening: &Opening, first_position: u32) -> Self {
        Self::new(opening, first_position, None)
    }

    /// A sequence whose first chunk begins at `first_position`.
    pub(super) fn new(opening: &Opening, first_position: u32, constraint: Option<Constraint>) -> Self {
        let Opening {
            sampling,
            prompt_tokens,
            prompt_before,
            generated_before,
            origin: _,
        } = opening;
        let seen = sampling.penalises_generated().then(|| {
            let mut generated: BTreeMap<u32, u32> = prompt_before.iter().map(|&token| (token, 0)).collect();
            for &token in generated_before {
                *generated.entry(token).or_default() += 1;
            }
            Seen {
                positions: first_position,
                generated,
            }
        });
        Self {
            #[cfg(feature = "deliberate-bugs")]
            first_position,
            sampling: sampling.clone(),
            prompt_tokens: *prompt_tokens,
            seen,
            constraint,
        }
    }

    /// Counts the rows of a chunk that are not counted yet: a step that is run again counts nothing twice.
    pub fn take_in(&mut self, chunk: &SequenceChunk) {
        if let Some(constraint) = &mut self.constraint {
            constraint.take_in(chunk);
        }
        let Some(seen) = &mut self.seen else {
            return;
        };
        for (position, &token) in (chunk.first_position..).zip(&chunk.tokens) {
            if position < seen.positions {
                continue;
            }
            seen.positions = position + 1;
            if position >= self.prompt_tokens {
                *seen.generated.entry(token).or_default() += 1;
            } else if self.sampling.looks_at_prompt() {
                seen.generated.entry(token).or_default();
            }
        }
    }

    /// How the token at `position` is sampled, of a vocabulary of so many, from the row itself.
    pub fn params(&self, position: u32, vocab_size: u32) -> SampleParams {
        #[cfg(feature = "deliberate-bugs")]
        let position = if tramontane_sim::bugs::on(tramontane_sim::bugs::Bug::SamplerCounterReset) {
            position - self.first_position
        } else {
            position
        };
        let sampling = &self.sampling;
        SampleParams {
            seed_low: sampling.seed as u32,
            seed_high: (sampling.seed >> 32) as u32,
            choice: sampling.choice,
            position,
            // One token is left: the best of them, where several are as likely.
            temperature: if sampling.top_k == 1 {
                0.0
            } else {
                sampling.temperature
            },
            top_p: sampling.top_p,
            top: sampling.logprobs.unwrap_or(0),
            top_k: if sampling.top_k < vocab_size {
                sampling.top_k
            } else {
                0
            },
            min_p: sampling.min_p,
            copy: NO_ROW,
            forced: NO_ROW,
            reserved: 0,
        }
    }

    /// How a token of the prompt is scored.
    pub(super) fn scoring(&self, token: u32) -> SampleParams {
        SampleParams::forced(token, self.sampling.prompt_logprobs.unwrap_or(0))
    }

    /// Whether what is done to its logits is computed beside the device.
    pub(super) fn is_constrained(&self) -> bool {
        self.constraint.is_some()
    }

    /// Tells what was sampled: work for the token after it may begin.
    pub(super) fn sampled(&self, token: u32) {
        if let Some(constraint) = &self.constraint {
            constraint.expect(token);
        }
    }

    /// What is done to the logits of the token at `position`; waits for its mask.
    pub(super) fn changes(&self, position: u32, deadline: Instant) -> Changes {
        let mask = match &self.constraint {
            None => None,
            Some(constraint) => match constraint.mask(deadline) {
                Ok(mask) => Some(mask),
                Err(failure) => {
                    return Changes {
                        failure: Some(failure),
                        ..Changes::default()
                    };
                }
            },
        };
        Changes {
            adjustments: self.adjustments(position, mask.as_deref()),
            mask,
            failure: None,
        }
    }

    /// What is done to the logits of the token at `position` beside its mask.
    pub fn adjustments(&self, position: u32, mask: Option<&[u32]>) -> Vec<Adjustment> {
        let sampling = &self.sampling;
        let seen = self.seen.iter().flat_map(|seen| &seen.generated);
        let mut list: Vec<Adjustment> = seen
            .map(|(&token, &times)| Adjustment {
                token,
                bias: 0.0,
                repetition: sampling.repetition_penalty,
                penalty: match times {
                    0 => 0.0,
                    times => sampling.frequency_penalty * times as f32 + sampling.presence_penalty,
                },
            })
            .collect();
        // They ascend: a token that is further along may be among them.
        let ascending = list.len();
        let mut add =
            |token: u32, bias: f32| match list[..ascending].binary_search_by_key(&token, |one| one.token) {
                Ok(place) => list[place].bias += bias,
                Err(_) => list.push(Adjustment {
                    bias,
                    ..Adjustment::none(token)
                }),
            };
        let is_early = position.saturating_sub(self.prompt_tokens) < sampling.min_tokens;
        let is_early = is_early && mask.is_none_or(|mask| allows_others(mask, &sampling.held_back));
        let held_back: &[u32] = if is_early { &sampling.held_back } else { &[] };
        for &token in held_back {
            add(token, HELD_BACK);
        }
        for &(token, bias) in &sampling.logit_bias {
            // No bias brings back what is held back.
            if held_back.binary_search(&token).is_err() {
                add(token, bias);
            }
        }
        list
    }
}

/// Whether a mask allows other tokens than these.
fn allows_others(mask: &[u32], tokens: &[u32]) -> bool {
    let is_allowed = |&token: &u32| {
        let word = mask.get(token as usize / 32);
        word.is_some_and(|word| word >> (token % 32) & 1 == 1)
    };
    let allowed: u32 = mask.iter().map(|word| word.count_ones()).sum();
    allowed as usize > tokens.iter().copied().filter(is_allowed).count()
}

/// Adjusted copies that are made together.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Copies {
    pub(super) rows: Vec<AdjustedRow>,
    pub(super) adjustments: Vec<Adjustment>,
}

/// Groups the copies of the rows that are changed, at most so many adjustments a group; the copy of row `i` is row
/// `first_copy + i`. Masks are counted in the order of their rows.
pub(super) fn copies(changes: &[Changes], first_copy: u32, limit: usize) -> Vec<Copies> {
    let mut groups: Vec<Copies> = Vec::new();
    let mut masks = 0..;
    for (from, changes) in (0..).zip(changes).filter(|(_, changes)| !changes.is_empty()) {
        let list = &changes.adjustments;
        let mask = changes.mask.as_ref().and_then(|_| masks.next());
        let has_room = |group: &&mut Copies| group.adjustments.len() + list.len() <= limit;
        if groups.last_mut().filter(has_room).is_none() {
            groups.push(Copies::default());
        }
        if let Some(group) = groups.last_mut() {
            group.rows.push(AdjustedRow {
                from,
                to: first_copy + from,
                first: group.adjustments.len() as u32,
                count: list.len() as u32,
                mask: mask.unwrap_or(NO_ROW),
                reserved: [0; 3],
            });
            group.adjustments.extend(list);
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use tramontane_model::ids::Origin;
    use tramontane_model::ids::SequenceId;
    use tramontane_model::step::RowRole;

    use super::*;

    const TOKENS: [u32; 9] = [9, 4, 9, 7, 50, 51, 50, 9, 50];
    const PROMPT: usize = 4;

    /// The sequence with all tokens before `end`, the ones from `start` on in chunks of `rows`.
    fn opened(sampling: &SamplingParams, start: usize, rows: usize, end: usize) -> OpenSequence {
        let opening = Opening::new(Origin::NOBODY, sampling, &TOKENS, PROMPT, start);
        let mut sequence = OpenSequence::new(&opening, start as u32, None);
        for (index, tokens) in TOKENS[start..end].chunks(rows).enumerate() {
            let chunk = SequenceChunk {
                sequence: SequenceId(1),
                open: None,
                first_position: (start + index * rows) as u32,
                tokens: tokens.to_vec(),
                role: RowRole::Given,
                sample: true,
                scored: vec![],
                block_table: vec![0],
            };
            sequence.take_in(&chunk);
            // Again, as after a step that failed.
            sequence.take_in(&chunk);
        }
        sequence
    }

    fn penalised() -> SamplingParams {
        SamplingParams {
            presence_penalty: 0.5,
            frequency_penalty: 0.25,
            repetition_penalty: 2.0,
            logit_bias: vec![(3, -1.0), (50, 4.0), (60, 100.0)],
            min_tokens: 5,
            held_back: vec![2, 60],
            ..SamplingParams::GREEDY
        }
    }

    #[test]
    fn adjustments_are_those_of_the_ids_however_they_came() {
        let entry = |token, bias, repetition, penalty| Adjustment {
            token,
            bias,
            repetition,
            penalty,
        };
        let whole = opened(&penalised(), 0, 9, 9);
        assert_eq!(
            whole.adjustments(8, None),
            [
                entry(4, 0.0, 2.0, 0.0),
                entry(7, 0.0, 2.0, 0.0),
                entry(9, 0.0, 2.0, 0.75),
                entry(50, 4.0, 2.0, 1.25),
                entry(51, 0.0, 2.0, 0.75),
                entry(2, HELD_BACK, 1.0, 0.0),
                entry(60, HELD_BACK, 1.0, 0.0),
                entry(3, -1.0, 1.0, 0.0),
            ]
        );
        let after = whole.adjustments(9, None);
        assert_eq!(
            after.iter().find(|one| one.token == 2),
            None,
            "min_tokens are there"
        );
        assert_eq!(
            after.iter().find(|one| one.token == 60).map(|one| one.bias),
            Some(100.0)
        );
        for end in 1..=TOKENS.len() {
            let expected = opened(&penalised(), 0, TOKENS.len(), end).adjustments(end as u32, None);
            for start in 0..end {
                for rows in 1..=3 {
                    let found = opened(&penalised(), start, rows, end).adjustments(end as u32, None);
                    assert_eq!(found, expected, "from {start} in chunks of {rows}, {end} tokens");
                }
            }
        }
    }

    #[test]
    fn a_sequence_without_adjustments_has_none_and_keeps_nothing() {
        let plain = SamplingParams {
            temperature: 1.5,
            top_k: 5,
            min_p: 0.1,
            min_tokens: 3,
            ..SamplingParams::GREEDY
        };
        let sequence = opened(&plain, 0, 3, 9);
        assert!(sequence.seen.is_none());
        assert_eq!(sequence.adjustments(9, None), []);
        let frequency = SamplingParams {
            frequency_penalty: 1.0,
            ..plain
        };
        let sequence = opened(&frequency, 0, 9, 5);
        let tokens: Vec<u32> = sequence
            .adjustments(5, None)
            .iter()
            .map(|one| one.token)
            .collect();
        assert_eq!(tokens, [50], "no token of the prompt");
    }

    #[test]
    fn a_grammar_that_allows_only_the_end_prevails_over_min_tokens() {
        let sequence = opened(&penalised(), 0, 9, 5);
        let held = |mask: &[u32]| {
            let list = sequence.adjustments(5, Some(mask));
            list.iter().filter(|one| one.bias == HELD_BACK).count()
        };
        // Tokens 2 and 60 are held back.
        assert_eq!(held(&[1 << 2 | 1 << 3, 0, 1]), 2);
        assert_eq!(held(&[1 << 2, 1 << 28, 1]), 2, "another one is allowed");
        assert_eq!(held(&[1 << 2, 1 << 28, 0]), 0);
        assert_eq!(held(&[1 << 2, 0, 0]), 0);
    }

    #[test]
    fn one_token_left_is_the_best_one_and_all_are_no_limit() {
        let params = |top_k| {
            let sampling = SamplingParams {
                temperature: 2.0,
                top_k,
                ..SamplingParams::GREEDY
            };
            let params = opened(&sampling, 0, 9, 9).params(9, 100);
            (params.temperature, params.top_k)
        };
        assert_eq!(params(0), (2.0, 0));
        assert_eq!(params(1).0, 0.0);
        assert_eq!(params(99), (2.0, 99));
        assert_eq!(params(100), (2.0, 0));
        assert_eq!(params(u32::MAX), (2.0, 0));
    }

    #[test]
    fn copies_are_grouped_by_what_there_is_room_for() {
        let list = |count: u32| Changes {
            adjustments: (0..count).map(Adjustment::none).collect(),
            mask: None,
            failure: None,
        };
        let masked = |count: u32| Changes {
            mask: Some(vec![1]),
            ..list(count)
        };
        let changes = [
            list(0),
            list(3),
            masked(5),
            masked(0),
            list(1),
            list(8),
            masked(8),
        ];
        let groups = copies(&changes, 32, 8);
        type Row = (u32, u32, u32, u32, u32);
        let rows: Vec<Vec<Row>> = groups
            .iter()
            .map(|group| {
                assert!(group.adjustments.len() <= 8);
                let each = group.rows.iter();
                each.map(|row| (row.from, row.to, row.first, row.count, row.mask))
                    .collect()
            })
            .collect();
        assert_eq!(
            rows,
            [
                vec![(1, 33, 0, 3, NO_ROW), (2, 34, 3, 5, 0), (3, 35, 8, 0, 1),],
                vec![(4, 36, 0, 1, NO_ROW)],
                vec![(5, 37, 0, 8, NO_ROW)],
                vec![(6, 38, 0, 8, 2)],
            ]
        );
        assert_eq!(copies(&[list(0)], 32, 8), []);
    }
}
