//! What is pinned, held open as well: a pin that somebody removes ends
//! nothing while the agent runs, and is put back.

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    path::Path,
};

use super::{
    KernelError,
    cgroup::Root,
    links::{AttachPoint, POINTS},
    load::{Loaded, MAPS},
    pins::Pins,
    repair::{Repair, What},
    sys::{self, CgroupLink},
};

/// Every map, and the links at the attach points.
#[derive(Debug)]
pub struct Held {
    maps: Vec<Map>,
    links: BTreeMap<&'static str, OwnedFd>,
}

#[derive(Debug)]
struct Map {
    name: &'static str,
    map: OwnedFd,
    id: u32,
}

/// What a look found.
#[derive(Debug, Default)]
pub struct Found {
    pub repairs: Vec<Repair>,
    /// What cannot be put right, one sentence each.
    pub damage: Vec<String>,
}

impl Held {
    /// Opens every map that is pinned.
    ///
    /// # Errors
    /// When one is missing.
    pub fn open(pins: &Pins) -> Result<Self, KernelError> {
        let open = |name: &'static str| {
            let map = sys::get_pinned(&pins.map(name)).map_err(KernelError::call("get", name))?;
            let id = facts(map.as_fd())
                .and_then(|facts| facts.id.ok_or(io::ErrorKind::InvalidData.into()))
                .map_err(KernelError::call("look at", name))?;
            Ok(Map { name, map, id })
        };
        Ok(Self {
            maps: (MAPS.iter())
                .map(|(name, ..)| open(name))
                .collect::<Result<_, KernelError>>()?,
            links: BTreeMap::new(),
        })
    }

    /// Holds the links that have just been attached and pinned.
    ///
    /// # Errors
    /// When one is missing.
    pub fn hold_links(&mut self, pins: &Pins) -> Result<(), KernelError> {
        for point in POINTS {
            let link = sys::get_pinned(&pins.link(point.program))
                .map_err(KernelError::call("get", point.program))?;
            self.links.insert(point.program, link);
        }
        Ok(())
    }

    /// Looks at every map, link and pin, and puts right what is wrong. One
    /// that cannot be put right keeps none of the others.
    pub fn look(&mut self, loaded: &Loaded, root: &Root, pins: &Pins) -> Found {
        let mut found = Found::default();
        for map in &self.maps {
            map.look(pins, &mut found);
        }
        for point in POINTS {
            if let Err(error) = self.look_at_link(point, loaded, root, pins, &mut found) {
                found.damage.push(format!("{}: {error}", point.hook));
            }
        }
        found
    }

    fn look_at_link(
        &mut self,
        point: &AttachPoint,
        loaded: &Loaded,
        root: &Root,
        pins: &Pins,
        found: &mut Found,
    ) -> Result<(), KernelError> {
        let path = pins.link(point.program);
        let Some((link, info)) = self.attached(point, root) else {
            let link = create(point, loaded, root)?;
            repin(link.as_fd(), &path).map_err(KernelError::io(&path))?;
            self.links.insert(point.program, link);
            let text = format!("{}: our program was detached", point.hook);
            found.repairs.push(Repair::new(What::Link, text));
            return Ok(());
        };
        if info.program_id != loaded.program_id(point.program)? {
            let program = loaded.program(point.program)?;
            sys::link_update(link.as_fd(), program.as_fd())
                .map_err(KernelError::call("link update", point.program))?;
            let text = format!(
                "{}: program {} was put in the place of ours",
                point.hook, info.program_id
            );
            found.repairs.push(Repair::new(What::Program, text));
        }
        let pinned = sys::get_pinned(&path);
        let id = |link: OwnedFd| sys::link_info(link.as_fd()).map(|info| info.id);
        if let Some(how) = astray(pinned.and_then(id), info.id) {
            repin(link.as_fd(), &path).map_err(KernelError::io(&path))?;
            let text = format!("the pin of the link {} {how}", point.program);
            found.repairs.push(Repair::new(What::LinkPin, text));
        }
        Ok(())
    }

    /// The link at a point, if it is still attached to the root.
    fn attached(&self, point: &AttachPoint, root: &Root) -> Option<(&OwnedFd, CgroupLink)> {
        let link = self.links.get(point.program)?;
        let info = sys::link_info(link.as_fd()).ok()?;
        let there = info.cgroup_id == root.id && info.attach_type == point.attach_type;
        there.then_some((link, info))
    }
}

