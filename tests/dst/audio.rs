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

/// The number of each unit; `None`: inserted silence, or nothing that was spoken here.
pub(crate) fn read(audio: &[u8]) -> impl Iterator<Item = Option<u32>> + '_ {
    audio.chunks(UNIT).map(|unit| {
        let exponent = unit.first()? & 0x70;
        if unit.len() < UNIT || unit.iter().any(|byte| byte & 0x70 != exponent) || !matches!(exponent, 0 | 0x70) {
            return None;
        }
        let bits = unit.iter().rev().fold(0, |all, byte| all << 5 | u32::from(byte >> 3 & 16 | byte & 15));
        (bits != ROUND).then_some(bits)
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
        let units: Vec<u32> = read(&audio).map(|unit| unit.expect("spoken here")).collect();
        assert_eq!(runs(units.into_iter()), [(1_048_000, ROUND), (0, 2_000 - (ROUND - 1_048_000))]);
    }
    assert_eq!(read(&[0xFF; 8]).collect::<Vec<_>>(), [None, None]);
}
