// A transcript's words with their confidences, which are heard at a click and selected like any text; its n-best list; and its
// subtitles.

import { text } from "./texts.js";

const UNSURE = 0.85; // confidences below are underlined with dots
const DOUBTFUL = 0.5; // and below this with waves

export class Transcript {
  // `onWord(index)` answers a click, Enter or Space; the words are one tab stop, the arrow keys move among them.
  constructor(root, detail, onWord) {
    this.root = root;
    this.detail = detail;
    this.onWord = onWord;
    this.show([], "", false);
    let before = ""; // what was selected when the button went down: a drag ends as a click, too
    root.addEventListener("pointerdown", () => {
      before = String(getSelection());
      this.spans[this.current]?.removeAttribute("tabindex"); // Chromium selects nothing from where it sets the focus
    });
    for (const kind of ["pointerup", "pointercancel"]) addEventListener(kind, () => this.words.length && this.select(this.current));
    root.addEventListener("click", ({ target }) => {
      const selected = String(getSelection());
      if (!target.dataset.index || (selected && selected !== before)) return;
      this.choose(Number(target.dataset.index));
      target.focus({ preventScroll: true });
    });
    root.addEventListener("keydown", (event) => this.pressed(event));
    for (const kind of ["focusin", "pointerover"]) {
      root.addEventListener(kind, ({ target }) => target.dataset.index && this.describe(Number(target.dataset.index)));
    }
  }

  // `words` as the server gives them; `whole` is their text, which says whether there are spaces between them; `playable` whether
  // there is something to hear.
  show(words, whole, playable) {
    this.words = words;
    this.current = 0;
    this.described = -1;
    this.marked = -1;
    this.detail.textContent = "";
    this.spans = words.map((word, index) => {
      const span = document.createElement("span");
      span.setAttribute("role", "button");
      if (!playable) span.setAttribute("aria-disabled", "true");
      span.textContent = word.word;
      span.className = sureness(word.confidence);
      span.dataset.index = index;
      return span;
    });
    const space = /\s/.test(whole) ? " " : "";
    this.root.replaceChildren(...this.spans.flatMap((span) => [span, space]));
    this.root.scrollTop = 0;
    if (words.length) this.select(0);
    this.translate();
  }

  translate() {
    for (const [index, span] of this.spans.entries()) {
      const values = this.values(index);
      span.setAttribute("aria-label", text("percent" in values ? "word" : "wordPlain", values));
      span.title = this.about(index);
    }
    if (this.described >= 0) this.describe(this.described);
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
    this.described = index;
    this.detail.textContent = this.about(index);
  }

  choose(index) {
    this.select(index);
    this.describe(index);
    this.onWord(index);
  }

  // Makes a word the one that Tab leads to. To take that from the one with the focus takes the focus, too.
  select(index) {
    if (index !== this.current) this.spans[this.current].removeAttribute("tabindex");
    this.current = index;
    this.spans[index].tabIndex = 0;
  }

  pressed(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return; // the browser's own
    const forward = getComputedStyle(this.root).direction === "rtl" ? -1 : 1;
    const steps = { ArrowRight: forward, ArrowLeft: -forward, ArrowDown: 1, ArrowUp: -1, Home: -Infinity, End: Infinity };
    if (event.key in steps) {
      this.select(Math.max(0, Math.min(this.spans.length - 1, this.current + steps[event.key])));
      this.spans[this.current].focus();
    } else if (event.key === "Enter" || event.key === " ") this.choose(this.current);
    else return;
    event.preventDefault();
  }

  // The word that is heard at `seconds`, -1 for none.
  wordAt(seconds) {
    return this.words.findIndex((word) => word.start <= seconds && seconds < word.end);
  }

  // Shows which word is heard, and scrolls to it: its box, not the page.
  mark(index) {
    this.spans[this.marked]?.classList.remove("playing");
    this.marked = index;
    const span = this.spans[index];
    if (!span) return;
    span.classList.add("playing");
    const lowest = span.offsetTop + span.offsetHeight - this.root.clientHeight;
    this.root.scrollTop = Math.min(Math.max(this.root.scrollTop, lowest), span.offsetTop);
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

// SubRip: number, times, lines, empty line. `cues` as the server cuts them: start and end in seconds, lines.
export function subtitles(cues) {
  return cues.map(({ start, end, lines }, i) => `${i + 1}\n${stamp(start)} --> ${stamp(end)}\n${lines.join("\n")}\n`).join("\n");
}

function stamp(seconds) {
  const ms = Math.round(1000 * seconds);
  const two = (number) => String(Math.floor(number)).padStart(2, "0");
  return `${two(ms / 3600000)}:${two((ms / 60000) % 60)}:${two((ms / 1000) % 60)},${String(ms % 1000).padStart(3, "0")}`;
}
