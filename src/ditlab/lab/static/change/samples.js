// Whole samples from the same noise, drawn by the network as it was trained and by the changed one.

import { h } from "../draw/dom.js";
import { number } from "../draw/format.js";
import { imageCanvas } from "../draw/paint.js";
import { arrays, at, choices, floats, isAbort, latest, query } from "../page/api.js";
import { selection, whichWeights } from "../page/state.js";
import { onTheme } from "../page/theme.js";

/** @typedef {import("../page/api.js").Run} Run */
/** @typedef {import("../page/api.js").Tensor} Tensor */

const GAP = 2;
/** Multiply-accumulates that the lab does in a few seconds. */
const AT_ONCE = 1e11;

/** Mean |a − b| over all values. @param {Tensor} a @param {Tensor} b */
export function apart(a, b) {
  const [x, y] = [floats(a), floats(b)];
  return x.reduce((sum, value, i) => sum + Math.abs(value - y[i]), 0) / x.length;
}

/** Images in a row. @param {HTMLCanvasElement} canvas @param {Tensor} samples (n, C, H, W) */
function strip(canvas, samples) {
  const [n, ...shape] = samples.shape;
  const [height, width] = shape.slice(-2);
  const size = shape.reduce((a, b) => a * b, 1);
  const scale = Math.max(1, Math.round(64 / width));
  [canvas.width, canvas.height] = [n * (width * scale + GAP) - GAP, height * scale];
  const context = canvas.getContext("2d");
  if (!context) return;
  context.imageSmoothingEnabled = false;
  const data = floats(samples);
  for (let i = 0; i < n; i += 1) {
    context.drawImage(imageCanvas({ shape, data: data.subarray(i * size, (i + 1) * size) }), i * (width * scale + GAP), 0, width * scale, height * scale);
  }
}

/** Points in the plane, from −3 to 3. @param {HTMLCanvasElement} canvas @param {Tensor} samples (n, 2) */
function cloud(canvas, samples) {
  const [side, limit] = [480, 3.2];
  [canvas.width, canvas.height] = [side, side];
  const context = canvas.getContext("2d");
  if (!context) return;
  const style = getComputedStyle(canvas);
  context.fillStyle = style.getPropertyValue("--plane");
  context.fillRect(0, 0, side, side);
  context.fillStyle = style.color;
  const data = floats(samples);
  const place = (/** @type {number} */ value) => ((value + limit) / (2 * limit)) * side;
  for (let i = 0; i < data.length; i += 2) {
    context.beginPath();
    context.arc(place(data[i]), side - place(data[i + 1]), 3, 0, 2 * Math.PI);
    context.fill();
  }
}

export class Samples {
  /** @param {Run} run */
  constructor(run) {
    this.run = run;
    this.images = run.shape.length === 3;
    /** @type {{before: Tensor, after: Tensor} | null} */
    this.both = null;
    this.drawn = () => {};
    this.next = latest();
    const canvas = (/** @type {string} */ label) => h("canvas", { class: this.images ? "picture" : "plane cloud", role: "img", "aria-label": label, width: 1, height: 1 });
    this.canvases = [canvas("Samples of the network as it was trained"), canvas("Samples of the changed network, from the same noise")];
    this.note = h("p", { class: "quiet", "aria-live": "polite" });
    this.begin = h("button", { type: "button", hidden: true, onclick: () => void this.draw(this.next()) }, "Draw the samples");
    const figures = ["as trained", "changed"].map((caption, i) => h("figure", null, this.canvases[i], h("figcaption", null, caption)));
    this.frame = h("div", { class: this.images ? "change-strips" : "change-clouds", hidden: true }, figures);
    this.root = h("div", null, h("h3", null, "What it draws from the same noise"), this.frame, this.begin, this.note);
    onTheme(() => this.paint());
  }

  /** @param {() => void} fn called after new samples are shown */
  onDrawn(fn) {
    this.drawn = fn;
  }

  /** What is asked for, as `Lens.samples` takes it. */
  asked() {
    return { n: this.run.draws, label: (choices() ? null : selection.label) ?? undefined, cond: selection.cond || undefined };
  }

  /** @param {AbortSignal} signal */
  async load(signal) {
    const { macs, sampling } = this.run;
    this.begin.hidden = choices() !== null || (macs ?? 0) * this.asked().n * sampling.steps * 2 <= AT_ONCE;
    this.next();
    if (this.begin.hidden) return this.draw(signal);
    this.both = null;
    this.frame.hidden = true;
    this.note.textContent = "This network is large: drawing takes a while.";
  }

  /** @param {AbortSignal} signal */
  async draw(signal) {
    const ask = async (/** @type {string} */ edits) => (await arrays(at(this.run.id, `/samples${query({ ...whichWeights(), ...this.asked(), edits: edits || null })}`), { signal })).arrays.samples;
    try {
      const [before, after] = await Promise.all([ask(""), ask(selection.edits)]);
      this.both = { before, after };
      this.frame.hidden = false;
      this.paint();
      this.note.textContent = selection.edits ? `On average they differ by ${number(apart(before, after))} in each value.` : "";
    } catch (error) {
      if (isAbort(error)) throw error;
      this.both = null;
      this.frame.hidden = true;
      this.note.textContent = error instanceof Error ? error.message : String(error);
    }
    this.drawn();
  }

  paint() {
    if (!this.both) return;
    const look = this.images ? strip : cloud;
    look(this.canvases[0], this.both.before);
    look(this.canvases[1], this.both.after);
  }

  /** Of each sample (of points: of all), how far apart both are. @returns {number[]} */
  distances() {
    if (!this.both) return [];
    if (!this.images) return [apart(this.both.before, this.both.after)];
    const [n] = this.both.before.shape;
    const [x, y] = [floats(this.both.before), floats(this.both.after)];
    const size = x.length / n;
    return Array.from({ length: n }, (_, i) => {
      let sum = 0;
      for (let k = i * size; k < (i + 1) * size; k += 1) sum += Math.abs(x[k] - y[k]);
      return sum / size;
    });
  }

  /** Both under each other. */
  picture() {
    if (!this.both) return null;
    const [one, other] = this.canvases;
    const whole = h("canvas", { width: one.width, height: one.height + 24 + other.height });
    const context = whole.getContext("2d");
    context?.drawImage(one, 0, 0);
    context?.drawImage(other, 0, one.height + 24);
    return whole;
  }
}
