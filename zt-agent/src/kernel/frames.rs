//! The programs for frames, on the node's side of the veths of workloads.
//!
//! The pins in the links' directory say where they are, also to an agent that
//! starts later: `tc-INDEX-from` and `tc-INDEX-to`.

use std::{
    collections::BTreeSet,
    fs,
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
};

use super::{
    KernelError,
    load::Loaded,
    pins::Pins,
    tc::{self, AttachedProgram, Mechanism, Side},
};

/// One of the two programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FramePoint {
    pub program: &'static str,
    /// For people.
    pub hook: &'static str,
    pub side: Side,
    suffix: &'static str,
}

/// What a workload is sent is decided before it can send: in this order.
pub const POINTS: [FramePoint; 2] = [
    FramePoint {
        program: "zt_tc_to",
        hook: "tc/to-workload",
        side: Side::Egress,
        suffix: "to",
    },
    FramePoint {
        program: "zt_tc_from",
        hook: "tc/from-workload",
        side: Side::Ingress,
        suffix: "from",
    },
];

fn pin(pins: &Pins, interface: u32, point: &FramePoint) -> PathBuf {
    pins.link(&format!("tc-{interface}-{}", point.suffix))
}

/// The interface that a pin in the links' directory is for.
fn interface(name: &str) -> Option<u32> {
    let (index, _) = name.strip_prefix("tc-")?.split_once('-')?;
    index.parse().ok()
}

/// Indices of the interfaces for which something of ours is pinned.
#[must_use]
pub fn covered(pins: &Pins) -> BTreeSet<u32> {
    let entries = fs::read_dir(pins.links());
    let names = entries.into_iter().flatten().flatten();
    names
        .filter_map(|entry| interface(entry.file_name().to_str()?))
        .collect()
}

/// Takes our programs off every interface.
///
/// # Errors
/// The first that cannot be taken off.
pub fn remove(pins: &Pins) -> Result<usize, KernelError> {
    let interfaces = covered(pins);
    if interfaces.is_empty() {
        return Ok(0);
    }
    let mechanism = tc::probe()?;
    for interface in &interfaces {
        uncover(mechanism, pins, *interface)?;
    }
    Ok(interfaces.len())
}

fn uncover(mechanism: Mechanism, pins: &Pins, interface: u32) -> Result<(), KernelError> {
    for point in POINTS.iter().rev() {
        tc::detach(
            mechanism,
            interface,
            point.side,
            &pin(pins, interface, point),
        )?;
    }
    Ok(())
}

/// One side of an interface, as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SideStatus {
    pub point: FramePoint,
    /// Id of our program, if it is attached.
    pub program_id: Option<u32>,
    /// What decides before ours and could pass on what ours never sees.
    pub before: Vec<String>,
}

/// What is attached to an interface.
///
/// # Errors
/// When the kernel cannot be asked, or the interface is not there.
pub fn status(
    mechanism: Mechanism,
    pins: &Pins,
    interface: u32,
) -> Result<Vec<SideStatus>, KernelError> {
    POINTS
        .iter()
        .map(|point| {
            let pin = pin(pins, interface, point);
            let programs = tc::programs(mechanism, interface, point.side, &pin)?;
            Ok(side_status(point, &programs))
        })
        .collect()
}

fn side_status(point: &FramePoint, programs: &[AttachedProgram]) -> SideStatus {
    let ours = programs.iter().position(|program| program.ours);
    let before = programs[..ours.unwrap_or(0)].iter();
    SideStatus {
        point: *point,
        program_id: ours.and_then(|at| programs[at].id),
        before: before
            .map(|program| match program.id {
                Some(id) => format!("{} (program {id})", program.label),
                None => program.label.clone(),
            })
            .collect(),
    }
}

/// Attaches the programs that this agent loaded.
pub struct Frames {
    mechanism: Mechanism,
    pins: Pins,
    programs: Vec<(FramePoint, OwnedFd, u32)>,
}

