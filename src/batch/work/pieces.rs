//! A recording in one request or in many: pieces are cut when there is leave to send them, and put in their order again.
use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use tempfile::NamedTempFile;
use tokio::task::JoinSet;

use super::{
    Halt, Run,
    ask::{Asker, Written},
    look::{halt, is_full},
};
use crate::batch::{
    cut::{CutError, Piece, Pieces, Plan, Whole},
    engine::Upload,
    gate::Pass,
    join,
    store::{Item, Part, Task},
};

/// What was heard in a piece, and the model that has heard it.
pub(super) type Heard = (join::Part, String);
/// What earlier runs have heard, by the piece's number: its seal, and what the job has kept.
type Answered = BTreeMap<u32, (String, String)>;

/// Pieces of a recording that are under way, and what came of others.
#[derive(Default)]
struct Way {
    requests: JoinSet<(usize, Result<Heard, Halt>)>,
    done: BTreeMap<usize, Heard>,
    bad: Option<Halt>,
}

impl Way {
    /// Takes down what has come, or all that is still to come.
    async fn take(&mut self, all: bool) -> Result<(), Halt> {
        while let Some(ended) = if all { self.requests.join_next().await } else { self.requests.try_join_next() } {
            let (index, ended) = ended.unwrap_or_else(|panicked| std::panic::resume_unwind(panicked.into_panic()));
            match ended {
                Ok(part) => drop(self.done.insert(index, part)),
                Err(Halt::Job(error)) => return Err(error.into()),
                Err(halt) => self.bad = self.bad.take().or(Some(halt)),
            }
        }
        Ok(())
    }
}

/// How cutting came to its end.
enum Cut {
    /// There are no more pieces.
    All,
    /// What an earlier run has heard is not what is there now.
    Otherwise,
}

impl Run {
    /// A recording that is sent as it is.
    pub(super) async fn whole(self: &Arc<Self>, item: &Item, whole: Whole) -> Result<Vec<Heard>, Halt> {
        let who = Asker::new(item);
        let Whole { path, name, media_type, length, .. } = whole;
        let part = Part { task: Task::Piece, number: 0, seal: format!("whole {}", length.as_millis()) };
        let pass = self.enter(who).await?;
        let upload = Upload { path, name, media_type };
        let Written { transcript, model } = self.piece(who, part, upload, pass).await?;
        let (start, overlap) = (Duration::ZERO, Duration::ZERO);
        Ok(vec![(join::Part { start, length, overlap, transcript }, model)])
    }

    /// A recording in pieces.
    pub(super) async fn pieces(self: &Arc<Self>, item: &Item, pieces: Pieces, path: &Path) -> Result<Vec<Heard>, Halt> {
        let n = item.n;
        let answered = self.on_disk(move |store| store.answered_pieces(n)).await?;
        if let Some(parts) = self.each(item, pieces, answered).await? {
            return Ok(parts);
        }
        // From the front, then: what is in the job and fits is found there one by one.
        let (Plan::Pieces(pieces), _) = self.look(path).await? else { return Err(Halt::Later) };
        Ok(self.each(item, pieces, Answered::new()).await?.unwrap_or_default())
    }

    /// None: what was answered is not of these pieces.
    async fn each(
        self: &Arc<Self>,
        item: &Item,
        pieces: Pieces,
        answered: Answered,
    ) -> Result<Option<Vec<Heard>>, Halt> {
        let mut way = Way::default();
        let cut = self.cut(item, pieces, answered, &mut way).await;
        // What has been sent is paid for: its answers are taken down before it ends.
        way.take(true).await?;
        match (cut, way.bad) {
            (Err(halt), _) | (_, Some(halt)) => Err(halt),
            (Ok(Cut::Otherwise), None) => Ok(None),
            (Ok(Cut::All), None) => Ok(Some(way.done.into_values().collect())),
        }
    }

    /// Cuts and sends one after the other, as long as none has failed.
    async fn cut(
        self: &Arc<Self>,
        item: &Item,
        mut pieces: Pieces,
        answered: Answered,
        way: &mut Way,
    ) -> Result<Cut, Halt> {
        let who = Asker::new(item);
        for number in 0.. {
            way.take(false).await?;
            if way.bad.is_some() || self.stop.is_cancelled() {
                return Err(way.bad.take().unwrap_or(Halt::Later));
            }
            if let Some((seal, kept)) = answered.get(&number) {
                let (piece, back) = self.by_hand(move |_| (pieces.skip(), pieces)).await?;
                pieces = back;
                let piece = piece.map_err(|error| halt(&error))?;
                let Some(piece) = piece.filter(|piece| self::seal(piece) == *seal) else { return Ok(Cut::Otherwise) };
                way.done.insert(piece.index, heard(&piece, Written::read(kept)?));
                if piece.last {
                    break;
                }
                continue;
            }
            let pass = self.enter(who).await?;
            let (back, next) = self.next(pieces).await?;
            pieces = back;
            let Some((piece, file)) = next else { break };
            self.send(who, piece, file, pass, way);
        }
        if pieces.truncated() {
            self.note(format!("{}: cut short, or part of it cannot be read; what is there was written down", item.id));
        }
        Ok(Cut::All)
    }

    /// Cuts the next piece, if there is one.
    async fn next(&self, mut pieces: Pieces) -> Result<(Pieces, Option<(Piece, NamedTempFile)>), Halt> {
        let folder = self.folder.clone();
        let (pieces, cut) = self
            .by_hand(move |_| {
                let cut = NamedTempFile::new_in(&folder).map_err(NoPiece::Place).and_then(|mut file| {
                    let piece = pieces.write_next(file.as_file_mut()).map_err(NoPiece::Cut)?;
                    Ok(piece.map(|piece| (piece, file)))
                });
                (pieces, cut)
            })
            .await?;
        match cut {
            Ok(cut) => Ok((pieces, cut)),
            Err(NoPiece::Place(error) | NoPiece::Cut(CutError::Write { source: error, .. })) if is_full(&error) => {
                Err(self.full(&self.folder))
            }
            Err(NoPiece::Place(error)) => Err(Halt::bad("no_room", format!("{}: {error}", self.folder.display()))),
            Err(NoPiece::Cut(error)) => Err(halt(&error)),
        }
    }

    fn send(self: &Arc<Self>, who: Asker, piece: Piece, file: NamedTempFile, pass: Pass, way: &mut Way) {
        let run = self.clone();
        way.requests.spawn(async move {
            let number = u32::try_from(piece.index).unwrap_or(u32::MAX);
            let part = Part { task: Task::Piece, number, seal: seal(&piece) };
            let name = format!("piece-{}.wav", piece.index + 1);
            let upload = Upload { path: file.path().to_owned(), name, media_type: "audio/wav" };
            let written = run.piece(who, part, upload, pass).await;
            drop(file);
            (piece.index, written.map(|written| heard(&piece, written)))
        });
    }
}

/// Why there is no next piece.
enum NoPiece {
    /// There is no place for it.
    Place(std::io::Error),
    /// It cannot be cut.
    Cut(CutError),
}

/// What tells a piece from others of its recording.
pub(super) fn seal(piece: &Piece) -> String {
    format!("{}+{}", piece.start.as_millis(), piece.length.as_millis())
}

fn heard(piece: &Piece, Written { transcript, model }: Written) -> Heard {
    let Piece { start, length, overlap, .. } = *piece;
    (join::Part { start, length, overlap, transcript }, model)
}
