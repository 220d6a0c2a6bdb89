// The page's story: a recording comes in, goes to the server, and its transcript is shown, heard and saved.

import { MicrophoneError, openMicrophone, wavFile } from "./microphone.js";
import { decode, monoSamples, Player } from "./player.js";
import { Cancelled, info, LiveStream, ServerError, transcribe } from "./server.js";
import { firstLanguage, keepLanguage, speak, text } from "./texts.js";
import { Timeline } from "./timeline.js";
import { showBest, subtitles, Transcript } from "./transcript.js";

const at = (id) => document.getElementById(id);
const KEY = "api-key";

let about = { sample_rate: 16000, streaming: true }; // what /info said
let last = null; // { blob, name } sent last, for "again"
let shown = null; // { name, text, texts, words, segments, duration } on the page
let cancel = null; // ends what is under way
let recording = null; // { stop } while the microphone is open

const player = new Player(showPlaying);
const timeline = new Timeline(at("timeline"), (seconds) => seek(seconds), hear);
const transcript = new Transcript(at("words"), at("detail"), hear);

// What is said besides the transcript

function fail(message) {
  at("error").textContent = message;
}

function explain(error) {
  if (error instanceof Cancelled) return at("status").replaceChildren(text("cancelled"));
  if (error instanceof MicrophoneError) return fail(text(error.key, error.values));
  if (!(error instanceof ServerError)) {
    fail(String(error));
    throw error;
  }
  if (error.status === 401) at("options").open = true;
  if (error.status === 401) fail(text("keyNeeded"));
  else if (error.message) fail(text("serverSays") + error.message);
  else if (error.status === 0) fail(text("unreachable"));
  else fail(error.status < 300 ? text("badAnswer") : text("serverError", { status: error.status }));
}

// `fraction` of the work done, or null where nobody knows.
function showWork(message, fraction, cancellation) {
  cancel = cancellation;
  at("work").hidden = false;
  at("cancel").hidden = !cancellation;
  at("work-text").textContent = message;
  if (fraction === null) at("progress").removeAttribute("value");
  else at("progress").value = 100 * fraction;
}

function busy(yes) {
  for (const id of ["choose", "live", "again"]) at(id).disabled = yes;
  at("record").disabled = yes && !recording;
  if (!yes) {
    at("work").hidden = true;
    cancel = null;
  }
}

// The server's side

async function askInfo() {
  try {
    about = { ...about, ...(await info(at("key").value)) };
    at("model").textContent = about.model ?? "";
    at("decoder").value = about.decoder ?? (about.language_model ? "beam" : "greedy");
    if (about.key_needed && !at("key").value) at("options").open = true;
    fail("");
  } catch (error) {
    explain(error);
  }
  showOptions();
}

function showOptions() {
  const greedy = at("decoder").value === "greedy";
  for (const id of ["beam-width", "top-paths", "hotwords"]) at(id).disabled = greedy;
  at("live-hint").textContent = at("live").checked ? text(about.streaming ? "liveStreaming" : "livePauses") : "";
}

function chosenOptions() {
  const fields = { words: "true", decoder: at("decoder").value };
  if (fields.decoder === "beam") {
    fields.beam_width = at("beam-width").value;
    fields.top_paths = at("top-paths").value;
    if (at("hotwords").value.trim()) fields.hotwords = at("hotwords").value.trim();
  }
  return fields;
}

async function send(blob, name) {
  fail("");
  at("status").textContent = "";
  const limit = about.max_upload_mb;
  if (limit && blob.size > limit * 2 ** 20) {
    return fail(text("tooLarge", { name, size: (blob.size / 2 ** 20).toFixed(1), limit }));
  }
  if (!at("options-form").checkValidity()) {
    at("options").open = true;
    at("options-form").reportValidity();
    return fail(text("badOptions"));
  }
  last = { blob, name };
  busy(true);
  const request = transcribe(blob, name, chosenOptions(), at("key").value, (sent) =>
    sent < 1 ? showWork(text("uploading", { name }), sent, request.cancel) : showWork(text("transcribing", { name }), null, request.cancel),
  );
  showWork(text("uploading", { name }), 0, request.cancel);
  at("status").textContent = text("transcribing", { name });
  try {
    const [answer, buffer] = await Promise.all([request.answer, decode(blob, about.sample_rate)]);
    at("live-result").hidden = true;
    const texts = answer.transcription[0];
    show({ name, text: texts[0], texts, words: answer.words ?? [], segments: answer.segments ?? [], duration: answer.duration }, buffer);
  } catch (error) {
    explain(error);
  } finally {
    busy(false);
  }
}

