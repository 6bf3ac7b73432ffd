//! What the kernel programs and the agent share.
//!
//! Everything here is `no_std`, `repr(C)` and free of implicit padding: a
//! value is read by two compilers, by `bpftool` and by the kernel. The sizes
//! are asserted at compile time beside each type.
#![cfg_attr(not(test), no_std)]

pub mod address;
pub mod claim;
pub mod codes;
pub mod event;
pub mod flow;
pub mod identity;
pub mod packet;
pub mod policy;
pub mod reset;
pub mod state;
pub mod verdict;
pub mod version;

/// Depth below the managed root down to which a cgroup can be enrolled.
///
/// `kubepods.slice` → QoS class → pod → container is three; one to spare. A
/// process deeper than this still belongs to the enrolled cgroup above it.
pub const MAX_DEPTH: usize = 4;

/// Marks a type that may cross the map boundary as plain bytes.
///
/// Every byte pattern is a valid value and there is no padding, so a row that
/// somebody else wrote is at worst wrong, never undefined behaviour.
macro_rules! plain {
    ($($type:ty = $size:literal),+ $(,)?) => {$(
        const _: () = assert!(core::mem::size_of::<$type>() == $size);
        const _: () = assert!(core::mem::align_of::<$type>() <= 8);
        // SAFETY: `repr(C)` integers only, no padding (the size is the sum of
        // the fields, asserted above), and every bit pattern is valid.
        #[cfg(feature = "user")]
        unsafe impl aya::Pod for $type {}
    )+};
}
pub(crate) use plain;
