// Talking to the server: one request, and the events of its stream.

export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

function headers(key) {
  const made = { "Content-Type": "application/json" };
  if (key) made.Authorization = `Bearer ${key}`;
  return made;
}

async function refused(answer) {
  let message = `The server answered ${answer.status}.`;
  try {
    const told = await answer.json();
    message = told.error?.message ?? message;
  } catch { /* no JSON: the status says it */ }
  return new Refused(message, answer.status);
}

export async function get(path, key) {
  const answer = await fetch(path, { headers: headers(key) });
  if (!answer.ok) throw await refused(answer);
  return answer.json();
}

export async function post(path, body, key) {
  const options = { method: "POST", headers: headers(key), body: JSON.stringify(body) };
  const answer = await fetch(path, options);
  if (!answer.ok) throw await refused(answer);
  return answer.json();
}

// Yields { event, data } of a server-sent stream, data as JSON; ends at [DONE].
export async function* stream(path, body, key, signal) {
  const options = { method: "POST", headers: headers(key), body: JSON.stringify(body), signal };
  const answer = await fetch(path, options);
  if (!answer.ok) throw await refused(answer);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    waiting += value.replaceAll("\r\n", "\n");
    let end;
    while ((end = waiting.indexOf("\n\n")) >= 0) {
      const told = parsed(waiting.slice(0, end));
      waiting = waiting.slice(end + 2);
      if (told.data === "[DONE]") return;
      if (told.data) yield { event: told.event, data: JSON.parse(told.data) };
    }
  }
}

function parsed(block) {
  let event = "message";
  const data = [];
  for (const line of block.split("\n")) {
    if (line.startsWith("event:")) event = line.slice(6).trim();
    if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
  }
  return { event, data: data.join("\n") };
}
