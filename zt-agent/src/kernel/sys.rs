//! The bpf(2) calls that aya does not offer, as safe functions.
//!
//! Layouts of the attribute structs: `union bpf_attr` in the kernel's
//! `include/uapi/linux/bpf.h`.

use std::{
    ffi::CString,
    io,
    mem::MaybeUninit,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use aya::Pod;

const MAP_CREATE: i32 = 0;
const MAP_LOOKUP_ELEM: i32 = 1;
const MAP_UPDATE_ELEM: i32 = 2;
const MAP_DELETE_ELEM: i32 = 3;
const MAP_GET_NEXT_KEY: i32 = 4;
const OBJ_PIN: i32 = 6;
const OBJ_GET: i32 = 7;
const PROG_QUERY: i32 = 16;
const OBJ_GET_INFO_BY_FD: i32 = 15;
const MAP_LOOKUP_BATCH: i32 = 24;
const MAP_UPDATE_BATCH: i32 = 26;
const LINK_CREATE: i32 = 28;
const LINK_UPDATE: i32 = 29;
const LINK_GET_FD_BY_ID: i32 = 30;
const LINK_DETACH: i32 = 34;

fn bpf<T>(command: i32, attr: &mut T) -> io::Result<i32> {
    // SAFETY: `attr` is a prefix of `union bpf_attr` of exactly the size
    // given, and every address in it points to memory that the caller holds.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attr),
            size_of::<T>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(result).map_err(io::Error::other)
}

fn fd_of(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn owned(raw: i32) -> OwnedFd {
    // SAFETY: the kernel has just returned this descriptor to us.
    unsafe { OwnedFd::from_raw_fd(raw as RawFd) }
}

fn address<T: ?Sized>(of: *const T) -> u64 {
    of.cast::<()>().addr() as u64
}

#[repr(C)]
struct Element {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// The value of `key`; `None` if there is none.
pub fn map_lookup<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    let mut value = MaybeUninit::<V>::uninit();
    let mut attr = Element {
        map_fd: fd_of(map),
        pad: 0,
        key: address(key),
        value: address(value.as_mut_ptr()),
        flags: 0,
    };
    match bpf(MAP_LOOKUP_ELEM, &mut attr) {
        // SAFETY: the kernel wrote the whole value, and any bytes are a `V`.
        Ok(_) => Ok(Some(unsafe { value.assume_init() })),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes one element.
pub fn map_update<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K, value: &V) -> io::Result<()> {
    let mut attr = Element {
        map_fd: fd_of(map),
        pad: 0,
        key: address(key),
        value: address(value),
        flags: 0,
    };
    bpf(MAP_UPDATE_ELEM, &mut attr).map(drop)
}

/// Writes one element if there is none yet. `false`: there is one.
pub fn map_insert<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K, value: &V) -> io::Result<bool> {
    const NOEXIST: u64 = 1;
    let mut attr = Element {
        map_fd: fd_of(map),
        pad: 0,
        key: address(key),
        value: address(value),
        flags: NOEXIST,
    };
    match bpf(MAP_UPDATE_ELEM, &mut attr) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Deletes one element; one that is not there is fine.
pub fn map_delete<K: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<()> {
    let mut attr = Element {
        map_fd: fd_of(map),
        pad: 0,
        key: address(key),
        value: 0,
        flags: 0,
    };
    match bpf(MAP_DELETE_ELEM, &mut attr) {
        Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(error),
        _ => Ok(()),
    }
}

/// The key after `key`, or the first.
pub fn map_next_key<K: Pod>(map: BorrowedFd<'_>, key: Option<&K>) -> io::Result<Option<K>> {
    let mut next = MaybeUninit::<K>::uninit();
    let mut attr = Element {
        map_fd: fd_of(map),
        pad: 0,
        key: key.map_or(0, |key| address(key)),
        value: address(next.as_mut_ptr()),
        flags: 0,
    };
    match bpf(MAP_GET_NEXT_KEY, &mut attr) {
        // SAFETY: the kernel wrote the whole key, and any bytes are a `K`.
        Ok(_) => Ok(Some(unsafe { next.assume_init() })),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

#[repr(C)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Writes many elements in one call. On error the number that were written.
pub fn map_update_batch<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    keys: &[K],
    values: &[V],
) -> Result<(), (usize, io::Error)> {
    assert_eq!(keys.len(), values.len(), "as many keys as values");
    if keys.is_empty() {
        return Ok(());
    }
    let count = u32::try_from(keys.len()).map_err(|error| (0, io::Error::other(error)))?;
    let mut attr = Batch {
        in_batch: 0,
        out_batch: 0,
        keys: address(keys.as_ptr()),
        values: address(values.as_ptr()),
        count,
        map_fd: fd_of(map),
        elem_flags: 0,
        flags: 0,
    };
    bpf(MAP_UPDATE_BATCH, &mut attr)
        .map(drop)
        .map_err(|error| (attr.count as usize, error))
}

/// Where a batch of lookups goes on; the kernel's own business.
#[derive(Debug, Default)]
pub struct Cursor {
    /// As large as a key at least.
    position: [u64; 8],
    begun: bool,
}

/// Reads on from `cursor`, at most as many elements as there is room for.
/// Gives how many it read, and whether there are more.
pub fn map_lookup_batch<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    cursor: &mut Cursor,
    keys: &mut [K],
    values: &mut [V],
) -> io::Result<(usize, bool)> {
    const { assert!(size_of::<K>() <= size_of::<[u64; 8]>()) };
    assert_eq!(keys.len(), values.len(), "as many keys as values");
    let position = cursor.position;
    let mut attr = Batch {
        in_batch: if cursor.begun { address(&position) } else { 0 },
        out_batch: address(cursor.position.as_mut_ptr()),
        keys: address(keys.as_mut_ptr()),
        values: address(values.as_mut_ptr()),
        count: u32::try_from(keys.len()).map_err(io::Error::other)?,
        map_fd: fd_of(map),
        elem_flags: 0,
        flags: 0,
    };
    let result = bpf(MAP_LOOKUP_BATCH, &mut attr);
    cursor.begun = true;
    match result {
        Ok(_) => Ok((attr.count as usize, true)),
        // The last ones.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
            Ok((attr.count as usize, false))
        }
        Err(error) => Err(error),
    }
}

#[repr(C)]
struct Object {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

fn path_of(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// Pins a map, program or link.
pub fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = path_of(path)?;
    let mut attr = Object {
        pathname: address(path.as_ptr()),
        bpf_fd: fd_of(fd),
        file_flags: 0,
    };
    bpf(OBJ_PIN, &mut attr).map(drop)
}

/// Opens what is pinned.
pub fn get_pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = path_of(path)?;
    let mut attr = Object {
        pathname: address(path.as_ptr()),
        bpf_fd: 0,
        file_flags: 0,
    };
    bpf(OBJ_GET, &mut attr).map(owned)
}

#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
}

/// Attaches a program to a cgroup as a link. Links are always "multi": no
/// program of a child cgroup can override it.
pub fn link_create(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    attach_type: u32,
) -> io::Result<OwnedFd> {
    let mut attr = LinkCreate {
        prog_fd: fd_of(program),
        target_fd: fd_of(cgroup),
        attach_type,
        flags: 0,
    };
    bpf(LINK_CREATE, &mut attr).map(owned)
}

#[repr(C)]
struct TcxLinkCreate {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
    relative_fd: u32,
    pad: u32,
    expected_revision: u64,
}

/// `BPF_F_BEFORE`; before nothing in particular is before all.
const BEFORE: u32 = 1 << 3;

/// Attaches a program to one side of an interface of the caller's network
/// namespace as a TCX link, before those that are there.
pub fn tcx_link_create(
    program: BorrowedFd<'_>,
    interface: u32,
    attach_type: u32,
) -> io::Result<OwnedFd> {
    let mut attr = TcxLinkCreate {
        prog_fd: fd_of(program),
        target_ifindex: interface,
        attach_type,
        flags: BEFORE,
        relative_fd: 0,
        pad: 0,
        expected_revision: 0,
    };
    bpf(LINK_CREATE, &mut attr).map(owned)
}

#[repr(C)]
struct LinkUpdate {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// Replaces the program behind a link in one step.
pub fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkUpdate {
        link_fd: fd_of(link),
        new_prog_fd: fd_of(program),
        flags: 0,
        old_prog_fd: 0,
    };
    bpf(LINK_UPDATE, &mut attr).map(drop)
}

/// Takes a link's program off its cgroup now, and not a moment after the last
/// reference to the link is gone.
pub fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    bpf(LINK_DETACH, &mut fd_of(link)).map(drop)
}

