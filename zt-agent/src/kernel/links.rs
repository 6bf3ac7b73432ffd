//! Attached once to the managed root; replaced in place; strangers reported.

use std::os::fd::{AsFd, OwnedFd};

use super::{KernelError, cgroup::Root, load::Loaded, pins::Pins, sys};

/// One place where a program of ours is attached. The pin of its link has the
/// name of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttachPoint {
    pub program: &'static str,
    /// For people.
    pub hook: &'static str,
    /// `enum bpf_attach_type`.
    pub attach_type: u32,
}

/// All of them. What opens a flow comes last: when the programs are attached
/// for the first time, sockets are known before calls are decided.
pub const POINTS: &[AttachPoint] = &[
    point("zt_sock_create", "cgroup/sock_create", 2),
    point("zt_ingress", "cgroup_skb/ingress", 0),
    point("zt_egress", "cgroup_skb/egress", 1),
    point("zt_bind4", "cgroup/bind4", 8),
    point("zt_bind6", "cgroup/bind6", 9),
    point("zt_connect4", "cgroup/connect4", 10),
    point("zt_connect6", "cgroup/connect6", 11),
    point("zt_sendmsg4", "cgroup/sendmsg4", 14),
    point("zt_sendmsg6", "cgroup/sendmsg6", 15),
];

const fn point(program: &'static str, hook: &'static str, attach_type: u32) -> AttachPoint {
    AttachPoint {
        program,
        hook,
        attach_type,
    }
}

/// What happened at one attach point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attachment {
    /// Nothing was there.
    Attached,
    /// The program behind the pinned link was replaced in one step.
    Replaced,
}

/// Refuses to go on while links of ours govern another cgroup that still
/// exists: to replace them would end the enforcement there.
///
/// # Errors
/// [`KernelError::OtherRoot`] then.
pub fn refuse_other_root(root: &Root, pins: &Pins) -> Result<(), KernelError> {
    let infos = POINTS
        .iter()
        .filter_map(|point| sys::link_info(pinned(pins, point)?.as_fd()).ok());
    // A cgroup that is gone has the id 0.
    let mut others = infos
        .map(|info| info.cgroup_id)
        .filter(|id| *id != 0 && *id != root.id);
    match others.next() {
        None => Ok(()),
        Some(other) => Err(KernelError::OtherRoot {
            root: root.path.clone(),
            other,
        }),
    }
}

/// Attaches every program to `root`, or replaces the programs behind the
/// links that are pinned there already. `before_packets` is called when sockets are
/// seen that are made, and no packet is yet.
///
/// # Errors
/// When a link is pinned that is not what its name says: the kernel takes a
/// program of one hook for a link of another without complaint.
pub fn attach(
    loaded: &Loaded,
    root: &Root,
    pins: &Pins,
    before_packets: impl FnOnce(),
) -> Result<Vec<(AttachPoint, Attachment)>, KernelError> {
    refuse_other_root(root, pins)?;
    let attach = |point: &AttachPoint| Ok((*point, attach_one(loaded, root, pins, point)?));
    let (births, others) = POINTS.split_at(1);
    let mut done: Vec<_> = births
        .iter()
        .map(attach)
        .collect::<Result<_, KernelError>>()?;
    before_packets();
    for point in others {
        done.push(attach(point)?);
    }
    Ok(done)
}

fn attach_one(
    loaded: &Loaded,
    root: &Root,
    pins: &Pins,
    point: &AttachPoint,
) -> Result<Attachment, KernelError> {
    let program = loaded.program(point.program)?;
    let path = pins.link(point.program);
    if let Some(link) = pinned(pins, point) {
        if is_ours(&link, root, point) {
            sys::link_update(link.as_fd(), program.as_fd())
                .map_err(KernelError::call("link update", point.program))?;
            return Ok(Attachment::Replaced);
        }
        // Of a root that is gone: it governs nothing.
        std::fs::remove_file(&path).map_err(KernelError::io(&path))?;
    }
    let link = sys::link_create(program.as_fd(), root.directory.as_fd(), point.attach_type)
        .map_err(KernelError::call("link create", point.program))?;
    // Unpinned, it would disappear with the agent, and that is fail-open.
    sys::pin(link.as_fd(), &path).map_err(KernelError::call("pin", point.program))?;
    Ok(Attachment::Attached)
}

fn pinned(pins: &Pins, point: &AttachPoint) -> Option<OwnedFd> {
    sys::get_pinned(&pins.link(point.program)).ok()
}

fn is_ours(link: &OwnedFd, root: &Root, point: &AttachPoint) -> bool {
    sys::link_info(link.as_fd())
        .is_ok_and(|info| info.cgroup_id == root.id && info.attach_type == point.attach_type)
}

/// The state of one attach point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PointStatus {
    pub point: AttachPoint,
    /// Id of our program, if its link is pinned and still attached.
    pub program_id: Option<u32>,
    /// Ids of programs that are not ours on the same hook of the cgroup or
    /// of one above it. One that runs after ours, as those above do, can turn
    /// the deny of a call into an allow; the packets stay denied.
    pub strangers: Vec<u32>,
}

/// Looks at every attach point of the cgroup that our links are on.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn status(root: &Root, pins: &Pins) -> Result<Vec<PointStatus>, KernelError> {
    POINTS
        .iter()
        .map(|point| {
            let link = pinned(pins, point).filter(|link| is_ours(link, root, point));
            let program_id = link
                .and_then(|link| sys::link_info(link.as_fd()).ok())
                .map(|info| info.program_id);
            let all = sys::effective(root.directory.as_fd(), point.attach_type)
                .map_err(KernelError::call("query", point.hook))?;
            let attached = program_id.filter(|id| all.contains(id));
            Ok(PointStatus {
                point: *point,
                program_id: attached,
                strangers: all.into_iter().filter(|id| Some(*id) != attached).collect(),
            })
        })
        .collect()
}
