//! Objects by the thousand, written where the API server keeps them: it would
//! take minutes to make them one by one.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};

use anyhow::{Context, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::Cluster;

/// Writes in one transaction; etcd takes 128.
const AT_ONCE: usize = 100;

impl Cluster {
    /// Puts objects beside those that the API server made; it takes them for its
    /// own. Each with its key, such as `pods/NAMESPACE/NAME`, and all that the API
    /// server would add.
    pub fn store(&self, objects: &[(String, Value)]) -> Result<()> {
        for some in objects.chunks(AT_ONCE) {
            let writes: Vec<Value> = some.iter().map(put).collect();
            self.transact(&json!({"success": writes}).to_string())?;
        }
        Ok(())
    }

    /// Forgets what the objects were like before: whoever asks for the changes
    /// since then is told that they are gone. Only an API server that starts
    /// after it remembers none itself.
    pub fn forget_the_past(&self) -> Result<()> {
        let all = json!({"key": STANDARD.encode("/"), "limit": 1}).to_string();
        let answer = self.ask_etcd("range", &all)?;
        let revision = &answer["header"]["revision"];
        let compaction = json!({"revision": revision, "physical": true}).to_string();
        self.ask_etcd("compaction", &compaction).map(drop)
    }

    fn transact(&self, body: &str) -> Result<()> {
        self.ask_etcd("txn", body).map(drop)
    }

    /// By etcd's JSON gateway.
    fn ask_etcd(&self, what: &str, body: &str) -> Result<Value> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.etcd_port()))?;
        write!(
            stream,
            "POST /v3/kv/{what} HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let status = answer.split(' ').nth(1).context("no answer of etcd's")?;
        ensure!(status == "200", "etcd: {answer}");
        let (_, body) = answer.split_once("\r\n\r\n").context("no body of etcd's")?;
        Ok(serde_json::from_str(body)?)
    }
}

fn put((key, object): &(String, Value)) -> Value {
    json!({"requestPut": {
        "key": STANDARD.encode(format!("/registry/{key}")),
        "value": STANDARD.encode(object.to_string()),
    }})
}
