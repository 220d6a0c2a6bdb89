// The page's story: a recording comes in, goes to the server, and its transcript is shown, heard and saved.

import { openMicrophone, wavFile } from "./microphone.js";
import { decode, Player } from "./player.js";
import { info, LiveStream, transcribe } from "./server.js";
import { keep, kept } from "./storage.js";
import { firstLanguage, keepLanguage, PageError, speak, text } from "./texts.js";
import { Timeline } from "./timeline.js";
import { showBest, subtitles, Transcript } from "./transcript.js";

const at = (id) => document.getElementById(id);
const KEY = "api-key";
const WORTH_KEEPING = 3; // seconds of live sound of which the server said nothing

let about = { sample_rate: 16000, streaming: true }; // what /info said
let shown = null; // { name, blob, note, text, texts, words, cues, duration } on the page

const player = new Player(showPlaying);
const timeline = new Timeline(at("timeline"), (seconds) => seek(seconds), hear);
const transcript = new Transcript(at("words"), at("detail"), hear);

// What is under way. `state` is idle, opening, recording, sending or finishing; nothing begins unless it is idle. `doing` says
// it, as a text's key and values; `fraction` of it is done, unknown if missing; end() stops or cancels it.
let now = { state: "idle", doing: null, fraction: null, end: null };

function enter(state, { doing = null, fraction = null, end = null } = {}) {
  now = { state, doing, fraction, end };
  if (doing) say("status", ...doing);
  render();
}

function render() {
  const idle = now.state === "idle";
  const recording = now.state === "recording";
  const working = !idle && !recording;
  // not `disabled`, which would take the focus from who pressed one of them
  for (const id of ["choose", "live", "again"]) at(id).setAttribute("aria-disabled", !idle);
  at("record").setAttribute("aria-disabled", working);
  at("record-text").textContent = text(recording ? "stop" : "record");
  at("drop").classList.toggle("is-recording", recording);
  at("recording").hidden = at("listening").hidden = !recording;
  if (!working && at("work").contains(document.activeElement)) at("choose").focus();
  at("work").hidden = !working;
  at("cancel").hidden = !now.end;
  if (working) say("work-text", ...now.doing);
  if (now.fraction === null) at("progress").removeAttribute("value");
  else at("progress").value = 100 * now.fraction;
  const live = at("live").checked;
  at("decoding").disabled = live;
  for (const id of ["beam-width", "top-paths", "hotwords"]) at(id).disabled = at("decoder").value === "greedy";
  say("decoding-hint", live ? "decodingLive" : "");
  say("live-hint", !live ? "" : about.streaming ? "liveStreaming" : "livePauses");
}

// The one way in for all that takes time: `work` may change the state as it goes on, and throw.
async function run(work) {
  if (now.state !== "idle") return;
  say("error");
  say("status");
  try {
    await work();
  } catch (error) {
    explain(error);
  } finally {
    enter("idle");
  }
}

// What is said besides the transcript: a text's key and values by the element that shows it, to be said again in another language.
const said = new Map();

function say(id, key = "", values = {}) {
  said.set(id, [key, values]);
  const sentence = key && text(key, values);
  if (at(id).textContent !== sentence) at(id).textContent = sentence; // or it would be read out again
}

function explain(error) {
  const cancelled = error.key === "cancelled";
  say("status", cancelled ? "cancelled" : "");
  if (cancelled) return;
  if (["keyNeeded", "keyRefused", "badKey", "badOptions"].includes(error.key)) at("options").open = true;
  if (error instanceof PageError) return say("error", error.key, error.values);
  say("error", "unexpected", { reason: error.message });
  throw error;
}

// The server's side

function typedKey() {
  const key = at("key").value.trim();
  if (/[^\x21-\x7e]/.test(key)) throw new PageError("badKey"); // a header could not carry it
  if (!key && about.key_needed) throw new PageError("keyNeeded");
  return key;
}

