//! etcd and kube-apiserver on loopback.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use super::{Outside, Programs, User, child, directory};
use crate::{agent, patience};

/// The API server is ready after 4 seconds on a machine of the usual speed; the
/// rest is for one that builds at the same time.
const READY: Duration = Duration::from_secs(120);
/// What it may take to end by itself.
const GRACE: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(200);
/// How often other ports are tried: somebody may take one between our choice and
/// the server's start.
const TRIES: usize = 3;
/// How much of a server's log is shown when it fails.
const LAST_LINES: usize = 25;

/// The address that the `kubernetes` service gets. Loopback is refused there, and
/// nobody has this one (RFC 5737).
const ADVERTISED: &str = "192.0.2.1";
/// What Services get their addresses from.
pub const SERVICE_RANGE: &str = "10.96.0.0/16";

/// A running control plane. Dropping it ends its servers and removes its data.
#[derive(Debug)]
pub struct Cluster {
    pub(super) programs: Programs,
    pub(super) directory: PathBuf,
    token: String,
    etcd_port: u16,
    api_port: u16,
    /// Nothing where there are no nodes.
    outside: Option<Outside>,
    servers: Mutex<Servers>,
}

#[derive(Debug, Default)]
struct Servers {
    etcd: Option<Child>,
    api: Option<Child>,
}

impl Cluster {
    /// Starts one of its own and waits until it answers.
    ///
    /// # Errors
    /// When a server does not start or is not ready in time; the end of its log is
    /// in the error.
    pub fn start(programs: &Programs) -> Result<Self> {
        Self::start_with(programs, None)
    }

