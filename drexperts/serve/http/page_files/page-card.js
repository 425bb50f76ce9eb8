// One photograph's card: picture, state, and what is known of its quality.

import {buttonOf, element} from "./page-elements.js";
import {decodeMaps, hasGaps, overlay} from "./page-maps.js";
import {greyOf, scaled, seenPart, show} from "./page-photo.js";
import {fingerprintOf, scoreOf} from "./page-score.js";
import {optionId, strongest, weightsOf} from "./page-weights.js";

const THUMBNAIL = 240; // pixels across
let cards = 0; // makes the ids of their parts different

/** The card of a photograph. `value` is its score, NaN without one. */
export class Card {
  value = NaN;
  again = null; // a second try, where that may help

  /** @param {string} name */
  constructor(name) {
    cards += 1;
    this.group = `card-${cards}`;
    this.name = name;
    this.canvas = element("canvas");
    this.canvas.setAttribute("role", "img");
    this.canvas.setAttribute("aria-label", name);
    this.picture = element("div.picture", "", this.canvas);
    const title = element("h2", name);
    title.title = name;
    title.id = `${this.group}-name`;
    this.state = element("p.state");
    this.rest = element("div.rest", "", this.state);
    this.root = element("article.card", "", this.picture, title, this.rest);
    this.root.setAttribute("aria-labelledby", title.id);
    this.root.tabIndex = -1;
  }

  /** @param {"waiting" | "busy" | "done" | "failed"} state @param {string} words */
  setState(state, words) {
    this.root.dataset.state = state;
    this.root.setAttribute("aria-busy", String(state === "waiting" || state === "busy"));
    this.state.textContent = words;
  }

  /** @param {HTMLCanvasElement | null} photo null where this browser cannot decode it */
  setPhoto(photo) {
    this.photo = photo;
    if (photo) show(this.canvas, photo);
    this.picture.classList.toggle("unseen", !photo);
    this.words = photo ? this.name : `${this.name}, without a preview`;
    this.canvas.setAttribute("aria-label", this.words);
  }

  /** @param {string} message @param {(() => void) | null} again a second try */
  fail(message, again) {
    this.setState("failed", message);
    if (!again) return;
    const button = buttonOf("Try again", () => {
      this.root.focus(); // the button goes
      this.again();
    });
    button.setAttribute("aria-label", `Try ${this.name} again`);
    this.rest.append(button);
    this.again = () => {
      this.again = null;
      button.remove();
      again();
    };
  }

  /** @param {object} row a Score as the server sends it */
  setRow(row) {
    this.row = row;
    this.value = row.value;
    this.setState("done", "");
    const maps = row.maps ? decodeMaps(row.maps) : null;
    const choose = maps && (name => this.#choose(name));
    this.rest.replaceChildren(
      scoreOf(row), weightsOf(row.distortions, this.group, choose), fingerprintOf(row.fingerprint));
    if (maps) this.#setMaps(maps);
  }

  #setMaps(maps) {
    this.maps = maps;
    this.seen = this.photo ? seenPart(this.photo, maps.size) : greyOf(maps.size);
    this.photo ??= this.seen;
    show(this.canvas, this.photo);
    this.picture.after(this.#thumbnails(), keyOf(hasGaps(maps)));
  }

  /** Show a distortion's map, or the photograph for "". */
  #choose(name) {
    const index = Object.keys(this.row.distortions).indexOf(name);
    show(this.canvas, name ? overlay(this.seen, this.maps, index, true) : this.photo);
    const words = name ? `${this.name}, with the map of ${name}` : this.words;
    this.canvas.setAttribute("aria-label", words);
    this.root.classList.toggle("mapped", name !== "");
    for (const part of this.root.querySelectorAll("[data-shows]"))
      part.classList.toggle("chosen", part.dataset.shows === name);
  }

  /** The strongest maps, small. A click is one on the radio button of the same map. */
  #thumbnails() {
    const small = scaled(this.seen, THUMBNAIL);
    const names = Object.keys(this.row.distortions);
    const maps = strongest(this.row.distortions).map(
      name => this.#thumbnail(name, overlay(small, this.maps, names.indexOf(name), false)));
    const photo = this.#thumbnail("", scaled(this.photo, THUMBNAIL));
    return element("div.thumbnails", "", photo, ...maps);
  }

  #thumbnail(name, picture) {
    picture.setAttribute("aria-hidden", "true");
    const label = element("label.thumbnail", "", picture, element("span", name || "photograph"));
    label.htmlFor = optionId(this.group, this.row.distortions, name);
    label.dataset.shows = name;
    label.classList.toggle("chosen", name === "");
    return label;
  }
}

/** What the colours of a map mean. */
function keyOf(gaps) {
  const key = element("p.key", "", element("span", "looks away"), element("span.ramp"),
    element("span", "looks here"));
  if (gaps) key.append(element("span", "· pale: in no crop"));
  return key;
}
