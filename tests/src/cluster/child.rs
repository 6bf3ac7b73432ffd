//! Servers that do not outlive this process, however it ends.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpid, getppid};

/// How often an end is looked for.
const LOOK: Duration = Duration::from_millis(20);

type Job = (Command, Sender<io::Result<Child>>);

/// Starts a process that the kernel kills when this one ends.
///
/// The kernel watches the *thread* that started it, and those of tests end early:
/// so one thread, which never ends, starts them all.
pub fn start(mut command: Command) -> Result<Child> {
    static STARTER: OnceLock<Mutex<Sender<Job>>> = OnceLock::new();
    let parent = getpid();
    // SAFETY: the closure runs between fork and exec; it makes two system calls
    // and does not allocate.
    unsafe { command.pre_exec(move || die_with(parent)) };
    let program = command.get_program().display().to_string();
    let (answer, answered) = channel();
    let starter = STARTER.get_or_init(|| Mutex::new(starter()));
    let sent = {
        let starter = starter.lock().unwrap_or_else(PoisonError::into_inner);
        starter.send((command, answer))
    };
    sent.context("the thread that starts servers has ended")?;
    let child = answered
        .recv()
        .context("no answer from the thread that starts servers")?;
    child.with_context(|| format!("cannot start {program}"))
}

fn starter() -> Sender<Job> {
    let (jobs, received) = channel::<Job>();
    thread::spawn(move || {
        for (mut command, answer) in received {
            // Who asked may have given up; then the child is dropped, and dies
            // with us.
            let _ = answer.send(command.spawn());
        }
    });
    jobs
}

fn die_with(parent: Pid) -> io::Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    // It may have ended before.
    if getppid() != parent {
        return Err(io::Error::other("the parent has ended"));
    }
    Ok(())
}

/// Asks a process to end, gives it the time, and then ends it.
pub fn stop(child: &mut Child, limit: Duration) -> Result<()> {
    let pid = i32::try_from(child.id()).context("a process ID fits")?;
    if child.try_wait()?.is_none() {
        // It may end on its own at any moment; it is ours until it is waited for.
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    }
    let deadline = Instant::now() + limit;
    while Instant::now() < deadline {
        if child.try_wait()?.is_some() {
            return Ok(());
        }
        thread::sleep(LOOK);
    }
    end(child)
}

/// Ends a process at once.
pub fn end(child: &mut Child) -> Result<()> {
    // Fails only where it has ended already.
    let _ = child.kill();
    child.wait()?;
    Ok(())
}
