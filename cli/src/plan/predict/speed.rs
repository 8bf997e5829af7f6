//! How long a device takes for a byte of weights or of the cache, by what was measured of devices like it.

use std::collections::BTreeMap;

use tramontane_kernels::figures::{Bound, KernelFigures, Line, Part, Role};

/// What a device of some kind takes for a byte.
pub(super) struct Speed<'a> {
    pub(super) kind: String,
    pub(super) figures: &'a KernelFigures,
}

pub(super) type Taken = Result<(f64, Bound), String>;

impl Speed<'_> {
    /// The owner's weights of a layer, with all that is computed beside attention and routed experts.
    pub(super) fn weights(&self, part: Part, bytes: f64, rows: f64) -> Taken {
        let of_part = |part| {
            move |line: &Line| {
                line.part == part && !matches!(line.op.as_str(), "attention" | "experts" | "layer")
            }
        };
        let other = if part == Part::MoeLayer {
            Part::DenseLayer
        } else {
            Part::MoeLayer
        };
        let own = self.taken("weights", bytes, rows, of_part(part), |line| line.weight_bytes);
        own.or_else(|_| self.taken("weights", bytes, rows, of_part(other), |line| line.weight_bytes))
    }

    pub(super) fn experts(&self, bytes: f64, rows: f64) -> Taken {
        self.taken(
            "experts",
            bytes,
            rows,
            |line| line.op == "experts",
            |line| line.weight_bytes,
        )
    }

    pub(super) fn head(&self, bytes: f64, rows: f64) -> Taken {
        let of_ends = |line: &Line| line.part == Part::Ends && line.op == "linear";
        let own = self.taken("the output matrix", bytes, rows, of_ends, |line| {
            line.weight_bytes
        });
        own.or_else(|_| self.weights(Part::MoeLayer, bytes, rows))
    }

    pub(super) fn cache(&self, part: Part, (bytes, context): (f64, u32), rows: f64) -> Taken {
        let near = |line: &Line| line.op == "attention" && line.context == Some(context);
        let own = self.taken(
            "attention",
            bytes,
            rows,
            |line| near(line) && line.part == part,
            |line| line.cache_bytes,
        );
        own.or_else(|_| self.taken("attention", bytes, rows, near, |line| line.cache_bytes))
    }

    /// Seconds for so many bytes at so many rows: as much for each as some lines took together, between the numbers of rows
    /// that were measured in proportion, and beyond them as at the nearest.
    fn taken(
        &self,
        what: &str,
        bytes: f64,
        rows: f64,
        of: impl Fn(&Line) -> bool,
        bytes_of: impl Fn(&Line) -> u64,
    ) -> Taken {
        let mut measured: BTreeMap<u32, (f64, f64, (f64, Bound))> = BTreeMap::new();
        let lines = self
            .figures
            .lines
            .iter()
            .filter(|line| line.role == Role::Generated && of(line));
        for line in lines {
            let bound = line.bound(&self.figures.ceilings);
            let sums = measured.entry(line.rows).or_insert((0.0, 0.0, (0.0, bound)));
            sums.0 += line.seconds;
            sums.1 += bytes_of(line) as f64;
            if line.seconds > sums.2.0 {
                sums.2 = (line.seconds, bound);
            }
        }
        let points: Vec<(f64, (f64, Bound))> = (measured.into_iter())
            .filter(|(_, (_, bytes, _))| *bytes > 0.0)
            .map(|(rows, (seconds, bytes, (_, bound)))| (f64::from(rows), (seconds / bytes, bound)))
            .collect();
        let Some((low, high, share)) = around(&points, rows) else {
            return Err(format!(
                "the figures of {:?} have no line of generated rows for {what}: measure all parts",
                self.kind
            ));
        };
        let per_byte = low.0 + (high.0 - low.0) * share;
        Ok((bytes * per_byte, if share < 0.5 { low.1 } else { high.1 }))
    }

    /// What a whole layer took, as a share of what its ops took one by one, each after the device's caches were emptied: less
    /// where they hold what one op leaves to the next. 1 where no whole layer was measured.
    pub(super) fn together(&self, part: Part, rows: f64) -> f64 {
        let lines = || {
            let lines = self.figures.lines.iter();
            lines.filter(move |line| line.role == Role::Generated && line.part == part)
        };
        let shortest = lines().filter_map(|line| line.context).min();
        // Of each number of rows, all ops and the whole.
        let mut measured: BTreeMap<u32, (f64, f64)> = BTreeMap::new();
        for line in lines().filter(|line| line.context.is_none() || line.context == shortest) {
            let sums = measured.entry(line.rows).or_default();
            match line.op.as_str() {
                "layer" => sums.1 += line.seconds,
                _ => sums.0 += line.seconds,
            }
        }
        let points: Vec<(f64, f64)> = (measured.into_iter())
            .filter(|(_, (ops, whole))| *ops > 0.0 && *whole > 0.0)
            .map(|(rows, (ops, whole))| (f64::from(rows), whole / ops))
            .collect();
        around(&points, rows).map_or(1.0, |(low, high, share)| low + (high - low) * share)
    }
}

/// What was measured at the next fewer and at the next more rows, and how far between them so many are.
fn around<T: Copy>(points: &[(f64, T)], rows: f64) -> Option<(T, T, f64)> {
    let above = points.iter().position(|point| point.0 >= rows);
    let above = above.unwrap_or(points.len());
    let high = points.get(above).or(points.last())?;
    let low = points.get(above.saturating_sub(1))?;
    let share = if high.0 > low.0 {
        ((rows - low.0) / (high.0 - low.0)).clamp(0.0, 1.0)
    } else {
        0.0
    };
    Some((low.1, high.1, share))
}
