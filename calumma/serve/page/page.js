// The page: a conversation, what is asked next, and what is kept of it.

import { get, post, stream } from "./api.js";
import { write, written } from "./composer.js";
import { at, element } from "./element.js";
import { asHTML, asJSON } from "./export.js";
import { drop, keep, kept } from "./store.js";
import { Growing, shown } from "./turns.js";

const SETTINGS = ["modalities", "temperature", "guidance", "max_tokens", "seed", "show-tokens"];
const SUGGESTIONS = ["draw a large red circle on a blue ground", "draw a small cat on a green ground"];

let conversation = null;
let running = null; // an AbortController while an answer comes
let editing = null; // the number of the turn that is written anew
let codesPerSide = 32;

function fresh() {
  return { id: crypto.randomUUID?.() ?? String(Date.now()), title: "", changed: Date.now(), turns: [] };
}

// ---- settings ------------------------------------------------------------------------------------

const value = (id) => at(id).type === "checkbox" ? at(id).checked : at(id).value;

function rememberSettings() {
  localStorage.setItem("calumma.toml_config", JSON.stringify(Object.fromEntries(SETTINGS.map((id) => [id, value(id)]))));
  sessionStorage.setItem("calumma.key", at("key").value);
  for (const output of document.querySelectorAll("output")) output.value = at(output.htmlFor.value).value;
}

function recallSettings() {
  let told = {};
  try {
    told = JSON.parse(localStorage.getItem("calumma.toml_config") ?? "{}");
  } catch { /* the defaults hold */ }
  for (const id of SETTINGS) {
    if (!(id in told)) continue;
    if (at(id).type === "checkbox") at(id).checked = told[id];
    else at(id).value = told[id];
  }
  at("key").value = sessionStorage.getItem("calumma.key") ?? "";
  rememberSettings();
}

// ---- the conversation on the page ----------------------------------------------------------------

function draw() {
  const turns = conversation.turns;
  at("empty").hidden = turns.length > 0;
  at("turns").replaceChildren(...turns.map((turn, number) => shown(visible(turn), actions(turn, number))));
}

function visible(turn) {
  return { ...turn, tokens: at("show-tokens").checked ? turn.tokens : null, codesPerSide };
}

function actions(turn, number) {
  if (turn.role === "user") return [["Edit", () => edit(number)]];
  const last = number === conversation.turns.length - 1;
  return last ? [["Another answer", () => again()]] : [];
}

