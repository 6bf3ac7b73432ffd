//! Properties of everything that reads bytes from somebody else.
//!
//! Each module is one target: `check` takes any bytes and panics where a
//! property does not hold. The fuzzer runs it (`cargo xtask fuzz`), a test runs
//! it on the corpus (`cargo test`), and the target's binary runs it on files.

pub mod config;
mod document;
pub mod event;
pub mod identities;
pub mod packet;
pub mod policy;
pub mod replay;
pub mod request;
pub mod spiffe;
pub mod trail;
/// A target: its name, and what it runs on bytes.
pub type Target = (&'static str, fn(&[u8]));

/// Every target. Each has a binary, and a folder in the corpus, of its name.
pub const TARGETS: [Target; 8] = [
    ("config", config::check),
    ("event", event::check),
    ("identities", identities::check),
    ("packet", packet::check),
    ("policy", policy::check),
    ("request", request::check),
    ("spiffe", spiffe::check),
    ("trail", trail::check),
];

/// The `main` of a target's binary.
#[macro_export]
macro_rules! binary {
    ($check:path) => {
        #[cfg(fuzzing)]
        libfuzzer_sys::fuzz_target!(|bytes: &[u8]| $check(bytes));

        #[cfg(not(fuzzing))]
        fn main() -> std::process::ExitCode {
            $crate::replay::main($check)
        }
    };
}
