//! What a person sees: lines that stay, and on a terminal one line that changes.
use std::{
    io::{self, Write},
    time::Duration,
};

/// Longest changing line, characters: one that wraps could not be erased.
const WIDTH: usize = 79;

/// Writes to a terminal or a file.
#[derive(Debug)]
pub(in crate::cli) struct Screen<W> {
    out: W,
    live: bool,
    shown: String,
}

impl<W: Write> Screen<W> {
    /// `live`: `out` is a terminal, where a line can be erased.
    pub(in crate::cli) fn new(out: W, live: bool) -> Self {
        Self { out, live, shown: String::new() }
    }

    /// Whether there is a changing line.
    pub(in crate::cli) fn is_live(&self) -> bool {
        self.live
    }

    /// A line that stays.
    pub(in crate::cli) fn line(&mut self, text: &str) -> io::Result<()> {
        self.erase()?;
        writeln!(self.out, "{}", printable(text))?;
        self.out.flush()
    }

    /// A line that stays, with its moment in the call.
    pub(in crate::cli) fn at(&mut self, now: Duration, text: &str) -> io::Result<()> {
        self.line(&format!("{:7.2} s  {text}", now.as_secs_f64()))
    }

    /// What the changing line says now. Nothing where there is none.
    pub(in crate::cli) fn status(&mut self, text: &str) -> io::Result<()> {
        let text = fit(&printable(text));
        if !self.live || text == self.shown {
            return Ok(());
        }
        write!(self.out, "\r\x1b[2K{text}")?;
        self.shown = text;
        self.out.flush()
    }

    /// Takes the changing line away.
    pub(in crate::cli) fn erase(&mut self) -> io::Result<()> {
        if !self.shown.is_empty() {
            self.shown.clear();
            write!(self.out, "\r\x1b[2K")?;
        }
        Ok(())
    }
}

/// Text from the other side of a network must not move the cursor.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// The beginning and, where it is too long, the newest end.
fn fit(text: &str) -> String {
    let count = text.chars().count();
    if count <= WIDTH {
        return text.to_owned();
    }
    let head: String = text.chars().take(WIDTH / 2).collect();
    let tail: String = text.chars().skip(count - (WIDTH - WIDTH / 2 - 3)).collect();
    format!("{head}...{tail}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_gets_only_the_lines_that_stay() {
        let mut out = Vec::new();
        let mut screen = Screen::new(&mut out, false);
        screen.status("speaking 1 s").unwrap();
        screen.at(Duration::from_millis(4_650), "you stopped").unwrap();
        screen.line("evil \x1b[2J text\n").unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "   4.65 s  you stopped\nevil  [2J text \n");
    }

    #[test]
    fn a_terminal_has_one_line_that_changes() {
        let mut out = Vec::new();
        let mut screen = Screen::new(&mut out, true);
        screen.status("one").unwrap();
        screen.status("one").unwrap();
        screen.status("two").unwrap();
        screen.line("stays").unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "\r\x1b[2Kone\r\x1b[2Ktwo\r\x1b[2Kstays\n");
    }

    #[test]
    fn a_long_line_keeps_both_its_ends() {
        let text = fit(&format!("begin{}end", "\u{e9}".repeat(100)));
        assert_eq!(text.chars().count(), WIDTH);
        assert!(text.starts_with("begin") && text.ends_with("end"));
    }
}
