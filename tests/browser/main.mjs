/** Runs the cases; arguments choose them by a part of their names. */
import { rmSync } from "node:fs";
import { SCRATCH, runAll } from "./harness.mjs";
import "./client.test.mjs";
import "./turns.test.mjs";
import "./page.test.mjs";
import "./broker.test.mjs";
import "./docs.test.mjs";

const failed = await runAll(process.argv.slice(2));
rmSync(SCRATCH, { recursive: true, force: true });
process.exit(failed === 0 ? 0 : 1);
