//! The kernel side of the agent: programs, maps, links.
//!
//! | file | job |
//! |---|---|
//! | `object` | the embedded kernel programs |
//! | `sys` | the bpf(2) calls that aya does not offer |
//! | `cgroup` | the cgroup v2 tree: mount, ids, the managed root |
//! | `pins` | where maps and links are pinned, and the file system below |
//! | `load` | programs into the kernel, pinned maps reused |
//! | `held` | maps, links and pins: held, looked at, put right |
//! | `repair` | what was put right |
//! | `layout` | is a pinned map what this binary takes it for |
//! | `links` | attach once, replace in place, look for strangers |
//! | `tc` | attach to an interface's two sides, by `tcx` or `clsact` |
//! | `default_drop` | drops what comes from managed interfaces unseen by our programs |
//! | `control` | the word that makes a generation active |
//! | `table` | one versioned map, read and written row by row |
//! | `store` | all versioned maps: adopt, apply, collect |
//! | `grace` | wait until no program can still see what it saw before |
//! | `names` | numbers for identities and rules, kept in the kernel |
//! | `keeper` | gives numbers out, and takes them back when nothing refers to them |
//! | `unused` | which numbers nothing refers to, and whether they are wanted |
//! | `netns` | cookies of network namespaces |
//! | `elders` | sockets that are older than the programs |
//! | `trust` | quarantine: one map write |
//! | `view` | what the maps hold now, only read |
//! | `counters` | what the programs counted |
//! | `ring` | the stream of decision events |

pub mod cgroup;
pub mod clsact;
pub mod control;
pub mod counters;
pub mod default_drop;
pub mod elders;
pub mod frames;
pub mod grace;
pub mod held;
pub mod keeper;
mod layout;
pub mod links;
pub mod load;
pub mod names;
pub mod netns;
pub mod object;
pub mod pins;
pub mod repair;
pub mod ring;
pub mod store;
pub mod sys;
pub mod table;
pub mod tc;
pub mod tcx;
pub mod trust;
pub mod unused;
pub mod view;

use std::{io, path::PathBuf};

/// What can go wrong between the agent and the kernel. Written for the
/// operator: each says what to do next.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    #[error(transparent)]
    NoObject(#[from] object::NoObject),
    #[error("bpf {call} on {what}: {source}")]
    Call {
        call: &'static str,
        what: String,
        source: io::Error,
    },
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "no cgroup v2 hierarchy is mounted; mount one: mount -t cgroup2 none /sys/fs/cgroup/unified"
    )]
    NoCgroup2,
    #[error(
        "{0} is the root cgroup: every process of this machine would be governed; set allowRootCgroup: true if that is what you want"
    )]
    RootCgroup(PathBuf),
    #[error("{path} is not below the managed root {root}: only what is below it is governed")]
    Outside { path: PathBuf, root: PathBuf },
    #[error(
        "{path} is {depth} levels below the managed root {root}; at most {max} can be enrolled: enrol an ancestor"
    )]
    TooDeep {
        path: PathBuf,
        root: PathBuf,
        depth: usize,
        max: usize,
    },
    #[error(
        "programs of ours enforce below another cgroup (id {other}) than {root}, and would stop doing so; set cgroupRoot back, or end it with `zt-agent cleanup`"
    )]
    OtherRoot { root: PathBuf, other: u64 },
    #[error(
        "another agent works below {0}, with another runtime directory; stop it, or choose another pinDirectory"
    )]
    InUse(PathBuf),
    #[error("{0} is not on a bpf file system; mount one: mount -t bpf bpf {0}")]
    NotBpffs(PathBuf),
    #[error(
        "the bpf file system below {0} was unmounted: what is pinned there ends with this agent, and so does the enforcement; mount it again: mount -t bpf bpf {0}"
    )]
    Unmounted(PathBuf),
    #[error(
        "the pinned map {name} has another layout ({found}) than this binary ({wanted}); run `zt-agent cleanup`, or start the version that made it"
    )]
    Layout {
        name: String,
        found: String,
        wanted: String,
    },
    #[error("the kernel refused the programs: {0}")]
    Load(String),
    #[error(
        "nothing of ours is pinned below {0}: is the agent running, and with this pin directory? (zt-agent run)"
    )]
    NotRunning(PathBuf),
    #[error(
        "no generation is left; run `zt-agent cleanup` and start again, and find out who wrote to zt_control_v1: counting gets there in a hundred years"
    )]
    OutOfGenerations,
    #[error(transparent)]
    Netlink(#[from] crate::netlink::NetlinkError),
    #[error(transparent)]
    OutOfNumbers(#[from] crate::model::names::OutOfNumbers),
}

impl KernelError {
    pub(crate) fn call(
        call: &'static str,
        what: impl Into<String>,
    ) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Call { call, what, source }
    }

    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}
