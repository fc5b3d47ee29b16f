/** Small SVG line charts: axes, legend, optional bands and a marker; arrow keys read the values out. */
import { announce } from "./announce.js";
import { s } from "./dom.js";
import { number } from "./format.js";
import { nearest } from "./math.js";

/**
 * @typedef {{name: string, y: ArrayLike<number>, x?: ArrayLike<number>, low?: ArrayLike<number>, high?: ArrayLike<number>, colour?: number, dashed?: boolean, dots?: boolean, faint?: boolean}} Series  low and high draw a band around the line; colour: its number, by default that of its place; dashed: a level to compare with; dots: a mark at each value; faint: behind another, without words
 * @typedef {{title: string, x: ArrayLike<number>, series: Series[], xLabel: string, yLabel: string,
 *   marker?: number, height?: number, yMax?: number, log?: boolean,
 *   onPick?: (x: number) => void}} ChartOptions
 * @typedef {{left: number, right: number, top: number, bottom: number, width: number, height: number,
 *   x: (value: number) => number, y: (value: number) => number, domain: number[], range: number[]}} Frame
 * @typedef {{options: ChartOptions, frame: Frame | null, cursor: number | null, draw: () => void}} Chart
 */

/** @type {WeakMap<SVGElement, Chart>} */
const charts = new WeakMap();
let count = 0;

/** Ticks at 1, 2 or 5 times a power of ten, about `wanted` of them.
 * @param {number} low @param {number} high @param {number} [wanted] @returns {number[]} */