// The result

function show(result, buffer) {
  shown = result;
  shown.duration ??= buffer?.duration;
  at("result").hidden = false;
  const timed = result.words.length > 0;
  at("text").hidden = timed;
  showSource();
  for (const id of ["words", "detail", "legend"]) at(id).hidden = !timed;
  for (const id of ["copy", "save-text", "save-srt"]) at(id).disabled = !result.text;
  transcript.show(result.words, result.text);
  at("best").hidden = result.texts.length < 2;
  showBest(at("hypotheses"), result.texts);
  at("listen").hidden = !buffer;
  at("unheard").hidden = Boolean(buffer);
  player.stop();
  if (buffer) {
    player.load(buffer);
    at("seek").max = buffer.duration;
    timeline.show(monoSamples(buffer), buffer.sampleRate, result.words);
  } else timeline.clear();
  showPlaying();
  at("status").textContent = result.text ? text("done", { text: result.text }) : text("nothing");
}

function showSource() {
  const { name, duration } = shown;
  at("source").textContent = duration === undefined ? name : text("source", { name, seconds: duration.toFixed(1) });
  at("text").textContent = shown.text || text("nothing");
}

function hear(index) {
  const word = shown.words[index];
  if (player.buffer && !at("listen").hidden) player.play(word.start, word.end);
}

function seek(seconds) {
  player.seek(seconds);
  showPosition(false);
}

// data-playing says in seconds what is heard, for the style sheet and whoever watches
function showPlaying() {
  const { playing } = player;
  at("play").textContent = text(playing ? "stop" : "play");
  if (playing) at("listen").dataset.playing = `${playing.start}-${playing.end}`;
  else delete at("listen").dataset.playing;
  followPlaying();
}

function followPlaying() {
  showPosition(true);
  if (player.playing) requestAnimationFrame(followPlaying);
}

let marked = -1;

function showPosition(follow) {
  if (!player.buffer || !timeline.samples) return;
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
    at("status").textContent = text("copied");
    at("copy").textContent = text("copied");
    setTimeout(() => (at("copy").textContent = text("copy")), 2000);
  } catch {
    fail(text("copyFailed"));
  }
}

function shownSegments() {
  if (shown.segments.length) return shown.segments;
  return [{ start: 0, end: shown.duration ?? 0, text: shown.text }];
}

// The microphone

async function toggleRecording() {
  if (recording) return recording.stop();
  fail("");
  player.stop();
  const blocks = [];
  let live = null;
  let stopped = false;
  const stop = async () => {
    if (stopped) return;
    stopped = true;
    at("record").disabled = true;
    await microphone.stop();
    showRecording(null);
    if (live) return live.finish();
    busy(false);
    await sendRecorded(blocks);
  };
  at("record").disabled = true;
  let microphone;
  try {
    at("status").textContent = text("opening");
    microphone = await openMicrophone(about.sample_rate, (samples) => {
      blocks.push(samples);
      live?.stream.sound(samples);
      if (recording && heard(blocks, samples)) stop();
    }, stop);
  } catch (error) {
    at("record").disabled = false;
    at("status").textContent = "";
    return explain(error);
  }
  if (at("live").checked) live = startLive(blocks, stop);
  showRecording({ stop });
}

function showRecording(state) {
  recording = state;
  busy(Boolean(state));
  at("recording").hidden = !state;
  at("drop").classList.toggle("is-recording", Boolean(state));
  at("record-text").textContent = text(state ? "stop" : "record");
  at("status").textContent = state ? text("recording") : "";
  at("timer").textContent = "0:00";
}

