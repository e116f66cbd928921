// The dialog that edits an image: cells are painted by pointer or keyboard, and an instruction is written.

import { at, element } from "./element.js";

const dialog = at("mask-editor");
const grid = at("mask-grid");

let side = 0; // cells of a row; 0 if the model takes no masks
let cells = []; // the elements of all cells, row by row
let current = 0; // the cell with the keyboard focus
let painting = null; // whether the pointer paints (true) or erases (false); null while it is up
let last = null; // the cell under the pointer before
let settle = null; // resolves the promise of the open dialog

const isPainted = (cell) => cell.getAttribute("aria-selected") === "true";
const paintedCells = () => cells.flatMap((cell, number) => isPainted(cell) ? [number] : []);

function setPainted(cell, painted) {
  cell.setAttribute("aria-selected", String(painted));
}

// Paint or erase the square of the brush's size around a cell.
function brush(number, painted) {
  const reach = (Number(at("mask-brush").value) - 1) / 2;
  const [row, column] = [Math.floor(number / side), number % side];
  for (let y = Math.max(0, row - reach); y <= Math.min(side - 1, row + reach); y++) {
    for (let x = Math.max(0, column - reach); x <= Math.min(side - 1, column + reach); x++) {
      setPainted(cells[y * side + x], painted);
    }
  }
}

function count() {
  const number = paintedCells().length;
  at("mask-count").textContent = number
    ? `${number} of ${cells.length} cells change; the others keep their codes.`
    : "No cell is painted: all of the image may change.";
}

function build(painted) {
  cells = Array.from({ length: side * side }, (_, number) => element("div", {
    role: "gridcell", tabindex: number ? -1 : 0, "aria-selected": String(painted.has(number)),
    "aria-label": `row ${Math.floor(number / side) + 1}, column ${number % side + 1}`,
  }));
  grid.style.setProperty("--side", String(side));
  grid.replaceChildren(...Array.from({ length: side }, (_, row) =>
    element("div", { role: "row" }, ...cells.slice(row * side, (row + 1) * side))));
  current = 0;
  count();
}

function focusCell(number) {
  cells[current].tabIndex = -1;
  current = number;
  cells[current].tabIndex = 0;
  cells[current].focus();
}

grid.addEventListener("keydown", (event) => {
  const [row, column] = [Math.floor(current / side), current % side];
  const target = {
    ArrowRight: [row, column + 1], ArrowLeft: [row, column - 1], ArrowDown: [row + 1, column], ArrowUp: [row - 1, column],
    Home: [row, 0], End: [row, side - 1],
  }[event.key];
  if (target) {
    const [y, x] = target.map((place) => Math.min(side - 1, Math.max(0, place)));
    const value = isPainted(cells[current]);
    focusCell(y * side + x);
    if (event.shiftKey) brush(current, value);
  } else if (event.key === " " || event.key === "Enter") {
    brush(current, !isPainted(cells[current]));
  } else {
    return;
  }
  event.preventDefault();
  count();
});

function cellAt(event) {
  const box = grid.getBoundingClientRect();
  const place = (offset, size) => Math.min(side - 1, Math.max(0, Math.floor((offset / size) * side)));
  return place(event.clientY - box.top, box.height) * side + place(event.clientX - box.left, box.width);
}

// Paint all cells on the line from the one before: a quick pointer skips some.
function paintTo(number) {
  const [fromRow, fromColumn] = [Math.floor(last / side), last % side];
  const [rows, columns] = [Math.floor(number / side) - fromRow, number % side - fromColumn];
  const steps = Math.max(1, Math.abs(rows), Math.abs(columns));
  for (let step = 0; step <= steps; step++) {
    brush((fromRow + Math.round((rows * step) / steps)) * side + fromColumn + Math.round((columns * step) / steps), painting);
  }
  last = number;
}

grid.addEventListener("pointerdown", (event) => {
  if (event.button) return;
  event.preventDefault();
  grid.setPointerCapture(event.pointerId);
  last = cellAt(event);
  painting = !isPainted(cells[last]);
  focusCell(last);
  paintTo(last);
});
grid.addEventListener("pointermove", (event) => { if (painting !== null) paintTo(cellAt(event)); });
for (const name of ["pointerup", "pointercancel"]) {
  grid.addEventListener(name, () => {
    painting = null;
    count();
  });
}

const forAll = (painted) => () => {
  for (const cell of cells) setPainted(cell, painted(cell));
  count();
};
at("mask-all").addEventListener("click", forAll(() => true));
at("mask-none").addEventListener("click", forAll(() => false));
at("mask-invert").addEventListener("click", forAll((cell) => !isPainted(cell)));
at("mask-cancel").addEventListener("click", () => dialog.close("cancel"));
at("mask-prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    at("mask-editor-form").requestSubmit(at("mask-send"));
  }
});

// Ask for an edit of an image: { prompt, cells, side, margin }, or null if the dialog is left.
export function askForEdit(url, codesPerSide, before = { prompt: "", cells: [], margin: 0 }) {
  side = codesPerSide ?? 0;
  at("mask-image").src = url;
  at("mask-prompt").value = before.prompt;
  at("mask-margin").value = String(before.margin);
  for (const part of dialog.querySelectorAll(".masks")) part.hidden = !side;
  at("mask-brush").value = side > 16 ? "3" : "1";
  build(new Set(before.cells));
  dialog.returnValue = "cancel";
  settle?.(null);
  dialog.showModal();
  return new Promise((resolve) => { settle = resolve; });
}

// The event comes after the dialog is closed, maybe after it is open again for another image.
dialog.addEventListener("close", () => {
  if (dialog.open) return;
  const edit = { prompt: at("mask-prompt").value.trim(), cells: paintedCells(), side, margin: Number(at("mask-margin").value) };
  settle?.(dialog.returnValue === "send" ? edit : null);
  settle = null;
});

function pngOf(canvas) {
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

function fileOf(url) {
  const [head, data] = url.split(",", 2);
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  return new Blob([bytes], { type: head.slice(5).split(";")[0] });
}

// The mask as the API takes it: of the image's size, transparent in the middle of each painted cell of its central square.
async function maskOf(url, { cells: painted, side: cellsPerSide }) {
  const image = element("img", { src: url });
  await image.decode();
  const { naturalWidth: width, naturalHeight: height } = image;
  const canvas = element("canvas", { width, height });
  const context = canvas.getContext("2d");
  context.fillRect(0, 0, width, height);
  const cell = Math.min(width, height) / cellsPerSide;
  const size = Math.max(1, Math.floor(cell / 2));
  const place = (number, length) => Math.floor((length - cell * cellsPerSide) / 2 + (number + 0.5) * cell - size / 2);
  for (const number of painted) {
    context.clearRect(place(number % cellsPerSide, width), place(Math.floor(number / cellsPerSide), height), size, size);
  }
  return pngOf(canvas);
}

// The form of /v1/images/edits.
export async function editForm(url, edit, fields) {
  const form = new FormData();
  form.append("image", fileOf(url), "image.png");
  form.append("prompt", edit.prompt);
  if (edit.cells.length) {
    form.append("mask", await maskOf(url, edit), "mask.png");
    form.append("mask_margin", String(edit.margin));
  }
  for (const [name, value] of Object.entries(fields)) form.append(name, String(value));
  return form;
}
