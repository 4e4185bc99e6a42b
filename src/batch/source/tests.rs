use std::{
    collections::BTreeSet,
    fs,
    io::{self, Cursor},
    os::unix::fs::{PermissionsExt as _, symlink},
};

use axum::{Router, body::Body, http::StatusCode, response::Redirect, routing::get};
use futures_util::stream;
use tokio::{net::TcpListener, task::JoinSet};

use super::*;

const WAV: &[u8] = b"RIFF\x24\0\0\0WAVEfmt ";

/// A folder with all that is found in folders.
fn tree() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for folder in ["one/deep", "two", ".hidden", "empty"] {
        fs::create_dir_all(at(folder)).unwrap();
    }
    for (name, bytes) in [
        ("one/same.wav", WAV),
        ("two/same.wav", WAV),
        ("one/deep/call.MP3", b"x"),
        ("one/deep/recording", WAV),
        ("one/notes.txt", b"text"),
        ("one/unknown", b"text"),
        ("one/.part.wav", WAV),
        (".hidden/a.wav", WAV),
        ("two/odd[1].wav", WAV),
    ] {
        fs::write(at(name), bytes).unwrap();
    }
    symlink(at("one"), at("one/deep/loop")).unwrap();
    dir
}

fn found(found: impl Iterator<Item = Found>) -> (Vec<String>, Vec<String>) {
    let (mut ids, mut unread) = (Vec::new(), Vec::new());
    for found in found {
        match found {
            Ok(listed) => ids.push(listed.id),
            Err(error) => unread.push(error.to_string()),
        }
    }
    ids.sort();
    (ids, unread)
}

/// Two folders are elsewhere, and one of them cannot be reached.
#[derive(Debug)]
struct Elsewhere;

impl Folders for Elsewhere {
    fn list(&self, place: &str) -> Box<dyn Iterator<Item = Found>> {
        let (found, place) = (|name: &str| Ok(at_url(&format!("s3://far/calls/{name}"))), place.to_owned());
        match place.as_str() {
            "s3://far/calls/" => {
                Box::new(["1.mp3", "deep/2.WAV", ".part.wav", ".old/3.wav", "notes.txt", "4"].map(found).into_iter())
            }
            _ => one(Err(Unread { file: place.clone(), place, reason: "not reached".to_owned() })),
        }
    }
}

fn search(base: &Path) -> Search {
    Search::new(base, Wanted::Recordings, None, Arc::new(Elsewhere))
}

fn given(dir: &tempfile::TempDir, what: &[&str]) -> (Vec<String>, Vec<String>) {
    let input = Cursor::new(&b"two/same.wav\n"[..]);
    found(search(dir.path()).arguments(what.iter().map(OsString::from).collect(), input))
}

#[test]
fn arguments_are_files_folders_and_globs() {
    let dir = tree();
    let all = ["one/deep/call.MP3", "one/deep/recording", "one/same.wav", "two/odd[1].wav", "two/same.wav"];
    let absolute = dir.path().join("two").display().to_string();
    for (what, want) in [
        (&["."][..], &all[..]),
        (&["one", "two/"], &all),
        (&["one", absolute.as_str()], &all),
        (&["./one/../two/same.wav"], &["two/same.wav"]),
        (&["one/notes.txt"], &["one/notes.txt"]),
        (&["two/odd[1].wav"], &["two/odd[1].wav"]),
        (&["*/same.wav"], &["one/same.wav", "two/same.wav"]),
        (&["{one,two}/*.wav"], &["one/same.wav", "two/odd[1].wav", "two/same.wav"]),
        (&["**/*.MP3"], &["one/deep/call.MP3"]),
        (&["one/**/rec*"], &["one/deep/recording"]),
        (&["o*"], &all[..3]),
        (&["one/*.t?t"], &["one/notes.txt"]),
        (&["https://a.example/x.wav"], &["https://a.example/x.wav"]),
        (&["one/same.wav", "-", "-"], &["one/same.wav", "two/same.wav"]),
        (&["s3://far/calls/", "s3://far/x"], &["s3://far/calls/1.mp3", "s3://far/calls/deep/2.WAV", "s3://far/x"]),
    ] {
        assert_eq!(given(&dir, what), (want.iter().map(ToString::to_string).collect(), Vec::new()), "{what:?}");
    }
    assert_eq!(given(&dir, &["empty"]), (vec![], vec![]), "a folder may have nothing in it");
}

