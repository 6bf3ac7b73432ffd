//! The functions of an object of kernel programs, and what their relocations mean.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use object::{
    Object as _, ObjectSection, ObjectSymbol, RelocationTarget, SectionIndex, SectionKind,
    SymbolKind,
};

/// Bytes of an instruction; a wide constant is two such.
pub const SLOT: usize = 8;

/// Where the functions are that are no programs by themselves.
const SHARED: &str = ".text";
/// Where maps are described: by BTF, and as before that.
const MAPS: [&str; 2] = [".maps", "maps"];

/// Instructions and their parts: include/uapi/linux/bpf.h.
pub mod code {
    pub const CLASS: u8 = 0x07;
    pub const LDX: u8 = 0x01;
    pub const ST: u8 = 0x02;
    pub const STX: u8 = 0x03;
    pub const ALU: u8 = 0x04;
    pub const JMP: u8 = 0x05;
    pub const JMP32: u8 = 0x06;
    pub const ALU64: u8 = 0x07;

    pub const LDDW: u8 = 0x18;
    pub const CALL: u8 = 0x85;
    pub const EXIT: u8 = 0x95;
    pub const MOV64_REG: u8 = 0xbf;
    pub const ADD64_IMM: u8 = 0x07;

    pub const PSEUDO_CALL: u8 = 1;
    pub const PSEUDO_FUNC: u8 = 4;
}

/// A function: its section, and its first byte there.
pub type Place = (usize, u64);

/// Eight bytes: an instruction, or one half of a wide constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    pub opcode: u8,
    pub to: u8,
    pub from: u8,
    pub offset: i16,
    pub immediate: i32,
}

impl Instruction {
    fn read(slot: [u8; SLOT]) -> Self {
        let [opcode, registers, o0, o1, i0, i1, i2, i3] = slot;
        Self {
            opcode,
            to: registers & 0x0f,
            from: registers >> 4,
            offset: i16::from_le_bytes([o0, o1]),
            immediate: i32::from_le_bytes([i0, i1, i2, i3]),
        }
    }

    pub fn class(self) -> u8 {
        self.opcode & code::CLASS
    }

    /// The number of the kernel's function that it calls.
    pub fn helper(self) -> Option<i32> {
        (self.opcode == code::CALL && self.from == 0).then_some(self.immediate)
    }
}

/// What an instruction refers to outside its function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Function(Place),
    /// By its name.
    Map(String),
    /// A byte of a section that is no code.
    Data {
        section: usize,
        offset: u64,
    },
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Function {
    pub name: String,
    /// Whether the kernel calls it, and not only others of the object.
    pub is_program: bool,
    pub slots: Vec<Instruction>,
    /// By the slot that refers to it.
    pub targets: BTreeMap<usize, Target>,
}

impl Function {
    /// Every instruction with the number of its slot, a wide constant once.
    pub fn instructions(&self) -> impl Iterator<Item = (usize, Instruction)> {
        let mut is_second_half = false;
        let slots = self.slots.iter().copied().enumerate();
        slots.filter(move |(_, instruction)| {
            if is_second_half {
                is_second_half = false;
                return false;
            }
            is_second_half = instruction.opcode == code::LDDW;
            true
        })
    }

