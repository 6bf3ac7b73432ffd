//! Whether this kernel takes the programs, and how long its verifier needs.

use super::Programs;

/// Loads them into a sandbox and drops them again.
#[cfg(feature = "kernel")]
#[must_use]
pub fn load() -> Programs {
    use crate::{Sandbox, node::Node};

    let counts = Sandbox::new().and_then(|sandbox| {
        let node = Node::new(&sandbox)?;
        Ok(node.verified_instructions())
    });
    match counts {
        Ok(counts) => Programs::Accepted(counts),
        Err(error) => Programs::Rejected(format!("{error:#}\n{}", verifier_log())),
    }
}

/// Nothing is known without the agent's code.
#[cfg(not(feature = "kernel"))]
#[must_use]
pub fn load() -> Programs {
    Programs::Rejected("built without the feature `kernel`".to_owned())
}

/// The walk of the verifier to the instruction that it did not like: the end of
/// the first program's log that is refused.
#[cfg(feature = "kernel")]
fn verifier_log() -> String {
    use aya::{EbpfLoader, VerifierLogLevel, programs::Program};

    const LAST_LINES: usize = 60;
    let mut loader = EbpfLoader::new();
    loader.verifier_log_level(VerifierLogLevel::DEBUG | VerifierLogLevel::STATS);
    let object = match zt_agent::kernel::object::object() {
        Ok(object) => object,
        Err(error) => return error.to_string(),
    };
    let mut ebpf = match loader.load(object) {
        Ok(ebpf) => ebpf,
        Err(error) => return format!("{error:?}"),
    };
    for (name, program) in ebpf.programs_mut() {
        let loaded = match program {
            Program::CgroupSkb(program) => program.load(),
            Program::CgroupSock(program) => program.load(),
            Program::CgroupSockAddr(program) => program.load(),
            Program::SchedClassifier(program) => program.load(),
            _ => Ok(()),
        };
        if let Err(aya::programs::ProgramError::LoadError { verifier_log, .. }) = loaded {
            let log = verifier_log.to_string();
            let lines: Vec<&str> = log.lines().collect();
            let end = &lines[lines.len().saturating_sub(LAST_LINES)..];
            return format!("the verifier's log of {name} ends so:\n{}", end.join("\n"));
        }
    }
    "loaded alone, every program is accepted".to_owned()
}
