//! Debian's cloud kernels: found, downloaded and unpacked into a cache outside
//! the clone, without a trace in the system's own package lists.

use std::cmp::Ordering;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::setup;
use crate::step::Steps;

/// The kernels that we promise to work on, oldest first.
pub const SERIES: [&str; 2] = ["6.1", "6.12"];

/// Debian 12 has both: its own kernel, and the next one for longer support.
const SOURCES: &str = "\
deb http://deb.debian.org/debian bookworm main
deb http://deb.debian.org/debian-security bookworm-security main
";

const SUFFIX: &str = "-cloud-amd64-unsigned";

/// Where they are kept. Another name for another choice of modules.
const CACHE: &str = "kernels-with-disks";

/// Directories of modules that tests may need; what else there is drives
/// hardware.
const MODULES: [&str; 6] = [
    "net",
    "lib",
    "crypto",
    "arch",
    // What a node with a disk and containers needs besides.
    "drivers/block",
    "fs/overlayfs",
];
/// Of the network drivers only those that lie here directly, and of the
/// directories these.
const DRIVERS: &str = "drivers/net";
const DRIVER_DIRECTORIES: [&str; 5] = ["bonding", "ipvlan", "vxlan", "wireguard", "team"];

/// An unpacked kernel.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Such as `6.1`.
    pub series: String,
    /// Of the package, such as `6.1.192-2`.
    pub version: String,
    /// The compressed kernel.
    pub image: PathBuf,
    /// The directory that has `lib/modules`.
    pub root: PathBuf,
}

/// The newest kernel of each series; the newest in the cache where the archive
/// cannot be reached.
pub fn newest(steps: &Steps, series: &[String]) -> Result<Vec<Kernel>> {
    let cache = setup::cache_directory()?.join(CACHE);
    fs::create_dir_all(&cache).with_context(|| cache.display().to_string())?;
    let archive = Archive::new(&cache)?;
    let updated = steps.attempt("Look for kernels", archive.apt_get().arg("update"))?;
    let offered = if updated.success {
        archive.offered()?
    } else {
        steps.note("Debian's archive cannot be reached; kernels are taken from the cache");
        Vec::new()
    };
    series
        .iter()
        .map(|series| {
            let of_series = offered.iter().filter(|package| package.is_of(series));
            if let Some(package) = of_series.max_by(|a, b| by_number(&a.version, &b.version)) {
                archive.fetch(steps, package)?;
            }
            newest_cached(&cache, series)
        })
        .collect()
}

/// A package that is offered.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Package {
    name: String,
    version: String,
}

impl Package {
    fn is_of(&self, series: &str) -> bool {
        let rest = self.name.strip_prefix(&format!("linux-image-{series}."));
        rest.is_some_and(|rest| rest.ends_with(SUFFIX))
    }

    fn directory(&self) -> String {
        format!("{}_{}", self.name, self.version)
    }
}

/// Numbers in a version count as numbers: 6.12.9 is older than 6.12.10.
fn by_number(a: &str, b: &str) -> Ordering {
    let numbers = |text: &str| -> Vec<u64> {
        let parts = text.split(|c: char| !c.is_ascii_digit());
        parts.filter_map(|part| part.parse().ok()).collect()
    };
    numbers(a).cmp(&numbers(b)).then_with(|| a.cmp(b))
}

/// Debian's archive, with package lists of our own.
struct Archive {
    cache: PathBuf,
}

impl Archive {
    fn new(cache: &Path) -> Result<Self> {
        let lists = cache.join("apt");
        for directory in ["lists/partial", "cache/archives/partial"] {
            let directory = lists.join(directory);
            fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
        }
        fs::write(lists.join("sources.list"), SOURCES)?;
        Ok(Self {
            cache: cache.to_owned(),
        })
    }

    fn apt_get(&self) -> Command {
        self.apt("apt-get")
    }

