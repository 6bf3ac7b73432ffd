//! inotify with the events that are asked for, and no others.
//!
//! A general watcher asks for everything and sorts it out afterwards. Below a
//! kubelet's cgroups that is hundreds of events a second: whoever reads a
//! statistic there opens a file.

use std::{
    collections::HashMap,
    io::{self, PipeReader, PipeWriter},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::inotify::{AddWatchFlags, InitFlags, Inotify as Instance, InotifyEvent, WatchDescriptor},
};

pub use nix::sys::inotify::AddWatchFlags as Events;

/// What is watched. Dropping it ends the watch and its thread.
#[derive(Debug)]
pub struct Inotify {
    watching: Arc<Watching>,
    /// The end of a pipe: closed with us, it wakes the thread, which ends.
    _ours: PipeWriter,
}

/// Shared with the thread.
#[derive(Debug)]
struct Watching {
    instance: Instance,
    paths: Mutex<Paths>,
}

/// By what path each was watched; several may lead to one directory.
type Paths = HashMap<WatchDescriptor, Vec<PathBuf>>;

impl Inotify {
    /// Begins with nothing. `told` is called from another thread, with the path
    /// that differs, or with nothing when events were lost.
    ///
    /// # Errors
    /// Where inotify, a pipe, or a thread is not to be had.
    pub fn start(told: impl Fn(Option<&Path>) + Send + 'static) -> io::Result<Self> {
        let watching = Arc::new(Watching {
            instance: Instance::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?,
            paths: Mutex::default(),
        });
        let (end, ours) = io::pipe()?;
        let shared = watching.clone();
        thread::Builder::new()
            .name("inotify".to_owned())
            .spawn(move || shared.listen(&end, told))?;
        Ok(Self {
            watching,
            _ours: ours,
        })
    }

    /// Watches a file, or a directory with what is directly in it. `true`: it was
    /// not watched by this path yet, or is another one now.
    ///
    /// # Errors
    /// When it is not there, or may not be watched.
    pub fn watch(&self, path: &Path, events: Events) -> io::Result<bool> {
        // Under the lock: the thread may hear of it before we know its number.
        let mut paths = self.watching.paths();
        let watch = self.watching.instance.add_watch(path, events)?;
        let known = paths.entry(watch).or_default();
        let is_new = !known.iter().any(|one| one == path);
        if is_new {
            known.push(path.to_owned());
        }
        Ok(is_new)
    }
}

impl Watching {
    fn paths(&self) -> MutexGuard<'_, Paths> {
        // Nobody leaves them half changed.
        self.paths.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn listen(&self, end: &PipeReader, told: impl Fn(Option<&Path>)) {
        while self.has_news(end) {
            match self.instance.read_events() {
                Ok(events) => events.iter().for_each(|event| self.tell(event, &told)),
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(errno) => {
                    tracing::error!(%errno, "inotify cannot be read: what changes is seen when it is looked at next");
                    return;
                }
            }
        }
    }

    /// Waits. `false`: nobody wants to know any more.
    fn has_news(&self, end: &PipeReader) -> bool {
        let mut both = [
            PollFd::new(self.instance.as_fd(), PollFlags::POLLIN),
            PollFd::new(end.as_fd(), PollFlags::POLLIN),
        ];
        // Interrupted: nothing is set, and there is nothing to read.
        let _ = poll(&mut both, PollTimeout::NONE);
        both[1].any() != Some(true)
    }

    fn tell(&self, event: &InotifyEvent, told: &impl Fn(Option<&Path>)) {
        if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
            return told(None);
        }
        let known = if event.mask.contains(AddWatchFlags::IN_IGNORED) {
            self.paths().remove(&event.wd)
        } else {
            self.paths().get(&event.wd).cloned()
        };
        for path in known.into_iter().flatten() {
            match &event.name {
                Some(name) => told(Some(&path.join(name))),
                None => told(Some(&path)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::FileExt as _,
        sync::mpsc::{Receiver, channel},
        time::Duration,
    };

    use super::*;

    fn start() -> (Inotify, Receiver<Option<PathBuf>>) {
        let (sender, receiver) = channel();
        let told = move |path: Option<&Path>| _ = sender.send(path.map(Path::to_owned));
        (Inotify::start(told).unwrap(), receiver)
    }

    fn next(receiver: &Receiver<Option<PathBuf>>) -> Option<PathBuf> {
        let told = receiver.recv_timeout(Duration::from_secs(5));
        told.expect("something is told")
    }

    fn is_quiet(receiver: &Receiver<Option<PathBuf>>) -> bool {
        receiver.recv_timeout(Duration::from_millis(100)).is_err()
    }

    #[test]
    fn what_was_asked_for_is_told_by_every_path_that_leads_there_and_nothing_else() {
        let top = tempfile::tempdir().unwrap();
        let (real, other) = (top.path().join("real"), top.path().join("other"));
        fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, &other).unwrap();
        let (inotify, receiver) = start();
        for path in [&real, &other] {
            assert!(inotify.watch(path, Events::IN_CREATE).unwrap());
            assert!(!inotify.watch(path, Events::IN_CREATE).unwrap());
        }
        fs::write(real.join("a"), "a").unwrap();
        assert_eq!(next(&receiver), Some(real.join("a")));
        assert_eq!(next(&receiver), Some(other.join("a")));
        // It is there already.
        fs::write(real.join("a"), "b").unwrap();
        fs::read(real.join("a")).unwrap();
        assert!(is_quiet(&receiver));
    }

    #[test]
    fn a_directory_that_is_made_anew_is_another_one() {
        let top = tempfile::tempdir().unwrap();
        let directory = top.path().join("directory");
        let (inotify, receiver) = start();
        inotify.watch(&directory, Events::IN_CREATE).unwrap_err();
        for _ in 0..2 {
            fs::create_dir(&directory).unwrap();
            assert!(inotify.watch(&directory, Events::IN_CREATE).unwrap());
            fs::write(directory.join("a"), "").unwrap();
            assert_eq!(next(&receiver), Some(directory.join("a")));
            fs::remove_dir_all(&directory).unwrap();
            assert_eq!(next(&receiver), Some(directory.clone()));
            assert!(inotify.watching.paths().is_empty());
        }
    }

    #[test]
    fn its_thread_ends_with_it() {
        let (inotify, receiver) = start();
        drop(inotify);
        let told = receiver.recv_timeout(Duration::from_secs(5));
        assert_eq!(told, Err(std::sync::mpsc::RecvTimeoutError::Disconnected));
    }

    #[test]
    fn more_than_the_kernel_keeps_is_told_too() {
        let text = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
        let most: usize = text.trim().parse().unwrap();
        let top = tempfile::tempdir().unwrap();
        let (sender, receiver) = channel();
        let (enter, gate) = channel::<()>();
        let inotify = Inotify::start(move |path| {
            // Nobody reads meanwhile.
            let _ = gate.recv();
            _ = sender.send(path.is_none());
        });
        let inotify = inotify.unwrap();
        inotify.watch(top.path(), Events::IN_MODIFY).unwrap();
        let files = ["a", "b"].map(|name| fs::File::create(top.path().join(name)).unwrap());
        // The same twice in a row would be one event.
        for number in 0..most + 1000 {
            files[number % 2].write_at(b"x", 0).unwrap();
        }
        drop(enter);
        let told = || receiver.recv_timeout(Duration::from_secs(5));
        while !told().expect("it was lost, and that is told") {}
    }
}
