//! A machine of which nothing exists but its kernel and our files.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::termios::{self, SetArg};
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::Pid;

use super::Message;

/// What is mounted: type, place.
const MOUNTS: [(&str, &str); 8] = [
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("tmpfs", "/run"),
    ("tmpfs", "/tmp"),
    ("cgroup2", "/sys/fs/cgroup"),
    ("bpf", "/sys/fs/bpf"),
    ("securityfs", "/sys/kernel/security"),
];

/// The second serial port; the first has the kernel's messages.
const PORT: &str = "/dev/ttyS1";

/// Where programs are.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// Makes a usual machine of it.
pub fn set_up() -> Result<()> {
    for (kind, place) in MOUNTS {
        fs::create_dir_all(place).with_context(|| place.to_owned())?;
        let none: Option<&str> = None;
        mount(Some(kind), place, Some(kind), MsFlags::empty(), none)
            .with_context(|| format!("cannot mount {place}"))?;
    }
    fs::create_dir_all("/run/netns").context("/run/netns")?;
    raise_open_files()?;
    let up = command("ip").args(["link", "set", "lo", "up"]).status();
    ensure!(up.context("ip")?.success(), "loopback does not come up");
    Ok(())
}

/// As many files as a session of a distribution may have open.
fn raise_open_files() -> Result<()> {
    let limit = libc::rlimit {
        rlim_cur: 1 << 16,
        rlim_max: 1 << 16,
    };
    // SAFETY: the kernel reads one structure, which outlives the call.
    let done = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    Errno::result(done).context("the limit of open files")?;
    Ok(())
}

/// A command that finds its programs; the kernel gives the first process no PATH.
pub fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", PATH).current_dir("/tmp");
    command
}

/// Says messages to the outside.
#[derive(Debug)]
pub struct Outside(Mutex<File>);

impl Outside {
    pub fn open() -> Result<Self> {
        let port = File::options()
            .read(true)
            .write(true)
            .open(PORT)
            .context(PORT)?;
        // What is written must arrive as it is.
        let mut settings = termios::tcgetattr(port.as_fd()).context(PORT)?;
        termios::cfmakeraw(&mut settings);
        termios::tcsetattr(port.as_fd(), SetArg::TCSANOW, &settings).context(PORT)?;
        Ok(Self(Mutex::new(port)))
    }

    /// Returns when it is out.
    pub fn say(&self, message: &Message) -> Result<()> {
        let line = serde_json::to_string(message)? + "\n";
        let port = self.0.lock();
        let mut port = port.unwrap_or_else(std::sync::PoisonError::into_inner);
        port.write_all(line.as_bytes()).context(PORT)?;
        termios::tcdrain(port.as_fd()).context(PORT)
    }
}

/// Waits for a child's end. As the first process we also inherit every orphan.
pub fn reap_until(child: u32) -> Result<WaitStatus> {
    let child = Pid::from_raw(i32::try_from(child)?);
    loop {
        match wait() {
            Ok(status) if status.pid() == Some(child) => return Ok(status),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("waiting for the tests"),
        }
    }
}

/// Ends the machine: without `-no-reboot` it would begin anew.
pub fn end() -> io::Error {
    // SAFETY: no addresses are passed.
    unsafe { libc::reboot(libc::RB_AUTOBOOT) };
    io::Error::last_os_error()
}

/// The kernel's release, as uname(2) has it.
pub fn release() -> Result<String> {
    let path = Path::new("/proc/sys/kernel/osrelease");
    Ok(fs::read_to_string(path)
        .context("osrelease")?
        .trim()
        .to_owned())
}