    fn apt(&self, program: &str) -> Command {
        let own = self.cache.join("apt");
        let mut command = Command::new(program);
        for (name, value) in [
            ("Dir::Etc::SourceList", own.join("sources.list")),
            ("Dir::Etc::SourceParts", "/dev/null".into()),
            ("Dir::State::Lists", own.join("lists")),
            ("Dir::Cache", own.join("cache")),
        ] {
            command.arg("-o").arg(format!("{name}={}", value.display()));
        }
        for option in [
            // Lists for another machine's architecture are of no use.
            "APT::Architecture=amd64",
            "APT::Architectures=amd64",
            "APT::Update::Error-Mode=any",
            // Its own user may not write into our cache.
            "APT::Sandbox::User=root",
            "Acquire::http::Timeout=20",
            "Acquire::Languages=none",
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
        ] {
            command.args(["-o", option]);
        }
        command
    }

    fn offered(&self) -> Result<Vec<Package>> {
        let mut search = self.apt("apt-cache");
        search.args([
            "search",
            "--names-only",
            "^linux-image-.*-cloud-amd64-unsigned$",
        ]);
        let found = output(&mut search)?;
        let names: Vec<&str> = found
            .lines()
            .filter_map(|line| line.split(' ').next())
            .filter(|name| name.starts_with("linux-image-"))
            .collect();
        let mut show = self.apt("apt-cache");
        show.args(["show", "--no-all-versions"]).args(names);
        Ok(packages(&output(&mut show)?))
    }

    /// Downloads and unpacks what is not in the cache. What is half done is never
    /// taken for a kernel: it gets its name at the end.
    fn fetch(&self, steps: &Steps, package: &Package) -> Result<()> {
        let directory = self.cache.join(package.directory());
        if directory.is_dir() {
            return Ok(());
        }
        let work = self.cache.join(format!("unpacking-{}", std::process::id()));
        fs::create_dir_all(&work)?;
        let mut download = self.apt_get();
        download
            .arg("download")
            .arg(format!("{}={}", package.name, package.version))
            .current_dir(&work);
        let unpacked = steps
            .run(
                &format!("Download Linux {}", package.version),
                &mut download,
            )
            .and_then(|_| steps.check("Unpack it", || unpack(&work)));
        let named = unpacked.and_then(|unpacked| Ok(fs::rename(unpacked, &directory)?));
        fs::remove_dir_all(&work)?;
        named.with_context(|| package.name.clone())
    }
}

/// Name and version of each paragraph.
fn packages(shown: &str) -> Vec<Package> {
    let field = |paragraph: &str, name: &str| {
        let mut lines = paragraph.lines();
        lines.find_map(|line| Some(line.strip_prefix(name)?.trim().to_owned()))
    };
    let paragraphs = shown.split("\n\n").filter_map(|paragraph| {
        Some(Package {
            name: field(paragraph, "Package:")?,
            version: field(paragraph, "Version:")?,
        })
    });
    paragraphs.collect()
}

fn newest_cached(cache: &Path, series: &str) -> Result<Kernel> {
    let entries = fs::read_dir(cache)?.flatten();
    let cached = entries.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let (name, version) = name.split_once('_')?;
        Some(Package {
            name: name.to_owned(),
            version: version.to_owned(),
        })
    });
    let newest = cached
        .filter(|package| package.is_of(series))
        .max_by(|a, b| by_number(&a.version, &b.version));
    let Some(package) = newest else {
        bail!(
            "no Linux {series} is in Debian's archive, and none in {}",
            cache.display()
        );
    };
    let root = cache.join(package.directory());
    Ok(Kernel {
        series: series.to_owned(),
        version: package.version,
        image: root.join("vmlinuz"),
        root,
    })
}

