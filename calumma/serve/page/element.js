// Making elements: text is always set as text, never as markup.

export const at = (id) => document.getElementById(id);

export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

export function picture(url, alt) {
  const made = element("img", { alt });
  // Pictures of a few pixels are shown as the pixels they are.
  made.addEventListener("load", () => made.classList.toggle("small", made.naturalWidth < 200));
  made.src = url;
  return made;
}
