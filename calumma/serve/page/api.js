// HTTP client: requests, and the events of a stream.

export class APIError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

const headers = (key) => key ? { Authorization: `Bearer ${key}` } : {};

async function request(path, options) {
  const response = await fetch(path, options);
  if (!response.ok) throw await toError(response);
  return response;
}

// `body` is a form, or an object that is sent as JSON.
function posted(body, key, signal) {
  if (body instanceof FormData) return { method: "POST", headers: headers(key), body, signal };
  return { method: "POST", headers: { ...headers(key), "Content-Type": "application/json" }, body: JSON.stringify(body), signal };
}

async function toError(response) {
  let message = `The server answered ${response.status}.`;
  try {
    const body = await response.json();
    message = body.error?.message ?? message;
  } catch { /* not JSON: the status is all there is */ }
  return new APIError(message, response.status);
}

export async function get(path, key) {
  return (await request(path, { headers: headers(key) })).json();
}

export async function post(path, body, key, signal) {
  return (await request(path, posted(body, key, signal))).json();
}

// Yields { event, data } of a server-sent stream, data as JSON; ends at [DONE].
export async function* stream(path, body, key, signal) {
  const response = await request(path, posted(body, key, signal));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    buffer += value.replaceAll("\r\n", "\n");
    let end;
    while ((end = buffer.indexOf("\n\n")) >= 0) {
      const message = parseEvent(buffer.slice(0, end));
      buffer = buffer.slice(end + 2);
      if (message.data === "[DONE]") return;
      if (message.data) yield { event: message.event, data: JSON.parse(message.data) };
    }
  }
}

function parseEvent(block) {
  let event = "message";
  const data = [];
  for (const line of block.split("\n")) {
    if (line.startsWith("event:")) event = line.slice(6).trim();
    if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
  }
  return { event, data: data.join("\n") };
}
