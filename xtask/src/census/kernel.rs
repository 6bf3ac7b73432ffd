//! What a program finds in the kernel: its context, maps, and the few helpers that
//! the way of a cached packet takes.
//!
//! Anything else that it asks for is an error: a decision cannot be made here.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};

use super::memory::{Address, Memory};

/// Numbers of helpers: include/uapi/linux/bpf.h.
pub mod helper {
    pub const MAP_LOOKUP_ELEM: i32 = 1;
    pub const SKB_LOAD_BYTES: i32 = 26;
    pub const SK_FULLSOCK: i32 = 95;
    pub const SK_STORAGE_GET: i32 = 107;
    pub const KTIME_GET_BOOT_NS: i32 = 125;
    pub const KTIME_GET_COARSE_NS: i32 = 160;

    /// Those that look for something in a map.
    pub const LOOKUPS: [i32; 2] = [MAP_LOOKUP_ELEM, SK_STORAGE_GET];
}

/// Nanoseconds since the kernel started, by all its clocks.
pub const NOW: u64 = 1_000_000_000_000;

/// Places in `struct __sk_buff`, and its length.
mod context {
    pub const IFINDEX: u64 = 40;
    pub const DATA: u64 = 76;
    pub const DATA_END: u64 = 80;
    pub const SK: u64 = 168;
    pub const LENGTH: usize = 192;
}

/// A packet as a program gets it.
pub struct Packet {
    pub bytes: Vec<u8>,
    /// Index of the interface.
    pub interface: u32,
    /// The `struct bpf_sock` of its socket, if it has one.
    pub socket: Option<Vec<u8>>,
}

enum Map {
    Array {
        values: Address,
        value: u64,
        elements: u64,
    },
    /// Values by key.
    Hash {
        key: u64,
        values: BTreeMap<Vec<u8>, Address>,
    },
    /// The value of the one socket there is, if it has one.
    Storage(Option<Address>),
}

#[derive(Default)]
pub struct Kernel {
    pub memory: Memory,
    context: Address,
    data: Address,
    data_end: Address,
    socket: Address,
    maps: BTreeMap<String, Map>,
    /// By what programs name them with.
    names: BTreeMap<Address, String>,
}

impl Kernel {
    pub fn with(packet: Packet) -> Result<Self> {
        let mut kernel = Self::default();
        let length = packet.bytes.len() as u64;
        kernel.data = kernel.memory.add(packet.bytes);
        kernel.data_end = kernel.data + length;
        kernel.context = kernel.memory.add(vec![0; context::LENGTH]);
        if let Some(socket) = packet.socket {
            kernel.socket = kernel.memory.add(socket);
        }
        let (at, socket) = (kernel.context, kernel.socket);
        kernel.memory.store(at, 4, length)?;
        let interface = packet.interface.into();
        kernel.memory.store(at + context::IFINDEX, 4, interface)?;
        kernel.memory.store(at + context::SK, 8, socket)?;
        Ok(kernel)
    }

    /// The first argument of a program.
    pub fn context(&self) -> Address {
        self.context
    }

    /// An array all zero but for its first element.
    pub fn array(&mut self, name: &str, elements: usize, first: &[u8]) {
        let mut bytes = first.to_vec();
        bytes.resize(elements * first.len(), 0);
        let map = Map::Array {
            values: self.memory.add(bytes),
            value: first.len() as u64,
            elements: elements as u64,
        };
        self.maps.insert(name.to_owned(), map);
    }

    /// A table by keys of so many bytes.
    pub fn hash(&mut self, name: &str, key: usize, rows: &[(Vec<u8>, Vec<u8>)]) {
        let mut values = BTreeMap::new();
        for (key, value) in rows {
            values.insert(key.clone(), self.memory.add(value.clone()));
        }
        let key = key as u64;
        self.maps.insert(name.to_owned(), Map::Hash { key, values });
    }

    /// What the socket of the packet keeps there.
    pub fn storage(&mut self, name: &str, value: Option<Vec<u8>>) {
        let value = value.map(|value| self.memory.add(value));
        self.maps.insert(name.to_owned(), Map::Storage(value));
    }

    /// What a program has for a map, whether or not there is one.
    pub fn name(&mut self, map: &str) -> Address {
        let known = self.names.iter().find(|(_, name)| *name == map);
        if let Some((address, _)) = known {
            return *address;
        }
        let address = self.memory.add(Vec::new());
        self.names.insert(address, map.to_owned());
        address
    }

    /// As [`Memory::load`], but where the bounds of the packet are in the context the
    /// kernel gives more than fits there.
    pub fn load(&self, address: Address, length: u64) -> Result<u64> {
        if address == self.context + context::DATA && length == 4 {
            return Ok(self.data);
        }
        if address == self.context + context::DATA_END && length == 4 {
            return Ok(self.data_end);
        }
        self.memory.load(address, length)
    }

    /// Does what a helper does.
    pub fn call(&mut self, number: i32, arguments: [u64; 5]) -> Result<u64> {
        let [first, second, third, fourth, _] = arguments;
        match number {
            helper::MAP_LOOKUP_ELEM => self.look_up(first, second),
            helper::SK_STORAGE_GET => self.stored(first, second, fourth),
            helper::SKB_LOAD_BYTES => self.load_bytes(first, second, third, fourth),
            helper::SK_FULLSOCK => Ok(first),
            helper::KTIME_GET_BOOT_NS | helper::KTIME_GET_COARSE_NS => Ok(NOW),
            _ => bail!("it calls helper {number}, which a cached packet has no need of"),
        }
    }

