//! The image of the agent, written without a daemon: an OCI layout in an archive,
//! for `ctr images import`, `podman load`, `skopeo copy`; with the file that
//! `docker load` wants. deploy/Dockerfile makes the same.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::tar::Archive;
use crate::step::Steps;
use crate::{setup, workspace};

const REPOSITORY: &str = "ghcr.io/hanzoai/zt-agent";
const PROGRAM: &str = "/usr/bin/zt-agent";
const PATH: &str = "PATH=/usr/bin";
const USER: &str = "0:0";

const BLOBS: &str = "blobs/sha256";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// As the manifests name it.
pub fn reference() -> String {
    format!("{REPOSITORY}:{}", env!("CARGO_PKG_VERSION"))
}

/// A piece of the image that is named by its digest.
struct Blob {
    kind: &'static str,
    content: Vec<u8>,
    digest: String,
}

impl Blob {
    fn new(kind: &'static str, content: Vec<u8>) -> Self {
        let digest = digest(&content);
        Self {
            kind,
            content,
            digest,
        }
    }

    fn of(kind: &'static str, value: &Value) -> Self {
        Self::new(kind, value.to_string().into_bytes())
    }

    fn descriptor(&self) -> Value {
        json!({"mediaType": self.kind, "digest": self.digest, "size": self.content.len()})
    }

    fn place(&self) -> String {
        place(&self.digest)
    }
}

/// An image of one static x86_64 binary.
pub struct Image<'a> {
    /// Repository and tag.
    pub reference: &'a str,
    /// Where the binary is in the image.
    pub program: &'a str,
    /// What it is started with.
    pub arguments: &'a [&'a str],
    pub binary: &'a [u8],
}

/// The archive with the agent's image.
pub fn archive(binary: &[u8]) -> Result<Vec<u8>> {
    let image = Image {
        reference: &reference(),
        program: PROGRAM,
        arguments: &[],
        binary,
    };
    pack(&image)
}

/// The archive with an image.
pub fn pack(image: &Image<'_>) -> Result<Vec<u8>> {
    let platform = json!({"architecture": "amd64", "os": "linux"});
    let layer = Blob::new(LAYER, layer(image)?);
    let entry = [&[image.program], image.arguments].concat();
    let mut config = platform.clone();
    config["config"] = json!({"Entrypoint": entry, "Env": [PATH], "User": USER});
    config["rootfs"] = json!({"type": "layers", "diff_ids": [layer.digest]});
    let config = Blob::of(CONFIG, &config);
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": config.descriptor(),
        "layers": [layer.descriptor()],
    });
    let manifest = Blob::of(MANIFEST, &manifest);
    let mut entry = manifest.descriptor();
    entry["platform"] = platform;
    entry["annotations"] = json!({
        "io.containerd.image.name": image.reference,
        "org.opencontainers.image.ref.name": tag(image.reference),
    });
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]});
    let docker = json!([{
        "Config": config.place(),
        "RepoTags": [image.reference],
        "Layers": [layer.place()],
    }]);
    let mut archive = Archive::default();
    archive.directory("blobs")?;
    archive.directory(BLOBS)?;
    for blob in [&layer, &config, &manifest] {
        archive.file(&blob.place(), 0o644, &blob.content)?;
    }
    let layout = json!({"imageLayoutVersion": "1.0.0"});
    for (name, content) in [
        ("oci-layout", layout),
        ("index.json", index),
        ("manifest.json", docker),
    ] {
        archive.file(name, 0o644, content.to_string().as_bytes())?;
    }
    Ok(archive.finish())
}

fn tag(reference: &str) -> &str {
    reference.rsplit(':').next().unwrap_or_default()
}

fn layer(image: &Image<'_>) -> Result<Vec<u8>> {
    let mut layer = Archive::default();
    // All programs that have an image are below this.
    layer.directory("usr")?;
    layer.directory("usr/bin")?;
    layer.file(image.program.trim_start_matches('/'), 0o755, image.binary)?;
    Ok(layer.finish())
}

fn digest(content: &[u8]) -> String {
    let digits = Sha256::digest(content);
    let text = digits.iter().map(|byte| format!("{byte:02x}"));
    format!("sha256:{}", text.collect::<String>())
}

/// Where the layout has what a digest names.
fn place(digest: &str) -> String {
    digest.replace("sha256:", &format!("{BLOBS}/"))
}

