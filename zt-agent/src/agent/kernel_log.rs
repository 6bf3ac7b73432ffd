//! What the kernel programs log, if they were asked to, goes to our log.

use aya_log::EbpfLogger;
use tokio::io::unix::AsyncFd;

use crate::kernel::load::Loaded;

/// Takes the programs' log. Call within a tokio runtime.
pub fn forward(loaded: &mut Loaded) {
    let logger = match EbpfLogger::init(loaded.ebpf()) {
        Ok(logger) => logger,
        Err(error) => {
            tracing::warn!(%error, "the kernel programs have no log");
            return;
        }
    };
    tokio::spawn(async move {
        // SAFETY: the logger owns its descriptor for as long as it lives, and
        // is not taken apart while registered.
        let Ok(mut logger) = (unsafe { AsyncFd::register(logger) }) else {
            tracing::warn!("the log of the kernel programs cannot be polled");
            return;
        };
        while let Ok(mut guard) = logger.readable_mut().await {
            guard.get_inner_mut().flush();
            guard.clear_ready();
        }
    });
}
