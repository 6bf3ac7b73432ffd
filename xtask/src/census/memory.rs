//! The memory of a program that is interpreted: pieces that do not touch.
//!
//! An address names its piece in the upper half and the byte there in the lower, so
//! that whatever is outside a piece is nowhere.

use anyhow::{Context, Result};

/// An address, as a program has it in a register. 0 is nowhere.
pub type Address = u64;

const OFFSET_BITS: u32 = 32;
const OFFSET: u64 = (1 << OFFSET_BITS) - 1;

#[derive(Debug, Default)]
pub struct Memory {
    /// The first is that of the address 1 << 32.
    pieces: Vec<Vec<u8>>,
}

impl Memory {
    /// Gives the address of its first byte.
    pub fn add(&mut self, piece: Vec<u8>) -> Address {
        self.pieces.push(piece);
        (self.pieces.len() as Address) << OFFSET_BITS
    }

    /// # Errors
    /// When they are not all in one piece.
    pub fn bytes(&self, address: Address, length: u64) -> Result<&[u8]> {
        let (piece, from, to) = place(address, length)?;
        let piece = self.pieces.get(piece);
        let bytes = piece.and_then(|piece| piece.get(from..to));
        bytes.with_context(|| outside(address, length))
    }

    /// # Errors
    /// When they do not go where there is a piece for all.
    pub fn write(&mut self, address: Address, bytes: &[u8]) -> Result<()> {
        let length = bytes.len() as u64;
        let (piece, from, to) = place(address, length)?;
        let piece = self.pieces.get_mut(piece);
        let place = piece.and_then(|piece| piece.get_mut(from..to));
        let place = place.with_context(|| outside(address, length))?;
        place.copy_from_slice(bytes);
        Ok(())
    }

    /// A number of up to eight bytes.
    ///
    /// # Errors
    /// As [`Memory::bytes`].
    pub fn load(&self, address: Address, length: u64) -> Result<u64> {
        let mut number = [0; 8];
        let bytes = self.bytes(address, length)?;
        let place = number.get_mut(..bytes.len());
        place.context("a wide number")?.copy_from_slice(bytes);
        Ok(u64::from_le_bytes(number))
    }

    /// The lowest bytes of a number.
    ///
    /// # Errors
    /// As [`Memory::write`].
    pub fn store(&mut self, address: Address, length: u64, number: u64) -> Result<()> {
        let bytes = number.to_le_bytes();
        let bytes = bytes.get(..usize::try_from(length)?);
        self.write(address, bytes.context("a wide number")?)
    }
}

/// The number of a piece, and a range in it.
fn place(address: Address, length: u64) -> Result<(usize, usize, usize)> {
    let piece = (address >> OFFSET_BITS).checked_sub(1);
    let piece = piece.with_context(|| outside(address, length))?;
    let from = address & OFFSET;
    let (from, to) = (usize::try_from(from)?, usize::try_from(from + length)?);
    Ok((usize::try_from(piece)?, from, to))
}

fn outside(address: Address, length: u64) -> String {
    format!("{length} bytes at {address:#x} are in no piece of memory")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_is_loaded_in_the_byte_order_of_the_kernel() {
        let mut memory = Memory::default();
        let (one, other) = (memory.add(vec![0; 4]), memory.add(vec![9; 8]));
        memory.store(one, 4, 0x0102_0304).unwrap();
        assert_eq!(memory.bytes(one, 4).unwrap(), [4, 3, 2, 1]);
        assert_eq!(memory.load(one + 1, 2).unwrap(), 0x0203);
        assert_eq!(memory.load(other, 1).unwrap(), 9);
    }

    #[test]
    fn what_is_not_all_in_one_piece_is_an_error() {
        let mut memory = Memory::default();
        let one = memory.add(vec![0; 4]);
        memory.add(vec![0; 4]);
        for address in [0, 1, one - 1, one + 1, one + 4, one + (2 << 32)] {
            assert!(memory.load(address, 4).is_err(), "{address:#x}");
            assert!(memory.store(address, 4, 0).is_err(), "{address:#x}");
        }
        let error = memory.load(one + 2, 4).unwrap_err().to_string();
        assert!(error.contains("4 bytes at 0x100000002"), "{error}");
    }
}
