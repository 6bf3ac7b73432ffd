//! A program that is not the agent's, on one of its hooks.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result};

use crate::cgroup::Cgroup;

// Numbers of linux/bpf.h.
const PROG_LOAD: libc::c_long = 5;
const PROG_ATTACH: libc::c_long = 8;
const PROG_DETACH: libc::c_long = 9;
const CGROUP_SKB: u32 = 8;
const CGROUP_INET_EGRESS: u32 = 1;
const ALLOW_MULTI: u32 = 2;

/// `r0 = 1; exit`: lets pass what it is asked about.
const INSTRUCTIONS: [u64; 2] = [0x0000_0001_0000_00b7, 0x95];

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

/// Attached to a cgroup's packets on their way out, until dropped.
#[derive(Debug)]
pub struct Stranger {
    program: OwnedFd,
    cgroup: File,
}

impl Stranger {
    /// `name` has at most 15 bytes.
    pub fn attach(name: &str, cgroup: &Cgroup) -> Result<Self> {
        let program = load(name).context("cannot load the stranger")?;
        let cgroup = File::open(cgroup.path())?;
        let stranger = Self { program, cgroup };
        bpf(PROG_ATTACH, &mut stranger.place()).context("cannot attach the stranger")?;
        Ok(stranger)
    }

    fn place(&self) -> Attach {
        Attach {
            target: self.cgroup.as_raw_fd(),
            program: self.program.as_raw_fd(),
            attach_type: CGROUP_INET_EGRESS,
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

/// Loads a program that lets pass every packet on its way out, and attaches it
/// to nothing. `name` has at most 15 bytes.
pub fn load(name: &str) -> io::Result<OwnedFd> {
    let license = c"GPL";
    let mut attributes = Load {
        program_type: CGROUP_SKB,
        instruction_count: 2,
        instructions: INSTRUCTIONS.as_ptr().addr() as u64,
        license: license.as_ptr().addr() as u64,
        attach_type: CGROUP_INET_EGRESS,
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
