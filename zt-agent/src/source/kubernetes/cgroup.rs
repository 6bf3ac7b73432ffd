//! From a cgroup's path to the pod that the kubelet made it for. Pure.
//!
//! With the systemd driver a pod is the slice
//! `kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<uid>.slice`
//! (`_` for the dashes of its UID), with the cgroupfs driver the directory
//! `kubepods/burstable/pod<uid>`; a guaranteed pod lies directly below the
//! first. A container is one level deeper, and what it is called says which
//! runtime made it.
//!
//! Whoever runs in a container may make cgroups below it, with any name. So
//! every level is looked at, from the managed root down, and nothing counts
//! that merely looks like a pod further below.

use std::path::{Component, Path};

use super::objects::Uid;

const KUBEPODS: &str = "kubepods";
const CLASSES: [&str; 2] = ["burstable", "besteffort"];
/// Between the first part of a container's cgroup and its ID.
const SYSTEMD_RUNTIMES: [&str; 3] = ["cri-containerd-", "crio-", "docker-"];
/// containerd and Docker put nothing before the ID.
const CGROUPFS_RUNTIMES: [&str; 2] = ["", "crio-"];
/// CRI-O's own process beside a container, which is none of the pod's.
const CONMON: &str = "crio-conmon-";
/// Containerd, CRI-O and Docker use 256 random bits.
const ID_DIGITS: usize = 64;

/// What the kubelet or a runtime made a cgroup for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place<'a> {
    /// Pods lie below it: `kubepods` or a class of it.
    Above,
    Pod(Uid),
    Container(Uid, &'a str),
    /// The runtime's process that looks after a container.
    Monitor(Uid, &'a str),
}

/// What a cgroup is. `root` is the last component of the managed root's path,
/// `below` the path from there.
#[must_use]
pub fn place<'a>(root: &str, below: &'a Path) -> Option<Place<'a>> {
    let mut names = Vec::new();
    for component in below.components() {
        match component {
            Component::Normal(name) => names.push(name.to_str()?),
            _ => return None,
        }
    }
    if let Some(driver) = Driver::of_top(root) {
        return driver.walk(root, &names);
    }
    let (top, rest) = names.split_first()?;
    // A root of systemd's is part of the names of everything below it.
    let driver = Driver::of_top(top).filter(|driver| driver.belongs(root, top))?;
    driver.walk(top, rest)
}

/// The pod whose cgroup a path leads to or through: the topmost one, for what
/// lies below may have any name.
#[must_use]
pub fn pod_on(path: &Path) -> Option<Uid> {
    let mut names = Vec::new();
    for component in path.components() {
        names.push(component.as_os_str().to_str()?);
    }
    let (top, driver) =
        (names.iter().enumerate()).find_map(|(at, name)| Some((at, Driver::of_top(name)?)))?;
    let (root, below) = names[top..].split_first()?;
    (1..=below.len()).find_map(|length| match driver.walk(root, &below[..length])? {
        Place::Pod(uid) => Some(uid),
        _ => None,
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Driver {
    Systemd,
    Cgroupfs,
}

impl Driver {
    /// By the name of the cgroup that is above all pods.
    fn of_top(name: &str) -> Option<Self> {
        if name == KUBEPODS {
            return Some(Self::Cgroupfs);
        }
        let stem = name.strip_suffix(".slice")?;
        let is_top = stem == KUBEPODS
            || (stem.strip_suffix(KUBEPODS)).is_some_and(|before| before.ends_with('-'));
        is_top.then_some(Self::Systemd)
    }

    /// Whether a cgroup of that name can be `top`'s parent.
    fn belongs(self, parent: &str, top: &str) -> bool {
        match (self, parent.strip_suffix(".slice")) {
            (Self::Systemd, Some(stem)) => {
                top == "kubepods.slice" || top.strip_prefix(stem) == Some("-kubepods.slice")
            }
            _ => top.trim_end_matches(".slice") == KUBEPODS,
        }
    }

    fn walk<'a>(self, top: &str, names: &[&'a str]) -> Option<Place<'a>> {
        let Some((first, rest)) = names.split_first() else {
            return Some(Place::Above);
        };
        if let Some(uid) = self.pod(top, first) {
            return self.inside(uid, rest);
        }
        if !CLASSES.iter().any(|class| self.is_child(top, first, class)) {
            return None;
        }
        let Some((pod, rest)) = rest.split_first() else {
            return Some(Place::Above);
        };
        self.inside(self.pod(first, pod)?, rest)
    }

    fn pod(self, parent: &str, name: &str) -> Option<Uid> {
        match self {
            Self::Systemd => {
                let stem = parent.strip_suffix(".slice")?;
                let uid =
                    (name.strip_suffix(".slice")?.strip_prefix(stem)?).strip_prefix("-pod")?;
                Uid::with_separator(uid, '_')
            }
            Self::Cgroupfs => Uid::with_separator(name.strip_prefix("pod")?, '-'),
        }
    }

    fn is_child(self, parent: &str, name: &str, class: &str) -> bool {
        match self {
            Self::Systemd => {
                let stem = parent.strip_suffix(".slice").unwrap_or(parent);
                name == format!("{stem}-{class}.slice")
            }
            Self::Cgroupfs => name == class,
        }
    }

    fn inside<'a>(self, uid: Uid, names: &[&'a str]) -> Option<Place<'a>> {
        let name = match names {
            [] => return Some(Place::Pod(uid)),
            [name] => *name,
            // Whatever a container makes below it is its own business.
            _ => return None,
        };
        let (name, prefixes) = match self {
            Self::Systemd => (name.strip_suffix(".scope")?, &SYSTEMD_RUNTIMES[..]),
            Self::Cgroupfs => (name, &CGROUPFS_RUNTIMES[..]),
        };
        if let Some(id) = name.strip_prefix(CONMON).filter(|id| is_id(id)) {
            return Some(Place::Monitor(uid, id));
        }
        let mut ids = prefixes
            .iter()
            .filter_map(|before| name.strip_prefix(before));
        let id = ids.find(|id| is_id(id))?;
        Some(Place::Container(uid, id))
    }
}

