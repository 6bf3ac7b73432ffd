//! Drives a real `zt-agent` from the outside: its command line, its HTTP port,
//! and signals.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::cgroup::Cgroup;
use crate::netns::Netns;
use crate::patience;
use crate::process::{self, Running};

/// How long a start, an orderly end, or a command may take.
const PATIENCE: Duration = Duration::from_secs(15);

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
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

/// An agent with its configuration, running or not. Killed when dropped.
#[derive(Debug)]
pub struct Agent {
    running: Option<Running>,
    program: PathBuf,
    directory: PathBuf,
    listen: SocketAddr,
    cgroup: Cgroup,
    netns: Option<Arc<Netns>>,
}

impl Agent {
    /// It does not run yet. `directory` has, or will have, its `config.yaml`, in
    /// which `listen` is the address for health and metrics. It is a member of
    /// `cgroup`, which must lie outside what it manages.
    pub fn new(
        program: PathBuf,
        directory: PathBuf,
        listen: SocketAddr,
        cgroup: Cgroup,
    ) -> Result<Self> {
        ensure!(
            program.is_file(),
            "there is no {}: build it with cargo xtask build",
            program.display()
        );
        Ok(Self {
            running: None,
            program,
            directory,
            listen,
            cgroup,
            netns: None,
        })
    }

    /// The namespace of the node that it thinks it is on, with everything that
    /// is asked of it; otherwise the caller's.
    #[must_use]
    pub fn inside(mut self, netns: Arc<Netns>) -> Self {
        self.netns = Some(netns);
        self
    }

    /// Makes it a member of another cgroup from the next start on: also of one that
    /// it manages.
    pub fn set_cgroup(&mut self, cgroup: Cgroup) {
        self.cgroup = cgroup;
    }

    pub fn config(&self) -> PathBuf {
        self.directory.join("config.yaml")
    }

    /// Where it answers about its health and metrics.
    pub fn listen(&self) -> SocketAddr {
        self.listen
    }

    /// Runs another program from the next start on.
    pub fn set_program(&mut self, program: PathBuf) {
        self.program = program;
    }

    pub fn program(&self) -> &Path {
        &self.program
    }

    /// What it wrote to standard error, in all of its runs.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    pub fn pid(&self) -> Option<u32> {
        self.running.as_ref().map(Running::pid)
    }

    fn log_file(&self) -> PathBuf {
        self.directory.join("agent.log")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        // After `--` everything is another program's.
        let own = arguments.iter().position(|word| *word == "--");
        let (own, others) = arguments.split_at(own.unwrap_or(arguments.len()));
        command
            .args(own)
            .arg("--config")
            .arg(self.config())
            .args(others)
            .env_remove("ZT_CONFIG")
            .env_remove("ZT_POLICY_PATH");
        command
    }

    /// Starts it and waits until it is ready. Gives how long that took.
    pub fn start(&mut self) -> Result<Duration> {
        self.start_while(|| Ok(()))
    }

    /// Like [`Self::start`]; an error of `go_on`, asked again and again, ends the
    /// waiting.
    pub fn start_while(&mut self, go_on: impl Fn() -> Result<()>) -> Result<Duration> {
        let started = Instant::now();
        self.launch()?;
        loop {
            go_on()?;
            if self.readiness().is_ok_and(|(code, _)| code == 200) {
                return Ok(started.elapsed());
            }
            let running = self.running.as_mut().context("it does not run")?;
            if let Some(status) = running.ended()? {
                bail!("the agent ended ({status}); {}", self.last_words());
            }
            if started.elapsed() > patience::scaled(PATIENCE) {
                bail!("the agent does not get ready; {}", self.last_words());
            }
            sleep(Duration::from_millis(10));
        }
    }

    /// Starts it and waits for nothing.
    pub fn launch(&mut self) -> Result<()> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_file())
            .context("cannot open the agent's log")?;
        let mut command = self.command(&["run"]);
        command.stderr(log);
        self.running = Some(process::start(
            &mut command,
            &self.cgroup,
            self.netns.as_deref(),
        )?);
        Ok(())
    }

    /// Asks it to end (SIGTERM), and waits.
    pub fn stop(&mut self) -> Result<()> {
        let mut running = self.running.take().context("the agent does not run")?;
        let pid = Pid::from_raw(i32::try_from(running.pid())?);
        kill(pid, Signal::SIGTERM).context("cannot send SIGTERM to the agent")?;
        let (status, _) = running.finish(PATIENCE)?;
        ensure!(
            status.success(),
            "the agent ended badly ({status}); {}",
            self.last_words()
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
        self.ask_in(arguments, self.netns.as_deref())
    }

    /// The same inside a network namespace.
    pub fn ask_in(&self, arguments: &[&str], netns: Option<&Netns>) -> Result<Answer> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let errors = self.directory.join(format!("errors-{number}.log"));
        let mut command = self.command(arguments);
        command.stderr(File::create(&errors).context("cannot collect errors")?);
        let (status, lines) = process::start(&mut command, &self.cgroup, netns)?
            .finish(PATIENCE)
            .with_context(|| format!("zt-agent {}", arguments.join(" ")))?;
        let answer = Answer {
            code: status.code().unwrap_or(-1),
            output: lines.join("\n"),
            errors: fs::read_to_string(&errors)?,
        };
        fs::remove_file(errors)?;
        Ok(answer)
    }

    /// Starts one of its commands that runs on, such as `observe`.
    pub fn attend(&self, arguments: &[&str], netns: Option<&Netns>) -> Result<Running> {
        process::start(&mut self.command(arguments), &self.cgroup, netns)
    }

    /// The status code and the body of `/readyz`: the reasons, a line each.
    pub fn readiness(&self) -> Result<(u16, String)> {
        self.get("/readyz")
    }

    /// The body of `/metrics`.
    pub fn metrics(&self) -> Result<String> {
        let (code, body) = self.get("/metrics").context("/metrics")?;
        ensure!(code == 200, "/metrics answers {code}");
        Ok(body)
    }

    fn get(&self, path: &str) -> Result<(u16, String)> {
        match &self.netns {
            Some(netns) => netns.enter(|| get(self.listen, path)),
            None => get(self.listen, path),
        }
    }

    /// The end of the log, for an error message.
    fn last_words(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let start = lines.len().saturating_sub(20);
        format!("its last words:\n{}", lines[start..].join("\n"))
    }
}

