//! What a packet says, read from its raw bytes by the letter of the standards:
//! RFC 791 (IPv4), 8200 (IPv6 and its extension headers), 4302 (AH), 9293
//! (TCP), 768 (UDP), 792 and 4443 (ICMP), 4861 (neighbour discovery), 2710 and
//! 3810 (listener reports).

use super::{ICMP, TCP, UDP};

const ICMPV6: u8 = 58;
/// An ICMP packet that came in the other family's packets: no protocol.
const FOREIGN_ICMP: u8 = 255;

/// Types of an echo request and its reply.
const ECHO_V4: [u8; 2] = [8, 0];
const ECHO_V6: [u8; 2] = [128, 129];

/// What stands before the data.
pub enum Headers {
    /// Neither family's fixed header is there.
    None,
    Ip(Ip),
}

pub struct Ip {
    pub is_v4: bool,
    /// IPv4 in its mapped form.
    pub source: [u8; 16],
    pub destination: [u8; 16],
    /// Hop limit or time to live.
    hops: u8,
    pub rest: Rest,
}

pub enum Rest {
    /// Somewhere in the chain a fragment offset is not 0.
    LaterFragment,
    /// A header ends behind the packet.
    Cut,
    Transport(Transport),
}

/// The transport header; fields behind the packet's end are 0.
pub struct Transport {
    /// ICMPv6 is given as ICMP.
    pub protocol: u8,
    /// No options, no extension headers, no fragment, lengths that agree.
    pub is_plain: bool,
    /// All of the fixed header is in the packet.
    pub is_whole: bool,
    pub ports: (u16, u16),
    /// TCP.
    pub flags: u8,
    /// ICMP.
    message: u8,
    pub is_echo: bool,
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
    let fragment = word(bytes, 6);
    let (more, offset) = (fragment & 0x2000 != 0, fragment & 0x1fff);
    let rest = if offset > 0 {
        Rest::LaterFragment
    } else if header < 20 || header > bytes.len() {
        Rest::Cut
    } else {
        let lengths_agree = usize::from(word(bytes, 2)) == bytes.len();
        let is_plain = header == 20 && !more && lengths_agree;
        let protocol = match bytes[9] {
            ICMPV6 => FOREIGN_ICMP,
            protocol => protocol,
        };
        let header = &bytes[header..];
        Rest::Transport(transport(header, protocol, is_plain, ECHO_V4))
    };
    Ip {
        is_v4: true,
        source: mapped(bytes, 12),
        destination: mapped(bytes, 16),
        hops: bytes[8],
        rest,
    }
}

fn v6(bytes: &[u8]) -> Ip {
    let sixteen = |at: usize| std::array::from_fn(|index| bytes[at + index]);
    Ip {
        is_v4: false,
        source: sixteen(8),
        destination: sixteen(24),
        hops: bytes[7],
        rest: extensions(bytes),
    }
}

/// Walks the chain of extension headers, however long it is.
fn extensions(bytes: &[u8]) -> Rest {
    let mut next = bytes[6];
    let mut at = 40;
    let mut is_plain = usize::from(word(bytes, 4)) + 40 == bytes.len();
    loop {
        let rest = bytes.get(at..).unwrap_or_default();
        let length = match next {
            // In units of 8 bytes, without the first 8.
            0 | 43 | 60 => rest.get(1).map(|units| 8 + usize::from(*units) * 8),
            // In units of 4 bytes, without the first 8.
            51 => rest.get(1).map(|units| 8 + usize::from(*units) * 4),
            44 => Some(8),
            _ => {
                let protocol = match next {
                    ICMPV6 => ICMP,
                    ICMP => FOREIGN_ICMP,
                    next => next,
                };
                if at > bytes.len() {
                    return Rest::Cut;
                }
                return Rest::Transport(transport(rest, protocol, is_plain, ECHO_V6));
            }
        };
        let Some(length) = length.filter(|_| rest.len() >= 2) else {
            return Rest::Cut;
        };
        if next == 44 {
            if rest.len() < 8 {
                return Rest::Cut;
            }
            // Thirteen bits in units of 8 bytes, then two reserved, then "more".
            if word(rest, 2) / 8 != 0 {
                return Rest::LaterFragment;
            }
        }
        is_plain = false;
        next = rest[0];
        at += length;
    }
}

fn transport(header: &[u8], protocol: u8, is_plain: bool, echo: [u8; 2]) -> Transport {
    let byte = |at: usize| header.get(at).copied().unwrap_or(0);
    let fixed = match protocol {
        TCP => 20,
        _ => 8,
    };
    let message = byte(0);
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
        is_plain: is_plain && lengths_agree,
        is_whole: header.len() >= fixed,
        ports: (word_or_zero(header, 0), word_or_zero(header, 2)),
        flags: byte(13),
        message,
        is_echo: echo.contains(&message),
        identifier: word_or_zero(header, 4),
    }
}

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
