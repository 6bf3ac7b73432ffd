//! Paths of cgroups as documents name them.

use std::path::{Component, Path, PathBuf};

use super::field::Field;

/// Where cgroup v2 is usually mounted.
const MOUNTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// A cgroup: relative to the cgroup v2 mount, or absolute. In its shortest
/// spelling, so that two spellings of one path are equal. The root cgroup is
/// an empty path.
pub fn path(field: &Field<'_>) -> Option<PathBuf> {
    let text = field.text()?;
    if text.contains('\0') {
        return field.refuse("a path holds no NUL", "");
    }
    let path: PathBuf = Path::new(text)
        .components()
        .filter(|component| *component != Component::CurDir)
        .collect();
    if path.components().any(|c| c == Component::ParentDir) {
        return field.refuse(
            "`..` is not allowed in the path of a cgroup",
            "write the path below the cgroup mount without it",
        );
    }
    Some(if is_root(&path) { PathBuf::new() } else { path })
}

fn is_root(path: &Path) -> bool {
    path == Path::new("") || path == Path::new("/") || MOUNTS.iter().any(|m| path == Path::new(m))
}
