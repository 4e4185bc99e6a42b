//! From an item's source to a file that can be read: itself, or a copy that is gone when nobody holds it any more.
//!
//! A URL that somebody gave is asked wherever it is, in a company's own network too. Where its answer sends us on to is the
//! server's word and no longer theirs: another host must then be a public one ([`guard`]), and TLS is not left again.
use std::{
    fmt,
    future::Future,
    io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt as _, stream::BoxStream};
use reqwest::{Client, Response, StatusCode, Url, header};
use tempfile::{NamedTempFile, TempPath};
use tokio::{io::AsyncWriteExt as _, runtime::Handle};

use super::{Folders, Found, Listed, Unread, is_url};
use crate::{net::tls, upstream::rest::retry_after, webhook::guard};

/// A connection that takes longer is none.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// A server that sends nothing for so long is gone.
const SILENCE: Duration = Duration::from_secs(30);
/// So often may an answer send us on.
const HOPS: usize = 5;
/// Longest extension that a copy keeps, characters.
const EXTENSION: usize = 8;

/// What a copy may be.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Largest file that is copied, bytes.
    pub max_bytes: u64,
    /// Where copies are made.
    pub folder: PathBuf,
}

/// A file that can be read.
#[derive(Debug)]
pub struct Opened {
    path: PathBuf,
    /// Removed with it.
    _copy: Option<TempPath>,
}

impl Opened {
    /// Where it is, as long as this is held.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Why there is no file.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// It is not there.
    #[error("no such file")]
    Absent,
    /// It may not be read.
    #[error("permission denied")]
    Denied,
    /// It is larger than what is copied.
    #[error("larger than {most} bytes")]
    TooLarge {
        /// Allowed.
        most: u64,
    },
    /// The server said something else.
    #[error("the server answered with status {}", status.as_u16())]
    Status {
        /// What it said.
        status: StatusCode,
        /// And when it may be asked again.
        after: Option<Duration>,
    },
    /// It sends us where we do not go.
    #[error("the server sends us to {to}: {why}")]
    Redirect {
        /// Where.
        to: String,
        /// Why not.
        why: &'static str,
    },
    /// It was not reached, or broke off.
    #[error("not reached: {0}")]
    Broken(String),
    /// No room for a copy, for instance.
    #[error("cannot be copied: {0}")]
    Copy(#[source] io::Error),
    /// Nothing that this program can read from.
    #[error("{0}")]
    Unknown(String),
}

impl FetchError {
    /// Another try may do.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Broken(_) => true,
            Self::Status { status, .. } => *status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error(),
            _ => false,
        }
    }

    /// For programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Denied => "denied",
            Self::TooLarge { .. } => "too_large",
            Self::Status { .. } | Self::Redirect { .. } => "source_refused",
            Self::Broken(_) => "source_unreachable",
            Self::Copy(_) => "no_room",
            Self::Unknown(_) => "source_unknown",
        }
    }
}

/// A file that is on its way.
pub type Opening<'a> = Pin<Box<dyn Future<Output = Result<Opened, FetchError>> + Send + 'a>>;

/// Where files are.
pub trait Source: fmt::Debug + Send + Sync {
    /// Makes a file of `place` that can be read.
    fn open<'a>(&'a self, place: &'a str) -> Opening<'a>;
}

/// All of them, by what a place begins with. Clones are the same ones.
#[derive(Debug, Clone)]
pub struct Sources {
    web: Web,
    #[cfg(feature = "s3")]
    s3: Arc<super::s3::Buckets>,
}

