// A section's picture to take away: what it is above it, its legends below, all at twice the size it has on the page.

import { h } from "./dom.js";
import { svgToCanvas } from "./svg_to_canvas.js";

const SCALE = 2;
const [MARGIN, LINE, GAP] = [16, 24, 14];

/**
 * @param {HTMLCanvasElement | SVGSVGElement} source
 * @param {string} title
 * @param {string} caption what is shown, in a line
 * @param {HTMLElement | null} body where its legends are, if it has any
 * @returns {Promise<HTMLCanvasElement>}
 */
export async function sheet(source, title, caption, body) {
  const picture = source instanceof HTMLCanvasElement ? source : await svgToCanvas(source);
  const drawn = source instanceof HTMLCanvasElement ? SCALE : 1; // A chart comes at twice its size.
  const shown = source instanceof HTMLCanvasElement && source.clientWidth ? source.clientWidth : picture.width;
  const [width, height] = [shown * drawn, (shown * drawn * picture.height) / picture.width];
  const legends = /** @type {HTMLElement[]} */ ([...(body?.querySelectorAll(".legend, .pair-key") ?? [])]).filter((one) => one.offsetParent);
  const pen = new Pen(h("canvas"));
  const words = Math.max(pen.measure(title, "600 17px"), pen.measure(caption, "13px"), ...legends.map((one) => pen.legend(one, 0, 0, false)));
  const below = MARGIN + 2 * LINE + GAP / 2;
  pen.begin(Math.max(width, SCALE * words) + 2 * SCALE * MARGIN, SCALE * (below + legends.length * LINE + MARGIN + GAP) + height);
  pen.write(title, MARGIN, MARGIN + 17, "600 17px", "--text");
  pen.write(caption, MARGIN, MARGIN + 17 + LINE, "13px", "--quiet");
  pen.picture(picture, MARGIN, below, width / SCALE, height / SCALE);
  legends.forEach((one, i) => pen.legend(one, MARGIN, below + height / SCALE + GAP + LINE * (i + 0.6), true));
  return pen.canvas;
}

/** Draws in the page's own pixels and colours. */
class Pen {
  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    this.canvas = canvas;
    const context = canvas.getContext("2d");
    if (!context) throw new Error("this browser cannot draw the picture");
    this.context = context;
    this.style = getComputedStyle(document.body);
  }

  /** @param {number} width @param {number} height */
  begin(width, height) {
    [this.canvas.width, this.canvas.height] = [Math.ceil(width), Math.ceil(height)];
    this.context.scale(SCALE, SCALE);
    this.context.fillStyle = this.style.backgroundColor;
    this.context.fillRect(0, 0, width, height);
  }

  /** @param {string} text @param {string} font its weight and size */
  measure(text, font) {
    this.context.font = `${font} ${this.style.fontFamily}`;
    return this.context.measureText(text).width;
  }

  /** @param {string} text @param {number} x @param {number} y @param {string} font @param {"--text" | "--quiet"} ink */
  write(text, x, y, font, ink) {
    const width = this.measure(text, font);
    this.context.fillStyle = ink === "--text" ? this.style.color : getComputedStyle(document.querySelector(".foot") ?? document.body).color;
    this.context.fillText(text, x, y);
    return width;
  }

  /** @param {HTMLCanvasElement} picture @param {number} x @param {number} y @param {number} width @param {number} height */
  picture(picture, x, y, width, height) {
    this.context.imageSmoothingEnabled = false;
    this.context.drawImage(picture, x, y, width, height);
  }

  /** Its words, colour bars and frames in a line. @param {HTMLElement} legend @param {number} x @param {number} y @param {boolean} draw @returns {number} how wide it is */
  legend(legend, x, y, draw) {
    const start = x;
    for (const part of legend.children) {
      const frame = getComputedStyle(part, "::before");
      if (part instanceof HTMLCanvasElement) {
        if (draw) this.picture(part, x, y - 9, 128, 11);
        x += 128 + 8;
        continue;
      }
      if (frame.content !== "none") {
        if (draw) {
          [this.context.strokeStyle, this.context.lineWidth] = [frame.borderTopColor, 3];
          this.context.strokeRect(x + 1.5, y - 10, 10, 10);
        }
        x += 18;
      }
      const text = part.textContent ?? "";
      x += (draw ? this.write(text, x, y, "13px", "--quiet") : this.measure(text, "13px")) + 8;
    }
    return x - start;
  }
}
