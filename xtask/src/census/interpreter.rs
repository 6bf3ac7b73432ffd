//! Runs a kernel program of an object, instruction by instruction, and counts.
//!
//! Instruction set v3, which the programs are built for, on a machine of the same
//! byte order: Documentation/bpf/standardization/instruction-set.rst.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};

use super::kernel::Kernel;
use super::memory::Address;
use super::table::Counts;
use crate::bytecode::{Function, Instruction, Object, Place, Target, code};

/// A program that runs longer does not end: the kernel knows of each that it does.
const LIMIT: u64 = 1_000_000;
/// `MAX_CALL_FRAMES`
const FRAMES: usize = 8;
/// `MAX_BPF_STACK`
const STACK: usize = 512;
const FRAME_POINTER: usize = 10;

/// Parts of instructions.
mod part {
    /// Of a calculation and of a jump: with a register and not a constant.
    pub const REGISTER: u8 = 0x08;
    /// Of both: what it does.
    pub const OPERATION: u8 = 0xf0;
    /// Of a load and of a store: how it finds the place, and how many bytes.
    pub const MODE: u8 = 0xe0;
    pub const SIZE: u8 = 0x18;

    pub const PLAIN: u8 = 0x60;
    pub const ATOMIC: u8 = 0xc0;
}

/// What came of a run.
#[derive(Debug, PartialEq, Eq)]
pub struct Run {
    pub result: u64,
    pub counts: Counts,
}

/// Runs a program with the context as its argument.
///
/// # Errors
/// When it does what the verifier would refuse, or what the kernel that is modelled
/// cannot do.
pub fn run(object: &Object, program: &str, kernel: &mut Kernel) -> Result<Run> {
    let mut programs = object.programs();
    let found = programs.find(|(_, function)| function.name == program);
    let (place, _) = found.with_context(|| format!("the object has no program {program}"))?;
    let mut data = BTreeMap::new();
    for (section, bytes) in &object.data {
        data.insert(*section, kernel.memory.add(bytes.clone()));
    }
    let stacks = (0..FRAMES).map(|_| kernel.memory.add(vec![0; STACK]));
    let mut interpreter = Interpreter {
        object,
        stacks: stacks.collect(),
        kernel,
        data,
        registers: [0; 11],
        callers: Vec::new(),
        counts: Counts::default(),
    };
    interpreter.registers[1] = interpreter.kernel.context();
    interpreter.run(place)
}

/// Where a call goes on, and with what.
struct Caller {
    place: Place,
    slot: usize,
    /// Those that a function leaves as they were.
    registers: [u64; 4],
}

struct Interpreter<'a> {
    object: &'a Object,
    kernel: &'a mut Kernel,
    /// One for each frame.
    stacks: Vec<Address>,
    /// Sections.
    data: BTreeMap<usize, Address>,
    registers: [u64; 11],
    callers: Vec<Caller>,
    counts: Counts,
}

/// How to go on.
enum Next {
    /// So many slots further than with the next.
    Skip(i64),
    Call(Place),
    Return,
}

