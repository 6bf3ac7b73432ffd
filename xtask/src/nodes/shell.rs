//! A root shell in a node, over a port of its machine: for what a person would do
//! on the node itself.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// Precedes the exit code, after everything a command said.
const END: &str = "==end-of-command==";

/// Where the port is outside.
#[derive(Clone, Debug)]
pub struct Shell(PathBuf);

impl Shell {
    pub fn at(path: &Path) -> Self {
        Self(path.to_owned())
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Runs a command to its end; gives what it said if it succeeded.
    pub fn run(&self, command: &str, limit: Duration) -> Result<String> {
        let (code, said) = self.attempt(command, limit)?;
        ensure!(code == 0, "`{command}` ended with {code}: {said}");
        Ok(said)
    }

    /// Its exit code, and what it said.
    pub fn attempt(&self, command: &str, limit: Duration) -> Result<(i32, String)> {
        let mut stream =
            UnixStream::connect(&self.0).with_context(|| self.0.display().to_string())?;
        // One before may have been given up, and still answer: ours has a number.
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let (begin, end) = (format!("==begin-{number}=="), format!("{END}{number} "));
        let line = format!(
            "echo '{begin}'; ( {command}\n ) </dev/null 2>&1; code=$?; echo; echo \"{END}{number} $code\"\n"
        );
        stream.write_all(line.as_bytes())?;
        let said = read_until(&mut stream, &end, limit)
            .with_context(|| format!("`{command}` in the node"))?;
        let (before, code) = said.rsplit_once(&end).context("no end")?;
        let (_, output) = before.rsplit_once(&begin).unwrap_or(("", before));
        Ok((code.trim().parse()?, output.trim().to_owned()))
    }
}

fn read_until(stream: &mut UnixStream, end: &str, limit: Duration) -> Result<String> {
    let deadline = Instant::now() + limit;
    let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let text = String::from_utf8_lossy(&bytes);
        if text
            .rsplit_once(end)
            .is_some_and(|(_, code)| code.ends_with('\n'))
        {
            return Ok(text.into_owned());
        }
        if left.is_zero() {
            bail!("no end after {} s: {text}", limit.as_secs());
        }
        stream.set_read_timeout(Some(left.min(Duration::from_secs(1))))?;
        match stream.read(&mut buffer) {
            Ok(0) => bail!("the machine has ended"),
            Ok(length) => bytes.extend_from_slice(&buffer[..length]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::process::{Command, Stdio};

    use super::*;

    /// A shell at a socket, as a node has one.
    fn shell() -> (tempfile::TempDir, Shell) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("shell");
        let listener = UnixListener::bind(&path).unwrap();
        std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let end = || Stdio::from(std::os::fd::OwnedFd::from(stream.try_clone().unwrap()));
            let mut sh = Command::new("sh");
            drop(sh.stdin(end()).stdout(end()).stderr(end()).status());
        });
        (directory, Shell::at(&path))
    }

    #[test]
    fn a_command_gives_what_it_said_and_how_it_ended() {
        let (_directory, shell) = shell();
        let said = shell.attempt("echo one; echo two >&2; exit 3", Duration::from_secs(20));
        assert_eq!(said.unwrap(), (3, "one\ntwo".to_owned()));
    }

    #[test]
    fn a_command_without_an_end_is_given_up() {
        let (_directory, shell) = shell();
        let error = shell.run("sleep 5", Duration::from_secs(1)).unwrap_err();
        assert!(
            format!("{error:#}").contains("no end after 1 s"),
            "{error:#}"
        );
    }
}
