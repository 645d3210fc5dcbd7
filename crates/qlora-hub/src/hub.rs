//! The Hugging Face hub: which files a repository has, and their bytes.
//!
//! Two addresses are used. `/api/models/{repository}/revision/{revision}?blobs=true` gives the commit and,
//! per file, the size and (for weights, kept in LFS) the SHA-256; `/{repository}/resolve/{commit}/{file}`
//! gives the bytes, usually by a redirect to a content server. Files go through a folder named after the
//! commit, so that an interrupted download continues and never mixes two versions.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use ureq::config::RedirectAuthHeaders;

use crate::digest::sha256_of;
use crate::error::chain;
use crate::{FetchProgress, HubError, HubId};

/// The largest answer of the API that is read: a listing or an index of shards.
const MAX_JSON_BYTES: u64 = 64 << 20;
const TRIES_PER_FILE: usize = 3;

/// Files beside the weights that loading, tokenizing or generating needs.
const SIDE_FILES: &[&str] = &[
    "config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.json",
    "chat_template.jinja",
];
/// Where chat templates beside the default one are, as `NAME.jinja`.
const TEMPLATE_FOLDER: &str = "additional_chat_templates";
const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";

/// A client of one hub.
#[derive(Debug, Clone)]
pub(crate) struct Hub {
    endpoint: String,
    token: Option<String>,
    agent: ureq::Agent,
}

/// What a repository holds; it decides the addresses.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    Model,
    Dataset,
}

impl Kind {
    /// The repository as it stands in the address of a file.
    fn path(self, id: &HubId) -> String {
        match self {
            Self::Model => id.repository(),
            Self::Dataset => format!("datasets/{}", id.repository()),
        }
    }

    fn api(self) -> &'static str {
        match self {
            Self::Model => "models",
            Self::Dataset => "datasets",
        }
    }
}

/// A repository's listing at one commit.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Listing {
    /// The commit.
    pub(crate) sha: String,
    #[serde(default)]
    pub(crate) siblings: Vec<RemoteFile>,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
pub(crate) struct RemoteFile {
    pub(crate) rfilename: String,
    size: Option<u64>,
    lfs: Option<Lfs>,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
struct Lfs {
    sha256: String,
    size: u64,
}

#[derive(Debug, Deserialize)]
struct ShardIndex {
    weight_map: std::collections::BTreeMap<String, String>,
}

impl RemoteFile {
    fn bytes(&self) -> Option<u64> {
        self.lfs.as_ref().map(|lfs| lfs.size).or(self.size)
    }
}

impl Hub {
    /// `patience` bounds the time until the first answer, so that being offline shows at once; a download
    /// that has begun may take long, but not stall.
    pub(crate) fn new(endpoint: &str, token: Option<String>, patience: Duration) -> Self {
        let config = ureq::Agent::config_builder()
            .timeout_resolve(Some(patience))
            .timeout_connect(Some(patience))
            .timeout_recv_response(Some(patience * 4))
            .timeout_per_read(Some(Duration::from_secs(60)))
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .http_status_as_error(false)
            .user_agent(concat!("qlora-hub/", env!("CARGO_PKG_VERSION")))
            .build();
        Self { endpoint: endpoint.trim_end_matches('/').to_owned(), token, agent: config.into() }
    }

    /// The repository's files at the id's revision.
    pub(crate) fn listing(&self, kind: Kind, id: &HubId) -> Result<Listing, HubError> {
        let revision = id.revision_or_main().replace('/', "%2F");
        let (endpoint, api, repository) = (&self.endpoint, kind.api(), id.repository());
        let url = format!("{endpoint}/api/{api}/{repository}/revision/{revision}?blobs=true");
        let listing: Listing = self.json(&url)?;
        let is_commit = listing.sha.len() >= 7 && listing.sha.bytes().all(|b| b.is_ascii_hexdigit());
        if !is_commit {
            return Err(repository_error(&url, "the answer names no commit"));
        }
        Ok(listing)
    }

    /// Downloads what a model needs of the listing into `folder`, which may hold the files of an earlier,
    /// interrupted call for the same commit.
    pub(crate) fn download(
        &self,
        id: &HubId,
        listing: &Listing,
        folder: &Path,
        progress: &mut dyn FetchProgress,
    ) -> Result<(), HubError> {
        let mut wanted = side_files(listing);
        if !wanted.iter().any(|file| file.rfilename == "config.json") {
            return Err(repository_error(
                &id.to_string(),
                "the repository has no config.json: not a model that can be trained",
            ));
        }
        wanted.extend(self.weight_files(id, listing, folder, progress)?);
        for file in wanted {
            self.download_file(Kind::Model, id, listing, &file, folder, progress)?;
        }
        Ok(())
    }

