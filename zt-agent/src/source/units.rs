//! The cgroups of systemd units.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// Deeper trees are not searched: a unit is at most a few slices deep.
const DEPTH: usize = 12;

/// The cgroups below `top` with one of these names, by name, sorted. Only
/// slices are searched: systemd keeps its units nowhere else, and what lies
/// inside a service or a container may have been made by whoever runs there,
/// with a name that is not theirs.
pub fn find(top: &Path, names: &BTreeSet<&str>) -> BTreeMap<String, Vec<PathBuf>> {
    let mut found = BTreeMap::new();
    if !names.is_empty() {
        search(top, names, DEPTH, &mut found);
    }
    for paths in found.values_mut() {
        paths.sort_unstable();
    }
    found
}

fn search(
    directory: &Path,
    names: &BTreeSet<&str>,
    depth: usize,
    found: &mut BTreeMap<String, Vec<PathBuf>>,
) {
    // A cgroup may vanish while we look: it is not there then.
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        let name = entry.file_name();
        if let Some(name) = name.to_str().filter(|name| names.contains(name)) {
            let paths: &mut Vec<PathBuf> = found.entry(name.to_owned()).or_default();
            paths.push(entry.path());
        } else if depth > 1 && is_slice(&entry.path()) {
            search(&entry.path(), names, depth - 1, found);
        }
    }
}

fn is_slice(path: &Path) -> bool {
    path.extension().is_some_and(|kind| kind == "slice")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_is_found_at_any_depth_and_every_time() {
        let top = tempfile::tempdir().unwrap();
        let path = |name: &str| top.path().join(name);
        for name in [
            "a.slice/a-b.slice/iam.service",
            "iam.service",
            "b.slice/other",
        ] {
            fs::create_dir_all(path(name)).unwrap();
        }
        let found = find(top.path(), &BTreeSet::from(["iam.service", "gone.service"]));
        let expected = vec![path("a.slice/a-b.slice/iam.service"), path("iam.service")];
        assert_eq!(found, BTreeMap::from([("iam.service".into(), expected)]));
    }

    #[test]
    fn a_name_inside_somebody_elses_unit_is_not_the_unit() {
        let top = tempfile::tempdir().unwrap();
        for name in ["user@1000.service/iam.service", "x/y.slice/iam.service"] {
            fs::create_dir_all(top.path().join("a.slice").join(name)).unwrap();
        }
        assert!(find(top.path(), &BTreeSet::from(["iam.service"])).is_empty());
    }
}
