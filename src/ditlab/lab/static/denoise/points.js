/** How points denoise: the vector field at t, and particles that move through it along their real trajectory. */
import { sequential } from "../draw/color.js";
import { h } from "../draw/dom.js";
import { arrays, at, exported, floats, isAbort, latest, query } from "../page/api.js";
import { onChange, whichWeights } from "../page/state.js";
import { onTheme } from "../page/theme.js";

/**
 * @typedef {import("../page/api.js").Run} Run
 * @typedef {import("../page/api.js").Arrays} Arrays
 * @typedef {import("./compare.js").View} View
 * @typedef {import("./compare.js").SideView} SideView
 * @typedef {{points: Float32Array, velocity: Float32Array, limit: number, size: number}} Field
 */

const SIZE = 24;
const PARTICLES = 400;
const TRAILS = 60;

/** The field's answers, by time; drawn again once a new one is there. */
class Fields {
  /** @param {Run} run @param {() => void} onReady */
  constructor(run, onReady) {
    this.run = run;
    this.onReady = onReady;
    /** @type {Map<number, Field>} */
    this.known = new Map();
    /** @type {Set<number>} */
    this.pending = new Set();
    this.failed = false;
    this.limit = 3;
    onChange(["step", "weights"], () => {
      // New ones: answers on their way are of the old weights.
      this.known = new Map();
      this.pending = new Set();
      this.failed = false;
    });
  }

  /** @param {number} t @param {() => AbortSignal} signal of the plane that asks @returns {Field | null} null until it is there */
  at(t, signal) {
    // A file holds the field at every twentieth of the way.
    const time = exported ? Math.round(t * 20) / 20 : Number(t.toFixed(3));
    const found = this.known.get(time);
    if (!found && !this.failed && !this.pending.has(time)) void this.ask(time, signal());
    return found ?? null;
  }

  /** @param {number} t @param {AbortSignal} signal */
  async ask(t, signal) {
    const { known, pending } = this;
    pending.add(t);
    try {
      const path = at(this.run.id, `/field${query({ ...whichWeights(), t, size: SIZE })}`);
      const { arrays: found, meta } = await arrays(path, { signal });
      this.limit = Number(meta.limit ?? 3);
      known.set(t, { points: floats(found.points), velocity: floats(found.velocity), limit: this.limit, size: SIZE });
    } catch (error) {
      // Particles are drawn all the same; the panel reports what is wrong with the trajectory.
      this.failed = !isAbort(error);
    }
    pending.delete(t);
    // Also after an abort: the other plane may still wait for this time.
    this.onReady();
  }
}

/** Colours of the theme at hand. @param {Element} node */
function inks(node) {
  const style = getComputedStyle(node);
  const ink = (/** @type {string} */ name) => style.getPropertyValue(name).trim() || "#888888";
  return { back: ink("--plane"), grid: ink("--plane-grid"), arrow: ink("--plane-arrow"), text: ink("--plane-text"), rim: ink("--plane-rim") };
}

/** @param {string} colour as the browser computes it: "rgb(r, g, b)" */
const isDark = (colour) => (colour.match(/[\d.]+/g) ?? ["255"]).slice(0, 3).every((part) => Number(part) < 128);

/** One canvas in data coordinates. */
class Plane {
  /** @param {Fields} fields */
  constructor(fields) {
    this.fields = fields;
    this.signal = latest();
    this.canvas = h("canvas", { class: "plane", role: "img", "aria-label": "Particles in the plane, moving through the network's vector field from noise to data" });
    /** @type {{answer: Arrays, index: number} | null} */
    this.state = null;
    /** @type {{answer: Arrays, dark: boolean, colours: number[][]} | null} */
    this.coloured = null;
    let seen = 0;
    new ResizeObserver(() => {
      if (this.canvas.clientWidth !== seen) this.draw();
      seen = this.canvas.clientWidth;
    }).observe(this.canvas);
  }

  /** @param {Arrays} answer @param {number} index */
  show(answer, index) {
    this.state = { answer, index };
    this.draw();
  }

  /** @param {Arrays} answer @param {boolean} dark @returns {number[][]} */
  colour(answer, dark) {
    if (this.coloured?.answer !== answer || this.coloured.dark !== dark) this.coloured = { answer, dark, colours: colours(answer, dark) };
    return this.coloured.colours;
  }

