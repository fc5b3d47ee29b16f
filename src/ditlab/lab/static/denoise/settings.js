/** Settings of a denoiser: as text in the page's address, and as controls. */
import { h } from "../draw/dom.js";
import { choices } from "../page/api.js";
import { classChoices, scalarFields, scalarsOf, told } from "../page/conditions.js";

/**
 * @typedef {import("../page/api.js").Run} Run
 * @typedef {{solver: string, steps: number, guidance: number, seed: number, label: number | null, cond?: string}} Setting  label null: chosen by the seed; cond: scalars, such as '{"age":30}'
 */

/** @param {Setting} setting @returns {string} such as "heun_25_1_0_" */
export const write = ({ solver, steps, guidance, seed, label, cond }) => [solver, steps, guidance, seed, label ?? "", ...(cond ? [cond] : [])].join("_");

/** Nonsense in an address falls back to what the run would do. @param {string} text @param {Run} run @param {Setting} fallback @returns {Setting} */
export function read(text, run, fallback) {
  const [solver, ...rest] = text.split("_");
  const [steps, guidance, seed, label] = rest.slice(0, 4).map((part) => (part === "" ? null : Number(part)));
  const whole = (/** @type {number | null | undefined} */ value, /** @type {number} */ low, /** @type {number} */ high, /** @type {number} */ other) =>
    (typeof value === "number" && Number.isInteger(value) && value >= low && value <= high ? value : other);
  const wanted = {
    solver: run.solvers.includes(solver) ? solver : fallback.solver,
    steps: whole(steps, 1, run.max_steps, fallback.steps),
    guidance: guidable(run) && Number.isFinite(guidance ?? NaN) ? Math.max(-100, Math.min(100, guidance ?? 1)) : fallback.guidance,
    seed: whole(seed, 0, 2 ** 31, fallback.seed),
    label: run.num_classes === null || typeof label !== "number" ? null : whole(label, -1, run.num_classes - 1, 0),
    cond: scalarsOf(run, rest.slice(4).join("_")),
  };
  return held(wanted, fallback);
}

/** Is there something to guide towards? @param {Run} run */
const guidable = (run) => run.num_classes !== null || run.scalars.length > 0;

/** In an exported file: the nearest setting there is an answer for. @param {Setting} wanted @param {Setting} fallback @returns {Setting} */
function held(wanted, fallback) {
  const list = ready(fallback.guidance);
  if (!list?.length) return wanted;
  const miss = (/** @type {Setting} */ one) => Number(one.solver !== wanted.solver) * 8 + Number(one.steps !== wanted.steps) * 2 + Number(one.seed !== wanted.seed) * 4;
  return list.reduce((best, one) => (miss(one) < miss(best) ? one : best));
}

/** @param {number} guidance of the run, where a setting does not say @returns {Setting[] | null} null: everything is possible */
function ready(guidance) {
  const found = choices();
  return found && found.settings.map((one) => ({ ...one, guidance: one.guidance ?? guidance, label: one.label ?? null }));
}

/** The two settings the page starts with: the run's own, and one that costs far less. @param {Run} run @returns {[Setting, Setting]} */
export function defaults(run) {
  const { solver, steps, guidance } = run.sampling;
  /** @type {Setting} */
  const own = { solver, steps: Math.min(steps, run.max_steps), guidance: guidance ?? 1, seed: 0, label: null };
  return [own, { ...own, solver: "euler", steps: own.solver === "average" ? 10 : Math.min(10, own.steps) }];
}

/** Query parameters of a trajectory; what is at its default is left out. @param {Setting} setting @param {number} n */
export function asked(setting, n) {
  const { solver, steps, guidance, seed, label, cond } = setting;
  return { solver, steps, guidance: guidance === 1 ? null : guidance, seed, label, cond: cond || null, n };
}

/** @param {Run} run @param {Setting} setting @returns {string} */
export function title(run, { solver, steps, guidance, label, cond }) {
  const extra = [...(guidance === 1 ? [] : [`guidance ${guidance}`]), ...told(run, label, cond ?? "")];
  return [`${solver}, ${steps} ${steps === 1 ? "step" : "steps"}`, ...extra].join(", ");
}

