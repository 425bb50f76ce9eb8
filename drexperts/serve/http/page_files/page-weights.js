// The experts' weights as bars, each of which chooses its map.

import {element} from "./page-elements.js";
import {percent} from "./page-score.js";

const STRONG = 3; // weights in full colour, and maps that are shown small

/** The names of the largest |weights|, largest first: how far the score moves without each. */
export function strongest(weights) {
  const names = Object.keys(weights);
  return names.sort((a, b) => Math.abs(weights[b]) - Math.abs(weights[a])).slice(0, STRONG);
}

/** The id of the radio button of a distortion, "" for the photograph. */
export function optionId(group, weights, name) {
  return `${group}-${Object.keys(weights).indexOf(name)}`;
}

/**
 * A bar for each weight.
 * @param {Object<string, number>} weights
 * @param {string} group names the radio buttons of one photograph
 * @param {((name: string) => void) | null} choose shows a distortion's map, or the photograph for
 *   ""; null without maps
 */
export function weightsOf(weights, group, choose) {
  const values = Object.values(weights);
  const low = Math.min(0, ...values);
  const high = Math.max(0, ...values, low + 1e-12);
  const strong = strongest(weights);
  const lines = Object.entries(weights).map(([name, weight]) => {
    const line = choose ? element("label.weight") : element("div.weight");
    if (choose) line.append(radio(weights, group, name, choose));
    line.append(...barOf(name, weight, low, high));
    line.dataset.shows = name;
    line.classList.toggle("strong", strong.includes(name));
    return line;
  });
  const words = choose ? "Expert weights: choose one to see its map" : "Expert weights";
  return element("fieldset.weights", "", element("legend", words),
    ...(choose ? [photographLine(weights, group, choose)] : []), ...lines);
}

/** The choice of the photograph without a map, with which a card begins. */
function photographLine(weights, group, choose) {
  const line = element("label.weight chosen", "", radio(weights, group, "", choose),
    element("span.name", "photograph only"));
  line.dataset.shows = "";
  return line;
}

function radio(weights, group, name, choose) {
  const made = element("input");
  made.type = "radio";
  made.name = group;
  made.id = optionId(group, weights, name);
  made.checked = name === "";
  const words = name ? `${name}, weight ${weights[name].toPrecision(3)}` : "photograph only";
  made.setAttribute("aria-label", words);
  made.addEventListener("change", () => choose(name));
  return made;
}

/** A name, a bar from zero, and a number. */
function barOf(name, weight, low, high) {
  const bar = element(weight < 0 ? "span.bar negative" : "span.bar");
  const share = value => (value - low) / (high - low);
  bar.style.left = percent(share(Math.min(0, weight)));
  bar.style.width = percent(Math.abs(share(weight) - share(0)));
  const number = (weight < 0 ? "−" : "") + Math.abs(weight).toPrecision(3);
  return [element("span.name", name), element("span.track", "", bar),
    element("span.number", number)];
}
