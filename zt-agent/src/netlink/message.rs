//! Netlink messages and their attributes, written and read.
//!
//! Layout: `struct nlmsghdr` and `struct nlattr` of the kernel's
//! `include/uapi/linux/netlink.h`; both, and what they carry, are padded to
//! four bytes. Numbers are in the byte order of the machine unless a name
//! says otherwise.

/// Bytes of a message's header.
pub const HEADER: usize = 16;
const ATTRIBUTE_HEADER: usize = 4;
/// The bits of an attribute's type that are flags (nested, byte order).
const TYPE_MASK: u16 = 0x3fff;
const NESTED: u16 = 0x8000;

/// Bytes that are no message, or no attribute, or too short for their value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

fn padded(length: usize) -> usize {
    length.next_multiple_of(4)
}

/// Attributes one after the other, as they go into a message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes(Vec<u8>);

impl Attributes {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// # Panics
    /// When the value does not fit into an attribute (64 KiB): what is written
    /// here is short.
    #[must_use]
    pub fn put(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(ATTRIBUTE_HEADER + value.len()).expect("a short attribute");
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(padded(self.0.len()), 0);
        self
    }

    #[must_use]
    pub fn u32(self, kind: u16, value: u32) -> Self {
        self.put(kind, &value.to_ne_bytes())
    }

    /// A number in network byte order, as nf_tables wants them.
    #[must_use]
    pub fn be32(self, kind: u16, value: u32) -> Self {
        self.put(kind, &value.to_be_bytes())
    }

    /// A string with its final zero.
    #[must_use]
    pub fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.put(kind, &bytes)
    }

    #[must_use]
    pub fn nest(self, kind: u16, inner: &Self) -> Self {
        self.put(kind | NESTED, &inner.0)
    }

    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// A message to the kernel, but for its sequence number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub kind: u16,
    pub flags: u16,
    /// What follows the header: a structure of the message's kind, attributes.
    pub body: Vec<u8>,
}

impl Message {
    /// `fixed` is the structure that every message of its kind starts with.
    #[must_use]
    pub fn new(kind: u16, flags: u16, fixed: &[u8], attributes: &Attributes) -> Self {
        let mut body = fixed.to_vec();
        body.resize(padded(body.len()), 0);
        body.extend(attributes.bytes());
        Self { kind, flags, body }
    }

    /// Appends it, with its header, to what is sent in one go.
    pub(super) fn write(&self, sequence: u32, to: &mut Vec<u8>) -> Result<(), Malformed> {
        let length = u32::try_from(HEADER + self.body.len()).map_err(|_| Malformed)?;
        to.extend(length.to_ne_bytes());
        to.extend(self.kind.to_ne_bytes());
        to.extend(self.flags.to_ne_bytes());
        to.extend(sequence.to_ne_bytes());
        // The sender's port; the kernel knows it.
        to.extend(0u32.to_ne_bytes());
        to.extend(&self.body);
        to.resize(padded(to.len()), 0);
        Ok(())
    }
}

/// A message of the kernel's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received<'a> {
    pub kind: u16,
    pub flags: u16,
    pub sequence: u32,
    pub body: &'a [u8],
}

/// The messages of one datagram. Ends after the first malformed one.
pub fn messages(bytes: &[u8]) -> impl Iterator<Item = Result<Received<'_>, Malformed>> {
    let mut rest = Some(bytes);
    std::iter::from_fn(move || {
        let bytes = rest.take().filter(|bytes| !bytes.is_empty())?;
        let (message, length) = match first_message(bytes) {
            Ok(found) => found,
            Err(malformed) => return Some(Err(malformed)),
        };
        rest = Some(bytes.get(padded(length)..).unwrap_or_default());
        Some(Ok(message))
    })
}

fn first_message(bytes: &[u8]) -> Result<(Received<'_>, usize), Malformed> {
    let length = usize::try_from(u32_at(bytes, 0)?).map_err(|_| Malformed)?;
    let message = Received {
        kind: u16_at(bytes, 4)?,
        flags: u16_at(bytes, 6)?,
        sequence: u32_at(bytes, 8)?,
        body: bytes.get(HEADER..length).ok_or(Malformed)?,
    };
    Ok((message, length))
}

/// The attributes in a message after its fixed structure, or in a nest: type
/// without flags, and value. Ends after the first malformed one.
pub fn attributes(bytes: &[u8]) -> impl Iterator<Item = Result<(u16, &[u8]), Malformed>> {
    let mut rest = Some(bytes);
    std::iter::from_fn(move || {
        let bytes = rest.take().filter(|bytes| !bytes.is_empty())?;
        let (attribute, length) = match first_attribute(bytes) {
            Ok(found) => found,
            Err(malformed) => return Some(Err(malformed)),
        };
        rest = Some(bytes.get(padded(length)..).unwrap_or_default());
        Some(Ok(attribute))
    })
}

