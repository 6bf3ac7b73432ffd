//! The chart is what kustomize makes of the base, and up to date.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use serde_json::Value;

use super::chart::{self, Files};
use crate::manifests::tools::here::{helm, kubectl, output};
use crate::manifests::yaml;
use crate::workspace;

/// Objects by kind and name.
type Objects = BTreeMap<(String, String), Value>;

#[test]
fn the_chart_is_the_one_that_the_base_makes() {
    let root = workspace::root();
    let mut kept = Files::new();
    collect(&root.join(chart::PLACE), "", &mut kept);
    let made = chart::files(&root).unwrap();
    let names = |files: &Files| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&kept), names(&made), "run `cargo xtask dist --kept`");
    for (name, text) in made {
        assert_eq!(kept[&name], text, "{name}: run `cargo xtask dist --kept`");
    }
}

fn collect(directory: &Path, prefix: &str, files: &mut Files) {
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{prefix}{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            collect(&entry.path(), &format!("{name}/"), files);
        } else {
            files.insert(name, fs::read_to_string(entry.path()).unwrap());
        }
    }
}

#[test]
fn helm_finds_nothing_to_complain_about() {
    let Some(mut helm) = helm() else { return };
    let chart = workspace::root().join(chart::PLACE);
    let told = output(helm.args(["lint", "--strict"]).arg(chart));
    assert!(told.contains("0 chart(s) failed"), "{told}");
}

#[test]
fn helm_and_kustomize_make_the_same_objects() {
    for (overlay, components) in [
        ("observe", &[][..]),
        ("observe", &["monitoring"]),
        ("enforce", &[]),
        ("enforce", &["boot"]),
        ("enforce", &["monitoring", "boot", "cni"]),
        ("canary", &[]),
        ("canary", &["monitoring", "boot", "cni"]),
    ] {
        let (Some(of_helm), Some(of_kustomize)) =
            (rendered(overlay, components), built(overlay, components))
        else {
            return;
        };
        let monitoring = components.contains(&"monitoring");
        let names = |objects: &Objects| objects.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&of_helm), names(&of_kustomize), "{overlay}");
        assert!(of_helm.len() >= if monitoring { 15 } else { 11 });
        let sets = of_helm.keys().filter(|(kind, _)| kind == "DaemonSet");
        assert_eq!(sets.count(), if overlay == "canary" { 2 } else { 1 });
        for (name, object) in of_helm {
            assert_eq!(object, of_kustomize[&name], "{overlay}: {name:?}");
        }
    }
}

/// What an upgrade with `--reuse-values` meets: values of a chart that did not have
/// them all.
#[test]
fn what_older_values_do_not_know_is_as_this_charts_values_say() {
    const LATER: [&str; 4] = ["monitoring", "boot", "cni", "canary"];
    let missing = LATER.map(|name| format!("--set={name}=null"));
    let off = LATER.map(|name| format!("--set={name}.enabled=false"));
    let (Some(without), Some(with)) = (template(&missing), template(&off)) else {
        return;
    };
    assert_eq!(without, with);

    // Switched on in the same go: no changes are known either.
    let missing = ["--set=canary.enabled=true", "--set=canary.config=null"];
    let (Some(without), Some(with)) = (template(&missing), template(&missing[..1])) else {
        return;
    };
    assert_eq!(without, with);
    assert!(with.contains("mode: audit") && with.contains("mode: enforce"));
}

