// Export of a conversation: a self-contained HTML page, or a document in JSON.

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
    messages: conversation.turns.filter((turn) => turn.parts.length).map((turn) => ({ role: turn.role, content: content(turn.parts) })),
  };
  save("conversation.jsonl", "application/json", `${JSON.stringify(record)}\n`);
}

const STYLE =
  ":root{color-scheme:light dark}body{font:1.1rem/1.6 system-ui,sans-serif;max-width:44rem;margin:3rem auto;padding:0 1rem}" +
  "h2{font-size:.9rem;opacity:.7}section{white-space:pre-wrap}img{display:block;width:20rem;max-width:100%;image-rendering:pixelated}";

const escaped = (text) =>
  text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll('"', "&quot;");

// Built as text: a document created in this page would inherit its policy, which forbids inline styles.
export function asHTML(conversation) {
  const turns = conversation.turns.map((turn) => {
    const parts = turn.parts.map((part) =>
      part.type === "text" ? escaped(part.text) : `<img alt="an image" src="${escaped(part.url)}">`);
    return `<h2>${turn.role === "user" ? "Prompt" : "Answer"}</h2>\n<section>${parts.join("")}</section>`;
  });
  const head = `<meta charset="utf-8"><title>${escaped(conversation.title)}</title><style>${STYLE}</style>`;
  save("conversation.html", "text/html", `<!doctype html>\n<html lang="en">${head}\n${turns.join("\n")}\n</html>\n`);
}
