//! Makes `[i8; N]` print as text in `bpftool map dump`.
//!
//! bpftool shows an array as a string only if its element is an integer encoded
//! as a character. Rust's `c_char` is called `i8` and encoded as signed, so the
//! encoding of that one type is changed in the object's `.BTF` section.
//! Layouts: the kernel's include/uapi/linux/btf.h.

use anyhow::{Context, Result, bail};
use object::{Object, ObjectSection};

const MAGIC: u32 = 0xeb9f;
/// The fixed part of every type: name offset, info, size or type.
const TYPE_SIZE: usize = 12;
const KIND_INT: u32 = 1;
const INT_CHAR: u32 = 2;
/// The encoding's place in the word that follows an integer type.
const ENCODING_SHIFT: u32 = 24;
const ENCODING_MASK: u32 = 0x0f << ENCODING_SHIFT;

/// Patches the `.BTF` section of a little-endian ELF file in place. Gives how
/// many types changed.
pub fn mark_names_as_text(elf: &mut [u8]) -> Result<usize> {
    let range = {
        let file = object::File::parse(&*elf).context("not an ELF file")?;
        let section = file
            .section_by_name(".BTF")
            .context("the object has no .BTF section: was it linked with --btf?")?;
        section.file_range().context("the .BTF section is empty")?
    };
    let start = usize::try_from(range.0)?;
    let end = start + usize::try_from(range.1)?;
    let btf = elf
        .get_mut(start..end)
        .context("the .BTF section ends behind the file")?;
    patch(btf)
}

/// Gives every integer type named `i8` the encoding of a character.
fn patch(btf: &mut [u8]) -> Result<usize> {
    let header = Header::parse(btf)?;
    let mut at = header.types_start;
    let mut patched = 0;
    while at < header.types_end {
        let name = word(btf, at)?;
        let info = word(btf, at + 4)?;
        if kind(info) == KIND_INT && header.name(btf, name)? == b"i8" {
            let encoding = at + TYPE_SIZE;
            let value = word(btf, encoding)? & !ENCODING_MASK | INT_CHAR << ENCODING_SHIFT;
            btf[encoding..encoding + 4].copy_from_slice(&value.to_le_bytes());
            patched += 1;
        }
        at += TYPE_SIZE + trailer(info)?;
    }
    Ok(patched)
}

/// Where the two halves of the section are, in bytes from its start.
struct Header {
    types_start: usize,
    types_end: usize,
    strings_start: usize,
}

impl Header {
    fn parse(btf: &[u8]) -> Result<Self> {
        let magic = word(btf, 0)? & 0xffff;
        if magic != MAGIC {
            bail!("bad magic number {magic:#x}");
        }
        let length = offset(btf, 4)?;
        let types_start = length + offset(btf, 8)?;
        Ok(Self {
            types_start,
            types_end: types_start + offset(btf, 12)?,
            strings_start: length + offset(btf, 16)?,
        })
    }

    fn name<'a>(&self, btf: &'a [u8], at: u32) -> Result<&'a [u8]> {
        let start = self.strings_start + usize::try_from(at)?;
        let text = btf.get(start..).context("a name lies outside")?;
        let end = text.iter().position(|byte| *byte == 0);
        Ok(&text[..end.context("a name has no end")?])
    }
}

fn word(btf: &[u8], at: usize) -> Result<u32> {
    let bytes = btf.get(at..).and_then(|rest| rest.first_chunk());
    let bytes = bytes.with_context(|| format!("cut off at byte {at}"))?;
    Ok(u32::from_le_bytes(*bytes))
}

fn offset(btf: &[u8], at: usize) -> Result<usize> {
    Ok(usize::try_from(word(btf, at)?)?)
}

fn kind(info: u32) -> u32 {
    (info >> 24) & 0x1f
}

/// The bytes that follow the fixed part of a type.
fn trailer(info: u32) -> Result<usize> {
    let members = usize::try_from(info & 0xffff)?;
    Ok(match kind(info) {
        // int, variable, declaration tag
        KIND_INT | 14 | 17 => 4,
        // pointer, forward, typedef, volatile, const, restrict, function,
        // float, type tag
        2 | 7..=12 | 16 | 18 => 0,
        // array
        3 => 12,
        // struct, union, data section, 64-bit enum
        4 | 5 | 15 | 19 => members * 12,
        // enum, function prototype
        6 | 13 => members * 8,
        unknown => bail!("a type of unknown kind {unknown}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIGNED_8_BITS: u32 = 1 << ENCODING_SHIFT | 8;
    const CHAR_8_BITS: u32 = INT_CHAR << ENCODING_SHIFT | 8;

    /// A section of the given words of types, and the strings "", "i8", "u8".
    fn section(types: &[u32]) -> Vec<u8> {
        let length = u32::try_from(types.len() * 4).unwrap();
        let header = [MAGIC | 1 << 16, 24, 0, length, length, 7];
        let words = header.iter().chain(types);
        let mut bytes: Vec<u8> = words.flat_map(|word| word.to_le_bytes()).collect();
        bytes.extend(b"\0i8\0u8\0");
        bytes
    }

    const I8: [u32; 4] = [1, KIND_INT << 24, 1, SIGNED_8_BITS];
    const U8: [u32; 4] = [4, KIND_INT << 24, 1, 8];
    /// A struct named `i8` with one member: only its name is like the integer's.
    const STRUCT: [u32; 6] = [1, 4 << 24 | 1, 1, 4, 1, 0];

    #[test]
    fn only_the_integer_i8_becomes_a_character() {
        let mut btf = section(&[&STRUCT[..], &U8, &I8].concat());
        assert_eq!(patch(&mut btf).unwrap(), 1);
        let mut character = I8;
        character[3] = CHAR_8_BITS;
        assert_eq!(btf, section(&[&STRUCT[..], &U8, &character].concat()));
    }

    #[test]
    fn patching_twice_changes_nothing_more() {
        let mut btf = section(&I8);
        patch(&mut btf).unwrap();
        let once = btf.clone();
        patch(&mut btf).unwrap();
        assert_eq!(btf, once);
    }

    #[test]
    fn a_section_that_is_cut_off_is_an_error() {
        let whole = section(&I8);
        for length in [0, 3, 23, 30, 39, 42] {
            assert!(patch(&mut whole[..length].to_vec()).is_err(), "{length}");
        }
    }

    #[test]
    fn a_wrong_magic_number_is_an_error() {
        let mut btf = section(&I8);
        btf[0] = 0;
        assert!(patch(&mut btf).is_err());
    }

    #[test]
    fn an_unknown_kind_is_an_error() {
        let mut btf = section(&[0, 31 << 24, 0]);
        assert!(patch(&mut btf).is_err());
    }

    #[test]
    fn a_file_that_is_not_elf_is_an_error() {
        assert!(mark_names_as_text(&mut [0; 64]).is_err());
    }
}
