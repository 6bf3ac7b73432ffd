//! Programs into the kernel; maps that are pinned already are reused.

use std::os::fd::{AsFd, BorrowedFd, FromRawFd as _, OwnedFd};

use aya::{
    Ebpf, EbpfLoader, VerifierLogLevel,
    programs::{Program, ProgramError},
};
use nix::errno::Errno;

use super::{KernelError, layout, object, pins::Pins};

/// Sizes of the maps; they can only be chosen when a map is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapSizes {
    pub policy: u32,
    pub range: u32,
    pub address: u32,
    pub cidr: u32,
    pub workload: u32,
    pub flow: u32,
    pub ring_bytes: u32,
}

/// Every pinned map, with the sizes of key and value that this binary knows.
pub const MAPS: &[(&str, usize, usize)] = {
    use zt_common::{
        address::{AddressKey, CidrKey},
        flow::{Flow, FlowKey, Fragment, FragmentKey, Share},
        identity::{Name, RuleName, Trust},
        policy::{PolicyKey, RangeKey},
        state::{Control, CountKey, Totals},
        version::{AddressRow, CidrRow, InterfaceRow, PolicyRow, RangeRow, WorkloadRow},
    };
    macro_rules! row {
        ($name:literal, $key:ty, $value:ty) => {
            ($name, size_of::<$key>(), size_of::<$value>())
        };
    }
    &[
        row!("zt_control_v1", u32, Control),
        row!("zt_workload_v1", u64, WorkloadRow),
        row!("zt_interface_v1", u32, InterfaceRow),
        row!("zt_address_v1", AddressKey, AddressRow),
        row!("zt_cidr_v1", CidrKey, CidrRow),
        row!("zt_policy_v1", PolicyKey, PolicyRow),
        row!("zt_range_v1", RangeKey, RangeRow),
        row!("zt_trust_v1", u32, Trust),
        row!("zt_flow_v1", FlowKey, Flow),
        row!("zt_spill_v1", FlowKey, Flow),
        row!("zt_fragment_v1", FragmentKey, Fragment),
        row!("zt_share_v1", u64, Share),
        row!("zt_socket_v1", u32, zt_common::flow::Socket),
        ("zt_events_v1", 0, 0),
        row!("zt_totals_v1", u32, Totals),
        row!("zt_count_v1", CountKey, u64),
        row!("zt_rulehits_v1", u32, u64),
        row!("zt_identity_v1", u32, Name),
        row!("zt_rule_v1", u32, RuleName),
    ]
};

/// The loaded programs. Dropping it unloads those that are not attached.
pub struct Loaded {
    ebpf: Ebpf,
}

/// How much the programs log through aya-log; 0: nothing, and the verifier
/// removes the calls.
pub const LOG_OFF: u8 = 0;

/// Loads the programs and pins the maps that are not pinned yet.
///
/// # Errors
/// When a pinned map has another layout, or the kernel refuses a program; the
/// verifier's log is part of the message.
pub fn load(pins: &Pins, sizes: &MapSizes, log_level: u8) -> Result<Loaded, KernelError> {
    let object = object::object()?;
    layout::check(pins, object)?;
    let multipath = u8::from(has_multipath());
    let mut loader = EbpfLoader::new();
    loader
        .verifier_log_level(VerifierLogLevel::STATS)
        .override_global(aya_log::LEVEL, &log_level, false)
        .override_global("ZT_MPTCP", &multipath, true)
        .map_max_entries("zt_policy_v1", sizes.policy)
        .map_max_entries("zt_range_v1", sizes.range)
        .map_max_entries("zt_address_v1", sizes.address)
        .map_max_entries("zt_cidr_v1", sizes.cidr)
        .map_max_entries("zt_workload_v1", sizes.workload)
        .map_max_entries("zt_interface_v1", sizes.workload)
        .map_max_entries("zt_flow_v1", sizes.flow)
        .map_max_entries("zt_events_v1", sizes.ring_bytes);
    for (name, _, _) in MAPS {
        loader.map_pin_path(name, pins.map(name));
    }
    let mut ebpf = loader
        .load(object)
        .map_err(|error| KernelError::Load(chain(&error)))?;
    for (name, program) in ebpf.programs_mut() {
        load_patiently(program)
            .map_err(|error| KernelError::Load(format!("{name}: {}", chain(&error))))?;
    }
    Ok(Loaded { ebpf })
}

/// Whether the kernel knows multipath TCP, also if this namespace may not use
/// it: without its types no program may ask for them.
fn has_multipath() -> bool {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
    // SAFETY: no addresses are passed.
    let made = Errno::result(unsafe { libc::socket(libc::AF_INET, kind, libc::IPPROTO_MPTCP) });
    // SAFETY: the kernel just gave us this descriptor, and nobody else has it.
    let made = made.map(|made| drop(unsafe { OwnedFd::from_raw_fd(made) }));
    matches!(made, Ok(()) | Err(Errno::ENOPROTOOPT))
}

/// The verifier gives up with EAGAIN when a signal is pending for this thread,
/// whatever the signal is for.
fn load_patiently(program: &mut Program) -> Result<(), ProgramError> {
    const TRIES: usize = 10;
    for _ in 1..TRIES {
        match load_program(program) {
            Err(ProgramError::LoadError { io_error, .. })
                if io_error.raw_os_error() == Some(libc::EAGAIN) => {}
            result => return result,
        }
    }
    load_program(program)
}

fn load_program(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::CgroupSkb(program) => program.load(),
        Program::CgroupSock(program) => program.load(),
        Program::CgroupSockAddr(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        // The object has no others; an unloaded one cannot be attached.
        _ => Ok(()),
    }
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

impl Loaded {
    /// The descriptor of a program, to attach it.
    ///
    /// # Errors
    /// When the object has no such program.
    pub fn program(&self, name: &str) -> Result<OwnedFd, KernelError> {
        let missing = || KernelError::Load(format!("the object has no program {name}"));
        let program = self.ebpf.program(name).ok_or_else(missing)?;
        let fd: BorrowedFd<'_> = program
            .fd()
            .map_err(|error| KernelError::Load(chain(&error)))?
            .as_fd();
        fd.try_clone_to_owned()
            .map_err(KernelError::call("dup", name))
    }

    /// The kernel's id of a program.
    ///
    /// # Errors
    /// When the object has no such program.
    pub fn program_id(&self, name: &str) -> Result<u32, KernelError> {
        let missing = || KernelError::Load(format!("the object has no program {name}"));
        let program = self.ebpf.program(name).ok_or_else(missing)?;
        let info = program.info();
        info.map(|info| info.id())
            .map_err(|error| KernelError::Load(chain(&error)))
    }

    /// For aya-log.
    pub fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// Instructions that the verifier walked, by program.
    #[must_use]
    pub fn verified_instructions(&self) -> Vec<(String, u32)> {
        self.ebpf
            .programs()
            .filter_map(|(name, program)| {
                let count = program.info().ok()?.verified_instruction_count()?;
                Some((name.to_owned(), count))
            })
            .collect()
    }
}