#[test]
fn what_jobs_have_left_and_results_are_no_sources() {
    let dir = tree();
    for name in ["t.csv.voxrelay-job-pieces/voxrelay-1.wav", "one/t.voxrelay-job-pieces/2.wav", "texts/a.wav"] {
        fs::create_dir_all(dir.path().join(name).parent().unwrap()).unwrap();
        fs::write(dir.path().join(name), WAV).unwrap();
    }
    let all = ["one/deep/call.MP3", "one/deep/recording", "one/same.wav", "two/odd[1].wav", "two/same.wav"];
    let results = Path::new("./texts/");
    for what in [".", "**"] {
        let search = Search::new(dir.path(), Wanted::Recordings, Some(results), Arc::new(Elsewhere));
        let mut ids = found(search.arguments(vec![what.into()], io::empty())).0;
        ids.retain(|id| Wanted::Recordings.is_named(Path::new(id)) || id == "one/deep/recording");
        assert_eq!(ids, all, "{what}");
    }
    // Who names one of them means it.
    assert_eq!(given(&dir, &["texts"]).0, ["texts/a.wav"]);
}

#[test]
fn what_cannot_be_read_is_named_and_the_rest_is_found() {
    let dir = tree();
    let shut = dir.path().join("two");
    fs::set_permissions(&shut, fs::Permissions::from_mode(0o000)).unwrap();
    let as_root = fs::read_dir(&shut).is_ok();
    let (ids, unread) = given(&dir, &["none.wav", "x*.wav", "[", "."]);
    fs::set_permissions(&shut, fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(ids.iter().filter(|id| id.starts_with("one/")).count(), 3);
    assert_eq!(unread[..2], ["none.wav: no such file", "x*.wav: no file matches"]);
    assert!(unread[2].starts_with("[: not a pattern"), "{unread:?}");
    // Root reads everything.
    assert!(as_root || unread[3..] == ["two: permission denied"], "{unread:?}");
}

#[test]
fn a_name_that_is_not_utf8_is_told_and_not_lost() {
    use std::os::unix::ffi::OsStrExt as _;
    let dir = tree();
    fs::write(dir.path().join(std::ffi::OsStr::from_bytes(b"one/\xFFname.wav")), WAV).unwrap();
    let (ids, unread) = given(&dir, &["one"]);
    assert_eq!((ids.len(), unread.len()), (3, 1));
    assert!(unread[0].contains("not UTF-8"));
}

#[test]
fn a_list_has_lines_or_nuls() {
    let dir = tree();
    fs::write(dir.path().join("two/a\nb.wav"), WAV).unwrap();
    let read = |text: &'static [u8]| found(search(dir.path()).list(Cursor::new(text)));
    let two = ["one/same.wav", "two/same.wav"];
    for text in
        [&b"one/same.wav\r\n\ntwo/same.wav"[..], b"one/same.wav\0two/same.wav\0", b"two/same.wav\none/same.wav\n"]
    {
        assert_eq!(read(text), (two.map(str::to_owned).into(), vec![]));
    }
    assert_eq!(read(b"two/a\nb.wav\0one\0").0.len(), 4, "a name over two lines, and a folder");
    assert_eq!(read(b"one/same.wav\n\xFF\nnone\n").1, ["the list, line 2: not UTF-8", "none: no such file"]);
    assert_eq!(read(b""), (vec![], vec![]));
    assert_eq!(read(b"s3://far/calls/\ns3://gone/\n").0, ["s3://far/calls/1.mp3", "s3://far/calls/deep/2.WAV"]);
    assert_eq!(read(b"s3://gone/").1, ["s3://gone/: not reached"]);
}

fn manifest_of(name: &str, text: &str) -> Result<Vec<Listed>, String> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(name);
    fs::write(&file, text).unwrap();
    let rows = manifest(&file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let rows = rows.map_err(|error| error.to_string().split_once("`: ").unwrap().1.to_owned())?;
    let folder = dir.path().display().to_string();
    Ok(rows.into_iter().map(|row| Listed { source: row.source.replace(&folder, ""), ..row }).collect())
}

#[test]
fn a_manifest_is_csv_tsv_or_jsonl() {
    let csv = manifest_of("m.csv", "\u{feff}id,path,agent\r\n7,a.wav,\"Doe, \"\"J\"\"\"\r\n8,../b.wav,\r\n").unwrap();
    assert_eq!((csv[0].id.as_str(), csv[0].source.as_str(), csv[0].line), ("7", "/a.wav", Some(2)));
    assert_eq!(csv[0].metadata["agent"], "Doe, \"J\"");
    assert_eq!(csv[1].line, Some(3));
    let tsv = manifest_of("m.TSV", "id\turl\nx\thttps://a.example/b.wav\n").unwrap();
    assert_eq!(tsv[0].source, "https://a.example/b.wav");
    let jsonl =
        manifest_of("m.jsonl", "{\"id\":7,\"file\":\"/x/a.wav\",\"n\":{\"a\":1}}\n\n{\"id\":\"8\",\"path\":\"b\"}")
            .unwrap();
    assert_eq!((jsonl[0].id.as_str(), jsonl[0].source.as_str()), ("7", "/x/a.wav"));
    assert_eq!((jsonl[0].metadata["n"]["a"].as_i64(), jsonl[1].line), (Some(1), Some(3)));
}

#[test]
fn what_is_wrong_with_a_manifest_is_said_with_its_line() {
    for (name, text, want) in [
        ("m.csv", "name,path\n", "line 1: columns `id` and one of `path`, `file`, `url` are needed, found: name, path"),
        ("m.csv", "id,path,id\n", "line 1: two columns are named `id`"),
        ("m.csv", "id,path\n1,a\n2\n", "line 3: 1 fields, and the first line has 2"),
        ("m.csv", "id,path\r\n1,a\r\n2\r\n", "line 3: 1 fields, and the first line has 2"),
        ("m.csv", "id,path\n,a\n", "line 2: id is empty"),
        ("m.csv", "id,path\n1,\n", "line 2: one of path, file and url must say where it is"),
        ("m.jsonl", "{\"id\":1,\"path\":\"a\"}\n[1]\n", "line 2: not a JSON object"),
        ("m.jsonl", "{\"path\":\"a\"}\n", "line 1: id is missing"),
        ("m.jsonl", "{\"id\":null,\"path\":\"a\"}\n", "line 1: id: found null, allowed are text and numbers"),
        ("m.xlsx", "", "its name must end in .csv, .tsv or .jsonl"),
    ] {
        let error = manifest_of(name, text).unwrap_err();
        assert!(error.starts_with(want), "{error}");
    }
    assert!(manifest(Path::new("/no/such.csv")).is_err());
}

proptest::proptest! {
    #[test]
    fn a_path_is_clean_and_absolute(parts in proptest::collection::vec("(a|b|\\.|\\.\\.)", 0..9)) {
        let path = absolute(Path::new("/base"), Path::new(&parts.join("/")));
        let clean = |part: Component<'_>| matches!(part, Component::RootDir | Component::Normal(_));
        proptest::prop_assert!(path.is_absolute() && path.components().all(clean));
    }
}

/// A server on this machine; what it answers with.
async fn server(tasks: &mut JoinSet<()>) -> String {
    // Without a length, so that it is found out on the way.
    let big = || async { Body::from_stream(stream::iter((0..4).map(|_| Ok::<_, io::Error>("x".repeat(1_000))))) };
    let app = Router::new()
        .route("/a.wav", get(|| async { WAV }))
        .route("/big", get(big))
        .route("/moved", get(|| async { Redirect::temporary("/a.wav") }))
        .route("/inside", get(|| async { Redirect::temporary("http://169.254.169.254/latest") }))
        .route("/named", get(|| async { Redirect::temporary("http://localhost:1/x") }))
        .route("/file", get(|| async { Redirect::temporary("file:///etc/passwd") }))
        .route("/round", get(|| async { Redirect::temporary("/round") }))
        .route("/busy", get(|| async { StatusCode::SERVICE_UNAVAILABLE }));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = format!("http://{}", listener.local_addr().unwrap());
    tasks.spawn(async move { axum::serve(listener, app).await.unwrap() });
    at
}

#[tokio::test]
async fn a_url_becomes_a_copy_that_goes_with_its_holder() {
    let dir = tempfile::tempdir().unwrap();
    let mut tasks = JoinSet::new();
    let at = server(&mut tasks).await;
    let sources = Sources::new(Limits { max_bytes: 1_000, folder: dir.path().to_owned() }).unwrap();
    for path in ["/a.wav", "/moved"] {
        let opened = sources.open(&format!("{at}{path}")).await.unwrap();
        assert_eq!(fs::read(opened.path()).unwrap(), WAV);
        assert_eq!(opened.path().extension().unwrap(), "wav");
    }
    for (path, want, passing) in [
        ("/big", "larger than 1000 bytes", false),
        ("/none", "no such file", false),
        ("/inside", "the server sends us to http://169.254.169.254/latest: not a public address", false),
        ("/named", "the server sends us to http://localhost:1/x: not a public address", false),
        ("/file", "the server sends us to file:///etc/passwd: neither http nor https", false),
        ("/round", "not reached: it was sent on more than 5 times", true),
        ("/busy", "the server answered with status 503", true),
    ] {
        let error = sources.open(&format!("{at}{path}")).await.unwrap_err();
        assert_eq!((error.to_string().as_str(), error.is_passing()), (want, passing), "{path}");
    }
    let left: BTreeSet<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.is_empty(), "{left:?}");
    let gone = sources.open("http://127.0.0.1:1/x.wav").await.unwrap_err();
    assert_eq!((gone.code(), gone.is_passing()), ("source_unreachable", true));
    fs::write(dir.path().join("own.wav"), WAV).unwrap();
    let own = dir.path().join("own.wav");
    drop(sources.open(own.to_str().unwrap()).await.unwrap());
    assert!(own.exists(), "what is not a copy stays");
}

