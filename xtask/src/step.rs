//! One step of a task: a title, visible progress, the time it took.
//!
//! On a terminal a spinner shows the command's last line; elsewhere plain lines
//! say what started, that it is still alive, and how it ended.

use std::env;
use std::io::{self, BufRead, BufReader, IsTerminal, PipeReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// How often a silent step says that it is alive where there is no terminal.
const SIGN_OF_LIFE: Duration = Duration::from_secs(20);

/// A command's end: whether it succeeded, and all it wrote.
pub struct Finished {
    pub success: bool,
    /// Standard output and error as they came.
    pub output: String,
}

/// How steps are shown; several may be under way.
#[derive(Clone)]
pub struct Steps {
    verbose: bool,
    terminal: bool,
    /// The spinners, or none.
    bars: MultiProgress,
}

impl Steps {
    pub fn new(verbose: bool) -> Self {
        let ci = env::var_os("CI").is_some_and(|value| !value.is_empty() && value != "false");
        Self {
            verbose,
            terminal: io::stderr().is_terminal() && !ci,
            bars: MultiProgress::new(),
        }
    }

    /// Runs a command to its end and gives its output; an error if it fails.
    pub fn run(&self, title: &str, command: &mut Command) -> Result<String> {
        let finished = self.attempt(title, command)?;
        if !finished.success {
            bail!("{title}: failed; its output is above");
        }
        Ok(finished.output)
    }

    /// Runs a command to its end, whatever that is.
    pub fn attempt(&self, title: &str, command: &mut Command) -> Result<Finished> {
        let progress = Progress::start(title, self);
        let finished = finish(command, &progress);
        let success = finished.as_ref().is_ok_and(|finished| finished.success);
        progress.end(success);
        let finished = finished.with_context(|| title.to_owned())?;
        if self.verbose || !finished.success {
            self.bars.suspend(|| eprint!("{}", finished.output));
        }
        Ok(finished)
    }

    /// Says something about the step that has just ended.
    pub fn note(&self, text: &str) {
        self.bars.suspend(|| eprintln!("     {text}"));
    }

    /// Runs a piece of this program as a step.
    pub fn check<T>(&self, title: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.watch(title, |_| work())
    }

    /// The same for a piece that takes long and says what happens.
    pub fn watch<T>(&self, title: &str, work: impl FnOnce(&Watch<'_>) -> Result<T>) -> Result<T> {
        let progress = Progress::start(title, self);
        let result = work(&Watch(&progress));
        progress.end(result.is_ok());
        result.with_context(|| title.to_owned())
    }
}

/// What a long piece of work says while it runs; any thread may.
pub struct Watch<'a>(&'a Progress);

impl Watch<'_> {
    pub fn say(&self, text: &str) {
        self.0.say(text);
    }
}

fn finish(command: &mut Command, progress: &Progress) -> Result<Finished> {
    let (mut child, reader) = spawn(command)?;
    let output = collect(reader, progress);
    // Reaped before a read error is looked at: no zombie on any path.
    let status = child.wait().context("waiting for the command")?;
    Ok(Finished {
        success: status.success(),
        output: output?,
    })
}

/// Starts the command with both its outputs in one pipe, so that an error stays
/// beside the line that it belongs to.
fn spawn(command: &mut Command) -> Result<(Child, PipeReader)> {
    let (reader, writer) = io::pipe()?;
    command
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer);
    let child = command
        .spawn()
        .with_context(|| format!("cannot start {}", command.get_program().display()))?;
    // The command keeps our ends of the pipe; while they are open no read ends.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    Ok((child, reader))
}

fn collect(reader: PipeReader, progress: &Progress) -> Result<String> {
    let mut reader = BufReader::new(reader);
    let mut output = String::new();
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        let text = String::from_utf8_lossy(&line);
        progress.line(text.trim());
        output.push_str(&text);
        line.clear();
    }
    Ok(output)
}

struct Progress {
    title: String,
    started: Instant,
    spinner: Option<ProgressBar>,
    bars: MultiProgress,
    /// Dropped at the end: that stops the thread that gives signs of life.
    _alive: Option<std::sync::mpsc::Sender<()>>,
}

impl Progress {
    fn start(title: &str, steps: &Steps) -> Self {
        let spinner = steps.terminal.then(|| spinner(title, &steps.bars));
        let alive = (!steps.terminal).then(|| signs_of_life(title.to_owned()));
        if !steps.terminal {
            eprintln!("==> {title}");
        }
        Self {
            title: title.to_owned(),
            started: Instant::now(),
            spinner,
            bars: steps.bars.clone(),
            _alive: alive,
        }
    }

    fn line(&self, text: &str) {
        if let Some(spinner) = &self.spinner
            && !text.is_empty()
        {
            spinner.set_message(text.to_owned());
        }
    }

    fn say(&self, text: &str) {
        self.bars.suspend(|| eprintln!("     {text}"));
    }

    fn end(self, success: bool) {
        if let Some(spinner) = &self.spinner {
            spinner.finish_and_clear();
        }
        let sign = if success { "ok  " } else { "FAIL" };
        let seconds = self.started.elapsed().as_secs_f64();
        let line = format!("{sign} {} ({seconds:.1} s)", self.title);
        self.bars.suspend(|| eprintln!("{line}"));
    }
}

fn spinner(title: &str, bars: &MultiProgress) -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {prefix} [{elapsed}] {wide_msg:.dim}")
        .unwrap_or_else(|_| ProgressStyle::default_spinner());
    let spinner = ProgressBar::new_spinner()
        .with_style(style)
        .with_prefix(title.to_owned());
    let spinner = bars.add(spinner);
    spinner.enable_steady_tick(Duration::from_millis(120));
    spinner
}

fn signs_of_life(title: String) -> std::sync::mpsc::Sender<()> {
    let (sender, receiver) = std::sync::mpsc::channel::<()>();
    let started = Instant::now();
    std::thread::spawn(move || {
        while receiver.recv_timeout(SIGN_OF_LIFE) == Err(std::sync::mpsc::RecvTimeoutError::Timeout)
        {
            eprintln!("    {title}: {} s so far", started.elapsed().as_secs());
        }
    });
    sender
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quiet() -> Steps {
        Steps {
            verbose: false,
            terminal: false,
            bars: MultiProgress::new(),
        }
    }

    #[test]
    fn both_outputs_are_collected_in_order() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo one; echo two >&2; echo three"]);
        let output = quiet().run("echo", &mut command).unwrap();
        assert_eq!(output, "one\ntwo\nthree\n");
    }

    #[test]
    fn a_command_that_fails_is_an_error() {
        assert!(quiet().run("false", &mut Command::new("false")).is_err());
    }

    #[test]
    fn a_command_that_does_not_exist_is_an_error() {
        let mut command = Command::new("/nonexistent/command");
        assert!(quiet().attempt("nothing", &mut command).is_err());
    }
}
