//! What the client does.

use serde::{Deserialize, Serialize};

/// One kind of traffic. All of it goes from one client to one port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Workload {
    /// TCP: connect, one request, one response, close; one after the other.
    Connect,
    /// TCP: request and response on an open connection.
    Request,
    /// TCP: as much as goes in one direction.
    Stream,
    /// UDP: request and response on one connected socket.
    Datagram,
    /// TCP: as `Request`, on several connections at once, so that requests
    /// wait for each other.
    Loaded,
    /// UDP: connect(2) of one socket to the same peer, again and again; nothing is
    /// sent.
    Call,
}

impl Workload {
    pub const ALL: [Self; 6] = [
        Self::Connect,
        Self::Request,
        Self::Stream,
        Self::Datagram,
        Self::Loaded,
        Self::Call,
    ];

    /// In file names.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Request => "request",
            Self::Stream => "stream",
            Self::Datagram => "datagram",
            Self::Loaded => "loaded",
            Self::Call => "call",
        }
    }

    /// For people.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Connect => "TCP connect, request, response, close",
            Self::Request => "TCP request and response on an open connection",
            Self::Stream => "TCP stream",
            Self::Datagram => "UDP request and response",
            Self::Loaded => "TCP request and response, 16 connections at once",
            Self::Call => "UDP connect(2), nothing sent",
        }
    }

    /// What a rate counts.
    #[must_use]
    pub const fn unit(self) -> &'static str {
        match self {
            Self::Connect => "connections/s",
            Self::Stream => "MB/s",
            Self::Call => "calls/s",
            Self::Request | Self::Datagram | Self::Loaded => "requests/s",
        }
    }
}
