//! Puts the kernel programs where `kernel/object.rs` embeds them from.
//!
//! `cargo xtask build` sets ZT_EBPF_OBJECT to the object file it has built. Without
//! it an empty file is embedded, so that the agent compiles, and its tests run,
//! where there is no nightly and no bpf-linker.

use std::path::{Path, PathBuf};
use std::{env, fs};

const VARIABLE: &str = "ZT_EBPF_OBJECT";

fn main() {
    println!("cargo::rerun-if-env-changed={VARIABLE}");
    println!("cargo::rerun-if-changed=build.rs");
    let out = env::var_os("OUT_DIR").expect("cargo sets OUT_DIR");
    let embedded = PathBuf::from(out).join("zt-ebpf.o");
    let object = env::var_os(VARIABLE).filter(|value| !value.is_empty());
    let bytes = object.map_or_else(Vec::new, |path| read(Path::new(&path)));
    fs::write(&embedded, bytes)
        .unwrap_or_else(|error| panic!("cannot write {}: {error}", embedded.display()));
}

fn read(object: &Path) -> Vec<u8> {
    println!("cargo::rerun-if-changed={}", object.display());
    fs::read(object)
        .unwrap_or_else(|error| panic!("{VARIABLE}: cannot read {}: {error}", object.display()))
}