    fn weight_files(
        &self,
        id: &HubId,
        listing: &Listing,
        folder: &Path,
        progress: &mut dyn FetchProgress,
    ) -> Result<Vec<RemoteFile>, HubError> {
        let place = id.to_string();
        if let Some(index) = find(listing, INDEX) {
            let path = self.download_file(Kind::Model, id, listing, index, folder, progress)?;
            let bytes = std::fs::read(&path).map_err(io("read", &path))?;
            let index: ShardIndex = serde_json::from_slice(&bytes)
                .map_err(|e| repository_error(&place, &format!("{INDEX} is not an index of shards: {e}")))?;
            let mut names: Vec<String> = index.weight_map.into_values().collect();
            names.sort_unstable();
            names.dedup();
            return names
                .iter()
                .map(|name| {
                    find(listing, name).cloned().ok_or_else(|| {
                        repository_error(&place, &format!("{INDEX} names {name}, which the repository lacks"))
                    })
                })
                .collect();
        }
        let weights: Vec<RemoteFile> = match find(listing, SINGLE) {
            Some(single) => vec![single.clone()],
            None => top_level(listing).filter(|f| f.rfilename.ends_with(".safetensors")).cloned().collect(),
        };
        if weights.is_empty() {
            return Err(repository_error(
                &place,
                "the repository has no .safetensors file; of a GGUF repository download one file and pass its path",
            ));
        }
        Ok(weights)
    }

    /// One file into `folder`: skipped when complete, continued when partial, checked against the
    /// announced size and SHA-256.
    pub(crate) fn download_file(
        &self,
        kind: Kind,
        id: &HubId,
        listing: &Listing,
        file: &RemoteFile,
        folder: &Path,
        progress: &mut dyn FetchProgress,
    ) -> Result<PathBuf, HubError> {
        let path = folder.join(&file.rfilename);
        if path.is_file() {
            return Ok(path);
        }
        let part = folder.join(format!("{}.part", file.rfilename));
        if let Some(parent) = part.parent() {
            std::fs::create_dir_all(parent).map_err(io("create", parent))?;
        }
        let name = in_address(&file.rfilename);
        let url = format!("{}/{}/resolve/{}/{name}", self.endpoint, kind.path(id), listing.sha);
        progress.begin(&file.rfilename, file.bytes().unwrap_or(0));
        let mut result = Ok(());
        for attempt in 1..=TRIES_PER_FILE {
            result = self.append(&url, &part, file.bytes(), progress);
            match &result {
                Err(error) if attempt < TRIES_PER_FILE && is_transient(error) => {
                    progress.message(&format!("{}; trying again", chain(error)));
                    std::thread::sleep(Duration::from_secs(1));
                }
                _ => break,
            }
        }
        progress.end();
        result?;
        check(&part, file, &url)?;
        std::fs::rename(&part, &path).map_err(io("rename", &part))?;
        Ok(path)
    }

    /// Requests what `part` lacks and appends it.
    fn append(
        &self,
        url: &str,
        part: &Path,
        expected: Option<u64>,
        progress: &mut dyn FetchProgress,
    ) -> Result<(), HubError> {
        let have = std::fs::metadata(part).map_or(0, |metadata| metadata.len());
        if expected == Some(have) {
            progress.advance(have);
            return Ok(());
        }
        let response = self.get(url, have)?;
        let continues = response.status().as_u16() == 206;
        let mut file: File = OpenOptions::new()
            .create(true)
            .write(true)
            .append(continues)
            .truncate(!continues)
            .open(part)
            .map_err(io("write", part))?;
        let kept = if continues { have } else { 0 };
        progress.advance(kept);
        // One byte more than announced is enough to tell a wrong file; a server can't fill the disk.
        let limit = expected.map_or(u64::MAX, |bytes| bytes.saturating_sub(kept).saturating_add(1));
        let mut body = response.into_body().into_reader().take(limit);
        let mut buffer = vec![0_u8; 1 << 18];
        loop {
            let count = body.read(&mut buffer).map_err(|e| HubError::Request {
                url: url.to_owned(),
                source: Box::new(ureq::Error::Io(e)),
            })?;
            if count == 0 {
                break;
            }
            file.write_all(&buffer[..count]).map_err(io("write", part))?;
            progress.advance(count as u64);
        }
        file.sync_all().map_err(io("write", part))
    }

