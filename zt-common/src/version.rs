//! Generations: how a change of many rows becomes true with one write.
//!
//! Every row holds two versions of its value, each valid from one generation
//! until another. A change writes new versions that are valid from the next
//! generation on, ends the old ones there, and then writes the active
//! generation once. A program reads the generation once per decision and so
//! sees all of a change or none of it. After a grace period nobody can still
//! read the old generation, and its versions may be overwritten or deleted.

use crate::{
    address::{AddressKey, CidrKey, Interface, Peer, Workload},
    policy::{Entry, PolicyKey, RangeKey},
};

/// Number of a compiled policy state. 0: none was ever active.
pub type Generation = u32;

/// [`Version::until`] of a version that no change has ended.
pub const FOREVER: Generation = Generation::MAX;

/// One value and the generations it is valid for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Version<T> {
    /// First generation it is valid in.
    pub from: Generation,
    /// First generation it is no longer valid in.
    pub until: Generation,
    pub value: T,
}

impl<T> Version<T> {
    /// Whether it is valid in `generation`.
    #[inline(always)]
    pub const fn covers(&self, generation: Generation) -> bool {
        self.from <= generation && generation < self.until
    }
}

/// A row of a versioned map.
///
/// `key` repeats the row's key: the kernel reuses the memory of a deleted or
/// replaced hash element at once, and a program that still holds the pointer
/// would read another key's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Row<K, T, const PAD: usize> {
    pub versions: [Version<T>; 2],
    pub key: K,
    /// Fills the row to a multiple of eight bytes.
    pub zero: [u8; PAD],
}

/// Row of `zt_policy_v1`.
pub type PolicyRow = Row<PolicyKey, Entry, 4>;
/// Row of `zt_range_v1`.
pub type RangeRow = Row<RangeKey, Entry, 4>;
/// Row of `zt_address_v1`.
pub type AddressRow = Row<AddressKey, Peer, 4>;
/// Row of `zt_cidr_v1`.
pub type CidrRow = Row<CidrKey, Peer, 4>;
/// Row of `zt_workload_v1`.
pub type WorkloadRow = Row<u64, Workload, 0>;
/// Row of `zt_interface_v1`.
pub type InterfaceRow = Row<u32, Interface, 4>;

crate::plain!(
    PolicyRow = 112,
    RangeRow = 120,
    AddressRow = 88,
    CidrRow = 88,
    WorkloadRow = 56,
    InterfaceRow = 152,
);

impl<K, T: Copy, const PAD: usize> Row<K, T, PAD> {
    /// The value that is valid in `generation`, if this is still `key`'s row.
    ///
    /// The key is looked at before and after the value is copied: an element
    /// that is reused in between shows another key.
    #[inline(always)]
    pub fn at(&self, key: &K, generation: Generation) -> Option<T> {
        let value = self.version(key, generation)?.value;
        same(&self.key, key).then_some(value)
    }

    /// As [`Row::at`], without the second look: for a caller that copies the
    /// value itself and looks at the key again afterwards.
    #[inline(always)]
    pub fn version(&self, key: &K, generation: Generation) -> Option<&Version<T>> {
        if same(&self.key, key) {
            self.current(generation)
        } else {
            None
        }
    }

    /// The version that is valid in `generation`, whatever the key. For a
    /// trie, whose nodes are only reused after a grace period.
    #[inline(always)]
    pub fn current(&self, generation: Generation) -> Option<&Version<T>> {
        if self.versions[0].covers(generation) {
            Some(&self.versions[0])
        } else if self.versions[1].covers(generation) {
            Some(&self.versions[1])
        } else {
            None
        }
    }
}

/// Whether two keys are equal, in 32-bit words and without a branch per word:
/// a byte-wise comparison costs a BPF program four times the loads, and the
/// verifier a path for every byte. The reads are volatile: the kernel may be
/// writing one of them.
#[inline(always)]
pub fn same<K>(one: &K, other: &K) -> bool {
    const { assert!(size_of::<K>().is_multiple_of(4) && align_of::<K>() >= 4) };
    let (one, other) = (
        core::ptr::from_ref(one).cast::<u32>(),
        core::ptr::from_ref(other).cast::<u32>(),
    );
    let mut difference = 0;
    let mut word = 0;
    while word < size_of::<K>() / 4 {
        // SAFETY: inside both keys, which are aligned to four bytes.
        difference |= unsafe { one.add(word).read_volatile() ^ other.add(word).read_volatile() };
        word += 1;
    }
    difference == 0
}

impl<K, T: Copy + Default, const PAD: usize> Row<K, T, PAD> {
    /// A row whose value becomes valid in generation `from`.
    pub fn starting(key: K, value: T, from: Generation) -> Self {
        let first = Version {
            from,
            until: FOREVER,
            value,
        };
        Self {
            versions: [first, Version::default()],
            key,
            zero: [0; PAD],
        }
    }
}