impl Interpreter<'_> {
    fn run(mut self, mut place: Place) -> Result<Run> {
        let mut slot = 0;
        self.enter()?;
        loop {
            let function = self.object.function(place)?;
            let next = self
                .step(function, slot)
                .with_context(|| format!("{} at instruction {slot}", function.name))?;
            match next {
                Next::Skip(slots) => {
                    let next = i64::try_from(slot)? + 1 + slots;
                    slot = usize::try_from(next).context("a jump before the function")?;
                }
                Next::Call(callee) => {
                    let [.., r6, r7, r8, r9, _] = self.registers;
                    self.callers.push(Caller {
                        place,
                        slot: slot + 1,
                        registers: [r6, r7, r8, r9],
                    });
                    self.enter()?;
                    (place, slot) = (callee, 0);
                }
                Next::Return => {
                    let Some(caller) = self.callers.pop() else {
                        return Ok(Run {
                            result: self.registers[0],
                            counts: self.counts,
                        });
                    };
                    self.registers[6..=9].copy_from_slice(&caller.registers);
                    self.enter()?;
                    (place, slot) = (caller.place, caller.slot);
                }
            }
        }
    }

    /// Takes the stack of the function that runs now.
    fn enter(&mut self) -> Result<()> {
        let stack = self.stacks.get(self.callers.len());
        let stack = stack.with_context(|| format!("more than {FRAMES} calls in each other"))?;
        self.registers[FRAME_POINTER] = stack + STACK as u64;
        Ok(())
    }

    fn step(&mut self, function: &Function, slot: usize) -> Result<Next> {
        let instruction = function.slots.get(slot);
        let instruction = *instruction.context("no instruction is there")?;
        self.counts.instructions += 1;
        ensure!(
            self.counts.instructions <= LIMIT,
            "it has not ended after {LIMIT} instructions"
        );
        match instruction.opcode {
            code::LDDW => {
                *self.register(instruction.to)? = self.wide(function, slot)?;
                return Ok(Next::Skip(1));
            }
            code::CALL => return self.call(function, slot, instruction),
            code::EXIT => return Ok(Next::Return),
            _ => {}
        }
        match instruction.class() {
            code::ALU | code::ALU64 => self.calculate(instruction)?,
            code::JMP | code::JMP32 => {
                if self.jumps(instruction)? {
                    return Ok(Next::Skip(instruction.offset.into()));
                }
            }
            code::LDX => {
                ensure!(
                    instruction.opcode & part::MODE == part::PLAIN,
                    "a load of kind {:#x}",
                    instruction.opcode
                );
                let from = self.at(instruction.from, instruction.offset)?;
                let number = self.kernel.load(from, size(instruction))?;
                *self.register(instruction.to)? = number;
            }
            code::ST | code::STX => self.store(instruction)?,
            _ => bail!("an instruction of kind {:#x}", instruction.opcode),
        }
        Ok(Next::Skip(0))
    }

    fn register(&mut self, number: u8) -> Result<&mut u64> {
        let register = self.registers.get_mut(usize::from(number));
        register.with_context(|| format!("there is no register {number}"))
    }

    fn at(&mut self, register: u8, offset: i16) -> Result<Address> {
        let base = *self.register(register)?;
        Ok(base.wrapping_add_signed(offset.into()))
    }

    /// A wide constant, or the address that is to be in its place.
    fn wide(&mut self, function: &Function, slot: usize) -> Result<u64> {
        let mut halves = function.slots[slot..].iter().map(|one| low(one.immediate));
        match function.targets.get(&slot) {
            Some(Target::Map(name)) => Ok(self.kernel.name(name)),
            Some(Target::Data { section, offset }) => {
                let start = self.data.get(section).context("data that is nowhere")?;
                Ok(start + offset)
            }
            Some(Target::Function(_)) => bail!("a function to be called by a helper"),
            None => {
                let first = halves.next().context("half a constant")?;
                Ok(halves.next().context("half a constant")? << 32 | first)
            }
        }
    }

    fn call(&mut self, function: &Function, slot: usize, call: Instruction) -> Result<Next> {
        let Some(number) = call.helper() else {
            let callee = function.callee(slot);
            return Ok(Next::Call(callee.context("a call of no function")?));
        };
        self.counts.add_call(number);
        let [_, r1, r2, r3, r4, r5, ..] = self.registers;
        self.registers[0] = self.kernel.call(number, [r1, r2, r3, r4, r5])?;
        Ok(Next::Skip(0))
    }

    /// The second operand of a calculation or a jump.
    fn operand(&mut self, instruction: Instruction) -> Result<u64> {
        if instruction.opcode & part::REGISTER == 0 {
            Ok(i64::from(instruction.immediate).cast_unsigned())
        } else {
            Ok(*self.register(instruction.from)?)
        }
    }

    fn calculate(&mut self, instruction: Instruction) -> Result<()> {
        const SWAP: u8 = 0xd0;
        ensure!(
            instruction.offset == 0,
            "a calculation of instruction set v4"
        );
        let is_wide = instruction.class() == code::ALU64;
        let operation = instruction.opcode & part::OPERATION;
        let to = *self.register(instruction.to)?;
        *self.register(instruction.to)? = if operation == SWAP {
            ensure!(!is_wide, "a calculation of instruction set v4");
            let swaps = instruction.opcode & part::REGISTER != 0;
            ordered(to, instruction.immediate, swaps)?
        } else {
            let by = self.operand(instruction)?;
            calculated(operation, to, by, is_wide)?
        };
        Ok(())
    }

    fn jumps(&mut self, instruction: Instruction) -> Result<bool> {
        const ALWAYS: u8 = 0x00;
        let is_wide = instruction.class() == code::JMP;
        let operation = instruction.opcode & part::OPERATION;
        if operation == ALWAYS {
            ensure!(is_wide, "a jump of instruction set v4");
            return Ok(true);
        }
        let (one, other) = (*self.register(instruction.to)?, self.operand(instruction)?);
        holds(operation, one, other, is_wide)
    }

    fn store(&mut self, instruction: Instruction) -> Result<()> {
        let to = self.at(instruction.to, instruction.offset)?;
        let size = size(instruction);
        let is_register = instruction.class() == code::STX;
        match instruction.opcode & part::MODE {
            part::PLAIN => {
                let number = if is_register {
                    *self.register(instruction.from)?
                } else {
                    i64::from(instruction.immediate).cast_unsigned()
                };
                self.kernel.memory.store(to, size, number)
            }
            part::ATOMIC if is_register && size >= 4 => self.atomic(instruction, to, size),
            _ => bail!("a store of kind {:#x}", instruction.opcode),
        }
    }

    fn atomic(&mut self, instruction: Instruction, to: Address, size: u64) -> Result<()> {
        const FETCH: i32 = 0x01;
        const ADD: i32 = 0x00;
        const OR: i32 = 0x40;
        const AND: i32 = 0x50;
        const XOR: i32 = 0xa0;
        const EXCHANGE: i32 = 0xe1;
        const COMPARE: i32 = 0xf1;
        let old = self.kernel.memory.load(to, size)?;
        let by = *self.register(instruction.from)?;
        let kind = instruction.immediate;
        let new = match kind {
            EXCHANGE => by,
            COMPARE if old == cut(self.registers[0], size == 8) => by,
            COMPARE => old,
            _ => match kind & !FETCH {
                ADD => old.wrapping_add(by),
                OR => old | by,
                AND => old & by,
                XOR => old ^ by,
                _ => bail!("an atomic operation of kind {kind:#x}"),
            },
        };
        self.kernel.memory.store(to, size, new)?;
        if kind == COMPARE {
            self.registers[0] = old;
        } else if kind & FETCH != 0 {
            *self.register(instruction.from)? = old;
        }
        Ok(())
    }
}

