//! What holds for every kind of document.

use zt_agent::{
    document::{
        SourceFile,
        render::{self, Style},
        text::split_lines,
    },
    model::{Problem, Severity},
};

/// The bytes as a file; `None`, with a proper problem, if they are no text.
pub fn open(bytes: &[u8]) -> Option<SourceFile> {
    let file = SourceFile::from_bytes("fuzz.yaml", bytes.to_vec());
    assert_eq!(
        file.is_ok(),
        str::from_utf8(bytes).is_ok(),
        "text is UTF-8, and nothing else is"
    );
    match file {
        Ok(file) => Some(file),
        Err(problem) => {
            assert!(!problem.message.is_empty(), "refused without a reason");
            None
        }
    }
}

/// A refused document says why, each time at a place that exists.
pub fn check_refusal(file: &SourceFile, problems: &[Problem]) {
    assert!(
        problems.iter().any(|one| one.severity == Severity::Error),
        "refused without an error"
    );
    check_problems(file, problems);
}

pub fn check_problems(file: &SourceFile, problems: &[Problem]) {
    let widths: Vec<usize> = split_lines(&file.text)
        .map(|line| line.chars().count())
        .collect();
    for problem in problems {
        let line = usize::try_from(problem.at.line).unwrap_or(usize::MAX);
        let column = usize::try_from(problem.at.column).unwrap_or(usize::MAX);
        let width = line.checked_sub(1).and_then(|index| widths.get(index));
        let width = *width.unwrap_or_else(|| panic!("there is no such line: {problem}"));
        assert!(
            (1..=width + 1).contains(&column),
            "no such column: {problem}"
        );
        assert!(!problem.message.is_empty(), "a problem without words");
    }
    check_rendered(&render::problems(
        problems,
        std::slice::from_ref(file),
        Style::Plain,
    ));
}

/// Nothing that a terminal would obey, whatever the document holds.
fn check_rendered(text: &str) {
    let obeyed = |c: char| c.is_control() && c != '\n';
    // Marks that turn the direction of what follows, or have no width.
    let hidden = |c| matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let hostile = text.chars().find(|c| obeyed(*c) || hidden(*c));
    assert_eq!(hostile, None, "shown to a person: {text:?}");
}
