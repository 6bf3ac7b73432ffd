//! A netlink socket: requests and their answers, one at a time.

use std::{
    io::{self, IoSliceMut},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvmsg,
            send, setsockopt, socket, sockopt,
        },
        time::TimeVal,
    },
};

use super::{
    NetlinkError,
    message::{self, Message, Received},
};

/// `NLM_F_REQUEST`
const REQUEST: u16 = 1;
/// `NLM_F_ACK`
const ACK: u16 = 4;
/// `NLM_F_DUMP`
const DUMP: u16 = 0x300;
/// `NLM_F_DUMP_INTR`: what is dumped changed meanwhile.
const INTERRUPTED: u16 = 0x10;
/// `NLM_F_ACK_TLVS`: an acknowledgement has attributes.
const EXPLAINED: u16 = 0x200;
/// `NLMSGERR_ATTR_MSG`
const EXPLANATION: u16 = 1;
/// `NLMSG_ERROR`: also the acknowledgement, with number 0.
const ERROR: u16 = 2;
/// `NLMSG_DONE`
const DONE: u16 = 3;
/// Below are the control messages.
const FIRST_KIND: u16 = 16;

/// The kernel's datagrams of a dump are at most 32 KiB.
const BUFFER: usize = 64 << 10;
/// The kernel answers within the call; this only keeps us from waiting for
/// ever for an answer that was lost.
const PATIENCE_SECONDS: i64 = 10;
/// A dump that changed while it was read is read again.
const ATTEMPTS: usize = 8;

/// Which part of the kernel is talked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Links, addresses, namespaces, traffic control.
    Route,
    /// nf_tables.
    Netfilter,
    /// Socket diagnostics.
    SockDiag,
}

impl Protocol {
    fn number(self) -> SockProtocol {
        match self {
            Self::Route => SockProtocol::NetlinkRoute,
            Self::Netfilter => SockProtocol::NetlinkNetFilter,
            Self::SockDiag => SockProtocol::NetlinkSockDiag,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Route => "routing",
            Self::Netfilter => "netfilter",
            Self::SockDiag => "socket diagnostics",
        }
    }

    fn failed(self) -> impl Fn(Errno) -> NetlinkError {
        move |errno| NetlinkError::Socket {
            protocol: self.name(),
            source: errno.into(),
        }
    }
}

/// One message of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    pub kind: u16,
    /// What follows the header.
    pub body: Vec<u8>,
}

/// Talks to the kernel about the network namespace it was opened in.
#[derive(Debug)]
pub struct Socket {
    descriptor: OwnedFd,
    protocol: Protocol,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// # Errors
    /// When there is no such protocol, or no descriptor.
    pub fn open(protocol: Protocol) -> Result<Self, NetlinkError> {
        let descriptor = bound(protocol, SockFlag::SOCK_CLOEXEC, 0)?;
        let patience = TimeVal::new(PATIENCE_SECONDS, 0);
        setsockopt(&descriptor, sockopt::ReceiveTimeout, &patience).map_err(protocol.failed())?;
        // Errors come with an explanation, and without our own message.
        for option in [libc::NETLINK_CAP_ACK, libc::NETLINK_EXT_ACK] {
            enable(descriptor.as_fd(), option).map_err(protocol.failed())?;
        }
        Ok(Self {
            descriptor,
            protocol,
            sequence: 0,
            buffer: vec![0; BUFFER],
        })
    }

    /// Sends one request and gives what the kernel said before it
    /// acknowledged. `what` is for people.
    ///
    /// # Errors
    /// What the kernel answered, or no answer that makes sense.
    pub fn ask(&mut self, what: &str, mut request: Message) -> Result<Vec<Reply>, NetlinkError> {
        request.flags |= REQUEST | ACK;
        let sequence = self.send(what, std::slice::from_ref(&request))?;
        self.answer(what, sequence).map(|answer| answer.replies)
    }

    /// Reads everything of a kind. Several attempts, if it changes meanwhile.
    ///
    /// # Errors
    /// What the kernel answered, or that it never stood still.
    pub fn dump(&mut self, what: &str, mut request: Message) -> Result<Vec<Reply>, NetlinkError> {
        request.flags |= REQUEST | DUMP;
        for _ in 0..ATTEMPTS {
            let sequence = self.send(what, std::slice::from_ref(&request))?;
            let answer = self.answer(what, sequence)?;
            if !answer.interrupted {
                return Ok(answer.replies);
            }
        }
        Err(NetlinkError::Answer {
            what: what.to_owned(),
            problem: "never complete: it keeps changing; try again",
        })
    }