async function askInfo() {
  const key = typedKey();
  const answer = await info(key);
  if (answer.model && !about.model) suggestOptions(answer);
  about = { ...about, ...answer };
  at("model").textContent = about.model ?? "";
  render();
  if (answer.model || !answer.key_needed) return;
  at("options").open = true;
  if (key) throw new PageError("keyRefused");
}

function suggestOptions({ decoder, language_model, beam_width, top_paths }) {
  at("decoder").value = decoder ?? (language_model ? "beam" : "greedy");
  at("beam-width").value = beam_width ?? at("beam-width").value;
  at("top-paths").value = top_paths ?? at("top-paths").value;
}

async function takeKey() {
  say("error");
  try {
    keep("sessionStorage", KEY, typedKey());
    await askInfo();
  } catch (error) {
    explain(error);
  }
}

function chosenOptions() {
  if (!at("options-form").checkValidity()) {
    at("options").open = true;
    at("options-form").reportValidity();
    throw new PageError("badOptions");
  }
  const fields = { words: "true", decoder: at("decoder").value };
  if (fields.decoder === "beam") {
    fields.beam_width = at("beam-width").value;
    fields.top_paths = at("top-paths").value;
    if (at("hotwords").value.trim()) fields.hotwords = at("hotwords").value.trim();
  }
  return fields;
}

// `note` is the key of what is to be told with the result.
async function send(file, name, note = "") {
  const limit = about.max_upload_mb;
  if (limit && file.size > limit * 2 ** 20) throw new PageError("tooLarge", { name, size: (file.size / 2 ** 20).toFixed(1), limit });
  const fields = chosenOptions();
  const key = typedKey();
  const cancellation = new AbortController();
  const end = () => cancellation.abort();
  const tell = (fraction) =>
    enter("sending", fraction < 1 ? { doing: ["uploading", { name }], fraction, end } : { doing: ["transcribing", { name }], end });
  tell(0);
  try {
    const bytes = await content(file, name);
    const blob = new Blob([bytes]); // for Again: the file may change on the disk
    const answer = transcribe(blob, name, fields, key, tell, cancellation.signal);
    const [found, buffer] = await Promise.all([answer, decode(bytes, about.sample_rate)]);
    await show({ name, blob, note, text: found.texts[0], ...found }, buffer);
  } finally {
    end();
  }
}

async function content(file, name) {
  try {
    return await file.arrayBuffer();
  } catch {
    throw new PageError("unreadable", { name });
  }
}

// The result

async function show(result, buffer) {
  shown = result;
  shown.duration ??= buffer?.duration;
  at("live-result").hidden = true;
  at("result").hidden = false;
  const timed = result.words.length > 0;
  at("text").hidden = timed;
  for (const id of ["words", "detail", "legend"]) at(id).hidden = !timed;
  for (const id of ["copy", "save-text"]) at(id).disabled = !result.text;
  at("save-srt").disabled = !result.cues.length;
  transcript.show(result.words, result.text, Boolean(buffer));
  say("words-hint", buffer ? "wordsHint" : "");
  at("best").hidden = result.texts.length < 2;
  showBest(at("hypotheses"), result.texts);
  at("listen").hidden = !buffer;
  at("unheard").hidden = Boolean(buffer);
  showSource();
  player.load(buffer);
  if (buffer) at("seek").max = buffer.duration;
  if (buffer) at("seek").step = buffer.duration > 60 ? 1 : 0.1; // for the arrow keys
  await timeline.show(buffer, result.words);
  showPlaying();
  const count = result.words.length || result.text.split(/\s+/).filter(Boolean).length;
  say("status", count > 1 ? "done" : count ? "doneOne" : "nothing", { count });
  if (!document.activeElement?.closest("#options, .language")) at("result-heading").focus(); // who is there is not waiting
}

function showSource() {
  const { name, duration, note } = shown;
  const source = duration === undefined ? name : text("source", { name, seconds: duration.toFixed(1) });
  at("source").textContent = note ? `${source} · ${text(note)}` : source;
  at("text").textContent = shown.text || text("nothing");
}

