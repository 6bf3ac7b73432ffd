//! What a kernel has or lacks, found by trying it and never by its version.
//!
//! A test that cannot run without a feature begins with
//!
//! ```no_run
//! # use zt_tests::feature::TCX;
//! if TCX.is_missing() {
//!     return;
//! }
//! ```
//!
//! and whoever runs the suite is told which test was skipped and what was probed.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::panic::Location;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

/// Names the file to which skipped tests are appended, a [`Skipped`] as JSON a
/// line. Without it they are only told on standard error.
pub const VARIABLE: &str = "ZT_SKIPPED";

/// A test that did not run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// Its name, or where its source asked for the feature.
    pub test: String,
    /// What was tried, and what the kernel said.
    pub probed: String,
}

/// One thing that a kernel may lack.
#[derive(Clone, Copy, Debug)]
pub struct Feature {
    /// What the probe does, for people.
    probe: &'static str,
    try_it: fn() -> io::Result<()>,
}

/// Links of packet programs at an interface, in an order (Linux 6.6).
pub const TCX: Feature = Feature {
    probe: "asking for the TCX programs of the loopback interface",
    try_it: query_tcx,
};

/// Asynchronous system calls; distributions and containers switch them off.
pub const IO_URING: Feature = Feature {
    probe: "setting up an io_uring of one entry",
    try_it: set_up_io_uring,
};

/// TCP over several paths.
pub const MPTCP: Feature = Feature {
    probe: "making an MPTCP socket",
    try_it: make_mptcp_socket,
};

/// A wall clock that may be set: only of a machine that runs nothing but tests.
pub const OWN_CLOCK: Feature = Feature {
    probe: "whether this machine's clock is ours to set",
    try_it: find_plan,
};

impl Feature {
    /// Tries it. If the kernel lacks it, the test that asks counts as skipped.
    ///
    /// # Panics
    /// When the skip cannot be written down: it would be hidden.
    #[must_use]
    #[track_caller]
    pub fn is_missing(&self) -> bool {
        let Err(error) = (self.try_it)() else {
            return false;
        };
        skip(&format!("{}: {error}", self.probe));
        true
    }
}

/// Counts the test that asks as skipped, for what it found out itself; it must
/// return then.
///
/// # Panics
/// When the skip cannot be written down: it would be hidden.
#[track_caller]
pub fn skip(probed: &str) {
    let skipped = Skipped {
        test: asking_test(Location::caller()),
        probed: probed.to_owned(),
    };
    eprintln!("SKIPPED {}: {probed}", skipped.test);
    if let Some(path) = std::env::var_os(VARIABLE) {
        let line = serde_json::to_string(&skipped).expect("text can be written as JSON") + "\n";
        File::options()
            .append(true)
            .create(true)
            .open(&path)
            // At once: between two calls another process could write.
            .and_then(|mut file| file.write_all(line.as_bytes()))
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}

/// The test harness names a test's thread after the test.
fn asking_test(asked: &Location<'_>) -> String {
    let thread = std::thread::current();
    match thread.name() {
        Some(name) if name != "main" => name.to_owned(),
        _ => asked.to_string(),
    }
}

fn query_tcx() -> io::Result<()> {
    const PROG_QUERY: libc::c_long = 16;
    const TCX_INGRESS: u32 = 46;
    /// The beginning of `BPF_PROG_QUERY`'s part of `union bpf_attr`
    /// (the kernel's `include/uapi/linux/bpf.h`).
    #[repr(C)]
    #[derive(Default)]
    struct Query {
        interface: u32,
        attach_type: u32,
        query_flags: u32,
        attach_flags: u32,
        ids: u64,
        count: u32,
        pad: u32,
        attach_flags_of_each: u64,
        links: u64,
        attach_flags_of_links: u64,
        revision: u64,
    }
    let mut query = Query {
        // Loopback is the first of every namespace.
        interface: 1,
        attach_type: TCX_INGRESS,
        ..Query::default()
    };
    // SAFETY: the attributes are a prefix of the union and of the size given,
    // and there are no addresses in them.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            PROG_QUERY,
            &raw mut query,
            size_of::<Query>(),
        )
    };
    match Errno::result(result) {
        // No program was ever there.
        Ok(_) | Err(Errno::ENOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn set_up_io_uring() -> io::Result<()> {
    // `struct io_uring_params` has 120 bytes, of which the caller may set none.
    let mut parameters = [0_u64; 15];
    // SAFETY: the kernel writes into the parameters, which have the size it knows.
    let result = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, parameters.as_mut_ptr()) };
    let descriptor = Errno::result(result)?;
    let descriptor = i32::try_from(descriptor).map_err(io::Error::other)?;
    // SAFETY: the kernel just gave us this descriptor, and nobody else has it.
    drop(unsafe { OwnedFd::from_raw_fd(descriptor) });
    Ok(())
}

fn make_mptcp_socket() -> io::Result<()> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
    // SAFETY: no addresses are passed.
    let result = unsafe { libc::socket(libc::AF_INET, kind, libc::IPPROTO_MPTCP) };
    let descriptor = Errno::result(result)?;
    // SAFETY: the kernel just gave us this descriptor, and nobody else has it.
    drop(unsafe { OwnedFd::from_raw_fd(descriptor) });
    Ok(())
}

/// The first process of a machine of ours goes by it, and there is none on any
/// other.
fn find_plan() -> io::Result<()> {
    std::fs::metadata(crate::guest::PLAN).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_feature_that_is_there_is_not_missing() {
        let there = Feature {
            probe: "nothing",
            try_it: || Ok(()),
        };
        assert!(!there.is_missing());
    }

    #[test]
    fn a_skip_names_the_test_that_asked() {
        let name = asking_test(Location::caller());
        assert!(name.ends_with("a_skip_names_the_test_that_asked") || name.contains("feature.rs"));
    }
}
