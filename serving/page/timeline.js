// The picture of a recording: waveform, spectrogram and words on one axis of time, drawn in tiles as they come into view,
// so that half an hour costs no more than what is looked at and no drawing holds up the page.

import { Spectrum } from "./spectrum.js";

const WAVE = 72; // heights in CSS pixels
const SPECTROGRAM = 144;
const AXIS = 22;
const WORD_ROW = 26;
const WORD_ROWS = 3;
const WORD_FONT = 13;
const WORD_GAP = 8; // between names, with their padding
const TILE = 400; // CSS pixels, about
const RANGE_DB = 65; // from black to brightest
const READABLE = 140; // pixels a second at which a word has room for its text
const MAX_SCALE = 1200;
const LOOKED_AT = 2 ** 22; // samples at a time, a few ms
const TICKS = [0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800];

export class Timeline {
  // `onSeek(seconds)` and `onWord(index)` answer clicks.
  constructor(root, onSeek, onWord) {
    this.root = root;
    this.buffer = null;
    this.tiles = new Map();
    this.drawing = false;
    root.addEventListener("scroll", () => this.draw());
    new ResizeObserver(() => this.buffer && this.setScale(this.scale)).observe(root);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.buffer && this.setScale(this.scale));
    root.addEventListener("click", ({ target, clientX }) => {
      if (target.dataset.index) onWord(Number(target.dataset.index));
      else if (this.content?.contains(target)) onSeek(this.secondsAt(clientX));
    });
  }

  // `buffer` is an AudioBuffer of one channel, or null; `words` have start and end in seconds.
  async show(buffer, words) {
    this.clear();
    if (!buffer) return;
    const peak = await loudest(buffer);
    this.buffer = buffer;
    this.peak = peak;
    this.rate = buffer.sampleRate;
    this.seconds = buffer.duration;
    this.spectrum = new Spectrum(this.rate);
    this.words = words;
    this.content = document.createElement("div");
    this.content.className = "timeline-content";
    this.content.setAttribute("aria-hidden", "true"); // all of it is told in words above
    this.wordElements = words.map((word, index) => this.wordElement(word, index));
    this.wordWidths = this.measured(words);
    this.cursor = document.createElement("div");
    this.cursor.className = "cursor";
    this.cursorSeconds = 0;
    this.content.append(...this.wordElements.flat(), this.cursor);
    this.root.replaceChildren(this.content);
    this.root.scrollLeft = 0;
    this.setScale(READABLE);
  }

  clear() {
    this.buffer = null;
    this.content = null;
    this.marked = null;
    this.tiles.clear();
    this.root.replaceChildren();
  }

  // Asked for anew each time: a browser may take back what it gave when the buffer is played (Web Audio, 1.4, "acquire").
  get samples() {
    return this.buffer.getChannelData(0);
  }

  wordElement(word, index) {
    const span = document.createElement("div");
    span.className = "timeline-span";
    const name = document.createElement("div");
    name.className = "timeline-word";
    name.textContent = name.title = word.word;
    name.dataset.index = span.dataset.index = index;
    return [span, name];
  }

  // In pixels, as they are while they are heard.
  measured(words) {
    const paint = document.createElement("canvas").getContext("2d");
    paint.font = `700 ${WORD_FONT}px ${getComputedStyle(this.root).fontFamily}`;
    return words.map(({ word }) => Math.ceil(paint.measureText(word).width));
  }

  // A factor of 0 shows the whole recording.
  zoom(factor) {
    const middle = (this.root.scrollLeft + this.root.clientWidth / 2) / this.scale;
    this.setScale(this.scale * factor);
    this.root.scrollLeft = middle * this.scale - this.root.clientWidth / 2;
    this.draw();
  }

  // Pixels a second, never so few that the recording would not fill the width.
  setScale(scale) {
    const fitting = this.root.clientWidth / this.seconds;
    this.scale = Math.max(Math.min(scale, MAX_SCALE), fitting);
    this.tick = TICKS.find((seconds) => seconds * this.scale >= 64) ?? TICKS.at(-1);
    this.tileSeconds = this.tick * Math.max(1, Math.round(TILE / (this.tick * this.scale)));
    this.content.style.width = `${Math.floor(this.seconds * this.scale)}px`;
    this.placeWords();
    for (const canvas of this.tiles.values()) canvas.remove();
    this.tiles.clear();
    // a tab stop only where the arrow keys have something to scroll
    if (this.content.offsetWidth > this.root.clientWidth) this.root.tabIndex = 0;
    else this.root.removeAttribute("tabindex");
    this.moveCursor(this.cursorSeconds, false);
    this.draw();
  }

  // Bars have the words' exact extents. Names take turns in three rows below; one that has no room in any is left out.
  placeWords() {
    const top = WAVE + SPECTROGRAM + AXIS;
    const ends = Array(WORD_ROWS).fill(-Infinity);
    let rows = 1;
    for (const [index, word] of this.words.entries()) {
      const left = word.start * this.scale;
      const [span, name] = this.wordElements[index];
      const row = ends.findIndex((end) => end <= left);
      Object.assign(span.style, { left: `${left}px`, width: `${Math.max(3, (word.end - word.start) * this.scale - 1)}px` });
      Object.assign(span.style, { top: `${top}px` });
      name.hidden = row < 0;
      if (name.hidden) continue;
      Object.assign(name.style, { left: `${left}px`, top: `${top + 4 + row * WORD_ROW}px` });
      ends[row] = left + this.wordWidths[index] + WORD_GAP;
      rows = Math.max(rows, row + 1);
    }
    this.content.style.height = `${top + 10 + WORD_ROW * rows}px`;
  }

  secondsAt(clientX) {
    const seconds = (clientX - this.content.getBoundingClientRect().left) / this.scale;
    return Math.max(0, Math.min(seconds, this.seconds));
  }

  moveCursor(seconds, follow) {
    this.cursorSeconds = seconds;
    const at = seconds * this.scale;
    this.cursor.style.transform = `translateX(${at}px)`;
    const hidden = at < this.root.scrollLeft || at > this.root.scrollLeft + this.root.clientWidth - 8;
    if (follow && hidden) this.root.scrollLeft = at - this.root.clientWidth / 5;
  }

  markWord(index) {
    this.marked?.classList.remove("playing");
    this.marked = this.wordElements[index]?.[1];
    this.marked?.classList.add("playing");
  }

  // Draws what is in view, a tile a frame; calls that come meanwhile are served by the same loop.
  async draw() {
    if (this.drawing) return;
    this.drawing = true;
    for (let tile = this.missingTile(); tile !== null; tile = this.missingTile()) {
      const canvas = this.tile(tile);
      this.tiles.set(tile, canvas);
      this.content.prepend(canvas);
      await new Promise((resolve) => setTimeout(resolve));
    }
    this.drawing = false;
  }

  missingTile() {
    if (!this.buffer || !this.root.clientWidth) return null;
    const width = this.tileSeconds * this.scale;
    const first = Math.max(0, Math.floor(this.root.scrollLeft / width));
    const last = Math.min(Math.ceil(this.seconds / this.tileSeconds) - 1, Math.floor((this.root.scrollLeft + this.root.clientWidth) / width) + 1);
    for (const [tile, canvas] of this.tiles) {
      if (tile < first - 4 || tile > last + 4) {
        canvas.remove();
        this.tiles.delete(tile);
      }
    }
    for (let tile = first; tile <= last; tile++) if (!this.tiles.has(tile)) return tile;
    return null;
  }

  tile(index) {
    const start = index * this.tileSeconds;
    const seconds = Math.min(this.tileSeconds, this.seconds - start);
    const width = Math.max(1, Math.round(seconds * this.scale));
    const ratio = Math.min(devicePixelRatio || 1, 2);
    const canvas = document.createElement("canvas");
    canvas.width = Math.ceil(width * ratio);
    canvas.height = (WAVE + SPECTROGRAM + AXIS) * ratio;
    canvas.style.left = `${start * this.scale}px`;
    canvas.style.width = `${canvas.width / ratio}px`;
    canvas.style.height = `${WAVE + SPECTROGRAM + AXIS}px`;
    const paint = canvas.getContext("2d");
    const colours = themeColours();
    const perColumn = this.rate / (this.scale * ratio);
    this.drawWave(paint, canvas.width, start * this.rate, perColumn, ratio, colours);
    this.drawSpectrogram(paint, canvas.width, start * this.rate, perColumn, ratio, colours);
    this.drawAxis(paint, start, seconds, ratio, colours);
    return canvas;
  }

  drawWave(paint, width, first, perColumn, ratio, colours) {
    const { samples } = this;
    const middle = (WAVE * ratio) / 2;
    const height = (middle - 4 * ratio) / this.peak;
    paint.fillStyle = colours.accent;
    for (let x = 0; x < width; x++) {
      const from = Math.floor(first + x * perColumn);
      const to = Math.min(samples.length, Math.max(from + 1, Math.ceil(first + (x + 1) * perColumn)));
      let low = 0;
      let high = 0;
      for (let i = from; i < to; i++) {
        if (samples[i] < low) low = samples[i];
        if (samples[i] > high) high = samples[i];
      }
      paint.fillRect(x, middle - high * height, 1, Math.max(ratio, (high - low) * height));
    }
  }

  drawSpectrogram(paint, width, first, perColumn, ratio, colours) {
    const rows = SPECTROGRAM * ratio;
    const { samples } = this;
    const image = paint.createImageData(width, rows);
    const loudest = 20 * Math.log10(this.peak) - 12;
    const bins = this.spectrum.size / 2;
    for (let x = 0; x < width; x++) {
      const decibels = this.spectrum.at(samples, Math.round(first + (x + 0.5) * perColumn));
      for (let row = 0; row < rows; row++) {
        const place = (1 - (row + 0.5) / rows) * bins;
        const bin = Math.floor(place);
        const value = decibels[bin] + (place - bin) * (decibels[bin + 1] - decibels[bin]);
        const shade = Math.max(0, Math.min(255, Math.round(255 * (1 + (value - loudest) / RANGE_DB))));
        image.data.set(colours.map.subarray(4 * shade, 4 * shade + 4), 4 * (row * width + x));
      }
    }
    paint.putImageData(image, 0, WAVE * ratio);
  }

  drawAxis(paint, start, seconds, ratio, colours) {
    const top = WAVE + SPECTROGRAM;
    paint.scale(ratio, ratio);
    paint.fillStyle = colours.quiet;
    paint.font = "12px system-ui, sans-serif";
    for (let k = 0; k * this.tick < seconds; k++) {
      const x = k * this.tick * this.scale;
      paint.fillRect(x, top, 1, 6);
      paint.fillText(clock(start + k * this.tick, this.tick), x + 4, top + 15);
    }
  }
}