function hear(index) {
  const word = shown.words[index];
  if (player.buffer) player.play(word.start, word.end);
}

function seek(seconds) {
  player.seek(Math.min(seconds, player.buffer.duration));
  showPosition(false);
  sayPosition();
}

// data-playing says in seconds what is heard, for the style sheet and whoever watches
function showPlaying() {
  const { playing } = player;
  at("play").textContent = text(playing ? "stop" : "play");
  if (playing) at("listen").dataset.playing = `${playing.start}-${playing.end}`;
  else delete at("listen").dataset.playing;
  followPlaying();
  sayPosition();
}

function followPlaying() {
  showPosition(true);
  if (player.playing) requestAnimationFrame(followPlaying);
}

let marked = -1;

function showPosition(follow) {
  if (!player.buffer || !timeline.buffer) return;
  const seconds = player.position;
  at("seek").value = seconds;
  at("clock").textContent = `${seconds.toFixed(1)} / ${player.buffer.duration.toFixed(1)} s`;
  timeline.moveCursor(seconds, follow);
  const word = player.playing ? transcript.wordAt(seconds) : -1;
  if (word === marked) return;
  marked = word;
  transcript.mark(word);
  timeline.markWord(word);
}

// Only where it jumps: nobody wants to be told all the time.
function sayPosition() {
  if (!player.buffer) return;
  const values = { seconds: player.position.toFixed(1), duration: Math.round(player.buffer.duration) };
  at("seek").setAttribute("aria-valuetext", text("positionOf", values));
}

function save(content, ending, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type: `${type};charset=utf-8` }));
  link.download = `${shown.name.replace(/\.[^.]*$/, "")}.${ending}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

async function copy() {
  try {
    await navigator.clipboard.writeText(shown.text); // absent on plain http
    say("status", "copied");
    at("copy").textContent = text("copied");
    setTimeout(() => (at("copy").textContent = text("copy")), 2000);
  } catch {
    getSelection().selectAllChildren(at(shown.words.length ? "words" : "text"));
    say("error", "copyFailed");
  }
}

// The microphone

async function record() {
  const key = typedKey();
  const rate = about.sample_rate;
  const isLive = at("live").checked;
  if (!isLive) chosenOptions(); // before somebody speaks in vain
  const cancellation = new AbortController();
  enter("opening", { doing: ["opening"], end: () => cancellation.abort() });
  player.stop();
  let live = null;
  let stop;
  const stopped = new Promise((resolve) => (stop = resolve)); // with the key of why, "" for the button
  const blocks = [];
  let seconds = 0;
  const take = (samples) => {
    blocks.push(samples);
    live?.stream.sound(samples);
    seconds += samples.length / rate;
    showHeard(samples, seconds);
    if (seconds > longestRecording() - 1) stop("limit");
  };
  showHeard([], 0);
  const microphone = await openMicrophone(rate, take, () => stop("lost"), cancellation.signal);
  if (isLive) live = startLive(rate, key, () => stop(""));
  enter("recording", { doing: ["recording"], end: () => stop("") });
  const note = await stopped;
  enter("finishing", { doing: ["finishing"], end: live?.stop });
  await microphone.stop();
  const [file, name] = [wavFile(blocks, rate), `${text("spoken")}.wav`];
  if (live) await finishLive(live, file, name, seconds, note);
  else if (seconds) await send(file, name, note);
  else throw new PageError("noSound");
}

// In seconds: what the server would not take need not be recorded.
function longestRecording() {
  const { max_audio_seconds = Infinity, max_upload_mb = Infinity, sample_rate } = about;
  return Math.min(max_audio_seconds, (max_upload_mb * 2 ** 20) / (2 * sample_rate));
}

function showHeard(samples, seconds) {
  at("timer").textContent = `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
  const power = samples.reduce((sum, sample) => sum + sample * sample, 0) / (samples.length || 1) / 2 ** 30;
  const loudness = Math.max(0, Math.min(1, 1 + Math.log10(power + 1e-12) / 5)); // from -50 dB to full scale
  at("level").style.transform = `scaleX(${loudness})`;
}

