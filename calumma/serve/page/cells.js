// Token strips and the cells of images: which token is where, how probable, and what else was likely.

import { at, element } from "./element.js";

const HUE = 137.508; // the golden angle: adjacent codes get different colors
const percent = (logprob) => `${(100 * Math.exp(logprob)).toFixed(1)} %`;

function description(token, place) {
  const name = token.kind === "code" ? `code ${token.text}` : JSON.stringify(token.text);
  const words = [`token ${token.id}: ${name}${place}`];
  if (token.logprob !== undefined) words.push(`probability ${percent(token.logprob)}`);
  const other = token.others?.find((one) => one.id !== token.id);
  if (other) words.push(`next best ${other.text} with ${percent(other.logprob)}`);
  return words.join(", ");
}

// The tokens of a turn as colored cells, image codes in rows; the arrow keys move between them.
export function tokenStrip(tokens, codesPerSide) {
  let count = 0;
  let image = -1;
  const cells = [];
  for (const token of tokens) {
    if (token.kind !== "code") {
      if (count) cells.push(element("i", { class: "row" }));
      count = 0;
      const cell = element("span", { class: token.kind }, token.text || " ");
      cell.dataset.detail = description(token, "");
      cells.push(cell);
      continue;
    }
    if (count % codesPerSide === 0) cells.push(element("i", { class: "row" }));
    if (count === 0) image += 1;
    const cell = element("span", { class: "code" });
    cell.style.setProperty("--hue", String((token.id * HUE) % 360));
    cell.dataset.detail = description(token, `, row ${Math.floor(count / codesPerSide) + 1}, column ${(count % codesPerSide) + 1}`);
    cell.dataset.place = `${image}:${count}`;
    cells.push(cell);
    count += 1;
  }
  const label = `${tokens.length} tokens of this turn; the arrow keys move between them`;
  const strip = element("div", { class: "strip", role: "group", tabindex: 0, "aria-label": label }, ...cells);
  strip.dataset.side = codesPerSide;
  strip.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: codesPerSide, ArrowUp: -codesPerSide }[event.key];
    if (!step) return;
    event.preventDefault();
    const all = [...strip.querySelectorAll("span")];
    const current = all.findIndex((cell) => cell.classList.contains("current"));
    show(all[Math.min(all.length - 1, Math.max(0, current + (current < 0 ? 1 : step)))]);
  });
  return strip;
}

// Mark a cell in its strip and on its image, and describe it.
function show(cell) {
  for (const other of document.querySelectorAll(".strip .current")) other.classList.remove("current");
  for (const mark of document.querySelectorAll(".frame .mark")) mark.hidden = true;
  cell.classList.add("current");
  cell.title = at("detail").textContent = cell.dataset.detail;
  if (!cell.dataset.place) return;
  const [image, place] = cell.dataset.place.split(":").map(Number);
  const turn = cell.closest(".turn");
  const frame = turn.querySelectorAll(".body .frame")[image];
  if (!frame) return;
  const side = Number(cell.closest(".strip").dataset.side);
  const mark = frame.querySelector(".mark");
  mark.hidden = false;
  mark.style.setProperty("--side", String(side));
  mark.style.setProperty("--column", String(place % side));
  mark.style.setProperty("--line", String(Math.floor(place / side)));
}

// The cell of an image under the pointer.
function cellAt(frame, event) {
  const turn = frame.closest(".turn");
  const strip = turn.querySelector(".strip");
  if (!strip) return null;
  const side = Number(strip.dataset.side);
  const box = frame.getBoundingClientRect();
  const column = Math.min(side - 1, Math.floor(((event.clientX - box.left) / box.width) * side));
  const row = Math.min(side - 1, Math.floor(((event.clientY - box.top) / box.height) * side));
  const image = [...turn.querySelectorAll(".body .frame")].indexOf(frame);
  return strip.querySelector(`[data-place="${image}:${row * side + column}"]`);
}

at("turns").addEventListener("pointermove", (event) => {
  const frame = event.target.closest?.(".frame");
  const cell = frame ? cellAt(frame, event) : event.target.closest?.(".strip span");
  if (cell && !cell.classList.contains("current")) show(cell);
});
