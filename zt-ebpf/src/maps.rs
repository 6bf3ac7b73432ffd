//! The maps, by the names under which they are pinned.
//!
//! A name carries the version of its layout; the kernel keeps 15 characters.
//! `max_entries` here is a default: the agent sets it from its configuration.
#![expect(
    non_upper_case_globals,
    reason = "the name of a map is an interface: it is what bpftool shows"
)]

use aya_ebpf::{
    bindings::{
        BPF_F_CLONE, BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, bpf_map_type::BPF_MAP_TYPE_SK_STORAGE,
    },
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, PerCpuHashMap, RingBuf},
    macros::btf_map,
};
use zt_common::{
    address::{AddressKey, Ip},
    event::Event,
    flow::{Flow, FlowKey, Fragment, FragmentKey, Share, Socket},
    identity::{LIMIT, Name, RuleName, Trust},
    policy::PolicyKey,
    state::{Control, CountKey, Totals},
    version::{AddressRow, CidrRow, InterfaceRow, PolicyRow, RangeRow, WorkloadRow},
};

const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;
const MMAPABLE: usize = BPF_F_MMAPABLE as usize;

#[btf_map]
pub static zt_control_v1: Array<Control, 1, MMAPABLE> = Array::new();
#[btf_map]
pub static zt_workload_v1: HashMap<u64, WorkloadRow, 16_384, NO_PREALLOC> = HashMap::new();
#[btf_map]
pub static zt_interface_v1: HashMap<u32, InterfaceRow, 16_384, NO_PREALLOC> = HashMap::new();
#[btf_map]
pub static zt_address_v1: HashMap<AddressKey, AddressRow, 65_536, NO_PREALLOC> = HashMap::new();
#[btf_map]
pub static zt_cidr_v1: LpmTrie<Ip, CidrRow, 16_384> = LpmTrie::new();
#[btf_map]
pub static zt_policy_v1: HashMap<PolicyKey, PolicyRow, 131_072, NO_PREALLOC> = HashMap::new();
/// The data of a `RangeKey` after its prefix length.
#[btf_map]
pub static zt_range_v1: LpmTrie<RangeData, RangeRow, 131_072> = LpmTrie::new();
#[btf_map]
pub static zt_trust_v1: Array<Trust, { LIMIT as usize }> = Array::new();

#[btf_map]
pub static zt_flow_v1: LruHashMap<FlowKey, Flow, 65_536> = LruHashMap::new();
/// Denials, and the flows of a workload that has used its share.
#[btf_map]
pub static zt_spill_v1: LruHashMap<FlowKey, Flow, 16_384> = LruHashMap::new();
/// Fragmented datagrams whose first fragment passed.
#[btf_map]
pub static zt_fragment_v1: LruHashMap<FragmentKey, Fragment, 8_192> = LruHashMap::new();
#[btf_map]
pub static zt_share_v1: LruHashMap<u64, Share, 16_384> = LruHashMap::new();
#[btf_map]
pub static zt_socket_v1: SocketStorage = SocketStorage::new();

#[btf_map]
pub static zt_events_v1: RingBuf<Event, 8_388_608> = RingBuf::new();
#[btf_map]
pub static zt_totals_v1: PerCpuArray<Totals, 1> = PerCpuArray::new();
#[btf_map]
pub static zt_count_v1: PerCpuHashMap<CountKey, u64, 16_384> = PerCpuHashMap::new();
#[btf_map]
pub static zt_rulehits_v1: PerCpuArray<u64, 65_536> = PerCpuArray::new();

/// For people: what the numbers stand for. No program reads them.
#[btf_map]
pub static zt_identity_v1: HashMap<u32, Name, 65_536, NO_PREALLOC> = HashMap::new();
#[btf_map]
pub static zt_rule_v1: HashMap<u32, RuleName, 65_536, NO_PREALLOC> = HashMap::new();

/// See [`zt_range_v1`].
#[repr(C)]
pub struct RangeData {
    pub source: [u8; 4],
    pub destination: [u8; 4],
    pub protocol: u8,
    pub zero: [u8; 5],
    pub port: [u8; 2],
}

/// Socket storage that a child socket inherits from its listener, which
/// aya-ebpf's own type cannot ask for (`BPF_F_CLONE`).
#[repr(C)]
pub struct SocketStorage {
    r#type: *const [i32; BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const Socket,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; (BPF_F_NO_PREALLOC | BPF_F_CLONE) as usize],
}

// SAFETY: the fields are placeholders that the loader reads as BTF; nothing
// ever dereferences them.
unsafe impl Sync for SocketStorage {}

impl SocketStorage {
    const fn new() -> Self {
        Self {
            r#type: core::ptr::null(),
            key: core::ptr::null(),
            value: core::ptr::null(),
            max_entries: core::ptr::null(),
            map_flags: core::ptr::null(),
        }
    }

    /// The map as the helpers want it.
    #[inline(always)]
    pub const fn as_ptr(&self) -> *mut core::ffi::c_void {
        core::ptr::from_ref(self).cast_mut().cast()
    }
}
