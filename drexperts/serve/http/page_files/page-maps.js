// The experts' maps over photographs. `runtime/explain.py` paints nearly the same.

import {blank} from "./page-photo.js";

const OPACITY = 0.85; // of the largest value; the photograph stays visible below
const PALE = 0.45; // of white, where no crop looked
const PERCENTILE = 0.995; // of |value|: the end of the colours
// From "looks away" over zero to "looks here": colours that every colour blindness tells apart.
const ANCHORS = [[20, 105, 230], [95, 170, 250], [205, 205, 205], [250, 150, 50], [215, 75, 0]];

/**
 * The maps of a row, decoded.
 * @typedef {{size: number[], boxes: number[][], shape: number[], values: Float32Array}} Maps
 */

/**
 * @param {{size: number[], boxes: number[][], shape: number[], data: string}} sent
 * @returns {Maps}
 */
export function decodeMaps({size, boxes, shape, data}) {
  const bytes = Uint8Array.from(atob(data), letter => letter.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  const values = new Float32Array(bytes.length / 4);
  for (let i = 0; i < values.length; i += 1) values[i] = view.getFloat32(4 * i, true);
  return {size, boxes, shape, values};
}

/**
 * The photograph in grey under the colours of one map.
 * @param {HTMLCanvasElement} photo the part that was seen
 * @param {Maps} maps
 * @param {number} distortion
 * @param {boolean} pale whether it is paler where no crop looked; small, that would hide too much
 */
export function overlay(photo, maps, distortion, pale) {
  const canvas = blank(photo.width, photo.height);
  const pen = canvas.getContext("2d", {willReadFrequently: true});
  pen.drawImage(photo, 0, 0);
  const image = pen.getImageData(0, 0, canvas.width, canvas.height);
  const values = stitched(maps, distortion, canvas.width, canvas.height);
  const limit = colourRange(values) || 1;
  for (let i = 0; i < values.length; i += 1)
    paintPixel(image.data, 4 * i, values[i] / limit, pale ? PALE : 0);
  pen.putImageData(image, 0, 0);
  return canvas;
}

/** Whether parts of the picture are outside every crop. Boxes are a grid of equal squares. */
export function hasGaps({size, boxes}) {
  return [[0, 2, size[0]], [1, 3, size[1]]].some(([first, last, length]) => {
    let end = 0;
    for (const box of [...boxes].sort((a, b) => a[first] - b[first])) {
      if (box[first] > end) return true;
      end = Math.max(end, box[last]);
    }
    return end < length;
  });
}

/**
 * One distortion's map over the whole picture: where crops overlap their mean, NaN where no crop
 * looked.
 */
function stitched({size, boxes, shape, values}, distortion, width, height) {
  const total = new Float32Array(width * height);
  const count = new Uint16Array(width * height);
  const [, distortions, rows, columns] = shape;
  const across = width / size[0];
  const down = height / size[1];
  boxes.forEach(([left, top, right, bottom], crop) => {
    const start = (crop * distortions + distortion) * rows * columns;
    const map = {values, start, rows, columns};
    addCrop(total, count, width, map,
      [left * across, top * down, right * across, bottom * down].map(Math.round));
  });
  return total.map((sum, i) => (count[i] ? sum / count[i] : NaN));
}

/** Add a crop's map, enlarged to its box bilinearly. */
function addCrop(total, count, width, map, [left, top, right, bottom]) {
  const x = steps(right - left, map.columns);
  const y = steps(bottom - top, map.rows);
  const at = (row, column) => map.values[map.start + row * map.columns + column];
  for (let v = 0; v < y.length; v += 1) {
    const [up, low, below] = y[v];
    for (let u = 0; u < x.length; u += 1) {
      const [near, far, beyond] = x[u];
      const above = at(up, near) * (1 - beyond) + at(up, far) * beyond;
      const under = at(low, near) * (1 - beyond) + at(low, far) * beyond;
      const i = (top + v) * width + left + u;
      total[i] += above * (1 - below) + under * below;
      count[i] += 1;
    }
  }
}

/** For each of `length` pixels: the two cells beside it, and how far it is towards the second. */
function steps(length, cells) {
  return Array.from({length}, (_, i) => {
    const place = Math.min(Math.max(((i + 0.5) * cells) / length - 0.5, 0), cells - 1);
    const first = Math.floor(place);
    return [first, Math.min(first + 1, cells - 1), place - first];
  });
}

/** The |value| at which the colours end. */
function colourRange(values) {
  const seen = values.filter(value => !Number.isNaN(value)).map(Math.abs).sort();
  return seen.length ? seen[Math.floor(PERCENTILE * (seen.length - 1))] : 0;
}

/** Replace one RGBA pixel at `i` by its grey under the colour of a value in -1..1. */
function paintPixel(pixels, i, value, pale) {
  const grey = 0.299 * pixels[i] + 0.587 * pixels[i + 1] + 0.114 * pixels[i + 2];
  const unseen = Number.isNaN(value);
  const relative = Math.min(Math.max(value, -1), 1);
  const strength = unseen ? pale : OPACITY * Math.abs(relative) ** 0.75;
  for (let channel = 0; channel < 3; channel += 1) {
    const over = unseen ? 255 : colour(relative, channel);
    pixels[i + channel] = (1 - strength) * grey + strength * over;
  }
}

/** One channel of the colour of a value in -1..1. */
function colour(value, channel) {
  const place = ((value + 1) / 2) * (ANCHORS.length - 1);
  const first = Math.min(Math.floor(place), ANCHORS.length - 2);
  const share = place - first;
  return ANCHORS[first][channel] * (1 - share) + ANCHORS[first + 1][channel] * share;
}