// Live: the same sound also goes to /stream; once it has ended, the result is shown as any other.
function startLive(rate, key, onEnd) {
  const finals = [];
  at("result").hidden = true;
  at("live-result").hidden = false;
  at("finals").replaceChildren();
  at("partial").textContent = "";
  const stream = new LiveStream(rate, key, {
    partial: (heard) => (at("partial").textContent = heard),
    final: (final) => {
      at("partial").textContent = "";
      if (!final.text) return;
      finals.push(final);
      const line = document.createElement("p");
      line.textContent = final.text;
      at("finals").append(line);
    },
  });
  stream.ended.then(onEnd);
  return { stream, finals, stop: () => stream.end(null) };
}

async function finishLive({ stream, finals }, blob, name, seconds, note) {
  stream.finish();
  const error = await stream.ended;
  if (!seconds || (error && !finals.length && seconds < WORTH_KEEPING)) {
    at("live-result").hidden = true;
    at("result").hidden = !shown;
    throw error ?? new PageError("noSound");
  }
  const buffer = await decode(await blob.arrayBuffer(), about.sample_rate);
  const whole = finals.map((final) => final.text).join(about.spaced === false ? "" : " ");
  const [words, cues] = [finals.flatMap((final) => final.words), finals.flatMap((final) => final.cues)];
  await show({ name, blob, note, text: whole, texts: [whole], words, cues }, buffer);
  if (error) throw error;
}

// Everything that can be done

function listen() {
  const idle = () => now.state === "idle";
  at("choose").onclick = () => idle() && at("file").click();
  at("file").onchange = ({ target }) => {
    const [file] = target.files;
    target.value = ""; // so that the same file can be chosen again
    if (file) run(() => send(file, file.name));
  };
  at("record").onclick = () => (now.state === "recording" ? now.end() : run(record));
  at("live").onclick = (event) => idle() || event.preventDefault();
  at("live").onchange = render;
  at("decoder").onchange = render;
  at("options-form").onsubmit = (event) => event.preventDefault();
  at("key").onchange = takeKey;
  at("cancel").onclick = () => now.end?.();
  at("play").onclick = () => (player.playing ? player.stop() : player.play(player.position));
  at("seek").oninput = ({ target }) => seek(Number(target.value));
  at("zoom-in").onclick = () => timeline.zoom(1.5);
  at("zoom-out").onclick = () => timeline.zoom(1 / 1.5);
  at("zoom-all").onclick = () => timeline.zoom(0);
  at("copy").onclick = copy;
  at("save-text").onclick = () => save(`${shown.text}\n`, "txt", "text/plain");
  at("save-srt").onclick = () => save(subtitles(shown.cues), "srt", "application/x-subrip");
  at("again").onclick = () => run(() => send(shown.blob, shown.name, shown.note));
  at("language").onchange = ({ target }) => {
    keepLanguage(target.value);
    translate(target.value);
  };
  takeDrops();
}

function takeDrops() {
  const over = (yes) => at("drop").classList.toggle("over", yes);
  const hasFiles = (event) => event.dataTransfer.types.includes("Files");
  document.ondragover = (event) => {
    if (!hasFiles(event)) return; // text may be dropped into the options
    event.preventDefault();
    over(now.state === "idle");
  };
  document.ondragleave = (event) => event.relatedTarget || over(false);
  document.ondrop = (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    over(false);
    const { files } = event.dataTransfer;
    if (now.state !== "idle") say("error", "busy");
    else if (files.length > 1) say("error", "oneFile", { count: files.length });
    else if (files.length) run(() => send(files[0], files[0].name));
  };
}

function translate(language) {
  speak(language, document);
  at("language").value = language;
  for (const [id, [key, values]] of said) say(id, key, values);
  transcript.translate();
  if (shown) showSource();
  showPlaying();
  render();
}

listen();
at("key").value = kept("sessionStorage", KEY) ?? "";
translate(firstLanguage());
askInfo().catch(explain);
