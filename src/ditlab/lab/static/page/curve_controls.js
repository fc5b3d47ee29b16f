// How curves of a loss are drawn: on a logarithmic axis or not, as they are or smoothed. One choice for the whole page.

import { h } from "../draw/dom.js";
import { onChange, select, selection } from "./state.js";

/** @typedef {import("../draw/chart.js").Series} Series */

/** Points that a mean is taken over, and how it is said. @type {[number, string][]} */
const WIDTHS = [[1, "none"], [5, "over 5 points"], [20, "over 20 points"], [100, "over 100 points"]];

/** What is chosen; nonsense in the address is what is usual. */
function look() {
  const width = Number(selection.curves.replace("log", "").replace("_", ""));
  return { log: selection.curves.startsWith("log"), width: WIDTHS.some(([one]) => one === width) ? width : 1 };
}

/** @param {{log: boolean, width: number}} wanted */
const choose = ({ log, width }) => select({ curves: [log && "log", width > 1 && width].filter(Boolean).join("_") });

/** Means over as many points around each; towards the ends over fewer, as many on either side. @param {ArrayLike<number>} y @param {number} width */
export function smoothed(y, width) {
  return Float64Array.from(y, (_, i) => {
    const half = Math.min(Math.floor(width / 2), i, y.length - 1 - i);
    let [sum, count] = [0, 0];
    for (let k = i - half; k <= i + half; k += 1) {
      if (!Number.isFinite(y[k])) continue;
      sum += y[k];
      count += 1;
    }
    return count ? sum / count : NaN;
  });
}

/** @param {Series[]} series @returns {{series: Series[], log: boolean}} as chosen: behind a smoothed curve, faint, what it is of */
export function asChosen(series) {
  const { log, width } = look();
  if (width === 1) return { series, log };
  const coloured = series.map((one, i) => ({ colour: i, ...one }));
  return { series: [...coloured.map((one) => ({ ...one, faint: true })), ...coloured.map((one) => ({ ...one, y: smoothed(one.y, width) }))], log };
}

let count = 0;

/** @param {() => void} redraw called when another look is chosen */
export function curveControls(redraw) {
  const id = `curves-${(count += 1)}`;
  const box = h("input", { type: "checkbox", id: `${id}-log`, onchange: () => choose({ ...look(), log: box.checked }) });
  const list = h("select", { id: `${id}-mean`, onchange: () => choose({ ...look(), width: Number(list.value) }) }, WIDTHS.map(([value, text]) => h("option", { value }, text)));
  const show = () => {
    box.checked = look().log;
    list.value = String(look().width);
  };
  onChange(["curves"], () => {
    show();
    redraw();
  });
  show();
  return h("div", { class: "curve-controls" }, h("span", { class: "runs-switch" }, box, h("label", { for: box.id }, "log axis")),
    h("div", { class: "field field-inline" }, h("label", { for: list.id }, "smoothing"), list));
}