// Shows time and level; true once the server would take no more.
function heard(blocks, samples) {
  const seconds = blocks.reduce((sum, block) => sum + block.length, 0) / about.sample_rate;
  at("timer").textContent = `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
  const power = samples.reduce((sum, sample) => sum + sample * sample, 0) / samples.length / 2 ** 30;
  const loudness = Math.max(0, Math.min(1, 1 + Math.log10(power + 1e-12) / 5)); // from -50 dB to full scale
  at("level").style.transform = `scaleX(${loudness})`;
  const most = Math.min(about.max_audio_seconds ?? Infinity, ((about.max_upload_mb ?? Infinity) * 2 ** 20) / (2 * about.sample_rate));
  return seconds > most - 1;
}

async function sendRecorded(blocks) {
  if (!blocks.length) return fail(text("noSound"));
  await send(wavFile(blocks, about.sample_rate), `${text("spoken")}.wav`);
}

// Live: the same sound also goes to /stream; once it has ended, the result is shown as any other.
function startLive(blocks, stop) {
  const finals = [];
  at("result").hidden = true;
  at("live-result").hidden = false;
  at("finals").replaceChildren();
  at("partial").textContent = "";
  const stream = new LiveStream(about.sample_rate, at("key").value, {
    partial: (said) => (at("partial").textContent = said),
    final: (final) => {
      at("partial").textContent = "";
      if (!final.text) return;
      finals.push(final);
      const line = document.createElement("p");
      line.textContent = final.text;
      at("finals").append(line);
    },
    end: async (error) => {
      await stop();
      busy(false);
      if (typeof error === "string") fail(text(error));
      else if (error) explain(error);
      if (blocks.length) await showLive(finals, blocks);
    },
  });
  const finish = () => {
    if (stream.ended) return;
    busy(true);
    showWork(text("finishing"), null, () => stream.end(null));
    stream.finish();
  };
  return { stream, finish };
}

async function showLive(finals, blocks) {
  const blob = wavFile(blocks, about.sample_rate);
  const buffer = await decode(blob, about.sample_rate);
  const whole = finals.map((final) => final.text).join(" ");
  const name = `${text("spoken")}.wav`;
  last = { blob, name };
  at("live-result").hidden = true;
  show({ name, text: whole, texts: [whole], words: finals.flatMap((final) => final.words ?? []), segments: finals }, buffer);
}

// Everything that can be done

function listen() {
  at("choose").onclick = () => at("file").click();
  at("file").onchange = ({ target }) => {
    const [file] = target.files;
    target.value = ""; // so that the same file can be chosen again
    if (file) send(file, file.name);
  };
  at("record").onclick = toggleRecording;
  at("live").onchange = showOptions;
  at("decoder").onchange = showOptions;
  at("options-form").onsubmit = (event) => event.preventDefault();
  at("key").onchange = ({ target }) => {
    sessionStorage.setItem(KEY, target.value);
    askInfo();
  };
  at("cancel").onclick = () => cancel?.();
  at("play").onclick = () => (player.playing ? player.stop() : player.play(player.position));
  at("seek").oninput = ({ target }) => seek(Number(target.value));
  at("zoom-in").onclick = () => timeline.zoom(1.5);
  at("zoom-out").onclick = () => timeline.zoom(1 / 1.5);
  at("copy").onclick = copy;
  at("save-text").onclick = () => save(`${shown.text}\n`, "txt", "text/plain");
  at("save-srt").onclick = () => save(subtitles(shownSegments()), "srt", "application/x-subrip");
  at("again").onclick = () => send(last.blob, last.name);
  at("language").onchange = ({ target }) => {
    keepLanguage(target.value);
    translate(target.value);
  };
  takeDrops();
}

function takeDrops() {
  const over = (yes) => at("drop").classList.toggle("over", yes);
  document.ondragover = (event) => {
    event.preventDefault();
    over(true);
  };
  document.ondragleave = (event) => event.relatedTarget || over(false);
  document.ondrop = (event) => {
    event.preventDefault();
    over(false);
    const [file] = event.dataTransfer.files;
    if (file && !at("choose").disabled) send(file, file.name);
  };
}

function translate(language) {
  speak(language, document);
  at("language").value = language;
  at("record-text").textContent = text(recording ? "stop" : "record");
  for (const [id, key] of [["save-text", "saveTextLabel"], ["save-srt", "saveSrtLabel"], ["again", "againLabel"]]) {
    at(id).setAttribute("aria-label", text(key));
    at(id).title = text(key);
  }
  transcript.translate();
  if (shown) showSource();
  showPlaying();
  showOptions();
}

listen();
at("key").value = sessionStorage.getItem(KEY) ?? "";
translate(firstLanguage());
askInfo();
