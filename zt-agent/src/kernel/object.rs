//! The kernel programs, embedded into the agent.

use thiserror::Error;

/// The agent was built without them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("this zt-agent was built without the kernel programs; build it with `cargo xtask build`")]
pub struct NoObject;

/// Empty where the build script was given none.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/zt-ebpf.o"));

/// The ELF file, with its BTF, as aya's loader takes it.
pub fn object() -> Result<&'static [u8], NoObject> {
    if OBJECT.is_empty() {
        return Err(NoObject);
    }
    Ok(OBJECT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_an_elf_file_or_an_error_that_says_what_to_do() {
        match object() {
            Ok(bytes) => assert_eq!(&bytes[..4], b"\x7fELF"),
            Err(error) => assert!(error.to_string().contains("cargo xtask build")),
        }
    }
}
