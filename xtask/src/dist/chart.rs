//! The Helm chart, made from the kustomize base: the same text with its comments,
//! and expressions where a value goes. A test renders both and compares them
//! object by object.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::image;

/// Below the root of the clone.
pub const PLACE: &str = "deploy/chart";

const BASE: &str = "deploy/base";
const MONITORING: &str = "deploy/monitoring";
/// What prepares a node before the agent runs: a value each, and in the base's
/// folder a patch of the DaemonSet.
const INSTALLERS: [&str; 2] = ["boot", "cni"];
/// The configuration that the chart begins with: every rollout begins so.
const CONFIGURATION: &str = "deploy/overlays/observe/config.yaml";
/// Definitions are no template: Helm installs them first, and never removes them.
const DEFINITIONS: &str = "crd.yaml";
const DASHBOARD: &str = "dashboard.json";

const NAMESPACE: &str = "{{ .Release.Namespace }}";
const CLUSTER_WIDE: [&str; 6] = [
    "ClusterRole",
    "ClusterRoleBinding",
    "CustomResourceDefinition",
    "Namespace",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
];

/// The sets of agents, each with a name, a configuration and nodes: one for all nodes,
/// or one for those that have the label and one for the others.
const SETS: &str = r#"{{- $sets := list (dict "name" "zt-agent" "config" .Values.config "nodes" .Values.nodeSelector) }}
{{- if (.Values.canary).enabled }}
{{- $changes := .Values.canary.config | default (dict "mode" "enforce") }}
{{- $config := mergeOverwrite (deepCopy .Values.config) $changes }}
{{- $nodes := merge (dict "zt.hanzo.ai/canary" "true") .Values.nodeSelector }}
{{- $sets = append $sets (dict "name" "zt-agent-canary" "config" $config "nodes" $nodes) }}
{{- end }}
{{- range $set := $sets }}
---
"#;
const SET: &str = "{{ $set.name }}";

/// Where the first set is not, as `deploy/overlays/canary` says it.
const ELSEWHERE: &str = r#"      {{- if and ($.Values.canary).enabled (eq $set.name "zt-agent") }}
      affinity:
        nodeAffinity:
          requiredDuringSchedulingIgnoredDuringExecution:
            nodeSelectorTerms:
            - matchExpressions:
              - {key: zt.hanzo.ai/canary, operator: NotIn, values: ["true"]}
      {{- end }}
"#;

/// The text of every file, by its path in the chart.
pub type Files = BTreeMap<String, String>;

/// What we know of a kustomization; a field that we do not is an error, or the
/// chart would lack what it says.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Kustomization {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    namespace: Option<String>,
    labels: Vec<Labels>,
    resources: Vec<String>,
    /// The dashboard, and the patch of the address: the chart has its own.
    #[serde(rename = "configMapGenerator", default)]
    _generated: Vec<serde_json::Value>,
    #[serde(rename = "patches", default)]
    _patches: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Labels {
    pairs: BTreeMap<String, String>,
}

