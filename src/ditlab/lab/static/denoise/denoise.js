/** Section 6, Denoise: from noise to data, step by step. */
import { Comparison } from "./compare.js";
import { imagesView } from "./images.js";
import { pointsView } from "./points.js";

/** @param {HTMLElement} root @param {import("../page/api.js").Run} run */
export function mount(root, run) {
  new Comparison(run, run.shape.length === 1 ? pointsView(run) : imagesView(run)).mount(root);
}
