//! The table of where the milliseconds went. Pure: turns in, lines out.
use super::conversation::{Ask, Turn, TurnEnd};
use crate::client::wire::ReplyStatus;

/// Turns side by side; more go below. Fits 80 characters.
const ABREAST: usize = 4;
/// Characters of the names on the left.
const NAMES: usize = 30;
/// Characters of a turn.
const CELL: usize = 12;

/// Lines for people: what was measured on the left, a column per reply.
pub(in crate::cli) fn table(turns: &[Turn]) -> Vec<String> {
    let mut lines = vec!["milliseconds count from the end of speech (or the commit, or the text)".to_owned()];
    for (block, some) in turns.chunks(ABREAST).enumerate() {
        lines.push(String::new());
        let first = block * ABREAST + 1;
        lines.push(row("", (first..first + some.len()).map(|number| format!("turn {number}"))));
        for (name, cell) in ROWS {
            lines.push(row(name, some.iter().map(cell)));
        }
    }
    for (index, turn) in turns.iter().enumerate() {
        if let Some(TurnEnd { status, reason: Some(reason), .. }) = &turn.end {
            lines.push(format!("turn {} {}: {reason}", index + 1, name_of(*status)));
        }
    }
    lines
}

/// A name and how to read its value.
type Row = (&'static str, fn(&Turn) -> String);

const ROWS: [Row; 11] = [
    ("asked by", |turn| asked_by(turn.ask).to_owned()),
    ("end heard at", |turn| turn.heard_until.map_or_else(none, |at| format!("{:.2} s", at.as_secs_f64()))),
    ("committed", |turn| ms(turn, |end| end.latency.committed_ms)),
    ("reply started", |turn| ms(turn, |end| end.latency.reply_started_ms)),
    ("first delta at the relay", |turn| ms(turn, |end| end.latency.first_delta_ms)),
    ("first audio sent to the client", |turn| ms(turn, |end| end.latency.first_audio_ms)),
    ("first audio, measured here", |turn| {
        turn.first_audio().map_or_else(none, |first| format!("{} ms", first.as_millis()))
    }),
    ("added by the relay", |turn| ms(turn, |end| end.latency.relay_added_ms)),
    ("audio of the reply", |turn| turn.end.as_ref().map_or_else(none, |end| seconds(end.audio_ms))),
    ("heard of it", |turn| turn.end.as_ref().map_or_else(none, |end| seconds(end.heard_ms))),
    ("status", |turn| turn.end.as_ref().map_or("did not end", |end| name_of(end.status)).to_owned()),
];

fn row(name: &str, cells: impl Iterator<Item = String>) -> String {
    cells.fold(format!("{name:<NAMES$}"), |line, cell| line + &format!("{cell:>CELL$}"))
}

fn ms(turn: &Turn, of: fn(&TurnEnd) -> Option<u64>) -> String {
    turn.end.as_ref().and_then(of).map_or_else(none, |ms| format!("{ms} ms"))
}

fn none() -> String {
    "-".to_owned()
}

fn asked_by(ask: Ask) -> &'static str {
    match ask {
        Ask::Speech => "speech",
        Ask::Commit => "commit",
        Ask::Text => "text",
        Ask::Tool => "tool result",
        Ask::Nobody => "nobody",
    }
}

/// The status in words.
pub(in crate::cli) fn name_of(status: ReplyStatus) -> &'static str {
    match status {
        ReplyStatus::Completed => "completed",
        ReplyStatus::Interrupted => "interrupted",
        ReplyStatus::Incomplete => "incomplete",
        ReplyStatus::Failed => "failed",
    }
}

/// `6.17 s`.
pub(in crate::cli) fn seconds(ms: u64) -> String {
    format!("{}.{:02} s", ms / 1_000, ms % 1_000 / 10)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::client::wire::Latency;

    #[test]
    fn every_number_stands_behind_its_name() {
        let latency = Latency { committed_ms: Some(12), first_audio_ms: Some(311), ..Latency::default() };
        let turn = |ask, end| Turn {
            reply: "r".into(),
            ask,
            asked_at: Duration::from_millis(3_440),
            heard_until: (ask == Ask::Speech).then_some(Duration::from_millis(3_400)),
            first_audio_at: Some(Duration::from_millis(3_752)),
            end,
        };
        let end = TurnEnd {
            status: ReplyStatus::Interrupted,
            reason: Some("you spoke".into()),
            audio_ms: 6_170,
            heard_ms: 1_205,
            latency,
        };
        let mut turns = vec![turn(Ask::Speech, Some(end)), turn(Ask::Commit, None)];
        let want = "\
milliseconds count from the end of speech (or the commit, or the text)

                                    turn 1      turn 2
asked by                            speech      commit
end heard at                        3.40 s           -
committed                            12 ms           -
reply started                            -           -
first delta at the relay                 -           -
first audio sent to the client      311 ms           -
first audio, measured here          324 ms      312 ms
added by the relay                       -           -
audio of the reply                  6.17 s           -
heard of it                         1.20 s           -
status                         interrupted did not end
turn 1 interrupted: you spoke";
        assert_eq!(table(&turns).join("\n"), want);
        turns.resize(5, turn(Ask::Text, None));
        let lines = table(&turns);
        assert!(lines.contains(&format!("{:>42}", "turn 5")) && lines.iter().all(|line| line.chars().count() < 80));
    }
}
