// The numbers behind a picture of attention, for one patch and for its whole layer and head, with their formulas.

import { arrays, at, floats, latest, query } from "./api.js";
import { clear, h } from "./dom.js";
import { chosenHead, numbersOf, percent, view } from "./maps.js";
import { where } from "./state.js";

/** @typedef {import("./api.js").Run} Run */
/** @typedef {import("./maps.js").NumberName} NumberName */
/** @typedef {import("./maps.js").Numbers} Numbers */
/** @typedef {{layer: import("./api.js").AttentionLayer, attention: import("./maps.js").AttentionMap, mass: Float32Array}} Shown */
/** @typedef {Record<string, number>} Found */

/** @typedef {{title: string, formula: string, value: (n: Found) => string}} Line */

/** @type {Line[]} */
const LINES = [
  { title: "Entropy", formula: "−Σ A log₂ A; all patches alike: log₂ N", value: (n) => `${n.entropy.toFixed(2)} bits` },
  { title: "Mean distance", formula: "Σ A · |position q − position k|", value: (n) => `${n.distance.toFixed(2)} patches` },
  { title: "Rank of itself", formula: "1 + number of patches with more attention than the query itself", value: (n) => n.diagonal_rank.toFixed(n.diagonal_rank % 1 ? 1 : 0) },
  { title: "On the object", formula: "Σ A · m against mean m, with m the patch’s brightness in x₀", value: (n) => `${percent(n.inside)} (chance ${percent(n.inside_chance)})` },
  { title: "On itself and its neighbours", formula: "Σ A over the patch and the ≤ 8 around it against their share of all patches", value: (n) => `${percent(n.near)} (chance ${percent(n.near_chance)})` },
];

const WHOLE = "Whole layer and head: the mean over all queries; “on the object” weighs them by m, “on itself and its neighbours” by 1 − m.";

/** The whole layer and head, from the lab. @param {Run} run @param {Shown} shown @param {AbortSignal} signal @returns {Promise<Found>} */
async function ofLayer(run, shown, signal) {
  const { arrays: found } = await arrays(at(run.id, `/attention/statistics${query(where())}`), { signal });
  const head = chosenHead(shown.layer);
  const row = run.attention.indexOf(shown.layer);
  return Object.fromEntries(Object.entries(found).map(([name, tensor]) => {
    const columns = tensor.shape[1];
    return [name, floats(tensor)[row * columns + (head === "mean" ? columns - 1 : head)]];
  }));
}

/** One query: from its row of the map in memory, or, if that map is pooled, from the exact row. @param {Run} run @param {Shown} shown @param {number} patch @param {AbortSignal} signal @returns {Promise<Found>} */
async function ofPatch(run, shown, patch, signal) {
  const { layer, attention, mass } = shown;
  if (attention.pool === 1) return numbersOf(view(attention, patch, "from"), patch, layer.grid, mass);
  const path = at(run.id, `/attention/row${query({ ...where(), layer: layer.layer, head: chosenHead(layer), query: patch, direction: "from" })}`);
  const { arrays: found } = await arrays(path, { signal });
  return numbersOf(floats(found.row), patch, layer.grid, mass);
}

/** @param {Run} run */
export function numbersTable(run) {
  const nextPatch = latest();
  const nextLayer = latest();
  const cells = LINES.map(() => [h("td", null, "…"), h("td", null, "…")]);
  const heading = h("th", { scope: "col" }, "This patch");
  const whole = h("th", { scope: "col" }, "Whole layer and head");
  const root = h("div", { class: "numbers" }, h("h3", null, "In numbers"), h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Attention in numbers" },
    h("table", { class: "wide" }, h("caption", null, WHOLE),
      h("thead", null, h("tr", null, h("th", { scope: "col" }, "Number"), heading, whole, h("th", { scope: "col" }, "How it is computed"))),
      h("tbody", null, LINES.map((line, i) => h("tr", null, h("th", { scope: "row" }, line.title), cells[i], h("td", { class: "formula" }, line.formula)))))));

  const fill = (/** @type {number} */ column, /** @type {Found | null} */ found) => LINES.forEach((line, i) => clear(cells[i][column]).append(found ? line.value(found) : "–"));

  /** @param {Shown} shown @param {number} patch */
  const show = async (shown, patch) => {
    const head = chosenHead(shown.layer);
    heading.textContent = `Patch ${patch}`;
    whole.textContent = `Layer ${run.attention.indexOf(shown.layer)}, ${head === "mean" ? "average of heads" : `head ${head}`}`;
    const layer = ofLayer(run, shown, nextLayer());
    layer.catch(() => fill(1, null));
    fill(0, await ofPatch(run, shown, patch, nextPatch()));
    fill(1, await layer);
  };
  return { root, show };
}
