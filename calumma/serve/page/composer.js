// The prompt editor: text areas with images between them.

import { at, element } from "./element.js";

const MAX_SIDE = 2048; // larger images are scaled down before they are sent
const container = at("parts");

function area(text = "") {
  const node = element("textarea", { rows: 1, "aria-label": "Prompt", placeholder: "Write here" });
  node.value = text;
  node.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      at("composer").requestSubmit();
    } else if (event.key === "Backspace" && node.selectionEnd === 0) {
      const before = node.previousElementSibling;
      if (before?.classList.contains("tile")) {
        event.preventDefault();
        remove(before);
      }
    }
  });
  node.addEventListener("focus", () => { last = node; });
  return node;
}

let last = null;

function tile(url) {
  const button = (label, sign, work) =>
    element("button", { type: "button", "aria-label": label, title: label, onclick: work }, sign);
  const node = element("div", { class: "tile" },
    element("img", { alt: "an image of your prompt", src: url }),
    element("div", {},
      button("Move the image forward", "◀", () => move(node, -1)),
      button("Remove the image", "✕", () => remove(node)),
      button("Move the image back", "▶", () => move(node, 1))));
  node.dataset.url = url;
  return node;
}

function move(node, by) {
  const other = by < 0 ? node.previousElementSibling : node.nextElementSibling;
  if (!other) return;
  if (by < 0) other.before(node); else other.after(node);
  tidy();
  node.querySelector(by < 0 ? "button" : "button:last-child").focus();
}

function remove(node) {
  node.remove();
  tidy();
  container.querySelector("textarea:last-of-type").focus();
}

// Merge adjacent text areas; keep one at the end and between images.
function tidy() {
  for (const child of [...container.children]) {
    const before = child.previousElementSibling;
    if (child.tagName === "TEXTAREA" && before?.tagName === "TEXTAREA") {
      before.value = [before.value, child.value].filter(Boolean).join("\n");
      child.remove();
      last = before;
    }
  }
  if (container.lastElementChild?.tagName !== "TEXTAREA") container.append(area());
}

export function setPrompt(parts) {
  container.replaceChildren(...parts.map((part) => part.type === "text" ? area(part.text) : tile(part.url)));
  tidy();
  const end = container.lastElementChild;
  end.focus();
  end.setSelectionRange(end.value.length, end.value.length);
}

export function promptParts() {
  return [...container.children]
    .map((child) => child.tagName === "TEXTAREA" ? { type: "text", text: child.value.trim() } : { type: "image", url: child.dataset.url })
    .filter((part) => part.type === "image" || part.text);
}

// Insert images at the cursor; the text after it continues after them.
async function insert(files) {
  const images = [...files].filter((file) => file.type.startsWith("image/"));
  const urls = await Promise.all(images.map(asURL));
  let after = last?.isConnected ? last : container.querySelector("textarea:last-of-type");
  const rest = after.value.slice(after.selectionStart);
  after.value = after.value.slice(0, after.selectionStart);
  for (const url of urls) {
    const node = tile(url);
    after.after(node);
    after = node;
  }
  if (!urls.length) return;
  const next = area(rest);
  after.after(next);
  for (const empty of container.querySelectorAll("textarea")) {
    if (empty !== next && !empty.value) empty.remove();
  }
  tidy();
  (next.isConnected ? next : container.lastElementChild).focus();
}

async function asURL(file) {
  let blob = file;
  try {
    const bitmap = await createImageBitmap(file);
    const scale = MAX_SIDE / Math.max(bitmap.width, bitmap.height);
    if (scale < 1) {
      const canvas = new OffscreenCanvas(Math.round(bitmap.width * scale), Math.round(bitmap.height * scale));
      canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
      blob = await canvas.convertToBlob({ type: "image/png" });
    }
  } catch { /* the server reports what is wrong with it */ }
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
  container.classList.add("over");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) container.classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  container.classList.remove("over");
  insert(event.dataTransfer.files);
});
