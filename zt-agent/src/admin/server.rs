//! The agent's end of the socket.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::PermissionsExt as _,
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::Serialize;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, BufWriter, Interest},
    net::{
        UnixListener, UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::broadcast::error::{RecvError, TryRecvError},
};

use super::{
    descriptor,
    protocol::{AgentStatus, Attach, Done, Enrol, Reply, Request, Trail},
};
use crate::{
    agent::{attachments::Attaching, board::Board, driver::Driver},
    audit::Record,
    kernel::netns::own_cookie,
    source::{kubernetes::Shown, netns},
};

const ROOT: u32 = 0;
/// Longest request, bytes.
const REQUEST: usize = 64 << 10;
/// A client that does not send its request within this is hung up on.
const PATIENCE: Duration = Duration::from_secs(10);

/// Listens until it is dropped; then the socket is gone.
pub struct Server {
    path: PathBuf,
    listener: UnixListener,
    session: Arc<Session>,
}

/// What every connection needs.
struct Session {
    board: Arc<Board>,
    /// Who may ask.
    user: u32,
    driver: Driver,
}

impl Server {
    /// Listens. The agent's lock is held, so an old socket is a dead agent's.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn bind(path: &Path, board: Arc<Board>, driver: Driver) -> io::Result<Self> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        Ok(Self {
            path: path.into(),
            listener,
            session: Arc::new(Session {
                board,
                user: ROOT,
                driver,
            }),
        })
    }

    /// Serves for ever.
    pub async fn run(self) {
        loop {
            let Ok((stream, _)) = self.listener.accept().await else {
                // Out of descriptors, most likely: others will be freed.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let session = self.session.clone();
            tokio::spawn(async move {
                if let Err(error) = session.serve(stream).await {
                    tracing::debug!(%error, "an admin connection ended");
                }
            });
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl Session {
    async fn serve(&self, stream: UnixStream) -> io::Result<()> {
        let peer = stream.peer_cred()?;
        if peer.uid() != self.user {
            return Client::of(stream)
                .refuse("only root may ask the agent")
                .await;
        }
        let (line, given) = tokio::time::timeout(PATIENCE, first_line(&stream)).await??;
        let mut client = Client::of(stream);
        match serde_json::from_slice(&line) {
            Err(error) => client.refuse(&format!("no request: {error}")).await,
            Ok(Request::Observe {}) => self.observe(client).await,
            Ok(Request::Enrol(request)) => self.enrol(client, request).await,
            Ok(Request::Attach(request)) => self.attach(client, request, given).await,
            Ok(Request::Attachable {}) => {
                let can = self.driver.can_attach().await;
                client.reply(&reply(can.map(|()| Done {}))).await
            }
            Ok(Request::Detach(what)) => {
                let detached = self.driver.detach(what).await;
                client.reply(&reply(detached.map(|()| Done {}))).await
            }
            Ok(Request::Reload {}) => client.reply(&reply(self.driver.reload().await)).await,
            Ok(Request::Status {}) => {
                self.board.refresh().await;
                client.reply(&Reply::Ok(self.status())).await
            }
        }
    }

    async fn attach(
        &self,
        mut client: Client,
        request: Attach,
        mut given: Vec<OwnedFd>,
    ) -> io::Result<()> {
        let (Some(file), true) = (given.pop(), given.is_empty()) else {
            return client
                .refuse("it takes one descriptor, of the pod's network namespace")
                .await;
        };
        let shown = match tokio::task::spawn_blocking(move || look_at(file)).await? {
            Ok((file, cookie)) => Shown {
                pod: request.pod,
                sandbox: request.sandbox.clone(),
                network: request.network.clone(),
                file: Arc::new(file),
                cookie,
            },
            Err(error) => return client.refuse(&error).await,
        };
        let attaching = self.driver.attach(Attaching { request, shown });
        tokio::select! {
            attached = attaching => client.reply(&reply(attached)).await,
            () = gone(&mut client.read) => Ok(()),
        }
    }

    async fn observe(&self, mut client: Client) -> io::Result<()> {
        let mut records = self.board.records.subscribe();
        loop {
            let record = tokio::select! {
                record = records.recv() => record,
                () = gone(&mut client.read) => return Ok(()),
            };
            match record {
                Ok(record) => client.record(&record).await?,
                Err(RecvError::Lagged(count)) => client.lagged(count).await?,
                Err(RecvError::Closed) => return Ok(()),
            }
            // A burst goes out in one piece.
            loop {
                match records.try_recv() {
                    Ok(record) => client.record(&record).await?,
                    Err(TryRecvError::Lagged(count)) => client.lagged(count).await?,
                    Err(_) => break,
                }
            }
            client.write.flush().await?;
        }
    }

    async fn enrol(&self, mut client: Client, request: Enrol) -> io::Result<()> {
        let (ticket, applied) = match self.driver.enrol(request).await {
            Ok(enrolled) => enrolled,
            Err(error) => return client.refuse(&error).await,
        };
        let replied = client.reply(&Reply::Ok(applied)).await;
        if replied.is_ok() {
            gone(&mut client.read).await;
        }
        self.driver.withdraw(ticket);
        replied
    }

    fn status(&self) -> AgentStatus {
        let facts = self.board.facts();
        let not_ready = facts.not_ready();
        AgentStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_seconds: self.board.started.elapsed().as_secs(),
            generation: facts.generation,
            ready: not_ready.is_empty(),
            not_ready,
            last_error: facts.policy_error.clone(),
            last_applied: facts.last_applied.clone(),
            workloads: facts.workloads,
            quarantined: facts.quarantined,
            waiting: facts.waiting.clone(),
            interfaces: facts.interfaces.clone(),
            uncovered: facts.uncovered.clone(),
            dropped: (facts.dropped.iter())
                .map(|(family, packets)| ((*family).to_owned(), *packets))
                .collect(),
            observers: self.board.records.receiver_count(),
            repairs: owned(&facts.repairs),
            last_repair: facts.last_repair.clone(),
            connections_cut: owned(&facts.cut),
            cannot_cut: facts.cannot_cut.clone(),
            clock_set_back_from: facts.clock_set_back_from.clone(),
            cluster: facts.cluster.clone(),
            complaints: facts.complaints.clone(),
            trail: facts.trail.as_ref().map(|trail| Trail {
                healthy: trail.healthy,
                last_error: trail.last_error.clone(),
                consumed: trail.consumed,
                recorded: trail.recorded,
                lost: trail.lost,
                pending: trail.pending,
                unwritten: trail.unwritten,
                in_ring: facts.in_ring,
                write_errors: trail.write_errors,
            }),
        }
    }
}

fn owned(counts: &BTreeMap<&'static str, u64>) -> BTreeMap<String, u64> {
    let pairs = counts
        .iter()
        .map(|(name, count)| ((*name).to_owned(), *count));
    pairs.collect()
}

fn reply<T>(result: Result<T, String>) -> Reply<T> {
    match result {
        Ok(value) => Reply::Ok(value),
        Err(error) => Reply::Error(error),
    }
}

/// A namespace of a pod, and its cookie.
fn look_at(file: OwnedFd) -> Result<(File, u64), String> {
    let file = File::from(file);
    let copy = file.try_clone().map_err(|error| error.to_string())?;
    let cookie = netns::cookie_of(copy)
        .map_err(|error| format!("the descriptor is of no network namespace: {error}"))?;
    let own = own_cookie().map_err(|error| error.to_string())?;
    if cookie == own {
        return Err("the network namespace is the node's own, and no pod's".to_owned());
    }
    Ok((file, cookie))
}

/// The first line, and what was sent with it.
async fn first_line(stream: &UnixStream) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let (mut line, mut given) = (Vec::new(), Vec::new());
    let mut bytes = [0; 4096];
    loop {
        let receive = || descriptor::receive(stream.as_fd(), &mut bytes);
        let (count, descriptors) = stream.async_io(Interest::READABLE, receive).await?;
        given.extend(descriptors);
        line.extend(bytes.iter().take(count));
        // Nothing comes after a request.
        if count == 0 || line.contains(&b'\n') || line.len() > REQUEST {
            return Ok((line, given));
        }
    }
}

/// One connection, after its request.
struct Client {
    read: OwnedReadHalf,
    write: BufWriter<OwnedWriteHalf>,
}

/// Waits until the other end hangs up.
async fn gone(read: &mut OwnedReadHalf) {
    // Whatever else it says is too much, and ends it as well.
    let mut byte = [0];
    let _ = read.read(&mut byte).await;
}

impl Client {
    fn of(stream: UnixStream) -> Self {
        let (read, write) = stream.into_split();
        Self {
            read,
            write: BufWriter::new(write),
        }
    }

    async fn reply<T: Serialize>(&mut self, value: &T) -> io::Result<()> {
        self.json(value).await?;
        self.write.flush().await
    }

    async fn refuse(&mut self, error: &str) -> io::Result<()> {
        self.reply(&Reply::<()>::Error(error.to_owned())).await
    }

    async fn record(&mut self, record: &Record) -> io::Result<()> {
        self.json(record).await
    }

    async fn lagged(&mut self, count: u64) -> io::Result<()> {
        self.json(&serde_json::json!({ "lagged": count })).await
    }

    async fn json<T: Serialize>(&mut self, value: &T) -> io::Result<()> {
        let mut line = serde_json::to_vec(value)?;
        line.push(b'\n');
        self.write.write_all(&line).await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use tokio::{
        io::{AsyncBufReadExt as _, BufReader, Lines},
        task::JoinHandle,
    };
    use zt_common::event::Event;

    use super::*;
    use crate::{admin::protocol::Applied, agent::driver::Command, audit::Names};

    struct Place {
        board: Arc<Board>,
        commands: Receiver<Command>,
        session: Arc<Session>,
    }

    /// The client's end of a connection.
    struct Peer {
        lines: Lines<BufReader<OwnedReadHalf>>,
        write: OwnedWriteHalf,
        served: JoinHandle<io::Result<()>>,
    }

    impl Place {
        fn new() -> Self {
            let (sender, commands) = channel();
            let board = Arc::new(Board::new(0));
            let session = Session {
                board: board.clone(),
                user: nix::unistd::geteuid().as_raw(),
                driver: Driver::asking(sender),
            };
            Self {
                board,
                commands,
                session: Arc::new(session),
            }
        }

        async fn ask(&self, request: &str) -> Peer {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let session = self.session.clone();
            let served = tokio::spawn(async move { session.serve(theirs).await });
            let (read, mut write) = ours.into_split();
            write
                .write_all(format!("{request}\n").as_bytes())
                .await
                .unwrap();
            Peer {
                lines: BufReader::new(read).lines(),
                write,
                served,
            }
        }

        async fn command(&self) -> Command {
            for _ in 0..500 {
                if let Ok(command) = self.commands.try_recv() {
                    return command;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            panic!("nothing was asked")
        }
    }

    impl Peer {
        async fn line(&mut self) -> String {
            let line = tokio::time::timeout(Duration::from_secs(2), self.lines.next_line());
            line.await.unwrap().unwrap().unwrap()
        }
    }

    #[tokio::test]
    async fn status_says_what_the_board_knows() {
        let place = Place::new();
        place.board.facts().generation = 7;
        let line = place.ask(r#"{"status":{}}"#).await.line().await;
        let Reply::Ok(status) = serde_json::from_str::<Reply<AgentStatus>>(&line).unwrap() else {
            panic!("{line}")
        };
        assert_eq!((status.generation, status.ready), (7, false));
    }

    #[tokio::test]
    async fn nonsense_and_strangers_are_refused() {
        let mut place = Place::new();
        let line = place.ask("nonsense").await.line().await;
        assert!(line.starts_with(r#"{"error":"no request"#), "{line}");
        Arc::get_mut(&mut place.session).unwrap().user += 1;
        let line = place.ask(r#"{"status":{}}"#).await.line().await;
        assert!(line.contains("only root"), "{line}");
    }

    #[tokio::test]
    async fn an_enrolment_ends_when_its_client_hangs_up() {
        let place = Place::new();
        let request = r#"{"enrol":{"spiffe_id":"spiffe://td/a","cgroup":"/x"}}"#;
        let mut peer = place.ask(request).await;
        let Command::Enrol(enrol, reply) = place.command().await else {
            panic!()
        };
        assert_eq!(enrol.spiffe_id.0.as_str(), "spiffe://td/a");
        let applied = Applied {
            generation: 3,
            rows: 2,
        };
        reply.send(Ok((42, applied))).unwrap();
        assert_eq!(peer.line().await, r#"{"ok":{"generation":3,"rows":2}}"#);
        assert!(place.commands.try_recv().is_err());
        drop((peer.lines, peer.write));
        assert!(matches!(place.command().await, Command::Withdraw(42)));
        peer.served.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn an_observer_sees_decisions_and_hears_of_those_it_missed() {
        let place = Place::new();
        let mut peer = place.ask(r#"{"observe":{}}"#).await;
        while place.board.records.receiver_count() == 0 {
            tokio::task::yield_now().await;
        }
        let send = |sequence| {
            let event = Event {
                sequence,
                verdict: 2,
                ..Event::default()
            };
            let record = Record::of(&event, &Names::default(), &"n".into(), 0);
            place.board.records.send(Arc::new(record)).unwrap();
        };
        send(1);
        assert!(peer.line().await.contains(r#""sequence":1,"#));
        for sequence in 0..20_000 {
            send(sequence);
        }
        let line = peer.line().await;
        assert!(line.starts_with(r#"{"lagged":"#), "{line}");
        drop((peer.lines, peer.write));
        peer.served.abort();
    }
}
