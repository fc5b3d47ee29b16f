// The numbers behind a picture of attention, for one patch and for its whole layer and head, with their formulas.

import { clear, h } from "../draw/dom.js";
import { listed, percent } from "../draw/format.js";
import { chosenHead, neighbours } from "./maps.js";

/** @typedef {import("../page/api.js").Run} Run */
/** @typedef {import("./maps.js").AttentionMap} AttentionMap */
/** @typedef {{layer: import("../page/api.js").AttentionLayer, attention: AttentionMap}} Shown */
/** @typedef {{entropy: number, distance: number, diagonal_rank: number, inside: number, inside_chance: number, near: number, near_chance: number, tokens: number[]}} Found */

/** @typedef {{title: string, formula: string, value: (n: Found) => string}} Line */

/** @type {Line[]} */
const LINES = [
  { title: "Entropy", formula: "−Σ A log₂ A; equal shares for all patches: log₂ N", value: (n) => `${n.entropy.toFixed(2)} bits` },
  { title: "Mean distance", formula: "Σ A · |position q − position k|", value: (n) => `${n.distance.toFixed(2)} patches` },
  { title: "Rank of itself", formula: "1 + number of patches with more attention than the query itself", value: (n) => n.diagonal_rank.toFixed(n.diagonal_rank % 1 ? 1 : 0) },
  { title: "On the object", formula: "Σ A · m against mean m, with m the patch’s brightness in x₀", value: (n) => `${percent(n.inside)} (chance ${percent(n.inside_chance)})` },
  { title: "On itself and its neighbours", formula: "Σ A over the patch and the ≤ 8 around it against their share of all patches", value: (n) => `${percent(n.near)} (chance ${percent(n.near_chance)})` },
];

/** What goes to the tokens of the conditions, where they are in the sequence. @param {string[]} names @returns {Line[]} */
function conditionLines(names) {
  const one = names.map((name, k) => ({ title: `To the token ${name}`, formula: `A of the key ${name}`, value: (/** @type {Found} */ n) => percent(n.tokens[k] ?? 0) }));
  const all = { title: "To the condition tokens", formula: `Σ A over ${listed(names)}: with the picture’s share it makes 100 %`, value: (/** @type {Found} */ n) => percent(n.tokens.reduce((a, b) => a + b, 0)) };
  return names.length > 1 ? [all, ...one] : names.length ? [all] : [];
}

const AMONG = "The other numbers cover patches only: A divided by its sum over the patches.";
const WHOLE = "Whole layer and head: the mean over all queries; “on the object” weights them by m, “on itself and its neighbours” by 1 − m.";

/** Mean of `values`; with weights that are all 0, it is 0. @param {ArrayLike<number>} values @param {(i: number) => number} [weight] */
function mean(values, weight = () => 1) {
  let [sum, total] = [0, 0];
  for (let i = 0; i < values.length; i += 1) {
    sum += weight(i) * values[i];
    total += weight(i);
  }
  return total > 0 ? sum / total : 0;
}

/** One query. @param {Shown} shown @param {number} patch @returns {Found} */
function ofPatch({ layer, attention: { queries, mass, toTokens } }, patch) {
  const { entropy, distance, diagonal_rank, inside, near } = queries;
  return { entropy: entropy[patch], distance: distance[patch], diagonal_rank: diagonal_rank[patch], inside: inside[patch],
    inside_chance: mean(mass), near: near[patch], near_chance: neighbours(patch, layer.grid) / mass.length, tokens: toTokens.map((column) => column[patch]) };
}

/** All queries of the chosen layer and head. @param {Shown} shown @returns {Found} */
function ofLayer({ layer, attention: { queries, mass, toTokens } }) {
  const background = (/** @type {number} */ i) => 1 - mass[i];
  const close = Float64Array.from(mass, (_, i) => neighbours(i, layer.grid) / mass.length);
  return { entropy: mean(queries.entropy), distance: mean(queries.distance), diagonal_rank: mean(queries.diagonal_rank),
    inside: mean(queries.inside, (i) => mass[i]), inside_chance: mean(mass), near: mean(queries.near, background), near_chance: mean(close, background),
    tokens: toTokens.map((column) => mean(column)) };
}

/** @param {Run} run */
export function numbersTable(run) {
  const lines = [...LINES, ...conditionLines(run.condition_tokens)];
  const cells = lines.map(() => [h("td", null, "…"), h("td", null, "…")]);
  const heading = h("th", { scope: "col" }, "This patch");
  const whole = h("th", { scope: "col" }, "Whole layer and head");
  const root = h("div", { class: "numbers" }, h("h3", null, "In numbers"), h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Attention in numbers" },
    h("table", { class: "wide" }, h("caption", null, run.condition_tokens.length ? `${WHOLE} ${AMONG}` : WHOLE),
      h("thead", null, h("tr", null, h("th", { scope: "col" }, "Number"), heading, whole, h("th", { scope: "col" }, "How it is computed"))),
      h("tbody", null, lines.map((line, i) => h("tr", null, h("th", { scope: "row" }, line.title), cells[i], h("td", { class: "formula" }, line.formula)))))));

  /** @param {Shown} shown @param {number} patch */
  const show = (shown, patch) => {
    const head = chosenHead(shown.layer);
    heading.textContent = `Patch ${patch}`;
    whole.textContent = `Layer ${run.attention.indexOf(shown.layer)}, ${head === "mean" ? "average of heads" : `head ${head}`}`;
    const columns = [ofPatch(shown, patch), ofLayer(shown)];
    lines.forEach((line, i) => columns.forEach((found, column) => clear(cells[i][column]).append(line.value(found))));
  };
  return { root, show };
}