/// The link with an id.
pub fn link_by_id(id: u32) -> io::Result<OwnedFd> {
    // Id, the id to start from, flags to open it with.
    bpf(LINK_GET_FD_BY_ID, &mut [id, 0, 0]).map(owned)
}

/// What the kernel says of a cgroup link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CgroupLink {
    pub id: u32,
    pub program_id: u32,
    pub cgroup_id: u64,
    pub attach_type: u32,
}

#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    prog_id: u32,
    pad: u32,
    cgroup_id: u64,
    attach_type: u32,
    pad2: u32,
}

#[repr(C)]
struct InfoByFd {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// Asks what a link attaches, and where. A cgroup that is gone has id 0.
pub fn link_info(link: BorrowedFd<'_>) -> io::Result<CgroupLink> {
    const LINK_TYPE_CGROUP: u32 = 3;
    let mut info = LinkInfo::default();
    object_info(link, &mut info)?;
    if info.kind != LINK_TYPE_CGROUP {
        return Err(io::Error::other("not a cgroup link"));
    }
    Ok(CgroupLink {
        id: info.id,
        program_id: info.prog_id,
        cgroup_id: info.cgroup_id,
        attach_type: info.attach_type,
    })
}

/// What the kernel says of a TCX link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcxLink {
    pub id: u32,
    pub program_id: u32,
    /// 0 if the interface is gone, or the link was detached.
    pub interface: u32,
    pub attach_type: u32,
}

