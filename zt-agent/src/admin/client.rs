//! A command's end of the socket.

use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

use serde::de::DeserializeOwned;

use super::protocol::{AgentStatus, Applied, Enrol, Reply, Request};

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
        let mut stream = UnixStream::connect(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NotRunning(path.into())
            }
            _ => failed(path)(error),
        })?;
        let mut line = serde_json::to_vec(request).map_err(ClientError::Foreign)?;
        line.push(b'\n');
        stream.write_all(&line).map_err(failed(path))?;
        Ok(Self {
            path: path.into(),
            stream: BufReader::new(stream),
        })
    }

    /// The next line; `None`: the agent hung up.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn line(&mut self) -> Result<Option<String>, ClientError> {
        let mut line = String::new();
        let read = self.stream.read_line(&mut line);
        match read.map_err(failed(&self.path))? {
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
