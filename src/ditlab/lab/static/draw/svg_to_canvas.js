// An SVG chart as a picture. Its colours come from the page's style sheet, so they are written into a copy first.

const COPIED = ["fill", "stroke", "stroke-width", "stroke-dasharray", "stroke-linejoin", "opacity", "font-size", "font-family", "font-weight", "text-anchor"];

/** @param {Element} from @param {Element} to */
function freeze(from, to) {
  const style = getComputedStyle(from);
  // As attributes, not as a style: the page's content policy forbids inline styles.
  for (const name of COPIED) to.setAttribute(name, style.getPropertyValue(name));
  to.removeAttribute("class");
  [...from.children].forEach((child, i) => freeze(child, to.children[i]));
}

/**
 * @param {SVGSVGElement} svg
 * @returns {Promise<HTMLCanvasElement>} twice its size on the page, on the page's background
 */
export async function svgToCanvas(svg) {
  const copy = /** @type {SVGSVGElement} */ (svg.cloneNode(true));
  freeze(svg, copy);
  const { width, height } = svg.getBoundingClientRect();
  copy.setAttribute("width", String(width));
  copy.setAttribute("height", String(height));
  const url = URL.createObjectURL(new Blob([new XMLSerializer().serializeToString(copy)], { type: "image/svg+xml" }));
  try {
    const image = new Image();
    image.src = url;
    await image.decode();
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [width * 2, height * 2];
    const context = canvas.getContext("2d");
    if (!context) throw new Error("this browser cannot draw the picture");
    context.fillStyle = getComputedStyle(document.body).backgroundColor;
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(image, 0, 0, canvas.width, canvas.height);
    return canvas;
  } finally {
    URL.revokeObjectURL(url);
  }
}