impl Map {
    fn look(&self, pins: &Pins, found: &mut Found) {
        let Self { name, map, id } = self;
        if facts(map.as_fd()).is_ok_and(|facts| facts.frozen) {
            found.damage.push(format!(
                "somebody froze {name}: no change can be put in force any more; run `zt-agent cleanup` and start again"
            ));
        }
        let path = pins.map(name);
        let pinned = sys::get_pinned(&path).and_then(|map| facts(map.as_fd()));
        let pinned = pinned.map(|facts| facts.id.unwrap_or(0));
        let Some(how) = astray(pinned, *id) else {
            return;
        };
        match repin(map.as_fd(), &path) {
            Ok(()) => {
                let text = format!("the pin of the map {name} {how}");
                found.repairs.push(Repair::new(What::MapPin, text));
            }
            Err(error) => found.damage.push(format!(
                "the pin of the map {name} {how}, and cannot be put back: {}: {error}",
                path.display()
            )),
        }
    }
}

/// What is wrong with a pin, if anything is.
fn astray(pinned: io::Result<u32>, id: u32) -> Option<&'static str> {
    match pinned {
        Ok(found) if found == id => None,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Some("was removed"),
        _ => Some("led to something else"),
    }
}

fn create(point: &AttachPoint, loaded: &Loaded, root: &Root) -> Result<OwnedFd, KernelError> {
    let program = loaded.program(point.program)?;
    sys::link_create(program.as_fd(), root.directory.as_fd(), point.attach_type)
        .map_err(KernelError::call("link create", point.program))
}

fn repin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    sys::pin(object, path)
}

/// What the kernel says of a map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct MapFacts {
    /// `None`: it is no map.
    id: Option<u32>,
    /// Nobody can write to it with bpf(2).
    frozen: bool,
}

/// Read from procfs: bpf(2) does not say whether a map is frozen.
fn facts(object: BorrowedFd<'_>) -> io::Result<MapFacts> {
    let path = format!("/proc/self/fdinfo/{}", object.as_raw_fd());
    Ok(parse(&fs::read_to_string(path)?))
}

fn parse(text: &str) -> MapFacts {
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| rest.trim().parse::<u32>().ok())
    };
    MapFacts {
        id: field("map_id:"),
        frozen: field("frozen:").is_some_and(|frozen| frozen != 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_tells_its_id_and_whether_it_is_frozen() {
        let text = "pos:\t0\nmap_type:\t1\nmax_entries:\t16\nmap_id:\t42\nfrozen:\t0\n";
        let facts = parse(text);
        assert_eq!((facts.id, facts.frozen), (Some(42), false));
        assert!(parse(&text.replace("frozen:\t0", "frozen:\t1")).frozen);
        let program = parse("prog_type:\t8\nprog_id:\t42\n");
        assert_eq!((program.id, program.frozen), (None, false));
    }

    #[test]
    fn a_pin_is_right_gone_or_wrong() {
        assert_eq!(astray(Ok(7), 7), None);
        assert_eq!(astray(Ok(8), 7), Some("led to something else"));
        let gone = io::ErrorKind::NotFound.into();
        assert_eq!(astray(Err(gone), 7), Some("was removed"));
        let odd = io::Error::from_raw_os_error(libc::EINVAL);
        assert_eq!(astray(Err(odd), 7), Some("led to something else"));
    }
}
