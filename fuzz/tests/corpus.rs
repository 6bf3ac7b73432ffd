//! Runs every target on its corpus, without the fuzzer.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use zt_fuzz::TARGETS;

/// The corpus is read by people and cloned by everybody.
const LARGEST: u64 = 500_000;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap_or_else(|error| panic!("{directory:?}: {error}"));
    let entries: io::Result<Vec<_>> = entries.map(|entry| Ok(entry?.path())).collect();
    entries.unwrap_or_else(|error| panic!("{directory:?}: {error}"))
}

#[test]
fn every_property_holds_for_the_corpus() {
    for (name, check) in TARGETS {
        let files = files(&corpus().join(name));
        assert!(!files.is_empty(), "nothing for {name}");
        for path in files {
            // Shown only if it fails.
            println!("{}", path.display());
            check(&fs::read(&path).unwrap());
        }
    }
}

#[test]
fn every_folder_of_the_corpus_and_every_binary_is_a_target() {
    let stems = |directory: &Path| -> BTreeSet<String> {
        let stem = |path: PathBuf| path.file_stem().unwrap().to_str().unwrap().to_owned();
        files(directory).into_iter().map(stem).collect()
    };
    let targets: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(stems(&corpus()), targets);
    assert_eq!(stems(&corpus().join("../fuzz_targets")), targets);
}

#[test]
fn the_corpus_is_small() {
    let folders = files(&corpus());
    let files = folders.iter().flat_map(|folder| files(folder));
    let size: u64 = files.map(|path| fs::metadata(path).unwrap().len()).sum();
    assert!(size <= LARGEST, "{size} bytes");
}
