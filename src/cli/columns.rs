//! Tables for people, and lines for spreadsheets.
use serde_json::Value;

/// Lines of cells one below the other, the names of the columns first. So many columns stand left, the others right; one in which
/// nothing stands is left out.
pub(super) fn aligned(rows: &[Vec<String>], left: usize) -> Vec<String> {
    let mut lines = vec![String::new(); rows.len()];
    for at in 0..rows.first().map_or(0, Vec::len) {
        let cells = || rows.iter().filter_map(|row| row.get(at));
        if cells().skip(1).all(String::is_empty) {
            continue;
        }
        let width = cells().map(|cell| cell.chars().count()).max().unwrap_or_default();
        for (line, cell) in lines.iter_mut().zip(cells()) {
            *line += &if at < left { format!("{cell:<width$}  ") } else { format!("{cell:>width$}  ") };
        }
    }
    lines.iter_mut().for_each(|line| line.truncate(line.trim_end().len()));
    lines
}

/// A line as RFC 4180 says.
pub(super) fn csv_line(cells: impl Iterator<Item = Value>) -> String {
    let cell = |value: Value| match value {
        Value::String(text) if text.contains(['"', ',', '\n', '\r']) => format!("\"{}\"", text.replace('"', "\"\"")),
        Value::String(text) => text,
        Value::Null => String::new(),
        other => other.to_string(),
    };
    cells.map(cell).collect::<Vec<_>>().join(",")
}

/// Names that tenants choose must not move the cursor; what has none is a dash.
pub(super) fn printable(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect() }
}
