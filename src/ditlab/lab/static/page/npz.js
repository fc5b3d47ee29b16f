// NumPy's .npz: a zip, nothing compressed, of .npy files. `np.load` reads it.

/** @typedef {import("./api.js").Tensor} Tensor */

const CRC = Uint32Array.from({ length: 256 }, (_, n) => {
  let c = n;
  for (let bit = 0; bit < 8; bit += 1) c = c & 1 ? 0xedb88320 ^ (c >>> 1) : c >>> 1;
  return c;
});

/** @param {Uint8Array} bytes */
function crc32(bytes) {
  let c = 0xffffffff;
  for (let i = 0; i < bytes.length; i += 1) c = CRC[(c ^ bytes[i]) & 255] ^ (c >>> 8);
  return (c ^ 0xffffffff) >>> 0;
}

/** @param {import("./api.js").Data} data */
function descr(data) {
  if (data instanceof Float32Array) return "<f4";
  return data instanceof Uint8Array ? "|u1" : "<i8";
}

/** @param {Uint8Array[]} parts @returns {Uint8Array<ArrayBuffer>} */
function join(parts) {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let place = 0;
  for (const part of parts) {
    whole.set(part, place);
    place += part.length;
  }
  return whole;
}

/** @param {Tensor} tensor */
function npy({ shape, data }) {
  const tuple = shape.length === 1 ? `${shape[0]},` : shape.join(", ");
  const header = `{'descr': '${descr(data)}', 'fortran_order': False, 'shape': (${tuple}), }`;
  // Magic, version and length take 10 bytes; data must start at a multiple of 64.
  const padded = `${header.padEnd(Math.ceil((header.length + 11) / 64) * 64 - 11)}\n`;
  const start = new Uint8Array([0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59, 1, 0, padded.length & 255, padded.length >> 8]);
  return join([start, new TextEncoder().encode(padded), new Uint8Array(data.buffer, data.byteOffset, data.byteLength)]);
}

/** Little-endian numbers; each entry is [value, bytes]. @param {[number, number][]} fields */
function pack(fields) {
  return Uint8Array.from(fields.flatMap(([value, size]) => Array.from({ length: size }, (_, i) => Math.floor(value / 256 ** i) & 255)));
}

/**
 * A zip of .npy files, as bytes.
 * @param {Record<string, Tensor>} arrays
 * @returns {Uint8Array<ArrayBuffer>}
 */
export function npz(arrays) {
  /** @type {Uint8Array[]} */
  const files = [];
  /** @type {Uint8Array[]} */
  const directory = [];
  let offset = 0;
  for (const [key, tensor] of Object.entries(arrays)) {
    const name = new TextEncoder().encode(`${key}.npy`);
    const body = npy(tensor);
    // Version, flags, method 0 (stored), time and date (1 January 1980), checksum, sizes, name's length, no extras.
    /** @type {[number, number][]} */
    const common = [[20, 2], [0, 2], [0, 2], [0, 2], [33, 2], [crc32(body), 4], [body.length, 4], [body.length, 4], [name.length, 2], [0, 2]];
    const local = [pack([[0x04034b50, 4], ...common]), name, body];
    directory.push(pack([[0x02014b50, 4], [20, 2], ...common, [0, 2], [0, 2], [0, 2], [0, 4], [offset, 4]]), name);
    files.push(...local);
    offset += local.reduce((sum, part) => sum + part.length, 0);
  }
  const count = Object.keys(arrays).length;
  const index = join(directory);
  const end = pack([[0x06054b50, 4], [0, 2], [0, 2], [count, 2], [count, 2], [index.length, 4], [offset, 4], [0, 2]]);
  return join([...files, index, end]);
}
