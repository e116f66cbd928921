// Turns of the conversation: parts in reading order, partial images, tokens, comparisons.

import { tokenStrip } from "./cells.js";
import { element, imageElement } from "./element.js";

export function turnElement(turn, actions) {
  const body = element("div", { class: "body" }, ...turn.parts.map((content) => part(content, turn.edit)));
  if (turn.facts && !turn.parts.length) {
    body.append(element("span", { class: "quiet" }, "The model ended without an answer."));
  }
  const bar = element("div", { class: "bar" }, ...actions.map(([label, work]) =>
    element("button", { type: "button", class: "plain", onclick: work }, label)));
  if (turn.facts) bar.append(element("span", { class: "facts" }, turn.facts));
  const node = element("li", { class: `turn ${turn.role}` },
    element("h2", {}, turn.role === "user" ? "You" : "Answer"), body, bar);
  if (turn.comparison) node.append(comparison(turn.comparison));
  if (turn.tokens) node.append(tokenStrip(turn.tokens, turn.codesPerSide));
  return node;
}

function part(content, edit) {
  return content.type === "text" ? element("span", {}, content.text) : frame(content.url, edit);
}

// An image with a mark for one of its cells, and with the cells of an edit.
function frame(url, edit) {
  const isMasked = edit?.cells.length > 0;
  const alt = isMasked ? `an image of which ${edit.cells.length} of ${edit.side ** 2} cells are to change` : "an image";
  const node = element("div", { class: "frame" }, imageElement(url, alt), element("i", { class: "mark", hidden: true }));
  if (isMasked) node.append(maskElement(edit));
  return node;
}

const CELL = 12; // pixels of a cell in the drawn mask

// The cells of an edit, striped as in the editor.
function maskElement({ cells, side }) {
  const size = side * CELL;
  const canvas = element("canvas", { width: size, height: size });
  const context = canvas.getContext("2d");
  context.beginPath();
  for (const cell of cells) context.rect((cell % side) * CELL, Math.floor(cell / side) * CELL, CELL, CELL);
  context.clip();
  context.fillStyle = "#fffc";
  context.fillRect(0, 0, size, size);
  context.beginPath();
  for (let start = -size; start < size; start += CELL / 2) {
    context.moveTo(start, size);
    context.lineTo(start + size, 0);
  }
  context.lineWidth = CELL / 5;
  context.strokeStyle = "#000";
  context.stroke();
  return canvas;
}

// The same prompt and seed at several guidance scales.
function comparison(images) {
  return element("div", { class: "comparison", role: "group", "aria-label": "Guidance scales compared" },
    ...images.map(({ scale, url }) => element("figure", {},
      url ? imageElement(url, `the image at guidance scale ${scale}`) : element("span", { class: "quiet" }, "no image"),
      element("figcaption", {}, `guidance ${scale}`))));
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
    this.body.append(frame(url));
  }
}
