// What the compared runs draw from the same noise.

import { h, s } from "../draw/dom.js";
import { imageCanvas } from "../draw/paint.js";
import { arrays, at, exported, floats, query } from "../page/api.js";
import { className } from "../page/conditions.js";
import { selection } from "../page/state.js";
import { grouped, lettersOf, weightsOf } from "./columns.js";
import { Row } from "./rows.js";

/** @typedef {import("../page/api.js").Tensor} Tensor */
/** @typedef {import("./columns.js").Place} Place */

const COLUMNS = 5;
const PARTICLES = 400;
const LIMIT = 3;
/** Multiply-accumulates that are worth more samples, and those of one sample that somebody has to ask for: a minute. */
const [WORTH, DEAR] = [2e11, 2e12];

/** What one sample costs at most: two passes a step, and two of each with guidance. @param {Place} place */
const costOf = ({ run }) => (run.macs ?? 0) * run.sampling.steps * 4;

/** How many samples of a run are drawn. @param {Place} place */
export function countOf(place) {
  if (place.run.shape.length === 1) return PARTICLES;
  const one = costOf(place);
  return 10 * one <= WORTH ? 10 : 5 * one <= WORTH ? 5 : 1;
}

/** @param {Place} place @returns {Record<string, string | number | null>} */
export const drawing = (place) => ({ seed: place.seed, label: place.label, n: countOf(place) });

/** Samples in rows of five, on one canvas. @param {Tensor} samples (n, C, H, W) @param {string} label */
function sheet(samples, label) {
  const [n, channels, height, width] = samples.shape;
  const columns = Math.min(COLUMNS, n);
  const scale = Math.max(1, Math.round(64 / width));
  const gap = Math.max(1, Math.round((width * scale) / 16));
  const [w, tall] = [width * scale + gap, height * scale + gap];
  const canvas = h("canvas", { class: "picture runs-sheet", role: "img", "aria-label": label, width: columns * w - gap, height: Math.ceil(n / columns) * tall - gap });
  const context = canvas.getContext("2d");
  if (!context) return canvas;
  context.imageSmoothingEnabled = false;
  const data = floats(samples);
  const size = channels * height * width;
  for (let i = 0; i < n; i += 1) {
    const image = imageCanvas({ shape: [channels, height, width], data: data.subarray(i * size, (i + 1) * size) });
    context.drawImage(image, (i % columns) * w, Math.floor(i / columns) * tall, w - gap, tall - gap);
  }
  return canvas;
}

/** Points in the plane, all columns on the same axes. @param {Tensor} samples (n, 2) @param {string} label @param {number} index */
function plane(samples, label, index) {
  const data = floats(samples);
  const dots = Array.from({ length: samples.shape[0] }, (_, i) => s("circle", { cx: data[2 * i], cy: -data[2 * i + 1], r: 0.045 }));
  const axes = [s("line", { x1: -LIMIT, x2: LIMIT, y1: 0, y2: 0 }), s("line", { x1: 0, x2: 0, y1: -LIMIT, y2: LIMIT })];
  return s("svg", { class: `runs-plane chart-colour-${index}`, role: "img", "aria-label": label, viewBox: `${-LIMIT} ${-LIMIT} ${2 * LIMIT} ${2 * LIMIT}` }, axes, dots);
}

export class Samples extends Row {
  constructor() {
    super("Samples from the same noise");
    /** @type {Map<string, Tensor>} by letter */
    this.found = new Map();
    /** Large networks that were asked for samples all the same. @type {Set<string>} */
    this.wanted = new Set();
    this.again = () => {};
  }

  /** In the place of samples that would take a minute. @param {Place} place */
  ask({ run }) {
    const draw = () => {
      this.wanted.add(run.id);
      this.again();
    };
    return [h("p", { class: "quiet" }, "A sample of a network this large takes a minute or more."), h("button", { type: "button", class: "tool", onclick: draw }, "Draw one")];
  }

  /** @param {Place[]} places @param {AbortSignal} signal @param {() => void} again shows this row once more */
  async show(places, signal, again) {
    this.again = again;
    const found = new Map();
    await this.fill(places, async (place) => {
      if (costOf(place) > DEAR && !exported && !this.wanted.has(place.run.id)) return this.ask(place);
      const path = at(place.run.id, `/samples${query({ ...weightsOf(place), ...drawing(place) })}`);
      const { arrays: answer, meta } = await arrays(path, { signal });
      found.set(place.letter, answer.samples);
      const { run, letter, seed, index } = place;
      const label = `Samples of ${letter}, ${run.name}, from the noise of seed ${seed}`;
      const picture = run.shape.length === 3 ? sheet(answer.samples, label) : plane(answer.samples, label, index);
      return [picture, h("p", { class: "quiet" }, [`seed ${seed}`, labelled(place), meta.drawn].filter(Boolean).join(" · "))];
    });
    this.found = found;
    this.note.textContent = sentence(places);
  }

  /** Canvases to be kept as a picture. */
  get canvases() {
    return [...this.cells.querySelectorAll("canvas")];
  }
}

/** @param {Place} place */
function labelled({ run, label }) {
  if (run.num_classes === null) return "";
  return label === null ? "one label after the other" : `label ${className(run, label)}`;
}

/** Who starts from the same noise. @param {Place[]} places */
function sentence(places) {
  const noises = grouped(places, ({ run, seed }) => `${run.shape} ${seed}`);
  const same = noises.filter((group) => group.length > 1).map((group) => `${lettersOf(group)} start from the same noise`);
  const shapes = new Set(places.map(({ run }) => String(run.shape))).size > 1;
  const seeds = new Set(places.map(({ seed }) => seed)).size > 1;
  const why = [shapes && "samples of another shape need different noise", seeds && "another seed gives different noise"].filter(Boolean).join(", and ");
  const twins = grouped(places, (place) => [place.run.id, place.step, selection.weights, place.seed, place.label].join(" ")).filter((group) => group.length > 1)
    .map((group) => `${lettersOf(group)} are the same network with the same noise, so their samples are the same.`);
  const all = noises.length === 1 ? "All columns start from the same noise: what differs is what the networks make of it." : `${[...same, why].join("; ")}.`;
  const channels = places.some(({ run }) => run.shape.length === 3 && run.shape[0] > 3) ? ["With more than three channels, the first three are shown as colours."] : [];
  return [all.charAt(0).toUpperCase() + all.slice(1), ...twins, ...channels].join(" ");
}