/// How many bytes it loads or stores.
fn size(instruction: Instruction) -> u64 {
    match instruction.opcode & part::SIZE {
        0x00 => 4,
        0x08 => 2,
        0x10 => 1,
        _ => 8,
    }
}

/// The bits of a constant, none added.
fn low(immediate: i32) -> u64 {
    immediate.cast_unsigned().into()
}

/// What a calculation or a jump of this width sees of a number.
fn cut(number: u64, is_wide: bool) -> u64 {
    const LOW: u64 = 0xffff_ffff;
    if is_wide { number } else { number & LOW }
}

/// The same with its sign.
fn signed(number: u64, is_wide: bool) -> i64 {
    if is_wide {
        number.cast_signed()
    } else {
        (number << 32).cast_signed() >> 32
    }
}

fn calculated(operation: u8, to: u64, by: u64, is_wide: bool) -> Result<u64> {
    let (to, by) = (cut(to, is_wide), cut(by, is_wide));
    let shift = by & if is_wide { 63 } else { 31 };
    let result = match operation {
        0x00 => to.wrapping_add(by),
        0x10 => to.wrapping_sub(by),
        0x20 => to.wrapping_mul(by),
        // By nothing, the kernel says, is nothing.
        0x30 => to.checked_div(by).unwrap_or(0),
        0x40 => to | by,
        0x50 => to & by,
        0x60 => to << shift,
        0x70 => to >> shift,
        0x80 => to.wrapping_neg(),
        0x90 => to.checked_rem(by).unwrap_or(to),
        0xa0 => to ^ by,
        0xb0 => by,
        0xc0 => (signed(to, is_wide) >> shift).cast_unsigned(),
        _ => bail!("a calculation of kind {operation:#x}"),
    };
    Ok(cut(result, is_wide))
}

