// The prompt in the making: text areas with pictures between them.

import { at, element } from "./element.js";

const MOST_SIDE = 2048; // larger pictures are made smaller before they travel
const place = at("parts");

function area(text = "") {
  const made = element("textarea", { rows: 1, "aria-label": "Prompt", placeholder: "Write here" });
  made.value = text;
  made.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      at("composer").requestSubmit();
    } else if (event.key === "Backspace" && made.selectionEnd === 0) {
      const before = made.previousElementSibling;
      if (before?.classList.contains("tile")) {
        event.preventDefault();
        remove(before);
      }
    }
  });
  made.addEventListener("focus", () => { last = made; });
  return made;
}

let last = null;

function tile(url) {
  const button = (label, sign, work) =>
    element("button", { type: "button", "aria-label": label, title: label, onclick: work }, sign);
  const made = element("div", { class: "tile" },
    element("img", { alt: "a picture of your prompt", src: url }),
    element("div", {},
      button("Move the picture forward", "◀", () => move(made, -1)),
      button("Remove the picture", "✕", () => remove(made)),
      button("Move the picture back", "▶", () => move(made, 1))));
  made.dataset.url = url;
  return made;
}

function move(made, by) {
  const other = by < 0 ? made.previousElementSibling : made.nextElementSibling;
  if (!other) return;
  if (by < 0) other.before(made); else other.after(made);
  tidy();
  made.querySelector(by < 0 ? "button" : "button:last-child").focus();
}

function remove(made) {
  made.remove();
  tidy();
  place.querySelector("textarea:last-of-type").focus();
}

// Two text areas side by side become one, and there is one at the end and between pictures.
function tidy() {
  for (const child of [...place.children]) {
    const before = child.previousElementSibling;
    if (child.tagName === "TEXTAREA" && before?.tagName === "TEXTAREA") {
      before.value = [before.value, child.value].filter(Boolean).join("\n");
      child.remove();
      last = before;
    }
  }
  if (place.lastElementChild?.tagName !== "TEXTAREA") place.append(area());
}

export function write(parts) {
  place.replaceChildren(...parts.map((part) => part.type === "text" ? area(part.text) : tile(part.url)));
  tidy();
  const end = place.lastElementChild;
  end.focus();
  end.setSelectionRange(end.value.length, end.value.length);
}

export function written() {
  return [...place.children]
    .map((child) => child.tagName === "TEXTAREA" ? { type: "text", text: child.value.trim() } : { type: "image", url: child.dataset.url })
    .filter((part) => part.type === "image" || part.text);
}

// Puts pictures where the cursor is; the text behind it goes on behind them.
async function insert(files) {
  const pictures = [...files].filter((file) => file.type.startsWith("image/"));
  const urls = await Promise.all(pictures.map(asURL));
  let after = last?.isConnected ? last : place.querySelector("textarea:last-of-type");
  const rest = after.value.slice(after.selectionStart);
  after.value = after.value.slice(0, after.selectionStart);
  for (const url of urls) {
    const made = tile(url);
    after.after(made);
    after = made;
  }
  if (!urls.length) return;
  const next = area(rest);
  after.after(next);
  for (const empty of place.querySelectorAll("textarea")) {
    if (empty !== next && !empty.value) empty.remove();
  }
  tidy();
  (next.isConnected ? next : place.lastElementChild).focus();
}

async function asURL(file) {
  let blob = file;
  try {
    const bitmap = await createImageBitmap(file);
    const share = MOST_SIDE / Math.max(bitmap.width, bitmap.height);
    if (share < 1) {
      const canvas = new OffscreenCanvas(Math.round(bitmap.width * share), Math.round(bitmap.height * share));
      canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
      blob = await canvas.convertToBlob({ type: "image/png" });
    }
  } catch { /* the server says what is wrong with it */ }
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

at("file").addEventListener("change", (event) => {
  insert(event.target.files);
  event.target.value = "";
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) {
    event.preventDefault();
    insert(event.clipboardData.files);
  }
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  place.classList.add("over");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) place.classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  place.classList.remove("over");
  insert(event.dataTransfer.files);
});