#[repr(C)]
#[derive(Default)]
struct TcxLinkInfo {
    kind: u32,
    id: u32,
    prog_id: u32,
    pad: u32,
    ifindex: u32,
    attach_type: u32,
}

/// Asks what a link attaches to which interface.
pub fn tcx_link_info(link: BorrowedFd<'_>) -> io::Result<TcxLink> {
    const LINK_TYPE_TCX: u32 = 11;
    let mut info = TcxLinkInfo::default();
    object_info(link, &mut info)?;
    if info.kind != LINK_TYPE_TCX {
        return Err(io::Error::other("not a TCX link"));
    }
    Ok(TcxLink {
        id: info.id,
        program_id: info.prog_id,
        interface: info.ifindex,
        attach_type: info.attach_type,
    })
}

/// The beginning of `struct bpf_prog_info`.
#[repr(C)]
#[derive(Default)]
struct ProgramInfo {
    kind: u32,
    id: u32,
}

/// The id of a packet classifier, as those of traffic control are.
pub fn classifier_id(program: BorrowedFd<'_>) -> io::Result<u32> {
    const SCHED_CLS: u32 = 3;
    let mut info = ProgramInfo::default();
    object_info(program, &mut info)?;
    if info.kind != SCHED_CLS {
        return Err(io::Error::other("not a packet classifier"));
    }
    Ok(info.id)
}

fn object_info<T>(object: BorrowedFd<'_>, info: &mut T) -> io::Result<()> {
    let mut attr = InfoByFd {
        bpf_fd: fd_of(object),
        info_len: u32::try_from(size_of::<T>()).map_err(io::Error::other)?,
        info: address(std::ptr::from_mut(info)),
    };
    bpf(OBJ_GET_INFO_BY_FD, &mut attr).map(drop)
}

#[repr(C)]
struct Query {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    count: u32,
    pad: u32,
    // 6.1 and later write per-program flags, links and a revision; all zero
    // means that nothing is asked for.
    rest: [u64; 4],
}

/// `BPF_F_QUERY_EFFECTIVE`
const QUERY_EFFECTIVE: u32 = 1;

/// Ids of the programs that run for a socket of a cgroup, in their order: its
/// own, then those of the cgroups above.
pub fn effective(cgroup: BorrowedFd<'_>, attach_type: u32) -> io::Result<Vec<u32>> {
    let mut ids = vec![0u32; 64];
    let mut attr = Query {
        target_fd: fd_of(cgroup),
        attach_type,
        query_flags: QUERY_EFFECTIVE,
        attach_flags: 0,
        prog_ids: address(ids.as_ptr()),
        count: 64,
        pad: 0,
        rest: [0; 4],
    };
    bpf(PROG_QUERY, &mut attr)?;
    ids.truncate(attr.count as usize);
    Ok(ids)
}

/// A program on a TCX hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcxProgram {
    pub program_id: u32,
    /// 0 if it was attached without one.
    pub link_id: u32,
}

#[repr(C)]
struct TcxQuery {
    target_ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    count: u32,
    pad: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// The programs on a TCX hook of an interface of the caller's network
/// namespace, in the order in which they run.
pub fn tcx_programs(interface: u32, attach_type: u32) -> io::Result<Vec<TcxProgram>> {
    // `BPF_MPROG_MAX`: no hook can have more.
    let (mut programs, mut links) = ([0u32; 64], [0u32; 64]);
    let mut attr = TcxQuery {
        target_ifindex: interface,
        attach_type,
        query_flags: 0,
        attach_flags: 0,
        prog_ids: address(programs.as_mut_ptr()),
        count: 64,
        pad: 0,
        prog_attach_flags: 0,
        link_ids: address(links.as_mut_ptr()),
        link_attach_flags: 0,
        revision: 0,
    };
    match bpf(PROG_QUERY, &mut attr) {
        // The first kernels with TCX say so of a hook that never had a program.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(Vec::new()),
        result => result.map(drop)?,
    }
    let found = programs.iter().zip(links).take(attr.count as usize);
    Ok(found
        .map(|(program, link)| TcxProgram {
            program_id: *program,
            link_id: link,
        })
        .collect())
}

/// Attributes of a new map, up to the field for the inner map.
#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map_fd: u32,
}

/// Makes an array of maps with one slot, and an array that fits into it.
pub fn array_of_maps() -> io::Result<(OwnedFd, OwnedFd)> {
    const ARRAY: u32 = 2;
    const ARRAY_OF_MAPS: u32 = 12;
    let mut attr = MapCreate {
        map_type: ARRAY,
        key_size: 4,
        value_size: 4,
        max_entries: 1,
        map_flags: 0,
        inner_map_fd: 0,
    };
    let inner = owned(bpf(MAP_CREATE, &mut attr)?);
    attr.map_type = ARRAY_OF_MAPS;
    attr.inner_map_fd = inner.as_raw_fd().cast_unsigned();
    let outer = owned(bpf(MAP_CREATE, &mut attr)?);
    Ok((outer, inner))
}
