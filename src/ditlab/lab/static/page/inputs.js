// The chosen image: its name, its values at the chosen time, and its patches.

import { argmax } from "../draw/math.js";
import { arrays, at, floats, query } from "./api.js";
import { selection, where } from "./state.js";

/** @typedef {import("./api.js").Run} Run */
/** @typedef {import("./api.js").Tensor} Tensor */

/** @param {string} input @returns {string} in words */
export function inputName(input) {
  const [kind, rest] = [input.slice(0, input.indexOf(":")), input.slice(input.indexOf(":") + 1)];
  if (kind === "data") return `example ${rest}`;
  if (kind === "sample") return `generated, seed ${rest}`;
  return kind === "draw" ? "your drawing" : "your image";
}

/** The image at the chosen time. @param {Run} run @param {AbortSignal} [signal] */
export const loadInput = (run, signal) => arrays(at(run.id, `/input${query(where())}`), { signal });

/**
 * How much of each patch is object: its mean brightness in the clean image, 0…1, where no attention map says it.
 * @param {Tensor} x0 (C,H,W), −1…1
 * @param {[number, number]} grid
 * @returns {Float32Array}
 */
export function brightness(x0, grid) {
  const [channels, height, width] = x0.shape;
  const [rows, cols] = grid;
  const data = floats(x0);
  const sum = new Float32Array(rows * cols);
  for (let i = 0; i < data.length; i += 1) {
    const row = Math.floor(((Math.floor(i / width) % height) * rows) / height);
    sum[row * cols + Math.floor(((i % width) * cols) / width)] += Math.min(1, Math.max(0, (data[i] + 1) / 2));
  }
  const share = (rows * cols) / (channels * height * width);
  return sum.map((value) => value * share);
}

/** The query patch: the chosen one, or the brightest; of patches alike the first, whatever was rounded. @param {ArrayLike<number>} mass @returns {number} */
export const chosenPatch = (mass) => (selection.patch === null ? argmax(mass, 1e-5) : Math.min(mass.length - 1, Math.max(0, selection.patch)));

/** @param {number} patch @param {number} cols @returns {string} "patch 5 (row 1, column 1)", counted from 0 as in Python */
export const patchName = (patch, cols) => `patch ${patch} (row ${Math.floor(patch / cols)}, column ${patch % cols})`;
