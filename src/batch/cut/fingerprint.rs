//! What a file is known by: its content, whatever it is called and wherever it lies.
use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
};

use aws_lc_rs::digest::{Context, SHA256};
use tokio_util::sync::CancellationToken;

use super::CutError;
use crate::audio::decode::DecodeError;

/// The SHA-256 of a file's content. `stop`: it is not wanted any more.
///
/// # Errors
/// When there is no such file, or it cannot be read; when it was stopped.
pub fn fingerprint(path: impl AsRef<Path>, stop: &CancellationToken) -> Result<[u8; 32], CutError> {
    let path = path.as_ref();
    let unreadable = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => DecodeError::NotFound { path: path.into() },
        _ => DecodeError::Unreadable { path: path.into(), source },
    };
    let mut file = File::open(path).map_err(unreadable)?;
    let (mut context, mut block) = (Context::new(&SHA256), vec![0; 64 << 10]);
    loop {
        match file.read(&mut block) {
            Ok(0) => break,
            Ok(read) => context.update(block.get(..read).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(unreadable(error).into()),
        }
        if stop.is_cancelled() {
            return Err(CutError::Stopped { path: path.to_owned() });
        }
    }
    let mut hash = [0; 32];
    hash.iter_mut().zip(context.finish().as_ref()).for_each(|(to, from)| *to = *from);
    Ok(hash)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn hex(path: impl AsRef<Path>) -> String {
        fingerprint(path, &CancellationToken::new()).unwrap().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn content_is_what_counts() {
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = (folder.path().join("one.wav"), folder.path().join("other.mp3"));
        fs::write(&one, b"abc").unwrap();
        fs::write(&other, b"abc").unwrap();
        // FIPS 180-2, appendix B.1.
        let want = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!((hex(&one).as_str(), hex(&other).as_str()), (want, want));
        let long = vec![b'a'; 1_000_000];
        fs::write(&one, &long).unwrap();
        assert_eq!(hex(&one), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
        for (path, want) in [(folder.path().join("none"), "no such file"), (folder.path().into(), "cannot be read")] {
            assert!(fingerprint(path, &CancellationToken::new()).unwrap_err().to_string().contains(want), "{want}");
        }
        let stop = CancellationToken::new();
        stop.cancel();
        assert!(matches!(fingerprint(&other, &stop), Err(CutError::Stopped { .. })));
    }
}
