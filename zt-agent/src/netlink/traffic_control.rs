//! The `clsact` queueing discipline and its classifiers: how programs are
//! attached to an interface where there is no TCX.
//!
//! Attributes: the kernel's `include/uapi/linux/{rtnetlink,pkt_sched,pkt_cls}.h`.

use std::os::fd::{AsRawFd, BorrowedFd};

use super::{
    NetlinkError,
    message::{self, Attributes, Malformed, Message},
    socket::{Protocol, Socket},
};

const NEW_QDISC: u16 = 36;
const GET_QDISC: u16 = 38;
const NEW_FILTER: u16 = 44;
const DELETE_FILTER: u16 = 45;
const GET_FILTER: u16 = 46;

/// `NLM_F_EXCL`, `NLM_F_CREATE`
const EXCLUSIVE: u16 = 0x200;
const CREATE: u16 = 0x400;

/// Bytes of `struct tcmsg`.
const HEADER: usize = 20;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_ID: u16 = 11;
/// What the program returns is the verdict.
const DIRECT_ACTION: u32 = 1;

/// Where `clsact` is attached, and `ingress`, which leaves no room for it.
const CLSACT_PARENT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
const CLSACT: &str = "clsact";

/// Which packets of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// Those that come in by it.
    Ingress,
    /// Those that go out by it.
    Egress,
}

impl Side {
    fn parent(self) -> u32 {
        match self {
            Self::Ingress => 0xffff_fff2,
            Self::Egress => 0xffff_fff3,
        }
    }

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

/// A place in the order of classifiers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// 1 is first.
    pub priority: u16,
    /// Tells those of one priority apart.
    pub handle: u32,
}

/// A classifier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    pub slot: Slot,
    /// `bpf`, `u32`, `flower`…
    pub kind: String,
    /// Of a program.
    pub program_id: Option<u32>,
    pub name: Option<String>,
}

/// Gives an interface the queueing discipline; one that has it keeps it.
///
/// # Errors
/// When the interface has `ingress` in its place, or is not there.
pub fn ensure_clsact(interface: u32) -> Result<(), NetlinkError> {
    let what = format!("clsact on interface {interface}");
    let header = header(interface, CLSACT_HANDLE, CLSACT_PARENT, 0);
    let attributes = Attributes::new().text(TCA_KIND, CLSACT);
    let request = Message::new(NEW_QDISC, CREATE | EXCLUSIVE, &header, &attributes);
    match Socket::open(Protocol::Route)?.ask(&what, request) {
        Err(error) if error.errno() == Some(libc::EEXIST) && has_clsact(interface)? => Ok(()),
        Err(NetlinkError::Refused { source, .. }) if source.raw_os_error() == Some(libc::EEXIST) => {
            Err(NetlinkError::Refused {
                what,
                source,
                text: Some("it has the queueing discipline `ingress` in its place; whoever added that must use clsact".to_owned()),
            })
        }
        other => other.map(drop),
    }
}

