// Small pictures of the chosen patch's attention in every layer and head, to choose from.

import { sequential } from "../draw/color.js";
import { h } from "../draw/dom.js";
import { Grid } from "../draw/grid.js";
import { painted } from "../draw/paint.js";
import { arrays, at, exported, floats, latest, query } from "../page/api.js";
import { staleness } from "../page/stale.js";
import { WHERE, onChange, select, selection, where } from "../page/state.js";
import { chosenHead, view } from "./maps.js";

/** @typedef {import("../page/api.js").Run} Run */
/** @typedef {import("../page/api.js").Tensor} Tensor */
/** @typedef {{grid: [number, number], layers: number, heads: number, data: Float32Array}} Tiles (layers, heads, rows, cols) */

/** @param {Run} run @param {number} patch @param {AbortSignal} signal @returns {Promise<Tiles>} */
async function ask(run, patch, signal) {
  const path = at(run.id, `/attention/thumbnails${query({ ...where(), query: patch, direction: selection.direction })}`);
  const { thumbnails } = (await arrays(path, { signal })).arrays;
  const [layers, heads, rows, cols] = thumbnails.shape;
  return { grid: [rows, cols], layers, heads, data: floats(thumbnails) };
}

/** An exported file holds the maps themselves: cut the tiles out of them. @param {Run} run @param {number} patch @returns {Promise<Tiles>} */
async function cutOut(run, patch) {
  const { grid, tokens } = run.attention[0];
  const heads = Math.max(...run.attention.map((layer) => layer.heads));
  const data = new Float32Array(run.attention.length * heads * tokens);
  for (const [i, { layer }] of run.attention.entries()) {
    for (let head = 0; head < heads; head += 1) {
      const { map } = (await arrays(at(run.id, `/attention${query({ ...where(), layer, head })}`))).arrays;
      if (map.shape[0] !== tokens) throw new Error("not in this file");
      data.set(view({ map: floats(map), size: tokens }, patch, selection.direction), (i * heads + head) * tokens);
    }
  }
  return { grid, layers: run.attention.length, heads, data };
}

/** The tile of one head, or the mean of a layer's heads. @param {Tiles} tiles @param {number} layer @param {number} head */
function tile({ grid, heads, data }, layer, head) {
  const size = grid[0] * grid[1];
  const one = (/** @type {number} */ index) => data.subarray((layer * heads + index) * size, (layer * heads + index + 1) * size);
  if (head < heads) return one(head);
  const mean = new Float32Array(size);
  for (let i = 0; i < heads; i += 1) one(i).forEach((value, k) => (mean[k] += value / heads));
  return mean;
}

/** All tiles side by side, each on its own scale. @param {Tiles} tiles */
function composite(tiles) {
  const [rows, cols] = tiles.grid;
  const pixels = new ImageData((tiles.heads + 1) * cols, tiles.layers * rows);
  for (let layer = 0; layer < tiles.layers; layer += 1) {
    for (let head = 0; head <= tiles.heads; head += 1) {
      const values = tile(tiles, layer, head);
      const high = values.reduce((a, b) => Math.max(a, b), 0) || 1;
      values.forEach((value, k) => {
        const y = layer * rows + Math.floor(k / cols);
        const x = head * cols + (k % cols);
        pixels.data.set([...sequential(value / high), 255], 4 * (y * pixels.width + x));
      });
    }
  }
  return painted(pixels);
}

export class Thumbnails {
  /** @param {Run} run */
  constructor(run) {
    this.run = run;
    this.heads = Math.max(...run.attention.map((layer) => layer.heads));
    this.next = latest();
    this.grid = new Grid({
      rows: run.attention.length, cols: this.heads + 1, gap: this.heads > 8 ? 2 : 4, readout: false, label: "All layers (rows) and heads (columns, the last is their average)",
      describe: (row, col) => `layer ${row}, ${col === this.heads ? "average of the heads" : `head ${col}`}`,
      onSelect: (row, col) => select({ layer: row, head: col === this.heads ? "mean" : col }),
    });
    const names = (/** @type {string} */ kind, /** @type {(string | number)[]} */ list) => h("div", { class: `thumb-${kind}`, "aria-hidden": "true" }, list.map((name) => h("span", null, name)));
    // Where there is no room for all numbers, every second, third, … is enough.
    const every = Math.ceil(this.heads / 8);
    const heads = Array.from({ length: this.heads }, (_, i) => (i % every === 0 ? i : ""));
    const layers = [...Array(run.attention.length).keys()];
    this.root = h("div", { class: "thumbnails" }, h("span", { class: "thumb-corner", "aria-hidden": "true" }, "layer ╲ head"),
      names("heads", [...heads, "mean"]), names("layers", layers), this.grid.root, this.grid.output);
    // Few large tiles say no more than small ones.
    this.root.classList.toggle("thumbnails-many", this.heads > 8);
    this.root.style.maxWidth = `${Math.max(18, Math.min(40, 5 * (this.heads + 1)))}rem`;
    this.stale = staleness(this.root);
    onChange([...WHERE, "patch", "direction"], () => this.stale.begin());
    onChange(["layer", "head"], () => this.mark());
    this.mark();
  }

  mark() {
    const row = Math.min(this.run.attention.length - 1, Math.max(0, selection.layer));
    const head = chosenHead(this.run.attention[row]);
    const cell = { row, col: head === "mean" ? this.heads : head };
    this.grid.mark([{ ...cell, color: "query" }]);
    this.grid.moveTo(cell.row, cell.col);
    this.grid.say();
  }

  /** @param {number} patch */
  async show(patch) {
    const tiles = await (exported ? cutOut(this.run, patch) : ask(this.run, patch, this.next()));
    this.grid.setPicture(composite(tiles));
    this.stale.end();
  }
}
