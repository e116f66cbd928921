// A conversation as a file: a page that loads nothing, or a document of the project's format.

function save(name, type, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function content(parts) {
  return parts.map((part) => part.type === "text" ? part : { type: "image", base64: part.url.split(",", 2)[1] });
}

export function asJSON(conversation) {
  const record = {
    id: conversation.id,
    source: "calumma serve",
    messages: conversation.turns.map((turn) => ({ role: turn.role, content: content(turn.parts) })),
  };
  save("conversation.jsonl", "application/json", `${JSON.stringify(record)}\n`);
}

export function asHTML(conversation) {
  const page = document.implementation.createHTMLDocument(conversation.title);
  const style = page.createElement("style");
  style.textContent =
    ":root{color-scheme:light dark}body{font:1.1rem/1.6 system-ui,sans-serif;max-width:44rem;margin:3rem auto;padding:0 1rem}" +
    "h2{font-size:.9rem;opacity:.7}section{white-space:pre-wrap}img{display:block;width:20rem;max-width:100%;image-rendering:pixelated}";
  const charset = page.createElement("meta");
  charset.setAttribute("charset", "utf-8");
  page.head.append(charset, style);
  for (const turn of conversation.turns) {
    const heading = page.createElement("h2");
    heading.textContent = turn.role === "user" ? "Prompt" : "Answer";
    const section = page.createElement("section");
    for (const part of turn.parts) {
      const made = page.createElement(part.type === "text" ? "span" : "img");
      if (part.type === "text") made.textContent = part.text;
      else made.setAttribute("src", part.url);
      section.append(made);
    }
    page.body.append(heading, section);
  }
  save("conversation.html", "text/html", `<!doctype html>\n${page.documentElement.outerHTML}`);
}
