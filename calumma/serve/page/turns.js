// Turns on the page: parts in reading order, pictures growing, ids as cells.

import { at, element, picture } from "./element.js";

const HUE = 137.508; // the golden angle: neighbouring codes look unlike each other

export function shown(turn, actions) {
  const body = element("div", { class: "body" }, ...turn.parts.map(part));
  const bar = element("div", { class: "bar" }, ...actions.map(([label, work]) =>
    element("button", { type: "button", class: "plain", onclick: work }, label)));
  if (turn.facts) bar.append(element("span", { class: "facts" }, turn.facts));
  const made = element("li", { class: `turn ${turn.role}` },
    element("h2", {}, turn.role === "user" ? "You" : "Answer"), body, bar);
  if (turn.tokens) made.append(strip(turn.tokens, turn.codesPerSide));
  return made;
}

function part(told) {
  return told.type === "text" ? element("span", {}, told.text) : picture(told.url, "a picture");
}

// A turn that is still being written.
export class Growing {
  constructor(turn) {
    this.turn = turn;
    this.item = shown(turn, []);
    this.body = this.item.querySelector(".body");
    this.image = null;
  }

  text(piece) {
    const parts = this.turn.parts;
    if (parts.at(-1)?.type === "text") {
      parts.at(-1).text += piece;
      this.body.lastElementChild.textContent += piece;
    } else {
      parts.push({ type: "text", text: piece });
      this.body.append(element("span", {}, piece));
    }
  }

  partial(url, share) {
    if (!this.image) {
      this.image = picture(url, "a picture in the making");
      this.image.classList.add("growing");
      this.progress = element("progress", { max: 1, "aria-label": "codes of the picture" });
      this.body.append(this.image, this.progress);
    }
    this.image.src = url;
    this.progress.value = share;
  }

  done(url) {
    this.image?.remove();
    this.progress?.remove();
    this.image = this.progress = null;
    this.turn.parts.push({ type: "image", url });
    this.body.append(picture(url, "a picture"));
  }
}

export function strip(tokens, codesPerSide) {
  let count = 0;
  const cells = [];
  for (const token of tokens) {
    if (token.kind !== "code") {
      if (count) cells.push(element("i", { class: "row" }));
      count = 0;
      const cell = element("span", { class: token.kind }, token.text || " ");
      cell.dataset.told = `id ${token.id}: ${JSON.stringify(token.text)}`;
      cells.push(cell);
      continue;
    }
    if (count % codesPerSide === 0) cells.push(element("i", { class: "row" }));
    const cell = element("span", { class: "code" });
    cell.style.setProperty("--hue", String((token.id * HUE) % 360));
    cell.dataset.told =
      `id ${token.id}: code ${token.text}, row ${Math.floor(count / codesPerSide) + 1}, column ${(count % codesPerSide) + 1}`;
    cells.push(cell);
    count += 1;
  }
  const label = `${tokens.length} ids of this turn`;
  return element("div", { class: "strip", role: "img", "aria-label": label }, ...cells);
}

at("turns").addEventListener("pointerover", (event) => {
  const told = event.target.dataset?.told;
  if (told) event.target.title = at("detail").textContent = told;
});
