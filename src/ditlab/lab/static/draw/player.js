// A labelled slider with its value written out, and a button that lets it run.

import { h } from "./dom.js";
import { nearest } from "./math.js";

let count = 0;

/**
 * @typedef {object} SliderOptions
 * @property {string} label
 * @property {number[]} [values] the values to choose from; else min, max and step
 * @property {number} [min]
 * @property {number} [max]
 * @property {number} [step]
 * @property {number} value
 * @property {(value: number) => string} [format]
 * @property {boolean} [play] offer a play button (it never starts by itself)
 */
/** @typedef {{root: HTMLElement, input: HTMLInputElement, set: (value: number) => void, setValues: (values: number[]) => void, stop: () => void}} Slider */

/** @param {SliderOptions} options @returns {number[]} */
function listOf({ values, min = 0, max = 1, step = 0.01 }) {
  if (values) return values;
  const size = Math.round((max - min) / step);
  return Array.from({ length: size + 1 }, (_, i) => Number((min + i * step).toFixed(6)));
}

/** People who asked for less motion get slow steps instead of a film. */
const pace = () => (matchMedia("(prefers-reduced-motion: reduce)").matches ? 900 : 120);

/**
 * @param {SliderOptions} options
 * @param {(value: number) => void} onInput
 * @returns {Slider} `set` moves it without calling `onInput`
 */
export function slider(options, onInput) {
  const { label, format = String, play = false } = options;
  let values = listOf(options);
  const id = `slider-${(count += 1)}`;
  const input = h("input", { type: "range", id, min: 0, max: values.length - 1, step: 1, value: 0 });
  const output = h("output", { class: "slider-value", for: id });
  /** @type {ReturnType<typeof setInterval> | undefined} */
  let timer;

  const show = () => {
    const text = format(values[input.valueAsNumber]);
    output.textContent = text;
    input.setAttribute("aria-valuetext", text);
  };
  const button = play ? h("button", { type: "button", class: "play", "aria-label": `Play ${label}`, "aria-pressed": false }, "▶") : null;
  const stop = () => {
    clearInterval(timer);
    timer = undefined;
    button?.setAttribute("aria-pressed", "false");
    if (button) button.textContent = "▶";
  };
  const advance = () => {
    if (!input.isConnected) return stop();
    input.valueAsNumber = (input.valueAsNumber + 1) % values.length;
    show();
    onInput(values[input.valueAsNumber]);
    if (input.valueAsNumber === values.length - 1) stop();
  };
  button?.addEventListener("click", () => {
    if (timer) return stop();
    timer = setInterval(advance, pace());
    button.setAttribute("aria-pressed", "true");
    button.textContent = "❚❚";
  });
  input.addEventListener("input", () => {
    stop();
    show();
    onInput(values[input.valueAsNumber]);
  });

  const set = (/** @type {number} */ value) => {
    input.valueAsNumber = nearest(values, value);
    show();
  };
  const setValues = (/** @type {number[]} */ list) => {
    const value = values[input.valueAsNumber];
    values = list;
    input.max = String(list.length - 1);
    set(value);
  };
  set(options.value);
  const root = h("div", { class: "slider" }, h("label", { for: id }, label), button, input, output);
  return { root, input, set, setValues, stop };
}
