/** How images denoise: xₜ, the predicted clean image and the predicted noise or velocity, and a film of all steps. */
import { h } from "./dom.js";
import { floats } from "./api.js";
import { diverging, grey, legend } from "./color.js";

/**
 * @typedef {import("./api.js").Run} Run
 * @typedef {import("./api.js").Arrays} Arrays
 * @typedef {import("./compare.js").View} View
 * @typedef {import("./compare.js").SideView} SideView
 * @typedef {"grey" | "signed"} Look
 */

/** Signed values are drawn from −3 to 3: noise hardly leaves that. */
const LARGEST = 3;
const FRAMES = 11;

/** One image as a tiny canvas, a pixel a pixel. @param {ArrayLike<number>} data @param {number[]} shape C, H, W @param {Look} look
 * @param {number} [largest] @returns {HTMLCanvasElement} */
function paint(data, [channels, height, width], look, largest = LARGEST) {
  const pixels = new ImageData(width, height);
  const size = height * width;
  for (let i = 0; i < size; i++) {
    const value = (/** @type {number} */ c) => data[i + (channels >= 3 ? c * size : 0)];
    // Three channels are red, green and blue, also where they are signed: zero is middle grey.
    const shade = (/** @type {number} */ c) => grey(look === "signed" ? value(c) / largest : value(c))[0];
    const rgb = channels < 3 && look === "signed" ? diverging(value(0) / largest) : [shade(0), shade(1), shade(2)];
    pixels.data.set([...rgb, 255], 4 * i);
  }
  const canvas = h("canvas", { width, height });
  canvas.getContext("2d")?.putImageData(pixels, 0, 0);
  return canvas;
}

/** @param {HTMLCanvasElement} to @param {HTMLCanvasElement} from */
function copy(to, from) {
  if (to.width !== from.width || to.height !== from.height) [to.width, to.height] = [from.width, from.height];
  to.getContext("2d")?.drawImage(from, 0, 0);
}

/** The first sample of one state. @param {Arrays} answer @param {string} name @param {number} index */
function sample(answer, name, index) {
  const { shape } = answer.arrays[name];
  const one = shape.slice(2).reduce((a, b) => a * b, 1);
  const from = index * shape[1] * one;
  return floats(answer.arrays[name]).subarray(from, from + one);
}

/** @param {string} caption @param {string} label */
function frame(caption, label) {
  const canvas = h("canvas", { class: "picture", role: "img", "aria-label": label, width: 1, height: 1 });
  const words = h("figcaption", null, caption);
  return { root: h("figure", { class: "picture-frame" }, canvas, words), canvas, words };
}

/** @param {Run} run */
const predictions = (run) => (run.process === "flow" || run.target === "velocity" ? "velocity" : "noise");

/** All steps, or as many as fit: xₜ above, the predicted clean image below. */
class Film {
  /** @param {number[]} shape @param {(t: number) => void} onPick */
  constructor(shape, onPick) {
    this.shape = shape;
    /** @type {number[]} */
    this.indices = [];
    /** @type {Arrays | null} */
    this.answer = null;
    this.canvas = h("canvas", { class: "film", role: "img", "aria-label": "Film of the trajectory: xₜ above, the predicted clean image below, noise at the left, data at the right" });
    this.cursor = h("div", { class: "film-cursor", "aria-hidden": "true" });
    this.root = h("div", { class: "film-frame" },
      h("div", { class: "film-strip" }, this.canvas, this.cursor),
      h("div", { class: "film-ends", "aria-hidden": "true" }, h("span", null, "t = 1, noise"), h("span", { class: "film-rows" }, "above xₜ, below predicted x₀"), h("span", null, "t = 0, data")));
    // The slider is the film's keyboard: clicking is a shortcut.
    this.canvas.addEventListener("click", (event) => {
      const share = event.offsetX / this.canvas.clientWidth;
      const index = this.indices[Math.min(this.indices.length - 1, Math.floor(share * this.indices.length))];
      if (this.answer) onPick(floats(this.answer.arrays.t)[index]);
    });
  }

  /** @param {Arrays} answer @param {number} index */
  show(answer, index) {
    if (answer !== this.answer) this.draw(answer);
    // The frame nearest to the chosen step: with many steps not each has one.
    const here = this.indices.reduce((best, one, i) => (Math.abs(one - index) < Math.abs(this.indices[best] - index) ? i : best), 0);
    this.cursor.style.insetInlineStart = `${(100 * here) / this.indices.length}%`;
    this.cursor.style.inlineSize = `${100 / this.indices.length}%`;
  }

