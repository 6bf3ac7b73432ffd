//! A target without the fuzzer: run on the files that are named.

use std::{env, fs, process::ExitCode};

/// Runs `check` on every file of the command line. Ends badly if one cannot be
/// read; a property that does not hold is a panic.
#[must_use]
pub fn main(check: fn(&[u8])) -> ExitCode {
    let files: Vec<_> = env::args_os().skip(1).collect();
    if files.is_empty() {
        eprintln!("name the files to run this target on; to fuzz: cargo xtask fuzz");
        return ExitCode::FAILURE;
    }
    for path in files {
        match fs::read(&path) {
            Ok(bytes) => check(&bytes),
            Err(error) => {
                eprintln!("cannot read {}: {error}", path.display());
                return ExitCode::FAILURE;
            }
        }
        println!("{}: every property holds", path.display());
    }
    ExitCode::SUCCESS
}