    /// Sends messages in one go, as one transaction of nf_tables: the first
    /// and the last are its frame. `name` says what a message does.
    ///
    /// # Errors
    /// The index of the first message that was refused, and why. All have been
    /// taken back then. 0 if it concerns all of them.
    pub fn transact(
        &mut self,
        messages: &[Message],
        name: impl Fn(usize) -> String,
    ) -> Result<(), (usize, NetlinkError)> {
        let whole = |error| (0, error);
        let mut messages = messages.to_vec();
        // Refusals come unasked, in the order of the messages; so the answer
        // to the last but the frame ends them.
        let last = messages.len().saturating_sub(2);
        if let Some(message) = messages.get_mut(last) {
            message.flags |= ACK;
        }
        let first = self.send("transaction", &messages).map_err(whole)?;
        let mut refused = None;
        loop {
            let length = self.receive().map_err(whole)?;
            for message in message::messages(&self.buffer[..length]) {
                let message = message.map_err(NetlinkError::answer("transaction"));
                let message = message.map_err(whole)?;
                let index =
                    usize::try_from(message.sequence.wrapping_sub(first)).unwrap_or(usize::MAX);
                if message.kind != ERROR || index >= messages.len() {
                    continue;
                }
                let answer = acknowledged(&name(index), &message);
                // Of the frame there is an answer only if nothing else of it
                // was looked at, or if all of it failed in the end.
                let over = index == last || (index == 0 && answer.is_err());
                if let Err(error) = answer {
                    refused.get_or_insert((index, error));
                }
                if over {
                    return refused.map_or(Ok(()), Err);
                }
            }
        }
    }

    /// Gives the sequence number of the first.
    fn send(&mut self, what: &str, messages: &[Message]) -> Result<u32, NetlinkError> {
        let first = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        for message in messages {
            self.sequence = self.sequence.wrapping_add(1);
            message
                .write(self.sequence, &mut bytes)
                .map_err(NetlinkError::answer(what))?;
        }
        send(self.descriptor.as_raw_fd(), &bytes, MsgFlags::empty())
            .map_err(self.protocol.failed())?;
        Ok(first)
    }

    /// Everything of one sequence number until its end. What belongs to an
    /// earlier request, whose answer nobody waited for, is passed over.
    fn answer(&mut self, what: &str, sequence: u32) -> Result<Answer, NetlinkError> {
        let mut answer = Answer::default();
        loop {
            let length = self.receive()?;
            for message in message::messages(&self.buffer[..length]) {
                let message = message.map_err(NetlinkError::answer(what))?;
                if message.sequence == sequence && answer.take(what, &message)? {
                    return Ok(answer);
                }
            }
        }
    }

    /// The length of the kernel's next datagram.
    fn receive(&mut self) -> Result<usize, NetlinkError> {
        loop {
            let received = receive(self.descriptor.as_fd(), &mut self.buffer);
            if let Some(length) = received.map_err(self.protocol.failed())? {
                return Ok(length);
            }
        }
    }
}

#[derive(Debug, Default)]
struct Answer {
    replies: Vec<Reply>,
    interrupted: bool,
}

impl Answer {
    /// Whether that was the last message.
    fn take(&mut self, what: &str, message: &Received<'_>) -> Result<bool, NetlinkError> {
        self.interrupted |= message.flags & INTERRUPTED != 0;
        match message.kind {
            ERROR => acknowledged(what, message).map(|()| true),
            DONE => finished(what, message).map(|()| true),
            kind if kind < FIRST_KIND => Ok(false),
            kind => {
                let body = message.body.to_vec();
                self.replies.push(Reply { kind, body });
                Ok(false)
            }
        }
    }
}

fn acknowledged(what: &str, message: &Received<'_>) -> Result<(), NetlinkError> {
    let code = message::i32_at(message.body, 0).map_err(NetlinkError::answer(what))?;
    refuse(what, code, || {
        // After the number comes the header of our request, and nothing else
        // of it: that was agreed on when the socket was opened.
        let attributes = message.body.get(4 + message::HEADER..)?;
        let explained = message.flags & EXPLAINED != 0;
        let found = explained.then(|| message::find(attributes, EXPLANATION).ok())??;
        found.map(message::text)
    })
}

/// The end of a dump says whether it is complete.
fn finished(what: &str, message: &Received<'_>) -> Result<(), NetlinkError> {
    let code = message::i32_at(message.body, 0).map_err(NetlinkError::answer(what))?;
    refuse(what, code, || None)
}

