//! The control element: one word makes a generation active.

use std::{
    cell::Cell,
    num::NonZeroUsize,
    os::fd::BorrowedFd,
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use zt_common::{state::Control, version::Generation};

use super::KernelError;

const PAGE: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");

/// `zt_control_v1`, mapped into this process. A write through bpf(2) is a
/// memcpy, which a program could see half done; a store is not.
#[derive(Debug)]
pub struct ControlPage {
    page: NonNull<libc::c_void>,
    /// What was found first, or written last.
    written: Cell<Control>,
}

// SAFETY: the page is shared memory that is only read and written through
// atomic or volatile accesses.
unsafe impl Send for ControlPage {}

impl ControlPage {
    /// Maps the element.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn map(map: BorrowedFd<'_>) -> Result<Self, KernelError> {
        // SAFETY: a new shared mapping of one page, no address asked for.
        let page = unsafe {
            mmap(
                None,
                PAGE,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED,
                map,
                0,
            )
        }
        .map_err(|errno| KernelError::call("mmap", "zt_control_v1")(errno.into()))?;
        let control = Self {
            page,
            written: Cell::default(),
        };
        control.written.set(control.read());
        Ok(control)
    }

    /// What it should hold: nobody else writes to it.
    #[must_use]
    pub fn written(&self) -> Control {
        self.written.get()
    }

    /// All of it.
    #[must_use]
    pub fn read(&self) -> Control {
        // SAFETY: the page begins with a `Control`.
        unsafe { self.page.cast::<Control>().read_volatile() }
    }

    /// (active, narrowed)
    #[must_use]
    pub fn generations(&self) -> (Generation, Generation) {
        Control::unpack(self.active().load(Ordering::SeqCst))
    }

    /// Makes `generation` active. `narrowed`: the last generation that took a
    /// permission away.
    pub fn activate(&self, generation: Generation, narrowed: Generation) {
        let active = Control::pack(generation, narrowed);
        self.active().store(active, Ordering::SeqCst);
        let written = self.written.get();
        self.written.set(Control { active, ..written });
    }

    /// Writes everything but the generations.
    pub fn configure(&self, control: &Control) {
        let active = self.active().load(Ordering::SeqCst);
        let control = Control { active, ..*control };
        // SAFETY: as in `read`; only the agent writes.
        unsafe { self.page.cast::<Control>().write_volatile(control) };
        self.written.set(control);
    }

    fn active(&self) -> &AtomicU64 {
        const { assert!(std::mem::offset_of!(Control, active) == 0) };
        // SAFETY: `active` is the first field, aligned to a page.
        unsafe { AtomicU64::from_ptr(self.page.as_ptr().cast()) }
    }
}

impl Drop for ControlPage {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map` and nothing borrows from it.
        let _ = unsafe { munmap(self.page, PAGE.get()) };
    }
}
