// What the guided tour says, step by step. Each step stands beside one section and ends in something to try there.

import { gateStory } from "../gates/gates.js";

/** @typedef {import("../page/api.js").Run} Run */
/** @typedef {import("../page/api.js").SectionId} SectionId */
/** @typedef {import("../page/state.js").Selection} Selection */
/**
 * @typedef {object} Step
 * @property {string} id kept between visits
 * @property {SectionId} section
 * @property {string} spot what is pointed at, as a selector within the section
 * @property {string} title
 * @property {(run: Run) => string} text
 * @property {(run: Run) => string} attempt something to do
 * @property {(run: Run) => string} see what one sees then
 * @property {(run: Run) => Promise<string>} [recorded] what this run's own recordings say of it
 * @property {(run: Run) => Partial<Selection>} [scene] what it begins with, whatever the steps before left
 * @property {(run: Run) => Partial<Selection>} [show] does it for those who would rather watch
 * @property {(run: Run) => boolean} [fits] whether it applies to the run beyond its section (default: it does)
 */

/** @param {Run} run */
const points = (run) => run.data === "points";
/** @param {Run} run */
const last = (run) => Math.max(0, run.attention.length - 1);
/** One patch on the object, as all heads of the middle layer see it together. @param {Run} run @returns {Partial<Selection>} */
const plain = (run) => ({ t: 0.3, layer: Math.floor(run.attention.length / 2), head: "mean", patch: null, direction: "from" });

/** @type {Step[]} */
export const STEPS = [
  {
    id: "trajectory", section: "denoise", spot: ".compare-time", title: "From noise to a result",
    text: (run) => `This network was shown many ${points(run) ? "points" : "pictures"} and has learned one thing: to tell noise from what it was shown. Begin with nothing but noise, ask it, take a little of the noise away, and ask again. After the last step there is ${points(run) ? "a cloud of points" : "a picture"} that nobody drew. The whole path is called a trajectory.`,
    attempt: () => "Press ▶ in the orange frame. t says how much noise is left: 1 is only noise, 0 is none.",
    see: (run) => `Look at A alone; B does the same with other settings.${points(run) ? "" : " “Predicted x₀” is the result as the network foresees it: blurred at first, then sharp long before the noise is gone."}`,
    scene: () => ({ at: 1 }),
    show: () => ({ at: 0.4 }),
  },
  {
    id: "patches", section: "patches", spot: ".patches-row", title: "A picture becomes a list",
    text: (run) => `This kind of network, a transformer, reads lists. So the picture is cut into ${run.patches?.tokens ?? "equal"} squares, the patches, and each patch is turned into a row of numbers, its token. A position is added, because a list does not know left from right.`,
    attempt: () => "Click a bright patch, then a dark one.",
    see: () => "The framed row is that patch as the network knows it: every little box is a number. Where there is nothing, rows are nearly alike; where there is something, some columns change.",
    scene: plain,
    show: () => ({ patch: 0 }),
  },
  {
    id: "blocks", section: "flow", spot: ".panel-body", title: "The path through the blocks",
    text: (run) => `The tokens pass through ${run.attention.length || "several"} blocks, one after the other. In each, attention lets the patches exchange what they know, and then a small calculator, an MLP, works on every patch alone. Each block is told t.`,
    attempt: () => "Press “Send a batch through” (a batch is a few pictures at once) and follow the line. The formulas can wait.",
    see: (run) => `There are ${run.patches?.tokens ?? "as many"} tokens before and after each block: it changes them and adds none. At the end they become a picture again, the prediction, whose colours say more or less.`,
    fits: (run) => run.network === "dit",
  },
  {
    id: "attention", section: "attention", spot: ".attention-pictures", title: "Patches listen to each other",
    text: () => "Noise hides much of what a patch shows, so each also asks the others. Attention is how much it listens to each of them: its shares add up to 100 %.",
    attempt: () => "Click a patch on the object, then one of the background.",
    see: () => "Yellow squares: it listens to them a lot. Dark ones: hardly at all. The two patches listen to different places.",
    scene: plain,
    show: () => ({ patch: 0 }),
  },
  {
    id: "heads", section: "attention", spot: ".attention-row", title: "Many heads, many ways to listen",
    text: (run) => `Each block, or layer, listens ${run.attention[0]?.heads ?? 0} times at once, each time in its own way. Each way is called a head. Of the small pictures, rows are layers and columns are heads; the last column is their average.`,
    attempt: () => "Click one of the small pictures: it appears large on the left.",
    see: () => "Some heads look at one place, some all around, some nearly everywhere.",
    scene: plain,
    show: () => ({ head: 0 }),
    fits: (run) => (run.attention[0]?.heads ?? 0) > 1,
  },
  {
    id: "time", section: "attention", spot: ".attention-pictures", title: "One network for every noise level",
    text: () => "The same network does the work from pure noise to the last speck. It is told t, how much noise there is, and behaves accordingly.",
    attempt: () => "Move “Time t” in the bar at the top slowly from 0.1 to 0.9, and watch both pictures.",
    see: () => "The picture drowns in noise, and where the patch listens changes: a lot with some heads, hardly at all with others.",
    scene: (run) => ({ ...plain(run), t: 0.1 }),
    show: () => ({ t: 0.9 }),
  },
  {
    id: "gates", section: "gates", spot: ".gates-control", title: "Gates that open in training",
    text: () => "A gate is like a volume knob: what a block computes is multiplied by it before it is added to the tokens. Before training all knobs are at 0, so the blocks do nothing and can do no harm. Training, practice on many pictures, turns each to where it helps.",
    attempt: () => "Press ▶ beside “Training step”.",
    see: () => "The bars leave 0 at once, and noise turns into pictures. Each block has two gates, one for attention and one for its MLP. Small numbers are enough: look at what it draws.",
    recorded: gateStory,
    scene: () => ({ train: 0 }),
    show: (run) => ({ train: run.step }),
  },
  {
    id: "change", section: "change", spot: ".panel-body", title: "Is it needed? Switch it off",
    text: () => "That a head listens somewhere does not prove that it matters. The test is to take it away: here every head (the small numbers), every gate and every block is a switch.",
    attempt: (run) => `Click “0” in the last row: this head is off now. Then click “Block ${last(run)}” itself.`,
    see: () => "Compare the upper and the lower row of samples. The table ranks all heads by how much the network’s error, its loss, rises without them: often a few matter a lot and most hardly at all.",
    scene: (run) => ({ ...plain(run), edits: "" }),
    show: (run) => ({ edits: `block:${last(run)}` }),
    fits: (run) => run.network === "dit",
  },
];

/** The steps that apply to a run. @param {Run} run @returns {Step[]} */
export const stepsOf = (run) => STEPS.filter((step) => run.sections[step.section] === null && (step.fits?.(run) ?? true));
