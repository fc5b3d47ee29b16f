// A canvas of rows × cols cells: an image in patches, numbers as colours, or numbers over an image. One tab stop;
// arrow keys move inside, and a live read-out says in words what the colours show.

import { KEY, QUERY, diverging, grey, sequential } from "./color.js";
import { clear, h, table } from "./dom.js";
import { imageCanvas, painted } from "./paint.js";

/**
 * @typedef {"sequential" | "diverging" | "grey"} Scale
 * @typedef {ArrayLike<number>} Values
 * @typedef {{row: number, col: number, rows?: number, cols?: number, color: "query" | "key" | "hover",
 *   inset?: boolean}} Mark `inset`: inside another outline
 * @typedef {{rows?: number, cols?: number, scale?: Scale, low?: number, high?: number, alpha?: number,
 *   format?: (value: number) => string}} ValueOptions
 * @typedef {object} GridOptions
 * @property {number} rows
 * @property {number} cols
 * @property {string} label what it shows, for people who do not see it
 * @property {(row: number, col: number) => string} [describe] one cell in words
 * @property {(cell: {row: number, col: number} | null) => void} [onHover] pointer or keyboard is on a cell (null: left)
 * @property {(row: number, col: number) => void} [onSelect] click, Enter or Space; none: a mere picture
 * @property {boolean} [selectOnMove] arrow keys select at once
 * @property {number} [gap] CSS pixels between cells
 * @property {number} [maxWidth] CSS pixels
 * @property {number} [cellAspect] width of a cell over its height
 * @property {HTMLElement} [output] another grid's read-out, to speak there
 * @property {boolean} [readout] show the read-out under the canvas (default: when there is `describe`)
 */

const MARKS = { query: QUERY, key: KEY, hover: "#ffffff" };

export class Grid {
  /** @param {GridOptions} options */
  constructor(options) {
    this.options = options;
    this.rows = options.rows;
    this.cols = options.cols;
    /** The cell the keyboard is on. */
    this.active = { row: 0, col: 0 };
    /** @type {{row: number, col: number} | null} */
    this.hovered = null;
    /** @type {Mark[]} */
    this.marks = [];
    /** @type {Values | null} */
    this.values = null;
    /** @type {Required<Pick<ValueOptions, "scale" | "low" | "high" | "alpha" | "format">>} */
    this.look = { scale: "sequential", low: 0, high: 1, alpha: 1, format: (value) => value.toFixed(3) };
    /** @type {HTMLCanvasElement | null} */
    this.image = null;
    /** @type {HTMLCanvasElement | null} */
    this.heat = null;
    this.pending = 0;
    const { label, maxWidth, onSelect, describe, readout } = options;
    const active = onSelect !== undefined || options.onHover !== undefined;
    this.canvas = h("canvas", {
      class: active ? "grid-canvas grid-active" : "grid-canvas", role: active ? "application" : "img",
      "aria-label": label, "aria-roledescription": active ? "grid, arrow keys move" : null, tabindex: active ? 0 : null,
    });
    // It speaks only while its grid has the keyboard: a choice moves many grids, and one voice is enough.
    this.output = options.output ?? h("p", { class: "readout", "aria-live": "off" });
    this.root = h("div", { class: "grid-box" }, this.canvas, describe && readout !== false ? this.output : null);
    if (maxWidth) this.root.style.maxWidth = `${maxWidth}px`;
    new ResizeObserver(() => this.draw()).observe(this.canvas);
    if (active) this.listen(this.canvas);
    this.shape();
  }

  /** Keep cells square (or `cellAspect`) at every width. */
  shape() {
    const { cellAspect = 1 } = this.options;
    this.canvas.style.aspectRatio = `${this.cols * cellAspect} / ${this.rows}`;
    this.active = { row: Math.min(this.active.row, this.rows - 1), col: Math.min(this.active.col, this.cols - 1) };
  }

  /** @param {number} rows @param {number} cols */
  resize(rows, cols) {
    if (rows === this.rows && cols === this.cols) return;
    [this.rows, this.cols] = [rows, cols];
    this.marks = [];
    this.hovered = null;
    this.shape();
  }

  /** The image under the values; it is cut into rows × cols patches. @param {{shape: number[], data: Values} | null} image */
  setImage(image) {
    this.image = image && imageCanvas(image);
    this.draw();
  }

  /** Any picture in the image's place; it is cut into rows × cols parts. @param {HTMLCanvasElement | null} picture */
  setPicture(picture) {
    this.image = picture;
    this.draw();
  }

