// A browser opens six connections to a server and no more, whatever page asks. So what takes the lab long goes in lanes,
// and the rest always finds a connection free.

/** What is measured, what is drawn, and how many of each are under way. @type {{is: RegExp, most: number, busy: number, waiting: (() => void)[]}[]} */
const LANES = [
  { is: /\/(quality|costs|attention\/summary)(\?|$)/, most: 1, busy: 0, waiting: [] },
  { is: /\/(trajectory|samples|pictures)(\?|$)/, most: 2, busy: 0, waiting: [] },
];

/**
 * Ask once there is room in the path's lane.
 * @template T
 * @param {string} path
 * @param {AbortSignal | undefined} signal who leaves the lane is never asked for
 * @param {() => Promise<T>} ask
 * @returns {Promise<T>}
 */
export async function inLane(path, signal, ask) {
  const lane = LANES.find(({ is }) => is.test(path));
  if (!lane) return ask();
  if (lane.busy >= lane.most) await room(lane.waiting, signal);
  else lane.busy += 1;
  try {
    return await ask();
  } finally {
    const next = lane.waiting.shift();
    if (next) next();
    else lane.busy -= 1;
  }
}

/** @param {(() => void)[]} waiting @param {AbortSignal | undefined} signal @returns {Promise<void>} */
function room(waiting, signal) {
  return new Promise((resolve, reject) => {
    const enter = () => {
      signal?.removeEventListener("abort", leave);
      resolve();
    };
    const leave = () => {
      waiting.splice(waiting.indexOf(enter), 1);
      reject(signal?.reason);
    };
    waiting.push(enter);
    signal?.addEventListener("abort", leave, { once: true });
  });
}