/// Writes the chart anew below the root of the clone.
pub fn write(root: &Path) -> Result<()> {
    let files = files(root)?;
    let place = root.join(PLACE);
    // A template whose source is gone must go as well.
    let _ = fs::remove_dir_all(&place);
    for (name, text) in files {
        let path = place.join(name);
        let directory = path.parent().context("a file has a directory")?;
        fs::create_dir_all(directory)?;
        fs::write(&path, text).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// The chart, from what is below the root of the clone.
pub fn files(root: &Path) -> Result<Files> {
    let read = |path: &str| fs::read_to_string(root.join(path)).context(path.to_owned());
    let kustomization = |directory: &str| -> Result<Kustomization> {
        let path = format!("{directory}/kustomization.yaml");
        serde_saphyr::from_str(&read(&path)?).context(path)
    };
    let base = kustomization(BASE)?;
    let namespace = base
        .namespace
        .as_deref()
        .context("the base has no namespace")?;
    let labels = pairs(&base);
    let mut files = Files::new();
    let mut lifted = Vec::new();
    for name in &base.resources {
        let path = format!("{BASE}/{name}");
        let text = adapted(&read(&path)?, &labels);
        let (place, text) = match name.as_str() {
            DEFINITIONS => (format!("crds/{name}"), text),
            "namespace.yaml" => (format!("templates/{name}"), namespaced(&text, namespace)?),
            "daemonset.yaml" => {
                let (text, values) = daemon_set(&text)?;
                lifted = values;
                let patch = |name| Ok((name, read(&format!("deploy/{name}/install.yaml"))?));
                let patches: Vec<_> = INSTALLERS.into_iter().map(patch).collect::<Result<_>>()?;
                let text = for_each_set(&for_a_set(&installing(&text, &patches)?)?);
                (format!("templates/{name}"), text)
            }
            _ => (format!("templates/{name}"), text),
        };
        files.insert(place, made_from(&path, &text));
    }
    let monitoring = kustomization(MONITORING)?;
    for name in &monitoring.resources {
        let path = format!("{MONITORING}/{name}");
        let text = adapted(&literal(&read(&path)?), &pairs(&monitoring));
        let text = when("monitoring.enabled", &text);
        files.insert(format!("templates/{name}"), made_from(&path, &text));
    }
    let dashboard = config_map("zt-agent-dashboard", &labels, DASHBOARD);
    let dashboard = dashboard.replace("  labels:\n", "  labels:\n    grafana_dashboard: \"1\"\n")
        + &format!("    {{{{- .Files.Get \"{DASHBOARD}\" | nindent 4 }}}}\n");
    files.insert(
        "templates/dashboard.yaml".into(),
        when("monitoring.enabled", &dashboard),
    );
    files.insert(
        DASHBOARD.into(),
        read(&format!("{MONITORING}/{DASHBOARD}"))?,
    );
    let config =
        config_map(SET, &labels, "config.yaml") + "    {{- toYaml $set.config | nindent 4 }}\n";
    files.insert("templates/config.yaml".into(), for_each_set(&config));
    files.insert("Chart.yaml".into(), about());
    files.insert("values.yaml".into(), values(&read(CONFIGURATION)?, &lifted));
    Ok(files)
}

fn pairs(kustomization: &Kustomization) -> String {
    let pairs = kustomization.labels.iter().flat_map(|labels| &labels.pairs);
    pairs.fold(String::new(), |mut text, (name, value)| {
        let _ = writeln!(text, "    {name}: {value}");
        text
    })
}

fn made_from(path: &str, text: &str) -> String {
    format!("# Made from {path} by `cargo xtask dist`.\n{text}")
}

/// Does to every document what kustomize does: labels and the namespace.
fn adapted(text: &str, labels: &str) -> String {
    let documents = text
        .split("\n---\n")
        .map(|document| adapt(document, labels));
    documents.collect::<Vec<_>>().join("\n---\n")
}

fn adapt(document: &str, labels: &str) -> String {
    let Some((before, metadata)) = document.split_once("metadata:\n") else {
        return document.to_owned();
    };
    let kind = before.lines().find_map(|line| line.strip_prefix("kind: "));
    let (name, rest) = metadata.split_once('\n').unwrap_or((metadata, ""));
    let rest = rest.strip_prefix("  labels:\n").unwrap_or(rest);
    let namespace = match kind {
        Some(kind) if CLUSTER_WIDE.contains(&kind) => String::new(),
        _ => format!("  namespace: {NAMESPACE}\n"),
    };
    let text = format!("{before}metadata:\n{name}\n{namespace}  labels:\n{labels}{rest}");
    let account = "subjects:\n- kind: ServiceAccount\n";
    let text = text.replace(account, &format!("{account}  namespace: {NAMESPACE}\n"));
    let ends = if document.ends_with('\n') { "\n" } else { "" };
    text.trim_end().to_owned() + ends
}

/// Braces that Prometheus shall see, and not Helm.
fn literal(text: &str) -> String {
    text.replace("{{", "{{ `{{` }}")
}

/// What a value is, and nothing where what it is in is missing: an upgrade with
/// `--reuse-values` has the values of an older chart, which did not have them all.
fn value(path: &str) -> String {
    match path.split_once('.') {
        Some((first, rest)) => format!("(.Values.{first}).{rest}"),
        None => format!(".Values.{path}"),
    }
}

fn when(condition: &str, text: &str) -> String {
    let condition = value(condition);
    format!("{{{{- if {condition} }}}}\n{text}{{{{- end }}}}\n")
}

fn namespaced(text: &str, namespace: &str) -> Result<String> {
    let named = format!("  name: {namespace}\n");
    let text = instead(text, &named, &format!("  name: {NAMESPACE}\n"))?;
    Ok(when("createNamespace", &text))
}

fn config_map(name: &str, labels: &str, key: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {name}\n  namespace: {NAMESPACE}\n  labels:\n{labels}data:\n  {key}: |\n"
    )
}

/// The template, and what of it became a value: its name and its text.
fn daemon_set(text: &str) -> Result<(String, Vec<(&'static str, String)>)> {
    let text = with_image(text)?;
    let text = instead(
        &text,
        "    metadata:\n      labels:\n",
        "    metadata:\n      annotations:\n        \
         # The agents start anew with a new configuration.\n        \
         checksum/config: {{ .Values.config | toYaml | sha256sum }}\n      labels:\n",
    )?;
    let listen = "        - name: ZT_LISTEN\n          value: 0.0.0.0:8055\n";
    let ports = "        ports:\n";
    let mut text = instead(
        &text,
        ports,
        &format!("{}{ports}", indented_when("monitoring.enabled", listen)),
    )?;
    let mut values = Vec::new();
    for name in ["nodeSelector", "tolerations", "resources"] {
        let (template, value) = lift(&text, name)?;
        text = template;
        values.push((name, value));
    }
    Ok((text, values))
}

/// The template of one of several sets.
fn for_a_set(text: &str) -> Result<String> {
    // Of the pods, and of the set that looks for them; of itself it says more.
    let of_pods = |name: &str| format!("      app.kubernetes.io/name: {name}\n");
    let text = text.replace(&of_pods("zt-agent"), &of_pods(SET));
    let last = "    app.kubernetes.io/part-of: zero-trust\n";
    let text = instead(
        &text,
        &format!("{last}spec:\n"),
        &format!(
            "{last}    {{{{- if ne $set.name \"zt-agent\" }}}}\n    \
             zt.hanzo.ai/canary: \"true\"\n    {{{{- end }}}}\nspec:\n"
        ),
    )?;
    let metadata = |name: &str| format!("metadata:\n  name: {name}\n");
    let text = instead(&text, &metadata("zt-agent"), &metadata(SET))?;
    let config = |name: &str| format!("configMap:\n          name: {name}\n");
    let text = instead(&text, &config("zt-agent"), &config(SET))?;
    let text = instead(
        &text,
        "{{ .Values.config | toYaml | sha256sum }}",
        "{{ $set.config | toYaml | sha256sum }}",
    )?;
    let nodes = |of: &str| format!("{{{{- toYaml {of} | nindent 8 }}}}\n");
    let those = nodes("$set.nodes") + ELSEWHERE;
    instead(&text, &nodes(".Values.nodeSelector"), &those)
}

fn for_each_set(text: &str) -> String {
    // In a loop the dot is something else.
    let text = [" .Values.", "(.Values.", " .Release.", " .Chart."]
        .into_iter()
        .fold(text.to_owned(), |text, all| {
            text.replace(all, &all.replacen('.', "$.", 1))
        });
    format!("{SETS}{text}{{{{- end }}}}\n")
}

fn with_image(text: &str) -> Result<String> {
    let text = instead(
        text,
        &format!("image: {}\n", image::reference()),
        "image: {{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}\n",
    )?;
    instead(
        &text,
        "imagePullPolicy: IfNotPresent\n",
        "imagePullPolicy: {{ .Values.image.pullPolicy }}\n",
    )
}

/// The containers and volumes of patches, each where its value says so.
fn installing(text: &str, patches: &[(&str, String)]) -> Result<String> {
    let (mut containers, mut volumes) = (String::new(), String::new());
    for (name, patch) in patches {
        let patch = with_image(patch)?;
        let (_, rest) = (patch.split_once("\n      initContainers:\n"))
            .with_context(|| format!("{name} has no container"))?;
        let (container, volume) = (rest.split_once("      volumes:\n"))
            .with_context(|| format!("{name} has no volume"))?;
        containers += &inside(6, &format!("{name}.enabled"), container);
        volumes += &inside(6, &format!("{name}.enabled"), volume);
    }
    let any: Vec<String> = (patches.iter())
        .map(|(name, _)| value(&format!("{name}.enabled")))
        .collect();
    let any = format!("      {{{{- if or {} }}}}\n", any.join(" "));
    let before = "      containers:\n";
    let text = instead(
        text,
        before,
        &format!("{any}      initContainers:\n{containers}      {{{{- end }}}}\n{before}"),
    )?;
    let after = "      volumes:\n";
    instead(&text, after, &format!("{after}{volumes}"))
}

fn inside(indent: usize, condition: &str, text: &str) -> String {
    let condition = value(condition);
    format!(
        "{:indent$}{{{{- if {condition} }}}}\n{text}{:indent$}{{{{- end }}}}\n",
        "", ""
    )
}

fn indented_when(condition: &str, text: &str) -> String {
    inside(8, condition, text)
}

/// Puts an expression where the text has a field's value, which it gives back.
fn lift(text: &str, name: &str) -> Result<(String, String)> {
    let line = format!(" {name}:\n");
    ensure!(text.matches(&line).count() == 1, "there is not one {name}");
    let (before, rest) = text.split_once(&line).context("counted")?;
    let depth = before.len() - before.rfind('\n').map_or(0, |at| at + 1) + 1;
    let belongs = |line: &&str| {
        let indent = line.len() - line.trim_start().len();
        indent > depth || indent == depth && line.trim_start().starts_with("- ")
    };
    let block: Vec<&str> = rest.lines().take_while(belongs).collect();
    let first = block.first().with_context(|| format!("{name} is empty"))?;
    let indent = first.len() - first.trim_start().len();
    let after = rest.lines().skip(block.len());
    let after = after.fold(String::new(), |text, line| text + line + "\n");
    let value = block
        .iter()
        .fold(String::new(), |text, line| text + &line[indent..] + "\n");
    let template = format!(
        "{before} {name}:\n{:indent$}{{{{- toYaml .Values.{name} | nindent {indent} }}}}\n{after}",
        ""
    );
    Ok((template, value))
}

/// Replaces what must be there once: a base that changed is not passed by.
fn instead(text: &str, old: &str, new: &str) -> Result<String> {
    let times = text.matches(old).count();
    ensure!(times == 1, "{old:?} is there {times} times, not once");
    Ok(text.replacen(old, new, 1))
}

fn about() -> String {
    let version = env!("CARGO_PKG_VERSION");
    format!(
        "# Made by `cargo xtask dist`.\n\
         apiVersion: v2\n\
         name: zt-agent\n\
         description: Who may talk to whom, by SPIFFE identity, enforced in the Linux kernel\n\
         type: application\n\
         version: {version}\n\
         appVersion: \"{version}\"\n\
         # The definitions of the resources use what came with it.\n\
         kubeVersion: \">=1.31.0-0\"\n"
    )
}

fn values(config: &str, lifted: &[(&str, String)]) -> String {
    let reference = image::reference();
    let (repository, _) = reference.rsplit_once(':').unwrap_or((&reference, ""));
    let mut text = format!(
        "# Made from {BASE} and {CONFIGURATION} by `cargo xtask dist`.\n\
         \n\
         image:\n  repository: {repository}\n  # Empty: the chart's version.\n  tag: \"\"\n  \
         pullPolicy: IfNotPresent\n\
         \n\
         # The Namespace with the label that pod security asks for: for `helm template`, \
         piped to\n# kubectl. Helm itself needs the namespace before it installs anything into it.\n\
         createNamespace: false\n\
         \n\
         # With the Prometheus operator: what it scrapes, alerts, a dashboard. The agents then\n\
         # listen on their nodes' addresses.\n\
         monitoring:\n  enabled: false\n\
         \n\
         # Enforces from the boot of a node on, before the agent's pod runs. Needs systemd.\n\
         boot:\n  enabled: false\n\
         \n\
         # Pods wait until they are governed. Needs a network that CNI chains: a .conflist in\n\
         # /etc/cni/net.d.\n\
         cni:\n  enabled: false\n\
         \n\
         # The agent's configuration.\n\
         config:\n{}\
         \n\
         # Other agents on the nodes that you label, beside those above on all others:\n\
         #   kubectl label node NAME zt.hanzo.ai/canary=true\n\
         # Whatever runs on two nodes has one replica under enforcement then. At the end set\n\
         # config.mode to enforce, and this to false.\n\
         canary:\n  enabled: false\n  \
         # What is different in their configuration.\n  config:\n    mode: enforce\n",
        indented(config)
    );
    for (name, value) in lifted {
        text += &format!("\n{name}:\n{}", indented(value));
    }
    text
}

fn indented(text: &str) -> String {
    text.lines().fold(String::new(), |all, line| {
        if line.is_empty() {
            all + "\n"
        } else {
            all + "  " + line + "\n"
        }
    })
}
