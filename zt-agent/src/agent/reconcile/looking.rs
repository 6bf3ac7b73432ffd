//! What this machine looks like now.

use std::{net::IpAddr, sync::atomic::Ordering};

use nix::{errno::Errno, net::if_::if_indextoname};

use super::{Machine, Reconciler};
use crate::{
    audit::record::Time,
    source::{clock::Reading, documents::Documents, identities::Resolved, node},
};

impl Reconciler {
    pub(super) fn look_around(&mut self, documents: &Documents) -> Machine {
        let clock = self.look_at_clock();
        let identities = &self.sources.identities;
        let found = match self.ignorance {
            None => identities.resolve(&documents.identities, &self.root, &self.config),
            // On an enforcing node nobody may do anything.
            Some(_) => None,
        };
        let mut resolved = found.unwrap_or_else(|| Resolved {
            unknown: true,
            ..Resolved::default()
        });
        let enforcer = &self.enforcer;
        resolved.changed_macs = self.macs.keep(
            &mut resolved.interfaces,
            |index| enforcer.mac(index),
            |index| if_indextoname(index) != Err(Errno::ENXIO),
        );
        let addresses = node::addresses().inspect_err(|error| {
            tracing::error!(%error, "cannot list this node's addresses");
        });
        Machine {
            resolved,
            enrolled: self.enrolments.present(&self.root),
            node_addresses: addresses.unwrap_or_else(|_| self.known_addresses()),
            host_netns: self.sources.identities.host_netns(),
            clock,
        }
    }

    fn look_at_clock(&mut self) -> Reading {
        let clock = self.sources.clock.look();
        self.board
            .boot_offset
            .store(clock.boot_offset, Ordering::Relaxed);
        let behind =
            (Time::now().0 < clock.set_back_from).then(|| Time(clock.set_back_from).to_string());
        let mut facts = self.board.facts();
        if let Some(latest) = behind
            .as_ref()
            .filter(|_| facts.clock_set_back_from != behind)
        {
            tracing::warn!(%latest, "the wall clock was set back: grants that had lapsed by then stay lapsed");
        }
        facts.clock_set_back_from = behind;
        clock
    }

    fn known_addresses(&self) -> Vec<IpAddr> {
        let tried = self.in_force.as_ref().and_then(|a| a.tried.as_ref());
        tried.map_or_else(Vec::new, |machine| machine.node_addresses.clone())
    }
}
