//! Colours on a terminal, plain text elsewhere.

use std::env;
use std::io::{self, IsTerminal};
use std::sync::LazyLock;

/// Standard output is a terminal, and `NO_COLOR` (<https://no-color.org>) is not set.
static COLOURED: LazyLock<bool> = LazyLock::new(|| {
    let unwanted = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    io::stdout().is_terminal() && !unwanted
});

pub fn green(text: &str) -> String {
    paint("32", text)
}

pub fn red(text: &str) -> String {
    paint("1;31", text)
}

pub fn bold(text: &str) -> String {
    paint("1", text)
}

pub fn dim(text: &str) -> String {
    paint("2", text)
}

fn paint(code: &str, text: &str) -> String {
    if *COLOURED {
        format!("\x1b[{code}m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}
