// What training recorded of the gates, by training step.

import { number } from "../draw/format.js";
import { floats } from "./api.js";

/** @typedef {import("./api.js").Arrays} Arrays */
/** @typedef {import("./api.js").Tensor} Tensor */
/** @typedef {import("../draw/bars.js").Bar} Bar */

/** @param {ArrayLike<number>} values @returns {Bar} */
function spread(values) {
  const list = Array.from(values);
  return { mean: list.reduce((a, b) => a + b, 0) / list.length, low: Math.min(...list), high: Math.max(...list) };
}

/** Numbers and those that follow them. @param {Tensor | undefined} tensor @param {number[]} more @returns {Tensor} */
export function joined(tensor, more) {
  const data = Float32Array.from([...(tensor ? floats(tensor) : []), ...more]);
  return { shape: [data.length], data };
}

/** What /gates recorded, ready to be asked by training step. */
export class Recording {
  /** @param {Arrays} answer */
  constructor({ arrays: found, meta }) {
    this.found = { ...found };
    this.t = floats(found.t);
    this.layers = found.gate.shape[2];
    /** @type {number[]} */
    this.previews = JSON.parse(meta.previews ?? "[]");
    this.steps = [...floats(found.step)];
    this.gate = floats(found.gate);
    this.depths = floats(found.effective_depth);
  }

  /** Later steps of the same run. @param {Arrays} answer */
  add({ arrays: later }) {
    for (const name of ["step", "gate", "contribution", "effective_depth"]) {
      const [first, ...rest] = this.found[name].shape;
      const { data } = joined(this.found[name], [...floats(later[name])]);
      this.found[name] = { shape: [first + later[name].shape[0], ...rest], data };
    }
    this.steps = [...floats(this.found.step)];
    this.gate = floats(this.found.gate);
    this.depths = floats(this.found.effective_depth);
  }

  /** @param {number} index of the step @param {number} layer @param {number} branch @returns {Bar} over t */
  bar(index, layer, branch) {
    const times = this.t.length;
    return spread(Array.from({ length: times }, (_, i) => this.gate[((index * times + i) * this.layers + layer) * 2 + branch]));
  }

  /** @param {number} index @returns {[Bar, Bar][]} */
  pairs(index) {
    return Array.from({ length: this.layers }, (_, layer) => [this.bar(index, layer, 0), this.bar(index, layer, 1)]);
  }

  /** @param {number} index @returns {Bar} */
  depth(index) {
    return spread(this.depths.subarray(index * this.t.length, (index + 1) * this.t.length));
  }

  /** @param {number} index */
  mean(index) {
    const size = this.t.length * this.layers * 2;
    return spread(this.gate.subarray(index * size, (index + 1) * size)).mean;
  }

  /** How the gates went, in words. */
  get story() {
    const means = this.steps.map((_, i) => this.mean(i));
    const last = means.length - 1;
    const peak = means.indexOf(Math.max(...means));
    const at = (/** @type {number} */ i) => `${number(means[i])} at step ${this.steps[i].toLocaleString("en")}`;
    if (!(means[peak] > 0)) return "The gates are still shut.";
    if (means[last] > 0.95 * means[peak]) return `The gates kept opening to the end of the recording: mean |gate| is ${at(last)}.`;
    return `The gates opened fast and then closed again a little: mean |gate| was highest, ${at(peak)}, and is ${at(last)}.`;
  }

  get top() {
    return this.gate.reduce((most, value) => Math.max(most, value), 0) * 1.04 || 1;
  }

  /** The newest picture that is not newer than the step. @param {number} step @returns {number | undefined} */
  preview(step) {
    return this.previews.filter((one) => one <= step).pop();
  }
}
