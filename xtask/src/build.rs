//! Builds the kernel programs, makes their BTF readable, builds the agent.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::setup::{self, Tools};
use crate::step::Steps;
use crate::{btf, stack, workspace};

/// The variable through which zt-agent's build script finds the kernel programs.
pub const OBJECT_VARIABLE: &str = "ZT_EBPF_OBJECT";

const TARGET: &str = "bpfel-unknown-none";

#[derive(clap::Args)]
pub struct Arguments {
    /// Build the agent with optimisations (the kernel programs always are).
    #[arg(long)]
    release: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    Dev,
    Release,
}

/// What the compiler's warnings about the kernel programs are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Warnings {
    Allowed,
    Denied,
}

pub fn run(steps: &Steps, arguments: &Arguments) -> Result<()> {
    let tools = setup::run(steps)?;
    let profile = if arguments.release {
        Profile::Release
    } else {
        Profile::Dev
    };
    everything(steps, &tools, profile)
}

/// Builds the kernel programs and the agent that embeds them.
pub fn everything(steps: &Steps, tools: &Tools, profile: Profile) -> Result<()> {
    let object = kernel_programs(steps, tools, Warnings::Allowed)?;
    let mut agent = workspace::cargo("build");
    agent
        .args(["--package", "zt-agent"])
        .env(OBJECT_VARIABLE, &object);
    if profile == Profile::Release {
        agent.arg("--release");
    }
    steps.run("Build the agent", &mut agent)?;
    steps.note(&format!("it is in {}", agent_path(profile).display()));
    Ok(())
}

/// Where cargo puts the agent, from the root of the clone.
pub fn agent_path(profile: Profile) -> &'static Path {
    Path::new(match profile {
        Profile::Dev => "target/debug/zt-agent",
        Profile::Release => "target/release/zt-agent",
    })
}

/// Builds the kernel programs and gives the path of the object file.
pub fn kernel_programs(steps: &Steps, tools: &Tools, warnings: Warnings) -> Result<PathBuf> {
    let title = "Build the kernel programs";
    bpf_object(steps, tools, warnings, "zt-ebpf", title)
}

/// Builds what ours are measured against and gives the path of the object file.
pub fn floor_programs(steps: &Steps, tools: &Tools, warnings: Warnings) -> Result<PathBuf> {
    let title = "Build the programs to compare with";
    bpf_object(steps, tools, warnings, "zt-floor", title)
}

fn bpf_object(
    steps: &Steps,
    tools: &Tools,
    warnings: Warnings,
    package: &str,
    title: &str,
) -> Result<PathBuf> {
    let mut build = bpf_build(tools, package);
    if warnings == Warnings::Denied {
        build.args(["--config", "build.warnings='deny'"]);
    }
    steps.run(title, &mut build)?;
    let object = workspace::bpf_object(package);
    steps.check("Make their type information readable", || {
        let target = workspace::bpf_target().join(TARGET);
        finish(&target.join("release").join(package), &object)
    })?;
    let deepest = steps.check("Add up the stack that they take", || {
        stack::check(&fs::read(&object)?)
    })?;
    steps.note(&deepest.to_string());
    Ok(object)
}

fn bpf_build(tools: &Tools, package: &str) -> Command {
    let mut command = workspace::nightly_cargo("build");
    command
        .args(["--package", package, "--release", "--target", TARGET])
        .args(["-Z", "build-std=core"])
        // The workspace's release profile strips what BTF is made from.
        .args(["--config", "profile.release.strip=false"])
        .arg("--target-dir")
        .arg(workspace::bpf_target())
        .env("CARGO_ENCODED_RUSTFLAGS", bpf_flags(&tools.bpf_linker));
    command
}

/// Compiler flags, in cargo's encoding. Instruction set v3 (Linux 5.12 and
/// later) has the atomic operations and 32-bit jumps that the programs use.
fn bpf_flags(linker: &Path) -> OsString {
    let mut flags = OsString::from("-Clinker=");
    flags.push(linker);
    let architecture = format!("--cfg=bpf_target_arch=\"{}\"", env::consts::ARCH);
    for flag in [
        architecture.as_str(),
        "-Ctarget-cpu=v3",
        "-Cdebuginfo=2",
        "-Clink-arg=--btf",
        // Otherwise every small memset and memmove is a call to a loop over
        // bytes, which costs time, and stack on kernels before 6.6.
        "-Clink-arg=--disable-expand-memcpy-in-order",
        // Linux 6.1 takes a loop only if its way back is a jump. Moving
        // blocks about for speed can put a loop's head behind its end, where the
        // way back is to go on.
        "-Clink-arg=--llvm-args=-disable-block-placement",
    ] {
        flags.push("\x1f");
        flags.push(flag);
    }
    flags
}

/// Copies the object with its BTF patched. What did not change is not written,
/// or the agent would be built again.
fn finish(built: &Path, object: &Path) -> Result<()> {
    let mut bytes = fs::read(built).with_context(|| format!("cannot read {}", built.display()))?;
    btf::mark_names_as_text(&mut bytes)
        .with_context(|| format!("the BTF of {}", built.display()))?;
    if fs::read(object).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    fs::write(object, bytes).with_context(|| format!("cannot write {}", object.display()))
}
