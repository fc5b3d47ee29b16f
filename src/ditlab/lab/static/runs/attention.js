// Attention maps of the compared runs: of the same image at the same time, on one scale of colours.

import { legend } from "../draw/color.js";
import { h } from "../draw/dom.js";
import { percent } from "../draw/format.js";
import { Grid } from "../draw/grid.js";
import { arrays, at, encodeDrawing, floats, isAbort, query } from "../page/api.js";
import { selection } from "../page/state.js";
import { lettersOf, weightsOf } from "./columns.js";
import { Row } from "./rows.js";

/** @typedef {import("../page/api.js").Arrays} Arrays */
/** @typedef {import("../page/api.js").Tensor} Tensor */
/** @typedef {import("./columns.js").Place} Place */
/** @typedef {{input: string, label: number | null, source: string}} Shown the image a network is shown, by name, the label it
 *   is told, and the name of the image before it was handed on */
/** @typedef {{map: Float32Array, size: number, tokens: number, entropy: number, distance: number, arrays: Arrays, shown: Shown}} Found */

/** @param {ArrayLike<number>} values */
const mean = (values) => Array.from(values).reduce((a, b) => a + b, 0) / values.length;

/** An image of the run's own, where the page's is none it can be shown. @param {Place} place */
function ownInput({ run }) {
  const { input } = selection;
  if (/^sample:/.test(input) || (/^data:/.test(input) && run.has_examples)) return input;
  return run.has_examples ? "data:0" : "sample:0";
}

/** @param {Place} place @param {Shown} shown */
const where = (place, { input, label }) => ({ input, label, t: place.t, ...weightsOf(place) });

/** @param {Place} place @param {Shown} shown @param {AbortSignal} signal */
const loadInput = (place, shown, signal) => arrays(at(place.run.id, `/input${query(where(place, shown))}`), { signal });

/** The same, or null where it cannot be had: then the cell asks again, and says why. @param {Place} place @param {Shown} shown @param {AbortSignal} signal */
const tryInput = (place, shown, signal) => loadInput(place, shown, signal).catch((error) => {
  if (isAbort(error)) throw error;
  return null;
});

/** @param {ArrayLike<number>} a @param {ArrayLike<number>} b */
const alike = (a, b) => a.length === b.length && Array.from(a).every((value, i) => Math.abs(value - b[i]) < 1e-6);

/** The label that an image has, as far as this network knows it. @param {Place} first @param {Arrays} answer @param {Place} place */
function labelOf(first, { meta }, place) {
  const label = Number(meta.label);
  return first.run.num_classes === place.run.num_classes && place.run.num_classes !== null && label < place.run.num_classes ? label : null;
}

/**
 * One image for all networks that take its shape. Example 5 of two runs may be two images, for the order of examples
 * depends on seed and batch size; a generated one is each network's own. Then the first network's is handed to the others.
 * @param {Place[]} places with attention
 * @param {AbortSignal} signal
 * @returns {Promise<{shown: Map<string, Shown>, note: string}>} by letter
 */
async function sameImage(places, signal) {
  const shown = new Map(places.map((place) => {
    const input = fits(place) ? selection.input : ownInput(place);
    return [place.letter, { input, label: place.label, source: input }];
  }));
  const inputs = await Promise.all(places.map((place) => tryInput(place, /** @type {Shown} */ (shown.get(place.letter)), signal)));
  const there = places.filter((_, i) => inputs[i]);
  if (!there.length) return { shown, note: "" };
  const [first] = there;
  const peers = there.filter(({ run }) => String(run.shape) === String(first.run.shape));
  const strangers = there.filter((place) => !peers.includes(place));
  const other = strangers.length ? ` ${lettersOf(strangers)} ${strangers.length > 1 ? "take" : "takes"} images of another shape, and ${strangers.length > 1 ? "have their" : "has its"} own.` : "";
  if (peers.length < 2) return { shown, note: other };
  const answers = /** @type {Arrays[]} */ (inputs.filter((_, i) => peers.includes(places[i])));
  const x0 = floats(answers[0].arrays.x0);
  if (answers.every((answer) => alike(floats(answer.arrays.x0), x0))) return { shown, note: `The same image for ${lettersOf(peers)}.${other}` };
  if (first.run.data === "latents" || first.run.data === "external") return { shown, note: `Each network has its own image.${other}` };
  const input = encodeDrawing(Uint8Array.from(x0, (value) => Math.round(Math.min(255, Math.max(0, (value + 1) * 127.5)))));
  const source = /** @type {Shown} */ (shown.get(first.letter)).input;
  for (const place of peers) shown.set(place.letter, { input, label: place.label ?? labelOf(first, answers[0], place), source });
  return { shown, note: `The same image for ${lettersOf(peers)}: that of ${first.letter}, with 256 levels of grey or colour.${other}` };
}