function edit(number) {
  if (running) return;
  editing = number;
  at("cancel-edit").hidden = false;
  write(conversation.turns[number].parts);
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

// ---- asking ----------------------------------------------------------------------------------------

function asMessage(turn) {
  const content = turn.parts.map((part) =>
    part.type === "text" ? { type: "text", text: part.text } : { type: "image_url", image_url: { url: part.url } });
  return { role: turn.role, content };
}

function body() {
  const seed = value("seed") === "" ? Math.floor(Math.random() * 2 ** 31) : Number(value("seed"));
  return {
    messages: conversation.turns.map(asMessage),
    modalities: value("modalities").split(","),
    temperature: Number(value("temperature")),
    guidance: Number(value("guidance")),
    max_tokens: Number(value("max_tokens")),
    seed,
    stream: true,
    stream_options: { include_usage: true, include_tokens: true },
  };
}

async function send() {
  const parts = written();
  if (running || !parts.length) return;
  if (editing !== null) conversation.turns.length = editing;
  leaveEditing();
  const turn = { role: "user", parts };
  conversation.turns.push(turn);
  conversation.title ||= parts.find((part) => part.type === "text")?.text.slice(0, 60) ?? "A picture";
  write([]);
  if (at("show-tokens").checked) await tellTokens(turn);
  await answer();
}

// What a turn is made of, for those who want to see inside; nothing waits for it.
async function tellTokens(turn) {
  try {
    const asked = turn.ids ? { ids: turn.ids } : { messages: [asMessage(turn)] };
    const told = await post("v1/tokens", asked, at("key").value);
    turn.tokens = told.tokens;
    codesPerSide = told.codes_per_side;
  } catch { /* the conversation goes on without */ }
}

async function answer() {
  const asked = body();
  running = new AbortController();
  busy(true);
  draw();
  const turn = { role: "assistant", parts: [], ids: [] };
  const growing = new Growing(turn);
  at("turns").append(growing.item);
  const started = performance.now();
  let finish = "stopped";
  let usage = null;
  try {
    for await (const { data } of stream("v1/chat/completions", asked, at("key").value, running.signal)) {
      if (data.error) throw new Error(data.error.message);
      hear(data, growing);
      finish = data.choices?.[0]?.finish_reason ?? finish;
      usage = data.usage ?? usage;
      follow();
    }
  } catch (error) {
    if (error.name !== "AbortError") tell(error);
  }
  running = null;
  busy(false);
  turn.facts = facts(finish, usage, asked.seed, (performance.now() - started) / 1000);
  if (turn.parts.length) conversation.turns.push(turn);
  if (at("show-tokens").checked) await tellTokens(turn);
  draw();
  await remember();
}

function hear(data, growing) {
  const delta = data.choices?.[0]?.delta;
  if (data.partial_image_b64) {
    // One partial picture a row of codes.
    const share = (data.partial_image_index + 1) / codesPerSide;
    growing.partial(`data:image/png;base64,${data.partial_image_b64}`, share);
  }
  if (data.ids) growing.turn.ids.push(...data.ids);
  if (delta?.content) growing.text(delta.content);
  for (const image of delta?.images ?? []) growing.done(image.image_url.url);
}

function facts(finish, usage, seed, seconds) {
  const told = [`seed ${seed}`, `${seconds.toFixed(1)} s`];
  if (usage) {
    const details = usage.completion_tokens_details;
    const texts = details.text_tokens === 1 ? "1 text id" : `${details.text_tokens} text ids`;
    told.unshift(`${texts}, ${details.image_tokens} of pictures`);
  }
  if (finish === "length") told.push("cut off: no room was left");
  if (finish === "stopped") told.push("stopped");
  if (finish === "content_filter") told.push("held back by a filter");
  return told.join(" · ");
}

function busy(is) {
  at("stop").hidden = !is;
  at("send").hidden = is;
  at("status").textContent = is ? "The answer is being written." : "";
  if (is) at("error").textContent = "";
}

function tell(error) {
  at("error").textContent = error.message;
  if (error.status === 401) {
    open("settings", true);
    at("key").focus();
  }
}

// Keeps the end in sight while the reader is there.
function follow() {
  const main = document.querySelector("main");
  if (main.scrollHeight - main.scrollTop - main.clientHeight < 160) main.scrollTop = main.scrollHeight;
}

// ---- history ---------------------------------------------------------------------------------------

async function remember() {
  conversation.changed = Date.now();
  try {
    if (conversation.turns.length) await keep(conversation);
    await drawHistory();
  } catch {
    at("status").textContent = "This browser keeps no history here.";
  }
}

async function drawHistory() {
  const all = await kept();
  at("conversations").replaceChildren(...all.map((one) => element("li", {},
    element("button", {
      class: "plain", onclick: () => take(one), "aria-current": one.id === conversation.id && "true",
    }, one.title || "Without words"),
    element("button", {
      class: "plain", "aria-label": `Forget: ${one.title}`, title: "Forget",
      onclick: async () => { await drop(one.id); if (one.id === conversation.id) take(fresh()); else drawHistory(); },
    }, "✕"))));
}

function take(one) {
  running?.abort();
  conversation = one;
  leaveEditing();
  write([]);
  draw();
  drawHistory().catch(() => {});
}

// ---- the page ----------------------------------------------------------------------------------------

function open(id, is) {
  const button = at(`open-${id}`);
  const wanted = is ?? at(id).hidden;
  at(id).hidden = !wanted;
  button.setAttribute("aria-expanded", String(wanted));
}

at("composer").addEventListener("submit", (event) => { event.preventDefault(); send(); });
at("stop").addEventListener("click", () => running?.abort());
at("cancel-edit").addEventListener("click", () => { leaveEditing(); write([]); });
at("new").addEventListener("click", () => take(fresh()));
for (const id of ["history", "settings"]) at(`open-${id}`).addEventListener("click", () => open(id));
at("settings").addEventListener("input", () => { rememberSettings(); if (!running) draw(); });
at("show-tokens").addEventListener("change", async () => {
  if (running || !at("show-tokens").checked) return;
  await Promise.all(conversation.turns.filter((turn) => !turn.tokens).map(tellTokens));
  draw();
});
at("export-html").addEventListener("click", () => asHTML(conversation));
at("export-json").addEventListener("click", () => asJSON(conversation));
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") {
    if (running) running.abort();
    else for (const id of ["history", "settings"]) open(id, false);
  }
});
at("suggestions").append(...SUGGESTIONS.map((text) =>
  element("button", { type: "button", class: "plain", onclick: () => write([{ type: "text", text }]) }, text)));

recallSettings();
take(fresh());
get("v1/models", at("key").value)
  .then((told) => {
    at("model").textContent = told.data[0].id;
    if (told.data[0].max_tokens) at("max_tokens").max = Math.max(64, told.data[0].max_tokens);
    if (!told.data[0].modalities.includes("image")) at("modalities").value = "text";
    rememberSettings();
  })
  .catch(tell);
