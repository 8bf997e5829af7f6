//! Which numbers of stages and expert groups are tried, and in which order.

use super::Wishes;

/// So many numbers of stages are tried one by one from the fewest; beyond that in steps of a quarter.
const ONE_BY_ONE: usize = 64;
/// Numbers of groups that are tried without a wish.
const GROUPS: [usize; 14] = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128];

/// What bounds a shape.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) devices: usize,
    pub(super) layers: usize,
    pub(super) experts: usize,
}

/// A number of stages, and of groups of each.
pub(super) type Shape = (usize, usize);

/// What the wishes come to for this model.
pub(super) fn wished(wishes: &Wishes, bounds: Bounds) -> (Option<usize>, Option<usize>) {
    let number = |wish: u32, most: usize| usize::try_from(wish).unwrap_or(usize::MAX).clamp(1, most.max(1));
    (
        wishes.stages.map(|wish| number(wish, bounds.layers)),
        wishes.expert_groups.map(|wish| number(wish, bounds.experts)),
    )
}

/// The shapes to try. Wished stages come before wished groups; without a wish for stages, fewer groups come before
/// fewer stages, as groups cost a round over the network in every layer.
pub(super) fn shapes(wishes: &Wishes, bounds: Bounds) -> Vec<Shape> {
    let (stages, groups) = wished(wishes, bounds);
    let most_stages = bounds.devices.min(bounds.layers);
    let most_groups = bounds.devices.min(bounds.experts.max(1));
    let stages_first = stages.is_some();
    let stages = around(stages, &ladder(most_stages));
    let steps: Vec<usize> = GROUPS.into_iter().filter(|&step| step <= most_groups).collect();
    let groups = around(groups, &steps);
    let fits = |&(stages, groups): &Shape| {
        stages <= most_stages
            && groups <= most_groups
            && stages
                .checked_mul(groups)
                .is_some_and(|all| all <= bounds.devices)
    };
    let pairs: Vec<Shape> = if stages_first {
        let pairs = stages
            .iter()
            .flat_map(|&stages| groups.iter().map(move |&groups| (stages, groups)));
        pairs.filter(fits).collect()
    } else {
        let pairs = groups
            .iter()
            .flat_map(|&groups| stages.iter().map(move |&stages| (stages, groups)));
        pairs.filter(fits).collect()
    };
    pairs
}

fn ladder(most: usize) -> Vec<usize> {
    let mut steps: Vec<usize> = (1..=most.min(ONE_BY_ONE)).collect();
    let mut next = ONE_BY_ONE + ONE_BY_ONE / 4;
    while next < most {
        steps.push(next);
        next += next / 4;
    }
    if most > ONE_BY_ONE {
        steps.push(most);
    }
    steps
}

/// The wish, then all below it downwards, then the steps above it upwards; without a wish the steps.
fn around(wish: Option<usize>, steps: &[usize]) -> Vec<usize> {
    let Some(wish) = wish else {
        return steps.to_vec();
    };
    let above = steps.iter().copied().filter(|&step| step > wish);
    (1..=wish).rev().chain(above).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wishes(stages: Option<u32>, expert_groups: Option<u32>) -> Wishes {
        Wishes {
            stages,
            expert_groups,
            kv_block_tokens: 16,
            kv_tokens_min: 16,
            kv_tokens_max: 16,
            kv_format: None,
        }
    }

    #[test]
    fn wished_stages_come_before_wished_groups() {
        let bounds = Bounds {
            devices: 4,
            layers: 6,
            experts: 16,
        };
        let tried = shapes(&wishes(Some(2), Some(2)), bounds);
        assert_eq!(
            tried,
            [(2, 2), (2, 1), (1, 2), (1, 1), (1, 3), (1, 4), (3, 1), (4, 1)]
        );
        let tried = shapes(&wishes(None, None), bounds);
        assert_eq!(
            tried,
            [(1, 1), (2, 1), (3, 1), (4, 1), (1, 2), (2, 2), (1, 3), (1, 4)]
        );
    }

    #[test]
    fn a_lot_of_devices_gives_few_shapes() {
        let bounds = Bounds {
            devices: 512 * 64,
            layers: 1024,
            experts: 4096,
        };
        assert!(shapes(&wishes(None, None), bounds).len() < 2000);
        assert_eq!(
            wished(&wishes(Some(2000), Some(9)), bounds),
            (Some(1024), Some(9))
        );
    }
}
