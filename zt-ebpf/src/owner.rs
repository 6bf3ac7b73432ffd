//! Whose socket it is.
//!
//! A socket belongs to the cgroup it was made in, wherever it is passed
//! afterwards; its storage remembers that, and the network namespace.

use aya_ebpf::{
    Global,
    bindings::{__sk_buff, BPF_SK_STORAGE_GET_F_CREATE, bpf_sock},
    helpers::generated::{
        bpf_get_current_ancestor_cgroup_id, bpf_get_current_cgroup_id, bpf_get_netns_cookie,
        bpf_sk_storage_get, bpf_skb_ancestor_cgroup_id, bpf_skb_cgroup_id, bpf_skc_to_mptcp_sock,
    },
};
use core::ffi::c_void;
use zt_common::{
    MAX_DEPTH,
    address::Workload,
    flow::{Owner, Socket},
    state::Control,
    version::Generation,
};

use crate::{
    maps::{zt_control_v1, zt_socket_v1},
    rows,
};

/// The one control element. It always exists; `None` satisfies the verifier.
#[inline(always)]
pub fn control() -> Option<&'static Control> {
    zt_control_v1.get(0)
}

/// The storage of `sk`, made if asked to. `sk` must be what the helper takes
/// in this program type: a full socket, or the context of a `cgroup/sock`.
#[inline(always)]
pub fn storage<'a>(sk: *mut c_void, create: bool) -> Option<&'a mut Socket> {
    let flags = if create {
        u64::from(BPF_SK_STORAGE_GET_F_CREATE)
    } else {
        0
    };
    // SAFETY: the verifier checks that `sk` is a socket; a null value means
    // zeroed storage.
    unsafe {
        bpf_sk_storage_get(zt_socket_v1.as_ptr(), sk, core::ptr::null_mut(), flags)
            .cast::<Socket>()
            .as_mut()
    }
}

/// Whether the kernel knows multipath TCP; the loader says so. Without it the
/// verifier refuses the helper, and what it sees as a constant it leaves out.
#[unsafe(no_mangle)]
static ZT_MPTCP: Global<u8> = Global::new(0);

/// The storage of a socket that the kernel made for one of multipath TCP, and
/// so without the hook of socket(2): it belongs to whom that belongs to.
#[inline(never)]
pub fn of_subflow<'a>(sk: *mut bpf_sock) -> Option<&'a mut Socket> {
    if ZT_MPTCP.load() == 0 {
        return None;
    }
    // SAFETY: the verifier checks that `sk` is a socket.
    let whole = unsafe { bpf_skc_to_mptcp_sock(sk.cast()) };
    if whole.is_null() {
        return None;
    }
    let owner = storage(whole.cast(), false)?.owner;
    let stored = storage(sk.cast(), true)?;
    stored.owner = owner;
    Some(stored)
}

/// The owner of a socket that the current task is making.
#[inline(always)]
pub fn of_current(ctx: *mut c_void, root_level: u32, owner: &mut Owner) {
    // SAFETY: helpers without pointers to check; `ctx` is the context.
    unsafe {
        owner.leaf = bpf_get_current_cgroup_id();
        owner.netns = bpf_get_netns_cookie(ctx);
    }
    for depth in 0..MAX_DEPTH {
        let level = root_level as i32 + 1 + depth as i32;
        // SAFETY: a level without an ancestor gives 0.
        owner.below_root[depth] = unsafe { bpf_get_current_ancestor_cgroup_id(level) };
    }
}

/// The owner of the socket of a packet, for one that was made before us.
#[inline(always)]
pub fn of_packet(skb: *mut __sk_buff, root_level: u32, owner: &mut Owner) {
    // SAFETY: `skb` is the context.
    owner.leaf = unsafe { bpf_skb_cgroup_id(skb) };
    for depth in 0..MAX_DEPTH {
        let level = root_level as i32 + 1 + depth as i32;
        // SAFETY: as above.
        owner.below_root[depth] = unsafe { bpf_skb_ancestor_cgroup_id(skb, level) };
    }
}

/// The governed end behind a socket's storage: what [`zt_local`] finds, looked
/// up once per generation.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn zt_home(stored: *mut Socket) -> u64 {
    // SAFETY: the verifier checks what the callers pass.
    let (Some(stored), Some(control)) = (unsafe { stored.as_mut() }, control()) else {
        return 0;
    };
    let (generation, _) = crate::decide::generations(control);
    if stored.homed != generation || generation == 0 {
        let mut workload = Workload::default();
        stored.home = zt_local(&raw const stored.owner, generation, &raw mut workload);
        stored.homed = generation;
    }
    stored.home
}

/// Finds the enrolled cgroup at or above the socket's; the nearest wins.
/// Gives the socket's own cgroup, and what key 0's row says of its namespace,
/// if nobody enrolled any.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn zt_local(
    owner: *const Owner,
    generation: Generation,
    workload: *mut Workload,
) -> u64 {
    // SAFETY: the verifier checks what the callers pass.
    let (Some(owner), Some(workload)) = (unsafe { (owner.as_ref(), workload.as_mut()) }) else {
        return 0;
    };
    if let Some(found) = rows::workload(owner.leaf, generation) {
        *workload = found;
        return owner.leaf;
    }
    for depth in (0..MAX_DEPTH).rev() {
        let cgroup = owner.below_root[depth];
        if cgroup == 0 || cgroup == owner.leaf {
            continue;
        }
        if let Some(found) = rows::workload(cgroup, generation) {
            *workload = found;
            return cgroup;
        }
    }
    *workload = unenrolled(generation, owner.netns);
    owner.leaf
}

#[inline(always)]
fn unenrolled(generation: Generation, netns: u64) -> Workload {
    match rows::workload(0, generation) {
        Some(row) => row.of_unenrolled(netns),
        None => UNKNOWN_NODE,
    }
}

/// The row of an enrolled cgroup; key 0's row if it is not one.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn zt_enrolled(cgroup: u64, generation: Generation, workload: *mut Workload) -> u32 {
    // SAFETY: the verifier checks what the callers pass.
    let Some(workload) = (unsafe { workload.as_mut() }) else {
        return 0;
    };
    *workload = match rows::workload(cgroup, generation) {
        Some(found) if cgroup != 0 => found,
        _ => unenrolled(generation, 0),
    };
    0
}

/// Without a row for the unenrolled the node's mode is not known: enforce.
const UNKNOWN_NODE: Workload = Workload {
    netns: 0,
    identity: zt_common::identity::UNENROLLED,
    flags: zt_common::address::workload_flags::ENFORCE,
};

/// Reads one field of a kernel object with exactly the width of its type: the
/// verifier refuses a load that the compiler merged from two.
macro_rules! field {
    ($place:expr) => {
        // SAFETY: the verifier checks the pointer and the offset.
        unsafe { core::ptr::read_volatile(core::ptr::addr_of!($place)) }
    };
}
pub(crate) use field;

/// What the kernel says of a socket.
#[derive(Clone, Copy)]
pub struct SocketFacts {
    /// `SOCK_STREAM` and so on.
    pub kind: u32,
    pub protocol: u32,
    pub state: u32,
    /// Host byte order.
    pub local_port: u16,
}

#[inline(always)]
pub fn facts(sk: *mut bpf_sock) -> SocketFacts {
    SocketFacts {
        kind: field!((*sk).type_),
        protocol: field!((*sk).protocol),
        state: field!((*sk).state),
        local_port: field!((*sk).src_port) as u16,
    }
}