  /** @param {Arrays} answer */
  draw(answer) {
    this.answer = answer;
    const steps = answer.arrays.t.shape[0];
    const count = Math.min(FRAMES, steps);
    this.indices = Array.from({ length: count }, (_, i) => Math.round((i * (steps - 1)) / Math.max(1, count - 1)));
    const [, height, width] = this.shape;
    const scale = Math.max(1, Math.round(96 / width));
    const [w, tall, gap] = [width * scale, height * scale, 6];
    [this.canvas.width, this.canvas.height] = [count * (w + gap), 2 * tall + gap];
    const context = this.canvas.getContext("2d");
    if (!context) return;
    context.imageSmoothingEnabled = false;
    this.indices.forEach((index, i) => {
      ["x", "x0"].forEach((name, row) => context.drawImage(paint(sample(answer, name, index), this.shape, "grey"), i * (w + gap) + gap / 2, row * (tall + gap), w, tall));
    });
  }
}

/** @param {Run} run @param {() => "velocity" | "noise"} third @param {(t: number) => void} onPick @returns {SideView & {film: Film}} */
function side(run, third, onPick) {
  const [x, x0, said] = [frame("xₜ", "The image at time t"), frame("predicted x₀", "The clean image the network predicts"), frame("predicted velocity", "What the network predicts")];
  const film = new Film(run.shape, onPick);
  return {
    film,
    root: h("div", { class: "denoise-side" }, h("div", { class: "picture-row" }, x.root, x0.root, said.root), film.root),
    show: (answer, index) => {
      copy(x.canvas, paint(sample(answer, "x", index), run.shape, "grey"));
      copy(x0.canvas, paint(sample(answer, "x0", index), run.shape, "grey"));
      const name = third() === predictions(run) && run.target !== "x0" && run.target !== "v" ? "prediction" : "eps";
      copy(said.canvas, paint(sample(answer, name, index), run.shape, "signed"));
      said.words.textContent = third() === "velocity" ? "predicted velocity" : "predicted noise ε";
      film.show(answer, index);
    },
  };
}

/** Both ends and their difference. @param {Run} run */
function between(run) {
  const [a, b, apart] = [frame("A at t = 0", "Where A ends"), frame("B at t = 0", "Where B ends"), frame("A − B", "The difference of both ends")];
  const low = h("div");
  return {
    root: h("div", { class: "denoise-between" }, h("div", { class: "picture-row" }, a.root, b.root, apart.root), low),
    show: (/** @type {Arrays} */ one, /** @type {Arrays} */ other) => {
      const [left, right] = [one, other].map((answer) => sample(answer, "x", answer.arrays.x.shape[0] - 1));
      copy(a.canvas, paint(left, run.shape, "grey"));
      copy(b.canvas, paint(right, run.shape, "grey"));
      copy(apart.canvas, paint(left.map((value, i) => value - right[i]), run.shape, "signed", 1));
      if (!low.hasChildNodes()) low.append(legend({ scale: "diverging", low: "−1", high: "1", label: "A − B" }), legend({ scale: "diverging", low: "−3", high: "3", label: third(run) }));
    },
  };
}

/** @param {Run} run */
const third = (run) => (predictions(run) === "velocity" ? "velocity, noise" : "noise");

/** What the third picture shows: where the network says the velocity, the noise follows from it. @param {Run} run @param {() => void} redraw */
function thirdChoice(run, redraw) {
  if (predictions(run) !== "velocity") return null;
  const select = h("select", { id: "denoise-third", onchange: redraw }, h("option", { value: "velocity" }, "velocity"), h("option", { value: "noise" }, "noise ε"));
  return h("div", { class: "setting" }, h("label", { for: "denoise-third" }, "Third picture"), select);
}

/** Two films under each other. @param {Film[]} films */
function together(films) {
  const canvases = films.map((film) => film.canvas);
  if (canvases.some((canvas) => !canvas.width)) return null;
  const width = Math.max(...canvases.map((canvas) => canvas.width));
  const whole = h("canvas", { width, height: canvases.reduce((sum, canvas) => sum + canvas.height + 24, -24) });
  const context = whole.getContext("2d");
  let y = 0;
  for (const canvas of canvases) {
    context?.drawImage(canvas, 0, y);
    y += canvas.height + 24;
  }
  return whole;
}

/** @param {Run} run @returns {View} */
export function imagesView(run) {
  /** @type {Film[]} */
  const films = [];
  let redraw = () => {};
  const extra = thirdChoice(run, () => redraw());
  const chosen = () => /** @type {"velocity" | "noise"} */ (extra?.querySelector("select")?.value ?? "noise");
  return {
    intro: "Both sides start from the same noise and walk to t = 0. At every step the network says what it sees; the solver turns that into the next image. A cheaper solver asks less often, and ends somewhere else.",
    n: 1,
    unit: "is the mean |A − B| over all pixels at t = 0, where black is −1 and white 1",
    extra,
    side: (onPick) => {
      const made = side(run, chosen, onPick);
      films.push(made.film);
      return made;
    },
    between: between(run),
    distance: (x, y) => x.reduce((sum, value, i) => sum + Math.abs(value - y[i]), 0) / x.length,
    picture: () => together(films),
    onRedraw: (fn) => {
      redraw = fn;
    },
  };
}
