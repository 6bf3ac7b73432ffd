//! An API server of a few lines, for tests.

use std::{
    io,
    sync::{Arc, Mutex},
};

use kube::Client;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
};

/// A client of one that answers every request, of which it is told the first
/// line, with a status and a body; `None`: it never answers.
pub async fn serve(answer: impl FnMut(&str) -> Option<(u16, String)> + Send + 'static) -> Client {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let answer = Arc::new(Mutex::new(answer));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::spawn(async move {
                let (mut stream, request) = read(stream).await?;
                let answered = answer.lock().unwrap()(&request);
                match answered {
                    Some((status, body)) => write(&mut stream, status, &body).await,
                    None => std::future::pending().await,
                }
            });
        }
    });
    Client::try_from(kube::Config::new(url.parse().unwrap())).unwrap()
}

async fn read(stream: TcpStream) -> io::Result<(TcpStream, String)> {
    let mut stream = BufReader::new(stream);
    let (mut request, mut length) = (String::new(), 0);
    stream.read_line(&mut request).await?;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        let line = line.trim().to_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(text) = line.strip_prefix("content-length:") {
            length = text.trim().parse().map_err(io::Error::other)?;
        }
    }
    // Whoever hangs up before all was read is taken for one that failed.
    stream.read_exact(&mut vec![0; length]).await?;
    Ok((stream.into_inner(), request))
}

async fn write(stream: &mut TcpStream, status: u16, body: &str) -> io::Result<()> {
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status} x\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(format!("{head}{body}").as_bytes()).await
}
