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

#[cfg(test)]
mod tests {
    use std::env;
    use std::fs;
    use std::io::{BufRead, BufReader};
    use std::process::Stdio;

    use super::*;

    /// Set: we are the process that will be killed.
    const VICTIM: &str = "ZT_TEST_VICTIM";

    fn sleeper() -> Child {
        let mut command = Command::new("sleep");
        command.arg("60");
        start(command).unwrap()
    }

    /// One that has ended may wait for somebody who asks how.
    fn runs(pid: u32) -> bool {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let state = stat.rsplit(") ").next().unwrap_or_default();
        !state.is_empty() && !state.starts_with(['Z', 'X'])
    }

    #[test]
    fn a_server_outlives_the_thread_that_asked_for_it() {
        let mut child = thread::spawn(sleeper).join().unwrap();
        thread::sleep(Duration::from_millis(200));
        assert!(child.try_wait().unwrap().is_none());
        stop(&mut child, Duration::from_secs(5)).unwrap();
        assert!(!runs(child.id()));
    }

    #[test]
    fn a_server_ends_with_a_process_that_is_killed() {
        if env::var_os(VICTIM).is_some() {
            println!("server {}", sleeper().id());
            thread::sleep(Duration::from_secs(60));
            return;
        }
        let mut victim = Command::new(env::current_exe().unwrap())
            .args([
                "--exact",
                "cluster::child::tests::a_server_ends_with_a_process_that_is_killed",
                "--nocapture",
            ])
            .env(VICTIM, "1")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(victim.stdout.take().unwrap()).lines();
        let server = lines
            .map_while(Result::ok)
            .find_map(|line| line.rsplit_once("server ")?.1.parse().ok());
        let server: u32 = server.expect("the server's process ID is told");
        assert!(runs(server));
        end(&mut victim).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while runs(server) {
            assert!(Instant::now() < deadline, "{server} still runs");
            thread::sleep(LOOK);
        }
    }
}
