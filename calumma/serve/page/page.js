// The page: the conversation, requests to the server, and the history.

import { get, post, stream } from "./api.js";
import { promptParts, setPrompt } from "./composer.js";
import { at, element, imageElement } from "./element.js";
import { asHTML, asJSON } from "./export.js";
import { asLink, fromLink } from "./link.js";
import { askForEdit, editForm } from "./mask_editor.js";
import { isSet, loadSettings, newSeed, SAMPLING, sampling, saveSettings, value } from "./settings.js";
import { deleteConversation, listConversations, saveConversation } from "./store.js";
import { StreamingTurn, turnElement } from "./turns.js";

const ENDINGS = ["stop", "length", "content_filter"]; // of an answer that may be empty
const SUGGESTIONS = ["draw a red circle left of a banana", "draw four black rings on a blue background"];

let conversation = null;
let running = null; // an AbortController while an answer is generated
let editing = null; // index of the turn that is edited
let codesPerSide = 32;
let takesMasks = true; // false for models of images of any size

function newConversation() {
  return { id: crypto.randomUUID?.() ?? String(Date.now()), title: "", changed: Date.now(), turns: [] };
}

// ---- the conversation on the page ----------------------------------------------------------------

function draw() {
  const turns = conversation.turns;
  at("empty").hidden = turns.length > 0;
  at("turns").replaceChildren(...turns.map((turn, number) => turnElement(withTokens(turn), actions(turn, number))));
}

function withTokens(turn) {
  return { ...turn, tokens: at("show-tokens").checked ? turn.tokens : null, codesPerSide };
}

function actions(turn, number) {
  const images = turn.parts.filter((part) => part.type === "image");
  if (turn.edit) return [["Edit", () => editImage(images[0].url, number)]];
  const edits = images.map(({ url }, index) => [images.length > 1 ? `Edit image ${index + 1}` : "Edit image", () => editImage(url)]);
  if (turn.role === "user") return [["Edit", () => edit(number)], ...edits];
  if (number < conversation.turns.length - 1) return edits;
  const isComparable = images.length && !conversation.turns[number - 1]?.edit;
  return [["Another answer", () => again()], ...edits, ...(isComparable ? [["Compare guidance", () => compareGuidance(turn)]] : [])];
}

// Edit an image in a new turn, or once more in the turn that edited it.
async function editImage(url, number = conversation.turns.length) {
  if (running) return;
  const before = conversation.turns[number]?.edit;
  const asked = await askForEdit(url, takesMasks ? codesPerSide : null, before);
  if (!asked) return;
  conversation.turns.length = number;
  leaveEditing();
  await sendTurn({ role: "user", parts: [{ type: "image", url }, { type: "text", text: asked.prompt }], edit: asked });
}

function edit(number) {
  if (running) return;
  editing = number;
  at("cancel-edit").hidden = false;
  setPrompt(conversation.turns[number].parts);
}

function leaveEditing() {
  editing = null;
  at("cancel-edit").hidden = true;
}

function again() {
  if (running) return;
  conversation.turns.pop();
  answer();
}

// ---- requests --------------------------------------------------------------------------------------

function asMessage(turn) {
  const content = turn.parts.map((part) =>
    part.type === "text" ? { type: "text", text: part.text } : { type: "image_url", image_url: { url: part.url } });
  return { role: turn.role, content };
}

function body(turns = conversation.turns) {
  return {
    messages: turns.filter((turn) => turn.parts.length).map(asMessage),
    modalities: value("modalities").split(","),
    ...sampling(),
    max_tokens: Number(value("max_tokens")),
    seed: newSeed(),
    stream: true,
    return_token_ids: true,
    ...(at("show-tokens").checked ? { logprobs: true, top_logprobs: 2 } : {}),
    stream_options: { include_usage: true },
  };
}

async function send() {
  const parts = promptParts();
  if (running || !parts.length) return;
  if (editing !== null) conversation.turns.length = editing;
  leaveEditing();
  setPrompt([]);
  await sendTurn({ role: "user", parts });
}

async function sendTurn(turn) {
  begin();
  const asked = conversation;
  conversation.turns.push(turn);
  conversation.title ||= turn.parts.find((part) => part.type === "text")?.text.slice(0, 60) ?? "An image";
  if (at("show-tokens").checked) await loadTokens(turn);
  await answer(asked);
}

function begin() {
  running = new AbortController();
  busy(true);
}

function end() {
  running = null;
  busy(false);
}

// The events of the answer to the last turn.
async function* answers(turns, seed) {
  const asked = turns.at(-1);
  if (!asked.edit) {
    yield* stream("v1/chat/completions", { ...body(turns), seed }, at("key").value, running.signal);
    return;
  }
  const fields = { ...sampling(), seed, stream: true, partial_images: Math.min(codesPerSide, 64) };
  const form = await editForm(asked.parts[0].url, asked.edit, fields);
  yield* stream("v1/images/edits", form, at("key").value, running.signal);
}