let count = 0;

/** What the words mean. @type {Record<string, string>} */
const MEANING = {
  Solver: "How the network’s answers are turned into steps from noise to data. Heun asks the network twice in a step, Euler once. Average, for MeanFlow, jumps by the mean velocity over the step.",
  Guidance: "How strongly samples are pushed towards their label; 1 means not at all. The network is asked both with and without the label.",
};

/** @param {string} text @param {(id: string) => HTMLElement} make */
function field(text, make) {
  const id = `setting-${++count}`;
  return h("div", { class: "setting", title: MEANING[text] }, h("label", { for: id }, text), make(id));
}

/** @param {string} text @param {[string, string][]} options @param {string} value @param {(value: string) => void} onPick */
function choice(text, options, value, onPick) {
  return field(text, (id) => h("select", { id, value, onchange: (/** @type {Event} */ event) => onPick(/** @type {HTMLSelectElement} */ (event.target).value) },
    options.map(([key, name]) => h("option", { value: key }, name))));
}

/** A number that is taken over once it is one. @param {string} text @param {{min: number, max: number, step: number | string, value: number}} props
 * @param {(value: number) => void} onPick */
function amount(text, props, onPick) {
  return field(text, (id) => h("input", { id, type: "number", ...props, onchange: (/** @type {Event} */ event) => {
    const input = /** @type {HTMLInputElement} */ (event.target);
    const value = input.valueAsNumber;
    if (!Number.isFinite(value) || !input.checkValidity()) {
      input.reportValidity();
      return;
    }
    onPick(value);
  } }));
}

/** Solver, steps, guidance and label of one side. @param {string} name "A" or "B" @param {Run} run @param {Setting} setting
 * @param {(setting: Setting) => void} onPick @returns {HTMLElement} */
export function controls(name, run, setting, onPick) {
  const list = ready(setting.guidance);
  const legend = h("legend", null, h("span", { class: `side side-${name.toLowerCase()}` }, name), ` ${title(run, setting)}`);
  if (list) {
    const same = list.filter((one) => one.seed === setting.seed);
    return h("fieldset", { class: "settings" }, legend, choice("Solver and steps", same.map((one) => [write(one), title(run, one)]), write(setting),
      (text) => onPick(same.find((one) => write(one) === text) ?? setting)));
  }
  const labels = run.num_classes === null ? [] : /** @type {[string, string][]} */ ([["", "by the seed"], ...classChoices(run), ["-1", "none"]]);
  return h("fieldset", { class: "settings" }, legend,
    choice("Solver", run.solvers.map((solver) => [solver, solver]), setting.solver, (solver) => onPick({ ...setting, solver })),
    amount("Steps", { min: 1, max: run.max_steps, step: 1, value: setting.steps }, (steps) => onPick({ ...setting, steps })),
    guidable(run) ? amount("Guidance", { min: -100, max: 100, step: "any", value: setting.guidance }, (guidance) => onPick({ ...setting, guidance })) : null,
    labels.length ? choice("Label", labels, String(setting.label ?? ""), (text) => onPick({ ...setting, label: text === "" ? null : Number(text) })) : null,
    scalarFields(run, setting.cond ?? "", "setting", "none", (cond) => onPick({ ...setting, cond })));
}

/** The seed both sides share. @param {Setting} setting @param {(seed: number) => void} onPick @returns {HTMLElement} */
export function seedControl(setting, onPick) {
  const list = ready(setting.guidance);
  if (list) {
    const seeds = [...new Set(list.map((one) => one.seed))].sort((a, b) => a - b);
    return choice("Seed", seeds.map((seed) => [`${seed}`, `${seed}`]), String(setting.seed), (text) => onPick(Number(text)));
  }
  return h("div", { class: "seed" }, amount("Seed", { min: 0, max: 2 ** 31, step: 1, value: setting.seed }, onPick),
    h("button", { type: "button", class: "tool", onclick: () => onPick(setting.seed + 1) }, "Next noise"));
}
