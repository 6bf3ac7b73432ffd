//! Lets a process in a network namespace of ours reach a server on the loopback
//! of another: the same port on its own loopback.

use std::{
    io,
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle, sleep},
    time::Duration,
};

use anyhow::Result;
use zt_tests::netns::Netns;

const LOOK: Duration = Duration::from_millis(5);

/// While it is kept; then everything that goes through it ends.
pub struct Relay {
    stop: Arc<AtomicBool>,
    open: Arc<Mutex<Vec<TcpStream>>>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    pub fn start(netns: &Netns, port: u16) -> Result<Self> {
        // A socket stays in the namespace that it was made in.
        let listener = netns.enter(|| Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, port))?))?;
        listener.set_nonblocking(true)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let open = Arc::<Mutex<Vec<TcpStream>>>::default();
        let opened = open.clone();
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                match listener.accept() {
                    // A server that is away refuses: the client sees the end.
                    Ok((client, _)) => {
                        opened.lock().unwrap().extend(client.try_clone());
                        drop(pass_on(client, port));
                    }
                    Err(_) => sleep(LOOK),
                }
            }
        });
        Ok(Self {
            stop,
            open,
            thread: Some(thread),
        })
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        drop(self.thread.take().map(JoinHandle::join));
        for client in self.open.lock().unwrap().drain(..) {
            // It may have hung up.
            let _ = client.shutdown(Shutdown::Both);
        }
    }
}

fn pass_on(client: TcpStream, port: u16) -> io::Result<()> {
    client.set_nonblocking(false)?;
    let server = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    copy(client.try_clone()?, server.try_clone()?);
    copy(server, client);
    Ok(())
}

/// Until one of them hangs up; then both do.
fn copy(mut from: TcpStream, mut to: TcpStream) {
    thread::spawn(move || {
        let _ = io::copy(&mut from, &mut to);
        for stream in [&from, &to] {
            let _ = stream.shutdown(Shutdown::Both);
        }
    });
}
