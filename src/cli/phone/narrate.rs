//! A simulated call in words.
use std::{io, path::Path, time::Duration};

use super::super::say::screen::Screen;
use crate::provider::{Ended, Injected, Summary, Told, Who};

/// One line of what happens.
pub(super) fn narrate<W: io::Write>(screen: &mut Screen<W>, at: Duration, told: &Told) -> io::Result<()> {
    let text = match told {
        Told::Connected => "the stream is open".to_owned(),
        Told::Speaks(false) => "the caller speaks".to_owned(),
        Told::Speaks(true) => "the caller interrupts".to_owned(),
        Told::Spoke(length) => format!("the caller has spoken {:.1} s", length.as_secs_f64()),
        Told::Sounds(after) => format!("first sound, {} ms after the caller's last word", after.as_millis()),
        Told::Cleared => "the relay clears what is queued".to_owned(),
        Told::Pressed(key) => format!("the caller presses {key}"),
        Told::Keys(keys) => format!("the relay sends the keys {keys}"),
        Told::Violation(text) => format!("broken rule: {text}"),
        Told::Ended(ended) => ended_by(ended),
    };
    screen.at(at, &text)
}

fn ended_by(ended: &Ended) -> String {
    let who = match ended.who {
        Who::Caller => "caller",
        Who::Relay => "relay",
        Who::Provider => "provider",
    };
    let unheard = match ended.unheard {
        Duration::ZERO => String::new(),
        unheard => format!("; {:.2} s were queued and never heard", unheard.as_secs_f64()),
    };
    format!("ended by the {who}: {}{unheard}", ended.why)
}

/// The call in figures.
pub(super) fn summary<W: io::Write>(screen: &mut Screen<W>, summary: &Summary, out: &Path) -> io::Result<()> {
    screen.line("")?;
    let first =
        summary.first_sound.map_or("none".to_owned(), |at| format!("{} ms after the last word", at.as_millis()));
    screen.line(&format!("caller spoke  {:.1} s", summary.spoke.as_secs_f64()))?;
    screen.line(&format!("first sound   {first}"))?;
    screen.line(&format!("heard         {:.1} s, in {}", summary.heard.as_secs_f64(), out.display()))?;
    for silenced in &summary.silenced {
        screen.line(&format!("interrupted   silent after {} ms", silenced.as_millis()))?;
    }
    let (played, cleared) = (summary.marks_played, summary.marks_cleared);
    screen.line(&format!("marks         {played} played, {cleared} brought back by {} clears", summary.clears))?;
    for violation in &summary.violations {
        let times = if violation.times > 1 { format!(" ({} times)", violation.times) } else { String::new() };
        screen.line(&format!("broken rule   {}{times}", violation.text))?;
    }
    if summary.first_sound.is_none() {
        screen.line("no reply was heard")?;
    }
    Ok(())
}

/// What was done on request.
pub(super) fn injected<W: io::Write>(screen: &mut Screen<W>, injected: Injected) -> io::Result<()> {
    let Injected { paused, duplicated, swapped, early, wrong_ids, stops } = injected;
    screen.line(&format!(
        "quirks        {paused} frames of silence not sent, {duplicated} sent twice, {swapped} in the wrong order, {early} before \
         the start, {wrong_ids} of an unknown stream; {stops} stop messages"
    ))
}