    fn look_up(&self, map: Address, key: Address) -> Result<u64> {
        let (name, map) = self.map(map)?;
        let found = match map {
            Map::Array {
                values,
                value,
                elements,
            } => {
                let index = self.memory.load(key, 4)?;
                (index < *elements).then(|| values + index * value)
            }
            Map::Hash {
                key: length,
                values,
            } => values.get(self.memory.bytes(key, *length)?).copied(),
            Map::Storage(_) => bail!("{name} is no map of keys"),
        };
        Ok(found.unwrap_or(0))
    }

    fn stored(&self, map: Address, socket: Address, flags: u64) -> Result<u64> {
        let (name, Map::Storage(value)) = self.map(map)? else {
            bail!("it asks a map for what a socket stores that is for something else");
        };
        ensure!(socket == self.socket && socket != 0, "{name}: of no socket");
        ensure!(
            flags == 0,
            "it makes room in {name}, which a cached packet has already"
        );
        Ok(value.unwrap_or(0))
    }

    fn load_bytes(&mut self, skb: Address, offset: u64, to: Address, length: u64) -> Result<u64> {
        ensure!(skb == self.context, "it loads bytes of no packet");
        let Ok(bytes) = self.memory.bytes(self.data + offset, length) else {
            // -EFAULT
            return Ok((-14_i64).cast_unsigned());
        };
        let bytes = bytes.to_vec();
        self.memory.write(to, &bytes)?;
        Ok(0)
    }

    fn map(&self, address: Address) -> Result<(&str, &Map)> {
        let name = self.names.get(&address).context("it looks into no map")?;
        let map = self.maps.get(name);
        let map = map.with_context(|| {
            format!("it looks into {name}, which a cached packet has no need of: it decides")
        })?;
        Ok((name, map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel() -> Kernel {
        let packet = Packet {
            bytes: vec![1, 2, 3, 4],
            interface: 7,
            socket: Some(vec![0; 80]),
        };
        Kernel::with(packet).unwrap()
    }

    #[test]
    fn the_bounds_of_the_packet_are_addresses() {
        let kernel = kernel();
        let start = kernel.load(kernel.context() + context::DATA, 4).unwrap();
        let end = kernel
            .load(kernel.context() + context::DATA_END, 4)
            .unwrap();
        assert_eq!(end - start, 4);
        assert_eq!(kernel.load(start, 2).unwrap(), 0x0201);
        assert!(kernel.load(end, 1).is_err());
        let interface = kernel.load(kernel.context() + context::IFINDEX, 4);
        assert_eq!(interface.unwrap(), 7);
    }

    #[test]
    fn a_lookup_gives_the_row_or_nothing() {
        let mut kernel = kernel();
        kernel.array("array", 3, &[5, 6]);
        kernel.hash("hash", 1, &[(vec![2], vec![8])]);
        let (array, hash) = (kernel.name("array"), kernel.name("hash"));
        assert_eq!(kernel.name("array"), array);
        let key = kernel.memory.add(vec![2, 0, 0, 0]);
        let mut look_up = |map| {
            let arguments = [map, key, 0, 0, 0];
            let found = kernel.call(helper::MAP_LOOKUP_ELEM, arguments)?;
            kernel.load(found, 1)
        };
        assert_eq!(look_up(array).unwrap(), 0);
        assert_eq!(look_up(hash).unwrap(), 8);
        kernel.memory.store(key, 4, 3).unwrap();
        for map in [array, hash] {
            let found = kernel.call(helper::MAP_LOOKUP_ELEM, [map, key, 0, 0, 0]);
            assert_eq!(found.unwrap(), 0);
        }
    }

    #[test]
    fn what_a_cached_packet_does_not_need_is_an_error() {
        let mut kernel = kernel();
        let map = kernel.name("zt_policy_v1");
        let arguments = [map, 0, 0, 0, 0];
        let error = kernel.call(helper::MAP_LOOKUP_ELEM, arguments);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("zt_policy_v1"), "{error}");
        let error = kernel.call(131, [0; 5]).unwrap_err().to_string();
        assert!(error.contains("helper 131"), "{error}");
        kernel.storage("zt_socket_v1", None);
        let (map, socket) = (kernel.name("zt_socket_v1"), kernel.socket);
        let stored = |kernel: &mut Kernel, flags| {
            kernel.call(helper::SK_STORAGE_GET, [map, socket, 0, flags, 0])
        };
        assert_eq!(stored(&mut kernel, 0).unwrap(), 0);
        assert!(stored(&mut kernel, 1).is_err());
    }

    #[test]
    fn bytes_behind_the_end_of_the_packet_are_not_loaded() {
        let mut kernel = kernel();
        let to = kernel.memory.add(vec![0; 4]);
        let skb = kernel.context();
        let mut load = |from| {
            let arguments = [skb, from, to, 2, 0];
            kernel.call(helper::SKB_LOAD_BYTES, arguments).unwrap()
        };
        assert_ne!(load(3), 0);
        assert_eq!(load(2), 0);
        assert_eq!(kernel.load(to, 4).unwrap(), 0x0403);
    }
}
