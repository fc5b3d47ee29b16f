// A canvas of the network's own size to draw on: pen, eraser, a disc to stamp, with pointer or keyboard.

import { h } from "./dom.js";
import { Grid } from "./grid.js";

/** @typedef {"pen" | "eraser" | "disc"} Tool */

export class Sketch {
  /**
   * @param {number[]} shape (C,H,W)
   * @param {(pixels: Uint8Array<ArrayBuffer>) => void} onDone a stroke is finished
   */
  constructor(shape, onDone) {
    const [channels, height, width] = shape;
    this.channels = channels;
    this.height = height;
    this.width = width;
    this.onDone = onDone;
    /** Brightness, 0…255, of one channel: what is drawn is grey. */
    this.pixels = new Uint8Array(this.height * this.width);
    /** @type {Tool} */
    this.tool = "pen";
    this.grid = new Grid({
      rows: this.height, cols: this.width, label: `Drawing, ${this.width} by ${this.height} pixels`, maxWidth: 320, gap: this.width <= 32 ? 1 : 0,
      describe: (row, col) => `pixel in row ${row + 1}, column ${col + 1}: ${Math.round((this.pixels[row * this.width + col] / 255) * 100)} % bright`,
      onSelect: (row, col) => this.keyboard && this.stroke(row, col, true),
    });
    // The grid reports clicks too; strokes of the pointer are handled here, while it moves.
    this.keyboard = true;
    this.listen(this.grid.canvas);
    this.root = h("div", { class: "sketch" }, this.grid.root, this.toolbar());
    this.show();
  }

  toolbar() {
    const tools = /** @type {[Tool, string][]} */ ([["pen", "Pen"], ["eraser", "Eraser"], ["disc", "Disc"]]);
    const buttons = tools.map(([tool, label]) => h("button", {
      type: "button", class: "tool", "aria-pressed": tool === this.tool, onclick: () => {
        this.tool = tool;
        buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(tools[i][0] === tool)));
      },
    }, label));
    const wipe = h("button", { type: "button", class: "tool", onclick: () => this.clear() }, "Clear");
    return h("div", { class: "tools", role: "group", "aria-label": "Drawing tools" }, buttons, wipe);
  }

  /** @param {HTMLCanvasElement} canvas */
  listen(canvas) {
    canvas.classList.add("grid-draw");
    let drawing = false;
    canvas.addEventListener("pointerdown", (event) => {
      drawing = true;
      this.keyboard = false;
      canvas.setPointerCapture(event.pointerId);
      const { row, col } = this.grid.cellAt(event);
      this.stroke(row, col, false);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!drawing || this.tool === "disc") return;
      const { row, col } = this.grid.cellAt(event);
      this.stroke(row, col, false);
    });
    const end = () => {
      if (drawing) this.done();
      drawing = false;
      // After the click that ends the stroke.
      setTimeout(() => (this.keyboard = true));
    };
    canvas.addEventListener("pointerup", end);
    canvas.addEventListener("pointercancel", end);
  }

  /** @param {number} row @param {number} col @param {boolean} finished */
  stroke(row, col, finished) {
    if (this.tool === "disc") this.stamp(row, col);
    else this.dab(row, col, this.tool === "pen" ? 255 : 0);
    this.show();
    if (finished) this.done();
  }

  /** A dot as wide as an eighth of the image: a single pixel would be finer than anything in the data. @param {number} row @param {number} col @param {number} value */
  dab(row, col, value) {
    const size = Math.max(1, Math.round(this.width / 8));
    const first = Math.floor((size - 1) / 2);
    for (let y = row - first; y < row - first + size; y += 1) {
      for (let x = col - first; x < col - first + size; x += 1) this.set(y, x, value);
    }
  }

  /** A filled disc with soft edges, a quarter of the image in radius. @param {number} row @param {number} col */
  stamp(row, col) {
    const radius = this.width / 4;
    for (let y = 0; y < this.height; y += 1) {
      for (let x = 0; x < this.width; x += 1) {
        const cover = Math.min(1, Math.max(0, radius + 0.5 - Math.hypot(y - row, x - col)));
        const old = this.pixels[y * this.width + x];
        this.set(y, x, Math.max(old, Math.round(255 * cover)));
      }
    }
  }

  /** @param {number} y @param {number} x @param {number} value */
  set(y, x, value) {
    if (y >= 0 && y < this.height && x >= 0 && x < this.width) this.pixels[y * this.width + x] = value;
  }

  clear() {
    this.pixels.fill(0);
    this.show();
    this.done();
  }

  show() {
    this.grid.setImage({ shape: [this.height, this.width], data: Float32Array.from(this.pixels, (value) => value / 127.5 - 1) });
    this.grid.say();
  }

  done() {
    const all = new Uint8Array(this.channels * this.pixels.length);
    for (let c = 0; c < this.channels; c += 1) all.set(this.pixels, c * this.pixels.length);
    this.onDone(all);
  }

  /** Start from an image. @param {ArrayLike<number>} data (C,H,W), −1…1: its first channel */
  load(data) {
    for (let i = 0; i < this.pixels.length; i += 1) this.pixels[i] = Math.round(Math.min(255, Math.max(0, (data[i] + 1) * 127.5)));
    this.show();
  }
}
