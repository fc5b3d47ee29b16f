// Building DOM nodes by hand. Everything a person or a file names reaches the page as text, never as markup.

/** @typedef {Node | string | number | null | undefined | false | Child[]} Child */
/** @typedef {Record<string, any>} Props */

/** Properties that must be set as properties: the attribute of the same name means something else. */
const PROPERTIES = new Set(["value", "checked", "selected", "indeterminate"]);

/**
 * @param {Element} node
 * @param {string} name
 * @param {any} value
 */
function setProp(node, name, value) {
  if (name.startsWith("on") && typeof value === "function") {
    node.addEventListener(name.slice(2).toLowerCase(), value);
  } else if (name === "dataset") {
    Object.assign(/** @type {HTMLElement} */ (node).dataset, value);
  } else if (name === "style") {
    Object.assign(/** @type {HTMLElement} */ (node).style, value);
  } else if (PROPERTIES.has(name)) {
    /** @type {any} */ (node)[name] = value;
  } else if (name.startsWith("aria-")) {
    node.setAttribute(name, String(value));
  } else if (value !== false) {
    node.setAttribute(name, value === true ? "" : String(value));
  }
}

/**
 * @param {Element} node
 * @param {Props | null | undefined} props
 * @param {Child[]} children
 */
function fill(node, props, children) {
  append(node, children);
  // After the children: a select takes its value only once it has its options.
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value !== undefined && value !== null) setProp(node, name, value);
  }
}

/**
 * Append children, skipping null, undefined and false; arrays are flattened.
 * @param {Node} node
 * @param {Child[]} children
 */
function append(node, children) {
  for (const child of children) {
    if (Array.isArray(child)) append(node, child);
    else if (child instanceof Node) node.appendChild(child);
    else if (child !== null && child !== undefined && child !== false) {
      node.appendChild(document.createTextNode(String(child)));
    }
  }
}

/**
 * An HTML element. `on…` props are listeners, `style` and `dataset` objects, `true` an empty attribute,
 * null, undefined and false no attribute (aria-* keeps "false").
 * @template {keyof HTMLElementTagNameMap} T
 * @param {T} tag
 * @param {Props | null} [props]
 * @param {...Child} children
 * @returns {HTMLElementTagNameMap[T]}
 */
export function h(tag, props, ...children) {
  const node = document.createElement(tag);
  fill(node, props, children);
  return node;
}

/**
 * An SVG element.
 * @template {keyof SVGElementTagNameMap} T
 * @param {T} tag
 * @param {Props | null} [props]
 * @param {...Child} children
 * @returns {SVGElementTagNameMap[T]}
 */
export function s(tag, props, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  fill(node, props, children);
  return node;
}

/**
 * Remove all children and return the node.
 * @template {Node} T
 * @param {T} node
 * @returns {T}
 */
export function clear(node) {
  while (node.lastChild) node.removeChild(node.lastChild);
  return node;
}

/**
 * A data table with a caption; the first cell of each row is its heading.
 * @param {string} caption
 * @param {(string | number)[]} columns
 * @param {(string | number)[][]} rows
 * @returns {HTMLTableElement}
 */
export function table(caption, columns, rows) {
  return h("table", null,
    h("caption", null, caption),
    h("thead", null, h("tr", null, columns.map((name) => (name === "" ? h("td") : h("th", { scope: "col" }, name))))),
    h("tbody", null, rows.map(([first, ...rest]) =>
      h("tr", null, h("th", { scope: "row" }, first), rest.map((cell) => h("td", null, cell))))));
}

/** A picture under its name. @param {string} title @param {string} note may be empty @param {...HTMLElement} content */
export const figure = (title, note, ...content) => h("figure", null, h("figcaption", null, h("b", null, title), note && ` ${note}`), ...content);

/** Rebuild part of the page and leave the keyboard where it was. @param {HTMLElement} root @param {() => void} rebuild */
export function keepFocus(root, rebuild) {
  const list = () => /** @type {HTMLElement[]} */ ([...root.querySelectorAll("input, select, button")]);
  const place = list().indexOf(/** @type {HTMLElement} */ (document.activeElement));
  rebuild();
  if (place >= 0) list()[place]?.focus();
}