#[cfg(feature = "s3")]
#[tokio::test(flavor = "multi_thread")]
async fn a_folder_of_a_bucket_is_listed_and_what_is_in_it_is_fetched() {
    use object_store::{ObjectStore, ObjectStoreExt as _, memory::InMemory};
    let dir = tempfile::tempdir().unwrap();
    let sources = Sources::new(Limits { max_bytes: 100, folder: dir.path().to_owned() }).unwrap();
    let bucket = InMemory::new();
    for key in ["calls/1.wav", "calls/deep/2.mp3", "calls/notes.txt", "callsigns/3.wav", "4.wav"] {
        bucket.put(&key.into(), WAV.into()).await.unwrap();
    }
    let bucket: Arc<dyn ObjectStore> = Arc::new(bucket);
    sources.buckets().put("far", bucket);
    let list = {
        let (sources, runtime, base) = (sources.clone(), tokio::runtime::Handle::current(), dir.path().to_owned());
        move |what: &'static str| {
            let elsewhere = Arc::new(Remote::new(sources.clone(), runtime.clone()));
            let search = Search::new(&base, Wanted::Recordings, None, elsewhere);
            found(search.arguments(vec![what.into()], io::empty()))
        }
    };
    let (folder, whole, named) = tokio::task::spawn_blocking(move || {
        (list("s3://far/calls/"), list("s3://far/"), list("s3://far/calls/notes.txt"))
    })
    .await
    .unwrap();
    assert_eq!(folder, (vec!["s3://far/calls/1.wav".to_owned(), "s3://far/calls/deep/2.mp3".to_owned()], vec![]));
    assert_eq!((whole.0.len(), named.0.len()), (4, 1));
    let opened = sources.open(&folder.0[1]).await.unwrap();
    assert_eq!(fs::read(opened.path()).unwrap(), WAV);
    assert!(matches!(sources.open("s3://far/calls/").await, Err(FetchError::Absent)), "a folder is no file");
}

#[cfg(not(feature = "s3"))]
#[test]
fn a_folder_of_a_bucket_says_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let sources = Sources::new(Limits { max_bytes: 100, folder: dir.path().to_owned() }).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let elsewhere = Arc::new(Remote::new(sources, runtime.handle().clone()));
    let search = Search::new(dir.path(), Wanted::Recordings, None, elsewhere);
    let (_, unread) = found(search.arguments(vec!["s3://far/calls/".into()], io::empty()));
    assert_eq!(unread, ["s3://far/calls/: this voxrelay was built without S3; build it with `--features s3`"]);
}
