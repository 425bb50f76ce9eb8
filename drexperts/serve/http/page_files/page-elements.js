// Parts of pages, without markup.

/**
 * A new element. Text is only ever text, whatever a file is called.
 * @param {string} kind such as "p" or "p.note"
 * @param {string} [text]
 * @param {...Node} children
 */
export function element(kind, text = "", ...children) {
  const [tag, name] = kind.split(".");
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text) made.textContent = text;
  made.append(...children);
  return made;
}

/**
 * A button with words, and what a click on it does.
 * @param {string} words
 * @param {() => void} click
 */
export function buttonOf(words, click) {
  const button = element("button", words);
  button.type = "button";
  button.addEventListener("click", click);
  return button;
}

/** @param {number} bytes */
export function megabytes(bytes) {
  return `${+(bytes / 2 ** 20).toPrecision(3)} MiB`;
}
