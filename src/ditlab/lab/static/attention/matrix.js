// The whole attention map of one layer and head: row i, column j is how much patch i looks at patch j.

import { legend } from "../draw/color.js";
import { clear, h } from "../draw/dom.js";
import { listed, percent } from "../draw/format.js";
import { Grid } from "../draw/grid.js";
import { argmax } from "../draw/math.js";
import { imageCanvas } from "../draw/paint.js";
import { floats } from "../page/api.js";
import { chosenPatch, inputName, loadInput, patchName } from "../page/inputs.js";
import { panel, snippet } from "../page/panel.js";
import { WHERE, onChange, select, selection } from "../page/state.js";
import { chosenHead, chosenLayer, loadMap, placeName, tokensOf } from "./maps.js";

/** @typedef {import("../page/api.js").Run} Run */
/** @typedef {import("../page/api.js").AttentionLayer} AttentionLayer */
/** @typedef {import("../page/api.js").Tensor} Tensor */
/** @typedef {import("./maps.js").AttentionMap} AttentionMap */
/** @typedef {{layer: AttentionLayer, attention: AttentionMap, x: Tensor}} Scene */
/** @typedef {{row: number, col: number} | null} Cell */

const INTRO = "All patches’ views at once. Each row is a query patch, each column a key patch; a bright cell means that the row’s patch looks at the column’s patch.";

/** What rows add up to. @param {Run} run */
function intro({ condition_tokens: tokens }) {
  return INTRO + (tokens.length ? ` Only the patches are shown; the rest of a row’s 100 % goes to the condition tokens, ${listed(tokens)}.` : " Rows add up to 100 %.");
}

/** @param {Run} run @param {AbortSignal} signal @returns {Promise<Scene>} */
async function load(run, signal) {
  const layer = chosenLayer(run);
  const [input, attention] = await Promise.all([loadInput(run, signal), loadMap(run, layer, signal)]);
  return { layer, attention, x: input.arrays.x };
}

/** All patches of an image in one line, across or down: the matrix's margins. @param {Tensor} x @param {[number, number]} grid @param {boolean} across */
function strip(x, [rows, cols], across) {
  const image = imageCanvas({ shape: x.shape, data: floats(x) });
  const [w, t] = [image.width / cols, image.height / rows];
  const count = rows * cols;
  const canvas = h("canvas", { width: Math.ceil(across ? w * count : w), height: Math.ceil(across ? t : t * count) });
  const context = canvas.getContext("2d");
  for (let i = 0; i < count; i += 1) {
    context?.drawImage(image, (i % cols) * w, Math.floor(i / cols) * t, w, t, across ? i * w : 0, across ? 0 : i * t, w, t);
  }
  return canvas;
}

/** Mean of the diagonal: of a pooled map only known for groups. @param {AttentionMap} attention */
function diagonal({ map, size }) {
  let sum = 0;
  for (let i = 0; i < size; i += 1) sum += map[i * size + i];
  return sum / size;
}

/** @param {Scene} scene @param {Run} run @returns {string} */
function diagonalSentence({ attention }, run) {
  const { size, tokens, pool, toTokens } = attention;
  const mean = diagonal(attention);
  if (toTokens.length) return amongAll(attention, mean, run.condition_tokens);
  const times = mean * tokens;
  if (pool !== 1) return `The map has ${tokens} × ${tokens} cells; each cell here is the mean over about ${Math.round(tokens / size)} × ${Math.round(tokens / size)} of them. The blocks on the diagonal hold ${percent(mean)} per cell on average, against 1/N = ${percent(1 / tokens)}.`;
  return `A patch gives itself ${percent(mean)} of its attention on average; equal shares would be 1/N = ${percent(1 / tokens)}. That is ${times.toFixed(2)} times as much.`;
}

/** The same where N patches share with K tokens of the conditions. @param {AttentionMap} attention @param {number} mean of the diagonal @param {string[]} names */
function amongAll({ size, tokens, pool, toTokens }, mean, names) {
  const keys = tokens + toTokens.length;
  const given = toTokens.map((column) => column.reduce((a, b) => a + b, 0) / column.length);
  const each = given.length > 1 ? ` (${listed(names.map((name, k) => `${name} ${percent(given[k])}`))})` : "";
  const rest = `The condition tokens get ${percent(given.reduce((a, b) => a + b, 0))} of a patch’s attention on average${each}; with equal shares they would get K/(N + K) = ${percent(toTokens.length / keys)}.`;
  const side = Math.round(tokens / size);
  if (pool !== 1) return `The map has ${tokens} × ${tokens} cells; each cell here is the mean over about ${side} × ${side} of them. The blocks on the diagonal hold ${percent(mean)} per cell on average, against 1/(N + K) = ${percent(1 / keys)}. ${rest}`;
  return `A patch gives itself ${percent(mean)} of its attention on average; equal shares among N patches and K condition tokens would be 1/(N + K) = ${percent(1 / keys)}. That is ${(mean * keys).toFixed(2)} times as much. ${rest}`;
}