fn first_attribute(bytes: &[u8]) -> Result<((u16, &[u8]), usize), Malformed> {
    let length = usize::from(u16_at(bytes, 0)?);
    let kind = u16_at(bytes, 2)? & TYPE_MASK;
    let value = bytes.get(ATTRIBUTE_HEADER..length).ok_or(Malformed)?;
    Ok(((kind, value), length))
}

/// The attribute of a type, if there is one.
///
/// # Errors
/// When something before it is malformed.
pub fn find(bytes: &[u8], kind: u16) -> Result<Option<&[u8]>, Malformed> {
    for attribute in attributes(bytes) {
        let (found, value) = attribute?;
        if found == kind {
            return Ok(Some(value));
        }
    }
    Ok(None)
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], Malformed> {
    let end = at.checked_add(N).ok_or(Malformed)?;
    let found = bytes.get(at..end).ok_or(Malformed)?;
    found.try_into().map_err(|_| Malformed)
}

/// The number at an offset.
///
/// # Errors
/// When the bytes end before it does.
pub fn u16_at(bytes: &[u8], at: usize) -> Result<u16, Malformed> {
    array_at(bytes, at).map(u16::from_ne_bytes)
}

/// The number at an offset.
///
/// # Errors
/// When the bytes end before it does.
pub fn u32_at(bytes: &[u8], at: usize) -> Result<u32, Malformed> {
    array_at(bytes, at).map(u32::from_ne_bytes)
}

/// The number at an offset.
///
/// # Errors
/// When the bytes end before it does.
pub fn i32_at(bytes: &[u8], at: usize) -> Result<i32, Malformed> {
    array_at(bytes, at).map(i32::from_ne_bytes)
}

/// The number in network byte order at an offset.
///
/// # Errors
/// When the bytes end before it does.
pub fn be32_at(bytes: &[u8], at: usize) -> Result<u32, Malformed> {
    array_at(bytes, at).map(u32::from_be_bytes)
}

/// The number in network byte order at an offset.
///
/// # Errors
/// When the bytes end before it does.
pub fn be64_at(bytes: &[u8], at: usize) -> Result<u64, Malformed> {
    array_at(bytes, at).map(u64::from_be_bytes)
}

/// A string, up to its zero. Interface names may hold bytes that are not
/// UTF-8; they are shown replaced.
#[must_use]
pub fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0);
    String::from_utf8_lossy(&bytes[..end.unwrap_or(bytes.len())]).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let inner = Attributes::new().be32(1, 7).text(2, "abc");
        let attributes_in = Attributes::new().u32(3, 9).nest(4, &inner).put(5, &[1]);
        let message = Message::new(20, 5, &[1, 2, 3], &attributes_in);
        let mut bytes = Vec::new();
        message.write(77, &mut bytes).unwrap();
        message.write(78, &mut bytes).unwrap();
        let read: Vec<_> = messages(&bytes).collect::<Result<_, _>>().unwrap();
        assert_eq!(
            read.iter().map(|m| m.sequence).collect::<Vec<_>>(),
            [77, 78]
        );
        assert_eq!((read[0].kind, read[0].flags), (20, 5));
        assert_eq!(read[0].body[..4], [1, 2, 3, 0]);
        let body = &read[0].body[4..];
        assert_eq!(u32_at(find(body, 3).unwrap().unwrap(), 0), Ok(9));
        let nest = find(body, 4).unwrap().unwrap();
        assert_eq!(be32_at(find(nest, 1).unwrap().unwrap(), 0), Ok(7));
        assert_eq!(text(find(nest, 2).unwrap().unwrap()), "abc");
        assert_eq!(find(body, 5), Ok(Some(&[1u8][..])));
        assert_eq!(find(body, 6), Ok(None));
    }

    #[test]
    fn a_length_beyond_the_end_or_below_the_header_is_malformed() {
        let mut bytes = Vec::new();
        Message::new(1, 0, &[0; 4], &Attributes::new())
            .write(1, &mut bytes)
            .unwrap();
        for length in [0u32, 15, 21, u32::MAX] {
            bytes[..4].copy_from_slice(&length.to_ne_bytes());
            let read: Vec<_> = messages(&bytes).collect();
            assert_eq!(read, [Err(Malformed)], "{length}");
        }
        for length in [0u16, 3, 9] {
            let mut bytes = Attributes::new().u32(1, 1).bytes().to_vec();
            bytes[..2].copy_from_slice(&length.to_ne_bytes());
            let read: Vec<_> = attributes(&bytes).collect();
            assert_eq!(read, [Err(Malformed)], "{length}");
            assert_eq!(find(&bytes, 1), Err(Malformed), "{length}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_to_an_end(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            prop_assert!(messages(&bytes).count() <= bytes.len());
            prop_assert!(attributes(&bytes).count() <= bytes.len());
        }
    }
}