    /// The function that this slot calls, or hands over to be called.
    pub fn callee(&self, slot: usize) -> Option<Place> {
        match self.targets.get(&slot) {
            Some(Target::Function(place)) => Some(*place),
            _ => None,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Object {
    pub functions: BTreeMap<Place, Function>,
    /// The sections that instructions read constants from.
    pub data: BTreeMap<usize, Vec<u8>>,
}

impl Object {
    /// # Errors
    /// When it is not what we build.
    pub fn read(elf: &[u8]) -> Result<Self> {
        let file = object::File::parse(elf).context("not an ELF file")?;
        let mut object = Self::default();
        for section in file
            .sections()
            .filter(|one| one.kind() == SectionKind::Text)
        {
            let references = references(&file, &section)?;
            let is_program = section.name()? != SHARED;
            let bytes = section.data().context("a section without bytes")?;
            let symbols = file.symbols().filter(|symbol| {
                symbol.kind() == SymbolKind::Text && symbol.section_index() == Some(section.index())
            });
            for symbol in symbols.filter(|symbol| symbol.size() > 0) {
                let (start, size) = (symbol.address(), symbol.size());
                let range = usize::try_from(start)?..usize::try_from(start + size)?;
                let code = bytes
                    .get(range)
                    .context("a function ends behind its section")?;
                let mut function = Function {
                    // Without its hash.
                    name: format!("{:#}", rustc_demangle::demangle(symbol.name()?)),
                    is_program,
                    slots: slots(code),
                    targets: BTreeMap::new(),
                };
                let place = (section.index().0, start);
                function.targets = targets(&function, place, &references)
                    .with_context(|| function.name.clone())?;
                object.functions.insert(place, function);
            }
        }
        let functions = object.functions.values();
        let targets = functions.flat_map(|function| function.targets.values());
        for target in targets {
            if let Target::Data { section, .. } = target {
                let bytes = file.section_by_index(SectionIndex(*section))?.data()?;
                object.data.insert(*section, bytes.to_vec());
            }
        }
        Ok(object)
    }

    /// # Errors
    /// When there is none.
    pub fn function(&self, place: Place) -> Result<&Function> {
        let function = self.functions.get(&place);
        function.context("a call leads to no function")
    }

    /// What the kernel calls.
    pub fn programs(&self) -> impl Iterator<Item = (Place, &Function)> {
        let functions = self.functions.iter();
        let programs = functions.filter(|(_, function)| function.is_program);
        programs.map(|(place, function)| (*place, function))
    }
}

fn slots(code: &[u8]) -> Vec<Instruction> {
    let (slots, _) = code.as_chunks();
    slots.iter().copied().map(Instruction::read).collect()
}

/// What the relocations of a section name, by the byte of their instruction; the rest
/// of the way is in the instruction.
fn references<'data>(
    file: &object::File<'data>,
    section: &object::Section<'data, '_>,
) -> Result<BTreeMap<u64, Target>> {
    let mut references = BTreeMap::new();
    for (at, relocation) in section.relocations() {
        let RelocationTarget::Symbol(index) = relocation.target() else {
            continue;
        };
        let symbol = file.symbol_by_index(index)?;
        let Some(section) = symbol.section_index() else {
            continue;
        };
        let target = file.section_by_index(section)?;
        let (section, offset) = (section.0, symbol.address());
        let start = if target.kind() == SectionKind::Text {
            Target::Function((section, offset))
        } else if MAPS.contains(&target.name()?) {
            Target::Map(symbol.name()?.to_owned())
        } else {
            Target::Data { section, offset }
        };
        references.insert(at, start);
    }
    Ok(references)
}

/// What a function's instructions refer to. A call says the rest of the way from
/// where its relocation leads, or all of it from where it is, in instructions less
/// one; a wide constant says it in bytes.
fn targets(
    function: &Function,
    (section, start): Place,
    references: &BTreeMap<u64, Target>,
) -> Result<BTreeMap<usize, Target>> {
    let mut targets = BTreeMap::new();
    for (slot, instruction) in function.instructions() {
        let at = start + u64::try_from(slot * SLOT)?;
        let more = i64::from(instruction.immediate);
        let calls = instruction.opcode == code::CALL && instruction.from == code::PSEUDO_CALL;
        let is_callback = instruction.opcode == code::LDDW && instruction.from == code::PSEUDO_FUNC;
        let target = match references.get(&at) {
            Some(Target::Function((section, base))) => {
                let more = if calls { (more + 1) * 8 } else { more };
                let place = base.checked_add_signed(more);
                Target::Function((*section, place.context("a call leads nowhere")?))
            }
            Some(Target::Map(name)) => Target::Map(name.clone()),
            Some(Target::Data { section, offset }) => Target::Data {
                section: *section,
                offset: offset
                    .checked_add_signed(more)
                    .context("a constant is nowhere")?,
            },
            None if calls || is_callback => {
                let place = at.checked_add_signed((more + 1) * 8);
                Target::Function((section, place.context("a call leads nowhere")?))
            }
            None => continue,
        };
        targets.insert(slot, target);
    }
    Ok(targets)
}

/// What tests write instructions with.
#[cfg(test)]
pub mod tests {
    use super::*;

    pub const HERE: usize = 1;

    pub fn slot(opcode: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
        Instruction {
            opcode,
            to,
            from,
            offset,
            immediate,
        }
    }

    /// At the start of the section [`HERE`], without relocations.
    pub fn function(slots: &[Instruction]) -> Function {
        let mut function = Function {
            name: "function".to_owned(),
            is_program: true,
            slots: slots.to_vec(),
            ..Function::default()
        };
        function.targets = targets(&function, (HERE, 0), &BTreeMap::new()).unwrap();
        function
    }

    #[test]
    fn an_instruction_is_read_from_its_bytes() {
        let read = Instruction::read([0x7b, 0x1a, 0xe8, 0xff, 0xfe, 0xff, 0xff, 0xff]);
        assert_eq!(read, slot(0x7b, 10, 1, -24, -2));
    }

    #[test]
    fn the_second_half_of_a_wide_constant_is_no_instruction() {
        let exit = slot(code::EXIT, 0, 0, 0, 0);
        let wide = slot(code::LDDW, 1, 0, 0, 0);
        let function = function(&[wide, slot(code::LDDW, 0, 0, 0, 0), exit]);
        let slots: Vec<usize> = function.instructions().map(|(slot, _)| slot).collect();
        assert_eq!(slots, [0, 2]);
    }

    #[test]
    fn a_call_leads_on_from_where_it_is_or_from_what_its_relocation_names() {
        let call = slot(code::CALL, 0, code::PSEUDO_CALL, 0, 1);
        let here = function(&[call]);
        assert_eq!(here.callee(0), Some((HERE, 16)));
        let helper = function(&[slot(code::CALL, 0, 0, 0, 1)]);
        assert_eq!(helper.callee(0), None);
        assert_eq!(helper.slots[0].helper(), Some(1));
        let there = BTreeMap::from([(40, Target::Function((7, 80)))]);
        let found = targets(&here, (HERE, 40), &there).unwrap();
        assert_eq!(found, BTreeMap::from([(0, Target::Function((7, 96)))]));
        let constant = function(&[slot(code::LDDW, 1, 0, 0, 3)]);
        let data = |offset| Target::Data { section: 9, offset };
        let found = targets(&constant, (HERE, 0), &BTreeMap::from([(0, data(5))])).unwrap();
        let expected = Target::Data {
            section: 9,
            offset: 8,
        };
        assert_eq!(found, BTreeMap::from([(0, expected)]));
    }
}