fn is_id(text: &str) -> bool {
    text.len() == ID_DIGITS && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UID: &str = "0f0e0d0c-1111-4222-8333-444455556666";
    const ID: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

    fn uid() -> Uid {
        UID.parse().unwrap()
    }

    fn at<'a>(root: &str, below: &'a str) -> Option<Place<'a>> {
        place(root, Path::new(below))
    }

    /// `%` is the UID as the driver writes it, `#` a container ID.
    fn filled(text: &str, systemd: bool) -> String {
        let uid = if systemd {
            UID.replace('-', "_")
        } else {
            UID.to_owned()
        };
        text.replace('%', &uid).replace('#', ID)
    }

    #[test]
    fn the_pod_on_a_path_is_the_topmost() {
        let other = UID.replace('0', "1");
        for (path, expected) in [
            (format!("x/kubepods/burstable/pod{UID}"), Some(uid())),
            (
                format!("kubepods/pod{UID}/a/kubepods/pod{other}"),
                Some(uid()),
            ),
            (
                filled(
                    "kubepods.slice/kubepods-pod%.slice/cri-containerd-#.scope",
                    true,
                ),
                Some(uid()),
            ),
            (format!("x/pod{UID}"), None),
            ("kubepods/burstable".to_owned(), None),
            (String::new(), None),
        ] {
            assert_eq!(pod_on(Path::new(&path)), expected, "{path}");
        }
    }

    #[test]
    fn every_form_of_a_pods_cgroup_is_known() {
        for (root, below) in [
            ("kubepods.slice", "kubepods-pod%.slice"),
            (
                "kubepods.slice",
                "kubepods-burstable.slice/kubepods-burstable-pod%.slice",
            ),
            (
                "kubepods.slice",
                "kubepods-besteffort.slice/kubepods-besteffort-pod%.slice",
            ),
            ("zt-test", "kubepods.slice/kubepods-pod%.slice"),
            (
                "kubelet.slice",
                "kubelet-kubepods.slice/kubelet-kubepods-pod%.slice",
            ),
            (
                "kubelet-kubepods.slice",
                "kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod%.slice",
            ),
        ] {
            let path = filled(below, true);
            assert_eq!(at(root, &path), Some(Place::Pod(uid())), "{root} {path}");
        }
        for (root, below) in [
            ("kubepods", "pod%"),
            ("kubepods", "burstable/pod%"),
            ("kubepods", "besteffort/pod%"),
            ("zt-test", "kubepods/burstable/pod%"),
        ] {
            let path = filled(below, false);
            assert_eq!(at(root, &path), Some(Place::Pod(uid())), "{root} {path}");
        }
    }

    #[test]
    fn a_container_is_known_by_what_its_runtime_calls_it() {
        let pod = filled(
            "kubepods-burstable.slice/kubepods-burstable-pod%.slice",
            true,
        );
        for runtime in ["cri-containerd", "crio", "docker"] {
            let path = format!("{pod}/{runtime}-{ID}.scope");
            assert_eq!(
                at("kubepods.slice", &path),
                Some(Place::Container(uid(), ID))
            );
        }
        for name in [ID.to_owned(), format!("crio-{ID}")] {
            let path = format!("burstable/pod{UID}/{name}");
            assert_eq!(at("kubepods", &path), Some(Place::Container(uid(), ID)));
        }
        let monitor = format!("{pod}/crio-conmon-{ID}.scope");
        assert_eq!(
            at("kubepods.slice", &monitor),
            Some(Place::Monitor(uid(), ID))
        );
        let monitor = format!("pod{UID}/crio-conmon-{ID}");
        assert_eq!(at("kubepods", &monitor), Some(Place::Monitor(uid(), ID)));
    }

    #[test]
    fn what_is_above_the_pods_is_known_too() {
        for (root, below) in [
            ("kubepods.slice", ""),
            ("kubepods.slice", "kubepods-burstable.slice"),
            ("kubepods", "besteffort"),
            ("zt-test", "kubepods"),
            ("zt-test", "kubepods/burstable"),
        ] {
            assert_eq!(at(root, below), Some(Place::Above), "{root} {below}");
        }
    }

    #[test]
    fn nothing_else_is_taken_for_a_pod() {
        let pod = format!("burstable/pod{UID}");
        let slice = filled(
            "kubepods-burstable.slice/kubepods-burstable-pod%.slice",
            true,
        );
        for (root, below) in [
            ("zt-test", String::new()),
            ("zt-test", format!("pod{UID}")),
            ("zt-test", format!("x/kubepods/pod{UID}")),
            ("zt-test", format!("burstable/pod{UID}")),
            (
                "zt-test",
                filled("other-kubepods.slice/other-kubepods-pod%.slice", true),
            ),
            // Of the other driver, or of another slice.
            ("kubepods", slice.clone()),
            ("kubepods.slice", pod.clone()),
            ("kubepods.slice", filled("kubepods-pod%.slice", false)),
            ("kubepods", filled("pod%", true)),
            (
                "kubepods.slice",
                filled("kubepods-burstable.slice/kubepods-pod%.slice", true),
            ),
            (
                "kubepods.slice",
                filled("kubepods-besteffort-pod%.slice", true),
            ),
            // Made by a container.
            ("kubepods", format!("{pod}/{ID}/kubepods/pod{UID}")),
            ("kubepods", format!("{pod}/{ID}/{ID}")),
            ("kubepods", format!("{pod}/kubepods/pod{UID}")),
            ("kubepods", format!("{pod}/pod{UID}")),
            ("kubepods", format!("{pod}/system.slice")),
            ("kubepods", format!("burstable/besteffort/pod{UID}")),
            ("kubepods", format!("guaranteed/pod{UID}")),
            ("kubepods", format!("../kubepods/pod{UID}")),
            // No UID, or not the one spelling of it.
            ("kubepods", "pod".to_owned()),
            ("kubepods", "podinfo".to_owned()),
            ("kubepods", format!("pod{}", UID.to_uppercase())),
            ("kubepods", format!("pod{}", UID.replace('-', ""))),
            ("kubepods", format!("pod{UID}x")),
            ("kubepods", format!("xpod{UID}")),
        ] {
            assert_eq!(at(root, &below), None, "{root} {below}");
        }
    }

    proptest! {
        #[test]
        fn a_path_is_a_pod_only_if_it_is_written_as_the_kubelet_writes_it(
            root in "(kubepods|kubepods\\.slice|zt|zt\\.slice|a-kubepods\\.slice)",
            parts in prop::collection::vec(
                prop_oneof![
                    Just("kubepods".to_owned()), Just("kubepods.slice".to_owned()),
                    Just("burstable".to_owned()), Just("kubepods-burstable.slice".to_owned()),
                    Just(format!("pod{UID}")), Just(filled("kubepods-pod%.slice", true)),
                    Just(filled("kubepods-burstable-pod%.slice", true)),
                    Just(filled("a-kubepods-pod%.slice", true)),
                    Just("a-kubepods.slice".to_owned()),
                    Just(ID.to_owned()), Just("..".to_owned()),
                    // The place itself is passed over, wherever it is in a path.
                    "[a-z_.-]{1,6}".prop_filter("the place itself", |part| part != "."),
                ],
                0..6,
            ),
        ) {
            let below = parts.join("/");
            if let Some(Place::Pod(found)) = at(&root, &below) {
                prop_assert_eq!(found, uid());
                // The pod, at most a class and at most the one above them all.
                prop_assert!(parts.len() <= 3);
                let whole = format!("{root}/{below}");
                let systemd = whole.ends_with(".slice");
                let dash = if systemd { filled("-pod%.slice", true) } else { format!("/pod{UID}") };
                prop_assert!(whole.ends_with(&dash), "{}", whole);
                let classes = parts.iter().filter(|p| p.contains("burstable") && !p.contains("pod0")).count();
                prop_assert!(classes <= 1);
                let tops = whole.split('/').filter(|p| p.trim_end_matches(".slice").ends_with("kubepods")).count();
                prop_assert_eq!(tops, 1, "{}", whole);
            }
        }

        #[test]
        fn any_bytes_are_looked_at_without_a_panic(root in ".*", below in ".*") {
            let _ = at(&root, &below);
        }
    }
}
