// Small arithmetic that several sections share.

/**
 * Index of the value nearest to `wanted`.
 * @param {ArrayLike<number>} values
 * @param {number} wanted
 * @returns {number}
 */
export function nearest(values, wanted) {
  let best = 0;
  for (let i = 1; i < values.length; i += 1) if (Math.abs(values[i] - wanted) < Math.abs(values[best] - wanted)) best = i;
  return best;
}

/** A share as per cent, with more digits where it is small. @param {number} value @returns {string} */
export const percent = (value) => `${value === 0 ? 0 : (100 * value).toFixed(value < 0.0995 ? 2 : 1)}\u00a0%`;
