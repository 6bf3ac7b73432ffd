//! The reconcile thread: it owns the store, and acts on commands, changed
//! files, and time.

use std::{
    io, iter,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::{
    attachments::{Attaching, Attachments, Reply},
    board::Board,
    enrolments::Ticket,
    guard::Guard,
    reconcile::{Look, Reconciler},
};
use crate::{
    admin::protocol::{Applied, Attached, Detach, Enrol},
    source::{
        node,
        watch::{Watch, Watched},
    },
};

/// For what nobody announces: cgroups, namespaces, addresses, the clock.
const POLL: Duration = Duration::from_secs(1);
/// For a workload that is just being made...
const SOON: Duration = Duration::from_millis(50);
/// ... for so long after the last news of it.
const YOUNG: Duration = Duration::from_secs(2);
/// For what somebody does to links, pins, the control element.
const GUARD: Duration = Duration::from_secs(2);
/// An editor writes a file in several steps; a directory changes file by
/// file. This much silence ends a change...
const SILENCE: Duration = Duration::from_millis(40);
/// ... and this much noise does too.
const NOISE: Duration = Duration::from_millis(300);

/// What the thread is asked.
#[derive(Debug)]
pub enum Command {
    FilesChanged,
    LinksChanged,
    /// The cluster or this node's cgroups differ.
    WorkloadsChanged,
    Reload(oneshot::Sender<Result<Applied, String>>),
    Enrol(Enrol, oneshot::Sender<Result<(Ticket, Applied), String>>),
    Withdraw(Ticket),
    Attach(Box<Attaching>, Reply),
    CanAttach(oneshot::Sender<Result<(), String>>),
    Detach(Detach, oneshot::Sender<()>),
    Stop,
}

impl Command {
    /// It asks for nothing but a look.
    const fn is_news(&self) -> bool {
        matches!(self, Self::LinksChanged | Self::WorkloadsChanged)
    }
}

/// Asks the thread.
#[derive(Clone, Debug)]
pub struct Driver(Sender<Command>);

impl Driver {
    /// Reads the files again.
    ///
    /// # Errors
    /// Why what they say is not in force.
    pub async fn reload(&self) -> Result<Applied, String> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Reload(reply));
        answer.await.map_err(|_| stopping())?
    }

    /// Enrols a cgroup until the ticket is given back.
    ///
    /// # Errors
    /// Why it is not enrolled.
    pub async fn enrol(&self, request: Enrol) -> Result<(Ticket, Applied), String> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Enrol(request, reply));
        answer.await.map_err(|_| stopping())?
    }

    /// Ends an enrolment.
    pub fn withdraw(&self, ticket: Ticket) {
        self.send(Command::Withdraw(ticket));
    }

    /// Binds a network namespace to a pod; `Ok` once the pod's interface is
    /// covered.
    ///
    /// # Errors
    /// What was missing when its time was over, or why it is not the pod's.
    pub async fn attach(&self, attaching: Attaching) -> Result<Attached, String> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Attach(Box::new(attaching), reply));
        answer.await.map_err(|_| stopping())?
    }

    /// Whether anything could be attached.
    ///
    /// # Errors
    /// Why not.
    pub async fn can_attach(&self) -> Result<(), String> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::CanAttach(reply));
        answer.await.map_err(|_| stopping())?
    }

    /// Forgets what was attached.
    ///
    /// # Errors
    /// When the thread has ended.
    pub async fn detach(&self, what: Detach) -> Result<(), String> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Detach(what, reply));
        answer.await.map_err(|_| stopping())
    }

    /// Looks at the interfaces again, now.
    pub fn links_changed(&self) {
        self.send(Command::LinksChanged);
    }

    /// Looks at the workloads again, now.
    pub fn workloads_changed(&self) {
        self.send(Command::WorkloadsChanged);
    }

    /// Ends the thread. What is enforced stays.
    pub fn stop(&self) {
        self.send(Command::Stop);
    }

    fn send(&self, command: Command) {
        // A thread that is gone needs no commands.
        let _ = self.0.send(command);
    }
}

#[cfg(test)]
impl Driver {
    /// One that asks a test.
    pub fn asking(sender: Sender<Command>) -> Self {
        Self(sender)
    }
}

fn stopping() -> String {
    "the agent is stopping".to_owned()
}

/// Starts the thread and the watch that wakes it. `ended` is dropped when it
/// ends, however it ends.
///
/// # Errors
/// If no thread can be started.
pub fn spawn(
    reconciler: Reconciler,
    guard: Guard,
    watched: Watched,
    board: Arc<Board>,
    ended: oneshot::Sender<()>,
) -> io::Result<(Driver, JoinHandle<()>)> {
    let (sender, commands) = channel();
    let notify = sender.clone();
    let watch = Watch::start(watched, move || _ = notify.send(Command::FilesChanged));
    let state = Loop {
        verify: reconciler.verify_every(),
        reconciler,
        guard,
        watch,
        board,
        commands,
        attachments: Attachments::default(),
        news: Instant::now(),
        poll: Instant::now(),
    };
    let thread = thread::Builder::new()
        .name("reconcile".to_owned())
        .spawn(move || {
            let _ended = ended;
            state.run();
        })?;
    Ok((Driver(sender), thread))
}

