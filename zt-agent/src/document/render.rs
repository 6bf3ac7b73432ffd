//! Problems for a person's terminal: place, message, source line, next step.

use std::fmt::Write as _;

use super::text::{SourceFile, is_hostile, printable};
use crate::model::{Problem, Severity};

/// Characters of a long source line that are shown on each side of the caret.
const WINDOW: usize = 60;

/// ANSI escapes, or nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    Plain,
    Coloured,
}

impl Style {
    fn paint(self, code: &str, text: &str) -> String {
        match self {
            Self::Plain => text.to_owned(),
            Self::Coloured => format!("\x1b[{code}m{text}\x1b[0m"),
        }
    }
}

/// One problem, several lines, each with its line end. `source` is the file
/// that the problem is about, if its text is known.
#[must_use]
pub fn problem(problem: &Problem, source: Option<&SourceFile>, style: Style) -> String {
    let (word, colour) = match problem.severity {
        Severity::Error => ("error", "1;31"),
        Severity::Warning => ("warning", "1;33"),
    };
    let word = style.paint(colour, word);
    let mut out = format!("{}: {word}: ", printable(&problem.at.to_string()));
    if !problem.field.is_empty() {
        let _ = write!(out, "{}: ", printable(&problem.field));
    }
    out.push_str(&printable(&problem.message));
    out.push('\n');
    if let Some(source) = source {
        out.push_str(&excerpt(problem, source, colour, style));
    }
    if let Some(hint) = &problem.hint {
        let _ = writeln!(
            out,
            "  {}: {}",
            style.paint("1;36", "help"),
            printable(hint)
        );
    }
    out
}

/// Several problems with an empty line between them, and their number.
/// `sources` are the files that they may be about.
#[must_use]
pub fn problems(list: &[Problem], sources: &[SourceFile], style: Style) -> String {
    let mut out = String::new();
    for one in list {
        let source = sources.iter().find(|source| source.name == one.at.file);
        out.push_str(&problem(one, source, style));
        out.push('\n');
    }
    out.push_str(&summary(list));
    out
}

/// "2 errors, 1 warning", with a line end; nothing if there are none.
fn summary(list: &[Problem]) -> String {
    let count = |severity| list.iter().filter(|p| p.severity == severity).count();
    let words = |count: usize, word: &str| match count {
        0 => None,
        1 => Some(format!("1 {word}")),
        _ => Some(format!("{count} {word}s")),
    };
    let parts = [
        words(count(Severity::Error), "error"),
        words(count(Severity::Warning), "warning"),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    if parts.is_empty() {
        return String::new();
    }
    parts.join(", ") + "\n"
}

fn excerpt(problem: &Problem, source: &SourceFile, colour: &str, style: Style) -> String {
    let line = source.line(problem.at.line);
    if line.trim().is_empty() {
        return String::new();
    }
    let column = usize::try_from(problem.at.column)
        .unwrap_or(usize::MAX)
        .saturating_sub(1);
    let skipped = column.saturating_sub(WINDOW);
    let mut shown: String = line
        .chars()
        .skip(skipped)
        .take(2 * WINDOW)
        .map(one_cell)
        .collect();
    if skipped > 0 {
        shown.replace_range(..shown.chars().next().map_or(0, char::len_utf8), "…");
    }
    if line.chars().count() > skipped + 2 * WINDOW {
        shown.push('…');
    }
    let number = problem.at.line.to_string();
    let margin = " ".repeat(number.len());
    let gap = " ".repeat(column - skipped);
    let caret = style.paint(colour, "^");
    format!("  {number} | {shown}\n  {margin} | {gap}{caret}\n")
}

/// A character that takes one place and does nothing else, so that the caret
/// stands where it should.
fn one_cell(c: char) -> char {
    match c {
        '\t' => ' ',
        c if is_hostile(c) => '\u{fffd}',
        c => c,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Position;

    fn sample(line: u32, column: u32) -> Problem {
        Problem {
            severity: Severity::Error,
            at: Position {
                file: "p.yaml".into(),
                line,
                column,
            },
            field: "spec.rules[1].ports[1]".into(),
            message: "there is no port 0".into(),
            hint: Some("ports are 1 to 65535".into()),
        }
    }

    #[test]
    fn the_caret_stands_below_the_column() {
        let source = SourceFile::new("p.yaml", "a:\n\tports: [0]\n");
        let text = problem(&sample(2, 10), Some(&source), Style::Plain);
        assert_eq!(
            text,
            "p.yaml:2:10: error: spec.rules[1].ports[1]: there is no port 0\n  \
               2 |  ports: [0]\n    |          ^\n  help: ports are 1 to 65535\n"
        );
    }

    #[test]
    fn without_source_there_is_no_excerpt() {
        let text = problem(&sample(2, 10), None, Style::Plain);
        assert_eq!(text.lines().count(), 2);
    }

    #[test]
    fn a_long_line_is_cut_around_the_caret() {
        let source = SourceFile::new("p.yaml", format!("{}X{}", "a".repeat(500), "b".repeat(500)));
        let text = problem(&sample(1, 501), Some(&source), Style::Plain);
        let lines: Vec<&str> = text.lines().collect();
        let place = |line: &str, c| line.chars().position(|found| found == c);
        assert_eq!(place(lines[1], 'X'), place(lines[2], '^'));
        assert!(lines[1].chars().count() < 140, "{}", lines[1]);
    }

    #[test]
    fn escapes_of_a_document_never_reach_the_terminal() {
        let source = SourceFile::new("p.yaml", "a: \x1b[2J\u{202e}b");
        let mut bad = sample(1, 4);
        bad.message = "\x1b[31mred".into();
        bad.field = "a\u{202e}".into();
        let text = problem(&bad, Some(&source), Style::Plain);
        assert!(
            !text.contains('\x1b') && !text.contains('\u{202e}'),
            "{text:?}"
        );
    }

    #[test]
    fn colours_change_nothing_but_colours() {
        let source = SourceFile::new("p.yaml", "ports: [0]");
        let plain = problem(&sample(1, 9), Some(&source), Style::Plain);
        let mut coloured = problem(&sample(1, 9), Some(&source), Style::Coloured);
        assert_ne!(plain, coloured);
        for code in ["\x1b[1;31m", "\x1b[1;36m", "\x1b[0m"] {
            coloured = coloured.replace(code, "");
        }
        assert_eq!(plain, coloured);
    }

    #[test]
    fn problems_are_counted() {
        let mut warning = sample(1, 1);
        warning.severity = Severity::Warning;
        let list = [sample(1, 1), sample(2, 1), warning];
        let text = problems(&list, &[], Style::Plain);
        assert!(text.ends_with("\n2 errors, 1 warning\n"), "{text}");
        assert_eq!(problems(&[], &[], Style::Plain), "");
    }
}
