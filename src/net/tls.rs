//! TLS at our own door: a certificate and its key, exchanged when their files change; and where we dial.
//!
//! Stands between the accept loop and HTTP. Running connections keep the certificate that they began with.
use std::{
    fs, io,
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use aws_lc_rs::digest;
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::{self, CryptoProvider},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::time;
use tokio_rustls::TlsAcceptor;

/// How often the files are looked at. Reading two small files is cheap, and finds every way of exchanging them: written
/// over, renamed over, or a link set to another folder, as orchestrators do with mounted secrets.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Where the certificate chain and the key are, as PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// The server's own certificate first.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// TLS where we dial: whoever the usual authorities vouch for.
///
/// # Errors
/// When the library cannot be set up.
pub fn client() -> Result<ClientConfig, String> {
    let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    let config = ClientConfig::builder_with_provider(Arc::new(crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{key}: cannot read `{}`: {source}", file.display())]
    Read {
        /// The setting.
        key: &'static str,
        /// Which file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{key}: `{}` holds {found}; wanted: {wanted}", file.display())]
    Content {
        /// The setting.
        key: &'static str,
        /// Which file.
        file: PathBuf,
        /// What it holds.
        found: String,
        /// What it should hold.
        wanted: &'static str,
    },
    /// The two do not belong together, or are of a kind that cannot be used.
    #[error("server.tls: the key in `{}` cannot serve the certificate in `{}`: {why}", key.display(), cert.display())]
    Pair {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Why.
        why: String,
    },
}

/// What serves TLS.
#[derive(Debug, Clone)]
pub struct Tls {
    files: Files,
    /// What the certificate in force was read from.
    loaded: Mark,
    current: Arc<Current>,
    config: Arc<ServerConfig>,
}

/// The certificate in force.
#[derive(Debug)]
struct Current {
    key: RwLock<Arc<CertifiedKey>>,
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.key.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

/// Both files, as they are on disk. Holds a key, so it is never printed, and never kept.
struct Content {
    cert: Vec<u8>,
    key: Vec<u8>,
}

/// Whether two contents are the same: SHA-256 of both files.
type Mark = [Vec<u8>; 2];

impl Content {
    fn mark(&self) -> Mark {
        [&self.cert, &self.key].map(|file| digest::digest(&digest::SHA256, file).as_ref().to_vec())
    }
}

impl Files {
    fn read(&self) -> Result<Content, TlsError> {
        let read =
            |key, file: &PathBuf| fs::read(file).map_err(|source| TlsError::Read { key, file: file.clone(), source });
        Ok(Content { cert: read("server.tls.cert", &self.cert)?, key: read("server.tls.key", &self.key)? })
    }

    fn parse(&self, content: &Content, provider: &CryptoProvider) -> Result<CertifiedKey, TlsError> {
        let Self { cert, key } = self;
        let bad_cert = |found: String| TlsError::Content {
            key: "server.tls.cert",
            file: cert.clone(),
            found,
            wanted: "PEM with at least one CERTIFICATE, the server's own first",
        };
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&content.cert)
            .collect::<Result<_, _>>()
            .map_err(|e| bad_cert(e.to_string()))?;
        if chain.is_empty() {
            return Err(bad_cert("no certificate".to_owned()));
        }
        let private = PrivateKeyDer::from_pem_slice(&content.key).map_err(|e| TlsError::Content {
            key: "server.tls.key",
            file: key.clone(),
            found: match e {
                rustls::pki_types::pem::Error::NoItemsFound => "no key that can be used".to_owned(),
                other => other.to_string(),
            },
            wanted: "PEM with one PRIVATE KEY (PKCS#8, PKCS#1 or SEC1), not encrypted",
        })?;
        CertifiedKey::from_der(chain, private, provider).map_err(|e| TlsError::Pair {
            cert: cert.clone(),
            key: key.clone(),
            why: e.to_string(),
        })
    }
}

impl Tls {
    /// Reads both files.
    ///
    /// # Errors
    /// Which file is wrong, what was found and what is wanted.
    pub fn load(files: Files) -> Result<Self, TlsError> {
        let provider = Arc::new(crypto::aws_lc_rs::default_provider());
        let content = files.read()?;
        let key = files.parse(&content, &provider)?;
        let current = Arc::new(Current { key: RwLock::new(Arc::new(key)) });
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("this provider has the default versions")
            .with_no_client_auth()
            .with_cert_resolver(current.clone());
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { files, loaded: content.mark(), current, config: Arc::new(config) })
    }

    /// What accepts connections.
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.config.clone())
    }

    /// Looks at the files from time to time, and takes what is new and good. Broken ones are told once, and the old
    /// certificate stays.
    pub async fn watch(self) {
        let mut seen = Some(self.loaded.clone());
        loop {
            time::sleep(LOOK_EVERY).await;
            let now = self.files.read();
            let mark = now.as_ref().ok().map(Content::mark);
            if mark == seen {
                continue;
            }
            match now.as_ref().map_err(ToString::to_string).and_then(|new| self.take(new).map_err(|e| e.to_string())) {
                Ok(()) => tracing::info!(cert = %self.files.cert.display(), "new certificate in force"),
                Err(error) => {
                    tracing::error!(%error, "the certificate's files have changed and cannot be used; the old one stays");
                }
            }
            // Also what failed: half of an exchange is told once, and its other half is another change.
            seen = mark;
        }
    }

    fn take(&self, content: &Content) -> Result<(), TlsError> {
        let key = self.files.parse(content, &crypto::aws_lc_rs::default_provider())?;
        *self.current.key.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(key);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::symlink, path::Path};

    use tokio::task::JoinSet;

    use super::*;

    /// A pair in a folder of its own, and the certificate.
    fn pair(folder: &Path) -> CertificateDer<'static> {
        fs::create_dir_all(folder).unwrap();
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        fs::write(folder.join("tls.crt"), made.cert.pem()).unwrap();
        fs::write(folder.join("tls.key"), made.signing_key.serialize_pem()).unwrap();
        made.cert.der().clone()
    }

    fn files(folder: &Path) -> Files {
        Files { cert: folder.join("tls.crt"), key: folder.join("tls.key") }
    }

    fn in_force(current: &Current) -> CertificateDer<'static> {
        current.key.read().unwrap().cert[0].clone()
    }

    #[tokio::test(start_paused = true)]
    async fn an_exchange_in_two_steps_is_taken_at_the_second() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = (pair(dir.path()), pair(&dir.path().join("new")));
        let tls = Tls::load(files(dir.path())).unwrap();
        let (current, mut tasks) = (tls.current.clone(), JoinSet::new());
        tasks.spawn(tls.watch());
        for (file, want) in [("tls.crt", &old), ("tls.key", &new)] {
            fs::copy(dir.path().join("new").join(file), dir.path().join(file)).unwrap();
            time::sleep(LOOK_EVERY * 2).await;
            assert!(in_force(&current) == *want, "{file}");
        }
        fs::write(dir.path().join("tls.key"), "nonsense").unwrap();
        time::sleep(LOOK_EVERY * 2).await;
        assert!(in_force(&current) == new, "a broken one changes nothing");
    }

    #[tokio::test(start_paused = true)]
    async fn a_link_that_is_set_to_another_folder_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b, link) = (dir.path().join("a"), dir.path().join("b"), dir.path().join("current"));
        let (old, new) = (pair(&a), pair(&b));
        symlink(&a, &link).unwrap();
        let tls = Tls::load(files(&link)).unwrap();
        let (current, mut tasks) = (tls.current.clone(), JoinSet::new());
        assert!(in_force(&current) == old);
        tasks.spawn(tls.watch());
        symlink(&b, dir.path().join("next")).unwrap();
        fs::rename(dir.path().join("next"), &link).unwrap();
        time::sleep(LOOK_EVERY * 2).await;
        assert!(in_force(&current) == new);
    }
}