/// The lowest bits of a number in little-endian order, or in the other.
fn ordered(number: u64, bits: i32, swaps: bool) -> Result<u64> {
    let unused = match bits {
        16 => 48,
        32 => 32,
        64 => 0,
        _ => bail!("the byte order of {bits} bits"),
    };
    let lowest = number << unused;
    Ok(if swaps {
        lowest.swap_bytes()
    } else {
        lowest >> unused
    })
}

fn holds(operation: u8, one: u64, other: u64, is_wide: bool) -> Result<bool> {
    let (one, other) = (cut(one, is_wide), cut(other, is_wide));
    let signs = (signed(one, is_wide), signed(other, is_wide));
    Ok(match operation {
        0x10 => one == other,
        0x20 => one > other,
        0x30 => one >= other,
        0x40 => one & other != 0,
        0x50 => one != other,
        0x60 => signs.0 > signs.1,
        0x70 => signs.0 >= signs.1,
        0xa0 => one < other,
        0xb0 => one <= other,
        0xc0 => signs.0 < signs.1,
        0xd0 => signs.0 <= signs.1,
        _ => bail!("a jump of kind {operation:#x}"),
    })
}

#[cfg(test)]
mod tests {
    use super::super::kernel::{NOW, Packet, helper};
    use super::*;
    use crate::bytecode::tests::{HERE, function, slot};

    const EXIT: Instruction = Instruction {
        opcode: code::EXIT,
        to: 0,
        from: 0,
        offset: 0,
        immediate: 0,
    };

    fn kernel() -> Kernel {
        let packet = Packet {
            bytes: vec![0; 64],
            interface: 7,
            socket: None,
        };
        Kernel::with(packet).unwrap()
    }

    fn run_of(object: &Object) -> Result<Run> {
        run(object, "function", &mut kernel())
    }

    /// What a program of these instructions, and its end, returns.
    fn result(slots: &[Instruction]) -> Result<u64> {
        let function = function(&[slots, &[EXIT]].concat());
        let functions = BTreeMap::from([((HERE, 0), function)]);
        let data = BTreeMap::new();
        let run = run_of(&Object { functions, data })?;
        Ok(run.result)
    }

    fn set(register: u8, to: i32) -> Instruction {
        slot(0xb7, register, 0, 0, to)
    }

