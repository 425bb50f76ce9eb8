// Photographs as canvases, upright as the server sees them.

const LONGER_SIDE = 720; // pixels of a canvas
// How a picture of width w and height h is turned, for each of EXIF's orientations.
const TURNS = {
  2: (w, h) => [-1, 0, 0, 1, w, 0],
  3: (w, h) => [-1, 0, 0, -1, w, h],
  4: (w, h) => [1, 0, 0, -1, 0, h],
  5: (w, h) => [0, 1, 1, 0, 0, 0],
  6: (w, h) => [0, 1, -1, 0, h, 0],
  7: (w, h) => [0, -1, -1, 0, h, w],
  8: (w, h) => [0, -1, 1, 0, 0, w],
};

/**
 * A canvas with the photograph, upright, or null if this browser cannot decode it.
 * @param {File} file
 */
export async function photoOf(file) {
  try {
    const turn = await turnOfWebP(file);
    const bitmap = await createImageBitmap(file, {imageOrientation: turn ? "none" : "from-image"});
    const canvas = drawn(bitmap, turn);
    bitmap.close(); // forty photographs of full size would fill the memory
    return canvas;
  } catch {
    return null;
  }
}

/** How a WebP is to be turned: browsers read the orientation of every format but this. */
async function turnOfWebP(file) {
  const head = await textOf(file.slice(0, 21));
  const hasExif = /^RIFF.{4}WEBPVP8X/s.test(head) && head.charCodeAt(20) & 8;
  if (!hasExif) return null;
  const text = await textOf(file);
  const entry = /\x01\x12\0\x03\0\0\0\x01\0(.)|\x12\x01\x03\0\x01\0\0\0(.)\0/s;
  const found = entry.exec(text.slice(text.indexOf("EXIF")));
  return (found && TURNS[(found[1] ?? found[2]).charCodeAt(0)]) ?? null;
}

async function textOf(blob) {
  return new TextDecoder("latin1").decode(await blob.arrayBuffer());
}

function drawn(bitmap, turn) {
  const fit = Math.min(1, LONGER_SIDE / Math.max(bitmap.width, bitmap.height));
  const [width, height] = [bitmap.width * fit, bitmap.height * fit];
  const matrix = turn ? turn(width, height) : [1, 0, 0, 1, 0, 0];
  const canvas = matrix[0] ? blank(width, height) : blank(height, width);
  const pen = canvas.getContext("2d");
  pen.imageSmoothingQuality = "high";
  pen.setTransform(...matrix);
  pen.drawImage(bitmap, 0, 0, width, height);
  return canvas;
}

/** A canvas of a neutral grey, for a photograph that only the server can decode. */
export function greyOf([width, height]) {
  const fit = LONGER_SIDE / Math.max(width, height);
  const canvas = blank(width * fit, height * fit);
  const pen = canvas.getContext("2d");
  pen.fillStyle = "rgb(128 128 128)";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  return canvas;
}

/** The part of the photograph that was resized to `size`: a very long one is cut to its centre. */
export function seenPart(photo, [width, height]) {
  const scale = Math.min(photo.width / width, photo.height / height);
  const canvas = blank(width * scale, height * scale);
  const left = (photo.width - canvas.width) / 2;
  const top = (photo.height - canvas.height) / 2;
  canvas.getContext("2d").drawImage(photo, -left, -top);
  return canvas;
}

/** Paint one canvas onto another, which takes its size. */
export function show(target, source) {
  target.width = source.width;
  target.height = source.height;
  target.getContext("2d").drawImage(source, 0, 0);
}

/** A copy of a canvas that is `width` pixels wide. */
export function scaled(source, width) {
  const canvas = blank(width, (width * source.height) / source.width);
  const pen = canvas.getContext("2d");
  pen.imageSmoothingQuality = "high";
  pen.drawImage(source, 0, 0, canvas.width, canvas.height);
  return canvas;
}

/** An empty canvas. */
export function blank(width, height) {
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(width));
  canvas.height = Math.max(1, Math.round(height));
  return canvas;
}