fn refuse(
    what: &str,
    code: i32,
    explanation: impl FnOnce() -> Option<String>,
) -> Result<(), NetlinkError> {
    if code == 0 {
        return Ok(());
    }
    Err(NetlinkError::Refused {
        what: what.to_owned(),
        source: io::Error::from_raw_os_error(code.wrapping_neg()),
        text: explanation(),
    })
}

/// A socket that gets the messages of the groups, as bits.
pub(super) fn bound(
    protocol: Protocol,
    flags: SockFlag,
    groups: u32,
) -> Result<OwnedFd, NetlinkError> {
    let number = protocol.number();
    let descriptor =
        socket(AddressFamily::Netlink, SockType::Raw, flags, number).map_err(protocol.failed())?;
    bind(descriptor.as_raw_fd(), &NetlinkAddr::new(0, groups)).map_err(protocol.failed())?;
    Ok(descriptor)
}

/// One datagram: its length, or `None` if it is not the kernel's.
pub(super) fn receive(from: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<Option<usize>, Errno> {
    let mut slices = [IoSliceMut::new(buffer)];
    let received = loop {
        let flags = MsgFlags::empty();
        match recvmsg::<NetlinkAddr>(from.as_raw_fd(), &mut slices, None, flags) {
            Err(Errno::EINTR) => {}
            other => break other?,
        }
    };
    if received.flags.contains(MsgFlags::MSG_TRUNC) {
        return Err(Errno::EMSGSIZE);
    }
    let is_kernel = received.address.is_some_and(|address| address.pid() == 0);
    Ok(is_kernel.then_some(received.bytes))
}

fn enable(descriptor: BorrowedFd<'_>, option: libc::c_int) -> Result<(), Errno> {
    let on: libc::c_int = 1;
    let length = libc::socklen_t::try_from(size_of_val(&on)).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the kernel reads `length` bytes of `on`.
    let result = unsafe {
        libc::setsockopt(
            descriptor.as_raw_fd(),
            libc::SOL_NETLINK,
            option,
            (&raw const on).cast(),
            length,
        )
    };
    Errno::result(result).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::message::Attributes;

    fn error(code: i32, explanation: &str) -> Reply {
        let mut body = code.to_ne_bytes().to_vec();
        body.extend([0; message::HEADER]);
        body.extend(Attributes::new().text(EXPLANATION, explanation).bytes());
        Reply { kind: ERROR, body }
    }

    fn received(reply: &Reply, flags: u16) -> Received<'_> {
        Received {
            kind: reply.kind,
            flags,
            sequence: 1,
            body: &reply.body,
        }
    }

    #[test]
    fn a_refusal_is_an_error_with_the_kernels_explanation() {
        let reply = error(-libc::EBUSY, "in use");
        let refused = Answer::default().take("it", &received(&reply, EXPLAINED));
        let NetlinkError::Refused { text, source, .. } = refused.unwrap_err() else {
            panic!("not a refusal")
        };
        assert_eq!(text.as_deref(), Some("in use"));
        assert_eq!(source.raw_os_error(), Some(libc::EBUSY));
        assert!(
            Answer::default()
                .take("it", &received(&error(0, ""), 0))
                .unwrap()
        );
    }

    #[test]
    fn an_empty_acknowledgement_is_malformed_and_not_a_yes() {
        let reply = Reply {
            kind: ERROR,
            body: Vec::new(),
        };
        let result = Answer::default().take("it", &received(&reply, 0));
        assert!(matches!(result, Err(NetlinkError::Answer { .. })));
    }

    #[test]
    fn an_interrupted_dump_is_known_and_a_failed_one_is_an_error() {
        let mut answer = Answer::default();
        let part = Reply {
            kind: 16,
            body: vec![0; 16],
        };
        assert!(!answer.take("it", &received(&part, INTERRUPTED)).unwrap());
        assert!(answer.interrupted);
        let end = |code: i32| Reply {
            kind: DONE,
            body: code.to_ne_bytes().to_vec(),
        };
        assert!(answer.take("it", &received(&end(0), 0)).unwrap());
        assert!(
            answer
                .take("it", &received(&end(-libc::ENODEV), 0))
                .is_err()
        );
        assert_eq!(answer.replies, [part]);
    }

    #[test]
    fn what_the_kernel_does_not_know_is_refused() {
        let mut socket = Socket::open(Protocol::Route).unwrap();
        let nonsense = Message::new(4095, 0, &[0; 16], &Attributes::new());
        let refused = socket.ask("nonsense", nonsense).unwrap_err();
        assert_eq!(refused.errno(), Some(libc::EOPNOTSUPP), "{refused}");
    }
}