/** The matrix with its margins and the image beside it, all pointing at the same pair of patches. */
class Matrix {
  /** @param {Run} run */
  constructor(run) {
    const { grid, tokens } = chosenLayer(run);
    const size = Math.min(tokens, 256);
    /** @type {Scene | null} */
    this.scene = null;
    /** @type {Cell} */
    this.pointed = null;
    // All four point at a pair of patches, and say it in one place.
    const describe = () => this.describe();
    const output = h("p", { class: "readout", "aria-live": "off" });
    this.image = new Grid({
      rows: grid[0], cols: grid[1], label: "The image: choose a query patch", gap: grid[1] <= 16 ? 2 : 0, selectOnMove: true, readout: false, describe, output,
      onHover: (cell) => this.point(cell && this.scene && { row: this.cellOf(cell.row * this.cols + cell.col), col: -1 }),
      onSelect: (row, col) => select({ patch: row * this.cols + col }),
    });
    this.map = new Grid({
      rows: size, cols: size, label: "Attention matrix: rows are queries, columns are keys", describe, output, gap: size <= 16 ? 1 : 0, readout: false,
      onHover: (cell) => this.point(cell), onSelect: (row, col) => this.choose(row, col),
    });
    this.keys = new Grid({
      rows: 1, cols: size, label: "Key patches, one for each column", gap: size <= 16 ? 1 : 0, readout: false, cellAspect: 1, selectOnMove: true,
      describe, output, onHover: (cell) => this.point(cell && { row: -1, col: cell.col }), onSelect: (_, col) => this.choose(-1, col),
    });
    this.queries = new Grid({
      rows: size, cols: 1, label: "Query patches, one for each row", gap: size <= 16 ? 1 : 0, readout: false, selectOnMove: true,
      describe, output, onHover: (cell) => this.point(cell && { row: cell.row, col: -1 }), onSelect: (row) => this.choose(row, -1),
    });
    this.map.root.classList.add("matrix-map");
    this.legend = h("div");
    this.box = h("div", { class: "matrix-box" }, h("span", { class: "matrix-corner quiet", "aria-hidden": "true" }, "q ╲ k"),
      h("div", { class: "matrix-keys" }, this.keys.root), h("div", { class: "matrix-queries" }, this.queries.root), this.map.root, this.map.output);
    // The margins are as wide as a patch of the matrix, within limits: the style sheet divides by --n.
    this.box.style.setProperty("--n", String(size));
    this.root = h("div", { class: "matrix-frame" }, this.box);
  }

  get cols() {
    return this.scene?.layer.grid[1] ?? 1;
  }

  /** The row (or column) of the map that holds a patch. @param {number} patch */
  cellOf(patch) {
    if (!this.scene) return 0;
    const { size, tokens } = this.scene.attention;
    return Math.min(size - 1, Math.floor((patch * size) / tokens));
  }

  /** @param {number} row a row of the map @returns {string} the patch or patches it stands for */
  name(row) {
    if (!this.scene) return "";
    const [first, end] = tokensOf(row, this.scene.attention);
    return end - first === 1 ? patchName(first, this.cols) : `patches ${first} to ${end - 1}`;
  }

  /** The pair in words. @returns {string} */
  describe() {
    if (!this.scene) return "";
    const { map, size, tokens } = this.scene.attention;
    const { query, key } = this.pair();
    return `${this.name(query)} ${size === tokens ? "looks" : "look"} at ${this.name(key)}: ${percent(map[query * size + key])}`;
  }

  /** Choose the query of a row and the key of a column; −1 leaves either. @param {number} row @param {number} col */
  choose(row, col) {
    if (!this.scene) return;
    const first = (/** @type {number} */ index) => (this.scene && index >= 0 ? tokensOf(index, this.scene.attention)[0] : undefined);
    select({ patch: first(row), key: first(col) });
  }

  /** @param {Cell} cell */
  point(cell) {
    this.pointed = cell;
    this.mark();
    this.map.say();
  }

  /** The query's row and the key's column: what the pointer is on, else what is chosen. */
  pair() {
    const { scene, pointed } = this;
    if (!scene) return { query: 0, key: 0 };
    const { map, size, mass } = scene.attention;
    const query = pointed && pointed.row >= 0 ? pointed.row : this.cellOf(chosenPatch(mass));
    if (pointed && pointed.col >= 0) return { query, key: pointed.col };
    // No key chosen: the one this query looks at most.
    if (selection.key === null) return { query, key: argmax(map.subarray(query * size, (query + 1) * size)) };
    return { query, key: this.cellOf(Math.min(mass.length - 1, Math.max(0, selection.key))) };
  }

