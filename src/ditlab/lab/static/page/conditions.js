// What the network can be told beside image and time: a class, by its name, and scalars, in their unit.

import { h } from "../draw/dom.js";

/** @typedef {import("./api.js").Run} Run */

/** @param {Run} run @param {number} label */
export const className = (run, label) => (label < 0 ? "none" : run.classes?.[label] ?? String(label));

/** The classes to choose from. @param {Run} run @returns {[string, string][]} */
export const classChoices = (run) => Array.from({ length: run.num_classes ?? 0 }, (_, i) => [String(i), className(run, i)]);

/** The scalars of a text such as '{"age":30}'. @param {string} text @returns {Record<string, unknown>} */
function parsed(text) {
  try {
    return Object(JSON.parse(text || "{}"));
  } catch {
    return {};
  }
}

/** The scalars of a text that the run knows, in its order; "" for none. @param {Run} run @param {string} text */
export function scalarsOf(run, text) {
  const given = parsed(text);
  const known = run.scalars.filter(({ name }) => Number.isFinite(given[name])).map(({ name }) => [name, given[name]]);
  return known.length ? JSON.stringify(Object.fromEntries(known)) : "";
}

/** "label cats", "age 30 years": what is told. @param {Run} run @param {number | null} label @param {string} cond @returns {string[]} */
export function told(run, label, cond) {
  const given = parsed(cond);
  const scalars = run.scalars.filter(({ name }) => name in given).map(({ name, unit }) => `${name} ${given[name]} ${unit}`.trim());
  return [...(label === null ? [] : [label < 0 ? "no label" : `label ${className(run, label)}`]), ...scalars];
}

let count = 0;

/** A field for each scalar. @param {Run} run @param {string} cond @param {string} group the class of a field @param {string} empty what an empty field stands for @param {(cond: string) => void} onPick */
export function scalarFields(run, cond, group, empty, onPick) {
  const given = parsed(cond);
  return run.scalars.map(({ name, unit, mean, std }) => {
    const id = `scalar-${++count}`;
    const title = `The ${name} the network is told; ${empty} if empty. In the data ${Number(mean.toPrecision(3))} ± ${Number(std.toPrecision(3))} ${unit}`;
    const input = h("input", {
      id, type: "number", step: "any", class: "short", placeholder: empty, value: given[name] === undefined ? "" : String(given[name]),
      onchange: () => input.checkValidity() && onPick(scalarsOf(run, JSON.stringify({ ...given, [name]: input.value === "" ? null : input.valueAsNumber }))),
    });
    return h("div", { class: group, title }, h("label", { for: id }, unit ? `${name} (${unit})` : name), input);
  });
}