    /// The same with nodes outside.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with(programs: &Programs, outside: Option<&Outside>) -> Result<Self> {
        let mut tried = Self::try_start(programs, outside);
        for _ in 1..TRIES {
            if tried.is_ok() {
                break;
            }
            tried = Self::try_start(programs, outside);
        }
        tried
    }

    fn try_start(programs: &Programs, outside: Option<&Outside>) -> Result<Self> {
        let ports = free_ports::<3>()?;
        // From here on the cluster's drop cleans up.
        let cluster = Self {
            programs: programs.clone(),
            directory: directory::make()?,
            token: random_token()?,
            etcd_port: ports[0],
            api_port: ports[1],
            outside: outside.cloned(),
            servers: Mutex::default(),
        };
        cluster.write_files()?;
        let etcd = cluster.spawn(cluster.etcd(ports[2]), "etcd")?;
        cluster.lock().etcd = Some(etcd);
        cluster.start_api_server()?;
        Ok(cluster)
    }

    /// Where the API is.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.api_port)
    }

    /// The bearer token of a person who may do everything.
    #[must_use]
    pub fn token(&self) -> &str {
        &self.token
    }

    /// The certificates (PEM) that vouch for the API server.
    #[must_use]
    pub fn certificate_authority(&self) -> PathBuf {
        self.directory.join("certificates/apiserver.crt")
    }

    /// A file with the three of them, as every client reads it.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.directory.join("kubeconfig")
    }

    /// What a server wrote: `etcd` or `kube-apiserver`.
    pub fn log(&self, server: &str) -> Result<String> {
        let path = self.log_path(server);
        let text = fs::read(&path).with_context(|| path.display().to_string())?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// Starts the API server, at its old place, and waits until it is ready.
    pub fn start_api_server(&self) -> Result<()> {
        ensure!(self.lock().api.is_none(), "the API server runs already");
        let api = self.spawn(self.api_server(), "kube-apiserver")?;
        self.lock().api = Some(api);
        self.wait_until_ready()
    }

    /// Stops it as an administrator would: what is being answered is answered.
    pub fn stop_api_server(&self) -> Result<()> {
        let mut api = self
            .lock()
            .api
            .take()
            .context("the API server does not run")?;
        child::stop(&mut api, patience::scaled(GRACE))
    }

    /// Ends it as a crash would.
    pub fn kill_api_server(&self) -> Result<()> {
        let mut api = self
            .lock()
            .api
            .take()
            .context("the API server does not run")?;
        child::end(&mut api)
    }

    /// The API server's process; `None` while it does not run.
    #[must_use]
    pub fn api_server_pid(&self) -> Option<u32> {
        self.lock().api.as_ref().map(Child::id)
    }

    /// Ends all of it; more than once is as good as once. The API server goes
    /// first: alone it would wait a minute for etcd.
    pub(super) fn end(&self) {
        let mut servers = self.lock();
        let running = [servers.api.take(), servers.etcd.take()];
        for mut server in running.into_iter().flatten() {
            if let Err(error) = child::end(&mut server) {
                eprintln!("a server of the cluster is not gone: {error:#}");
            }
        }
        directory::remove(&self.directory);
    }

    /// A panic elsewhere leaves the list as good as it was.
    fn lock(&self) -> MutexGuard<'_, Servers> {
        self.servers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_files(&self) -> Result<()> {
        let admin = format!("{},admin,admin,system:masters\n", self.token);
        let users = self.outside.iter().flat_map(|outside| &outside.users);
        let tokens: String = [admin].into_iter().chain(users.map(User::row)).collect();
        fs::write(self.directory.join("tokens.csv"), tokens)?;
        if let Some(outside) = &self.outside {
            self.write_egress(outside)?;
        }
        let mut key = Command::new("openssl");
        // Of the older form: from it the server can take the public key, too.
        key.args([
            "ecparam",
            "-name",
            "prime256v1",
            "-genkey",
            "-noout",
            "-out",
        ])
        .arg(self.service_account_key());
        let made = key.output().context("cannot run openssl")?;
        ensure!(
            made.status.success(),
            "openssl: {}",
            String::from_utf8_lossy(&made.stderr)
        );
        let kubeconfig = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": {
                "server": self.url(), "certificate-authority": self.certificate_authority(),
            }}],
            "users": [{"name": "admin", "user": {"token": self.token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
            "current-context": "test",
        });
        fs::write(self.kubeconfig(), kubeconfig.to_string())?;
        Ok(())
    }

    pub(super) fn service_account_key(&self) -> PathBuf {
        self.directory.join("service-accounts.pem")
    }

    pub(super) const fn api_port(&self) -> u16 {
        self.api_port
    }

    pub(super) const fn etcd_port(&self) -> u16 {
        self.etcd_port
    }

    fn etcd_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.etcd_port)
    }

    fn etcd(&self, peer_port: u16) -> Command {
        let peers = format!("http://127.0.0.1:{peer_port}");
        let mut command = Command::new(&self.programs.etcd);
        for (name, value) in [
            ("name", "test"),
            ("listen-client-urls", &self.etcd_url()),
            ("advertise-client-urls", &self.etcd_url()),
            ("listen-peer-urls", &peers),
            ("initial-advertise-peer-urls", &peers),
            ("initial-cluster", &format!("test={peers}")),
        ] {
            command.arg(format!("--{name}={value}"));
        }
        command.arg("--data-dir").arg(self.directory.join("etcd"));
        command
    }

    fn api_server(&self) -> Command {
        let mut command = self.programs.part("kube-apiserver");
        for (name, value) in [
            ("etcd-servers", self.etcd_url().as_str()),
            ("bind-address", "127.0.0.1"),
            ("secure-port", &self.api_port.to_string()),
            ("advertise-address", &self.advertised()),
            ("authorization-mode", "Node,RBAC"),
            ("service-account-issuer", "https://kubernetes.default.svc"),
            ("service-cluster-ip-range", SERVICE_RANGE),
            // The agent's own DaemonSet asks for it.
            ("allow-privileged", "true"),
        ] {
            command.arg(format!("--{name}={value}"));
        }
        for (name, path) in [
            // It signs a certificate for itself, and keeps it across restarts.
            ("cert-dir", self.directory.join("certificates")),
            ("token-auth-file", self.directory.join("tokens.csv")),
            ("service-account-key-file", self.service_account_key()),
            (
                "service-account-signing-key-file",
                self.service_account_key(),
            ),
        ] {
            command.arg(format!("--{name}={}", path.display()));
        }
        if self.outside.is_some() {
            let path = self.egress();
            command.arg(format!("--egress-selector-config-file={}", path.display()));
        }
        command
    }

    fn advertised(&self) -> String {
        let outside = self.outside.as_ref();
        outside.map_or_else(|| ADVERTISED.to_owned(), |o| o.address.to_string())
    }

    fn log_path(&self, server: &str) -> PathBuf {
        self.directory.join(format!("{server}.log"))
    }

    /// Starts another part of Kubernetes; whoever asks ends it. `server` is the
    /// name of its log.
    pub fn spawn(&self, mut command: Command, server: &str) -> Result<Child> {
        let path = self.log_path(server);
        let log = File::options().append(true).create(true).open(&path);
        let log = log.with_context(|| path.display().to_string())?;
        command
            .current_dir(&self.directory)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        child::start(command)
    }

    fn wait_until_ready(&self) -> Result<()> {
        let deadline = Instant::now() + patience::scaled(READY);
        loop {
            let ready = self.kubectl(&["get", "--raw=/readyz"])?;
            if ready.succeeded {
                return Ok(());
            }
            if let Some(server) = self.ended()? {
                bail!(
                    "{server} has ended; its log ends so:\n{}",
                    self.end_of_log(server)
                );
            }
            if Instant::now() >= deadline {
                let log = self.end_of_log("kube-apiserver");
                bail!(
                    "the API server is not ready: {}its log ends so:\n{log}",
                    ready.errors
                );
            }
            thread::sleep(LOOK);
        }
    }

    /// A server that should run and does not.
    fn ended(&self) -> Result<Option<&'static str>> {
        let mut servers = self.lock();
        let Servers { etcd, api } = &mut *servers;
        for (server, child) in [("etcd", etcd), ("kube-apiserver", api)] {
            if let Some(child) = child
                && child.try_wait()?.is_some()
            {
                return Ok(Some(server));
            }
        }
        Ok(None)
    }

    fn end_of_log(&self, server: &str) -> String {
        let log = self.log(server).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
    }

    pub(super) fn path(&self) -> &Path {
        &self.directory
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.end();
    }
}

/// Ports of loopback that nobody has, all of them different.
fn free_ports<const N: usize>() -> Result<[u16; N]> {
    let mut ports = [0; N];
    for port in &mut ports {
        *port = agent::free_port()?.port();
    }
    Ok(ports)
}

pub(super) fn random_token() -> Result<String> {
    let mut bytes = [0_u8; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
