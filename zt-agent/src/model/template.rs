//! From namespace and service account to a SPIFFE ID, by a template.
//!
//! Only names that the cluster's administrators control go into it: a pod's
//! owner chooses neither its namespace nor, without leave, another service
//! account. Two service accounts never get one identity: each name is a whole
//! segment of the path, and nothing is ever altered to fit.

use std::sync::Arc;

use super::spiffe::{SpiffeError, SpiffeId, SpiffePattern};

/// The form of the first documents of the project.
pub const DEFAULT: &str = "spiffe://{trustDomain}/{cluster}/{namespace}/{serviceAccount}";

const NAMESPACE: &str = "namespace";
const SERVICE_ACCOUNT: &str = "serviceAccount";

/// Why a text is no template. Written for the author of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    #[error(
        "{{{0}}} is no variable; there are {{trustDomain}}, {{cluster}}, {{namespace}} and {{serviceAccount}}"
    )]
    Unknown(String),
    #[error("a brace is not closed, or was never opened")]
    Braces,
    #[error(
        "{{{0}}} must be a whole segment of the path, like /{{{0}}}/, or two workloads could get one identity"
    )]
    NoSegment(&'static str),
    #[error("what comes of it is no SPIFFE ID: it {0}")]
    Spiffe(#[from] SpiffeError),
}

/// Why a service account has no identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("the {what} {name:?} can be no segment of a SPIFFE ID")]
    Segment { what: &'static str, name: String },
    #[error("its SPIFFE ID would be wrong: it {0}")]
    Spiffe(#[from] SpiffeError),
}

/// A template in which trust domain and cluster are filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    /// As it was written, for people.
    text: Arc<str>,
    segments: Arc<[Segment]>,
}

/// The service accounts that a pattern selects; `None`: every name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub namespace: Option<String>,
    pub account: Option<String>,
}

/// What stands between two slashes.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    /// The scheme, the trust domain, and what is always the same.
    Fixed(String),
    Namespace,
    ServiceAccount,
}

