/**
 * The last seconds as a strip: your level above the line, its below, and where turns ended, began and were cut.
 *
 * Draws what it is given; knows nothing of calls.
 * @module
 */

/** Seconds from edge to edge. */
const SPAN = 12;
/** Width of one column and the gap after it, px. */
const COLUMN = 4;
/** Peaks quieter than this are not seen, dB. */
const FLOOR = -54;

/** A peak from 0 to 1 as a height from 0 to 1, as ears judge it. @param {number} peak */
export function height(peak) {
  return peak <= 0 ? 0 : Math.max(0, 1 - (20 * Math.log10(Math.min(1, peak))) / FLOOR);
}

export class Strip {
  /** @type {HTMLCanvasElement} */ #canvas;
  /** @type {{ at: number, you: boolean, peak: number }[]} */ #peaks = [];
  /** @type {{ at: number, kind: "stopped" | "sound" | "cut" }[]} */ #marks = [];
  #calm = matchMedia("(prefers-reduced-motion: reduce)");
  #running = 0;

  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) { this.#canvas = canvas; }

  /** @param {boolean} you @param {number} peak */
  level(you, peak) { this.#peaks.push({ at: performance.now(), you, peak }); }

  /** @param {"stopped" | "sound" | "cut"} kind */
  mark(kind) { this.#marks.push({ at: performance.now(), kind }); }

  start() {
    if (this.#running) return;
    let drawn = 0;
    const draw = (/** @type {number} */ at) => {
      // Who wants little motion gets a strip that is redrawn twice a second, as a chart would be.
      if (!this.#calm.matches || at - drawn > 500) {
        this.#draw(performance.now());
        drawn = at;
      }
      this.#running = requestAnimationFrame(draw);
    };
    this.#running = requestAnimationFrame(draw);
  }

  stop() {
    cancelAnimationFrame(this.#running);
    this.#running = 0;
    this.#peaks = [];
    this.#marks = [];
    this.#draw(performance.now());
  }

  /** @param {number} now */
  #draw(now) {
    const { clientWidth: width, clientHeight: high } = this.#canvas;
    const scale = devicePixelRatio || 1;
    if (this.#canvas.width !== Math.round(width * scale)) this.#canvas.width = Math.round(width * scale);
    if (this.#canvas.height !== Math.round(high * scale)) this.#canvas.height = Math.round(high * scale);
    const paint = this.#canvas.getContext("2d");
    if (!paint || width === 0) return;
    paint.setTransform(scale, 0, 0, scale, 0, 0);
    paint.clearRect(0, 0, width, high);
    const colour = colours(this.#canvas);
    const since = now - SPAN * 1_000;
    this.#peaks = this.#peaks.filter(({ at }) => at > since);
    this.#marks = this.#marks.filter(({ at }) => at > since);
    const x = (/** @type {number} */ at) => ((at - since) / (SPAN * 1_000)) * width;
    const middle = high / 2;
    paint.fillStyle = colour.line;
    paint.fillRect(0, middle - 0.5, width, 1);
    // Columns stand at fixed moments, so that they move without changing.
    const column = (SPAN * 1_000 * COLUMN) / width;
    for (const you of [true, false]) {
      /** @type {Map<number, number>} */ const loudest = new Map();
      for (const { at, you: own, peak } of this.#peaks) {
        const n = Math.floor(at / column);
        if (own === you) loudest.set(n, Math.max(peak, loudest.get(n) ?? 0));
      }
      paint.fillStyle = you ? colour.you : colour.it;
      for (const [n, peak] of loudest) {
        const tall = height(peak) * (middle - 4);
        if (tall > 0.5) paint.fillRect(x(n * column), you ? middle - tall - 1 : middle + 1, COLUMN - 1, tall);
      }
    }
    for (const { at, kind } of this.#marks) this.#flag(paint, kind, x(at), middle, colour);
  }

  /**
   * @param {CanvasRenderingContext2D} paint @param {"stopped" | "sound" | "cut"} kind
   * @param {number} x @param {number} middle @param {Record<string, string>} colour
   */
  #flag(paint, kind, x, middle, colour) {
    paint.fillStyle = kind === "stopped" ? colour.you : kind === "sound" ? colour.it : colour.cut;
    paint.fillRect(x - 0.75, kind === "stopped" ? 0 : middle, 1.5, middle);
    paint.beginPath();
    paint.arc(x, kind === "stopped" ? 3 : middle * 2 - 3, 2.5, 0, Math.PI * 2);
    paint.fill();
  }
}

/** @param {HTMLElement} element */
function colours(element) {
  const style = getComputedStyle(element);
  const of = (/** @type {string} */ name) => style.getPropertyValue(name).trim();
  return { you: of("--you"), it: of("--it"), line: of("--line"), cut: of("--alarm") };
}
