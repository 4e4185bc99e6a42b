/**
 * Sound for the tests: WAV files in and out, and the comparison of what was played with what was said.
 */
import { readFileSync, writeFileSync } from "node:fs";

/** PCM16 mono WAV as samples. @returns {{ rate: number, samples: Int16Array }} */
export function readWav(path) {
  const file = readFileSync(path);
  let at = 12;
  let rate = 0;
  while (at + 8 <= file.length) {
    const name = file.toString("latin1", at, at + 4);
    const size = file.readUInt32LE(at + 4);
    if (name === "fmt ") {
      const [codec, channels, bits] = [file.readUInt16LE(at + 8), file.readUInt16LE(at + 10), file.readUInt16LE(at + 22)];
      if (codec !== 1 || channels !== 1 || bits !== 16) throw new Error(`${path} is not PCM16 mono`);
      rate = file.readUInt32LE(at + 12);
    }
    if (name === "data") return { rate, samples: toSamples(file.subarray(at + 8, at + 8 + size)) };
    at += 8 + size + (size % 2);
  }
  throw new Error(`${path} has no data`);
}

export function writeWav(path, rate, samples) {
  const head = Buffer.alloc(44);
  head.write("RIFF", 0, "latin1");
  head.writeUInt32LE(36 + samples.length * 2, 4);
  head.write("WAVEfmt ", 8, "latin1");
  head.writeUInt32LE(16, 16);
  head.writeUInt16LE(1, 20);
  head.writeUInt16LE(1, 22);
  head.writeUInt32LE(rate, 24);
  head.writeUInt32LE(rate * 2, 28);
  head.writeUInt16LE(2, 32);
  head.writeUInt16LE(16, 34);
  head.write("data", 36, "latin1");
  head.writeUInt32LE(samples.length * 2, 40);
  writeFileSync(path, Buffer.concat([head, toBytes(samples)]));
}

export function toSamples(bytes) {
  return Int16Array.from({ length: bytes.length >> 1 }, (_, i) => bytes.readInt16LE(i * 2));
}

export function toBytes(samples) {
  const bytes = Buffer.alloc(samples.length * 2);
  samples.forEach((s, i) => bytes.writeInt16LE(s, i * 2));
  return bytes;
}

/** Pieces one after the other; a number is so many seconds of silence. */
export function join(rate, ...pieces) {
  const parts = pieces.map((p) => (typeof p === "number" ? new Int16Array(Math.round(p * rate)) : p));
  const all = new Int16Array(parts.reduce((n, p) => n + p.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

/** Correlation of `a` from `at` on with `b` from `from` on, over `length` samples. */
function correlation(a, at, b, from, length) {
  let [ab, aa, bb] = [0, 0, 0];
  for (let i = 0; i < length; i++) {
    const [x, y] = [a[at + i] ?? 0, b[from + i] ?? 0];
    ab += x * y;
    aa += x * x;
    bb += y * y;
  }
  return aa === 0 || bb === 0 ? 0 : ab / Math.sqrt(aa * bb);
}

/**
 * Whether `played` holds all of the speech in `said`, once, in order: where the loudest 200 ms of `said` are found in
 * `played`, every other loud window must be found at the same distance, to 40 ms: clocks of two devices drift a little, and Chromium's
 * fake microphone leaves out a buffer of 10 ms now and then, for which one window may be broken. Missing, doubled and cut
 * audio shift or break everything that comes after it.
 * @returns {{ worst: number, broken: number, windows: number, lag: number }} Correlation of the worst window but that one.
 */
export function compare(said, played, rate) {
  const size = rate / 5;
  const windows = [];
  for (let at = 0; at + size <= said.length; at += size) {
    let energy = 0;
    for (let i = 0; i < size; i++) energy += said[at + i] ** 2;
    windows.push({ at, rms: Math.sqrt(energy / size) });
  }
  const loudest = Math.max(...windows.map((w) => w.rms));
  const anchor = windows.find((w) => w.rms === loudest);
  const lag = bestLag(said, anchor.at, played, -said.length, played.length, size, Math.max(1, Math.round(rate / 12_000)));
  const loud = windows.filter((w) => w.rms > loudest / 5);
  // A device's buffer lasts 10 ms; what is lost or doubled beyond a few of them is found nowhere near.
  const near = Math.round(rate / 25);
  let follow = lag;
  const found = loud.map(({ at }) => {
    const own = bestLag(said, at, played, follow - near, follow + near, size, 1);
    const value = correlation(said, at, played, at + own, size);
    if (value > 0.9) follow = own;
    return Math.abs(own - lag) <= near ? value : -1;
  });
  const [broken, worst] = found.sort((x, y) => x - y);
  return { worst, broken, windows: loud.length, lag };
}

/** The shift in `[least, most]` at which `said` from `at` on is found best; a coarse search first, if asked for. */
function bestLag(said, at, played, least, most, size, step) {
  let best = { lag: 0, value: -2 };
  const look = (from, to, by, length, stride) => {
    for (let lag = from; lag <= to; lag += by) {
      let value = 0;
      let norm = 1e-9;
      for (let i = 0; i < length; i += stride) {
        const y = played[at + i + lag] ?? 0;
        value += said[at + i] * y;
        norm += y * y;
      }
      value /= Math.sqrt(norm);
      if (value > best.value) best = { lag, value };
    }
  };
  look(least, most, step, size, step === 1 ? 1 : 3);
  if (step > 1) {
    const around = best.lag;
    best = { lag: around, value: -Infinity };
    look(around - step, around + step, 1, size, 1);
  }
  return best.lag;
}

/**
 * Whether a loudspeaker played exactly these samples, in order and with nothing between but silence (where it ran dry).
 * Says how far it got, and how many samples of silence there were between.
 */
export function playedExactly(want, recorded) {
  let at = recorded.findIndex((s) => s !== 0);
  const first = want.findIndex((s) => s !== 0);
  if (at < 0 || first < 0) return { matched: 0, of: want.length, silence: 0 };
  let [i, silence, pause] = [first, 0, 0];
  // After a pause one equal sample may be chance: the beginning of something else.
  const goesOn = () => pause === 0 || want.subarray(i, i + 32).every((sample, n) => sample === recorded[at + n]);
  while (i < want.length && at < recorded.length) {
    if (want[i] === recorded[at] && goesOn()) {
      i += 1;
      at += 1;
      silence += pause; // it goes on: that was a pause
      pause = 0;
    } else if (recorded[at] === 0) {
      at += 1;
      pause += 1;
    } else {
      break;
    }
  }
  return { matched: i, of: want.length, silence };
}

/** Where `part` begins in `whole`, as bytes; -1: nowhere. */
export function find(part, whole) { return whole.indexOf(part); }