/// Makes `kernel/` of the one package file in a directory: the image, and the
/// modules that are worth their memory, with the indexes that modprobe reads.
fn unpack(work: &Path) -> Result<PathBuf> {
    let (all, kernel) = (work.join("all"), work.join("kernel"));
    let package = only_entry(work)?;
    output(Command::new("dpkg-deb").arg("-x").arg(package).arg(&all))?;
    let modules = only_entry(&all.join("lib/modules"))?;
    let release = modules.file_name().context("modules have a release")?;
    let wanted = kernel.join("lib/modules").join(release);
    fs::create_dir_all(wanted.join("kernel"))?;
    let image = Path::new("vmlinuz-").as_os_str().to_owned();
    let image = [image.as_os_str(), release]
        .into_iter()
        .collect::<std::ffi::OsString>();
    fs::rename(all.join("boot").join(image), kernel.join("vmlinuz"))?;
    for entry in fs::read_dir(&modules)?.flatten() {
        // modules.order, modules.builtin and the like.
        if entry.file_type()?.is_file() {
            fs::rename(entry.path(), wanted.join(entry.file_name()))?;
        }
    }
    take_modules(&modules.join("kernel"), &wanted.join("kernel"))?;
    let mut depmod = Command::new(setup::program("depmod")?);
    output(depmod.arg("-b").arg(&kernel).arg(release))?;
    Ok(kernel)
}

fn take_modules(from: &Path, to: &Path) -> Result<()> {
    for directory in MODULES {
        let wanted = to.join(directory);
        if let Some(parent) = wanted.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::rename(from.join(directory), wanted).context(directory)?;
    }
    let (from, to) = (from.join(DRIVERS), to.join(DRIVERS));
    fs::create_dir_all(&to)?;
    for entry in fs::read_dir(&from).context(DRIVERS)?.flatten() {
        let name = entry.file_name();
        let wanted = DRIVER_DIRECTORIES.iter().any(|wanted| name == *wanted);
        if wanted || entry.file_type()?.is_file() {
            fs::rename(entry.path(), to.join(name))?;
        }
    }
    Ok(())
}

fn only_entry(directory: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(directory).with_context(|| directory.display().to_string())?;
    let entries: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    let [entry] = &entries[..] else {
        bail!("not one entry in {}: {entries:?}", directory.display());
    };
    Ok(entry.clone())
}

fn output(command: &mut Command) -> Result<String> {
    let program = command.get_program().display().to_string();
    let output = command
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program}: {}", errors.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_is_found_by_number() {
        let mut versions = ["6.12.9-1~deb12u1", "6.12.117-1~deb12u1", "6.12.57-1"];
        versions.sort_by(|a, b| by_number(a, b));
        assert_eq!(versions[2], "6.12.117-1~deb12u1");
        assert_eq!(by_number("6.1.192-2", "6.1.192-2"), Ordering::Equal);
        assert_eq!(by_number("6.1.192-10", "6.1.192-9"), Ordering::Greater);
    }

    #[test]
    fn a_package_is_of_one_series_only() {
        let package = |name: &str| Package {
            name: format!("linux-image-{name}"),
            version: "1".to_owned(),
        };
        assert!(package("6.1.0-56-cloud-amd64-unsigned").is_of("6.1"));
        assert!(package("6.12.117+deb12-cloud-amd64-unsigned").is_of("6.12"));
        assert!(!package("6.12.117+deb12-cloud-amd64-unsigned").is_of("6.1"));
        assert!(!package("6.1.0-56-rt-amd64-unsigned").is_of("6.1"));
    }

    #[test]
    fn packages_are_read_from_paragraphs() {
        let shown = "Package: a\nSource: x\nVersion: 1-2\nDescription: Version: 3\n\nPackage: b\nVersion: 4\n\n";
        let found = packages(shown);
        assert_eq!(found.len(), 2);
        assert_eq!(
            (found[0].name.as_str(), found[0].version.as_str()),
            ("a", "1-2")
        );
        assert_eq!(found[1].version, "4");
    }
}
