//! Problems for a person's terminal.
