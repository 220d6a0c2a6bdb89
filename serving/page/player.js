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

  // `buffer` is null for what cannot be played.
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

// Decoded at the model's rate, because it is a third of the memory and what the model hears, and as one channel, which the
// browser mixes beside the page; null where it cannot read `bytes`.
export async function decode(bytes, rate) {
  let decoded;
  try {
    decoded = await new OfflineAudioContext(1, 1, rate).decodeAudioData(bytes);
  } catch (error) {
    if (error.name !== "EncodingError") throw error;
    return null;
  }
  if (decoded.numberOfChannels === 1) return decoded;
  const mixer = new OfflineAudioContext(1, decoded.length, rate);
  const source = new AudioBufferSourceNode(mixer, { buffer: decoded });
  source.connect(mixer.destination);
  source.start();
  return mixer.startRendering();
}
