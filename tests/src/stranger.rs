//! Programs that are not the agent's, for its hooks.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result};

use crate::cgroup::Cgroup;

// Numbers of linux/bpf.h.
const PROG_LOAD: libc::c_long = 5;
const PROG_ATTACH: libc::c_long = 8;
const PROG_DETACH: libc::c_long = 9;
const ALLOW_MULTI: u32 = 2;

/// Which hook it is on: program type and attach type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    Egress,
    Connect4,
}

impl At {
    const fn numbers(self) -> (u32, u32) {
        match self {
            Self::Egress => (8, 1),
            Self::Connect4 => (18, 10),
        }
    }
}

/// What it does with what it is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Does {
    /// Lets it pass: `r0 = 1; exit`.
    Permit,
    /// Lets it pass although a program before it did not:
    /// `r1 = 0; call bpf_set_retval; r0 = 1; exit`.
    Overrule,
}

impl Does {
    fn instructions(self) -> Vec<u64> {
        let overrule = [0x1b7, 0x0000_00bb_0000_0085];
        match self {
            Self::Permit => constant(1).to_vec(),
            Self::Overrule => [&overrule[..], &constant(1)].concat(),
        }
    }
}

const SCHED_CLS: u32 = 3;

/// `r0 = verdict; exit`
fn constant(verdict: i32) -> [u64; 2] {
    [u64::from(verdict.cast_unsigned()) << 32 | 0xb7, 0x95]
}

#[repr(C)]
#[derive(Default)]
struct Load {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_type: u32,
}

#[repr(C)]
struct Attach {
    target: i32,
    program: i32,
    attach_type: u32,
    flags: u32,
}

/// Attached to a cgroup until dropped.
#[derive(Debug)]
pub struct Stranger {
    at: At,
    program: OwnedFd,
    cgroup: File,
}

impl Stranger {
    /// On the packets that go out of a cgroup. `name` has at most 15 bytes.
    pub fn attach(name: &str, cgroup: &Cgroup) -> Result<Self> {
        Self::attach_at(name, cgroup, At::Egress, Does::Permit)
    }

    /// On any of the hooks. `name` has at most 15 bytes.
    pub fn attach_at(name: &str, cgroup: &Cgroup, at: At, does: Does) -> Result<Self> {
        let program =
            load(at.numbers(), &does.instructions(), name).context("cannot load the stranger")?;
        let cgroup = File::open(cgroup.path())?;
        let stranger = Self {
            at,
            program,
            cgroup,
        };
        bpf(PROG_ATTACH, &mut stranger.place()).context("cannot attach the stranger")?;
        Ok(stranger)
    }

    fn place(&self) -> Attach {
        Attach {
            target: self.cgroup.as_raw_fd(),
            program: self.program.as_raw_fd(),
            attach_type: self.at.numbers().1,
            flags: ALLOW_MULTI,
        }
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let mut place = Attach {
            flags: 0,
            ..self.place()
        };
        if let Err(error) = bpf(PROG_DETACH, &mut place) {
            eprintln!("the stranger stays attached: {error}");
        }
    }
}

/// A program for interfaces that says the same of every packet: 2 drops it, -1
/// leaves it to the next.
pub fn classifier(verdict: i32, name: &str) -> Result<OwnedFd> {
    let program = load((SCHED_CLS, 0), &constant(verdict), name);
    program.context("cannot load a classifier")
}

/// `kind`: program type and attach type.
fn load(kind: (u32, u32), instructions: &[u64], name: &str) -> io::Result<OwnedFd> {
    let license = c"GPL";
    let (program_type, attach_type) = kind;
    let mut attributes = Load {
        program_type,
        instruction_count: u32::try_from(instructions.len()).map_err(io::Error::other)?,
        instructions: instructions.as_ptr().addr() as u64,
        license: license.as_ptr().addr() as u64,
        attach_type,
        ..Load::default()
    };
    // The last byte stays 0.
    for (to, from) in attributes.name.iter_mut().take(15).zip(name.bytes()) {
        *to = from;
    }
    let descriptor = bpf(PROG_LOAD, &mut attributes)?;
    // SAFETY: the kernel just gave us this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<i32> {
    // SAFETY: `attributes` is a plain structure of the size that is given, and the
    // addresses in it are of what outlives the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes),
            size_of::<T>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(result).map_err(io::Error::other)
}
