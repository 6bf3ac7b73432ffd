//! Runs every target on inputs of its corpus with a few random edits each: what the
//! fuzzer does (`cargo xtask fuzz`), without watching which code an input reaches, and
//! so without a build of its own. The corpus has what reached new code; this looks at
//! its neighbourhood, and shrinks what it finds.

use std::{fs, io, path::Path};

use proptest::{
    collection::vec,
    prelude::*,
    sample::{Index, select},
    test_runner::{Config, TestRunner},
};
use zt_fuzz::TARGETS;

/// Inputs of each target.
const CASES: u32 = 1000;
const EDITS: usize = 4;
/// As many bytes are cut out, or taken from another place.
const PIECE: usize = 24;

/// Where something is done to an input, and what.
#[derive(Clone, Debug)]
enum Edit {
    Set(Index, u8),
    Remove(Index, usize),
    /// A piece of another input goes in.
    Graft(Index, Index, Index, usize),
}

fn edit() -> impl Strategy<Value = Edit> {
    let byte = prop_oneof![
        any::<u8>(),
        select(vec![0, 1, 0x7f, 0x80, 0xff, b'\n', b'"', b'/'])
    ];
    prop_oneof![
        (any::<Index>(), byte).prop_map(|(at, byte)| Edit::Set(at, byte)),
        (any::<Index>(), 1..=PIECE).prop_map(|(at, length)| Edit::Remove(at, length)),
        (any::<Index>(), any::<Index>(), any::<Index>(), 1..=PIECE)
            .prop_map(|(at, other, from, length)| Edit::Graft(at, other, from, length)),
    ]
}

impl Edit {
    fn apply(&self, input: &mut Vec<u8>, corpus: &[Vec<u8>]) {
        // Also behind the last byte.
        let place = |at: &Index, bytes: &[u8]| at.index(bytes.len() + 1);
        match self {
            Self::Set(at, byte) => {
                let at = place(at, input);
                match input.get_mut(at) {
                    Some(old) => *old = *byte,
                    None => input.push(*byte),
                }
            }
            Self::Remove(at, length) => {
                let from = place(at, input);
                let to = (from + length).min(input.len());
                input.drain(from..to);
            }
            Self::Graft(at, other, from, length) => {
                let other = other.get(corpus);
                let from = place(from, other);
                let to = (from + length).min(other.len());
                let at = place(at, input);
                input.splice(at..at, other[from..to].iter().copied());
            }
        }
    }
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target);
    let read = || -> io::Result<Vec<Vec<u8>>> {
        let entries = fs::read_dir(&directory)?.collect::<io::Result<Vec<_>>>()?;
        let mut paths: Vec<_> = entries.iter().map(fs::DirEntry::path).collect();
        paths.sort_unstable();
        paths.iter().map(fs::read).collect()
    };
    read().unwrap_or_else(|error| panic!("{directory:?}: {error}"))
}

/// Looks for an input for which `check` panics.
fn search(target: &str, check: fn(&[u8])) -> Result<(), String> {
    let corpus = corpus(target);
    let inputs = (any::<Index>(), vec(edit(), 1..=EDITS)).prop_map(|(which, edits)| {
        let mut input = which.get(&corpus).clone();
        for edit in &edits {
            edit.apply(&mut input, &corpus);
        }
        Input(input)
    });
    let config = Config {
        cases: CASES,
        // What is found is kept in the corpus.
        failure_persistence: None,
        ..Config::default()
    };
    let result = TestRunner::new(config).run(&inputs, |Input(bytes)| {
        check(&bytes);
        Ok(())
    });
    result.map_err(|error| error.to_string())
}

#[track_caller]
fn holds(target: &str) {
    let (_, check) = TARGETS
        .iter()
        .find(|(name, _)| *name == target)
        .expect("a target");
    if let Err(found) = search(target, *check) {
        panic!("{found}\nonce it is mended, keep the input in fuzz/corpus/{target}");
    }
}

/// Shown as it can be written down.
struct Input(Vec<u8>);

impl std::fmt::Debug for Input {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "b\"{}\"", self.0.escape_ascii())
    }
}

#[test]
fn config() {
    holds("config");
}

#[test]
fn event() {
    holds("event");
}

#[test]
fn identities() {
    holds("identities");
}

#[test]
fn packet() {
    holds("packet");
}

#[test]
fn policy() {
    holds("policy");
}

#[test]
fn request() {
    holds("request");
}

#[test]
fn spiffe() {
    holds("spiffe");
}

#[test]
fn trail() {
    holds("trail");
}

#[test]
fn an_input_that_breaks_a_property_is_found_and_shrunk() {
    let without_a_zero = |bytes: &[u8]| assert!(!bytes.contains(&0), "a zero");
    assert!(corpus("spiffe").iter().all(|input| !input.contains(&0)));
    let found = search("spiffe", without_a_zero).unwrap_err();
    assert!(
        found.contains("a zero") && found.contains("\\x00"),
        "{found}"
    );
}