// The tokens of a turn, for display.
async function loadTokens(turn) {
  try {
    const tokens = turn.tokenIds?.length
      ? await post("detokenize", { tokens: turn.tokenIds }, at("key").value)
      : await post("tokenize", { messages: [{ ...asMessage(turn), role: "user" }] }, at("key").value);
    turn.tokens = tokens.token_info;
    codesPerSide = tokens.codes_per_side;
    if (turn.tokenLogprobs?.length === turn.tokens.length) await addProbabilities(turn);
  } catch { /* the conversation goes on without them */ }
}

// The probability of each token, and the tokens that were likely in its place.
async function addProbabilities(turn) {
  const ids = [...new Set(turn.topLogprobs.flat().map(([id]) => id))];
  const { token_info: info } = await post("detokenize", { tokens: ids }, at("key").value);
  const names = new Map(info.map((one) => [one.id, one.kind === "code" ? `code ${one.text}` : JSON.stringify(one.text)]));
  turn.tokens.forEach((token, place) => {
    token.logprob = turn.tokenLogprobs[place];
    token.others = turn.topLogprobs[place].map(([id, logprob]) => ({ id, text: names.get(id), logprob }));
  });
}

// The last answer's first image again, with the same seed, at guidance scales of 1, the chosen one and twice that.
async function compareGuidance(turn) {
  if (running) return;
  begin();
  const chosen = Number(value("guidance_scale"));
  const scales = [...new Set([1, chosen, 2 * chosen])];
  const before = conversation.turns.slice(0, conversation.turns.indexOf(turn));
  try {
    turn.comparison = await Promise.all(scales.map(async (scale) => {
      const request = { ...body(before), guidance_scale: scale, seed: turn.seed, stream: false };
      delete request.stream_options;
      const response = await post("v1/chat/completions", request, at("key").value, running.signal);
      return { scale, url: response.choices[0].message.images[0]?.image_url.url };
    }));
    await saveHistory();
  } catch (error) {
    if (error.name !== "AbortError") showError(error);
  }
  end();
  draw();
}

// Answer the last turn of a conversation, which is busy until all of the answer is drawn. If another
// conversation is taken meanwhile, the answer still belongs to the one that asked.
async function answer(asked = conversation) {
  const seed = newSeed();
  if (!running) begin();
  draw();
  const turn = { role: "assistant", parts: [], tokenIds: [], tokenLogprobs: [], topLogprobs: [], seed };
  const streaming = new StreamingTurn(turn);
  if (asked === conversation) at("turns").append(streaming.item);
  follow(true);
  const started = performance.now();
  let finish = "stopped";
  let usage = null;
  try {
    for await (const { data } of answers(asked.turns, seed)) {
      if (data.error) throw new Error(data.error.message);
      apply(data, streaming);
      finish = data.type?.endsWith(".completed") ? "stop" : data.choices?.[0]?.finish_reason ?? finish;
      usage = data.usage ?? usage;
    }
  } catch (error) {
    if (error.name !== "AbortError") showError(error);
  }
  turn.facts = facts(finish, usage, seed, (performance.now() - started) / 1000);
  if (turn.parts.length || ENDINGS.includes(finish)) asked.turns.push(turn);
  if (at("show-tokens").checked) await loadTokens(turn);
  end();
  draw();
  await saveHistory(asked);
}

// Apply an event: a part of a chat's answer, or of an edited image.
function apply(data, streaming) {
  const delta = data.choices?.[0]?.delta;
  const partial = data.partial_image_b64 ?? (data.type?.endsWith(".partial_image") && data.b64_json);
  if (partial) {
    // One partial image per row of codes.
    const progress = (data.partial_image_index + 1) / codesPerSide;
    streaming.partial(`data:image/png;base64,${partial}`, progress);
  }
  if (data.type?.endsWith(".completed")) streaming.done(`data:image/png;base64,${data.b64_json}`);
  if (data.token_ids) streaming.turn.tokenIds.push(...data.token_ids);
  if (data.token_logprobs) {
    streaming.turn.tokenLogprobs.push(...data.token_logprobs);
    streaming.turn.topLogprobs.push(...data.top_token_logprobs);
  }
  if (delta?.content) streaming.text(delta.content);
  for (const image of delta?.images ?? []) streaming.done(image.image_url.url);
}

function facts(finish, usage, seed, seconds) {
  const items = [`seed ${seed}`, `${seconds.toFixed(1)} s`];
  const details = usage?.completion_tokens_details;
  if (details) items.unshift(`${details.text_tokens} text and ${details.image_tokens} image tokens`);
  if (finish === "length") items.push("cut off at the token limit");
  if (finish === "stopped") items.push("stopped");
  if (finish === "content_filter") items.push("blocked by a content filter");
  return items.join(" · ");
}

function busy(is) {
  at("stop").hidden = !is;
  at("send").hidden = is;
  at("status").textContent = is ? "Generating the answer." : "";
  if (is) at("error").textContent = at("detail").textContent = "";
}

