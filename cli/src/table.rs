//! Tables as lines of text. No colours, no borders.

/// The rows as lines, every column as wide as its widest cell.
pub(crate) fn lines<const N: usize>(rows: &[[String; N]]) -> Vec<String> {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..N).map(width).collect();
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(&widths);
        let padded: Vec<_> = cells.map(|(cell, width)| format!("{cell:width$}")).collect();
        format!("  {}", padded.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

/// Prints the rows.
pub(crate) fn print<const N: usize>(rows: &[[String; N]]) {
    for line in lines(rows) {
        println!("{line}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_lines_end_with_text() {
        let rows = [["NODE", "STATE"], ["é", "ready"], ["worker-1", ""]].map(|row| row.map(String::from));
        assert_eq!(
            lines(&rows),
            ["  NODE      STATE", "  é         ready", "  worker-1"]
        );
        assert!(lines::<3>(&[]).is_empty());
    }
}