fn has_clsact(interface: u32) -> Result<bool, NetlinkError> {
    let what = format!("queueing disciplines of interface {interface}");
    let request = Message::new(
        GET_QDISC,
        0,
        &header(interface, 0, 0, 0),
        &Attributes::new(),
    );
    let replies = Socket::open(Protocol::Route)?.dump(&what, request)?;
    for reply in replies {
        let found = is_clsact(&reply.body, interface);
        if found.map_err(NetlinkError::answer(&what))? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn is_clsact(body: &[u8], interface: u32) -> Result<bool, Malformed> {
    let attributes = body.get(HEADER..).ok_or(Malformed)?;
    let kind = message::find(attributes, TCA_KIND)?.map(message::text);
    Ok(message::u32_at(body, 4)? == interface && kind.as_deref() == Some(CLSACT))
}

/// Attaches a program at a slot, or puts it in one step in the place of the
/// one that is there.
///
/// # Errors
/// When the interface has no `clsact`, or another kind of classifier has the
/// priority.
pub fn set_program(
    interface: u32,
    side: Side,
    slot: Slot,
    program: BorrowedFd<'_>,
    name: &str,
) -> Result<(), NetlinkError> {
    let what = format!("program at {} of interface {interface}", side.name());
    let options = Attributes::new()
        .u32(TCA_BPF_FD, program.as_raw_fd().cast_unsigned())
        .text(TCA_BPF_NAME, name)
        .u32(TCA_BPF_FLAGS, DIRECT_ACTION);
    let attributes = Attributes::new()
        .text(TCA_KIND, "bpf")
        .nest(TCA_OPTIONS, &options);
    let header = of_slot(interface, side, slot);
    let request = Message::new(NEW_FILTER, CREATE, &header, &attributes);
    Socket::open(Protocol::Route)?.ask(&what, request).map(drop)
}

/// Takes away the classifier at a slot.
///
/// # Errors
/// When there is none.
pub fn delete(interface: u32, side: Side, slot: Slot) -> Result<(), NetlinkError> {
    let what = format!("removal from {} of interface {interface}", side.name());
    let attributes = Attributes::new().text(TCA_KIND, "bpf");
    let header = of_slot(interface, side, slot);
    let request = Message::new(DELETE_FILTER, 0, &header, &attributes);
    Socket::open(Protocol::Route)?.ask(&what, request).map(drop)
}

/// The classifiers of one side of an interface, in the order in which they
/// are asked. None where there is no `clsact`.
///
/// # Errors
/// When the interface is not there, or the kernel cannot be asked.
pub fn filters(interface: u32, side: Side) -> Result<Vec<Filter>, NetlinkError> {
    if !has_clsact(interface)? {
        return Ok(Vec::new());
    }
    let what = format!("classifiers at {} of interface {interface}", side.name());
    let header = header(interface, 0, side.parent(), 0);
    let request = Message::new(GET_FILTER, 0, &header, &Attributes::new());
    let replies = Socket::open(Protocol::Route)?.dump(&what, request)?;
    let filters = replies.iter().filter(|reply| reply.kind == NEW_FILTER);
    let found = filters.filter_map(|reply| filter(&reply.body).transpose());
    found
        .map(|filter| filter.map_err(NetlinkError::answer(&what)))
        .collect()
}

/// None for what only heads the classifiers of one priority.
fn filter(body: &[u8]) -> Result<Option<Filter>, Malformed> {
    let handle = message::u32_at(body, 8)?;
    let [_, _, low, high] = message::u32_at(body, 16)?.to_le_bytes();
    let attributes = body.get(HEADER..).ok_or(Malformed)?;
    let kind = message::find(attributes, TCA_KIND)?.map(message::text);
    let Some(options) = message::find(attributes, TCA_OPTIONS)? else {
        return Ok(None);
    };
    let kind = kind.ok_or(Malformed)?;
    let (mut program_id, mut name) = (None, None);
    if kind == "bpf" {
        let id = message::find(options, TCA_BPF_ID)?;
        program_id = id.map(|id| message::u32_at(id, 0)).transpose()?;
        name = message::find(options, TCA_BPF_NAME)?.map(message::text);
    }
    Ok(Some(Filter {
        slot: Slot {
            priority: u16::from_le_bytes([low, high]),
            handle,
        },
        kind,
        program_id,
        name,
    }))
}

fn of_slot(interface: u32, side: Side, slot: Slot) -> [u8; HEADER] {
    let protocol = u16::try_from(libc::ETH_P_ALL).expect("a protocol").to_be();
    let info = u32::from(slot.priority) << 16 | u32::from(protocol);
    header(interface, slot.handle, side.parent(), info)
}

fn header(interface: u32, handle: u32, parent: u32, info: u32) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    for (at, number) in [interface, handle, parent, info].into_iter().enumerate() {
        let start = 4 + 4 * at;
        header[start..start + 4].copy_from_slice(&number.to_ne_bytes());
    }
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_read_with_its_slot_and_a_heading_is_none() {
        let slot = Slot {
            priority: 1,
            handle: 0x7a74,
        };
        let options = Attributes::new()
            .text(TCA_BPF_NAME, "zt_tc_from")
            .u32(TCA_BPF_ID, 77);
        let heading = Attributes::new().text(TCA_KIND, "bpf");
        let attributes = heading.clone().nest(TCA_OPTIONS, &options);
        let body = |attributes: &Attributes| {
            [&of_slot(3, Side::Egress, slot)[..], attributes.bytes()].concat()
        };
        let expected = Filter {
            slot,
            kind: "bpf".into(),
            program_id: Some(77),
            name: Some("zt_tc_from".into()),
        };
        assert_eq!(filter(&body(&attributes)), Ok(Some(expected)));
        assert_eq!(filter(&body(&heading)), Ok(None));
        assert_eq!(filter(&body(&attributes)[..HEADER - 1]), Err(Malformed));
    }
}
