// The microphone as 16-bit samples at the model's rate, and as a WAV file that every server reads.

import { PageError } from "./texts.js";

// Samples arrive at `onSamples(Int16Array)` until stop(); `onEnd()` is called when the microphone is taken away.
// The browser's question cannot be taken back: after `signal` gave up waiting, a microphone allowed later is released at once.
export function openMicrophone(rate, onSamples, onEnd, signal) {
  const opening = open(rate, onSamples, onEnd);
  const givenUp = new Promise((_none, reject) => {
    signal.onabort = () => {
      reject(new PageError("cancelled"));
      opening.then(
        (microphone) => microphone.stop(),
        () => {},
      );
    };
  });
  return Promise.race([opening, givenUp]);
}

async function open(rate, onSamples, onEnd) {
  if (!navigator.mediaDevices?.getUserMedia || !window.AudioWorkletNode) throw new PageError("insecure");
  const stream = await askForMicrophone();
  stream.getAudioTracks()[0].onended = onEnd;
  let source = null;
  try {
    source = openSource(stream, rate);
    return { stop: receive(await collect(source), rate, stream, onSamples) };
  } catch (error) {
    release(stream, source?.context);
    if (error.name === "AbortError") throw new PageError("unreachable"); // collector.js could not be fetched
    throw new PageError("microphoneFailed", { reason: error.message });
  }
}

function release(stream, context) {
  for (const track of stream.getTracks()) track.stop();
  context?.close();
}

// The browser's own clean-up is made for calls: it gates and distorts what the model was trained to hear as it is.
async function askForMicrophone() {
  const wanted = { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: false };
  try {
    return await navigator.mediaDevices.getUserMedia({ audio: wanted });
  } catch (error) {
    if (error.name === "NotAllowedError") throw new PageError("refused");
    if (error.name === "NotFoundError") throw new PageError("noMicrophone");
    throw new PageError("microphoneFailed", { reason: error.message });
  }
}

// Chromium and Safari resample to any context's rate; Firefox refuses, so there the resampler below does it.
function openSource(stream, rate) {
  let context = new AudioContext({ sampleRate: rate });
  try {
    return context.createMediaStreamSource(stream);
  } catch {
    context.close();
    context = new AudioContext();
    return context.createMediaStreamSource(stream);
  }
}

async function collect(source) {
  const { context } = source;
  await context.audioWorklet.addModule(new URL("collector.js", import.meta.url));
  const collector = new AudioWorkletNode(context, "collector");
  source.connect(collector).connect(context.destination); // it puts out silence; unconnected, it would not run
  await context.resume();
  return collector;
}

// Returns stop(): resolves once the last sample has been handed on and the microphone is released.
function receive(collector, rate, stream, onSamples) {
  const { context } = collector;
  const resampler = context.sampleRate === rate ? null : new Resampler(context.sampleRate, rate);
  let ended;
  const end = new Promise((resolve) => (ended = resolve));
  collector.port.onmessage = ({ data: block }) => {
    const samples = resampler ? (block ? resampler.push(block) : resampler.flush()) : block;
    if (samples?.length) onSamples(toInt16(samples));
    if (!block) ended();
  };
  return async () => {
    collector.port.postMessage("end");
    await end;
    release(stream, context);
  };
}

export function toInt16(samples) {
  return Int16Array.from(samples, (sample) => Math.max(-32768, Math.min(32767, Math.round(sample * 32768))));
}

// Another rate for a signal that comes in pieces: a sinc of 24 zero crossings to each side under a Hann window,
// one kernel for each of the to/gcd positions an output sample can have between two input samples.
export class Resampler {
  constructor(from, to) {
    this.from = from;
    this.to = to;
    this.cutoff = Math.min(1, to / from) * 0.95;
    this.reach = Math.ceil(24 / this.cutoff);
    this.held = new Float32Array(this.reach); // the silence before the first sample
    this.heldFrom = -this.reach; // the input sample that held[0] is
    this.written = 0;
    this.kernels = new Map();
  }

  push(block) {
    const input = new Float32Array(this.held.length + block.length);
    input.set(this.held);
    input.set(block, this.held.length);
    const known = this.heldFrom + input.length;
    const output = [];
    let first = Math.floor((this.written * this.from) / this.to);
    while (first + this.reach < known) {
      const kernel = this.kernel((this.written * this.from) % this.to);
      const start = first - this.reach + 1 - this.heldFrom;
      let sum = 0;
      for (let tap = 0; tap < kernel.length; tap++) sum += kernel[tap] * input[start + tap];
      output.push(sum);
      this.written++;
      first = Math.floor((this.written * this.from) / this.to);
    }
    const keepFrom = Math.max(first - this.reach + 1, this.heldFrom);
    this.held = input.slice(keepFrom - this.heldFrom);
    this.heldFrom = keepFrom;
    return Float32Array.from(output);
  }

  flush() {
    return this.push(new Float32Array(this.reach));
  }

  kernel(phase) {
    if (!this.kernels.has(phase)) {
      const offset = phase / this.to;
      this.kernels.set(phase, Float32Array.from({ length: 2 * this.reach }, (_none, tap) => this.weight(tap - this.reach + 1 - offset)));
    }
    return this.kernels.get(phase);
  }

  weight(distance) {
    if (Math.abs(distance) >= this.reach) return 0;
    const angle = Math.PI * distance * this.cutoff;
    const sinc = distance === 0 ? 1 : Math.sin(angle) / angle;
    return this.cutoff * sinc * (0.5 + 0.5 * Math.cos((Math.PI * distance) / this.reach));
  }
}

// `blocks` are Int16Arrays; the file is RIFF with one channel of 16 bits.
export function wavFile(blocks, rate) {
  const bytes = 2 * blocks.reduce((sum, block) => sum + block.length, 0);
  const header = new DataView(new ArrayBuffer(44));
  const write = (at, name) => [...name].forEach((letter, i) => header.setUint8(at + i, letter.charCodeAt(0)));
  write(0, "RIFF");
  header.setUint32(4, 36 + bytes, true);
  write(8, "WAVEfmt ");
  header.setUint32(16, 16, true);
  header.setUint16(20, 1, true); // PCM
  header.setUint16(22, 1, true);
  header.setUint32(24, rate, true);
  header.setUint32(28, 2 * rate, true);
  header.setUint16(32, 2, true);
  header.setUint16(34, 16, true);
  write(36, "data");
  header.setUint32(40, bytes, true);
  return new Blob([header, ...blocks], { type: "audio/wav" });
}
