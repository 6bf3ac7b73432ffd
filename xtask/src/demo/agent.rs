//! Drives `zt-agent` from the outside: its command line and its HTTP port.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use zt_tests::cgroup::Cgroup;
use zt_tests::process::{self, Running};

use super::files::Files;
use super::interrupt;
use super::stage::Stage;

/// How long a start, and an orderly end, may take.
const PATIENCE: Duration = Duration::from_secs(15);

/// How a command ended.
pub struct Answer {
    /// The exit code; -1 if a signal ended it.
    pub code: i32,
    pub output: String,
    pub errors: String,
}

impl Answer {
    pub fn is_success(&self) -> bool {
        self.code == 0
    }

    /// In one line, for a claim that did not hold.
    pub fn summary(&self) -> String {
        let text = if self.errors.trim().is_empty() {
            &self.output
        } else {
            &self.errors
        };
        format!("exit code {}: {}", self.code, text.trim())
    }
}

pub struct Agent {
    running: Option<Running>,
    program: PathBuf,
    pub files: Files,
    listen: SocketAddr,
    /// Beside the managed tree, so that the sandbox kills what runs in it.
    cgroup: Cgroup,
}

impl Agent {
    /// Writes its files; it does not run yet.
    pub fn prepare(program: PathBuf, stage: &Stage) -> Result<Self> {
        ensure!(program.is_file(), "there is no {}", program.display());
        let listen = free_port()?;
        Ok(Self {
            running: None,
            program,
            files: Files::write(stage, listen)?,
            listen,
            cgroup: stage.sandbox().cgroup().child("agent")?,
        })
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(arguments)
            .arg("--config")
            .arg(self.files.config())
            .env_remove("ZT_CONFIG")
            .env_remove("ZT_POLICY_PATH");
        command
    }

    /// Starts it and waits until it is ready. Gives how long that took.
    pub fn start(&mut self) -> Result<Duration> {
        let started = Instant::now();
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.files.log())
            .context("cannot open the agent's log")?;
        let mut command = self.command(&["run"]);
        command.stderr(log);
        let running = process::start(&mut command, &self.cgroup, None)?;
        let running = self.running.insert(running);
        while !is_ready(self.listen) {
            interrupt::check()?;
            if let Some(status) = running.ended()? {
                bail!("the agent ended ({status}); {}", last_lines(&self.files));
            }
            if started.elapsed() > PATIENCE {
                bail!("the agent does not get ready; {}", last_lines(&self.files));
            }
            sleep(Duration::from_millis(10));
        }
        Ok(started.elapsed())
    }

    /// Asks it to end (SIGTERM), and waits.
    pub fn stop(&mut self) -> Result<()> {
        let mut running = self.running.take().context("the agent does not run")?;
        signal(&running, Signal::SIGTERM)?;
        let (status, _) = running.finish(PATIENCE)?;
        ensure!(
            status.success(),
            "the agent ended badly ({status}); {}",
            last_lines(&self.files)
        );
        Ok(())
    }

    /// Ends it with SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        // That is what dropping a process does.
        drop(self.running.take().context("the agent does not run")?);
        Ok(())
    }

    /// Runs one of its commands to the end.
    pub fn ask(&self, arguments: &[&str]) -> Result<Answer> {
        let errors = self.files.errors();
        let mut command = self.command(arguments);
        command.stderr(File::create(&errors).context("cannot collect errors")?);
        let (status, lines) = process::start(&mut command, &self.cgroup, None)?
            .finish(PATIENCE)
            .with_context(|| format!("zt-agent {}", arguments.join(" ")))?;
        Ok(Answer {
            code: status.code().unwrap_or(-1),
            output: lines.join("\n"),
            errors: fs::read_to_string(errors)?,
        })
    }

    /// Attaches `zt-agent observe`, whose lines are collected.
    pub fn observe(&self) -> Result<Running> {
        let mut command = self.command(&["observe", "--output", "json"]);
        process::start(&mut command, &self.cgroup, None)
    }

    /// The body of `/metrics`.
    pub fn metrics(&self) -> Result<String> {
        let (code, body) = get(self.listen, "/metrics").context("/metrics")?;
        ensure!(code == 200, "/metrics answers {code}");
        Ok(body)
    }
}

fn signal(running: &Running, signal: Signal) -> Result<()> {
    let pid = Pid::from_raw(i32::try_from(running.pid())?);
    kill(pid, signal).with_context(|| format!("cannot send {signal} to the agent"))
}

/// A port that was free a moment ago.
fn free_port() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    Ok(listener.local_addr()?)
}

fn is_ready(listen: SocketAddr) -> bool {
    get(listen, "/readyz").is_ok_and(|(code, _)| code == 200)
}

/// The status code and the body. Version 1.0, so that the end of the connection
/// is that of the body.
fn get(listen: SocketAddr, path: &str) -> Result<(u16, String)> {
    let limit = Duration::from_secs(2);
    let mut stream = TcpStream::connect_timeout(&listen, limit)?;
    stream.set_read_timeout(Some(limit))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {listen}\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").context("no HTTP answer")?;
    let code = head.split(' ').nth(1).context("no status code")?;
    Ok((code.parse()?, body.to_owned()))
}

/// The end of the log, for an error message.
fn last_lines(files: &Files) -> String {
    let log = fs::read_to_string(files.log()).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    let start = lines.len().saturating_sub(20);
    format!("its last words:\n{}", lines[start..].join("\n"))
}
