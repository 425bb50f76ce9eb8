// Requests to the server: a few at a time, again after a 503, and a token when it asks for one.

import {megabytes} from "./page-elements.js";

const AT_ONCE = 4; // enough to keep the engine busy, few enough to share it
const MOST_TRIES = 30;
const LONGEST_WAIT = 30; // seconds

// What errors of the server mean, by their code.
const WORDS = {
  busy: "The server has too much to do",
  empty: "The file is empty",
  queue_full: "The server has too much to do",
  slow: "The photograph took too long to arrive",
  stopping: "The server is being stopped",
  too_large: "The file is larger than this server takes",
  timed_out: "The server did not get to it in time",
};

/** An answer that is no score. `status` is 0 where there was no answer. */
export class RequestError extends Error {
  /** @param {string} message @param {number} status */
  constructor(message, status) {
    super(message);
    this.status = status;
  }

  /** Whether the same request may get a score later. */
  get passing() {
    return [0, 408].includes(this.status) || this.status >= 500;
  }
}

/** Runs jobs in the order in which they came, `AT_ONCE` at a time. */
export class Lanes {
  #waiting = [];
  #running = 0;

  /** @param {() => Promise<void>} job which does not reject */
  add(job) {
    this.#waiting.push(job);
    this.#next();
  }

  /** Forget the jobs that have not begun. */
  clear() {
    this.#waiting.length = 0;
  }

  #next() {
    while (this.#running < AT_ONCE && this.#waiting.length) {
      this.#running += 1;
      this.#waiting.shift()().finally(() => {
        this.#running -= 1;
        this.#next();
      });
    }
  }
}

/** Asks the server for scores. The token is kept here, and nowhere else. */
export class Client {
  #token = "";

  /**
   * @param {{maps: boolean, needsToken: boolean, maxBody: number,
   *          askToken: (refused: boolean) => Promise<string>}} options
   */
  constructor(options) {
    this.options = options;
  }

  /** Ask the person for a token, if the server wants one and there is none. */
  async prepare() {
    if (this.options.needsToken && !this.#token) await this.#renewToken("");
  }

  /**
   * The row of one photograph.
   * @param {File} file
   * @param {AbortSignal} signal
   * @param {(words: string) => void} say hears why there is a wait
   * @returns {Promise<object>}
   */
  async score(file, signal, say) {
    this.#checkSize(file);
    await this.prepare();
    for (let tries = 1; ; tries += 1) {
      signal.throwIfAborted();
      const token = this.#token;
      const answer = await this.#post(file, signal, token);
      if (answer.status === 401) await this.#renewToken(token);
      else if (answer.status === 503 && tries < MOST_TRIES) await busy(answer, signal, say);
      else return rowOf(answer);
    }
  }

  #checkSize(file) {
    const most = this.options.maxBody;
    if (file.size > most)
      throw new RequestError(`The file has ${megabytes(file.size)}. This server takes up to ` +
        `${megabytes(most)}`, 413);
  }

  async #post(file, signal, token) {
    const headers = {"Content-Type": "application/octet-stream"};
    if (token) headers.Authorization = `Bearer ${token}`;
    const path = this.options.maps ? "v1/score?maps=true" : "v1/score";
    const ours = {mode: "same-origin", credentials: "omit", cache: "no-store", redirect: "error"};
    try {
      return await fetch(path, {method: "POST", body: file, headers, signal, ...ours});
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new RequestError("The server cannot be reached, or the file cannot be read", 0);
    }
  }

  /** Another request may have got a new token meanwhile: then nobody is asked. */
  async #renewToken(refused) {
    if (refused === this.#token) this.#token = await this.options.askToken(refused !== "");
  }
}

/** Wait for as long as the server says. */
async function busy(answer, signal, say) {
  const asked = Number(answer.headers.get("Retry-After")) || 1;
  const seconds = Math.min(Math.max(asked, 0.2), LONGEST_WAIT);
  say(`The server is busy: again in ${Math.ceil(seconds)} s`);
  // Spread, so that those who were refused together do not come again together.
  await pause(1000 * seconds * (1 + 0.3 * Math.random()), signal);
}

/** @param {number} milliseconds @param {AbortSignal} signal */
function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)),
      {once: true});
  });
}

/** The row in an answer. Anything else is thrown as RequestError. */
async function rowOf(answer) {
  let body = null;
  try {
    body = await answer.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
  }
  if (answer.ok && body) return body;
  throw new RequestError(wordsOf(answer.status, body?.error ?? {}), answer.status);
}

/** What an error means to the person, with the server's own words where they say more. */
function wordsOf(status, {code, message, request_id: id}) {
  if (WORDS[code]) return WORDS[code];
  if (code === "not_an_image")
    return message.replace(/^cannot read .*? as an image/, "This cannot be read as a photograph");
  if (code === "internal") return `The server failed. Its log says why, under ${id}`;
  return message ? message[0].toUpperCase() + message.slice(1) : `The server answered ${status}`;
}