  /**
   * One number per cell, row by row; null for none.
   * @param {Values | null} data
   * @param {ValueOptions} [options] `low` and `high` are the ends of the scale: by default 0 and the largest value,
   *   for "diverging" ± the largest magnitude
   */
  setValues(data, options = {}) {
    this.resize(options.rows ?? this.rows, options.cols ?? this.cols);
    this.values = data;
    this.heat = null;
    if (data) {
      const scale = options.scale ?? "sequential";
      let largest = 0;
      for (let i = 0; i < data.length; i += 1) largest = Math.max(largest, Math.abs(data[i]));
      const high = options.high ?? (largest || 1);
      const low = options.low ?? (scale === "sequential" ? 0 : -high);
      const { alpha = 1, format = this.look.format } = options;
      this.look = { scale, low, high, alpha, format };
      this.heat = this.paintHeat(data);
    }
    this.draw();
    this.say();
  }

  /** @param {Values} data */
  paintHeat(data) {
    const { scale, low, high } = this.look;
    const paint = { sequential, diverging: (/** @type {number} */ v) => diverging(2 * v - 1), grey: (/** @type {number} */ v) => grey(2 * v - 1) }[scale];
    const pixels = new ImageData(this.cols, this.rows);
    for (let i = 0; i < this.rows * this.cols; i += 1) {
      const [r, g, b] = paint((data[i] - low) / (high - low || 1));
      pixels.data.set([r, g, b, 255], 4 * i);
    }
    return painted(pixels);
  }

  /** Outline cells or whole blocks of cells. @param {Mark[]} marks */
  mark(marks) {
    this.marks = marks;
    this.draw();
  }

  /** Move the keyboard's place without telling anyone. @param {number} row @param {number} col */
  moveTo(row, col) {
    this.active = { row: Math.min(row, this.rows - 1), col: Math.min(col, this.cols - 1) };
  }

  // --- drawing ---------------------------------------------------------------------------------------------------------

  /** Draw before the next frame. */
  draw() {
    if (this.pending) return;
    this.pending = requestAnimationFrame(() => {
      this.pending = 0;
      this.paint();
    });
  }

  paint() {
    const canvas = this.canvas;
    const context = canvas.getContext("2d");
    if (!context || !canvas.clientWidth) return;
    const ratio = window.devicePixelRatio || 1;
    const width = Math.round(canvas.clientWidth * ratio);
    const height = Math.round(canvas.clientHeight * ratio);
    if (canvas.width !== width) canvas.width = width;
    if (canvas.height !== height) canvas.height = height;
    context.clearRect(0, 0, width, height);
    context.imageSmoothingEnabled = false;
    this.paintLayer(context, this.image, 1);
    this.paintLayer(context, this.heat, this.image ? this.look.alpha : 1);
    for (const mark of this.marks) this.outline(context, mark, ratio);
    if (this.hovered) this.outline(context, { ...this.hovered, color: "hover" }, ratio);
    this.paintNumber(context, ratio);
  }

  /** Where a block of cells lies on the canvas, in device pixels. @param {number} row @param {number} col */
  place(row, col, rows = 1, cols = 1) {
    const { canvas } = this;
    const gap = (this.options.gap ?? 0) * (window.devicePixelRatio || 1);
    const stepX = (canvas.width + gap) / this.cols;
    const stepY = (canvas.height + gap) / this.rows;
    const left = Math.round(col * stepX);
    const top = Math.round(row * stepY);
    return { left, top, width: Math.round((col + cols) * stepX - gap) - left, height: Math.round((row + rows) * stepY - gap) - top };
  }

  /** @param {CanvasRenderingContext2D} context @param {HTMLCanvasElement | null} layer @param {number} alpha */
  paintLayer(context, layer, alpha) {
    if (!layer) return;
    context.globalAlpha = alpha;
    if (this.options.gap) {
      const [w, t] = [layer.width / this.cols, layer.height / this.rows];
      for (let i = 0; i < this.rows * this.cols; i += 1) {
        const [row, col] = [Math.floor(i / this.cols), i % this.cols];
        const to = this.place(row, col);
        context.drawImage(layer, col * w, row * t, w, t, to.left, to.top, to.width, to.height);
      }
    } else {
      context.drawImage(layer, 0, 0, context.canvas.width, context.canvas.height);
    }
    context.globalAlpha = 1;
  }

  /** A coloured line with a dark and a light one around it: seen on any colour. @param {CanvasRenderingContext2D} context @param {Mark} mark @param {number} ratio */
  outline(context, mark, ratio) {
    const box = this.place(mark.row, mark.col, mark.rows, mark.cols);
    const small = Math.min(box.width, box.height) < 26 * ratio;
    const line = (mark.color === "hover" || small ? 2 : 3.5) * ratio;
    // Inside a large cell; around a cell that the line would hide, yet within the canvas.
    const inset = (small ? -line : line / 2 + ratio) + (mark.inset ? line + 2 * ratio : 0);
    const edge = line / 2 + ratio;
    const left = Math.max(edge, box.left + inset);
    const top = Math.max(edge, box.top + inset);
    const width = Math.min(context.canvas.width - edge, box.left + box.width - inset) - left;
    const height = Math.min(context.canvas.height - edge, box.top + box.height - inset) - top;
    for (const [color, extra] of /** @type {[string, number][]} */ ([["rgb(0 0 0 / 0.65)", 2], [MARKS[mark.color], 0]])) {
      context.strokeStyle = color;
      context.lineWidth = line + extra * ratio;
      context.strokeRect(left, top, width, height);
    }
  }

