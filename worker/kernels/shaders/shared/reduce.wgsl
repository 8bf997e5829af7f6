// Over the lanes of a workgroup: the sum, as a binary tree, and the largest value with the lowest id it occurs at.
var<workgroup> lane_sums: array<f32, LANES>;
var<workgroup> lane_values: array<f32, LANES>;
var<workgroup> lane_ids: array<u32, LANES>;

struct Best {
    value: f32,
    id: u32,
}

fn is_better(value: f32, id: u32, than_value: f32, than_id: u32) -> bool {
    return value > than_value || (value == than_value && id < than_id);
}

fn sum_lanes(lane: u32, value: f32) -> f32 {
    lane_sums[lane] = value;
    for (var step = LANES / 2u; step > 0u; step /= 2u) {
        workgroupBarrier();
        if (lane < step) {
            lane_sums[lane] += lane_sums[lane + step];
        }
    }
    workgroupBarrier();
    let sum = lane_sums[0];
    workgroupBarrier();
    return sum;
}

fn best_of_lanes(lane: u32, best: Best) -> Best {
    lane_values[lane] = best.value;
    lane_ids[lane] = best.id;
    for (var step = LANES / 2u; step > 0u; step /= 2u) {
        workgroupBarrier();
        if (lane < step) {
            let other = lane + step;
            if (is_better(lane_values[other], lane_ids[other], lane_values[lane], lane_ids[lane])) {
                lane_values[lane] = lane_values[other];
                lane_ids[lane] = lane_ids[other];
            }
        }
    }
    workgroupBarrier();
    let result = Best(lane_values[0], lane_ids[0]);
    workgroupBarrier();
    return result;
}
