// The runs there are: asked again every few seconds, so that new ones appear by themselves.

import { exported, forget, json } from "./api.js";
import { lifetime } from "./lifetime.js";

/** @typedef {import("./api.js").RunSummary} RunSummary */

const PATH = "/api/runs";
const SECONDS = 5;

/** @type {Set<(runs: RunSummary[]) => void>} */
const listeners = new Set();
/** @type {ReturnType<typeof setInterval> | undefined} */
let timer;
let known = "";

/** What is worth telling: which runs there are, and whether each has weights. @param {RunSummary[]} runs */
const names = (runs) => runs.map(({ id, step }) => `${id} ${step !== null}`).join();

/** @returns {Promise<RunSummary[]>} */
export async function listRuns() {
  const { runs } = await json(PATH);
  known ||= names(runs);
  return runs;
}

/** Runs that cannot be opened, and why. @returns {Promise<{name: string, why: string}[]>} */
export const listDamaged = async () => (await json(PATH)).damaged ?? [];

/** A page in the background does not ask. */
async function look() {
  if (document.hidden || !listeners.size) return;
  forget(PATH);
  const runs = await listRuns().catch(() => null); // Sections say it if the lab is gone.
  if (!runs || names(runs) === known) return;
  known = names(runs);
  for (const tell of listeners) tell(runs);
}

/** Hear of runs that came or went, as long as the sections at hand live. @param {(runs: RunSummary[]) => void} tell */
export function onRuns(tell) {
  if (exported) return;
  listeners.add(tell);
  lifetime()?.addEventListener("abort", () => listeners.delete(tell), { once: true });
  if (timer) return;
  timer = setInterval(look, SECONDS * 1000);
  document.addEventListener("visibilitychange", look);
}
