//! What the versioned maps should hold, as plain sorted tables.

use std::collections::BTreeMap;

use zt_common::{
    address::{AddressKey, CidrKey, Interface, Peer, Workload},
    policy::{Entry, PolicyKey, RangeKey},
};

/// The exact wanted contents of every versioned map.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    pub policy: BTreeMap<PolicyKey, Entry>,
    pub range: BTreeMap<RangeKey, Entry>,
    pub address: BTreeMap<AddressKey, Peer>,
    pub cidr: BTreeMap<CidrKey, Peer>,
    /// Key 0: every cgroup under the managed root that nobody enrolled.
    pub workload: BTreeMap<u64, Workload>,
    /// By the index of the node's interface.
    pub interface: BTreeMap<u32, Interface>,
}
