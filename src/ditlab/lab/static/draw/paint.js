// Images and values as canvases of one pixel each: whoever shows them scales them up.

import { diverging, grey } from "./color.js";
import { h } from "./dom.js";

/** @param {ImageData} pixels @returns {HTMLCanvasElement} */
export function painted(pixels) {
  const canvas = h("canvas", { width: pixels.width, height: pixels.height });
  canvas.getContext("2d")?.putImageData(pixels, 0, 0);
  return canvas;
}

/**
 * An image (C,H,W) or (H,W) with values −largest…largest. Three channels are red, green and blue, also where they are
 * signed: zero is middle grey then.
 * @param {{shape: number[], data: ArrayLike<number>}} image
 * @param {{signed?: boolean, largest?: number}} [look] `signed`: one channel in blue and orange
 * @returns {HTMLCanvasElement}
 */
export function imageCanvas({ shape, data }, { signed = false, largest = 1 } = {}) {
  const [height, width] = shape.slice(-2);
  const channels = shape.length > 2 ? shape[shape.length - 3] : 1;
  const pixels = new ImageData(width, height);
  const size = width * height;
  for (let i = 0; i < size; i += 1) {
    const value = (/** @type {number} */ c) => data[i + (channels >= 3 ? c * size : 0)] / largest;
    const rgb = signed && channels < 3 ? diverging(value(0)) : [0, 1, 2].map((c) => grey(value(c))[0]);
    pixels.data.set([...rgb, 255], 4 * i);
  }
  return painted(pixels);
}
