//! How many programs the kernel has between client and server: that what is to
//! be measured is there, and nothing of anybody else.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use anyhow::{Context, Result};
use zt_agent::kernel::{
    links, sys,
    tc::{self, Side},
};

use super::place::{HOST_SIDE, Place};

/// Numbers of programs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hooks {
    /// For the client's cgroup, those of the cgroups above included.
    pub cgroup: usize,
    /// On both sides of the host's end of the veth.
    pub interface: usize,
}

/// A program that the kernel runs there.
#[derive(Clone, Copy, Debug)]
pub struct Attached {
    pub hook: &'static str,
    pub is_frames: bool,
    /// `None`: it says of what is there only that it is.
    pub id: Option<u32>,
}

/// What the kernel has now.
pub fn attached(place: &Place) -> Result<Vec<Attached>> {
    let cgroup = File::open(place.party.cgroup().path())?;
    let mut attached = Vec::new();
    for point in links::POINTS {
        let programs = sys::effective(cgroup.as_fd(), point.attach_type).context(point.hook)?;
        attached.extend(programs.into_iter().map(|id| Attached {
            hook: point.hook,
            is_frames: false,
            id: Some(id),
        }));
    }
    let interface = interface(place)?;
    place.host.enter(|| {
        let mechanism = tc::probe()?;
        for (hook, side) in [("tc, sent", Side::Ingress), ("tc, received", Side::Egress)] {
            // Whose they are is not asked.
            let programs = tc::programs(mechanism, interface, side, Path::new(""))?;
            attached.extend(programs.into_iter().map(|program| Attached {
                hook,
                is_frames: true,
                id: program.id,
            }));
        }
        Ok(())
    })?;
    Ok(attached)
}

impl Hooks {
    /// What the kernel has now.
    pub fn now(place: &Place) -> Result<Self> {
        let attached = attached(place)?;
        let interface = attached.iter().filter(|one| one.is_frames).count();
        Ok(Self {
            cgroup: attached.len() - interface,
            interface,
        })
    }

    /// These and others.
    #[must_use]
    pub fn and(self, others: Self) -> Self {
        Self {
            cgroup: self.cgroup + others.cgroup,
            interface: self.interface + others.interface,
        }
    }
}

/// The index of [`HOST_SIDE`].
pub fn interface(place: &Place) -> Result<u32> {
    place
        .host
        .enter(|| nix::net::if_::if_nametoindex(HOST_SIDE).context(HOST_SIDE))
}
