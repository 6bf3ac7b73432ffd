//! What a packet says, read from its raw bytes by the letter of the standards:
//! RFC 791 (IPv4), 8200 (IPv6 and its extension headers), 4302 (AH), 9293
//! (TCP), 768 (UDP), 792 and 4443 (ICMP), 4861 (neighbour discovery), 2710 and
//! 3810 (listener reports).

use super::{ICMP, TCP, UDP};

const ICMPV6: u8 = 58;
/// ICMP of the other family: no protocol in this one.
const FOREIGN: u8 = 255;

/// What stands before the data.
pub enum Headers {
    /// Neither family's fixed header is there.
    None,
    Ip(Ip),
}

pub struct Ip {
    pub is_v4: bool,
    /// Something may lead the packet elsewhere: options other than a router
    /// alert alone, a routing header.
    pub is_led: bool,
    /// IPv4 in its mapped form.
    pub source: [u8; 16],
    pub destination: [u8; 16],
    /// Hop limit or time to live.
    hops: u8,
    pub rest: Rest,
}

pub enum Rest {
    /// Somewhere in the chain a fragment offset is not 0.
    LaterFragment(Fragment),
    /// A header ends behind the packet.
    Cut,
    Transport(Transport),
}

/// What a fragment header says.
#[derive(Clone, Copy, Default)]
pub struct Fragment {
    /// Bytes.
    pub offset: u32,
    pub more: bool,
    pub identification: u32,
}

/// The transport header; fields behind the packet's end are 0.
pub struct Transport {
    /// ICMPv6 is given as ICMP.
    pub protocol: u8,
    /// Where it starts, from the start of the IP header.
    pub at: usize,
    /// Where what was fragmented starts.
    pub start: usize,
    /// Of the last fragment header, or of the IPv4 header.
    pub fragment: Fragment,
    /// No options, no extension headers, no fragment, lengths that agree.
    pub is_plain: bool,
    /// Bytes from its start to the packet's end.
    pub length: usize,
    pub ports: (u16, u16),
    /// TCP.
    pub flags: u8,
    /// TCP.
    pub sequence: u32,
    /// ICMP.
    message: u8,
    pub is_echo: bool,
    pub is_error: bool,
    pub is_router: bool,
    /// It answers an ICMP message that asked.
    pub is_answer: bool,
    pub identifier: u16,
}

impl Ip {
    pub fn is_to_group(&self) -> bool {
        if self.is_v4 {
            (224..=239).contains(&self.destination[12])
        } else {
            self.destination[0] == 0xff
        }
    }
}

impl Transport {
    /// All of the fixed header is in the packet.
    pub fn is_whole(&self) -> bool {
        self.length >= if self.protocol == TCP { 20 } else { 8 }
    }

    /// Where the fixed header ends, from the start of what was fragmented.
    pub fn header_end(&self) -> usize {
        let length = if self.protocol == TCP { 20 } else { 8 };
        self.at - self.start + length
    }

    /// Neighbour discovery that no router can have passed on.
    pub fn is_discovery(&self, ip: &Ip) -> bool {
        !ip.is_v4 && ip.hops == 255 && matches!(self.message, 133 | 135 | 136)
    }

    /// A listener query, report or done message.
    pub fn is_report(&self, ip: &Ip) -> bool {
        !ip.is_v4 && ip.is_to_group() && matches!(self.message, 130 | 131 | 132 | 143)
    }
}

pub fn read(bytes: &[u8]) -> Headers {
    match bytes.first().map(|first| first / 16) {
        Some(4) if bytes.len() >= 20 => Headers::Ip(v4(bytes)),
        Some(6) if bytes.len() >= 40 => Headers::Ip(v6(bytes)),
        _ => Headers::None,
    }
}

fn v4(bytes: &[u8]) -> Ip {
    let header = usize::from(bytes[0] % 16) * 4;
    // Flags and fragment offset: three bits, and thirteen in units of 8 bytes.
    let field = word(bytes, 6);
    let fragment = Fragment {
        offset: u32::from(field & 0x1fff) * 8,
        more: field & 0x2000 != 0,
        identification: word(bytes, 4).into(),
    };
    let options = bytes.get(20..header).unwrap_or_default();
    let rest = if fragment.offset > 0 {
        Rest::LaterFragment(fragment)
    } else if header < 20 || header > bytes.len() {
        Rest::Cut
    } else {
        let lengths_agree = usize::from(word(bytes, 2)) == bytes.len();
        let chain = Chain {
            at: header,
            start: header,
            fragment,
            is_plain: header == 20 && !fragment.more && lengths_agree,
        };
        Rest::Transport(match bytes[9] {
            ICMPV6 => chain.transport(bytes, FOREIGN),
            ICMP => chain.icmp(bytes, &ICMP_V4),
            protocol => chain.transport(bytes, protocol),
        })
    };
    Ip {
        is_v4: true,
        is_led: header > 20 && !matches!(options, [148, 4, _, _]),
        source: mapped(bytes, 12),
        destination: mapped(bytes, 16),
        hops: bytes[8],
        rest,
    }
}

