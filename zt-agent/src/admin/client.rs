//! A command's end of the socket.

use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    os::{fd::BorrowedFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::de::DeserializeOwned;

use super::{
    descriptor,
    protocol::{AgentStatus, Applied, Attach, Attached, Detach, Done, Enrol, Reply, Request},
};

/// Why the agent was not asked, or what it answered.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("the agent is not running (nobody answers at {0}); start it: zt-agent run")]
    NotRunning(PathBuf),
    #[error("{path}: {error}")]
    Io { path: PathBuf, error: io::Error },
    #[error("the agent refuses: {0}")]
    Refused(String),
    #[error("the agent hung up; look at its log")]
    HungUp,
    #[error("the agent has not answered for {} s; look at its log", .0.as_secs())]
    Silent(Duration),
    #[error("the agent answered something else than this version understands: {0}")]
    Foreign(serde_json::Error),
}

/// A connection after its request.
#[derive(Debug)]
pub struct Connection {
    path: PathBuf,
    stream: BufReader<UnixStream>,
}

impl Connection {
    /// Connects to the socket at `path` and sends a request.
    ///
    /// # Errors
    /// When nobody listens there.
    pub fn open(path: &Path, request: &Request) -> Result<Self, ClientError> {
        Self::open_with(path, request, None)
    }

    /// The same; a descriptor goes with the request.
    fn open_with(
        path: &Path,
        request: &Request,
        given: Option<BorrowedFd<'_>>,
    ) -> Result<Self, ClientError> {
        let mut stream = UnixStream::connect(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NotRunning(path.into())
            }
            _ => failed(path)(error),
        })?;
        let mut line = serde_json::to_vec(request).map_err(ClientError::Foreign)?;
        line.push(b'\n');
        let sent = match given {
            Some(given) => descriptor::send(&stream, &line, given).map_err(failed(path))?,
            None => 0,
        };
        let rest = line.get(sent..).unwrap_or_default();
        stream.write_all(rest).map_err(failed(path))?;
        Ok(Self {
            path: path.into(),
            stream: BufReader::new(stream),
        })
    }

    /// Does not wait longer than this for an answer.
    fn patient_for(self, limit: Duration) -> Result<Self, ClientError> {
        let stream = self.stream.get_ref();
        let limited = stream.set_read_timeout(Some(limit));
        limited.map_err(failed(&self.path))?;
        Ok(self)
    }

    /// The next line; `None`: the agent hung up.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn line(&mut self) -> Result<Option<String>, ClientError> {
        let mut line = String::new();
        let read = self.stream.read_line(&mut line);
        let limit = self.stream.get_ref().read_timeout().ok().flatten();
        match (read, limit) {
            (Err(error), Some(limit)) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(ClientError::Silent(limit));
            }
            (read, _) => read.map_err(failed(&self.path))?,
        };
        match line.len() {
            0 => Ok(None),
            _ => Ok(Some(line)),
        }
    }

    fn reply<T: DeserializeOwned>(&mut self) -> Result<T, ClientError> {
        let line = self.line()?.ok_or(ClientError::HungUp)?;
        match serde_json::from_str(&line).map_err(ClientError::Foreign)? {
            Reply::Ok(value) => Ok(value),
            Reply::Error(error) => Err(ClientError::Refused(error)),
        }
    }
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> ClientError {
    let path = path.to_owned();
    move |error| ClientError::Io { path, error }
}

/// Asks how the agent is.
///
/// # Errors
/// When it is not running.
pub fn status(socket: &Path) -> Result<AgentStatus, ClientError> {
    Connection::open(socket, &Request::Status {})?.reply()
}

/// Makes the agent read its files; `Ok` once they are in force.
///
/// # Errors
/// When it is not running, or why they are not in force.
pub fn reload(socket: &Path) -> Result<Applied, ClientError> {
    Connection::open(socket, &Request::Reload {})?.reply()
}

/// Enrols a cgroup, as long as the connection is held.
///
/// # Errors
/// When the agent is not running or refuses.
pub fn enrol(socket: &Path, request: Enrol) -> Result<Connection, ClientError> {
    let mut connection = Connection::open(socket, &Request::Enrol(request))?;
    let _: Applied = connection.reply()?;
    Ok(connection)
}

/// An agent that has not answered for so long hangs.
const HANGS: Duration = Duration::from_secs(5);

/// Has a network namespace taken for a pod's; `Ok` once the pod's interface is
/// covered.
///
/// # Errors
/// When the agent is not running, or why the pod is not covered.
pub fn attach(
    socket: &Path,
    request: Attach,
    netns: BorrowedFd<'_>,
) -> Result<Attached, ClientError> {
    let limit = Duration::from_secs(request.timeout.into()) + HANGS;
    let connection = Connection::open_with(socket, &Request::Attach(request), Some(netns))?;
    connection.patient_for(limit)?.reply()
}

/// Asks whether anything could be attached.
///
/// # Errors
/// When the agent is not running, or why not.
pub fn can_attach(socket: &Path) -> Result<(), ClientError> {
    let connection = Connection::open(socket, &Request::Attachable {})?;
    let _: Done = connection.patient_for(HANGS)?.reply()?;
    Ok(())
}

/// Has the agent forget what was attached.
///
/// # Errors
/// When it is not running.
pub fn detach(socket: &Path, what: Detach) -> Result<(), ClientError> {
    let connection = Connection::open(socket, &Request::Detach(what))?;
    let _: Done = connection.patient_for(HANGS)?.reply()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_that_does_not_answer_is_not_waited_for_for_ever() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        let _deaf = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let connection = Connection::open(&path, &Request::Status {}).unwrap();
        let mut connection = connection.patient_for(Duration::from_millis(20)).unwrap();
        assert!(matches!(connection.line(), Err(ClientError::Silent(_))));
    }
}
