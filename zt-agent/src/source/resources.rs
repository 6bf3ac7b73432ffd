//! Policies that are resources of the cluster: which version of each counts.
//! Pure.
//!
//! Each is accepted or refused by itself. Of one whose latest version is
//! refused the version before stays, with the groups as they were then.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::kubernetes::objects::Uid;
use crate::{
    document::{SourceFile, policy},
    model::{Policy, PolicyMode, Problem, Severity},
    resource,
};

/// A policy or a group as the cluster has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    pub name: Arc<str>,
    pub uid: Uid,
    pub generation: i64,
    pub document: SourceFile,
}

/// All of them, each name once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    pub policies: Vec<Told>,
    pub groups: Vec<Told>,
}

/// The versions that count, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources(BTreeMap<Arc<str>, Taken>);

/// A version of a policy without errors.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Taken {
    uid: Uid,
    generation: i64,
    /// The policy's, and those of the groups that it names.
    documents: Vec<SourceFile>,
    policy: Policy,
}

/// The latest version of a resource is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// `serviceaccesspolicy/NAME`
    pub resource: String,
    /// Path of the field; empty: the resource as a whole.
    pub field: String,
    pub message: String,
}

/// What this node makes of a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub name: Arc<str>,
    pub uid: Uid,
    /// That is in force; 0: none.
    pub generation: i64,
    /// Whether its rules decide.
    pub enforced: bool,
    /// Why not, or why not the latest generation; empty: nothing is wrong.
    pub reason: String,
    /// Of the latest generation, if that is in force.
    pub rules: Option<u32>,
}

impl Listing {
    /// Decides about each. `before`: the versions that counted until now;
    /// `elsewhere`: the names of the policies that files have.
    #[must_use]
    pub fn decide(
        &self,
        before: &Resources,
        elsewhere: &BTreeSet<Arc<str>>,
    ) -> (Resources, Vec<Refused>) {
        let groups: Vec<SourceFile> = documents(&self.groups);
        let mut refused = refused_groups(&groups);
        let mut taken = BTreeMap::new();
        for (told, outcome) in self.policies.iter().zip(self.read(&groups, elsewhere)) {
            let name = told.name.clone();
            // One of the same name that was deleted is another one. Of two of
            // one name only the file's counts.
            let last = before.0.get(&name).filter(|last| last.uid == told.uid);
            let last = last.filter(|_| !elsewhere.contains(&name));
            let is_older = last.is_some_and(|last| told.generation < last.generation);
            let outcome = match outcome {
                Ok(_) if is_older => Err(vec![older(told)]),
                outcome => outcome,
            };
            match outcome {
                Ok(policy) => {
                    taken.insert(name, Taken::new(told, &groups, policy));
                }
                Err(refusal) => {
                    refused.extend(refusal.first().map(|problem| Refused::new(told, problem)));
                    taken.extend(last.map(|last| (name, last.clone())));
                }
            }
        }
        (Resources(taken), refused)
    }

    /// What each policy says, or what is wrong with it.
    fn read(
        &self,
        groups: &[SourceFile],
        elsewhere: &BTreeSet<Arc<str>>,
    ) -> Vec<Result<Policy, resource::Refusal>> {
        let is_clash = |told: &&Told| elsewhere.contains(&told.name);
        let own = self.policies.iter().filter(|told| !is_clash(told));
        let own: Vec<SourceFile> = own.map(|told| told.document.clone()).collect();
        let all = match resource::policies(groups, &own) {
            Ok(all) => all,
            Err(refusal) => own.iter().map(|_| Err(refusal.clone())).collect(),
        };
        let mut all = all.into_iter();
        let outcome = |told: &Told| {
            if is_clash(&told) {
                return Some(Err(vec![clash(told)]));
            }
            all.next()
        };
        self.policies.iter().filter_map(outcome).collect()
    }
}

fn documents(told: &[Told]) -> Vec<SourceFile> {
    told.iter().map(|told| told.document.clone()).collect()
}

fn refused_groups(groups: &[SourceFile]) -> Vec<Refused> {
    let problems = groups.iter().filter_map(|group| {
        let problem = resource::problems_of_group(group).into_iter().next()?;
        Some(Refused::of(&group.name, &problem))
    });
    problems.collect()
}

