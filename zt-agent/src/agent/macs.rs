//! The MAC addresses that workloads' interfaces had first.
//!
//! A workload may not take another one, perhaps its neighbour's, for as long as
//! the interface exists: neither while it is up, nor by setting it down first.

use std::collections::BTreeMap;

use crate::model::InterfaceSpec;

/// By the index of the node's side.
#[derive(Debug, Default)]
pub struct Macs(BTreeMap<u32, [u8; 6]>);

impl Macs {
    /// Gives every interface the address that it had first, and the names of
    /// those that have another one now. `known`: what an agent before this one
    /// saw; `is_there`: whether a link that leads to no workload now, or is down,
    /// exists.
    pub fn keep(
        &mut self,
        interfaces: &mut [InterfaceSpec],
        known: impl Fn(u32) -> Option<[u8; 6]>,
        is_there: impl Fn(u32) -> bool,
    ) -> Vec<String> {
        let mut changed = Vec::new();
        let before = std::mem::take(&mut self.0);
        for interface in interfaces {
            let first = before.get(&interface.index).copied();
            let first = first.or_else(|| known(interface.index));
            let first = first.unwrap_or(interface.mac);
            self.0.insert(interface.index, first);
            if first != interface.mac {
                interface.mac = first;
                changed.push(interface.name.to_string());
            }
        }
        for (index, mac) in before {
            if !self.0.contains_key(&index) && is_there(index) {
                self.0.insert(index, mac);
            }
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const STOLEN: [u8; 6] = [2, 0, 0, 0, 0, 2];

    fn interface(mac: [u8; 6]) -> InterfaceSpec {
        InterfaceSpec {
            index: 7,
            name: "veth7".into(),
            netns: 50,
            mac,
            addresses: Vec::new(),
        }
    }

    fn changed(macs: &mut Macs, mac: [u8; 6], known: Option<[u8; 6]>) -> bool {
        let mut interfaces = [interface(mac)];
        let changed = macs.keep(&mut interfaces, |_| known, |_| true);
        assert_eq!(interfaces[0].mac == mac, changed.is_empty());
        !changed.is_empty()
    }

    #[test]
    fn an_interface_that_was_down_keeps_its_mac_and_one_made_anew_does_not() {
        let mut macs = Macs::default();
        assert!(!changed(&mut macs, OWN, None));
        assert!(changed(&mut macs, STOLEN, None));
        assert!(!changed(&mut macs, OWN, None));
        // Down: it leads nowhere, and the kernel has no row for it.
        assert!(macs.keep(&mut [], |_| None, |_| true).is_empty());
        assert!(changed(&mut macs, STOLEN, None));
        // Gone.
        macs.keep(&mut [], |_| None, |_| false);
        assert!(!changed(&mut macs, STOLEN, None));
    }

    #[test]
    fn what_an_agent_before_saw_counts() {
        assert!(changed(&mut Macs::default(), STOLEN, Some(OWN)));
    }
}
