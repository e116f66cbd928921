// DOM helpers. Text is always set as text, never as markup.

export const at = (id) => document.getElementById(id);

export function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value === true) node.setAttribute(key, "");
    else if (value !== false && value !== undefined) node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}

export function imageElement(url, alt) {
  const node = element("img", { alt });
  // Images of a few pixels are scaled without smoothing.
  node.addEventListener("load", () => node.classList.toggle("small", node.naturalWidth < 200));
  node.src = url;
  return node;
}
