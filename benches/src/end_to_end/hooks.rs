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

impl Hooks {
    /// What the kernel has now.
    pub fn now(place: &Place) -> Result<Self> {
        let cgroup = File::open(place.party.cgroup().path())?;
        let mut hooks = Self::default();
        for point in links::POINTS {
            let programs = sys::effective(cgroup.as_fd(), point.attach_type);
            hooks.cgroup += programs.context(point.hook)?.len();
        }
        let interface = interface(place)?;
        hooks.interface = place.host.enter(|| {
            let mechanism = tc::probe()?;
            // Whose they are is not asked.
            let nobodys = Path::new("");
            let on = |side| tc::programs(mechanism, interface, side, nobodys);
            Ok(on(Side::Ingress)?.len() + on(Side::Egress)?.len())
        })?;
        Ok(hooks)
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
