//! How much stack the kernel programs take, as the verifier adds it up.
//!
//! A program and the functions that it calls share 512 bytes, and each of them
//! takes what it touches below its frame pointer, rounded up: to 32 bytes on kernels
//! before 6.6, and to 16 on later ones where programs are compiled
//! (`check_max_stack_depth` in kernel/bpf/verifier.c). Here it is known from the object
//! alone, at the build, and not only when an old kernel refuses it.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, Result, bail, ensure};

use crate::bytecode::{self, Object, Place, code};

/// `MAX_BPF_STACK`
const LIMIT: u64 = 512;
const ROUND: u64 = 32;
/// `MAX_CALL_FRAMES`
const FRAMES: usize = 8;

const FRAME_POINTER: u8 = 10;

#[derive(Debug, Default)]
struct Function {
    name: String,
    /// Bytes below its frame pointer.
    own: u64,
    calls: Vec<Place>,
}

/// The functions of a program that take the most together, the program first.
#[derive(Debug, PartialEq, Eq)]
pub struct Chain {
    /// With what each takes.
    functions: Vec<(String, u64)>,
}

impl Chain {
    /// Bytes.
    pub fn depth(&self) -> u64 {
        self.functions.iter().map(|(_, own)| round(*own)).sum()
    }
}

/// `zt_egress (32) → slow (192): 224 of 512 bytes`
impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let functions = self.functions.iter();
        let functions = functions.map(|(name, own)| format!("{name} ({})", round(*own)));
        let functions: Vec<String> = functions.collect();
        let depth = self.depth();
        write!(f, "{}: {depth} of {LIMIT} bytes", functions.join(" → "))
    }
}

/// The deepest chain of all programs of an object.
///
/// # Errors
/// When a chain takes more than there is, or the object is not what we build.
pub fn check(elf: &[u8]) -> Result<Chain> {
    deepest(&functions(elf)?)
}

fn deepest(functions: &BTreeMap<Place, Function>) -> Result<Chain> {
    let mut deepest: Option<Chain> = None;
    for place in functions.keys() {
        let chain = chain(functions, *place, 1)?;
        if deepest
            .as_ref()
            .is_none_or(|known| known.depth() < chain.depth())
        {
            deepest = Some(chain);
        }
    }
    let deepest = deepest.context("the object has no functions")?;
    ensure!(
        deepest.depth() <= LIMIT,
        "kernels before 6.6 refuse this, as it takes too much stack: {deepest}; keep less over calls in one of them"
    );
    Ok(deepest)
}

fn chain(functions: &BTreeMap<Place, Function>, place: Place, frames: usize) -> Result<Chain> {
    let function = functions
        .get(&place)
        .context("a call leads to no function")?;
    if frames > FRAMES {
        bail!(
            "{} is called by more than {FRAMES} others at once",
            function.name
        );
    }
    let mut below = Vec::new();
    for call in &function.calls {
        let chain = chain(functions, *call, frames + 1)?;
        if depth(&below) < chain.depth() {
            below = chain.functions;
        }
    }
    below.insert(0, (function.name.clone(), function.own));
    Ok(Chain { functions: below })
}

fn depth(functions: &[(String, u64)]) -> u64 {
    functions.iter().map(|(_, own)| round(*own)).sum()
}

/// Also a function that takes nothing takes something.
fn round(own: u64) -> u64 {
    own.max(1).next_multiple_of(ROUND)
}

fn functions(elf: &[u8]) -> Result<BTreeMap<Place, Function>> {
    let functions = Object::read(elf)?.functions;
    let functions = functions.iter();
    Ok(functions
        .map(|(place, function)| (*place, read(function)))
        .collect())
}