    #[test]
    fn calculations_in_both_widths() {
        let with = |opcode, by| result(&[set(0, -6), slot(opcode, 0, 0, 0, by)]).unwrap();
        assert_eq!(with(0x07, 7), 1);
        assert_eq!(with(0x04, 7), 1);
        assert_eq!(with(0x04, 1), 0xffff_fffb);
        assert_eq!(with(0x17, 1), (-7_i64).cast_unsigned());
        assert_eq!(with(0x27, 2), (-12_i64).cast_unsigned());
        assert_eq!(with(0x34, 2), 0x7fff_fffd);
        assert_eq!(with(0x37, 0), 0);
        assert_eq!(with(0x97, 0), (-6_i64).cast_unsigned());
        assert_eq!(with(0x57, 0xff), 0xfa);
        assert_eq!(with(0x67, 60), 0xa000_0000_0000_0000);
        assert_eq!(with(0x77, 60), 0xf);
        assert_eq!(with(0x74, 28), 0xf);
        assert_eq!(with(0xc7, 1), (-3_i64).cast_unsigned());
        assert_eq!(with(0xc4, 1), 0xffff_fffd);
        assert_eq!(with(0x87, 0), 6);
        assert_eq!(with(0xa4, -1), 5);
        assert_eq!(with(0xb4, -1), 0xffff_ffff);
        assert_eq!(with(0xd4, 16), 0xfffa);
        assert_eq!(with(0xdc, 16), 0xfaff);
        assert_eq!(with(0xdc, 32), 0xfaff_ffff);
        let add = [set(0, 1), set(1, 2), slot(0x0f, 0, 1, 0, 0)];
        assert_eq!(result(&add).unwrap(), 3);
        let wide = [slot(code::LDDW, 0, 0, 0, -1), slot(0, 0, 0, 0, 2)];
        assert_eq!(result(&wide).unwrap(), 0x2_ffff_ffff);
    }

    #[test]
    fn jumps_in_both_widths() {
        let jumps = |opcode, by| {
            let jump = slot(opcode, 1, 0, 1, by);
            result(&[set(0, 1), set(1, -6), jump, set(0, 0)]).unwrap() == 1
        };
        for (opcode, by) in [
            (0x05, 0),
            (0x15, -6),
            (0x16, -6),
            (0x25, 5),
            (0x35, -6),
            (0x45, 2),
            (0x55, 6),
            (0x65, -7),
            (0x66, -7),
            (0x75, -6),
            (0xa5, -5),
            (0xb5, -6),
            (0xc5, 0),
            (0xc6, 0),
            (0xd5, -6),
        ] {
            assert!(jumps(opcode, by), "{opcode:#x}");
        }
        for (opcode, by) in [(0x15, 6), (0x45, 1), (0x65, 5), (0xa5, 5), (0xc5, -6)] {
            assert!(!jumps(opcode, by), "{opcode:#x}");
        }
        // Back, and so for ever.
        let error = result(&[slot(0x05, 0, 0, -1, 0)]).unwrap_err();
        assert!(format!("{error:#}").contains("not ended"), "{error:#}");
    }

    #[test]
    fn what_is_stored_on_the_stack_is_loaded_from_it() {
        let store = [set(1, -2), slot(0x7b, 10, 1, -8, 0)];
        let load = |opcode| [&store[..], &[slot(opcode, 0, 10, -8, 0)]].concat();
        assert_eq!(result(&load(0x79)).unwrap(), (-2_i64).cast_unsigned());
        assert_eq!(result(&load(0x61)).unwrap(), 0xffff_fffe);
        assert_eq!(result(&load(0x69)).unwrap(), 0xfffe);
        assert_eq!(result(&load(0x71)).unwrap(), 0xfe);
        let constant = [slot(0x7a, 10, 0, -8, 5), slot(0x79, 0, 10, -8, 0)];
        assert_eq!(result(&constant).unwrap(), 5);
    }

    #[test]
    fn an_access_out_of_bounds_is_an_error() {
        for at in [0, -4, -513] {
            let error = result(&[slot(0x7b, 10, 0, at, 0)]).unwrap_err();
            let error = format!("{error:#}");
            assert!(error.contains("function at instruction 0"), "{error}");
            assert!(error.contains("8 bytes at"), "{error}");
        }
        // By nothing, and behind the packet.
        assert!(result(&[slot(0x79, 0, 0, 0, 0)]).is_err());
        let behind = [slot(0x61, 2, 1, 76, 0), slot(0x79, 0, 2, 60, 0)];
        assert!(result(&behind).is_err());
        let inside = [slot(0x61, 2, 1, 76, 0), slot(0x79, 0, 2, 56, 0)];
        assert_eq!(result(&inside).unwrap(), 0);
    }

