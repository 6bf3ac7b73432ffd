use std::os::unix::fs::symlink;

use tempfile::TempDir;

use super::*;

fn policy(name: &str) -> String {
    format!(
        "apiVersion: zt.hanzo.ai/v1\nkind: ServiceAccessPolicy\nmetadata: {{name: {name}}}\nspec: {{rules: []}}\n"
    )
}

fn write(directory: &TempDir, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
    let path = directory.path().join(name);
    fs::write(&path, content).unwrap();
    path
}

fn names(set: &PolicySet) -> Vec<&str> {
    set.policies.iter().map(|policy| &*policy.name).collect()
}

#[test]
fn a_directory_is_read_in_the_order_of_names() {
    let directory = TempDir::new().unwrap();
    for name in ["b.yaml", "a.yml", "c.yaml"] {
        write(&directory, name, policy(&name[..1]));
    }
    for other in [
        ".hidden.yaml",
        "notes.txt",
        "yaml",
        "d.yaml~",
        "..data.yaml",
    ] {
        write(&directory, other, "]");
    }
    fs::create_dir(directory.path().join("below")).unwrap();
    fs::write(directory.path().join("below/x.yaml"), "]").unwrap();
    let set = load(&[directory.path().to_owned()]).unwrap();
    assert_eq!(names(&set), ["a", "b", "c"]);
    assert_eq!(set.sources.len(), 3);
    assert_eq!(*set.sources[0].text, *policy("a"));
    assert!(set.sources[0].name.ends_with("/a.yml"));
}

#[test]
fn a_mounted_config_map_is_read_once() {
    let directory = TempDir::new().unwrap();
    let version = directory.path().join("..2026_11_21");
    fs::create_dir(&version).unwrap();
    fs::write(version.join("p.yaml"), policy("p")).unwrap();
    symlink("..2026_11_21", directory.path().join("..data")).unwrap();
    symlink("..data/p.yaml", directory.path().join("p.yaml")).unwrap();
    assert_eq!(names(&load(&[directory.path().to_owned()]).unwrap()), ["p"]);
}

#[test]
fn a_file_given_twice_is_no_duplicate() {
    let directory = TempDir::new().unwrap();
    let path = write(&directory, "a.yaml", policy("a"));
    let set = load(&[path.clone(), directory.path().to_owned(), path]).unwrap();
    assert_eq!(names(&set), ["a"]);
}

#[test]
fn one_bad_file_refuses_the_whole_set_and_all_problems_are_told() {
    let directory = TempDir::new().unwrap();
    write(&directory, "a.yaml", policy("good"));
    write(&directory, "b.yaml", policy("BAD"));
    write(&directory, "c.yaml", b"# \xff\n");
    write(&directory, "d.yaml", policy("good"));
    let Err(LoadError::Problems { problems, sources }) = load(&[directory.path().to_owned()])
    else {
        panic!("it loads")
    };
    let mut places: Vec<&str> = problems
        .iter()
        .map(|p| p.at.file.rsplit('/').next().unwrap())
        .collect();
    places.sort_unstable();
    assert_eq!(places, ["b.yaml", "c.yaml", "d.yaml"]);
    assert_eq!(sources.len(), 3);
}

#[test]
fn what_is_not_there_is_named() {
    let directory = TempDir::new().unwrap();
    let missing = directory.path().join("nowhere");
    let error = load(&[directory.path().to_owned(), missing.clone()]).unwrap_err();
    assert!(matches!(&error, LoadError::File(FileError::Missing { path }) if *path == missing));
    assert!(error.to_string().contains("nowhere"));

    symlink("nothing.yaml", directory.path().join("a.yaml")).unwrap();
    let error = load(&[directory.path().to_owned()]).unwrap_err();
    assert!(
        matches!(error, LoadError::File(FileError::Missing { path }) if path.ends_with("a.yaml"))
    );
}

#[test]
fn what_is_no_file_is_refused_without_waiting() {
    let directory = TempDir::new().unwrap();
    let pipe = directory.path().join("pipe.yaml");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let error = load(&[directory.path().to_owned()]).unwrap_err();
    assert!(matches!(error, LoadError::File(FileError::NotAFile { path }) if path == pipe));
}

#[test]
fn a_file_has_a_largest_size() {
    let directory = TempDir::new().unwrap();
    let limit = usize::try_from(file::LIMIT).unwrap();
    let path = write(&directory, "a.yaml", format!("#{}", "x".repeat(limit - 1)));
    assert_eq!(load(std::slice::from_ref(&path)).unwrap().policies, []);
    let path = write(&directory, "a.yaml", format!("#{}", "x".repeat(limit)));
    assert!(matches!(
        load(&[path]),
        Err(LoadError::File(FileError::TooLarge { .. }))
    ));
}

#[test]
fn an_empty_directory_is_an_empty_set() {
    let directory = TempDir::new().unwrap();
    assert_eq!(
        load(&[directory.path().to_owned()]).unwrap(),
        PolicySet::default()
    );
}

#[test]
fn a_log_is_not_flooded() {
    let directory = TempDir::new().unwrap();
    let path = write(&directory, "a.yaml", "x: y\n---\n".repeat(100));
    let error = load(&[path]).unwrap_err().to_string();
    assert!(
        error.ends_with("… and 180 more; see `zt-agent policy check`"),
        "{error}"
    );
}
