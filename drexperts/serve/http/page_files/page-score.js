// A score in large print, its place on its scale, and what it was made with.

import {buttonOf, element} from "./page-elements.js";

/**
 * The score with its spread, on its scale.
 * @param {{value: number, std: number, raw: number[], enlarged: number | null,
 *          scale: {low: number, high: number, higher_is_better: boolean}}} row
 */
export function scoreOf(row) {
  // As everywhere: the last one stands for 1e-5 of the scale or less.
  const finest = 5 - Math.log10(row.scale.high - row.scale.low);
  const digits = Math.max(0, Math.ceil(Number(finest.toFixed(6))));
  const value = element("strong", signed(row.value, digits));
  value.title = String(row.value);
  const many = row.raw.length;
  const spread = many === 1 ? "" : `± ${row.std.toFixed(Math.max(digits - 2, 1))}`;
  const crops = many === 1 ? "one crop" : `mean ± std of ${many} crops`;
  const better = row.scale.higher_is_better ? "higher is better" : "lower is better";
  const notes = [`${crops} · ${better}`];
  if (row.enlarged) notes.push(`enlarged ${row.enlarged.toFixed(1)} × before it was scored`);
  const text = element("p.score", "", value, element("span.spread", spread));
  return element("div", "", text, scaleOf(row), ...notes.map(note => element("p.note", note)));
}

/** Where the score, its spread and each crop lie; a value beyond the scale is at its end. */
function scaleOf({value, std, raw, scale}) {
  const place = one => Math.min(Math.max((one - scale.low) / (scale.high - scale.low), 0), 1);
  const band = at(element("span.band"), place(value - std));
  band.style.width = percent(place(value + std) - place(value - std));
  const crops = raw.map(one => at(element("span.crop"), place(one)));
  const track = element("div.scale", "", band, ...crops, at(element("span.marker"), place(value)));
  track.setAttribute("aria-hidden", "true");
  const names = scale.higher_is_better ? ["worst", "best"] : ["best", "worst"];
  const ends = [scale.low, scale.high].map(
    (end, i) => element("span", `${signed(end)} ${names[i]}`));
  return element("div", "", track, element("p.ends", "", ...ends));
}

function at(mark, share) {
  mark.style.left = percent(share);
  return mark;
}

export function percent(share) {
  return `${100 * share}%`;
}

/** A number with the sign for minus, in so many digits after the point. */
function signed(number, digits) {
  const size = Math.abs(number);
  return (number < 0 ? "−" : "") + (digits === undefined ? size : size.toFixed(digits));
}

/** What the score was made with, to be copied. */
export function fingerprintOf(fingerprint) {
  const code = element("code", fingerprint);
  const heard = element("span.heard");
  heard.setAttribute("role", "status");
  const button = buttonOf("Copy", async () => {
    heard.textContent = ""; // then the same word is heard again
    button.textContent = heard.textContent = await copy(code);
    setTimeout(() => (button.textContent = "Copy"), 2000);
  });
  button.setAttribute("aria-label", `Copy the fingerprint ${fingerprint}`);
  return element("p.fingerprint", "", element("span", "fingerprint"), code, button, heard);
}

/** Copy a text and say what was done: pages without TLS have no clipboard, so it is selected. */
async function copy(code) {
  try {
    await navigator.clipboard.writeText(code.textContent);
    return "Copied";
  } catch {
    getSelection().selectAllChildren(code);
    return "Selected";
  }
}