fn clash(told: &Told) -> Problem {
    Problem {
        severity: Severity::Error,
        at: told.document.position(1, 1),
        field: "metadata.name".to_owned(),
        message: "a policy file of this node has a policy of the same name, which counts instead"
            .to_owned(),
        hint: Some("rename one of them".to_owned()),
    }
}

/// What was changed since may have been changed to revoke it.
fn older(told: &Told) -> Problem {
    Problem {
        severity: Severity::Error,
        at: told.document.position(1, 1),
        field: "metadata.generation".to_owned(),
        message: "it is older than what was accepted of it: this node saw a later version, which the cluster has lost".to_owned(),
        hint: Some("delete it and create it anew if it is meant".to_owned()),
    }
}

impl Refused {
    fn new(told: &Told, problem: &Problem) -> Self {
        Self::of(&told.document.name, problem)
    }

    fn of(resource: &str, problem: &Problem) -> Self {
        let hint = problem.hint.as_deref().filter(|hint| !hint.is_empty());
        let hint = hint.map_or_else(String::new, |hint| format!("; {hint}"));
        Self {
            resource: resource.to_owned(),
            field: problem.field.clone(),
            message: format!("{}{hint}", problem.message),
        }
    }

    /// `FIELD: MESSAGE`
    #[must_use]
    pub fn why(&self) -> String {
        if self.field.is_empty() {
            return self.message.clone();
        }
        format!("{}: {}", self.field, self.message)
    }
}

impl Taken {
    fn new(told: &Told, groups: &[SourceFile], policy: Policy) -> Self {
        let named = resource::groups_named(&told.document);
        let groups = groups.iter().filter(|group| named.contains(&*group.name));
        Self {
            uid: told.uid,
            generation: told.generation,
            documents: [&told.document]
                .into_iter()
                .chain(groups)
                .cloned()
                .collect(),
            policy,
        }
    }
}

/// A [`Taken`] on disk.
#[derive(Serialize, Deserialize)]
struct Record {
    uid: String,
    generation: i64,
    /// Names and texts.
    documents: Vec<(String, String)>,
}

