// What the page asks of the server. Addresses are relative, so that it also works below a path of a proxy.

// A request that came to nothing: HTTP's status, 0 without any, and the server's own words if it sent some.
export class ServerError extends Error {
  constructor(status, message = "") {
    super(message);
    this.status = status;
  }
}

export class Cancelled extends Error {}

function authorization(key) {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

export async function info(key) {
  let response;
  try {
    response = await fetch("info", { headers: authorization(key) });
  } catch {
    throw new ServerError(0);
  }
  return answered(response.status, await response.text());
}

// Returns { answer, cancel }: a promise of /transcribe's JSON, and a function that ends the request.
// `onSent(fraction)` is called as the file goes out.
export function transcribe(blob, name, fields, key, onSent) {
  const form = new FormData();
  for (const [field, value] of Object.entries(fields)) form.append(field, value);
  form.append("file", blob, name);
  const request = new XMLHttpRequest(); // fetch tells nothing about how much was sent
  request.open("POST", "transcribe");
  for (const [header, value] of Object.entries(authorization(key))) request.setRequestHeader(header, value);
  const answer = new Promise((resolve, reject) => {
    request.upload.onprogress = ({ loaded, total }) => onSent(loaded / total);
    request.upload.onload = () => onSent(1);
    request.onload = () => {
      try {
        resolve(answered(request.status, request.responseText));
      } catch (error) {
        reject(error);
      }
    };
    request.onerror = () => reject(new ServerError(0));
    request.onabort = () => reject(new Cancelled());
  });
  request.send(form);
  return { answer, cancel: () => request.abort() };
}

function answered(status, body) {
  let answer = null;
  try {
    answer = JSON.parse(body);
  } catch {
    // a proxy's page, or half an answer
  }
  if (status < 200 || status > 299) throw new ServerError(status, answer?.message);
  if (answer === null) throw new ServerError(status, "");
  return answer;
}

const MOST_WAITING = 2 ** 20; // bytes: half a minute of sound that the connection has not taken

// Live transcription. `on.partial(text)` and `on.final({text, start, end, words})` as the server says them;
// `on.end(error)` once, with null, a ServerError, "tooSlow" or "cut".
export class LiveStream {
  constructor(rate, key, on) {
    const address = new URL("stream", location.href);
    address.protocol = address.protocol.replace("http", "ws");
    this.on = on;
    this.waiting = [];
    this.ended = false;
    this.finishing = false;
    this.socket = new WebSocket(address);
    this.socket.binaryType = "arraybuffer";
    this.socket.onopen = () => {
      this.socket.send(JSON.stringify(key ? { rate, key } : { rate }));
      for (const message of this.waiting.splice(0)) this.socket.send(message);
    };
    this.socket.onmessage = ({ data }) => this.receive(data);
    this.socket.onclose = ({ code }) => this.end(this.finishing && code === 1000 ? null : "cut");
  }

  receive(data) {
    const message = JSON.parse(data);
    if ("partial" in message) this.on.partial(message.partial);
    if ("final" in message) this.on.final({ ...message, text: message.final });
    if ("error" in message) this.end(new ServerError(0, message.error));
  }

  send(message) {
    if (this.ended) return;
    if (this.socket.readyState === WebSocket.CONNECTING) this.waiting.push(message);
    else if (this.socket.bufferedAmount > MOST_WAITING) this.end("tooSlow");
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
    if (this.ended) return;
    this.ended = true;
    this.socket.close();
    this.on.end(error);
  }
}
