// The same numbers over many images and all times: does attention follow the object?

import { clear, h, s, table } from "../draw/dom.js";
import { percent } from "../draw/format.js";
import { arrays, at, floats, isAbort, query } from "../page/api.js";
import { patient } from "../page/patient.js";
import { onChange, selection, whichWeights } from "../page/state.js";

/** @typedef {import("../page/api.js").Run} Run */
/** @typedef {{t: number[], images: number, layers: number, get: (name: string, time: number, layer: number) => number, has: (name: string) => boolean}} Summary */
/** @typedef {{name: string, chance: string | null, title: string, about: string}} Measure */

/** @type {Measure[]} */
const MEASURES = [
  { name: "inside", chance: "inside_chance", title: "Object to object", about: "share of attention that patches on the object give to the object" },
  { name: "near", chance: "near_chance", title: "Background stays near", about: "share that background patches give to themselves and their neighbours" },
  { name: "diagonal_first", chance: null, title: "Itself first", about: "share of patches that look at themselves most" },
];

/** @type {Measure} */
const TO_TOKENS = { name: "to_tokens", chance: null, title: "To the conditions", about: "share of attention that patches give to the condition tokens; the charts above cover patches only" };

const [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [220, 130, 30, 8, 8, 22];

/** @param {import("../page/api.js").Arrays} answer @returns {Summary} */
function read({ arrays: found, meta }) {
  const t = Array.from(floats(found.t));
  const layers = found.inside.shape[1];
  return { t, images: Number(meta.images) || 64, layers, has: (name) => name in found, get: (name, time, layer) => floats(found[name])[time * layers + layer] };
}

/** @param {number} t */
const x = (t) => LEFT + t * (WIDTH - LEFT - RIGHT);
/** @param {number} v */
const y = (v) => TOP + (1 - v) * (HEIGHT - TOP - BOTTOM);

/** @param {Summary} data @param {string} name @param {number} layer */
const line = (data, name, layer) => data.t.map((t, i) => `${x(t).toFixed(1)},${y(data.get(name, i, layer)).toFixed(1)}`).join(" ");

/** One small chart: a measure in one layer over t. @param {Summary} data @param {Measure} measure @param {number} layer */
function chart(data, measure, layer) {
  const values = data.t.map((t, i) => `${percent(data.get(measure.name, i, layer))} at t = ${t.toFixed(2)}`).join(", ");
  const guide = [0, 0.5, 1].map((v) => [s("line", { class: "chart-grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(v), y2: y(v) }),
    s("text", { class: "chart-tick", x: LEFT - 5, y: y(v) + 4, "text-anchor": "end" }, String(v))]);
  const times = [0, 0.5, 1].map((t) => s("text", { class: "chart-tick", x: x(t), y: HEIGHT - 6, "text-anchor": "middle" }, t === 0.5 ? "t = 0.5" : String(t)));
  return s("svg", { class: "small-chart", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${measure.title}, layer ${layer}: ${values}` },
    guide, times, s("line", { class: "now", x1: x(selection.t), x2: x(selection.t), y1: TOP, y2: HEIGHT - BOTTOM }),
    measure.chance && s("polyline", { class: "line-chance", points: line(data, measure.chance, layer) }),
    s("polyline", { class: "line-measured", points: line(data, measure.name, layer) }),
    data.t.map((t, i) => s("circle", { class: "dot-measured", cx: x(t), cy: y(data.get(measure.name, i, layer)), r: 2.5 },
      s("title", null, `t = ${t.toFixed(2)}: ${percent(data.get(measure.name, i, layer))}${measure.chance ? `, chance ${percent(data.get(measure.chance, i, layer))}` : ""}`))));
}

/** Where a measure lies most above its chance. @param {Summary} data @param {Measure} measure */
function best(data, measure) {
  let found = { time: 0, layer: 0, gain: -Infinity };
  let above = 0;
  for (let time = 0; time < data.t.length; time += 1) {
    for (let layer = 0; layer < data.layers; layer += 1) {
      const gain = data.get(measure.name, time, layer) - (measure.chance ? data.get(measure.chance, time, layer) : 0);
      if (gain > found.gain) found = { time, layer, gain };
      if (gain > 0) above += 1;
    }
  }
  return { ...found, share: above / (data.t.length * data.layers) };
}

/** @param {number} share of layers and times above chance */
function howOften(share) {
  if (share === 1) return "in every layer at every t";
  if (share === 0) return "in no layer at any t";
  return `in ${percent(share)} of all layers and times`;
}

/** What the charts say, in one sentence, from the numbers alone. @param {Summary} data */
function reading(data) {
  const [inside, near, first] = MEASURES;
  const top = best(data, inside);
  const close = best(data, near);
  const self = best(data, first);
  const among = data.has("to_tokens") ? "Among patches, those on the object" : "Patches on the object";
  const object = `${among} look at the object more than chance ${howOften(top.share)}, most in layer ${top.layer} at t = ${data.t[top.time].toFixed(2)} (${percent(data.get("inside", top.time, top.layer))} against ${percent(data.get("inside_chance", top.time, top.layer))})`;
  const background = `background patches look near themselves more than chance ${howOften(close.share)} (at most ${percent(data.get("near", close.time, close.layer))} against ${percent(data.get("near_chance", close.time, close.layer))}, in layer ${close.layer})`;
  const given = data.has("to_tokens") ? ` ${conditions(data)}` : "";
  return `${object}; ${background}; and at most ${percent(self.gain)} of patches look at themselves first, in layer ${self.layer} at t = ${data.t[self.time].toFixed(2)}.${given}`;
}

/** What goes to the tokens of the conditions. @param {Summary} data */
function conditions(data) {
  const values = data.t.flatMap((_, time) => Array.from({ length: data.layers }, (_, layer) => data.get("to_tokens", time, layer)));
  return `The condition tokens get between ${percent(Math.min(...values))} and ${percent(Math.max(...values))} of a patch’s attention.`;
}

/** @param {Summary} data */
function asTable(data) {
  const names = [...MEASURES.flatMap(({ name, chance }) => (chance ? [name, chance] : [name])), ...(data.has("to_tokens") ? ["to_tokens"] : [])];
  const rows = data.t.flatMap((t, time) => Array.from({ length: data.layers }, (_, layer) =>
    [t.toFixed(2), layer, ...names.map((name) => data.get(name, time, layer).toFixed(3))]));
  return h("details", null, h("summary", null, "The charts as a table"), h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Attention over many images as a table" },
    table(`Means over ${data.images} images, heads averaged`, ["t", "layer", ...names.map((name) => name.replaceAll("_", " "))], rows)));
}

/** @param {Summary} data */
function charts(data) {
  const shown = data.has("to_tokens") ? [...MEASURES, TO_TOKENS] : MEASURES;
  return shown.map((measure) => h("div", { class: "measure" },
    h("div", null, h("h4", null, measure.title), h("p", { class: "quiet" }, measure.about)),
    h("div", { class: "small-multiples" }, Array.from({ length: data.layers }, (_, layer) =>
      h("figure", null, h("figcaption", null, `layer ${layer}`), chart(data, measure, layer))))));
}

const COMING = "Measured when you scroll here.";
const MEASURING = "Measuring many images…";

/**
 * Below the chosen image: the answer over many.
 * @param {Run} run
 * @returns {{root: HTMLElement, start: () => void}} `start` once the section above has what it needs
 */
export function summary(run) {
  const sentence = h("p", { class: "reading", "aria-live": "polite" }, COMING);
  const heading = h("h3", null, "Over many images, heads averaged");
  const key = h("p", { class: "chart-key", hidden: true }, h("span", { class: "key-measured" }, "measured"), h("span", { class: "key-chance" }, "chance"), h("span", { class: "key-now" }, "chosen t"));
  const body = h("div");
  const root = h("div", { class: "summary" }, heading, sentence, key, body);

  const load = async (/** @type {AbortSignal} */ signal) => {
    sentence.textContent = MEASURING;
    try {
      const data = read(await arrays(at(run.id, `/attention/summary${query(whichWeights())}`), { signal }));
      heading.textContent = `Over ${data.images} images, heads averaged`;
      sentence.textContent = reading(data);
      key.hidden = false;
      clear(body).append(...charts(data), asTable(data));
    } catch (error) {
      if (!isAbort(error)) sentence.textContent = error instanceof Error ? error.message : String(error);
      throw error;
    }
  };
  onChange(["step", "weights"], () => {
    sentence.textContent = measuring.near() ? MEASURING : COMING;
    key.hidden = true;
    clear(body);
    measuring.again();
  });
  const measuring = patient(sentence, load);
  onChange(["t"], () => {
    for (const now of body.querySelectorAll(".now")) {
      now.setAttribute("x1", String(x(selection.t)));
      now.setAttribute("x2", String(x(selection.t)));
    }
  });
  return { root, start: measuring.start };
}
