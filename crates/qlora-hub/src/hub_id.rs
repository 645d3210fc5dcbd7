//! `organisation/name[@revision]`.

use std::fmt;
use std::path::PathBuf;

/// A repository of the Hugging Face hub, at a branch, tag or commit.
///
/// ```
/// # use qlora_hub::HubId;
/// let id = HubId::parse("Qwen/Qwen3-0.6B@v1").unwrap();
/// assert_eq!((id.organisation(), id.name(), id.revision()), ("Qwen", "Qwen3-0.6B", Some("v1")));
/// assert!(HubId::parse("../etc").is_none());
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubId {
    organisation: String,
    name: String,
    revision: Option<String>,
}

impl HubId {
    /// The id in `text`, or `None` when it has not the form `organisation/name[@revision]`.
    ///
    /// The parts are the letters, digits, `.`, `-`, `_` that the hub allows (revisions also `/`), and
    /// never `..`: an id is safe to use in a path and in a URL.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (repository, revision) = match text.split_once('@') {
            Some((repository, revision)) => (repository, Some(revision)),
            None => (text, None),
        };
        let (organisation, name) = repository.split_once('/')?;
        let revision_is_plain = revision.is_none_or(|r| r.split('/').all(is_plain));
        (is_plain(organisation) && is_plain(name) && revision_is_plain).then(|| Self {
            organisation: organisation.to_owned(),
            name: name.to_owned(),
            revision: revision.map(str::to_owned),
        })
    }

    /// The user or organisation.
    #[must_use]
    pub fn organisation(&self) -> &str {
        &self.organisation
    }

    /// The repository's name within its organisation.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The branch, tag or commit, when one was named.
    #[must_use]
    pub fn revision(&self) -> Option<&str> {
        self.revision.as_deref()
    }

    /// `organisation/name`.
    pub(crate) fn repository(&self) -> String {
        format!("{}/{}", self.organisation, self.name)
    }

    /// The branch, tag or commit: `main` when none was named.
    pub(crate) fn revision_or_main(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }

    /// The folder below the store's root: `organisation/name[@revision]`, a revision's `/` written `%2F`.
    pub(crate) fn folder(&self) -> PathBuf {
        let leaf = match &self.revision {
            Some(revision) => format!("{}@{}", self.name, revision.replace('/', "%2F")),
            None => self.name.clone(),
        };
        PathBuf::from(&self.organisation).join(leaf)
    }
}

impl fmt::Display for HubId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.organisation, self.name)?;
        match &self.revision {
            Some(revision) => write!(f, "@{revision}"),
            None => Ok(()),
        }
    }
}

/// Letters, digits, `.`, `-`, `_`, at most 128 of them, not starting with a dot (no `.`, `..`, hidden file).
fn is_plain(part: &str) -> bool {
    (1..=128).contains(&part.len())
        && !part.starts_with('.')
        && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::HubId;

    #[test]
    fn ids_that_could_leave_the_store_or_the_url_are_refused() {
        for bad in [
            "", "a", "a/", "/b", "a/b/c", "../b", "a/..", "a/.git", "a/b@", "a/b@../x", "a/b@x/..", "a b/c",
            "a/b?x", "a/b#x", "a\\b/c", "a/b%2F", "~/models", "./model", "a/b@x y",
        ] {
            assert!(HubId::parse(bad).is_none(), "{bad:?} was accepted");
        }
        assert!(HubId::parse(&format!("a/{}", "x".repeat(129))).is_none());
    }

    #[test]
    fn a_revision_with_a_slash_is_one_folder() {
        let id = HubId::parse("a/b@refs/pr/1").unwrap();
        assert_eq!(id.folder(), std::path::Path::new("a").join("b@refs%2Fpr%2F1"));
        assert_eq!(id.to_string(), "a/b@refs/pr/1");
        assert_eq!(HubId::parse("a/b").unwrap().revision_or_main(), "main");
    }
}
