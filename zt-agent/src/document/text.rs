//! The text of a document and places in it.

use std::sync::Arc;

use crate::model::{Position, Problem, Severity};

/// A file that was read. A copy shares the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceFile {
    /// As it shall stand in messages: usually its path.
    pub name: Arc<str>,
    pub text: Arc<str>,
    /// Characters in each line.
    widths: Arc<[u32]>,
}

impl SourceFile {
    #[must_use]
    pub fn new(name: impl Into<Arc<str>>, text: impl Into<String>) -> Self {
        let mut text: String = text.into();
        // Editors do not show a byte order mark, nor count it as a column.
        if text.starts_with('\u{feff}') {
            text.remove(0);
        }
        let width = |line: &str| u32::try_from(line.chars().count()).unwrap_or(u32::MAX);
        Self {
            name: name.into(),
            widths: split_lines(&text).map(width).collect(),
            text: text.into(),
        }
    }

    /// Takes the bytes of a file.
    ///
    /// # Errors
    /// When they are no UTF-8; the problem points at the first bad byte.
    pub fn from_bytes(name: impl Into<Arc<str>>, bytes: Vec<u8>) -> Result<Self, Box<Problem>> {
        let name = name.into();
        match String::from_utf8(bytes) {
            Ok(text) => Ok(Self::new(name, text)),
            Err(error) => {
                let good = error.utf8_error().valid_up_to();
                let head = String::from_utf8_lossy(&error.as_bytes()[..good]).into_owned();
                Err(Box::new(not_utf8(name, &head)))
            }
        }
    }

    /// A place in this file, moved inside it if it is not: a parser that ran
    /// into the end of the file reports a line that is not there.
    #[must_use]
    pub fn position(&self, line: u64, column: u64) -> Position {
        let index = usize::try_from(line.saturating_sub(1)).unwrap_or(usize::MAX);
        let (index, width, column) = match self.widths.get(index) {
            Some(width) => (index, *width, u32::try_from(column).unwrap_or(u32::MAX)),
            None => (
                self.widths.len().saturating_sub(1),
                self.widths.last().copied().unwrap_or(0),
                u32::MAX,
            ),
        };
        Position {
            file: self.name.clone(),
            line: u32::try_from(index + 1).unwrap_or(u32::MAX),
            column: column.clamp(1, width.saturating_add(1)),
        }
    }

    /// The line with this number; empty if there is none.
    #[must_use]
    pub fn line(&self, number: u32) -> &str {
        let index = usize::try_from(number).unwrap_or(0).saturating_sub(1);
        split_lines(&self.text).nth(index).unwrap_or_default()
    }
}

/// `head` is what stands before the bad byte.
fn not_utf8(name: Arc<str>, head: &str) -> Problem {
    Problem {
        severity: Severity::Error,
        at: SourceFile::new(name, head).position(u64::MAX, 1),
        field: String::new(),
        message: "is not UTF-8 text".to_owned(),
        hint: Some("save the file as UTF-8".to_owned()),
    }
}

/// The text with what a terminal could obey written as escapes: a document may
/// hold anything.
#[must_use]
pub fn printable(text: &str) -> String {
    let escape = |c: char| match is_hostile(c) {
        true => c.escape_unicode().to_string(),
        false => c.to_string(),
    };
    text.chars().map(escape).collect()
}

/// Control characters, and those that reorder or hide what is around them.
#[must_use]
pub fn is_hostile(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// The lines of a text as YAML counts them; there is always at least one.
/// A line ends with `\n`, `\r\n` or `\r`.
pub fn split_lines(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let Some(end) = text.find(['\n', '\r']) else {
            rest = None;
            return Some(text);
        };
        let (line, tail) = text.split_at(end);
        let ending = if tail.starts_with("\r\n") { 2 } else { 1 };
        rest = Some(&tail[ending..]);
        Some(line)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_end_in_three_ways() {
        let lines: Vec<_> = split_lines("a\nb\r\nc\rd\n").collect();
        assert_eq!(lines, ["a", "b", "c", "d", ""]);
        assert_eq!(split_lines("").count(), 1);
    }

    #[test]
    fn a_bad_byte_is_reported_where_it_stands() {
        let problem = SourceFile::from_bytes("f", b"ab\n\xc3\xa4x\xff".to_vec()).unwrap_err();
        assert_eq!((problem.at.line, problem.at.column), (2, 3));
    }

    #[test]
    fn a_byte_order_mark_is_no_column() {
        let file = SourceFile::from_bytes("f", b"\xef\xbb\xbfab".to_vec()).unwrap();
        assert_eq!(&*file.text, "ab");
        assert_eq!(file.position(1, 9).column, 3);
    }

    #[test]
    fn a_place_behind_the_end_becomes_the_end() {
        let file = SourceFile::new("f", "ab\ncde");
        let place = |line, column| {
            let at = file.position(line, column);
            (at.line, at.column)
        };
        assert_eq!(place(9, 1), (2, 4));
        assert_eq!(place(1, 9), (1, 3));
        assert_eq!(place(0, 0), (1, 1));
        assert_eq!(place(2, 2), (2, 2));
    }
}
