//! One versioned map: read all of it, write rows, delete rows.

use std::{
    io,
    marker::PhantomData,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use aya::Pod;
use zt_common::version::Row;

use super::{KernelError, pins::Pins, sys};

/// Rows written in one call: bounds the memory of a batch to a few hundred KiB.
const BATCH: usize = 4096;

/// A row, and the key under which it stands.
pub type Keyed<K, T, const PAD: usize> = (K, Row<K, T, PAD>);

/// A pinned map whose values are [`Row`]s.
#[derive(Debug)]
pub struct Table<K, T, const PAD: usize> {
    name: &'static str,
    map: OwnedFd,
    row: PhantomData<Row<K, T, PAD>>,
}

impl<K, T, const PAD: usize> Table<K, T, PAD>
where
    K: Pod + Ord,
    T: Copy,
    Row<K, T, PAD>: Pod,
{
    /// Opens the pinned map `name`.
    ///
    /// # Errors
    /// When it is not pinned.
    pub fn open(pins: &Pins, name: &'static str) -> Result<Self, KernelError> {
        Ok(Self {
            name,
            map: sys::get_pinned(&pins.map(name)).map_err(KernelError::call("get", name))?,
            row: PhantomData,
        })
    }

    /// The name of the map.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }

    /// Every row with its key: the copy in the row may have been altered from
    /// outside. Only the agent adds and deletes, so none is missed; if
    /// somebody else does it meanwhile, a row may be.
    ///
    /// # Errors
    /// When a call fails.
    pub fn rows(&self) -> Result<Vec<Keyed<K, T, PAD>>, KernelError> {
        match self.rows_batched() {
            Err(error) if cannot_batch(&error) => self.rows_singly(),
            rows => rows.map_err(KernelError::call("lookup batch", self.name)),
        }
    }

    fn rows_batched(&self) -> io::Result<Vec<Keyed<K, T, PAD>>> {
        let mut rows = Vec::new();
        let mut cursor = sys::Cursor::default();
        // SAFETY: both are `Pod`: any bytes are a value.
        let (key, row) = unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        let (mut keys, mut values): (Vec<K>, Vec<Row<K, T, PAD>>) =
            (vec![key; BATCH], vec![row; BATCH]);
        loop {
            let (count, more) =
                sys::map_lookup_batch(self.fd(), &mut cursor, &mut keys, &mut values)?;
            let read = keys.iter().zip(&values).take(count);
            rows.extend(read.map(|(key, row)| (*key, *row)));
            if !more {
                return Ok(rows);
            }
        }
    }

    fn rows_singly(&self) -> Result<Vec<Keyed<K, T, PAD>>, KernelError> {
        let mut rows = Vec::new();
        let mut last: Option<K> = None;
        while let Some(key) = sys::map_next_key(self.fd(), last.as_ref())
            .map_err(KernelError::call("next key", self.name))?
        {
            let row: Option<Row<K, T, PAD>> =
                sys::map_lookup(self.fd(), &key).map_err(KernelError::call("lookup", self.name))?;
            rows.extend(row.map(|row| (key, row)));
            last = Some(key);
        }
        Ok(rows)
    }

    /// The row of `key`, as it stands.
    ///
    /// # Errors
    /// When the call fails.
    pub fn get(&self, key: &K) -> Result<Option<Row<K, T, PAD>>, KernelError> {
        sys::map_lookup(self.fd(), key).map_err(KernelError::call("lookup", self.name))
    }

    /// Writes rows under their keys.
    ///
    /// # Errors
    /// With the number of rows that were written.
    pub fn write(&self, rows: &[Row<K, T, PAD>]) -> Result<(), (usize, KernelError)> {
        let mut written = 0;
        for chunk in rows.chunks(BATCH) {
            let keys: Vec<K> = chunk.iter().map(|row| row.key).collect();
            match sys::map_update_batch(self.fd(), &keys, chunk) {
                Ok(()) => written += chunk.len(),
                Err((_, error)) if is_unsupported(&error) => {
                    self.write_singly(chunk)
                        .map_err(|(count, error)| (written + count, error))?;
                    written += chunk.len();
                }
                Err((count, error)) => {
                    let error = KernelError::call("update", self.name)(error);
                    return Err((written + count, error));
                }
            }
        }
        Ok(())
    }

    fn write_singly(&self, rows: &[Row<K, T, PAD>]) -> Result<(), (usize, KernelError)> {
        for (count, row) in rows.iter().enumerate() {
            sys::map_update(self.fd(), &row.key, row)
                .map_err(|error| (count, KernelError::call("update", self.name)(error)))?;
        }
        Ok(())
    }

    /// Deletes rows; those that are not there are fine.
    ///
    /// # Errors
    /// At the first that cannot be deleted.
    pub fn delete<'a>(&self, keys: impl IntoIterator<Item = &'a K>) -> Result<(), KernelError>
    where
        K: 'a,
    {
        for key in keys {
            sys::map_delete(self.fd(), key).map_err(KernelError::call("delete", self.name))?;
        }
        Ok(())
    }
}

/// A kernel without batch lookups for this type of map, or a bucket of a hash
/// that is longer than a batch.
fn cannot_batch(error: &io::Error) -> bool {
    is_unsupported(error) || error.raw_os_error() == Some(libc::ENOSPC)
}

/// A kernel without batch updates for this type of map.
fn is_unsupported(error: &io::Error) -> bool {
    // ENOTSUPP (524) is the kernel's own number, not in libc.
    matches!(
        error.raw_os_error(),
        Some(libc::EINVAL | libc::EOPNOTSUPP | 524)
    )
}
