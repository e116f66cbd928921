// Turns of the conversation: parts in reading order, partial images, tokens as cells.

import { at, element, imageElement } from "./element.js";

const HUE = 137.508; // the golden angle: adjacent codes get different colors

export function turnElement(turn, actions) {
  const body = element("div", { class: "body" }, ...turn.parts.map(part));
  if (turn.facts && !turn.parts.length) {
    body.append(element("span", { class: "quiet" }, "The model ended without an answer."));
  }
  const bar = element("div", { class: "bar" }, ...actions.map(([label, work]) =>
    element("button", { type: "button", class: "plain", onclick: work }, label)));
  if (turn.facts) bar.append(element("span", { class: "facts" }, turn.facts));
  const node = element("li", { class: `turn ${turn.role}` },
    element("h2", {}, turn.role === "user" ? "You" : "Answer"), body, bar);
  if (turn.tokens) node.append(tokenStrip(turn.tokens, turn.codesPerSide));
  return node;
}

function part(content) {
  return content.type === "text" ? element("span", {}, content.text) : imageElement(content.url, "an image");
}

// A turn that is being generated.
export class StreamingTurn {
  constructor(turn) {
    this.turn = turn;
    this.item = turnElement(turn, []);
    this.body = this.item.querySelector(".body");
    this.image = null;
  }

  text(delta) {
    const parts = this.turn.parts;
    if (parts.at(-1)?.type === "text") {
      parts.at(-1).text += delta;
      this.body.lastElementChild.textContent += delta;
    } else {
      parts.push({ type: "text", text: delta });
      this.body.append(element("span", {}, delta));
    }
  }

  partial(url, progress) {
    if (!this.image) {
      this.image = imageElement(url, "a partial image");
      this.image.classList.add("growing");
      this.progress = element("progress", { max: 1, "aria-label": "progress of the image" });
      this.body.append(this.image, this.progress);
    }
    this.image.src = url;
    this.progress.value = progress;
  }

  done(url) {
    this.image?.remove();
    this.progress?.remove();
    this.image = this.progress = null;
    this.turn.parts.push({ type: "image", url });
    this.body.append(imageElement(url, "an image"));
  }
}

export function tokenStrip(tokens, codesPerSide) {
  let count = 0;
  const cells = [];
  for (const token of tokens) {
    if (token.kind !== "code") {
      if (count) cells.push(element("i", { class: "row" }));
      count = 0;
      const cell = element("span", { class: token.kind }, token.text || " ");
      cell.dataset.detail = `token ${token.id}: ${JSON.stringify(token.text)}`;
      cells.push(cell);
      continue;
    }
    if (count % codesPerSide === 0) cells.push(element("i", { class: "row" }));
    const cell = element("span", { class: "code" });
    cell.style.setProperty("--hue", String((token.id * HUE) % 360));
    cell.dataset.detail =
      `token ${token.id}: code ${token.text}, row ${Math.floor(count / codesPerSide) + 1}, column ${(count % codesPerSide) + 1}`;
    cells.push(cell);
    count += 1;
  }
  const label = `${tokens.length} tokens of this turn`;
  return element("div", { class: "strip", role: "img", "aria-label": label }, ...cells);
}

at("turns").addEventListener("pointerover", (event) => {
  const detail = event.target.dataset?.detail;
  if (detail) event.target.title = at("detail").textContent = detail;
});
