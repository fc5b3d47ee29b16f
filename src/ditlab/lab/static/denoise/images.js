/** How images denoise: xₜ, the predicted clean image and the predicted noise or velocity, and a film of all steps. */
import { legend } from "../draw/color.js";
import { h } from "../draw/dom.js";
import { nearest } from "../draw/math.js";
import { imageCanvas } from "../draw/paint.js";
import { floats } from "../page/api.js";
import { decoded } from "../page/decoded.js";

/**
 * @typedef {import("../page/api.js").Run} Run
 * @typedef {import("../page/api.js").Arrays} Arrays
 * @typedef {import("./compare.js").View} View
 * @typedef {import("./compare.js").SideView} SideView
 */

/** Signed values are drawn from −3 to 3: noise hardly leaves that. */
const SIGNED = { signed: true, largest: 3 };
const FRAMES = 11;

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

/** Does the network say the velocity? The noise follows from it; from any other target only the noise is shown. @param {Run} run */
const saysVelocity = (run) => run.target === "velocity";

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
    const here = nearest(this.indices, index);
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
    // Few frames stay as large as many are.
    this.root.style.maxInlineSize = `max(20rem, ${count * 120}px)`;
    const context = this.canvas.getContext("2d");
    if (!context) return;
    context.imageSmoothingEnabled = false;
    this.indices.forEach((index, i) => {
      ["x", "x0"].forEach((name, row) => context.drawImage(imageCanvas({ shape: this.shape, data: sample(answer, name, index) }), i * (w + gap) + gap / 2, row * (tall + gap), w, tall));
    });
  }
}

/** @param {Run} run @param {() => "velocity" | "noise"} third @param {(t: number) => void} onPick @returns {SideView & {film: Film}} */
function side(run, third, onPick) {
  const [x, x0, said] = [frame("xₜ", "The image at time t"), frame("predicted x₀", "The clean image the network predicts"), frame("predicted velocity", "The predicted velocity")];
  const film = new Film(run.shape, onPick);
  const seen = decoded(run, ["xₜ", "predicted x₀"]);
  return {
    film,
    root: h("div", { class: "denoise-side" }, h("div", { class: "picture-row" }, x.root, x0.root, said.root), seen?.root ?? "", film.root),
    show: (answer, index) => {
      const paint = (/** @type {string} */ name, look = {}) => imageCanvas({ shape: run.shape, data: sample(answer, name, index) }, look);
      copy(x.canvas, paint("x"));
      copy(x0.canvas, paint("x0"));
      copy(said.canvas, paint(third() === "velocity" ? "prediction" : "eps", SIGNED));
      said.words.textContent = third() === "velocity" ? "predicted velocity" : "predicted noise ε";
      said.canvas.setAttribute("aria-label", third() === "velocity" ? "The velocity the network predicts" : "The noise in xₜ that the network predicts");
      film.show(answer, index);
      seen?.show([sample(answer, "x", index), sample(answer, "x0", index)]);
    },
  };
}

/** Both ends and their difference. @param {Run} run */
function between(run) {
  const [a, b, apart] = [frame("A at t = 0", "Where A ends"), frame("B at t = 0", "Where B ends"), frame("A − B", "The difference between the two ends")];
  const low = h("div");
  return {
    root: h("div", { class: "denoise-between" }, h("div", { class: "picture-row" }, a.root, b.root, apart.root), low),
    show: (/** @type {Arrays} */ one, /** @type {Arrays} */ other) => {
      const [left, right] = [one, other].map((answer) => sample(answer, "x", answer.arrays.x.shape[0] - 1));
      const { shape } = run;
      copy(a.canvas, imageCanvas({ shape, data: left }));
      copy(b.canvas, imageCanvas({ shape, data: right }));
      copy(apart.canvas, imageCanvas({ shape, data: left.map((value, i) => value - right[i]) }, { signed: true }));
      if (low.hasChildNodes()) return;
      if (shape[0] >= 3) low.append(h("p", { class: "quiet" }, `In each channel: A − B from −1 (dark) to 1 (bright), ${third(run)} from −3 to 3.`));
      else low.append(legend({ scale: "diverging", low: "−1", high: "1", label: "A − B" }), legend({ scale: "diverging", low: "−3", high: "3", label: third(run) }));
    },
  };
}

/** @param {Run} run */
const third = (run) => (saysVelocity(run) ? "velocity, noise" : "noise");

/** What the third picture shows: where the network says the velocity, the noise follows from it. @param {Run} run @param {() => void} redraw */
function thirdChoice(run, redraw) {
  if (!saysVelocity(run)) return null;
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
    intro: "Both sides start from the same noise and walk to t = 0. At every step the network makes a prediction, and the solver turns it into the next image. A cheaper solver asks the network less often and ends somewhere else."
      + (run.solvers.includes("average") ? " The solver “average” jumps by the mean velocity over each of its steps; the pictures show what the network predicts for a span of 0." : ""),
    n: 1,
    unit: run.data === "external" || run.data === "latents" ? "is the mean |A − B| over all values at t = 0" : "is the mean |A − B| over all pixels at t = 0, where black is −1 and white 1",
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
