//! `ServiceAccessPolicy` and `IdentityGroup` documents.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    field::{Field, Fields, Sink, all},
    metadata::{self, Name},
    rule,
    selector::{self, Groups},
    text::SourceFile,
    yaml::{self, Yaml},
};
use crate::model::{Policy, PolicyMode, Problem, Rule, SpiffePattern};

pub(crate) const POLICY: &str = "ServiceAccessPolicy";
pub(crate) const GROUP: &str = "IdentityGroup";

pub(super) const MODES: [(&str, PolicyMode); 2] = [
    ("enforce", PolicyMode::Enforce),
    ("audit", PolicyMode::Audit),
];

/// Reads a set of files as one: groups are known in all of them, and a name
/// may be given once. Policies come in the order of the files.
///
/// # Errors
/// Everything that is wrong with any of them, in the order of the files.
pub fn parse(files: &[SourceFile]) -> Result<Vec<Policy>, Vec<Problem>> {
    let sink = Sink::default();
    let trees: Vec<Option<Vec<Yaml>>> = files.iter().map(|file| tree(file, &sink)).collect();
    let documents = open(files, &trees, &sink);
    let groups = groups(&documents, trees.iter().any(Option::is_none));
    let policies = policies(&documents, &groups);
    let finished = sink.finish(policies);
    finished
        .map(|(policies, _)| policies)
        .map_err(|problems| in_order(problems, files))
}

fn tree(file: &SourceFile, sink: &Sink) -> Option<Vec<Yaml>> {
    yaml::parse(file)
        .map_err(|problem| sink.note(*problem))
        .ok()
}

/// Groups are read before policies; people read from top to bottom.
fn in_order(mut problems: Vec<Problem>, files: &[SourceFile]) -> Vec<Problem> {
    let index: BTreeMap<&str, usize> = (files.iter().map(|file| &*file.name)).zip(0..).collect();
    problems.sort_by_key(|p| (index.get(&*p.at.file).copied(), p.at.line, p.at.column));
    problems
}

/// A document of one of our kinds, with a name that is its own or `None` if
/// that is bad.
struct Document<'a> {
    kind: &'static str,
    name: Option<Name<'a>>,
    spec: Option<Field<'a>>,
}

fn open<'a>(
    files: &'a [SourceFile],
    trees: &'a [Option<Vec<Yaml>>],
    sink: &'a Sink,
) -> Vec<Document<'a>> {
    let mut names = BTreeMap::new();
    files
        .iter()
        .zip(trees)
        .flat_map(|(file, tree)| tree.iter().flatten().map(move |yaml| (file, yaml)))
        .filter_map(|(file, yaml)| document(&Field::root(yaml, file, sink)))
        .inspect(|document| refuse_second(document, &mut names))
        .collect()
}

fn document<'a>(field: &Field<'a>) -> Option<Document<'a>> {
    let kind = metadata::kind(field, &[POLICY, GROUP])?;
    let fields = field.fields(&["apiVersion", "kind", "metadata", "spec"])?;
    let metadata = fields.required("metadata", "write `metadata: {name: NAME}`");
    Some(Document {
        kind,
        name: metadata.and_then(|field| metadata::name(&field)),
        spec: fields.required("spec", ""),
    })
}

type Names<'a> = BTreeMap<(&'static str, Arc<str>), Field<'a>>;

fn refuse_second<'a>(document: &Document<'a>, names: &mut Names<'a>) {
    let Some(name) = &document.name else { return };
    match names.get(&(document.kind, name.text.clone())) {
        Some(first) => name.field.error(
            format!("another {} is called {:?}", document.kind, name.text),
            format!("the other one is at {}; rename one of them", first.at()),
        ),
        None => {
            names.insert((document.kind, name.text.clone()), name.field.clone());
        }
    }
}

fn groups(documents: &[Document<'_>], incomplete: bool) -> Groups {
    let mut groups = Groups::default();
    groups.incomplete = incomplete;
    for document in documents.iter().filter(|document| document.kind == GROUP) {
        let members = document.spec.as_ref().and_then(members);
        match &document.name {
            // A bad member is an error already; the group is no unknown one.
            Some(name) => {
                let members = members.unwrap_or_default();
                groups.members.insert(name.text.clone(), members);
            }
            None => groups.incomplete = true,
        }
    }
    groups
}

fn members(spec: &Field<'_>) -> Option<Vec<SpiffePattern>> {
    let fields = spec.fields(&["members"])?;
    let members = fields.required("members", "`members: []` is a group of nobody")?;
    all(members.elements()?.iter().map(selector::pattern))
}

fn policies(documents: &[Document<'_>], groups: &Groups) -> Option<Vec<Policy>> {
    let policies = documents.iter().filter(|document| document.kind == POLICY);
    all(policies.map(|document| policy(document, groups)))
}

fn policy(document: &Document<'_>, groups: &Groups) -> Option<Policy> {
    let fields = document
        .spec
        .as_ref()
        .and_then(|spec| spec.fields(&["mode", "defaultAction", "rules"]))?;
    let mode = fields.or("mode", PolicyMode::Enforce, |field| field.word(&MODES));
    if let Some(field) = fields.optional("defaultAction") {
        check_default(&field);
    }
    let rules = rules(&fields, groups);
    let name = document.name.as_ref()?;
    Some(Policy {
        name: name.text.clone(),
        mode: mode?,
        rules: rules?.into(),
        at: name.field.at(),
    })
}

fn check_default(field: &Field<'_>) {
    match field.text() {
        Some("DENY") | None => {}
        Some("ALLOW") => field.error(
            "ALLOW is refused: what no rule allows is always denied, or a forgotten rule would be an open door",
            "remove the field or write DENY; to watch without denying, set `mode: audit` for the node or a workload",
        ),
        Some(other) => field.error(format!("{other:?} is not DENY"), "write DENY"),
    }
}

fn rules(spec: &Fields<'_>, groups: &Groups) -> Option<Vec<Rule>> {
    let field = spec.required("rules", "`rules: []` is a policy without rules")?;
    let elements = field.elements()?;
    all((1u32..)
        .zip(&elements)
        .map(|(number, element)| rule::rule(element, number, groups)))
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
