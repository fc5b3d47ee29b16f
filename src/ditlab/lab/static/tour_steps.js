// What the guided tour says, step by step. Each step stands beside one section and ends in something to try there.

/** @typedef {import("./api.js").Run} Run */
/** @typedef {import("./api.js").SectionId} SectionId */
/** @typedef {import("./state.js").Selection} Selection */
/**
 * @typedef {object} Step
 * @property {string} id kept between visits
 * @property {SectionId} section
 * @property {string} spot what is pointed at, as a selector within the section
 * @property {string} title
 * @property {(run: Run) => string} text
 * @property {(run: Run) => string} attempt something to do
 * @property {string} see what one sees then
 * @property {(run: Run) => Partial<Selection>} [show] does it for those who would rather watch
 * @property {(run: Run) => boolean} [fits] whether it applies to the run beyond its section (default: it does)
 */

/** @param {Run} run */
const drawn = (run) => (run.data === "points" ? "a cloud of points" : "an image");
/** @param {Run} run */
const middle = (run) => Math.floor(run.attention.length / 2);

/** @type {Step[]} */
export const STEPS = [
  {
    id: "trajectory", section: "denoise", spot: ".compare-time", title: "From noise to data",
    text: (run) => `The network has learned one thing: to look at something noisy and tell noise from data. Begin with nothing but noise, ask it, take away a little of the noise, and ask again. What comes out after the last step is ${drawn(run)} that nobody drew. The whole way is called a trajectory.`,
    attempt: () => "Press ▶ beside “Time t”, or drag it from 1 (only noise) to 0 (no noise).",
    see: "“Predicted x₀” is the result as the network foresees it at that moment: blurred at first, then sharp long before the noise is gone.",
    show: () => ({ at: 0.5 }),
  },
  {
    id: "patches", section: "patches", spot: ".patches-row", title: "An image becomes a list",
    text: (run) => `A transformer reads lists, not images. So the image is cut into ${run.patches?.tokens ?? "equal"} squares, the patches, and each patch is turned into a row of numbers, its token. A position is added, for a list does not know left from right.`,
    attempt: () => "Click a bright patch, then a dark one.",
    see: "The framed row is that patch as the network knows it. Patches that look alike have rows that look alike.",
    show: () => ({ patch: 0 }),
  },
  {
    id: "blocks", section: "flow", spot: ".panel-body", title: "The way through the blocks",
    text: (run) => `The tokens pass through ${run.attention.length || "several"} blocks, one after the other. In each, attention lets the patches exchange what they know, and an MLP lets every patch think for itself. The time t tells each block how noisy things are.`,
    attempt: () => "Press “Send a batch through” and follow the line from the left to the right.",
    see: "The tokens are as many and as long at the end as at the beginning: a block changes them, and adds none.",
    fits: (run) => run.network === "dit",
  },
  {
    id: "attention", section: "attention", spot: ".attention-pictures", title: "Patches look at each other",
    text: () => "Noise hides what a patch shows, so each asks the others. Attention is how much it listens to each of them: its shares add up to 100 %.",
    attempt: () => "Click a patch on the object, then one of the background. Bright squares are those it listens to.",
    see: "The two listen to different places. “In numbers” says how much goes to the object, and how much would if the choice were blind (chance).",
    show: () => ({ patch: null, direction: "from" }),
  },
  {
    id: "heads", section: "attention", spot: ".thumbnails", title: "Many heads, many questions",
    text: (run) => `Each block has ${run.attention[0]?.heads ?? 0} heads, which look in parallel and each in their own way. “All layers and heads” shows the view of the chosen patch through all of them; “average” in the bar above hides how different they are.`,
    attempt: () => "Click two or three of the small pictures.",
    see: "Some heads look at one place, some all around, some nearly everywhere.",
    show: (run) => ({ layer: middle(run), head: 0 }),
    fits: (run) => (run.attention[0]?.heads ?? 0) > 1,
  },
  {
    id: "time", section: "attention", spot: ".attention-pictures", title: "The same network, at every noise level",
    text: () => "One network does the work at all times t: it is told t, and behaves accordingly. With much noise there is little to see in any single patch; with little noise its neighbours tell most.",
    attempt: () => "Move “Time t” in the bar at the top from 0.1 to 0.9, and keep an eye on the attention.",
    see: "The picture drowns in noise, and the patch looks elsewhere. Further down, “Over 64 images” shows whether that is so in general.",
    show: () => ({ t: 0.9 }),
  },
  {
    id: "gates", section: "gates", spot: ".gates-control", title: "Gates that open in training",
    text: () => "Whatever a block computes is multiplied by a gate before it is added to the tokens. Before training all gates are 0, so the blocks do nothing and can do no harm. Training opens them as far as they help.",
    attempt: () => "Drag “Training step” to 0 and press ▶.",
    see: "The bars grow while the loss falls, and out of grey noise the first shapes appear.",
    show: () => ({ train: 0 }),
  },
  {
    id: "change", section: "change", spot: ".panel-body", title: "Is it needed? Switch it off",
    text: () => "That a head looks at something does not prove that it matters. The test is to take it away: here you can switch off parts of the network and compare its answer with that of the whole one.",
    attempt: () => "Switch off a head, then a whole block. The table ranks all heads by what their loss costs.",
    see: "Many heads are hardly missed, a few are. A bright picture of attention alone would not have told which.",
  },
];

/** The steps that apply to a run. @param {Run} run @returns {Step[]} */
export const stepsOf = (run) => STEPS.filter((step) => run.sections[step.section] === null && (step.fits?.(run) ?? true));
