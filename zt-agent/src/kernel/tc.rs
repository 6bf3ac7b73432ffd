//! Programs on the two sides of an interface, by what the kernel has for it.
//!
//! Everything is about interfaces of the calling thread's network namespace.
//! Nothing is remembered here: the pin says what is ours, also to an agent
//! that starts later.

use std::{os::fd::BorrowedFd, path::Path};

use super::{KernelError, clsact, links::Attachment, tcx};
pub use crate::netlink::traffic_control::Side;

/// How programs are attached to interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// Links with an order, from Linux 6.6 on.
    Tcx,
    /// Classifiers of the `clsact` queueing discipline.
    Clsact,
}

impl Mechanism {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }
}

/// What decides about packets on one side of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachedProgram {
    pub mechanism: Mechanism,
    /// The program's id; none for a classifier that is no program.
    pub id: Option<u32>,
    /// The kind of a classifier and its name, for people.
    pub label: String,
    /// Attached by us, at this pin.
    pub ours: bool,
}

/// What this kernel has, found by asking it.
///
/// # Errors
/// When it does not say, for want of privileges.
pub fn probe() -> Result<Mechanism, KernelError> {
    Ok(if tcx::is_there()? {
        Mechanism::Tcx
    } else {
        Mechanism::Clsact
    })
}

/// Attaches a program before those that are there, and pins what keeps it. If
/// it is attached by this pin already, the program is replaced in one step,
/// where it is in the order. `pin` is for one side of one interface.
///
/// # Errors
/// When the kernel refuses, or something of somebody else's is in the way.
pub fn attach(
    mechanism: Mechanism,
    program: BorrowedFd<'_>,
    interface: u32,
    side: Side,
    pin: &Path,
) -> Result<Attachment, KernelError> {
    match mechanism {
        Mechanism::Tcx => tcx::attach(program, interface, side, pin),
        Mechanism::Clsact => clsact::attach(program, interface, side, pin),
    }
}

/// Takes our program off, and removes the pin. What is not there is fine.
///
/// # Errors
/// When the kernel refuses.
pub fn detach(
    mechanism: Mechanism,
    interface: u32,
    side: Side,
    pin: &Path,
) -> Result<(), KernelError> {
    match mechanism {
        Mechanism::Tcx => tcx::detach(pin),
        Mechanism::Clsact => clsact::detach(interface, side, pin),
    }
}

/// Everything that decides about packets on one side of an interface, in the
/// order in which it is asked: TCX first, where the kernel has it, then the
/// classifiers. What comes before ours can let packets pass or send them
/// elsewhere, and ours never sees them.
///
/// # Errors
/// When the kernel cannot be asked, and when the interface is not there.
pub fn programs(
    mechanism: Mechanism,
    interface: u32,
    side: Side,
    pin: &Path,
) -> Result<Vec<AttachedProgram>, KernelError> {
    let mut found = Vec::new();
    if mechanism == Mechanism::Tcx {
        let programs = tcx::programs(interface, side, pin)?;
        found.extend(programs.into_iter().map(|(program, ours)| AttachedProgram {
            mechanism: Mechanism::Tcx,
            id: Some(program.program_id),
            label: "tcx".to_owned(),
            ours,
        }));
    }
    let classifiers = clsact::programs(interface, side, pin)?;
    found.extend(
        classifiers
            .into_iter()
            .map(|(filter, ours)| AttachedProgram {
                mechanism: Mechanism::Clsact,
                id: filter.program_id,
                label: match filter.name {
                    Some(name) => format!("{} {name}", filter.kind),
                    None => filter.kind,
                },
                ours,
            }),
    );
    Ok(found)
}