  draw() {
    const side = this.canvas.clientWidth;
    const context = this.canvas.getContext("2d");
    if (!this.state || !context || !side) return;
    const sharp = window.devicePixelRatio || 1;
    [this.canvas.width, this.canvas.height] = [side * sharp, side * sharp];
    context.setTransform(sharp, 0, 0, sharp, 0, 0);
    const { answer, index } = this.state;
    const field = this.fields.at(floats(answer.arrays.t)[index], this.signal);
    const ink = inks(this.canvas);
    const pen = new Pen(context, side, field?.limit ?? this.fields.limit, ink);
    const colour = this.colour(answer, isDark(ink.back));
    pen.ground();
    if (field) pen.arrows(field);
    pen.trails(answer, index, colour);
    pen.particles(answer, index, colour);
  }
}

/** A particle keeps one colour: that of how far right it ends. The end of the scale nearest to the ground is left out.
 * @param {Arrays} answer @param {boolean} dark @returns {number[][]} */
function colours(answer, dark) {
  const from = dark ? 0.22 : 0.05;
  const { shape } = answer.arrays.x;
  const x = floats(answer.arrays.x);
  const last = (shape[0] - 1) * shape[1] * 2;
  const ends = Array.from({ length: shape[1] }, (_, i) => x[last + 2 * i]);
  const order = ends.map((_, i) => i).sort((i, j) => ends[i] - ends[j]);
  /** @type {number[][]} */
  const found = [];
  order.forEach((particle, rank) => {
    found[particle] = sequential(from + (0.78 * rank) / Math.max(1, order.length - 1));
  });
  return found;
}

class Pen {
  /** @param {CanvasRenderingContext2D} context @param {number} side @param {number} limit @param {ReturnType<typeof inks>} ink */
  constructor(context, side, limit, ink) {
    this.context = context;
    this.side = side;
    this.limit = limit * 1.06;
    this.ink = ink;
  }

  /** @param {number} value */
  x(value) {
    return ((value + this.limit) / (2 * this.limit)) * this.side;
  }

  /** @param {number} value */
  y(value) {
    return this.side - this.x(value);
  }

  ground() {
    const { context, side, ink } = this;
    context.fillStyle = ink.back;
    context.fillRect(0, 0, side, side);
    context.strokeStyle = ink.grid;
    context.fillStyle = ink.text;
    context.lineWidth = 1;
    context.font = "11px system-ui, sans-serif";
    for (let value = Math.ceil(-this.limit); value <= this.limit; value++) {
      context.beginPath();
      context.moveTo(this.x(value), 0);
      context.lineTo(this.x(value), side);
      context.moveTo(0, this.y(value));
      context.lineTo(side, this.y(value));
      context.stroke();
      if (value % 2 === 0) {
        context.fillText(String(value).replace("-", "−"), this.x(value) + 3, side - 5);
        if (value !== -2 || this.side > 260) context.fillText(String(value).replace("-", "−"), 4, this.y(value) - 4);
      }
    }
  }

  /** Where a sample goes next: towards the data, so against dx/dt. @param {Field} field */
  arrows({ points, velocity, size }) {
    const { context, ink } = this;
    const speeds = Float32Array.from({ length: points.length / 2 }, (_, i) => Math.hypot(velocity[2 * i], velocity[2 * i + 1])).sort();
    // Far from the data the network is on its own and may be very fast: nine tenths set the scale.
    const fast = speeds[Math.floor(0.9 * (speeds.length - 1))] || 1;
    const cell = (this.side / size) * 0.95;
    context.strokeStyle = ink.arrow;
    context.lineWidth = 1.1;
    context.beginPath();
    for (let i = 0; i < points.length; i += 2) {
      const speed = Math.hypot(velocity[i], velocity[i + 1]);
      // The root keeps short arrows visible beside long ones.
      const length = Math.min(1, Math.sqrt(speed / fast)) * cell;
      const [dx, dy] = [(-velocity[i] / (speed || 1)) * length, (velocity[i + 1] / (speed || 1)) * length];
      this.arrow(this.x(points[i]) - dx / 2, this.y(points[i + 1]) - dy / 2, dx, dy);
    }
    context.stroke();
  }