impl Template {
    /// Parses a template and fills in what is the same for every workload.
    ///
    /// # Errors
    /// When it names something that there is not, does not keep service
    /// accounts apart, or gives no SPIFFE IDs.
    pub fn parse(text: &str, trust_domain: &str, cluster: &str) -> Result<Self, TemplateError> {
        let segments = text
            .split('/')
            .map(|part| segment(part, trust_domain, cluster));
        let segments: Vec<Segment> = segments.collect::<Result<_, _>>()?;
        // The scheme and the trust domain come before the path.
        let path = segments.get(3..).unwrap_or_default();
        for (wanted, name) in [
            (Segment::Namespace, NAMESPACE),
            (Segment::ServiceAccount, SERVICE_ACCOUNT),
        ] {
            if !path.contains(&wanted) {
                return Err(TemplateError::NoSegment(name));
            }
        }
        let template = Self {
            text: text.into(),
            segments: segments.into(),
        };
        template.join("a", "b").parse::<SpiffeId>()?;
        Ok(template)
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The identity of a service account.
    ///
    /// # Errors
    /// When a name cannot be a segment of a path, or the ID is too long.
    pub fn identity(&self, namespace: &str, account: &str) -> Result<SpiffeId, NameError> {
        for (what, name) in [("namespace", namespace), ("service account", account)] {
            // A slash would make two segments of it.
            if name.is_empty() || name.contains('/') {
                let name = name.to_owned();
                return Err(NameError::Segment { what, name });
            }
        }
        Ok(self.join(namespace, account).parse()?)
    }

    /// Which of this cluster's service accounts a pattern selects; `None`: none
    /// of them.
    #[must_use]
    pub fn place(&self, pattern: &SpiffePattern) -> Option<Place> {
        let mut place = Place {
            namespace: None,
            account: None,
        };
        let mut wanted = pattern.as_str().split('/');
        for segment in &*self.segments {
            let name = match wanted.next()? {
                "**" => return Some(place),
                "*" => None,
                name => Some(name.to_owned()),
            };
            match (segment, name) {
                (Segment::Fixed(text), Some(name)) if *text != name => return None,
                (Segment::Fixed(_), _) => {}
                (Segment::Namespace, name) => place.namespace = name,
                (Segment::ServiceAccount, name) => place.account = name,
            }
        }
        wanted.next().is_none().then_some(place)
    }

    fn join(&self, namespace: &str, account: &str) -> String {
        let texts: Vec<&str> = (self.segments.iter())
            .map(|segment| match segment {
                Segment::Fixed(text) => text,
                Segment::Namespace => namespace,
                Segment::ServiceAccount => account,
            })
            .collect();
        texts.join("/")
    }
}

fn segment(part: &str, trust_domain: &str, cluster: &str) -> Result<Segment, TemplateError> {
    let mut text = String::new();
    let mut rest = part;
    while let Some((before, after)) = rest.split_once('{') {
        let (name, after) = after.split_once('}').ok_or(TemplateError::Braces)?;
        if before.contains('}') {
            return Err(TemplateError::Braces);
        }
        text += before;
        match name {
            "trustDomain" => text += trust_domain,
            "cluster" => text += cluster,
            NAMESPACE if part == "{namespace}" => return Ok(Segment::Namespace),
            SERVICE_ACCOUNT if part == "{serviceAccount}" => return Ok(Segment::ServiceAccount),
            NAMESPACE => return Err(TemplateError::NoSegment(NAMESPACE)),
            SERVICE_ACCOUNT => return Err(TemplateError::NoSegment(SERVICE_ACCOUNT)),
            other => return Err(TemplateError::Unknown(other.to_owned())),
        }
        rest = after;
    }
    if rest.contains('}') {
        return Err(TemplateError::Braces);
    }
    Ok(Segment::Fixed(text + rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<Template, TemplateError> {
        Template::parse(text, "hanzo.ai", "hanzo-k8s")
    }

    #[test]
    fn the_default_gives_the_seeds_identities() {
        let template = parse(DEFAULT).unwrap();
        let id = template.identity("hanzo", "gateway").unwrap();
        assert_eq!(id.as_str(), "spiffe://hanzo.ai/hanzo-k8s/hanzo/gateway");
        assert_eq!(template.as_str(), DEFAULT);
    }

    #[test]
    fn a_pattern_selects_service_accounts_by_the_template() {
        let template = parse(DEFAULT).unwrap();
        let place = |pattern: &str| {
            let pattern = format!("spiffe://{pattern}").parse().unwrap();
            let place = template.place(&pattern)?;
            Some((place.namespace, place.account))
        };
        let name = |text: &str| Some(text.to_owned());
        assert_eq!(
            place("hanzo.ai/hanzo-k8s/hanzo/iam"),
            Some((name("hanzo"), name("iam")))
        );
        assert_eq!(
            place("hanzo.ai/hanzo-k8s/hanzo/*"),
            Some((name("hanzo"), None))
        );
        assert_eq!(
            place("hanzo.ai/hanzo-k8s/hanzo/**"),
            Some((name("hanzo"), None))
        );
        assert_eq!(place("hanzo.ai/*/*/iam"), Some((None, name("iam"))));
        assert_eq!(place("hanzo.ai/**"), Some((None, None)));
        for other in [
            "lux.network/hanzo-k8s/hanzo/iam",
            "hanzo.ai/lux-k8s/hanzo/iam",
            "hanzo.ai/hanzo-k8s/hanzo",
            "hanzo.ai/hanzo-k8s/hanzo/iam/x",
            "hanzo.ai/hanzo-k8s/hanzo/iam/**",
        ] {
            assert_eq!(place(other), None, "{other}");
        }
    }

    #[test]
    fn the_form_that_others_use_is_a_template_too() {
        let template = parse("spiffe://{trustDomain}/ns/{namespace}/sa/{serviceAccount}").unwrap();
        let id = template.identity("hanzo", "iam").unwrap();
        assert_eq!(id.as_str(), "spiffe://hanzo.ai/ns/hanzo/sa/iam");
    }

    #[test]
    fn what_is_no_template_is_told_why() {
        use TemplateError as E;
        for (text, error) in [
            ("spiffe://td/{namespace}/{pod}", E::Unknown("pod".into())),
            ("spiffe://td/{namespace}/{}", E::Unknown(String::new())),
            ("spiffe://td/{namespace}/{serviceAccount", E::Braces),
            ("spiffe://td/{namespace}/serviceAccount}", E::Braces),
            (
                "spiffe://td/{namespace}/{{serviceAccount}}",
                E::Unknown("{serviceAccount".into()),
            ),
            ("spiffe://td/{namespace}", E::NoSegment("serviceAccount")),
            ("spiffe://td/{serviceAccount}", E::NoSegment("namespace")),
            (
                "spiffe://td/{namespace}-{serviceAccount}",
                E::NoSegment("namespace"),
            ),
            (
                "spiffe://td/{namespace}/x{serviceAccount}",
                E::NoSegment("serviceAccount"),
            ),
            (
                "spiffe://{namespace}/{serviceAccount}",
                E::NoSegment("namespace"),
            ),
            ("{namespace}/{serviceAccount}", E::NoSegment("namespace")),
            (
                "https://td/{namespace}/{serviceAccount}",
                E::Spiffe(SpiffeError::Scheme),
            ),
            (
                "spiffe://td/{namespace}//{serviceAccount}",
                E::Spiffe(SpiffeError::EmptySegment),
            ),
        ] {
            assert_eq!(parse(text), Err(error), "{text}");
        }
        assert!(Template::parse(DEFAULT, "Hanzo.AI", "c").is_err());
        assert!(Template::parse(DEFAULT, "td", "a b").is_err());
    }

    #[test]
    fn a_name_that_is_no_segment_is_refused_and_never_altered() {
        let template = parse(DEFAULT).unwrap();
        for name in ["", "a/b", "..", ".", "a b", "a%2fb", "ä", "a\0", "*"] {
            assert!(template.identity(name, "x").is_err(), "{name:?}");
            assert!(template.identity("x", name).is_err(), "{name:?}");
        }
        assert!(template.identity(&"a".repeat(2100), "x").is_err());
    }

    proptest! {
        #[test]
        fn two_service_accounts_never_get_one_identity(
            one in (".{0,6}", ".{0,6}"),
            other in (".{0,6}", "[a-z./-]{0,6}"),
        ) {
            let template = parse(DEFAULT).unwrap();
            let first = template.identity(&one.0, &one.1);
            let second = template.identity(&other.0, &other.1);
            if let (Ok(first), Ok(second)) = (first, second) {
                prop_assert_eq!(one == other, first == second);
            }
        }

        #[test]
        fn what_parses_as_a_template_gives_ids_that_end_in_whole_names(text in "(spiffe://td|[{}a-z/]{0,4}|/|\\{namespace\\}|\\{serviceAccount\\}){1,8}") {
            if let Ok(template) = parse(&text) {
                let id = template.identity("one", "two").unwrap();
                prop_assert!(id.segments().any(|segment| segment == "one"));
                prop_assert!(id.segments().any(|segment| segment == "two"));
            }
        }
    }
}
