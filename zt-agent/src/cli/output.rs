//! How a command prints: for a terminal by default, JSON on request.

use std::io::IsTerminal;

use clap::{Args, ValueEnum};

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