impl Sources {
    /// With the certificates that the relay trusts.
    ///
    /// # Errors
    /// When the library cannot be set up.
    pub fn new(limits: Limits) -> Result<Self, String> {
        let tls = tls::client()?;
        let client = || {
            Client::builder()
                .tls_backend_preconfigured(tls.clone())
                .redirect(reqwest::redirect::Policy::none())
                .referer(false)
                .connect_timeout(CONNECT_WITHIN)
                .read_timeout(SILENCE)
                .user_agent(concat!("voxrelay/", env!("CARGO_PKG_VERSION")))
        };
        let any = client().build().map_err(|e| e.to_string())?;
        // A proxy would dial for us, past the guard.
        let public = client().no_proxy().dns_resolver(Arc::new(guard::Public)).build().map_err(|e| e.to_string())?;
        Ok(Self {
            #[cfg(feature = "s3")]
            s3: Arc::new(super::s3::Buckets::new(any.clone(), limits.clone())),
            web: Web { any, public, limits },
        })
    }

    #[cfg(all(test, feature = "s3"))]
    pub(super) fn buckets(&self) -> &super::s3::Buckets {
        &self.s3
    }

    /// Whether a place is many files, which [`Remote`] names.
    pub(super) fn is_folder(place: &str) -> bool {
        place.starts_with("s3://") && place.ends_with('/')
    }

    /// The files of a place that is a folder elsewhere, as they come.
    #[cfg(feature = "s3")]
    fn list(&self, place: &str) -> BoxStream<'static, Result<Listed, FetchError>> {
        self.s3.list(place)
    }

    /// The same, where none is known.
    #[cfg(not(feature = "s3"))]
    fn list(&self, _: &str) -> BoxStream<'static, Result<Listed, FetchError>> {
        Box::pin(futures_util::stream::iter([Err(without_s3())]))
    }
}

/// Folders elsewhere, for a thread that may wait for their answers.
#[derive(Debug, Clone)]
pub struct Remote {
    sources: Sources,
    runtime: Handle,
}

impl Remote {
    /// Those of `sources`, which are asked on `runtime`. Not for a thread of the runtime itself.
    pub fn new(sources: Sources, runtime: Handle) -> Self {
        Self { sources, runtime }
    }
}

impl Folders for Remote {
    fn list(&self, place: &str) -> Box<dyn Iterator<Item = Found>> {
        let (runtime, place) = (self.runtime.clone(), place.to_owned());
        let mut files = Some(self.sources.list(&place));
        Box::new(std::iter::from_fn(move || {
            let found = runtime.block_on(files.as_mut()?.next())?;
            Some(found.map_err(|error| {
                files = None;
                Unread { place: place.clone(), file: place.clone(), reason: error.to_string() }
            }))
        }))
    }
}

impl Source for Sources {
    fn open<'a>(&'a self, place: &'a str) -> Opening<'a> {
        if !is_url(place) {
            return Box::pin(std::future::ready(local(Path::new(place))));
        }
        if place.starts_with("s3://") {
            #[cfg(feature = "s3")]
            return self.s3.open(place);
            #[cfg(not(feature = "s3"))]
            return Box::pin(std::future::ready(Err(without_s3())));
        }
        self.web.open(place)
    }
}

#[cfg(not(feature = "s3"))]
fn without_s3() -> FetchError {
    FetchError::Unknown("this voxrelay was built without S3; build it with `--features s3`".to_owned())
}

fn local(path: &Path) -> Result<Opened, FetchError> {
    match path.metadata() {
        Ok(there) if there.is_file() => Ok(Opened { path: path.to_owned(), _copy: None }),
        Ok(_) => Err(FetchError::Unknown("it is not a file".to_owned())),
        Err(error) => Err(match error.kind() {
            io::ErrorKind::NotFound => FetchError::Absent,
            io::ErrorKind::PermissionDenied => FetchError::Denied,
            _ => FetchError::Broken(error.to_string()),
        }),
    }
}

/// HTTP servers.
#[derive(Debug, Clone)]
struct Web {
    any: Client,
    public: Client,
    limits: Limits,
}

