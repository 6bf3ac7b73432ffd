//! The decision event, as it stands in the ring buffer `zt_events_v1`.

use crate::{address::Ip, identity::Number, version::Generation};

/// One decision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Event {
    /// `CLOCK_BOOTTIME` nanoseconds.
    pub time: u64,
    /// Sequence number on `cpu`, without gaps: a missing one is a lost event.
    pub sequence: u64,
    /// The cgroup of the governed end: enrolled, or its own if unenrolled.
    pub cgroup: u64,
    /// The other end.
    pub remote: Ip,
    pub source: Number,
    pub destination: Number,
    pub generation: Generation,
    /// The rule that decided; 0: none.
    pub rule: u32,
    /// The rule that would decide if the policies in audit mode were in
    /// force; see `would_verdict`.
    pub would_rule: u32,
    /// From the start of the program to the verdict.
    pub latency_ns: u32,
    /// Host byte order.
    pub remote_port: u16,
    pub local_port: u16,
    pub cpu: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// [`crate::codes::Hook`].
    pub hook: u8,
    /// [`crate::codes::Direction`].
    pub direction: u8,
    /// [`crate::codes::Verdict`].
    pub verdict: u8,
    /// [`crate::codes::Reason`].
    pub reason: u8,
    /// [`crate::codes::Verdict`] with the policies in audit mode in force;
    /// 0 if it would be the same.
    pub would_verdict: u8,
    /// Index of the node's interface at which it was decided; 0: at a socket.
    pub interface: u32,
}

crate::plain!(Event = 80);

/// Room one event takes in the ring: the record and its 8-byte header.
pub const RING_RECORD: u64 = size_of::<Event>() as u64 + 8;

impl Event {
    /// Reads an event from the bytes of a ring record; `None` if the length
    /// is not that of an event.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != size_of::<Self>() {
            return None;
        }
        // SAFETY: the length was checked, the read is unaligned, and every
        // bit pattern is a valid `Event`.
        Some(unsafe { bytes.as_ptr().cast::<Self>().read_unaligned() })
    }
}