// The greatest magnitude in a buffer, looked for piece by piece: an hour in one go would hold up the page.
async function loudest(buffer) {
  let peak = 1e-4;
  for (let start = 0; start < buffer.length; start += LOOKED_AT) {
    for (const sample of buffer.getChannelData(0).subarray(start, start + LOOKED_AT)) {
      if (sample > peak) peak = sample;
      else if (-sample > peak) peak = -sample;
    }
    await new Promise((resolve) => setTimeout(resolve));
  }
  return peak;
}

// 0.4 s apart they read 1.2, minutes apart 12:00.
function clock(seconds, tick) {
  if (tick < 1) return seconds.toFixed(1);
  const whole = Math.round(seconds);
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}

// The map's 256 shades run from the style sheet's --cold over --warm to --hot.
function themeColours() {
  const style = getComputedStyle(document.documentElement);
  const named = (name) => style.getPropertyValue(name).trim();
  const stops = ["--cold", "--warm", "--hot"].map((name) => [1, 3, 5].map((at) => parseInt(named(name).slice(at, at + 2), 16)));
  const map = new Uint8ClampedArray(4 * 256).fill(255);
  for (let shade = 0; shade < 256; shade++) {
    const place = (shade / 255) * 2;
    const stop = Math.min(1, Math.floor(place));
    for (let c = 0; c < 3; c++) map[4 * shade + c] = stops[stop][c] + (place - stop) * (stops[stop + 1][c] - stops[stop][c]);
  }
  return { accent: named("--accent"), quiet: named("--quiet"), map };
}
