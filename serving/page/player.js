// Plays a whole recording or a word of it, and says where it is.

const FADE = 0.004; // seconds: a word cut out of speech clicks without it

export class Player {
  // `onChange()` is called whenever playing starts or ends.
  constructor(onChange) {
    this.onChange = onChange;
    this.context = null;
    this.buffer = null;
    this.playing = null; // { source, start, end, begun }
    this.rest = 0; // where it stands when it does not play
  }

  load(buffer) {
    this.stop();
    this.buffer = buffer;
    this.rest = 0;
  }

  async play(start, end = this.buffer.duration) {
    this.stop();
    // browsers let sound begin only after a gesture, so the context waits for the first
    this.context ??= new AudioContext();
    await this.context.resume();
    const source = new AudioBufferSourceNode(this.context, { buffer: this.buffer });
    const gain = new GainNode(this.context);
    const now = this.context.currentTime;
    const seconds = Math.max(end - start, 0.02);
    gain.gain.setValueAtTime(0, now);
    gain.gain.linearRampToValueAtTime(1, now + FADE);
    gain.gain.setValueAtTime(1, now + seconds - FADE);
    gain.gain.linearRampToValueAtTime(0, now + seconds);
    source.connect(gain).connect(this.context.destination);
    this.stop(); // a second click may have come while the context woke up
    const playing = { source, start, end, begun: now };
    this.playing = playing;
    source.onended = () => this.playing === playing && this.finish(end >= this.buffer.duration ? 0 : end);
    source.start(now, start, seconds);
    this.onChange();
  }

  stop() {
    if (!this.playing) return;
    const { source } = this.playing;
    const rest = this.position;
    source.onended = null;
    source.stop();
    this.finish(rest);
  }

  finish(rest) {
    this.playing = null;
    this.rest = rest;
    this.onChange();
  }

  seek(seconds) {
    if (this.playing) return this.play(seconds);
    this.rest = seconds;
  }

  get position() {
    if (!this.playing) return this.rest;
    const { start, end, begun } = this.playing;
    return Math.min(start + this.context.currentTime - begun, end);
  }
}

// Decoded at the model's rate, because it is a third of the memory and what the model hears; null where the browser cannot.
export async function decode(blob, rate) {
  const context = new OfflineAudioContext(1, 1, rate);
  try {
    return await context.decodeAudioData(await blob.arrayBuffer());
  } catch (error) {
    if (error.name !== "EncodingError") throw error;
    return null;
  }
}

export function monoSamples(buffer) {
  const mono = buffer.getChannelData(0).slice();
  for (let channel = 1; channel < buffer.numberOfChannels; channel++) {
    const other = buffer.getChannelData(channel);
    for (let i = 0; i < mono.length; i++) mono[i] += other[i];
  }
  return buffer.numberOfChannels > 1 ? mono.map((sample) => sample / buffer.numberOfChannels) : mono;
}