/** Can this network be shown the image the page shows? @param {Place} place */
function fits({ run }) {
  if (run.id === selection.run) return true;
  return /^sample:/.test(selection.input) || (/^data:/.test(selection.input) && run.has_examples);
}

export class Attention extends Row {
  constructor() {
    super("Attention");
    /** @type {Map<string, Found>} by letter */
    this.found = new Map();
  }

  /** @param {Place[]} places @param {AbortSignal} signal */
  async show(places, signal) {
    const there = places.filter(({ layer }) => layer);
    this.foot.replaceChildren();
    if (!there.length) this.found = new Map();
    const { shown, note } = there.length ? await sameImage(there, signal) : { shown: new Map(), note: "" };
    /** @type {Map<string, Found>} */
    const found = new Map();
    await this.fill(places, async (place) => {
      const { layer, head, letter, run } = place;
      if (!layer) throw new Error(run.sections.attention ?? "There is no attention.");
      const image = shown.get(letter);
      const answer = await arrays(at(run.id, `/attention${query({ ...where(place, image), layer: layer.layer, head })}`), { signal });
      const { map, entropy, distance } = answer.arrays;
      found.set(letter, { map: floats(map), size: map.shape[0], tokens: layer.tokens, entropy: mean(floats(entropy)), distance: mean(floats(distance)), arrays: await loadInput(place, image, signal), shown: image });
    });
    this.found = found;
    this.draw(places, note);
  }

  /** Once all maps are there, they have one scale. @param {Place[]} places @param {string} note */
  draw(places, note) {
    const found = [...this.found.values()];
    this.note.textContent = found.length ? `${note} Row q of a map is what patch q looks at.`.trim() : "";
    if (!found.length) return;
    // Maps of more patches are paler all over: then a multiple of 1/N is what compares.
    const unlike = found.some(({ tokens }) => tokens !== found[0].tokens);
    const factor = (/** @type {Found} */ { tokens }) => (unlike ? tokens : 1);
    const high = Math.max(...found.map((one) => factor(one) * one.map.reduce((a, b) => Math.max(a, b), 0)));
    places.forEach((place, i) => {
      const one = this.found.get(place.letter);
      if (one) this.cells.children[i].append(pictures(place, one, high / factor(one)));
    });
    const ends = unlike ? { high: `${high.toFixed(1)} × 1/N`, label: "attention in all columns; equal shares would be 1/N" } : { high: percent(high), label: "attention, in all columns" };
    this.foot.replaceChildren(legend({ scale: "sequential", low: "0", ...ends }));
  }

  /** Canvases to be kept as a picture. */
  get canvases() {
    return [...this.cells.querySelectorAll("canvas")].filter((canvas) => canvas.classList.contains("grid-active"));
  }
}

/** @param {Place} place @param {Found} found @param {number} high */
function pictures({ letter, run, layer, head, t }, { map, size, tokens, entropy, distance, arrays: input }, high) {
  const [, height, width] = run.shape;
  const image = new Grid({ rows: 1, cols: 1, label: `What ${letter} is shown: the image at t = ${t.toFixed(2)}`, cellAspect: width / height });
  image.setImage({ shape: input.arrays.x.shape, data: floats(input.arrays.x) });
  const word = size < tokens ? "group" : "patch";
  const grid = new Grid({ rows: size, cols: size, label: `Attention map of ${letter}`, onHover: () => {},
    describe: (row, col) => `${word} ${row} looks at ${word} ${col}: ${percent(map[row * size + col])}` });
  grid.setValues(map, { rows: size, cols: size, high, format: percent });
  const at = run.attention.findIndex((one) => one === layer);
  return h("div", { class: "runs-attention" }, h("div", { class: "runs-seen" }, image.root), grid.root,
    h("p", { class: "quiet" }, `layer ${at}, ${head === "mean" ? "average of heads" : `head ${head}`}, t = ${t.toFixed(2)} · ${tokens} × ${tokens} · entropy ${entropy.toFixed(2)} bits · mean distance ${distance.toFixed(2)} patches`));
}
