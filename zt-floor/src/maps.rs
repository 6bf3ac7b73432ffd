//! Maps of the types and sizes of those that ours look up; whoever loads them
//! gives both the same `max_entries`.
#![expect(
    non_upper_case_globals,
    reason = "named as the maps of ours that they stand for"
)]

use aya_ebpf::{
    bindings::{
        BPF_F_CLONE, BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, BPF_SK_STORAGE_GET_F_CREATE,
        bpf_map_type::BPF_MAP_TYPE_SK_STORAGE,
    },
    btf_maps::{Array, HashMap, LruHashMap, PerCpuArray, PerCpuHashMap},
    helpers::generated::bpf_sk_storage_get,
    macros::btf_map,
};
use core::ffi::c_void;
use zt_common::{
    address::AddressKey,
    flow::{Flow, FlowKey, Share, Socket},
    identity::{LIMIT, Number, Trust},
    policy::PolicyKey,
    state::{Control, CountKey, Totals},
    version::{AddressRow, InterfaceRow, PolicyRow, WorkloadRow},
};

const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;
const MMAPABLE: usize = BPF_F_MMAPABLE as usize;

#[btf_map]
pub static floor_control: Array<Control, 1, MMAPABLE> = Array::new();
#[btf_map]
pub static floor_workload: HashMap<u64, WorkloadRow, 16_384, NO_PREALLOC> = HashMap::new();
#[btf_map]
pub static floor_interface: HashMap<u32, InterfaceRow, 16_384, NO_PREALLOC> = HashMap::new();
#[btf_map]
pub static floor_address: HashMap<AddressKey, AddressRow, 65_536, NO_PREALLOC> = HashMap::new();
#[btf_map]
pub static floor_policy: HashMap<PolicyKey, PolicyRow, 131_072, NO_PREALLOC> = HashMap::new();
#[btf_map]
pub static floor_trust: Array<Trust, { LIMIT as usize }> = Array::new();
#[btf_map]
pub static floor_flow: LruHashMap<FlowKey, Flow, 65_536> = LruHashMap::new();
#[btf_map]
pub static floor_spill: LruHashMap<FlowKey, Flow, 16_384> = LruHashMap::new();
#[btf_map]
pub static floor_share: LruHashMap<u64, Share, 16_384> = LruHashMap::new();
#[btf_map]
pub static floor_socket: SocketStorage = SocketStorage::new();
#[btf_map]
pub static floor_totals: PerCpuArray<Totals, 1> = PerCpuArray::new();
#[btf_map]
pub static floor_count: PerCpuHashMap<CountKey, u64, 16_384> = PerCpuHashMap::new();
#[btf_map]
pub static floor_rulehits: PerCpuArray<u64, 65_536> = PerCpuArray::new();

/// Whether one of the two ends is quarantined; nobody is, so both are looked up.
#[inline(always)]
pub fn quarantined(one: Number, other: Number) -> bool {
    let of = |number| floor_trust.get(number).is_some_and(|t| t.quarantined != 0);
    of(one) || of(other)
}

/// Socket storage that a child socket inherits from its listener.
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

    /// The storage of `sk`, made if asked to.
    #[inline(always)]
    pub fn of<'a>(&self, sk: *mut c_void, create: bool) -> Option<&'a mut Socket> {
        let map = core::ptr::from_ref(self).cast_mut().cast();
        let flags = u64::from(create) * u64::from(BPF_SK_STORAGE_GET_F_CREATE);
        // SAFETY: the verifier checks that `sk` is a socket.
        unsafe {
            bpf_sk_storage_get(map, sk, core::ptr::null_mut(), flags)
                .cast::<Socket>()
                .as_mut()
        }
    }
}
