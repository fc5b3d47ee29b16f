// Latents as pictures, beside their false colours: by the run's own autoencoder, where the lab has it at hand.

import { figure, h } from "../draw/dom.js";
import { imageCanvas } from "../draw/paint.js";
import { decodeLatents, exported, floats, isAbort, latest } from "./api.js";
import { staleness } from "./stale.js";

/** @typedef {import("./api.js").Run} Run */
/** @typedef {import("./api.js").Tensor} Tensor */

/** Milliseconds without a change after which the lab is asked: it takes it long. */
const QUIET = 350;

/** @param {string} title */
function frame(title) {
  const canvas = h("canvas", { class: "picture", role: "img", "aria-label": `${title}, decoded`, width: 1, height: 1 });
  return { canvas, root: figure(title, "decoded", canvas) };
}

/** @param {Tensor} pictures @param {number} index */
function pictureOf(pictures, index) {
  const shape = pictures.shape.slice(1);
  const one = shape.reduce((a, b) => a * b, 1);
  return imageCanvas({ shape, data: floats(pictures).subarray(index * one, (index + 1) * one).map((value) => value / 127.5 - 1) });
}

/**
 * Nothing for a network of images; else pictures of what is given, or a line that says why there are none.
 * @param {Run} run
 * @param {string[]} titles one for each latent
 * @returns {{root: HTMLElement, show: (latents: ArrayLike<number>[]) => void} | null}
 */
export function decoded(run, titles) {
  if (!run.latents) return null;
  const why = exported ? "pictures of them need the lab: start ditlab lab" : run.latents.why;
  if (why) return { root: h("p", { class: "quiet decoded" }, `These are false colours of latents; ${why}.`), show: () => {} };
  const frames = titles.map(frame);
  const trouble = h("p", { class: "trouble", role: "status" });
  const row = h("div", { class: "picture-row" }, frames.map((one) => one.root));
  const root = h("div", { class: "decoded" }, row, trouble);
  const next = latest();
  const stale = staleness(row);
  /** @type {ArrayLike<number>[] | null} */
  let wanted = null;
  let near = false;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let timer;

  const ask = async () => {
    if (!wanted || !near || !root.isConnected) return;
    const latents = Float32Array.from(wanted.flatMap((one) => Array.from(one)));
    wanted = null;
    try {
      const pictures = await decodeLatents(run.id, latents, next());
      frames.forEach(({ canvas }, i) => {
        const made = pictureOf(pictures, i);
        [canvas.width, canvas.height] = [made.width, made.height];
        canvas.getContext("2d")?.drawImage(made, 0, 0);
      });
      trouble.textContent = "";
      row.hidden = false;
    } catch (error) {
      if (isAbort(error)) return;
      trouble.textContent = error instanceof Error ? error.message : String(error);
      row.hidden = true; // They are of what was shown before.
    }
    stale.end();
  };
  new IntersectionObserver((entries) => {
    near = entries.some((entry) => entry.isIntersecting);
    void ask();
  }, { rootMargin: "200px" }).observe(root);
  return { root, show: (latents) => {
    wanted = latents;
    next();
    stale.begin();
    clearTimeout(timer);
    timer = setTimeout(ask, QUIET);
  } };
}

/** The arrays of an answer by name. @param {Record<string, Tensor>} found @param {string[]} names */
export const valuesOf = (found, names) => names.map((name) => floats(found[name]));
