// A conversation in the address of the page: deflated JSON after "#c=".

const PREFIX = "#c=";
export const MAX_LENGTH = 60_000; // characters; longer addresses are cut by mail and chat programs

async function piped(bytes, transform) {
  const stream = new Blob([bytes]).stream().pipeThrough(transform);
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

const toBase64 = (bytes) =>
  btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join("")).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");

const fromBase64 = (text) =>
  Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (letter) => letter.charCodeAt(0));

// The address that restores a conversation, or null if it is too long for one.
export async function asLink(conversation) {
  const turns = conversation.turns.map(({ role, parts, facts, edit }) => ({ role, parts, facts, edit }));
  const text = JSON.stringify({ title: conversation.title, turns });
  const data = toBase64(await piped(new TextEncoder().encode(text), new CompressionStream("deflate-raw")));
  const url = new URL(location.href);
  url.hash = `${PREFIX}${data}`;
  return url.href.length > MAX_LENGTH ? null : url.href;
}

const isPart = (part) =>
  (part.type === "text" && typeof part.text === "string") ||
  (part.type === "image" && typeof part.url === "string" && part.url.startsWith("data:image/"));

const isCount = (number) => Number.isInteger(number) && number >= 0 && number <= 2 ** 16;

const isEdit = (edit) =>
  edit === undefined ||
  (typeof edit.prompt === "string" && [edit.side, edit.margin].every(isCount) && Array.isArray(edit.cells) && edit.cells.every(isCount));

// Title and turns of the conversation in the address; null if there is none. Throws if it is damaged.
export async function fromLink() {
  if (!location.hash.startsWith(PREFIX)) return null;
  const bytes = await piped(fromBase64(location.hash.slice(PREFIX.length)), new DecompressionStream("deflate-raw"));
  const { title, turns } = JSON.parse(new TextDecoder().decode(bytes));
  const valid = turns.every((turn) => ["user", "assistant"].includes(turn.role) && turn.parts.every(isPart) && isEdit(turn.edit));
  if (!valid) throw new Error("not a conversation");
  return { title: String(title), turns };
}
