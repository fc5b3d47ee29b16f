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

/** @param {ArrayLike<number>} values @param {number} [more] what is hardly larger comes no earlier @returns {number} where the largest is */
export function argmax(values, more = 0) {
  let best = 0;
  for (let i = 1; i < values.length; i += 1) if (values[i] > values[best] + more) best = i;
  return best;
}