  /** @param {number} x @param {number} y @param {number} dx @param {number} dy */
  arrow(x, y, dx, dy) {
    const { context } = this;
    context.moveTo(x, y);
    context.lineTo(x + dx, y + dy);
    for (const turn of [0.5, -0.5]) {
      const [c, s] = [Math.cos(turn) * 0.32, Math.sin(turn) * 0.32];
      context.moveTo(x + dx, y + dy);
      context.lineTo(x + dx - (dx * c - dy * s), y + dy - (dx * s + dy * c));
    }
  }

  /** The way some particles came. @param {Arrays} answer @param {number} index @param {number[][]} colour */
  trails(answer, index, colour) {
    const { context } = this;
    const { shape } = answer.arrays.x;
    const x = floats(answer.arrays.x);
    context.lineWidth = 1.2;
    context.globalAlpha = 0.55;
    for (let i = 0; i < Math.min(TRAILS, shape[1]); i++) {
      context.strokeStyle = `rgb(${colour[i].join(" ")})`;
      context.beginPath();
      for (let step = 0; step <= index; step++) {
        const from = (step * shape[1] + i) * 2;
        context.lineTo(this.x(x[from]), this.y(x[from + 1]));
      }
      context.stroke();
    }
    context.globalAlpha = 1;
  }

  /** @param {Arrays} answer @param {number} index @param {number[][]} colour */
  particles(answer, index, colour) {
    const { context, ink } = this;
    const { shape } = answer.arrays.x;
    const x = floats(answer.arrays.x);
    const radius = this.side < 400 ? 2.6 : 3.4;
    context.strokeStyle = ink.rim;
    context.lineWidth = 0.8;
    for (let i = 0; i < shape[1]; i++) {
      const from = (index * shape[1] + i) * 2;
      context.fillStyle = `rgb(${colour[i].join(" ")})`;
      context.beginPath();
      context.arc(this.x(x[from]), this.y(x[from + 1]), radius, 0, 2 * Math.PI);
      context.fill();
      context.stroke();
    }
  }
}

/** @param {Float32Array} x @param {Float32Array} y @returns {number} mean distance between points */
function apart(x, y) {
  let sum = 0;
  for (let i = 0; i < x.length; i += 2) sum += Math.hypot(x[i] - y[i], x[i + 1] - y[i + 1]);
  return sum / (x.length / 2);
}

/** Both planes beside each other. @param {Plane[]} planes */
function together(planes) {
  const canvases = planes.map((plane) => plane.canvas).filter((canvas) => canvas.width > 0);
  if (!canvases.length) return null;
  const whole = h("canvas", { width: canvases.reduce((sum, canvas) => sum + canvas.width + 24, -24), height: Math.max(...canvases.map((canvas) => canvas.height)) });
  let x = 0;
  for (const canvas of canvases) {
    whole.getContext("2d")?.drawImage(canvas, x, 0);
    x += canvas.width + 24;
  }
  return whole;
}

/** @param {Run} run @returns {View} */
export function pointsView(run) {
  /** @type {Plane[]} */
  const planes = [];
  const redraw = () => planes.forEach((plane) => plane.draw());
  const fields = new Fields(run, redraw);
  return {
    intro: "400 particles start as noise and move to the data, each along its real trajectory. The arrows are the network's vector field at this time, turned towards the data: where a particle at that place goes next. Both sides start from the same noise.",
    n: PARTICLES,
    unit: "is the mean distance between a particle's end in A and in B",
    side: () => {
      const plane = new Plane(fields);
      planes.push(plane);
      onTheme(() => plane.draw());
      return { root: h("div", { class: "plane-frame" }, plane.canvas), show: (answer, index) => plane.show(answer, index) };
    },
    between: { root: h("p", { class: "plane-key" }, "A particle keeps its colour: those at the dark end of the scale finish at the left, those at the bright end at the right. Arrows grow with the square root of the speed, up to the spacing of the grid. Lines are the paths of 60 particles so far."), show: () => {} },
    distance: apart,
    picture: () => together(planes),
  };
}