impl Source for Web {
    fn open<'a>(&'a self, place: &'a str) -> Opening<'a> {
        Box::pin(async move {
            let url = Url::parse(place).map_err(|error| FetchError::Unknown(format!("not a URL: {error}")))?;
            let mut response = self.ask(url).await?;
            let most = self.limits.max_bytes;
            if response.content_length().is_some_and(|length| length > most) {
                return Err(FetchError::TooLarge { most });
            }
            let mut copy = Copy::new(&self.limits, response.url().path()).await?;
            while let Some(piece) = response.chunk().await.map_err(broken)? {
                copy.write(&piece).await?;
            }
            copy.done().await
        })
    }
}

impl Web {
    async fn ask(&self, first: Url) -> Result<Response, FetchError> {
        let (mut url, mut client) = (first, &self.any);
        for _ in 0..=HOPS {
            let response = client.get(url.clone()).send().await.map_err(broken)?;
            let status = response.status();
            if status.is_success() {
                return Ok(response);
            }
            let to = response.headers().get(header::LOCATION).and_then(|to| to.to_str().ok());
            let Some(to) = to.filter(|_| status.is_redirection()) else {
                let after = retry_after(response.headers());
                return Err(match status {
                    StatusCode::NOT_FOUND | StatusCode::GONE => FetchError::Absent,
                    StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => FetchError::Denied,
                    status => FetchError::Status { status, after },
                });
            };
            let refused = |why| FetchError::Redirect { to: to.chars().take(200).collect(), why };
            let next = url.join(to).map_err(|_| refused("not a URL"))?;
            match (url.scheme(), next.scheme()) {
                (_, "https") | ("http", "http") => {}
                ("https", "http") => return Err(refused("it would leave TLS")),
                _ => return Err(refused("neither http nor https")),
            }
            let same = (url.host_str(), url.port_or_known_default()) == (next.host_str(), next.port_or_known_default());
            if !same {
                if guard::is_private_host(&next) {
                    return Err(refused("not a public address"));
                }
                client = &self.public;
            }
            url = next;
        }
        Err(FetchError::Broken(format!("it was sent on more than {HOPS} times")))
    }
}

/// With what it comes from, and without the URL, which may have a secret in it.
fn broken(error: reqwest::Error) -> FetchError {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(inner) = cause {
        text = inner.to_string();
        cause = inner.source();
    }
    FetchError::Broken(text)
}

/// A copy that is being made.
pub(super) struct Copy {
    file: tokio::fs::File,
    path: TempPath,
    left: u64,
    most: u64,
}

impl Copy {
    /// `name`: where its extension is taken from.
    pub(super) async fn new(limits: &Limits, name: &str) -> Result<Self, FetchError> {
        let extension = Path::new(name).extension().and_then(|extension| extension.to_str());
        let plain = |text: &&str| text.len() <= EXTENSION && text.bytes().all(|b| b.is_ascii_alphanumeric());
        let suffix = extension.filter(plain).map(|extension| format!(".{extension}")).unwrap_or_default();
        let made = tempfile::Builder::new().prefix("voxrelay-").suffix(&suffix).tempfile_in(&limits.folder);
        let (file, path) = made.map(NamedTempFile::into_parts).map_err(FetchError::Copy)?;
        Ok(Self { file: tokio::fs::File::from_std(file), path, left: limits.max_bytes, most: limits.max_bytes })
    }

    pub(super) async fn write(&mut self, piece: &[u8]) -> Result<(), FetchError> {
        let bytes = u64::try_from(piece.len()).unwrap_or(u64::MAX);
        self.left = self.left.checked_sub(bytes).ok_or(FetchError::TooLarge { most: self.most })?;
        self.file.write_all(piece).await.map_err(FetchError::Copy)
    }

    pub(super) async fn done(mut self) -> Result<Opened, FetchError> {
        self.file.flush().await.map_err(FetchError::Copy)?;
        Ok(Opened { path: self.path.to_path_buf(), _copy: Some(self.path) })
    }
}