/// Reads what a function touches and whom it calls.
fn read(function: &bytecode::Function) -> Function {
    // How far below the frame pointer each register points, where it does.
    let mut below: [Option<i64>; 16] = [None; 16];
    below[usize::from(FRAME_POINTER)] = Some(0);
    let mut own = 0;
    let mut calls = Vec::new();
    for (slot, instruction) in function.instructions() {
        let (to, from) = (usize::from(instruction.to), usize::from(instruction.from));
        let offset = i64::from(instruction.offset);
        let immediate = i64::from(instruction.immediate);
        let mut touch = |base: Option<i64>, more: i64| {
            let bytes = base.and_then(|base| u64::try_from(-(base + more)).ok());
            own = own.max(bytes.unwrap_or(0));
        };
        calls.extend(function.callee(slot));
        match instruction.opcode {
            code::LDDW => below[to] = None,
            code::CALL => below[..=5].fill(None),
            code::MOV64_REG => {
                below[to] = below[from];
                touch(below[to], 0);
            }
            code::ADD64_IMM => {
                below[to] = below[to].map(|base| base + immediate);
                touch(below[to], 0);
            }
            _ => match instruction.class() {
                code::LDX => {
                    touch(below[from], offset);
                    below[to] = None;
                }
                code::ST | code::STX => touch(below[to], offset),
                // A jump writes nothing, any other calculation its register.
                code::JMP | code::JMP32 => {}
                _ => below[to] = None,
            },
        }
    }
    Function {
        name: function.name.clone(),
        own,
        calls,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytecode::Instruction;
    use crate::bytecode::tests::{HERE, slot};

    fn function(slots: &[Instruction]) -> Function {
        read(&bytecode::tests::function(slots))
    }

    #[test]
    fn what_is_touched_below_the_frame_pointer_counts() {
        const STORE: u8 = 0x7b;
        const LOAD: u8 = 0x79;
        let own = |slots: &[Instruction]| function(slots).own;
        assert_eq!(own(&[]), 0);
        assert_eq!(own(&[slot(STORE, 10, 1, -24, 0)]), 24);
        assert_eq!(own(&[slot(LOAD, 1, 10, -40, 0)]), 40);
        // By another register, for a helper or a store.
        let pointer = [slot(0xbf, 2, 10, 0, 0), slot(0x07, 2, 0, 0, -64)];
        assert_eq!(own(&pointer), 64);
        let store = slot(STORE, 2, 1, -8, 0);
        assert_eq!(own(&[pointer[0], pointer[1], store]), 72);
        // That is something else by then.
        let other = [
            pointer[0],
            pointer[1],
            slot(0xb7, 2, 0, 0, 5),
            slot(STORE, 2, 1, -800, 0),
        ];
        assert_eq!(own(&other), 64);
        let above = [slot(0xbf, 2, 10, 0, 0), slot(LOAD, 3, 1, -800, 0)];
        assert_eq!(own(&above), 0);
        // The second half of a wide constant is no instruction.
        let wide = [slot(0x18, 1, 0, 0, 0), slot(STORE, 10, 10, -300, 0)];
        assert_eq!(own(&wide), 0);
    }

    #[test]
    fn the_deepest_of_all_chains_counts_with_each_rounded_up() {
        let call = slot(0x85, 0, 1, 0, 1);
        assert_eq!(function(&[call]).calls, [(HERE, 16)]);
        let helper = slot(0x85, 0, 0, 0, 1);
        assert_eq!(function(&[helper]).calls, []);
        let one = |name: &str, own, calls: &[u64]| Function {
            name: name.to_owned(),
            own,
            calls: calls.iter().map(|to| (HERE, *to)).collect(),
        };
        let functions = BTreeMap::from([
            ((HERE, 0), one("program", 33, &[8, 16])),
            ((HERE, 8), one("wide", 100, &[])),
            ((HERE, 16), one("deep", 0, &[24])),
            ((HERE, 24), one("deeper", 97, &[])),
            ((HERE, 32), one("round", 1, &[32])),
        ]);
        let found = chain(&functions, (HERE, 0), 1).unwrap();
        let told = "program (64) → deep (32) → deeper (128): 224 of 512 bytes";
        assert_eq!(found.to_string(), told);
        let too_deep = |own| {
            let last = one("last", own, &[]);
            let functions = [((HERE, 0), one("first", 480, &[8])), ((HERE, 8), last)];
            deepest(&BTreeMap::from(functions))
        };
        assert_eq!(too_deep(32).unwrap().depth(), LIMIT);
        let error = too_deep(33).unwrap_err().to_string();
        assert!(
            error.contains("first (480) → last (64): 544 of 512"),
            "{error}"
        );
        let error = chain(&functions, (HERE, 32), 1).unwrap_err();
        assert!(error.to_string().contains("more than 8"), "{error}");
    }
}
