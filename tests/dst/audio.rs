//! Audio that says which part of the call it is: each four bytes of mu-law hold a number, loud or quiet.
//!
//! Five bits of a mu-law byte (sign and mantissa) are free whatever the loudness (exponent); four bytes hold 20 of them. The
//! silence that the relay inserts (0xFF) is the one number that nobody speaks.
use voxrelay::audio::Format;

/// What goes up and comes down.
pub(crate) const FORMAT: Format = Format::MULAW;
/// Units in a millisecond.
pub(crate) const PER_MS: u32 = 2;
/// Bytes of one.
pub(crate) const UNIT: usize = 4;
/// Numbers begin anew here: after 524 s.
pub(crate) const ROUND: u32 = (1 << 20) - 1;

/// Units `from..from + count` as bytes.
pub(crate) fn speak(from: u64, count: u32, loud: bool) -> Vec<u8> {
    let exponent = if loud { 0x00 } else { 0x70 };
    let mut out = Vec::with_capacity(count as usize * UNIT);
    for unit in from..from + u64::from(count) {
        let number = u32::try_from(unit % u64::from(ROUND)).unwrap_or(0);
        for at in 0..4 {
            let bits = u8::try_from(number >> (5 * at) & 31).unwrap_or(0);
            out.push((bits & 16) << 3 | exponent | bits & 15);
        }
    }
    out
}

/// A unit of a call's audio, as facts have it: enough for a day.
pub(crate) fn unit(position: u64) -> u32 {
    u32::try_from(position).expect("calls are shorter than 24 days")
}

/// The number of each unit, which was spoken within 262 s of unit `near`; `None`: inserted silence, or nothing that was spoken
/// here.
pub(crate) fn read(audio: &[u8], near: u64) -> impl Iterator<Item = Option<u32>> + '_ {
    let (near, half) = (unit(near), ROUND / 2);
    let count = move |number: u32| {
        let rounds = (near / ROUND * ROUND + number, near % ROUND);
        match rounds {
            (at, here) if number > here + half => at.checked_sub(ROUND).unwrap_or(at),
            (at, here) if number + half < here => at + ROUND,
            (at, _) => at,
        }
    };
    audio.chunks(UNIT).map(move |unit| {
        let exponent = unit.first()? & 0x70;
        if unit.len() < UNIT || unit.iter().any(|byte| byte & 0x70 != exponent) || !matches!(exponent, 0 | 0x70) {
            return None;
        }
        let bits = unit.iter().rev().fold(0, |all, byte| all << 5 | u32::from(byte >> 3 & 16 | byte & 15));
        (bits != ROUND).then_some(bits).map(count)
    })
}

/// Numbers in runs, `from..to`.
pub(crate) fn runs(units: impl Iterator<Item = u32>) -> Vec<(u32, u32)> {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for unit in units {
        match runs.last_mut() {
            Some((_, to)) if *to == unit => *to += 1,
            _ => runs.push((unit, unit + 1)),
        }
    }
    runs
}

#[test]
fn what_is_spoken_can_be_read() {
    for loud in [true, false] {
        let audio = speak(1_048_000, 2_000, loud);
        for near in [1_040_000, 1_060_000] {
            let units: Vec<u32> = read(&audio, near).map(|unit| unit.expect("spoken here")).collect();
            assert_eq!(runs(units.into_iter()), [(1_048_000, 1_050_000)]);
        }
    }
    assert_eq!(read(&[0xFF; 8], 0).collect::<Vec<_>>(), [None, None]);
}