/// What was kept cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeptError {
    #[error("the accepted policies of the cluster that were kept cannot be read: {0}")]
    Unreadable(#[from] std::io::Error),
    #[error("the accepted policies of the cluster that were kept are damaged: {0}")]
    Damaged(#[from] serde_json::Error),
    #[error("a kept policy of the cluster is not understood any more: {0}")]
    Policy(String),
}

impl Resources {
    /// For [`parse`](Self::parse).
    ///
    /// # Errors
    /// Never, in practice.
    pub fn render(&self) -> Result<String, serde_json::Error> {
        let record = |taken: &Taken| Record {
            uid: taken.uid.to_string(),
            generation: taken.generation,
            documents: (taken.documents.iter())
                .map(|file| (file.name.to_string(), file.text.to_string()))
                .collect(),
        };
        serde_json::to_string(&self.0.values().map(record).collect::<Vec<_>>())
    }

    /// Reads what was kept.
    ///
    /// # Errors
    /// When any of it is not understood: without it a deny could be missing.
    pub fn parse(text: &str) -> Result<Self, KeptError> {
        let records: Vec<Record> = serde_json::from_str(text)?;
        let taken = records.into_iter().map(|record| {
            let taken = record.read()?;
            Ok((taken.policy.name.clone(), taken))
        });
        Ok(Self(taken.collect::<Result<_, KeptError>>()?))
    }

    /// Whether a version of this policy counts.
    #[must_use]
    pub fn has(&self, told: &Told) -> bool {
        self.version_of(told).is_some()
    }

    /// One of the same name that was deleted is another one.
    fn version_of(&self, told: &Told) -> Option<&Taken> {
        self.0.get(&told.name).filter(|one| one.uid == told.uid)
    }

    /// Without the policies of these names.
    #[must_use]
    pub fn without(&self, names: &BTreeSet<Arc<str>>) -> Self {
        let others = self.0.iter().filter(|(name, _)| !names.contains(*name));
        Self(
            others
                .map(|(name, one)| (name.clone(), one.clone()))
                .collect(),
        )
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// In the order of their names.
    pub fn policies(&self) -> impl Iterator<Item = &Policy> {
        self.0.values().map(|taken| &taken.policy)
    }

    /// Their documents, for excerpts.
    pub fn sources(&self) -> impl Iterator<Item = &SourceFile> {
        self.0.values().flat_map(|taken| &taken.documents)
    }

    /// What a node on which these are in force makes of each policy. `error`:
    /// why what was accepted is not in force; `short`: the policies of which not
    /// everything fits into the kernel's maps, and why; `unenforced`: why nothing
    /// that is decides here.
    #[must_use]
    pub fn verdicts(
        &self,
        listing: &Listing,
        refused: &[Refused],
        error: Option<&str>,
        short: Option<(&BTreeSet<Arc<str>>, &str)>,
        unenforced: Option<&str>,
    ) -> Vec<Verdict> {
        let groups = (listing.groups.iter()).map(|told| (&*told.document.name, &told.document));
        let groups: BTreeMap<&str, &SourceFile> = groups.collect();
        let verdict = |told: &Told| {
            let here = self.version_of(told);
            let is_latest = here.is_some_and(|one| one.is_latest(told, &groups));
            let mode = here.map(|one| one.policy.mode);
            let refusal = here.map_or_else(
                || refusal_of(&told.document.name, refused),
                |one| one.refusal(refused),
            );
            let short = short.filter(|(names, _)| names.contains(&told.name));
            let why = match (refusal, short, mode) {
                (Some(refusal), ..) => refusal,
                (None, _, _) if !is_latest => error.unwrap_or("not in force yet").to_owned(),
                (None, Some((_, why)), _) => why.to_owned(),
                (None, None, Some(PolicyMode::Audit)) => "the policy is in audit mode".to_owned(),
                _ => unenforced.unwrap_or_default().to_owned(),
            };
            let decides = mode == Some(PolicyMode::Enforce) && unenforced.is_none();
            Verdict {
                name: told.name.clone(),
                uid: told.uid,
                generation: here.map_or(0, |one| one.generation),
                enforced: decides && short.is_none(),
                reason: why,
                rules: here
                    .filter(|_| is_latest)
                    .and_then(|one| u32::try_from(one.policy.rules.len()).ok()),
            }
        };
        listing.policies.iter().map(verdict).collect()
    }
}

fn refusal_of(document: &str, refused: &[Refused]) -> Option<String> {
    let refused = refused.iter().find(|one| *one.resource == *document)?;
    Some(refused.why())
}

impl Taken {
    /// Whether it is what the cluster says now, of the groups that it names,
    /// too.
    fn is_latest(&self, told: &Told, groups: &BTreeMap<&str, &SourceFile>) -> bool {
        let Some((policy, named)) = self.documents.split_first() else {
            return false;
        };
        let is_same = |group: &SourceFile| groups.get(&*group.name) == Some(&group);
        *policy == told.document && named.iter().all(is_same)
    }

    /// Why its latest version is refused, or that of a group that it names.
    fn refusal(&self, refused: &[Refused]) -> Option<String> {
        let (policy, groups) = self.documents.split_first()?;
        let of_group = |group: &SourceFile| {
            let why = refusal_of(&group.name, refused)?;
            Some(format!("{}: {why}", group.name))
        };
        refusal_of(&policy.name, refused).or_else(|| groups.iter().find_map(of_group))
    }
}

impl Record {
    fn read(self) -> Result<Taken, KeptError> {
        let files = self.documents.into_iter();
        let documents: Vec<SourceFile> = files
            .map(|(name, text)| SourceFile::new(name, text))
            .collect();
        let wrong = |why: &str| {
            let name = documents.first().map_or("?", |file| &*file.name);
            KeptError::Policy(format!("{name}: {why}"))
        };
        let uid = self.uid.parse().map_err(|_| wrong("its UID is none"))?;
        let policies = policy::parse(&documents).map_err(|problems| {
            wrong(
                &problems
                    .first()
                    .map(ToString::to_string)
                    .unwrap_or_default(),
            )
        })?;
        let [policy] = <[Policy; 1]>::try_from(policies).map_err(|_| wrong("it is not one"))?;
        Ok(Taken {
            uid,
            generation: self.generation,
            documents,
            policy,
        })
    }
}

#[cfg(test)]
#[path = "resources_tests.rs"]
mod tests;