/// Unpacks the image of a binary as a runtime does, and runs the agent in there.
pub fn try_with(steps: &Steps, binary: &Path) -> Result<()> {
    if !workspace::is_root() {
        steps.note("not root: the image was not tried");
        return Ok(());
    }
    steps.check("Run the agent in its image", || {
        let directory = tempfile::tempdir()?;
        let path = workspace::root().join(binary);
        let content = fs::read(&path).with_context(|| path.display().to_string())?;
        let packed = directory.path().join("image.tar");
        fs::write(&packed, archive(&content)?)?;
        let said = run(&packed, directory.path(), &["--version"])?;
        let expected = format!("zt-agent {}", env!("CARGO_PKG_VERSION"));
        ensure!(said.trim() == expected, "it is {said:?}, not {expected:?}");
        // Something that reaches further into it.
        let said = run(&packed, directory.path(), &["policy", "crd"])?;
        ensure!(said.contains("serviceaccesspolicies"), "{said}");
        Ok(())
    })
}

/// What the image's entry point says there, with nothing around it.
fn run(image: &Path, directory: &Path, arguments: &[&str]) -> Result<String> {
    let unpacked = directory.join("image");
    unpack(image, &unpacked)?;
    let index = json_of(&unpacked.join("index.json"))?;
    let manifest = json_of(&unpacked.join(named(&index["manifests"][0])?))?;
    let config = json_of(&unpacked.join(named(&manifest["config"])?))?;
    let root = directory.join("root");
    for layer in manifest["layers"].as_array().context("layers")? {
        unpack(&unpacked.join(named(layer)?), &root)?;
    }
    let entry = &config["config"]["Entrypoint"][0];
    let output = Command::new(setup::program("chroot")?)
        .arg(&root)
        .arg(entry.as_str().context("no entry point")?)
        .args(arguments)
        .env_clear()
        .output()
        .context("chroot")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{arguments:?}: {errors}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn unpack(archive: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    let mut tar = Command::new("tar");
    let status = tar.arg("-xf").arg(archive).arg("-C").arg(to).status()?;
    ensure!(status.success(), "{} cannot be unpacked", archive.display());
    Ok(())
}

fn json_of(path: &Path) -> Result<Value> {
    let text = fs::read(path).with_context(|| path.display().to_string())?;
    serde_json::from_slice(&text).with_context(|| path.display().to_string())
}

/// Where the layout has what a descriptor describes.
fn named(descriptor: &Value) -> Result<String> {
    Ok(place(descriptor["digest"].as_str().context("no digest")?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifests::yaml;

    #[test]
    fn whatever_the_layout_names_is_there_with_that_digest_and_size() {
        let directory = tempfile::tempdir().unwrap();
        let packed = directory.path().join("image.tar");
        fs::write(&packed, archive(b"no program").unwrap()).unwrap();
        unpack(&packed, directory.path()).unwrap();
        let read = |descriptor: &Value| {
            let content = fs::read(directory.path().join(named(descriptor).unwrap())).unwrap();
            assert_eq!(descriptor["digest"], digest(&content));
            assert_eq!(descriptor["size"], content.len());
            content
        };
        let index = json_of(&directory.path().join("index.json")).unwrap();
        let manifest: Value = serde_json::from_slice(&read(&index["manifests"][0])).unwrap();
        let config: Value = serde_json::from_slice(&read(&manifest["config"])).unwrap();
        let layer = read(&manifest["layers"][0]);
        assert_eq!(config["rootfs"]["diff_ids"][0], digest(&layer));
        let docker = json_of(&directory.path().join("manifest.json")).unwrap();
        assert_eq!(docker[0]["Layers"][0], place(&digest(&layer)));
        assert_eq!(docker[0]["Config"], named(&manifest["config"]).unwrap());
    }

    #[test]
    fn the_manifests_name_this_image() {
        let set = &yaml::file("deploy/base/daemonset.yaml")[0];
        let container = &set["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(container["image"], reference());
    }

    #[test]
    fn the_dockerfile_makes_the_same_image() {
        let file = fs::read_to_string(workspace::root().join("deploy/Dockerfile")).unwrap();
        let said: Vec<&str> = file.lines().filter(|line| !line.starts_with('#')).collect();
        let same = [
            "FROM scratch".to_owned(),
            format!("COPY zt-agent {PROGRAM}"),
            format!("ENV {PATH}"),
            format!("USER {USER}"),
            format!("ENTRYPOINT [{PROGRAM:?}]"),
        ];
        assert_eq!(said, same);
    }
}
