/** Bars in pairs, one pair a block: how far the gates of attention and MLP are open, with the spread over t. */
import { announce } from "./announce.js";
import { ticks } from "./chart.js";
import { s } from "./dom.js";
import { number } from "./format.js";

/**
 * @typedef {{mean: number, low: number, high: number}} Bar
 * @typedef {{title: string, description: string, pairs: [Bar, Bar][], names: [string, string], top: number}} BarOptions
 */

const HEIGHT = 270;
let count = 0;

/** A chart of bars that fits its parent; `update` changes the heights, and the top of the scale where it is given.
 * @param {BarOptions} options @returns {{svg: SVGSVGElement, update: (pairs: [Bar, Bar][], top?: number) => void}} */
export function pairedBars(options) {
  const id = `bars-${++count}`;
  let { pairs } = options;
  let cursor = -1;
  const svg = s("svg", {
    class: "chart bars", tabindex: 0, role: "application", "aria-roledescription": "bar chart", "aria-labelledby": `${id}-title`,
    "aria-describedby": `${id}-desc`,
  });
  const draw = () => {
    const width = Math.max(240, svg.parentElement?.clientWidth || 560);
    svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    svg.setAttribute("height", String(HEIGHT));
    svg.replaceChildren(s("title", { id: `${id}-title` }, options.title), s("desc", { id: `${id}-desc` }, options.description),
      ...axes(width, options), ...pairs.flatMap((pair, i) => pairOf(pair, i, width, options, i === cursor)));
  };
  svg.addEventListener("keydown", (event) => {
    const moves = /** @type {Record<string, number>} */ ({ ArrowRight: cursor + 1, ArrowLeft: cursor - 1, Home: 0, End: pairs.length - 1 });
    if (!(event.key in moves)) return;
    event.preventDefault();
    cursor = Math.max(0, Math.min(pairs.length - 1, moves[event.key]));
    draw();
    announce(`Block ${cursor}: ${options.names.map((name, i) => words(name, pairs[cursor][i])).join(", ")}`);
  });
  svg.addEventListener("blur", () => {
    cursor = -1;
    draw();
  });
  let seen = 0;
  new ResizeObserver(() => {
    const wide = svg.parentElement?.clientWidth ?? 0;
    if (wide && wide !== seen) draw();
    seen = wide;
  }).observe(svg);
  draw();
  return { svg, update: (next, top = options.top) => {
    pairs = next;
    options.top = top;
    draw();
  } };
}

/** @param {string} name @param {Bar} bar */
const words = (name, bar) => `${name} ${number(bar.mean)}, over t from ${number(bar.low)} to ${number(bar.high)}`;

const [LEFT, TOP, BOTTOM] = [52, 34, HEIGHT - 42];

/** @param {number} value @param {number} top */
const height = (value, top) => ((BOTTOM - TOP) * value) / top;

/** @param {number} width @param {BarOptions} options @returns {SVGElement[]} */
function axes(width, { top, names }) {
  const lines = ticks(0, top, 5).flatMap((value) => {
    const y = BOTTOM - height(value, top);
    return [s("line", { class: "chart-grid", x1: LEFT, x2: width - 12, y1: y, y2: y }),
      s("text", { class: "chart-tick", x: LEFT - 8, y: y + 4, "text-anchor": "end" }, number(value))];
  });
  const entries = names.flatMap((name, i) => [
    s("rect", { class: `bar bar-${i}`, x: LEFT + 110 * i, y: 4, width: 14, height: 11, rx: 3 }),
    s("text", { class: "chart-legend", x: LEFT + 110 * i + 20, y: 14 }, name),
  ]);
  const whisker = width > 400
    ? [...whiskerAt(LEFT + 206, 4, 15, 4), s("text", { class: "chart-legend", x: LEFT + 218, y: 14 }, "spread over t")] : [];
  return [...lines, ...entries, ...whisker, s("line", { class: "chart-axis", x1: LEFT, x2: width - 12, y1: BOTTOM, y2: BOTTOM }),
    s("text", { class: "chart-label", x: width - 12, y: BOTTOM + 34, "text-anchor": "end" }, "block")];
}

/** @param {[Bar, Bar]} pair @param {number} i @param {number} width @param {BarOptions} options @param {boolean} chosen @returns {SVGElement[]} */
function pairOf(pair, i, width, { pairs, top, names }, chosen) {
  const room = (width - 12 - LEFT) / pairs.length;
  const thick = Math.min(46, room * 0.34);
  const middle = LEFT + room * (i + 0.5);
  const every = Math.ceil(26 / room);
  const bars = pair.flatMap((bar, side) => {
    const x = middle + (side ? 1 : -1) * (thick / 2 + Math.min(2, thick / 8));
    const tall = Math.max(0.5, height(bar.mean, top));
    return [
      s("rect", { class: `bar bar-${side}`, x: x - thick / 2, y: BOTTOM - tall, width: thick, height: tall, rx: Math.min(4, thick / 4) },
        s("title", null, `Block ${i}, ${words(names[side], bar)}`)),
      ...whiskerAt(x, BOTTOM - height(bar.high, top), BOTTOM - height(bar.low, top), Math.min(7, thick / 3)),
    ];
  });
  const name = i % every ? [] : [s("text", { class: "chart-tick", x: middle, y: BOTTOM + 17, "text-anchor": "middle" }, String(i))];
  const frame = chosen ? [s("rect", { class: "bar-chosen", x: middle - room / 2, y: TOP, width: room, height: BOTTOM - TOP, rx: 6 })] : [];
  return [...frame, ...bars, ...name];
}

/** @param {number} x @param {number} y1 @param {number} y2 @param {number} half @returns {SVGElement[]} */
function whiskerAt(x, y1, y2, half) {
  return [s("path", { class: "bar-whisker", d: `M${x} ${y1}V${y2}M${x - half} ${y1}h${2 * half}M${x - half} ${y2}h${2 * half}` })];
}
