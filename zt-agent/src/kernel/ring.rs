//! The stream of decision events.

use std::{
    num::NonZeroUsize,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use aya::maps::{Map, MapData, RingBuf};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use tokio::io::unix::AsyncFd;
use zt_common::event::{Event, RING_RECORD};

use super::{KernelError, pins::Pins, sys};

/// The reading end of `zt_events_v1`. There must be one reader only: the
/// consumer position is shared by all.
pub struct Ring {
    ring: AsyncFd<RingBuf<MapData>>,
}

impl Ring {
    /// Opens the ring. Call within a tokio runtime.
    ///
    /// # Errors
    /// When it is not pinned.
    pub fn open(pins: &Pins) -> Result<Self, KernelError> {
        let wrong = |error: aya::maps::MapError| KernelError::Load(error.to_string());
        let data = MapData::from_pin(pins.map("zt_events_v1"))
            .map_err(|_| KernelError::NotRunning(pins.directory().into()))?;
        let ring = RingBuf::try_from(Map::RingBuf(data)).map_err(wrong)?;
        // SAFETY: the ring owns its descriptor for as long as it lives, and
        // is not taken apart while registered.
        let ring = unsafe { AsyncFd::register(ring) }
            .map_err(std::io::Error::from)
            .map_err(KernelError::call("poll", "zt_events_v1"))?;
        Ok(Self { ring })
    }

    /// Waits until there are events and gives each to `take`; returns how
    /// many there were. At most `limit` per call, so that others get a turn.
    ///
    /// # Errors
    /// When polling fails.
    pub async fn drain(
        &mut self,
        limit: usize,
        mut take: impl FnMut(Event),
    ) -> Result<usize, KernelError> {
        let mut guard = self
            .ring
            .readable_mut()
            .await
            .map_err(KernelError::call("poll", "zt_events_v1"))?;
        let ring = guard.get_inner_mut();
        let mut count = 0;
        while count < limit {
            let Some(item) = ring.next() else {
                // Only when it is empty: clearing earlier stalls for good.
                guard.clear_ready();
                break;
            };
            count += 1;
            if let Some(event) = Event::from_bytes(&item) {
                take(event);
            }
        }
        Ok(count)
    }

    /// Takes what is there now, without waiting, and at most `limit`: events
    /// may come as fast as they are taken.
    pub fn drain_now(&mut self, limit: u64, mut take: impl FnMut(Event)) -> u64 {
        let mut count = 0;
        let ring = self.ring.get_mut();
        while count < limit {
            let Some(item) = ring.next() else { break };
            count += 1;
            if let Some(event) = Event::from_bytes(&item) {
                take(event);
            }
        }
        count
    }
}

/// Events that were ever taken out of the ring, see [`Positions::consumed`].
///
/// # Errors
/// When the ring is not pinned or cannot be mapped.
pub fn consumed(pins: &Pins) -> Result<u64, KernelError> {
    Positions::open(pins)?.consumed()
}

/// How far the ring was written and read. Its own descriptor: somebody may
/// remove the pin.
#[derive(Debug)]
pub struct Positions(OwnedFd);

impl Positions {
    /// # Errors
    /// When the ring is not pinned.
    pub fn open(pins: &Pins) -> Result<Self, KernelError> {
        sys::get_pinned(&pins.map("zt_events_v1"))
            .map(Self)
            .map_err(|_| KernelError::NotRunning(pins.directory().into()))
    }

    /// Events that were ever taken out, by any agent: all records have one
    /// size, so the kernel's consumer position says it.
    ///
    /// # Errors
    /// When it cannot be mapped.
    pub fn consumed(&self) -> Result<u64, KernelError> {
        Ok(position(self.0.as_fd(), Page::Consumer)? / RING_RECORD)
    }

    /// Events that were ever put in.
    ///
    /// # Errors
    /// When it cannot be mapped.
    pub fn emitted(&self) -> Result<u64, KernelError> {
        Ok(position(self.0.as_fd(), Page::Producer)? / RING_RECORD)
    }
}

/// The first two pages of a ring buffer map are its positions.
#[derive(Clone, Copy)]
enum Page {
    Consumer = 0,
    Producer = 1,
}

fn position(fd: BorrowedFd<'_>, which: Page) -> Result<u64, KernelError> {
    const PAGE: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");
    let failed = |errno: nix::Error| KernelError::call("mmap", "zt_events_v1")(errno.into());
    // SAFETY: a new shared mapping of one page, read only.
    let page = unsafe {
        mmap(
            None,
            PAGE,
            ProtFlags::PROT_READ,
            MapFlags::MAP_SHARED,
            fd,
            which as i64 * 4096,
        )
    }
    .map_err(failed)?;
    // SAFETY: the page begins with the position.
    let position = unsafe { page.cast::<u64>().read_volatile() };
    // SAFETY: mapped above, and nothing borrows from it.
    unsafe { munmap(page, PAGE.get()) }.map_err(failed)?;
    Ok(position)
}
