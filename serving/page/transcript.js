// A transcript's words as buttons with their confidences, its n-best list, and its subtitles.

import { text } from "./texts.js";

const UNSURE = 0.85; // confidences below are underlined with dots
const DOUBTFUL = 0.5; // and below this with waves

export class Transcript {
  // `onWord(index)` answers a click or Enter; the words are one tab stop, the arrow keys move among them.
  constructor(root, detail, onWord) {
    this.root = root;
    this.detail = detail;
    this.words = [];
    this.buttons = [];
    this.current = 0;
    root.addEventListener("click", ({ target }) => target.dataset.index && this.choose(Number(target.dataset.index), onWord));
    root.addEventListener("keydown", (event) => this.move(event));
    for (const kind of ["focusin", "pointerover"]) {
      root.addEventListener(kind, ({ target }) => target.dataset.index && this.describe(Number(target.dataset.index)));
    }
  }

  // `words` as the server gives them; `whole` is their text, which says whether there are spaces between them.
  show(words, whole) {
    this.words = words;
    this.current = 0;
    this.detail.textContent = "";
    this.buttons = words.map((word, index) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = word.word;
      button.className = sureness(word.confidence);
      button.dataset.index = index;
      button.tabIndex = index === 0 ? 0 : -1;
      return button;
    });
    const space = /\s/.test(whole) ? " " : "";
    this.root.replaceChildren(...this.buttons.flatMap((button) => [button, space]));
    this.translate();
  }

  translate() {
    this.root.setAttribute("aria-label", text("words"));
    for (const [index, button] of this.buttons.entries()) {
      const values = this.values(index);
      button.setAttribute("aria-label", text("percent" in values ? "word" : "wordPlain", values));
      button.title = this.about(index);
    }
  }

  values(index) {
    const { word, start, end, confidence } = this.words[index];
    const percent = confidence === undefined ? {} : { percent: Math.round(100 * confidence) };
    return { word, start: start.toFixed(2), end: end.toFixed(2), ...percent };
  }

  about(index) {
    const values = this.values(index);
    return text("percent" in values ? "wordDetail" : "wordDetailPlain", values);
  }

  describe(index) {
    this.detail.textContent = this.about(index);
  }

  choose(index, onWord) {
    this.buttons[this.current].tabIndex = -1;
    this.current = index;
    this.buttons[index].tabIndex = 0;
    this.describe(index);
    onWord(index);
  }

  move(event) {
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 1, ArrowUp: -1, Home: -Infinity, End: Infinity };
    if (!(event.key in steps)) return;
    event.preventDefault();
    this.buttons[this.current].tabIndex = -1;
    this.current = Math.max(0, Math.min(this.buttons.length - 1, this.current + steps[event.key]));
    this.buttons[this.current].tabIndex = 0;
    this.buttons[this.current].focus();
  }

  // The word that is heard at `seconds`, -1 for none.
  wordAt(seconds) {
    return this.words.findIndex((word) => word.start <= seconds && seconds < word.end);
  }

  mark(index) {
    for (const [i, button] of this.buttons.entries()) button.classList.toggle("playing", i === index);
  }
}

function sureness(confidence = 1) {
  return confidence < DOUBTFUL ? "doubtful" : confidence < UNSURE ? "unsure" : "sure";
}

export function showBest(list, texts) {
  list.replaceChildren(
    ...texts.map((hypothesis) => {
      const item = document.createElement("li");
      item.textContent = hypothesis;
      return item;
    }),
  );
}

// SubRip: number, times, text, empty line; `segments` have start and end in seconds.
export function subtitles(segments) {
  return segments.map(({ start, end, text: said }, i) => `${i + 1}\n${stamp(start)} --> ${stamp(end)}\n${said}\n`).join("\n");
}

function stamp(seconds) {
  const ms = Math.round(1000 * seconds);
  const two = (number) => String(Math.floor(number)).padStart(2, "0");
  return `${two(ms / 3600000)}:${two((ms / 60000) % 60)}:${two((ms / 1000) % 60)},${String(ms % 1000).padStart(3, "0")}`;
}
