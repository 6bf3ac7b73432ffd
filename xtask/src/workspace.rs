//! Where things are, and how cargo is called.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The nightly for the kernel programs: its LLVM is the one that the pinned
/// bpf-linker was made for, so the two change together.
pub const NIGHTLY: &str = "nightly-2026-05-20";

/// The root of the clone.
pub fn root() -> PathBuf {
    let manifest = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    manifest
        .parent()
        .map_or_else(|| manifest.clone(), Path::to_path_buf)
}

/// The target directory of everything that the kernel programs need.
pub fn bpf_target() -> PathBuf {
    root().join("target/bpf")
}

/// The target directory of the fuzz targets, and of what they find.
pub fn fuzz_target() -> PathBuf {
    root().join("target/fuzz")
}

/// The finished object file of a package of kernel programs; the agent embeds
/// that of zt-ebpf.
pub fn bpf_object(package: &str) -> PathBuf {
    bpf_target().join(format!("{package}.o"))
}

/// The stable cargo that runs this task, in the root of the clone.
pub fn cargo(subcommand: &str) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).arg(subcommand);
    command
}

/// The dated nightly's cargo, freed of what the stable one left in our
/// environment: its library path alone would give bpf-linker the wrong LLVM.
pub fn nightly_cargo(subcommand: &str) -> Command {
    let mut command = Command::new("rustup");
    command
        .current_dir(root())
        .args(["run", NIGHTLY, "cargo", subcommand]);
    for name in [
        "CARGO",
        "CARGO_ENCODED_RUSTFLAGS",
        "LD_LIBRARY_PATH",
        "RUSTC",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTFLAGS",
        "RUSTUP_TOOLCHAIN",
    ] {
        command.env_remove(name);
    }
    command
}

/// Whether we may install packages and change cgroups and namespaces.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}