export function ticks(low, high, wanted = 5) {
  const span = high - low;
  if (!(span > 0)) return [low];
  const rough = span / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((m) => m >= rough) ?? power * 10;
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  return Array.from({ length: Math.max(0, last - first + 1) }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

/** Ticks at 1, 2 and 5 times powers of ten, or at these alone where there are many.
 * @param {number} low @param {number} high @returns {number[]} */
function logTicks(low, high) {
  const powers = Array.from({ length: Math.floor(Math.log10(high)) - Math.floor(Math.log10(low)) + 1 }, (_, i) => 10 ** (Math.floor(Math.log10(low)) + i));
  const inside = (/** @type {number} */ value) => value >= low && value <= high;
  const fine = powers.flatMap((power) => [power, 2 * power, 5 * power]).map((value) => Number(value.toPrecision(12))).filter(inside);
  if (fine.length < 3) return ticks(low, high, 4);
  return fine.length > 8 ? powers.filter(inside) : fine;
}

/** @param {ChartOptions} options @returns {number[]} lowest and highest y shown */
function rangeOf(options) {
  let low = Infinity;
  let high = -Infinity;
  for (const one of options.series) {
    for (const values of [one.y, one.low, one.high]) {
      for (const value of Array.from(values ?? [])) {
        if (!Number.isFinite(value) || (options.log && value <= 0)) continue;
        low = Math.min(low, value);
        high = Math.max(high, value);
      }
    }
  }
  if (low > high) [low, high] = options.log ? [0.1, 1] : [0, 1];
  if (options.log) return [low / 1.08, high * 1.08];
  // Magnitudes start at 0, so that heights can be compared by eye.
  low = Math.min(0, low);
  high = options.yMax ?? (high > low ? high + 0.05 * (high - low) : low + 1);
  return [low, high];
}

/** @param {ChartOptions} options @returns {number[]} */
function domainOf(options) {
  const all = options.series.flatMap((one) => Array.from(one.x ?? options.x)).filter(Number.isFinite);
  if (!all.length) return [0, 1];
  const low = all.reduce((a, b) => Math.min(a, b));
  const high = all.reduce((a, b) => Math.max(a, b));
  return high > low ? [low, high] : [low - 0.5, low + 0.5];
}

/** @param {ChartOptions} options @param {number} width @param {number} height @returns {Frame} */
function frameOf(options, width, height) {
  const domain = domainOf(options);
  const range = rangeOf(options);
  const named = spoken(options);
  const rows = legendRows(named, width - 64).length;
  const along = options.log ? Math.log10 : Number;
  const [bottom, top] = range.map(along);
  const frame = { left: 52, right: width - 22, top: 10 + (named.length > 1 ? 20 * rows : 12), bottom: height - 42 };
  return {
    ...frame, width, height, domain, range,
    x: (value) => frame.left + ((value - domain[0]) / (domain[1] - domain[0])) * (frame.right - frame.left),
    y: (value) => frame.bottom - ((along(value) - bottom) / (top - bottom)) * (frame.bottom - frame.top),
  };
}

/** The series that have a name of their own in legend and words. @param {ChartOptions} options */
const spoken = ({ series }) => series.filter((one) => !one.faint);

/** Legend entries, packed into rows of the width at hand: text is about 6.6 px a letter.
 * @param {Series[]} series @param {number} width @returns {{one: Series, index: number, x: number}[][]} */
function legendRows(series, width) {
  /** @type {{one: Series, index: number, x: number}[][]} */
  const rows = [[]];
  let x = 0;
  series.forEach((one, index) => {
    const wide = 40 + one.name.length * 6.6;
    if (x > 0 && x + wide > width) {
      rows.push([]);
      x = 0;
    }
    rows[rows.length - 1].push({ one, index, x });
    x += wide;
  });
  return rows;
}

/** @param {Series} one @param {number} index of the series */
const colour = (one, index) => `chart-colour-${(one.colour ?? index) % 8}`;

/** @param {Series} one @param {number} index of the series */
const stroke = (one, index) => ({ class: `chart-line ${colour(one, index)}${one.dashed ? " chart-dashed" : ""}${one.faint ? " chart-faint" : ""}` });

/** A series at an x; beyond its own ends it has no value. @param {Series} one @param {ChartOptions} options @param {number} at */
function valueAt(one, options, at) {
  const xs = one.x ?? options.x;
  return xs.length && at >= xs[0] && at <= xs[xs.length - 1] ? one.y[nearest(xs, at)] : NaN;
}

/** @param {Frame} frame @param {ArrayLike<number>} xs @param {ArrayLike<number>} ys @returns {string} */
function polyline(frame, xs, ys) {
  let path = "";
  let pen = false;
  for (let i = 0; i < Math.min(xs.length, ys.length); i++) {
    if (!Number.isFinite(ys[i]) || !Number.isFinite(frame.y(ys[i]))) {
      pen = false;
      continue;
    }
    path += `${pen ? "L" : "M"}${frame.x(xs[i]).toFixed(1)} ${frame.y(ys[i]).toFixed(1)}`;
    pen = true;
  }
  return path;
}

/** @param {Frame} frame @param {ArrayLike<number>} xs @param {Series} one @returns {string} */
function band(frame, xs, one) {
  const { low, high } = one;
  if (!low || !high) return "";
  const at = (/** @type {number} */ i, /** @type {ArrayLike<number>} */ ys) =>
    `${frame.x(xs[i]).toFixed(1)} ${frame.y(ys[i]).toFixed(1)}`;
  const order = Array.from(xs, (_, i) => i);
  return `M${order.map((i) => at(i, high)).join("L")}L${order.reverse().map((i) => at(i, low)).join("L")}Z`;
}

/** @param {SVGElement} svg @param {Frame} frame @param {ChartOptions} options */
function drawAxes(svg, frame, options) {
  const { left, right, top, bottom } = frame;
  const levels = options.log ? logTicks(frame.range[0], frame.range[1]) : ticks(frame.range[0], frame.range[1], Math.max(2, Math.round((bottom - top) / 32)));
  for (const value of levels) {
    const y = frame.y(value);
    svg.append(s("line", { class: "chart-grid", x1: left, x2: right, y1: y, y2: y }));
    svg.append(s("text", { class: "chart-tick", x: left - 8, y: y + 4, "text-anchor": "end" }, number(value)));
  }
  for (const value of ticks(frame.domain[0], frame.domain[1], Math.max(2, Math.round((right - left) / 90)))) {
    const text = value.toLocaleString("en");
    svg.append(s("text", { class: "chart-tick", x: frame.x(value), y: bottom + 17, "text-anchor": "middle" }, text));
  }
  svg.append(s("line", { class: "chart-axis", x1: left, x2: right, y1: bottom, y2: bottom }));
  svg.append(s("text", { class: "chart-label", x: right, y: bottom + 34, "text-anchor": "end" }, options.xLabel));
  if (spoken(options).length === 1) {
    svg.append(s("text", { class: "chart-label", x: left, y: 12 }, options.yLabel));
  }
}

/** @param {SVGElement} svg @param {Frame} frame @param {ChartOptions} options */
function drawLegend(svg, frame, options) {
  if (spoken(options).length < 2) return;
  legendRows(spoken(options), frame.width - 64).forEach((row, line) => {
    const y = 12 + 20 * line;
    for (const { one, index, x } of row) {
      const from = frame.left + x;
      svg.append(s("line", { ...stroke(one, index), x1: from, x2: from + 18, y1: y - 4, y2: y - 4 }));
      svg.append(s("text", { class: "chart-legend", x: from + 24, y }, one.name));
    }
  });
}

/** @param {SVGElement} svg @param {Chart} chart */
function drawMarker(svg, chart) {
  svg.querySelectorAll(".chart-marker, .chart-at").forEach((old) => old.remove());
  const { frame, options } = chart;
  const at = chart.cursor === null ? options.marker : options.x[chart.cursor];
  if (!frame || at === undefined || !Number.isFinite(at)) return;
  const x = frame.x(at);
  svg.append(s("line", { class: "chart-marker", x1: x, x2: x, y1: frame.top, y2: frame.bottom }));
  spoken(options).forEach((one, index) => {
    const y = valueAt(one, options, at);
    if (!Number.isFinite(y)) return;
    svg.append(s("circle", { class: `chart-dot chart-at ${colour(one, index)}`, cx: x, cy: frame.y(y), r: 4 }));
  });
}

/** @param {SVGElement} svg @param {Chart} chart @param {string} ids */
function draw(svg, chart, ids) {
  const { options } = chart;
  const width = Math.max(240, svg.parentElement?.clientWidth || 640);
  const height = options.height ?? 240;
  const frame = frameOf(options, width, height);
  chart.frame = frame;
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("height", String(height));
  svg.replaceChildren(
    s("title", { id: `${ids}-title` }, options.title),
    s("desc", { id: `${ids}-desc` }, describe(options)),
  );
  drawAxes(svg, frame, options);
  options.series.forEach((one, index) => {
    const xs = one.x ?? options.x;
    if (one.low) svg.append(s("path", { class: `chart-band ${colour(one, index)}`, d: band(frame, xs, one) }));
    svg.append(s("path", { ...stroke(one, index), d: polyline(frame, xs, one.y) }));
    if (one.dots) Array.from(one.y, (y, i) => svg.append(s("circle", { class: `chart-dot ${colour(one, index)}`, cx: frame.x(xs[i]), cy: frame.y(y), r: 3 })));
  });
  drawLegend(svg, frame, options);
  drawMarker(svg, chart);
}

/** @param {ChartOptions} options @returns {string} */
function describe(options) {
  const ends = spoken(options).map((one) => {
    const last = one.y.length - 1;
    return `${one.name}: from ${number(one.y[0])} to ${number(one.y[last])}`;
  });
  return `${options.yLabel}${options.log ? ", on a logarithmic axis," : ""} over ${options.xLabel}. ${ends.join("; ")}. Left and right arrow keys read the values.`;
}

/** @param {Chart} chart @returns {string} what is at the cursor */
function reading(chart) {
  const { options } = chart;
  const at = options.x[chart.cursor ?? 0];
  const values = spoken(options).map((one) => `${one.name} ${number(valueAt(one, options, at))}`);
  return `${options.xLabel} ${number(at)}: ${values.join(", ")}`;
}

/** @param {SVGElement} svg @param {Chart} chart @param {KeyboardEvent} event */
function onKey(svg, chart, event) {
  const { options } = chart;
  const last = options.x.length - 1;
  const start = chart.cursor ?? nearest(options.x, options.marker ?? options.x[0]);
  const moves = /** @type {Record<string, number>} */ ({
    ArrowLeft: start - 1, ArrowRight: start + 1, PageDown: start - 10, PageUp: start + 10, Home: 0, End: last,
  });
  if (!(event.key in moves)) return;
  event.preventDefault();
  chart.cursor = Math.max(0, Math.min(last, moves[event.key]));
  options.onPick?.(options.x[chart.cursor]);
  drawMarker(svg, chart);
  announce(reading(chart));
}

/** @param {SVGElement} svg @param {Chart} chart @param {PointerEvent} event */
function onPointer(svg, chart, event) {
  const { frame, options } = chart;
  if (!frame) return;
  const box = svg.getBoundingClientRect();
  const x = ((event.clientX - box.left) / box.width) * frame.width;
  const value = frame.domain[0] + ((x - frame.left) / (frame.right - frame.left)) * (frame.domain[1] - frame.domain[0]);
  chart.cursor = nearest(options.x, value);
  if (event.buttons & 1) options.onPick?.(options.x[chart.cursor]);
  drawMarker(svg, chart);
  svg.dispatchEvent(new CustomEvent("reading", { detail: reading(chart), bubbles: true }));
}

/** A line chart that fits its parent's width. x is shared; a series may bring its own.
 * @param {ChartOptions} options @returns {SVGSVGElement} */
export function lineChart(options) {
  const ids = `chart-${++count}`;
  const svg = /** @type {SVGSVGElement} */ (s("svg", {
    class: options.onPick ? "chart chart-pick" : "chart", tabindex: "0", role: "application",
    "aria-roledescription": "line chart", "aria-labelledby": `${ids}-title`, "aria-describedby": `${ids}-desc`,
  }));
  /** @type {Chart} */
  const chart = { options, frame: null, cursor: null, draw: () => draw(svg, chart, ids) };
  charts.set(svg, chart);
  const leave = () => {
    chart.cursor = null;
    drawMarker(svg, chart);
    svg.dispatchEvent(new CustomEvent("reading", { detail: "", bubbles: true }));
  };
  svg.addEventListener("keydown", (event) => onKey(svg, chart, event));
  svg.addEventListener("pointermove", (event) => onPointer(svg, chart, event));
  svg.addEventListener("pointerdown", (event) => onPointer(svg, chart, event));
  svg.addEventListener("pointerleave", leave);
  svg.addEventListener("blur", leave);
  chart.draw();
  let seen = 0;
  new ResizeObserver(() => {
    const wide = svg.parentElement?.clientWidth ?? 0;
    if (wide && wide !== seen) chart.draw();
    seen = wide;
  }).observe(svg);
  return svg;
}

/** The same chart of other numbers.
 * @param {SVGElement} svg @param {Partial<ChartOptions>} changes */
export function redraw(svg, changes) {
  const chart = charts.get(svg);
  if (!chart) return;
  Object.assign(chart.options, changes);
  chart.draw();
}

/** Move the marker of a chart without drawing the rest again.
 * @param {SVGElement} svg @param {number} x */
export function setMarker(svg, x) {
  const chart = charts.get(svg);
  if (!chart) return;
  chart.options.marker = x;
  drawMarker(svg, chart);
}