    fn json<T: serde::de::DeserializeOwned>(&self, url: &str) -> Result<T, HubError> {
        let text = self
            .get(url, 0)?
            .into_body()
            .into_with_config()
            .limit(MAX_JSON_BYTES)
            .read_to_vec()
            .map_err(|source| HubError::Request { url: url.to_owned(), source: Box::new(source) })?;
        serde_json::from_slice(&text)
            .map_err(|e| repository_error(url, &format!("the answer is not the expected JSON: {e}")))
    }

    fn get(&self, url: &str, from_byte: u64) -> Result<ureq::http::Response<ureq::Body>, HubError> {
        let mut request = self.agent.get(url);
        if let Some(token) = &self.token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        if from_byte > 0 {
            request = request.header("Range", format!("bytes={from_byte}-"));
        }
        let response = request
            .call()
            .map_err(|source| HubError::Request { url: url.to_owned(), source: Box::new(source) })?;
        let status = response.status().as_u16();
        if response.status().is_success() {
            return Ok(response);
        }
        let gated = response.headers().get("x-error-code").is_some_and(|code| code == "GatedRepo");
        let advice = match status {
            401 | 403 if gated && self.token.is_some() => {
                "a gated repository, which the token has no access to: accept its licence on the hub as the owner of the \
                 token, and let the token read gated repositories"
            }
            401 | 403 if gated => {
                "a gated repository: accept its licence on the hub, then set HF_TOKEN or log in by `hf auth login`"
            }
            401 | 403 => {
                "no such repository, or a private or gated one: accept its licence on the hub, then set HF_TOKEN or log in \
                 by `hf auth login`"
            }
            404 => "no such repository, revision or file; check the spelling",
            416 => "the partial file does not fit; fetch again",
            429 => "too many requests; wait a few minutes",
            500.. => "the hub has a problem; try again later",
            _ => "unexpected; check HF_ENDPOINT",
        };
        Err(HubError::Status { url: url.to_owned(), status, advice })
    }
}

/// A path as it stands in an address.
fn in_address(path: &str) -> String {
    let mut address = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"/._-~=".contains(&byte) {
            address.push(char::from(byte));
        } else {
            address.push_str(&format!("%{byte:02X}"));
        }
    }
    address
}

/// Whether the network, and not the repository, is at fault.
fn is_transient(error: &HubError) -> bool {
    match error {
        HubError::Request { .. } => true,
        HubError::Status { status, .. } => *status >= 500 || *status == 429,
        _ => false,
    }
}

fn check(part: &Path, file: &RemoteFile, url: &str) -> Result<(), HubError> {
    let found = std::fs::metadata(part).map_err(io("read", part))?.len();
    let corrupt = |property, expected: String, found: String| {
        // A failure to delete shows again, and better, at the next download.
        let _ = std::fs::remove_file(part);
        HubError::Corrupt { file: file.rfilename.clone(), origin: url.to_owned(), property, expected, found }
    };
    if let Some(expected) = file.bytes()
        && expected != found
    {
        return Err(corrupt("size", expected.to_string(), found.to_string()));
    }
    if let Some(lfs) = &file.lfs {
        let found = sha256_of(part)?;
        if !found.eq_ignore_ascii_case(&lfs.sha256) {
            return Err(corrupt("SHA-256", lfs.sha256.clone(), found));
        }
    }
    Ok(())
}

/// Files in the repository's root under a plain name: nothing that could leave the folder.
fn top_level(listing: &Listing) -> impl Iterator<Item = &RemoteFile> {
    listing.siblings.iter().filter(|file| is_plain(&file.rfilename))
}

fn is_plain(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with('.')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

fn is_template(name: &str) -> bool {
    name.strip_prefix(TEMPLATE_FOLDER)
        .and_then(|rest| rest.strip_prefix('/'))
        .is_some_and(|name| is_plain(name) && name.ends_with(".jinja"))
}

fn side_files(listing: &Listing) -> Vec<RemoteFile> {
    top_level(listing)
        .filter(|f| SIDE_FILES.contains(&f.rfilename.as_str()) || f.rfilename.starts_with("tokenizer"))
        .chain(listing.siblings.iter().filter(|f| is_template(&f.rfilename)))
        .cloned()
        .collect()
}

fn find<'a>(listing: &'a Listing, name: &str) -> Option<&'a RemoteFile> {
    top_level(listing).find(|file| file.rfilename == name)
}

fn repository_error(place: &str, problem: &str) -> HubError {
    HubError::Repository { place: place.to_owned(), problem: problem.to_owned() }
}

fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> HubError {
    move |source| HubError::Io { action, path: path.to_owned(), source }
}
