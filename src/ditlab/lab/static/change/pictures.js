// What the network says of the chosen image, as it was trained and changed, and the difference.

import { legend } from "../draw/color.js";
import { h } from "../draw/dom.js";
import { number } from "../draw/format.js";
import { imageCanvas } from "../draw/paint.js";
import { floats } from "../page/api.js";
import { words } from "./edits.js";
import { apart } from "./samples.js";

/** @typedef {import("../page/api.js").Run} Run */
/** @typedef {import("../page/api.js").Tensor} Tensor */

/** @param {string} caption @param {string} label */
function frame(caption, label) {
  const canvas = h("canvas", { class: "picture", role: "img", "aria-label": label, width: 1, height: 1 });
  return { canvas, root: h("figure", { class: "picture-frame" }, canvas, h("figcaption", null, caption)) };
}

/** @param {HTMLCanvasElement} to @param {HTMLCanvasElement} from */
function copy(to, from) {
  [to.width, to.height] = [from.width, from.height];
  to.getContext("2d")?.drawImage(from, 0, 0);
}

export class Pictures {
  /** @param {Run} run */
  constructor(run) {
    this.run = run;
    this.frames = [frame("as trained", "The clean image that the network predicts, as it was trained"),
      frame("changed", "The clean image that the changed network predicts"), frame("changed − as trained", "The difference between the two predictions")];
    this.verdict = h("p", { class: "change-verdict", "aria-live": "polite" });
    const scale = run.shape[0] >= 3 ? h("p", { class: "quiet" }, "Difference in each channel, from −1 (dark) to 1 (bright).")
      : legend({ scale: "diverging", low: "−1", high: "1", label: "difference" });
    this.row = h("div", { hidden: true }, h("div", { class: "picture-row" }, this.frames.map(({ root }) => root)), scale);
    this.root = h("div", null, h("h3", null, "What it predicts: the clean image x₀"), this.row, this.verdict);
  }

  /** @param {Tensor} before @param {Tensor} after */
  show(before, after) {
    this.row.hidden = false;
    const { shape } = this.run;
    const [left, right] = [floats(before), floats(after)];
    const looks = [imageCanvas({ shape, data: left }), imageCanvas({ shape, data: right }), imageCanvas({ shape, data: right.map((value, i) => value - left[i]) }, { signed: true })];
    looks.forEach((look, i) => copy(this.frames[i].canvas, look));
    this.verdict.replaceChildren(...(words().length
      ? [h("strong", { class: "compare-number" }, number(apart(before, after))), " is the mean |difference| over all values."]
      : [h("span", { class: "quiet" }, "Nothing is changed yet: both are the same. Switch something off.")]));
  }

  /** Say why there is nothing to see. @param {string} why */
  absent(why) {
    this.row.hidden = true;
    this.verdict.textContent = why;
  }

  /** All three beside each other. */
  together() {
    const canvases = this.frames.map(({ canvas }) => canvas);
    if (this.row.hidden) return null;
    const scale = Math.max(1, Math.round(192 / canvases[0].width));
    const [w, t] = [canvases[0].width * scale, canvases[0].height * scale];
    const whole = h("canvas", { width: 3 * (w + 12) - 12, height: t });
    const context = whole.getContext("2d");
    if (context) context.imageSmoothingEnabled = false;
    canvases.forEach((canvas, i) => context?.drawImage(canvas, i * (w + 12), 0, w, t));
    return whole;
  }
}