impl Frames {
    /// # Errors
    /// When the object has no such programs, or the kernel does not say what
    /// it has.
    pub fn new(loaded: &Loaded, pins: &Pins) -> Result<Self, KernelError> {
        let program = |point: &FramePoint| -> Result<_, KernelError> {
            let id = loaded.program_id(point.program)?;
            Ok((*point, loaded.program(point.program)?, id))
        };
        Ok(Self {
            mechanism: tc::probe()?,
            pins: pins.clone(),
            programs: POINTS.iter().map(program).collect::<Result<_, _>>()?,
        })
    }

    #[must_use]
    pub fn mechanism(&self) -> Mechanism {
        self.mechanism
    }

    /// Attaches both programs to an interface, or replaces those of an agent
    /// before this one.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn cover(&self, interface: u32) -> Result<(), KernelError> {
        for (point, program, _) in &self.programs {
            let pin = pin(&self.pins, interface, point);
            tc::attach(self.mechanism, program.as_fd(), interface, point.side, &pin)?;
        }
        Ok(())
    }

    /// Takes them off.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn uncover(&self, interface: u32) -> Result<(), KernelError> {
        uncover(self.mechanism, &self.pins, interface)
    }

    /// Takes one of them off, to show that a test notices.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn detach(&self, program: &str, interface: u32) -> Result<(), KernelError> {
        for point in POINTS.iter().filter(|point| point.program == program) {
            let pin = pin(&self.pins, interface, point);
            tc::detach(self.mechanism, interface, point.side, &pin)?;
        }
        Ok(())
    }

    #[must_use]
    pub fn covered(&self) -> BTreeSet<u32> {
        covered(&self.pins)
    }

    /// What is wrong with an interface that was covered; empty: nothing.
    ///
    /// # Errors
    /// When the kernel cannot be asked, or the interface is not there.
    pub fn check(&self, interface: u32) -> Result<Vec<Fault>, KernelError> {
        let mut faults = Vec::new();
        for side in status(self.mechanism, &self.pins, interface)? {
            let loaded = self
                .programs
                .iter()
                .find(|(point, ..)| *point == side.point);
            match side.program_id {
                None => faults.push(Fault::Missing(side.point.hook)),
                Some(found) if loaded.is_none_or(|(_, _, id)| *id != found) => {
                    faults.push(Fault::Replaced(side.point.hook, found));
                }
                Some(_) => {}
            }
            let stranger = |before| Fault::Before(side.point.hook, before);
            faults.extend(side.before.into_iter().map(stranger));
        }
        Ok(faults)
    }
}

/// What is wrong at an interface.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The program of this agent is not there.
    #[error("our program is not at {0}")]
    Missing(&'static str),
    /// Another one, with this id, is behind its link.
    #[error("program {1} is in the place of ours at {0}")]
    Replaced(&'static str, u32),
    /// Something of somebody else decides before it.
    #[error(
        "{1} is not ours and decides before our program at {0}; take it off, or have it come after"
    )]
    Before(&'static str, String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_says_which_interface_it_is_for() {
        let pins = Pins::new("/sys/fs/bpf/zt");
        for point in &POINTS {
            let path = pin(&pins, 17, point);
            let name = path.file_name().unwrap().to_str().unwrap();
            assert_eq!(interface(name), Some(17));
        }
        assert_eq!(interface("zt_connect4"), None);
    }

    #[test]
    fn what_comes_before_ours_is_named_and_what_comes_after_is_not() {
        let program = |id, ours| AttachedProgram {
            mechanism: Mechanism::Tcx,
            id: Some(id),
            label: "tcx".into(),
            ours,
        };
        let status = side_status(
            &POINTS[0],
            &[program(7, false), program(8, true), program(9, false)],
        );
        assert_eq!(status.program_id, Some(8));
        assert_eq!(status.before, ["tcx (program 7)"]);
        assert_eq!(
            side_status(&POINTS[0], &[program(7, false)]).program_id,
            None
        );
    }
}