    #[test]
    fn atomic_operations_change_memory_and_give_what_was_there() {
        let start = [slot(0x7a, 10, 0, -8, 6), set(1, 3)];
        let memory = |kind| {
            let slots = [slot(0xdb, 10, 1, -8, kind), slot(0x79, 0, 10, -8, 0)];
            result(&[&start[..], &slots].concat()).unwrap()
        };
        let register = |kind| {
            let slots = [slot(0xdb, 10, 1, -8, kind), slot(0xbf, 0, 1, 0, 0)];
            result(&[&start[..], &slots].concat()).unwrap()
        };
        for (kind, expected) in [(0x00, 9), (0x40, 7), (0x50, 2), (0xa0, 5)] {
            assert_eq!(memory(kind), expected, "{kind:#x}");
            assert_eq!(register(kind), 3, "{kind:#x}");
            assert_eq!(memory(kind | 1), expected, "{kind:#x}");
            assert_eq!(register(kind | 1), 6, "{kind:#x}");
        }
        assert_eq!((memory(0xe1), register(0xe1)), (3, 6));
        let compared = |with| {
            let swap = [set(0, with), slot(0xdb, 10, 1, -8, 0xf1)];
            let after = [slot(0x79, 2, 10, -8, 0), slot(0x67, 0, 0, 0, 8)];
            let both = slot(0x4f, 0, 2, 0, 0);
            result(&[&start[..], &swap, &after, &[both]].concat()).unwrap()
        };
        assert_eq!(compared(6), 0x603);
        assert_eq!(compared(7), 0x606);
        let half = [slot(0xc3, 10, 1, -8, 1), slot(0xbf, 0, 1, 0, 0)];
        assert_eq!(result(&[&start[..], &half].concat()).unwrap(), 6);
    }

    #[test]
    fn a_call_has_a_stack_of_its_own_and_leaves_four_registers() {
        let call = slot(code::CALL, 0, code::PSEUDO_CALL, 0, 5);
        let clock = slot(code::CALL, 0, 0, 0, helper::KTIME_GET_BOOT_NS);
        let program = [
            set(6, 4),
            slot(0x7a, 10, 0, -8, 5),
            call,
            slot(0x79, 7, 10, -8, 0),
            slot(0x0f, 0, 6, 0, 0),
            slot(0x0f, 0, 7, 0, 0),
            clock,
            EXIT,
        ];
        let callee = [set(6, 0), slot(0x7a, 10, 0, -8, 0), set(0, 1), EXIT];
        let mut functions = BTreeMap::from([((HERE, 0), function(&program))]);
        functions.insert((HERE, 64), function(&callee));
        let mut object = Object {
            functions,
            data: BTreeMap::new(),
        };
        let run = run_of(&object).unwrap();
        assert_eq!(run.result, NOW);
        let counts = Counts {
            instructions: 12,
            helpers: 1,
            lookups: 0,
        };
        assert_eq!(run.counts, counts);
        // Without the call to the clock.
        let program = &mut object.functions.get_mut(&(HERE, 0)).unwrap().slots;
        program[6] = slot(0x07, 0, 0, 0, 0);
        assert_eq!(run_of(&object).unwrap().result, 10);
    }

    #[test]
    fn calls_in_each_other_end_somewhere() {
        let call = slot(code::CALL, 0, code::PSEUDO_CALL, 0, -1);
        let error = result(&[call]).unwrap_err();
        assert!(format!("{error:#}").contains("more than 8"), "{error:#}");
    }
}
