//! The server's process: answers on the ports that it is given, until its
//! standard input ends.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use super::traffic::{MESSAGE, kind};

/// How long a client may be silent.
const PATIENCE: Duration = Duration::from_secs(5);

/// What it says when it listens.
pub const READY: &str = "ready";

/// Serves TCP and UDP at each address.
///
/// # Errors
/// When it cannot listen.
pub fn serve(addresses: &[SocketAddr]) -> Result<()> {
    for address in addresses {
        let listener = TcpListener::bind(address).with_context(|| address.to_string())?;
        let socket = UdpSocket::bind(address).with_context(|| address.to_string())?;
        thread::spawn(move || accept(&listener));
        thread::spawn(move || echo_datagrams(&socket));
    }
    println!("{READY}");
    io::copy(&mut io::stdin().lock(), &mut io::sink())?;
    Ok(())
}

/// One connection after the other: a thread for each would cost more than what
/// is measured.
fn accept(listener: &TcpListener) {
    for stream in listener.incoming() {
        // A client that was cut off is its own concern.
        let _ = stream.and_then(take);
    }
}

fn take(mut stream: TcpStream) -> io::Result<()> {
    // Or one that hangs would keep the others out.
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut message = [0; MESSAGE];
    stream.read_exact(&mut message)?;
    match message[0] {
        kind::ONCE => stream.write_all(&message),
        kind::COUNT => count(&mut stream),
        kind::BESIDE => {
            thread::spawn(move || echo(&mut stream, &mut message));
            Ok(())
        }
        _ => echo(&mut stream, &mut message),
    }
}

/// The first message is read already.
fn echo(stream: &mut TcpStream, message: &mut [u8; MESSAGE]) -> io::Result<()> {
    loop {
        stream.write_all(message)?;
        stream.read_exact(message)?;
    }
}

fn count(stream: &mut TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; 256 << 10];
    let mut count = MESSAGE as u64;
    loop {
        match stream.read(&mut buffer)? {
            0 => return stream.write_all(&count.to_be_bytes()),
            read => count += read as u64,
        }
    }
}

fn echo_datagrams(socket: &UdpSocket) {
    let mut message = [0; MESSAGE];
    loop {
        // The answer to one whose client is gone comes back as an error.
        if let Ok((length, client)) = socket.recv_from(&mut message) {
            let _ = socket.send_to(&message[..length], client);
        }
    }
}