function showError(error) {
  at("error").textContent = error.message;
  if (error.status === 401) {
    open("settings", true);
    at("key").focus();
  }
}

// ---- scrolling -------------------------------------------------------------------------------------

// The view follows the answer from the prompt on, until the reader scrolls up.
const main = document.querySelector("main");
let following = true;
let height = 0; // of the content when it was last followed: a scroll at another height is not the reader's

function follow(start) {
  following ||= start === true;
  if (following) main.scrollTop = main.scrollHeight;
  height = main.scrollHeight;
}

main.addEventListener("scroll", () => {
  if (main.scrollHeight === height) following = height - main.scrollTop - main.clientHeight < 40;
});
main.addEventListener("wheel", (event) => { if (event.deltaY < 0) following = false; }, { passive: true });
new ResizeObserver(() => follow()).observe(at("turns"));
new ResizeObserver(() => follow()).observe(main);

// ---- history ---------------------------------------------------------------------------------------

async function saveHistory(one = conversation) {
  one.changed = Date.now();
  try {
    if (one.turns.length) await saveConversation(one);
    await drawHistory();
  } catch {
    at("status").textContent = "This browser stores no history here.";
  }
}

async function drawHistory() {
  const all = await listConversations();
  at("conversations").replaceChildren(...all.map((one) => element("li", {},
    element("button", {
      class: "plain", onclick: () => take(one), "aria-current": one.id === conversation.id && "true",
    }, ...thumbnail(one), one.title || "Untitled"),
    element("button", {
      class: "plain", "aria-label": `Delete: ${one.title}`, title: "Delete",
      onclick: async () => { await deleteConversation(one.id); if (one.id === conversation.id) take(newConversation()); else drawHistory(); },
    }, "✕"))));
}

// The newest image of a conversation, if it has one.
function thumbnail({ turns }) {
  const image = turns.flatMap((turn) => turn.parts).findLast((part) => part.type === "image");
  return image ? [imageElement(image.url, "")] : [];
}

function take(one) {
  running?.abort();
  conversation = one;
  leaveEditing();
  setPrompt([]);
  draw();
  drawHistory().catch(() => {});
}

// ---- the page ----------------------------------------------------------------------------------------

function open(id, is) {
  const button = at(`open-${id}`);
  const isOpen = is ?? at(id).hidden;
  at(id).hidden = !isOpen;
  button.setAttribute("aria-expanded", String(isOpen));
}

at("composer").addEventListener("submit", (event) => { event.preventDefault(); send(); });
at("stop").addEventListener("click", () => running?.abort());
at("cancel-edit").addEventListener("click", () => { leaveEditing(); setPrompt([]); });
at("new").addEventListener("click", () => take(newConversation()));
for (const id of ["history", "settings"]) at(`open-${id}`).addEventListener("click", () => open(id));
at("settings").addEventListener("input", (event) => {
  event.target.dataset.changed = "true";
  saveSettings();
  if (!running) draw();
});
at("show-tokens").addEventListener("change", async () => {
  if (running || !at("show-tokens").checked) return;
  await Promise.all(conversation.turns.filter((turn) => !turn.tokens).map(loadTokens));
  draw();
});
at("export-html").addEventListener("click", () => asHTML(conversation));
at("export-json").addEventListener("click", () => asJSON(conversation));
at("copy-link").addEventListener("click", async () => {
  const link = await asLink(conversation);
  if (link === null) {
    at("status").textContent = "This conversation is too long for a link: save it as JSON instead.";
    return;
  }
  history.replaceState(null, "", link);
  try {
    await navigator.clipboard.writeText(link);
    at("status").textContent = "The link is copied.";
  } catch {
    at("status").textContent = "The address of this page is the link.";
  }
});
async function restoreLink() {
  try {
    const linked = await fromLink();
    if (linked) take({ ...newConversation(), ...linked });
  } catch {
    at("status").textContent = "The conversation in this link is damaged: ask for the link again.";
  }
}
window.addEventListener("hashchange", restoreLink);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !document.querySelector("dialog[open]")) {
    if (running) running.abort();
    else for (const id of ["history", "settings"]) open(id, false);
  }
});
at("suggestions").append(...SUGGESTIONS.map((text) =>
  element("button", { type: "button", class: "plain", onclick: () => setPrompt([{ type: "text", text }]) }, text)));

loadSettings();
take(newConversation());
restoreLink();
get("v1/models", at("key").value)
  .then((models) => {
    at("model").textContent = models.data[0].id;
    if (models.data[0].max_model_len) at("max_tokens").max = Math.max(64, models.data[0].max_model_len);
    if (!models.data[0].modalities.includes("image")) at("modalities").value = "text";
    for (const id of SAMPLING) if (!isSet(id)) at(id).value = models.data[0].image_sampling[id];
    if (models.data[0].codes_per_side) codesPerSide = models.data[0].codes_per_side;
    takesMasks = models.data[0].codes_per_side !== null;
    saveSettings();
  })
  .catch(showError);
