//! A certificate for development: made once, kept where the user's data is, and used again while it is good, so that clients
//! that were told to trust it go on trusting it.
use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    net::IpAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use aws_lc_rs::digest;
use rcgen::{CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use time::OffsetDateTime;

use crate::{
    config::TlsConfig,
    net::tls::{Files, Tls},
};

/// Browsers refuse longer ones (398 days).
const VALID: time::Duration = time::Duration::days(365);
/// Made anew when it is older than this.
const OLDEST: Duration = Duration::from_secs(300 * 86_400);

/// The certificate for a server that listens on `ip`, in `folder`, made if there is none that is good.
///
/// # Errors
/// When the folder or the files cannot be written.
pub fn certificate(folder: &Path, ip: IpAddr) -> anyhow::Result<TlsConfig> {
    let name = format!("self-signed-{}", ip.to_string().replace(':', "-"));
    let files = TlsConfig { cert: folder.join(format!("{name}.pem")), key: folder.join(format!("{name}.key")) };
    if !is_good(&files) {
        make(&files, ip).with_context(|| format!("cannot make a certificate in {}", folder.display()))?;
    }
    Ok(files)
}

/// Where certificates are kept: the user's data, or where there is none, the folder for temporary files.
pub fn folder(env: impl Fn(&str) -> Option<String>) -> PathBuf {
    let set = |name: &str| env(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = set("HOME").map(|home| home.join(".local/share"));
    set("XDG_DATA_HOME").or(home).unwrap_or_else(std::env::temp_dir).join("voxrelay")
}

/// SHA-256 of a certificate, as browsers and openssl print it.
///
/// # Errors
/// When the file holds none.
pub fn fingerprint(cert: &Path) -> anyhow::Result<String> {
    let cert = CertificateDer::from_pem_file(cert)?;
    let hash = digest::digest(&digest::SHA256, &cert);
    Ok(hash.as_ref().iter().map(|byte| format!("{byte:02X}")).collect::<Vec<_>>().join(":"))
}

fn is_good(files: &TlsConfig) -> bool {
    let made = fs::metadata(&files.cert).and_then(|meta| meta.modified());
    let young = made.is_ok_and(|at| SystemTime::now().duration_since(at).unwrap_or_default() < OLDEST);
    young && Tls::load(Files { cert: files.cert.clone(), key: files.key.clone() }).is_ok()
}

fn make(files: &TlsConfig, ip: IpAddr) -> anyhow::Result<()> {
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    if !ip.is_unspecified() && !ip.is_loopback() {
        names.push(ip.to_string());
    }
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "voxrelay, self-signed for development");
    let now = OffsetDateTime::now_utc();
    (params.not_before, params.not_after) = (now - time::Duration::days(1), now + VALID);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]; // some clients want to be told
    let key = KeyPair::generate()?;
    let cert = params.self_signed(&key)?;
    if let Some(folder) = files.cert.parent() {
        fs::create_dir_all(folder)?;
    }
    // Another process may be about to read them: each is whole when it gets its name.
    write(&files.key, &key.serialize_pem(), 0o600)?;
    write(&files.cert, &cert.pem(), 0o644)
}

fn write(file: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    let new = file.with_extension("new");
    let _ = fs::remove_file(&new); // of an earlier attempt
    OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?.write_all(text.as_bytes())?;
    Ok(fs::rename(&new, file)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_certificate_is_made_once_and_its_key_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let ip = "127.0.0.1".parse().unwrap();
        let files = certificate(dir.path(), ip).unwrap();
        let first = fingerprint(&files.cert).unwrap();
        assert_eq!(first.len(), 32 * 3 - 1);
        assert_eq!(fs::metadata(&files.key).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(certificate(dir.path(), ip).unwrap(), files);
        assert_eq!(fingerprint(&files.cert).unwrap(), first, "used again");
        fs::write(&files.key, "broken").unwrap();
        certificate(dir.path(), ip).unwrap();
        assert_ne!(fingerprint(&files.cert).unwrap(), first, "made anew");
    }

    #[test]
    fn it_is_kept_with_the_users_data() {
        let env = |set: &'static [(&str, &str)]| {
            move |name: &str| set.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        };
        assert_eq!(folder(env(&[("XDG_DATA_HOME", "/x"), ("HOME", "/h")])), Path::new("/x/voxrelay"));
        assert_eq!(folder(env(&[("HOME", "/h")])), Path::new("/h/.local/share/voxrelay"));
        assert_eq!(folder(env(&[])), std::env::temp_dir().join("voxrelay"));
    }
}