  mark() {
    const { scene } = this;
    if (!scene) return;
    const { size } = scene.attention;
    const { query, key } = this.pair();
    const cell = (/** @type {number} */ patch, /** @type {"query" | "key"} */ color) => ({ row: Math.floor(patch / this.cols), col: patch % this.cols, color });
    const patches = (/** @type {number} */ index, /** @type {"query" | "key"} */ color) => {
      const [first, end] = tokensOf(index, scene.attention);
      return Array.from({ length: end - first }, (_, i) => cell(first + i, color));
    };
    // A patch that looks at itself carries both, the key's inside the query's.
    const same = patches(key, "key").map((mark) => ({ ...mark, inset: key === query }));
    this.image.mark([...patches(query, "query"), ...same]);
    const column = { row: 0, col: key, rows: size, color: /** @type {const} */ ("key") };
    const row = { row: query, col: 0, cols: size, color: /** @type {const} */ ("query") };
    this.map.mark([column, row]);
    this.keys.mark([{ row: 0, col: key, color: "key" }]);
    this.queries.mark([{ row: query, col: 0, color: "query" }]);
    if (!this.pointed) this.rest(query, key);
  }

  /** Where the keyboard starts: at what is chosen. @param {number} query @param {number} key */
  rest(query, key) {
    this.map.moveTo(query, key);
    this.queries.moveTo(query, 0);
    this.keys.moveTo(0, key);
    const patch = this.scene ? chosenPatch(this.scene.attention.mass) : 0;
    this.image.moveTo(Math.floor(patch / this.cols), patch % this.cols);
    this.map.say();
  }

  /** @param {Scene} scene */
  show(scene) {
    this.scene = scene;
    const { layer, attention, x } = scene;
    const { map, size } = attention;
    const high = map.reduce((a, b) => Math.max(a, b), 0);
    this.image.resize(layer.grid[0], layer.grid[1]);
    this.image.setImage({ shape: x.shape, data: floats(x) });
    this.map.setValues(map, { rows: size, cols: size, high, format: percent });
    this.keys.resize(1, size);
    this.queries.resize(size, 1);
    this.box.style.setProperty("--n", String(size));
    this.keys.setPicture(strip(x, layer.grid, true));
    this.queries.setPicture(strip(x, layer.grid, false));
    clear(this.legend).append(legend({ scale: "sequential", low: "0", high: percent(high), label: "attention" }));
    this.mark();
  }
}

/** @param {HTMLElement} root @param {Run} run */
export function mount(root, run) {
  const matrix = new Matrix(run);
  const diagonalLine = h("p", { class: "reading" });
  const args = () => ({ layer: chosenLayer(run).layer, head: chosenHead(chosenLayer(run)) });
  const frame = panel({
    id: "matrix", title: "The full N × N matrix", intro: intro(run),
    python: () => snippet(run, "attention", args(), '["map"]'),
    download: () => matrix.scene && { name: `${run.name}-matrix-layer-${args().layer}-head-${args().head}`, arrays: {
      map: { shape: [matrix.scene.attention.size, matrix.scene.attention.size], data: matrix.scene.attention.map } } },
    picture: () => matrix.map.canvas,
    caption: (shown) => (matrix.scene ? `${placeName(matrix.scene.layer, run.attention.indexOf(matrix.scene.layer), shown)}, ${inputName(shown.input)}; rows are queries, columns are keys` : ""),
    table: () => matrix.map.table(`Attention, rows are queries, columns are keys: ${placeName(chosenLayer(run), run.attention.indexOf(chosenLayer(run)))}`, { rowName: (row) => `query ${row}`, colName: (col) => `key ${col}` }),
  });
  const key = h("p", { class: "pair-key" }, h("span", { class: "key-query" }, "query: the patch that looks"), h("span", { class: "key-key" }, "key: the patch looked at"));
  frame.body.append(h("div", { class: "matrix-row" }, h("div", { class: "matrix-side" },
    h("figure", null, h("figcaption", null, h("b", null, "The image"), " choose a row here, a pair in the matrix"), matrix.image.root), key, matrix.legend, diagonalLine), matrix.root));
  root.append(frame.root);

  const render = () => frame.ask(async (signal) => {
    const scene = await load(run, signal);
    matrix.show(scene);
    diagonalLine.textContent = diagonalSentence(scene, run);
  });
  onChange([...WHERE, "layer", "head"], render);
  onChange(["patch", "key"], () => matrix.mark());
  render();
}
