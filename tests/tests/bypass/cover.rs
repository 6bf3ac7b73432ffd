//! Our programs on the host side of a veth, until [`Node`] attaches them.

use std::{
    fs::File,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use zt_agent::kernel::sys;
use zt_tests::{netns::Netns, node::Node};

const LINK_CREATE: libc::c_long = 28;
const TCX_INGRESS: u32 = 46;
const TCX_EGRESS: u32 = 47;

pub fn index(bridge: &Netns, name: &str) -> u32 {
    bridge
        .enter(|| {
            let name = std::ffi::CString::new(name)?;
            // SAFETY: a string with its end.
            Ok(unsafe { libc::if_nametoindex(name.as_ptr()) })
        })
        .unwrap()
}

pub fn attach(node: &Node, bridge: &Netns, port: u32) -> Vec<OwnedFd> {
    let programs = [("zt_tc_from", TCX_INGRESS), ("zt_tc_to", TCX_EGRESS)].map(|(name, kind)| {
        let path = node.pin_program(name).unwrap();
        (File::from(sys::get_pinned(&path).unwrap()), kind)
    });
    let attach = || {
        Ok(programs
            .iter()
            .map(|(file, kind)| link(file, port, *kind))
            .collect())
    };
    bridge.enter(attach).unwrap()
}

fn link(program: &File, port: u32, attach_type: u32) -> OwnedFd {
    let mut attributes = [0u32; 16];
    attributes[0] = u32::try_from(program.as_raw_fd()).unwrap();
    (attributes[1], attributes[2]) = (port, attach_type);
    // SAFETY: the attributes of BPF_LINK_CREATE.
    let link = unsafe { libc::syscall(libc::SYS_bpf, LINK_CREATE, attributes.as_ptr(), 64) };
    assert!(link >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: the kernel just gave it to us.
    unsafe { OwnedFd::from_raw_fd(i32::try_from(link).unwrap()) }
}