  /** The number itself, in the cell under the pointer, where it fits. @param {CanvasRenderingContext2D} context @param {number} ratio */
  paintNumber(context, ratio) {
    const cell = this.hovered;
    if (!cell || !this.values) return;
    const box = this.place(cell.row, cell.col);
    if (Math.min(box.width, box.height) < 40 * ratio) return;
    context.font = `600 ${Math.min(16, box.width / ratio / 4)* ratio}px system-ui, sans-serif`;
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.lineWidth = 4 * ratio;
    context.lineJoin = "round";
    context.strokeStyle = "rgb(0 0 0 / 0.75)";
    context.fillStyle = "#fff";
    const text = this.look.format(this.values[cell.row * this.cols + cell.col]);
    const middle = /** @type {const} */ ([box.left + box.width / 2, box.top + box.height / 2]);
    context.strokeText(text, ...middle);
    context.fillText(text, ...middle);
  }

  // --- pointer and keyboard --------------------------------------------------------------------------------------------

  /** @param {HTMLCanvasElement} canvas */
  listen(canvas) {
    canvas.addEventListener("pointermove", (event) => this.hover(this.cellAt(event)));
    canvas.addEventListener("pointerleave", () => this.hover(null));
    canvas.addEventListener("blur", () => {
      this.output.setAttribute("aria-live", "off");
      this.hover(null);
    });
    canvas.addEventListener("click", (event) => {
      this.active = this.cellAt(event);
      this.options.onSelect?.(this.active.row, this.active.col);
      this.say();
    });
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("focus", () => {
      this.output.setAttribute("aria-live", "polite");
      if (canvas.matches(":focus-visible")) this.hover(this.active);
    });
  }

  /** @param {MouseEvent} event */
  cellAt(event) {
    const box = this.canvas.getBoundingClientRect();
    const part = (/** @type {number} */ share, /** @type {number} */ count) => Math.min(count - 1, Math.max(0, Math.floor(share * count)));
    return { row: part((event.clientY - box.top) / box.height, this.rows), col: part((event.clientX - box.left) / box.width, this.cols) };
  }

  /** @param {{row: number, col: number} | null} cell */
  hover(cell) {
    if (cell?.row === this.hovered?.row && cell?.col === this.hovered?.col) return;
    this.hovered = cell;
    this.draw();
    this.say();
    this.options.onHover?.(cell);
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    const { row, col } = this.active;
    /** @type {Record<string, [number, number]>} */
    const moves = {
      ArrowUp: [row - 1, col], ArrowDown: [row + 1, col], ArrowLeft: [row, col - 1], ArrowRight: [row, col + 1],
      Home: event.ctrlKey ? [0, 0] : [row, 0], End: event.ctrlKey ? [this.rows - 1, this.cols - 1] : [row, this.cols - 1],
    };
    const move = moves[event.key];
    if (move) {
      const bound = (/** @type {number} */ v, /** @type {number} */ count) => Math.min(count - 1, Math.max(0, v));
      this.active = { row: bound(move[0], this.rows), col: bound(move[1], this.cols) };
      this.hover(this.active);
      if (this.options.selectOnMove) this.options.onSelect?.(this.active.row, this.active.col);
    } else if (event.key === "Enter" || event.key === " ") {
      this.options.onSelect?.(row, col);
      this.say();
    } else return;
    event.preventDefault();
  }

  /** Say what the pointed-at (else the current) cell shows. */
  say() {
    const cell = this.hovered ?? this.active;
    const text = this.options.describe?.(cell.row, cell.col) ?? "";
    if (this.output.textContent !== text) clear(this.output).append(text);
  }

  /**
   * The values as a table (at most 64 × 64 of them: more is not read).
   * @param {string} caption
   * @param {{rowName?: (row: number) => string, colName?: (col: number) => string}} [names]
   * @returns {HTMLTableElement | null}
   */
  table(caption, { rowName = (row) => `row ${row}`, colName = (col) => `${col}` } = {}) {
    const values = this.values;
    if (!values) return null;
    const [rows, cols] = [Math.min(64, this.rows), Math.min(64, this.cols)];
    const cut = rows < this.rows || cols < this.cols ? ` (the first ${rows} × ${cols})` : "";
    const cell = (/** @type {number} */ row, /** @type {number} */ col) => this.look.format(values[row * this.cols + col]);
    return table(caption + cut, ["", ...Array.from({ length: cols }, (_, col) => colName(col))],
      Array.from({ length: rows }, (_, row) => [rowName(row), ...Array.from({ length: cols }, (_, col) => cell(row, col))]));
  }
}