/// What Helm makes of the chart.
fn rendered(overlay: &str, components: &[&str]) -> Option<Objects> {
    let (mode, canary) = match overlay {
        "observe" => ("audit", false),
        "canary" => ("audit", true),
        _ => ("enforce", false),
    };
    let mut values = vec![
        "--include-crds".to_owned(),
        "--set=createNamespace=true".to_owned(),
        format!("--set=canary.enabled={canary}"),
        format!("--set=config.mode={mode}"),
    ];
    let enabled = components.iter();
    values.extend(enabled.map(|name| format!("--set={name}.enabled=true")));
    let mut objects = objects(&template(&values)?);
    let sets = objects
        .iter_mut()
        .filter(|((kind, _), _)| kind == "DaemonSet");
    let mut sums = Vec::new();
    for (_, set) in sets {
        // Kustomize has the agents start anew by the name of their configuration.
        let metadata = set["spec"]["template"]["metadata"].as_object_mut().unwrap();
        let annotations = metadata.remove("annotations").unwrap();
        let names: Vec<&String> = annotations.as_object().unwrap().keys().collect();
        assert_eq!(names, ["checksum/config"]);
        sums.push(annotations["checksum/config"].to_string());
    }
    let count = sums.len();
    sums.dedup();
    assert_eq!(sums.len(), count, "each has its own configuration");
    Some(objects)
}

fn template(values: &[impl AsRef<OsStr>]) -> Option<String> {
    let mut helm = helm()?;
    helm.args(["template", "zt-agent"])
        .arg(workspace::root().join(chart::PLACE))
        .arg("--namespace=zt-system")
        .args(values);
    Some(output(&mut helm))
}

/// What kustomize makes of an overlay, with the names of the chart.
fn built(overlay: &str, components: &[&str]) -> Option<Objects> {
    let mut kubectl = kubectl()?;
    let directory = tempfile::tempdir().unwrap();
    let deploy = directory.path().join("deploy");
    output(
        std::process::Command::new("cp")
            .arg("-r")
            .arg(workspace::root().join("deploy"))
            .arg(&deploy),
    );
    let overlay = deploy.join("overlays").join(overlay);
    if !components.is_empty() {
        // As the comment in it says.
        let path = overlay.join("kustomization.yaml");
        let text = fs::read_to_string(&path).unwrap();
        let named: Vec<String> = components
            .iter()
            .map(|name| format!("../../{name}"))
            .collect();
        let line = format!("components: [{}]", named.join(", "));
        let with = text.replace("# components: [../../monitoring]", &line);
        assert_ne!(text, with);
        fs::write(&path, with).unwrap();
    }
    let text = output(kubectl.arg("kustomize").arg(overlay));
    let configurations = yaml::documents(&text)
        .into_iter()
        .filter(|object| object["data"]["config.yaml"].is_string());
    // zt-agent-CHECKSUM, zt-agent-canary-CHECKSUM
    let names = configurations.map(|object| object["metadata"]["name"].to_string());
    let text = names.fold(text.clone(), |text, name| {
        let (_, sum) = name.trim_matches('"').rsplit_once('-').expect("a checksum");
        text.replace(&format!("-{sum}"), "")
    });
    Some(objects(&text))
}

fn objects(text: &str) -> Objects {
    let mut objects = Objects::new();
    for mut object in yaml::documents(text) {
        let kind = object["kind"].as_str().expect("it has a kind").to_owned();
        // Kustomize takes these for ones of a namespace (its issue 6051). The API
        // server knows better, and drops it.
        if kind.starts_with("ValidatingAdmissionPolicy") {
            let metadata = object["metadata"].as_object_mut();
            metadata.expect("it has a name").remove("namespace");
        }
        let name = object["metadata"]["name"].as_str().expect("it has a name");
        let name = (kind, name.to_owned());
        // One has comments, the other not.
        if let Some(config) = object["data"].get_mut("config.yaml") {
            *config = yaml::documents(config.as_str().unwrap()).remove(0);
        }
        // Their order says nothing, and patches have one of their own.
        for list in ["initContainers", "volumes"] {
            if let Some(list) = object["spec"]["template"]["spec"][list].as_array_mut() {
                list.sort_by_key(|one| one["name"].to_string());
            }
        }
        assert!(
            objects.insert(name.clone(), object).is_none(),
            "{name:?} twice"
        );
    }
    objects
}
