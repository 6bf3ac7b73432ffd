//! What a process says, line by line, while somebody else waits for it.

use std::io::{BufRead, BufReader};
use std::process::Child;
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use anyhow::{Context, Result};

/// The lines of its piped output, without white space at their ends. The
/// channel ends with the output.
///
/// # Errors
/// If the output is no pipe, or was taken already.
pub fn lines(child: &mut Child) -> Result<Receiver<String>> {
    let output = child.stdout.take().context("a process has an output")?;
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let mut reader = BufReader::new(output);
        let mut line = Vec::new();
        // A line that is not UTF-8 is none of ours, and no reason to stop.
        while reader
            .read_until(b'\n', &mut line)
            .is_ok_and(|read| read > 0)
        {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            if sender.send(text).is_err() {
                break;
            }
            line.clear();
        }
    });
    Ok(receiver)
}