fn v6(bytes: &[u8]) -> Ip {
    let sixteen = |at: usize| std::array::from_fn(|index| bytes[at + index]);
    let (rest, is_led) = extensions(bytes);
    Ip {
        is_v4: false,
        is_led,
        source: sixteen(8),
        destination: sixteen(24),
        hops: bytes[7],
        rest,
    }
}

/// Walks the chain of extension headers, however long it is; whether one of
/// them is a routing header.
fn extensions(bytes: &[u8]) -> (Rest, bool) {
    let mut next = bytes[6];
    let mut is_led = false;
    let mut chain = Chain {
        at: 40,
        start: 40,
        fragment: Fragment::default(),
        is_plain: usize::from(word(bytes, 4)) + 40 == bytes.len(),
    };
    loop {
        let rest = bytes.get(chain.at..).unwrap_or_default();
        let length = match next {
            // In units of 8 bytes, without the first 8.
            0 | 43 | 60 => rest.get(1).map(|units| 8 + usize::from(*units) * 8),
            // In units of 4 bytes, without the first 8.
            51 => rest.get(1).map(|units| 8 + usize::from(*units) * 4),
            44 if rest.len() < 8 => None,
            44 => Some(8),
            _ if chain.at > bytes.len() => None,
            ICMPV6 => return (Rest::Transport(chain.icmp(bytes, &ICMP_V6)), is_led),
            ICMP => return (Rest::Transport(chain.transport(bytes, FOREIGN)), is_led),
            other => return (Rest::Transport(chain.transport(bytes, other)), is_led),
        };
        let Some(length) = length else {
            return (Rest::Cut, is_led);
        };
        is_led |= next == 43;
        if next == 44 {
            // Thirteen bits in units of 8 bytes, then two reserved, then "more".
            let field = word(rest, 2);
            chain.fragment = Fragment {
                offset: u32::from(field / 8) * 8,
                more: field % 2 == 1,
                identification: u32::from(word(rest, 4)) << 16 | u32::from(word(rest, 6)),
            };
            chain.start = chain.at + length;
            if chain.fragment.offset > 0 {
                return (Rest::LaterFragment(chain.fragment), is_led);
            }
        }
        chain.is_plain = false;
        next = rest[0];
        chain.at += length;
    }
}

/// What stands before the transport header.
struct Chain {
    at: usize,
    start: usize,
    fragment: Fragment,
    is_plain: bool,
}

impl Chain {
    fn transport(&self, bytes: &[u8], protocol: u8) -> Transport {
        let header = &bytes[self.at..];
        let byte = |at: usize| header.get(at).copied().unwrap_or(0);
        let lengths_agree = match protocol {
            TCP => {
                let length = usize::from(byte(12) / 16) * 4;
                (20..=header.len()).contains(&length)
            }
            UDP => usize::from(word_or_zero(header, 4)) == header.len(),
            _ => true,
        };
        Transport {
            protocol,
            at: self.at,
            start: self.start,
            fragment: self.fragment,
            is_plain: self.is_plain && lengths_agree,
            length: header.len(),
            ports: (word_or_zero(header, 0), word_or_zero(header, 2)),
            flags: byte(13),
            sequence: u32::from(word_or_zero(header, 4)) << 16 | u32::from(word_or_zero(header, 6)),
            message: byte(0),
            is_echo: false,
            is_error: false,
            is_router: false,
            is_answer: false,
            identifier: word_or_zero(header, 4),
        }
    }

    fn icmp(&self, bytes: &[u8], messages: &Messages) -> Transport {
        let transport = self.transport(bytes, ICMP);
        Transport {
            is_echo: messages.echo.contains(&transport.message),
            is_error: (messages.is_error)(transport.message),
            is_router: messages.router.contains(&transport.message),
            is_answer: messages.answers.contains(&transport.message),
            ..transport
        }
    }
}

/// Types of ICMP messages.
struct Messages {
    echo: [u8; 2],
    is_error: fn(u8) -> bool,
    /// Router advertisements and redirects.
    router: [u8; 2],
    answers: &'static [u8],
}

const ICMP_V4: Messages = Messages {
    echo: [8, 0],
    is_error: |message| matches!(message, 3 | 4 | 11 | 12),
    router: [9, 5],
    answers: &[0, 14, 16, 18],
};

const ICMP_V6: Messages = Messages {
    echo: [128, 129],
    is_error: |message| message < 128,
    router: [134, 137],
    answers: &[129, 140],
};

fn mapped(bytes: &[u8], at: usize) -> [u8; 16] {
    let mut ip = [0; 16];
    ip[10..12].fill(0xff);
    ip[12..].copy_from_slice(&bytes[at..at + 4]);
    ip
}

/// Two bytes in network order, which must be there.
fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from(bytes[at]) * 256 + u16::from(bytes[at + 1])
}

fn word_or_zero(bytes: &[u8], at: usize) -> u16 {
    if bytes.len() >= at + 2 {
        word(bytes, at)
    } else {
        0
    }
}
