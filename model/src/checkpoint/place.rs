//! Tensors of Hugging Face's layout at their places in the consolidated one.
//!
//! Experts that are stored as one tensor are cut in one entry per matrix; the entries of their scales may share bytes.

use std::collections::BTreeMap;

use super::Located;
use super::header::Entry;
use crate::layout::{HuggingFaceNames, Place};
use crate::spec::MAX_EXPERTS;

/// The same tensors under consolidated names. What is none of the language model's keeps its name.
pub(super) fn consolidated(
    tensors: BTreeMap<String, Located>,
    names: &HuggingFaceNames,
) -> BTreeMap<String, Located> {
    let mut placed = BTreeMap::new();
    let mut others = Vec::new();
    for (name, located) in tensors {
        match names.place(&name, &located.entry.shape) {
            Some(Place::Whole(name)) => {
                placed.insert(name, located);
            }
            Some(Place::Experts {
                prefix,
                matrices,
                parameter,
            }) => match cut(&located, matrices) {
                Some(entries) => {
                    for (expert, matrix, entry) in entries {
                        let name = format!("{prefix}{expert}.{matrix}.{parameter}");
                        let file = located.file;
                        placed.insert(name, Located { file, entry });
                    }
                }
                None => others.push((name, located)),
            },
            None => others.push((name, located)),
        }
    }
    for (name, located) in others {
        placed.entry(name).or_insert(located);
    }
    placed
}

/// The entries of each expert's matrices; none if the tensor is not `[experts, ..]` of so many matrices each.
fn cut(located: &Located, matrices: &[&'static str]) -> Option<Vec<(u64, &'static str, Entry)>> {
    let Entry {
        name,
        dtype,
        shape,
        span,
    } = &located.entry;
    let (&experts, of_expert) = shape.split_first()?;
    if experts == 0 || experts > u64::from(MAX_EXPERTS) {
        return None;
    }
    let values: u64 = of_expert.iter().product();
    let expert_bytes = span.len() / usize::try_from(experts).ok()?;
    let count = matrices.len() as u64;
    // One scale for all matrices of an expert, or one part of the rows for each.
    let (shape, is_shared) = match of_expert {
        _ if values == 1 => (vec![], true),
        [rows, rest @ ..] if rows % count == 0 => {
            let rows = rows / count;
            (std::iter::once(rows).chain(rest.iter().copied()).collect(), false)
        }
        _ => return None,
    };
    let bytes = match is_shared {
        true => expert_bytes,
        false => expert_bytes / matrices.len(),
    };
    let mut entries = Vec::new();
    for expert in 0..experts {
        let first = span.start + usize::try_from(expert).ok()? * expert_bytes;
        for (index, &matrix) in matrices.iter().enumerate() {
            let start = first + if is_shared { 0 } else { index * bytes };
            let entry = Entry {
                name: format!("{name}[{expert}] {matrix}"),
                dtype: *dtype,
                shape: Vec::clone(&shape),
                span: start..start + bytes,
            };
            entries.push((expert, matrix, entry));
        }
    }
    Some(entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::Dtype;

    fn located(shape: &[u64], bytes: usize) -> Located {
        let entry = Entry {
            name: "all".to_owned(),
            dtype: Dtype::Bf16,
            shape: shape.to_vec(),
            span: 100..100 + bytes,
        };
        Located { file: 0, entry }
    }

    #[test]
    fn matrices_of_experts_are_cut_by_rows_and_scales_are_shared() {
        let gate_up = cut(&located(&[3, 4, 5], 120), &["w1", "w3"]).expect("cut");
        let spans: Vec<_> = gate_up.iter().map(|(_, _, entry)| entry.span.clone()).collect();
        assert_eq!(
            spans,
            [100..120, 120..140, 140..160, 160..180, 180..200, 200..220]
        );
        assert!(gate_up.iter().all(|(_, _, entry)| entry.shape == [2, 5]));
        assert_eq!((gate_up[3].0, gate_up[3].1), (1, "w3"));
        assert_eq!(gate_up[3].2.name, "all[1] w3");
        let scales = cut(&located(&[3, 1, 1], 6), &["w1", "w3"]).expect("cut");
        let spans: Vec<_> = scales.iter().map(|(_, _, entry)| entry.span.clone()).collect();
        assert_eq!(
            spans,
            [100..102, 100..102, 102..104, 102..104, 104..106, 104..106]
        );
        assert!(scales.iter().all(|(_, _, entry)| entry.shape.is_empty()));
        for shape in [&[][..], &[3, 5, 5], &[0, 4, 5], &[1 << 20, 4, 5]] {
            assert!(cut(&located(shape, 150), &["w1", "w3"]).is_none(), "{shape:?}");
        }
    }
}
