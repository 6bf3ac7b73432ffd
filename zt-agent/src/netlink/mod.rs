//! Netlink: asking the kernel about its network.
//!
//! | file | job |
//! |---|---|
//! | `sock_diag` | the TCP sockets of a namespace: list them, end one |

pub mod sock_diag;