struct Loop {
    reconciler: Reconciler,
    guard: Guard,
    watch: Watch,
    board: Arc<Board>,
    commands: Receiver<Command>,
    attachments: Attachments,
    verify: Duration,
    /// When links or workloads last changed.
    news: Instant,
    /// When to look without being asked.
    poll: Instant,
}

impl Loop {
    fn run(mut self) {
        let mut look = Instant::now();
        let mut verify = Instant::now() + self.verify;
        loop {
            self.beat();
            let next = self.poll.min(look).min(verify);
            let next = next.saturating_duration_since(Instant::now());
            match self.commands.recv_timeout(next) {
                Ok(Command::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(command) => {
                    if !self.obey(command) {
                        return;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            if self.poll <= Instant::now() {
                self.watch.renew();
                let _ = self.reconciler.step(Look::Glance);
                self.poll = Instant::now() + self.pause();
            }
            // A step may have been what they wait for.
            self.attachments.go_on(&mut self.reconciler);
            if look <= Instant::now() {
                self.guard.look();
                self.reconciler.check();
                self.reconciler.look_at_interfaces();
                look = Instant::now() + GUARD;
            }
            if verify <= Instant::now() {
                self.reconciler.restore();
                verify = Instant::now() + self.verify;
            }
        }
    }

    fn pause(&self) -> Duration {
        let is_waited_for = self.reconciler.is_unsettled() || !self.attachments.is_empty();
        if is_waited_for && self.news.elapsed() < YOUNG {
            SOON
        } else {
            POLL
        }
    }

    fn beat(&self) {
        self.board.driver.beat(node::boot_time().unwrap_or(0));
    }

    /// `false`: it was told to stop.
    fn obey(&mut self, command: Command) -> bool {
        match command {
            Command::Stop => return false,
            Command::FilesChanged => {
                let waiting = self.settle();
                // A directory may have come back: from here on nothing in it
                // is missed.
                self.watch.renew();
                let _ = self.reconciler.step(Look::Told);
                return waiting.into_iter().all(|command| self.obey(command));
            }
            Command::LinksChanged | Command::WorkloadsChanged => {
                self.news = Instant::now();
                let waiting = self.drain();
                let _ = self.reconciler.step(Look::Glance);
                self.poll = self.poll.min(Instant::now() + self.pause());
                return waiting.into_iter().all(|command| self.obey(command));
            }
            Command::Reload(reply) => {
                let _ = reply.send(self.reconciler.step(Look::Read));
            }
            Command::Enrol(..) | Command::Withdraw(_) => {
                // Also for the news that need no look of their own.
                self.news = Instant::now();
                let waiting = self.enrol(command);
                self.poll = self.poll.min(Instant::now() + self.pause());
                return waiting.into_iter().all(|command| self.obey(command));
            }
            Command::Attach(attaching, reply) => {
                self.attachments.add(attaching, reply);
                self.news = Instant::now();
                self.poll = self.poll.min(Instant::now() + SOON);
            }
            Command::CanAttach(reply) => _ = reply.send(self.reconciler.can_attach()),
            Command::Detach(what, reply) => {
                if self.reconciler.detach(&what) {
                    let _ = self.reconciler.step(Look::Glance);
                }
                let _ = reply.send(());
            }
        }
        true
    }

    /// One step for all that come and go at once: it costs as much for one. Returns
    /// what else was asked.
    fn enrol(&mut self, first: Command) -> Vec<Command> {
        let (mut go, mut come, mut replies) = (Vec::new(), Vec::new(), Vec::new());
        let mut others = Vec::new();
        for command in iter::once(first).chain(self.drain()) {
            match command {
                Command::Enrol(request, reply) => {
                    come.push(request);
                    replies.push(reply);
                }
                Command::Withdraw(ticket) => go.push(ticket),
                other => others.push(other),
            }
        }
        let results = self.reconciler.enrol(&go, &come);
        let unheard = replies.into_iter().zip(results);
        // Whose clients hung up meanwhile.
        let unheard = unheard.filter_map(|(reply, result)| reply.send(result).err()?.ok());
        let unheard: Vec<Ticket> = unheard.map(|(ticket, _)| ticket).collect();
        if !unheard.is_empty() {
            self.reconciler.enrol(&unheard, &[]);
        }
        others
    }

    /// A veth that appears is told of several times, and so is a pod. Returns
    /// what else was asked.
    fn drain(&self) -> Vec<Command> {
        let all = self.commands.try_iter();
        all.filter(|command| !command.is_news()).collect()
    }

    /// Waits until the files are still. Returns what else was asked.
    fn settle(&self) -> Vec<Command> {
        let mut others = Vec::new();
        let deadline = Instant::now() + NOISE;
        while let Ok(command) = self.commands.recv_timeout(SILENCE) {
            if !command.is_news() && !matches!(command, Command::FilesChanged) {
                others.push(command);
            }
            if Instant::now() >= deadline {
                break;
            }
        }
        others
    }
}
