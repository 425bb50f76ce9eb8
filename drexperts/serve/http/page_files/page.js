// The page: photographs come in, each gets a card, and the cards are kept in order.

import {Card} from "./page-card.js";
import {megabytes} from "./page-elements.js";
import {photoOf} from "./page-photo.js";
import {Client, Lanes} from "./page-requests.js";

const find = id => document.getElementById(id);
const {maps, token, maxBody} = document.body.dataset;
const client = new Client({
  maps: maps === "true",
  needsToken: token === "true",
  maxBody: Number(maxBody),
  askToken,
});
const lanes = new Lanes();
let cards = [];
let clearing = new AbortController();

/** @param {Iterable<File>} files */
function addAll(files) {
  for (const file of files) {
    const card = new Card(file.name);
    cards.push(card);
    find("cards").append(card.root);
    enqueue(card, file);
  }
  document.body.classList.toggle("filled", cards.length > 0);
  refresh();
}

/** Have a photograph scored when its turn comes. */
function enqueue(card, file) {
  card.setState("waiting", "Waiting");
  const {signal} = clearing;
  lanes.add(() => scoreOne(card, file, signal));
}

async function scoreOne(card, file, signal) {
  try {
    card.setState("busy", "Scoring");
    if (card.photo === undefined) card.setPhoto(await photoOf(file));
    card.setRow(await client.score(file, signal, words => card.setState("busy", words)));
  } catch (error) {
    if (signal.aborted) return;
    const again = () => {
      enqueue(card, file);
      refresh();
    };
    card.fail(error.message, error.passing ? again : null);
  }
  refresh();
}

/** Say how far it is, and order the cards. */
function refresh() {
  const count = state => cards.filter(card => card.root.dataset.state === state).length;
  const [done, failed] = [count("done"), count("failed")];
  const parts = [`${done} of ${cards.length} scored`];
  if (failed) parts.push(`${failed} failed`);
  find("status").textContent = parts.join(", ");
  find("bar").hidden = cards.length === 0;
  find("again").hidden = !cards.some(card => card.again);
  arrange();
}

/** Cards without a score come last. The focus stays on what had it, even if that moves. */
function arrange() {
  const focused = document.activeElement;
  const order = find("order").value;
  const sorted = [...cards];
  if (order !== "added") sorted.sort((a, b) => rank(a, order) - rank(b, order));
  const box = find("cards");
  sorted.forEach((card, i) => {
    if (box.children[i] !== card.root) box.insertBefore(card.root, box.children[i] ?? null);
  });
  if (focused !== document.activeElement) focused.focus({preventScroll: true});
}

/** @param {Card} card @param {string} order */
function rank(card, order) {
  if (Number.isNaN(card.value)) return Infinity;
  const upwards = card.row.scale.higher_is_better === (order === "worst");
  return upwards ? card.value : -card.value;
}

function clearAll() {
  clearing.abort();
  clearing = new AbortController();
  lanes.clear();
  cards = [];
  find("cards").replaceChildren();
  addAll([]);
  find("files").focus();
}

/** Try again all that may succeed now. The button goes, so the focus goes on. */
function tryAgain() {
  find("clear").focus();
  for (const card of cards) card.again?.();
}

let asking = null;

/** A token from the person; requests that need one meanwhile wait for the same. */
function askToken(refused) {
  asking ??= new Promise(resolve => {
    const form = find("token");
    const field = find("token-value");
    const before = document.activeElement;
    form.hidden = false;
    find("token-note").textContent = refused ? "That token was not accepted." : "";
    field.focus();
    form.onsubmit = event => {
      event.preventDefault();
      resolve(field.value.trim());
      asking = null;
      form.reset();
      form.hidden = true;
      (before === document.body ? find("files") : before).focus();
    };
  });
  return asking;
}

/** Files may be dropped anywhere; without this the browser would leave the page for them. */
function acceptDrops() {
  let depth = 0; // of nested elements that the pointer has entered
  const over = more => {
    depth = Math.max(0, depth + more);
    document.body.classList.toggle("dropping", depth > 0);
  };
  addEventListener("dragenter", event => (event.preventDefault(), over(1)));
  addEventListener("dragleave", () => over(-1));
  addEventListener("dragover", event => event.preventDefault());
  addEventListener("drop", event => {
    event.preventDefault();
    over(-Infinity);
    addAll(event.dataTransfer.files);
  });
}

acceptDrops();
addEventListener("paste", event => addAll(event.clipboardData.files));
find("files").addEventListener("change", event => {
  addAll([...event.target.files]);
  event.target.value = ""; // the same file can be chosen again
});
find("order").addEventListener("change", arrange);
find("again").addEventListener("click", tryAgain);
find("clear").addEventListener("click", clearAll);
find("limit").textContent = `Each may have up to ${megabytes(Number(maxBody))}.`;
client.prepare();