/// The agent that was built with the program that asks.
pub fn built() -> Result<PathBuf> {
    process::built("zt-agent")?.context("zt-agent is not built: cargo xtask build")
}

/// A port of loopback that nobody has, and that nobody gets by chance before it is
/// used: below those that the kernel gives to whoever asks for any, and never the same
/// for two tests of a process.
pub fn free_port() -> Result<SocketAddr> {
    const FIRST: u32 = 10_000;
    const COUNT: u32 = 20_000;
    static ASKED: AtomicU32 = AtomicU32::new(0);
    // Processes that run at the same time begin at different ones.
    let start = std::process::id().wrapping_mul(97);
    for _ in 0..COUNT {
        let next = start.wrapping_add(ASKED.fetch_add(1, Ordering::Relaxed));
        let port = u16::try_from(FIRST + next % COUNT)?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if TcpListener::bind(address).is_ok() {
            return Ok(address);
        }
    }
    bail!("no port of {FIRST} to {} is free", FIRST + COUNT)
}

/// The sum of the samples of a metric whose labels contain all of `labels`, such
/// as `decision="deny"`. `None` if there is no such sample.
pub fn sample(metrics: &str, name: &str, labels: &[&str]) -> Option<f64> {
    let values: Vec<f64> = (metrics.lines())
        .filter(|line| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with(['{', ' ']))
        })
        .filter(|line| labels.iter().all(|label| line.contains(label)))
        .filter_map(|line| line.rsplit(' ').next()?.parse().ok())
        .collect();
    (!values.is_empty()).then(|| values.iter().sum())
}

/// The status code and the body. Version 1.0, so that the end of the connection
/// is that of the body.
fn get(listen: SocketAddr, path: &str) -> Result<(u16, String)> {
    let limit = patience::scaled(Duration::from_secs(2));
    let mut stream = TcpStream::connect_timeout(&listen, limit)?;
    stream.set_read_timeout(Some(limit))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {listen}\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").context("no HTTP answer")?;
    let code = head.split(' ').nth(1).context("no status code")?;
    Ok((code.parse()?, body.to_owned()))
}

/// The whole lines of an audit file.
pub fn records(trail: &Path) -> Result<Vec<Value>> {
    let text = fs::read_to_string(trail).with_context(|| trail.display().to_string())?;
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let read = |line| serde_json::from_str(line).context("a line of the trail is no JSON");
    whole.lines().map(read).collect()
}

/// Saves a file as editors do: all of it or nothing.
pub fn save(path: &Path, text: &str) -> Result<()> {
    let directory = path.parent().context("a file lies in a directory")?;
    // Not beside it: there it would be taken for a policy, too.
    let new = directory.with_extension("new");
    fs::write(&new, text)?;
    fs::rename(&new, path).with_context(|| format!("cannot save {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_of_one_metric_are_summed_and_those_of_others_are_not() {
        let text =
            "# HELP zt_x X.\nzt_x{a=\"1\",b=\"2\"} 3\nzt_x{a=\"1\",b=\"3\"} 4\nzt_xy 9\nzt_y 1\n";
        assert_eq!(sample(text, "zt_x", &[]), Some(7.0));
        assert_eq!(sample(text, "zt_x", &["b=\"3\""]), Some(4.0));
        assert_eq!(sample(text, "zt_y", &[]), Some(1.0));
        assert_eq!(sample(text, "zt_z", &[]), None);
    }
}
