//! The table that is shown while it is measured.

use std::io::{Result, Write};

use crate::figures::{Bound, Ceilings, Clock, KernelFigures, Line, Missing, Part, Role};

/// Where the table is written.
pub(super) struct Table<'a> {
    out: &'a mut dyn Write,
}

impl<'a> Table<'a> {
    pub(super) fn new(out: &'a mut dyn Write) -> Self {
        Self { out }
    }

    /// What is measured, and the ceilings.
    pub(super) fn begin(&mut self, figures: &KernelFigures, clock: &str) -> Result<()> {
        let KernelFigures {
            device,
            model,
            ceilings,
            ..
        } = figures;
        let by = match figures.clock {
            Clock::Device => "the device's",
            Clock::Host => "the host's",
        };
        writeln!(self.out, "{}", device.kind)?;
        write!(self.out, "{}, {}", model.shape, model.format)?;
        if model.experts > 0 {
            let (experts, of_row) = (model.experts, model.experts_per_row);
            write!(self.out, ", {experts} experts, {of_row} a row")?;
        }
        writeln!(
            self.out,
            ", {} layers of each kind, cache of {}",
            model.layers, model.cache_format
        )?;
        writeln!(self.out, "times by {by} clock: {clock}")?;
        writeln!(
            self.out,
            "copy: {} read and written, {}",
            rate(ceilings.copy_bytes_per_s, "B/s"),
            ceilings.copy_by
        )?;
        writeln!(
            self.out,
            "product: {}, {}",
            rate(ceilings.product_flops_per_s, "FLOP/s"),
            ceilings.product_by
        )?;
        writeln!(
            self.out,
            "{:<6} {:<28} {:>9} {:>5} {:>8} {:>9} {:>11} {:>13} {:>7} {:>7}  bound",
            "part", "op", "role", "rows", "context", "time", "moved", "arithmetic", "copy", "product"
        )
    }

    pub(super) fn line(&mut self, line: &Line, ceilings: &Ceilings) -> Result<()> {
        let part = match line.part {
            Part::MoeLayer => "moe",
            Part::DenseLayer => "dense",
            Part::Ends => "ends",
        };
        let role = line.role.name();
        let weight = line
            .weight
            .as_ref()
            .map_or_else(String::new, |name| format!(" {name}"));
        let experts = line
            .experts
            .map_or_else(String::new, |count| format!(", {count} experts"));
        let op = format!("{}{weight}{experts}", line.op);
        let context = line
            .context
            .map_or_else(|| "-".to_owned(), |tokens| tokens.to_string());
        let bound = match line.bound(ceilings) {
            Bound::Memory => "memory",
            Bound::Arithmetic => "arithmetic",
        };
        write!(
            self.out,
            "{part:<6} {op:<28} {role:>9} {:>5} {context:>8} {:>9} {:>11} {:>13} {:>7} {:>7}  {bound}",
            line.rows,
            time(line.seconds),
            rate(line.bytes_per_s(), "B/s"),
            rate(line.flops_per_s(), "FLOP/s"),
            percent(line.copy_share(ceilings)),
            percent(line.product_share(ceilings)),
        )?;
        if let Some(fastest) = &line.fastest {
            let ratio = line.seconds / fastest.seconds;
            match &fastest.sizes {
                Some(sizes) => {
                    let least = time(fastest.seconds);
                    write!(self.out, "; {ratio:.2} x the fastest, {least}: {sizes}")?;
                }
                None => write!(self.out, "; the fastest")?,
            }
        }
        writeln!(self.out)
    }

    pub(super) fn missing(&mut self, missing: &Missing) -> Result<()> {
        writeln!(self.out, "cannot measure {}: {}", missing.what, missing.reason)
    }

    /// How far all ops together are from the fastest, by rows.
    pub(super) fn end(&mut self, figures: &KernelFigures) -> Result<()> {
        let mut rows: Vec<(Role, u32)> = figures.lines.iter().map(|line| (line.role, line.rows)).collect();
        rows.sort_unstable();
        rows.dedup();
        for (role, count) in rows {
            let of_rows = figures
                .lines
                .iter()
                .filter(|line| (line.role, line.rows) == (role, count));
            let (own, fastest) = of_rows
                .filter_map(|line| Some((line.seconds, line.fastest.as_ref()?.seconds)))
                .fold((0.0, 0.0), |sum, pair| (sum.0 + pair.0, sum.1 + pair.1));
            if fastest > 0.0 {
                let role = role.name();
                let (ratio, own, fastest) = (own / fastest, time(own), time(fastest));
                writeln!(
                    self.out,
                    "all ops at {count} {role} rows: {own}, {ratio:.2} x the fastest of each, {fastest}"
                )?;
            }
        }
        if !figures.missing.is_empty() {
            writeln!(
                self.out,
                "{} measurements are missing, as told above",
                figures.missing.len()
            )?;
        }
        Ok(())
    }
}

fn time(seconds: f64) -> String {
    match seconds {
        _ if seconds < 1e-3 => format!("{:.1} us", seconds * 1e6),
        _ if seconds < 1.0 => format!("{:.2} ms", seconds * 1e3),
        _ => format!("{seconds:.2} s"),
    }
}

fn rate(per_second: f64, unit: &str) -> String {
    match per_second {
        _ if per_second >= 1e12 => format!("{:.2} T{unit}", per_second / 1e12),
        _ => format!("{:.2} G{unit}", per_second / 1e9),
    }
}

fn percent(share: f64) -> String {
    format!("{:.1}%", share * 100.0)
}
