// Runs cases one after the other: a line for each, and an exit code. Arguments choose some by a part of their names.
import { readFileSync } from "node:fs";

const LONGEST_MS = 60_000;

export const BASE = process.env.BASE_URL;
export const WS_BASE = BASE.replace("http", "ws");

/// The samples of a WAV file of 24 kHz, mono, 16 bit.
export function clip() {
  const file = readFileSync(process.env.CLIP);
  const at = file.indexOf("data", 12, "latin1");
  return file.subarray(at + 8, at + 8 + file.readUInt32LE(at + 4));
}

export function check(truth, what) {
  if (!truth) throw new Error(what);
}

/// Whether `heard` is what was said from `startMs` to `endMs`, neither cut nor doubled.
export function compare(heard, said, startMs, endMs) {
  const turn = said.subarray(startMs * 48, endMs * 48);
  check(turn.length > 4 * 48_000, `a turn of only ${turn.length} bytes`);
  check(heard.equals(turn), `${heard.length} bytes were heard of ${turn.length}`);
}

export async function main(client, cases) {
  let failed = 0;
  const wanted = process.argv.slice(2);
  for (const [title, run] of Object.entries(cases)) {
    const name = `${client}: ${title}`;
    if (wanted.length > 0 && !wanted.some((part) => name.includes(part))) continue;
    let timer;
    const late = new Promise((_, no) => {
      timer = setTimeout(() => no(new Error(`not done within ${LONGEST_MS / 1000} s`)), LONGEST_MS);
    });
    try {
      await Promise.race([run(), late]);
      console.log(`ok      ${name}`);
    } catch (error) {
      failed += 1;
      console.log(`FAILED  ${name}: ${error?.stack ?? JSON.stringify(error)}`);
    } finally {
      clearTimeout(timer);
    }
  }
  process.exit(failed > 0 ? 1 : 0);
}
