//! The API server's way to the nodes, which only their own forwarded ports lead to:
//! it asks for `CONNECT NODE:PORT` at a Unix socket.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;

use anyhow::{Context, Result};

/// What each node that may be asked for is on loopback.
pub type Forwards = BTreeMap<String, u16>;

/// Answers at `path` until this program ends.
pub fn start(path: &Path, forwards: Forwards) -> Result<()> {
    let listener = UnixListener::bind(path).with_context(|| path.display().to_string())?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let forwards = forwards.clone();
            // Whoever asked sees that it ended; nobody else has to.
            thread::spawn(move || serve(stream, &forwards));
        }
    });
    Ok(())
}

fn serve(mut asker: UnixStream, forwards: &Forwards) -> io::Result<()> {
    let Some(port) = asked(&asker)?.and_then(|target| forwards.get(&target).copied()) else {
        return asker.write_all(b"HTTP/1.1 403 Forbidden\r\n\r\n");
    };
    let Ok(mut node) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) else {
        return asker.write_all(b"HTTP/1.1 502 Bad Gateway\r\n\r\n");
    };
    asker.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
    let (mut back, mut to_asker) = (node.try_clone()?, asker.try_clone()?);
    thread::spawn(move || {
        let _ = io::copy(&mut back, &mut to_asker);
        // The end of what the node says is the end of it all.
        let _ = to_asker.shutdown(Shutdown::Both);
    });
    io::copy(&mut asker, &mut node)?;
    node.shutdown(Shutdown::Write)
}

/// `NODE:PORT` of the request, which is read to its end. The asker waits for the
/// answer, so nothing of what follows is read with it.
fn asked(asker: &UnixStream) -> io::Result<Option<String>> {
    let mut lines = BufReader::new(asker).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    for line in lines {
        if line?.is_empty() {
            break;
        }
    }
    Ok(target(&first))
}

fn target(request: &str) -> Option<String> {
    let rest = request.strip_prefix("CONNECT ")?;
    Some(rest.split(' ').next()?.to_owned())
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn only_what_is_forwarded_is_reached() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("relay");
        let node = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = node.local_addr().unwrap().port();
        start(&path, Forwards::from([("node-a:10250".to_owned(), port)])).unwrap();
        let ask = |target: &str| {
            let mut stream = UnixStream::connect(&path).unwrap();
            write!(stream, "CONNECT {target} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
            let mut answer = [0; 12];
            stream.read_exact(&mut answer).unwrap();
            (String::from_utf8(answer.to_vec()).unwrap(), stream)
        };
        assert_eq!(ask("127.0.0.1:22").0, "HTTP/1.1 403");
        let (answer, mut stream) = ask("node-a:10250");
        assert_eq!(answer, "HTTP/1.1 200");
        stream.write_all(b"hello").unwrap();
        let (mut accepted, _) = node.accept().unwrap();
        let mut heard = [0; 5];
        accepted.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"hello");
    }
}
