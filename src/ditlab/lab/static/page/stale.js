// What is shown and is not what is chosen: it is dimmed before anybody takes the one for the other, and says what it is.

import { inputName } from "./inputs.js";
import { selection } from "./state.js";

/** Milliseconds that an answer may take until what is shown counts as old. */
const SOON = 150;

/** @typedef {{begin: () => void, end: () => void}} Stale */

/** @param {HTMLElement} node @param {() => void} [onStale] @returns {Stale} `begin` once something else is chosen; `end` once it is shown */
export function staleness(node, onStale) {
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let timer;
  return {
    begin: () => {
      node.setAttribute("aria-busy", "true");
      if (node.classList.contains("stale")) onStale?.();
      timer ??= setTimeout(() => {
        node.classList.add("stale");
        onStale?.();
      }, SOON);
    },
    end: () => {
      clearTimeout(timer);
      timer = undefined;
      node.classList.remove("stale");
      node.setAttribute("aria-busy", "false");
    },
  };
}

/** @typedef {Readonly<import("./state.js").Selection>} Selection */

/** @type {[(chosen: Selection) => string | number | null, (chosen: Selection) => string][]} what may differ, and how it is said */
const SAID = [
  [({ step }) => step, ({ step }) => `step ${step?.toLocaleString("en")}`],
  [({ weights }) => weights, ({ weights }) => (weights === "raw" ? "raw weights" : "averaged weights")],
  [({ input }) => input, ({ input }) => inputName(input)],
  [({ t }) => t, ({ t }) => `t = ${t.toFixed(2)}`],
  [({ label }) => label, ({ label }) => (label === null ? "its own label" : label < 0 ? "no label" : `label ${label}`)],
  [({ cond }) => cond, () => "other scalars"],
  [({ layer }) => layer, ({ layer }) => `layer ${layer}`],
  [({ head }) => head, ({ head }) => (head === "mean" ? "the average of the heads" : `head ${head}`)],
  [({ edits }) => edits, ({ edits }) => (edits ? "other switches" : "no changes")],
  [({ a, b }) => a + b, () => "other settings"],
];

/** Where the shown differs from what is chosen now. @param {Selection} shown */
export function stillShown(shown) {
  const words = SAID.filter(([value]) => value(shown) !== value(selection)).map(([, say]) => say(shown));
  return words.length ? `The lab is busy. Below is still ${words.join(", ")}.` : "The lab is busy.";
}
