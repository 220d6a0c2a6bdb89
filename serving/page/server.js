// What the page asks of the server. Addresses are relative, so that it also works below a path of a proxy.

import { PageError } from "./texts.js";

function authorization(key) {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

export async function info(key) {
  let response;
  try {
    response = await fetch("info", { headers: authorization(key) });
  } catch {
    throw new PageError("unreachable");
  }
  return answered(response.status, await response.text(), key);
}

// Sends a recording until `signal` cancels it; `onSent(fraction)` is called as it goes out.
// Resolves to { texts, words, cues, duration }, of which words and cues may be empty and the duration unknown.
export function transcribe(blob, name, fields, key, onSent, signal) {
  const form = new FormData();
  for (const [field, value] of Object.entries(fields)) form.append(field, value);
  form.append("file", blob, name);
  return new Promise((resolve, reject) => {
    if (signal.aborted) throw new PageError("cancelled");
    const request = new XMLHttpRequest(); // fetch tells nothing about how much was sent
    request.open("POST", "transcribe");
    for (const [header, value] of Object.entries(authorization(key))) request.setRequestHeader(header, value);
    request.upload.onprogress = ({ loaded, total }) => onSent(loaded / total);
    request.upload.onload = () => onSent(1);
    request.onload = () => {
      try {
        resolve(transcript(answered(request.status, request.responseText, key, name)));
      } catch (error) {
        reject(error);
      }
    };
    request.onerror = () => reject(new PageError("unreachable"));
    request.onabort = () => reject(new PageError("cancelled"));
    signal.onabort = () => request.abort();
    request.send(form);
  });
}

function transcript({ transcription, words = [], cues = [], duration }) {
  const texts = transcription?.[0];
  if (![texts, words, cues].every(Array.isArray) || typeof texts[0] !== "string") throw new PageError("badAnswer");
  return { texts, words, cues, duration };
}

// The server calls what it was sent "audio"; whoever sent it knows it by its name.
function answered(status, body, key, name) {
  const answer = parsed(body);
  if (status === 401) throw new PageError(key ? "keyRefused" : "keyNeeded");
  if (status >= 200 && status <= 299) {
    if (answer) return answer;
    throw new PageError("badAnswer");
  }
  if (typeof answer?.message !== "string") throw new PageError("serverError", { status });
  throw new PageError("serverSays", { message: name ? answer.message.replace(/^audio(?=: )/, () => name) : answer.message });
}

// A JSON object, or null for a proxy's page or half an answer.
function parsed(body) {
  try {
    const answer = JSON.parse(body);
    return typeof answer === "object" ? answer : null;
  } catch {
    return null;
  }
}

const MOST_WAITING = 2 ** 20; // bytes: half a minute of sound that the connection has not taken

// Live transcription: `on.partial(text)` and `on.final({ text, start, end, words, cues })` as the server says them;
// `ended` resolves to null, or to a PageError.
export class LiveStream {
  constructor(rate, key, on) {
    const address = new URL("stream", location.href);
    address.protocol = address.protocol.replace("http", "ws");
    this.on = on;
    this.waiting = [];
    this.over = false;
    this.trouble = "noLive";
    this.ended = new Promise((resolve) => (this.resolve = resolve));
    this.socket = new WebSocket(address);
    this.socket.binaryType = "arraybuffer";
    this.socket.onopen = () => {
      this.trouble = "cut";
      this.socket.send(JSON.stringify(key ? { rate, key } : { rate }));
      for (const message of this.waiting.splice(0)) this.socket.send(message);
    };
    this.socket.onmessage = ({ data }) => this.receive(parsed(data));
    this.socket.onclose = ({ code }) => this.end(this.finishing && code === 1000 ? null : new PageError(this.trouble));
  }

  receive(message) {
    if (this.over) return;
    if (typeof message?.partial === "string") this.on.partial(message.partial);
    else if (typeof message?.final === "string") this.on.final({ words: [], cues: [], ...message, text: message.final });
    else if (message?.error) this.end(new PageError("serverSays", { message: message.error }));
    else if (!message) this.end(new PageError("badAnswer"));
  }

  send(message) {
    if (this.over) return;
    if (this.socket.readyState === WebSocket.CONNECTING) this.waiting.push(message);
    else if (this.socket.bufferedAmount > MOST_WAITING) this.end(new PageError("tooSlow"));
    else this.socket.send(message);
  }

  // 16-bit little-endian, as every machine with a browser has it.
  sound(samples) {
    this.send(samples);
  }

  finish() {
    this.finishing = true;
    this.send(JSON.stringify({ eof: 1 }));
  }

  end(error) {
    this.over = true;
    this.socket.close();
    this.resolve(error);
  }
}
