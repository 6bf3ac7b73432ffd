//! How a command prints: for a terminal by default, JSON on request.

use std::io::{ErrorKind, IsTerminal, Write as _};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use comfy_table::{Cell, ContentArrangement, Table, presets};

use crate::document::render::Style;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    #[default]
    Text,
    /// For programs: one JSON value, or one per line for a stream
    Json,
}

#[derive(Clone, Copy, Debug, Args)]
pub struct Output {
    /// How to print
    #[arg(long, short, value_enum, default_value_t)]
    pub output: Format,
}

impl Output {
    #[must_use]
    pub fn is_json(self) -> bool {
        self.output == Format::Json
    }
}

/// Whether to colour: standard output is a terminal, and `NO_COLOR`
/// (<https://no-color.org>) is not set.
#[must_use]
pub fn coloured() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

/// Colours, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paint(pub bool);

impl Paint {
    /// What standard output wants.
    #[must_use]
    pub fn of_stdout() -> Self {
        Self(coloured())
    }

    #[must_use]
    pub fn good(self, text: &str) -> String {
        self.with("32", text)
    }

    #[must_use]
    pub fn bad(self, text: &str) -> String {
        self.with("1;31", text)
    }

    #[must_use]
    pub fn doubtful(self, text: &str) -> String {
        self.with("33", text)
    }

    #[must_use]
    pub fn strong(self, text: &str) -> String {
        self.with("1", text)
    }

    /// The same choice for problems in documents.
    #[must_use]
    pub fn style(self) -> Style {
        if self.0 {
            Style::Coloured
        } else {
            Style::Plain
        }
    }

    fn with(self, code: &str, text: &str) -> String {
        if self.0 {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

/// A table without lines, as wide as the terminal at most. Ends with a line
/// end; nothing if there are no rows.
#[must_use]
pub fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic);
    if !header.is_empty() {
        table.set_header(header.iter().map(Cell::new));
    }
    for row in rows {
        table.add_row(row);
    }
    if table.is_empty() {
        return String::new();
    }
    let lines = table.lines().map(|line| line.trim_end().to_owned());
    lines.map(|line| line + "\n").collect()
}

/// "1 rule", "2 rules".
#[must_use]
pub fn count(number: usize, one: &str, many: &str) -> String {
    let word = if number == 1 { one } else { many };
    format!("{number} {word}")
}

/// Prints one JSON value.
///
/// # Errors
/// When it cannot be written.
pub fn json(value: &serde_json::Value) -> anyhow::Result<()> {
    text(&(serde_json::to_string_pretty(value)? + "\n"))
}

/// Prints text as it is. A reader that has seen enough (`| head`) is no error.
///
/// # Errors
/// When it cannot be written.
pub fn text(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to standard output")
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_no_lines_and_no_trailing_blanks() {
        let rows = [vec!["a".into(), "1".into()], vec!["bb".into(), "2".into()]];
        assert_eq!(table(&["X", "Y"], rows), " X   Y\n a   1\n bb  2\n");
        assert_eq!(table(&["X"], []), "");
    }

    #[test]
    fn colours_are_escapes_or_nothing() {
        assert_eq!(Paint(true).bad("no"), "\x1b[1;31mno\x1b[0m");
        assert_eq!(Paint(false).bad("no"), "no");
    }

    #[test]
    fn one_is_not_many() {
        assert_eq!(count(1, "policy", "policies"), "1 policy");
        assert_eq!(count(0, "policy", "policies"), "0 policies");
    }
}
