// Settings of the page, kept in the browser.

import { at } from "./element.js";

const SETTINGS = ["modalities", "temperature", "guidance_scale", "max_tokens", "seed", "show-tokens"];
export const SAMPLING = ["temperature", "guidance_scale"]; // sent if changed; else the model's own apply

export const isSet = (id) => !SAMPLING.includes(id) || at(id).dataset.changed === "true";

export const value = (id) => at(id).type === "checkbox" ? at(id).checked : at(id).value;

// Sampling parameters that differ from the model's own.
export const sampling = () => Object.fromEntries(SAMPLING.filter(isSet).map((id) => [id, Number(value(id))]));

export const newSeed = () => value("seed") === "" ? Math.floor(Math.random() * 2 ** 31) : Number(value("seed"));

export function saveSettings() {
  localStorage.setItem("calumma.settings", JSON.stringify(Object.fromEntries(SETTINGS.filter(isSet).map((id) => [id, value(id)]))));
  sessionStorage.setItem("calumma.key", at("key").value);
  for (const output of document.querySelectorAll("output")) output.value = at(output.htmlFor.value).value;
}

export function loadSettings() {
  let settings = {};
  try {
    settings = JSON.parse(localStorage.getItem("calumma.settings") ?? "{}");
  } catch { /* the defaults apply */ }
  for (const id of SETTINGS) {
    if (!(id in settings)) continue;
    if (at(id).type === "checkbox") at(id).checked = settings[id];
    else at(id).value = settings[id];
    at(id).dataset.changed = "true";
  }
  at("key").value = sessionStorage.getItem("calumma.key") ?? "";
  saveSettings();
}
