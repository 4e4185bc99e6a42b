//! What is to be done, from the command line into the job: all of it, or nothing where something is wrong with it.
use std::{
    ffi::OsString,
    io::{self, BufReader},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context as _;
use tokio::sync::oneshot;

use crate::{
    batch::{
        source::{self, Found, Listed, Search},
        store::{Entry, Store},
        table::Guard,
    },
    cli::Usage,
};

/// Where it is listed.
#[derive(Debug)]
pub(super) enum Listing {
    /// In a table.
    Manifest(PathBuf),
    /// By arguments, one of which may be `-`.
    Arguments(Search, Vec<OsString>),
}

impl Listing {
    /// Puts all of it into the job. On a thread of its own: who reads a list that somebody types cannot be called off, and whoever ends the
    /// command does not wait for it.
    pub(super) async fn put(self, store: Arc<Store>, guard: Guard) -> anyhow::Result<()> {
        let (told, heard) = oneshot::channel();
        let listing = move || drop(told.send(self.put_now(&store, &guard)));
        std::thread::Builder::new().name("listing".to_owned()).spawn(listing)?;
        heard.await.context("the listing has ended without a word")?
    }

    fn put_now(self, store: &Store, guard: &Guard) -> anyhow::Result<()> {
        let found = |found: Found| match found {
            Ok(item) => guarded(item, guard),
            Err(unread) => Entry::Unread(unread),
        };
        let added = match self {
            Self::Manifest(file) => {
                let rows = source::manifest(&file).map_err(|error| Usage(error.to_string()))?;
                store.add(rows.map(|row| match row {
                    Ok(item) => guarded(item, guard),
                    Err(error) => Entry::Wrong(error.to_string()),
                }))?
            }
            Self::Arguments(search, arguments) => {
                store.add(search.arguments(arguments, BufReader::new(io::stdin())).map(found))?
            }
        };
        if let Some(wrong) = added.wrong {
            return Err(Usage(wrong).into());
        }
        if let Some(clash) = added.clashes.first() {
            return Err(Usage(format!("{clash}; ids must differ")).into());
        }
        Ok(())
    }
}

/// An item, if results are not written over its file.
fn guarded(item: Listed, guard: &Guard) -> Entry {
    match guard.item(Path::new(&item.source)) {
        Ok(()) => Entry::Item(item),
        Err(wrong) => Entry::Wrong(wrong),
    }
}
