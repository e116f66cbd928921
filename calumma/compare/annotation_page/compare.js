// One item at a time. Text is set as text, never as markup.
const at = (id) => document.getElementById(id);
const key = new URLSearchParams(location.search).get("key") ?? "";
let annotator = "";
let item = null;
let since = 0;

async function ask(path, body) {
  const options = { headers: { "X-Key": key } };
  if (body) {
    options.method = "POST";
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  const answer = await fetch(path, options);
  const told = await answer.json();
  if (!answer.ok) throw new Error(told.error ?? "The server did not take that.");
  return told;
}

async function trying(work) {
  at("error").textContent = "";
  try {
    await work();
  } catch (error) {
    at("error").textContent = `${error.message} Your answers are still here; try again.`;
  }
}

function element(name, text) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  return made;
}

function show(place, parts) {
  place.replaceChildren(...parts.map((part) => {
    if (part.type === "text") return element("span", part.text);
    const picture = element("img");
    picture.alt = "a picture of the document";
    picture.addEventListener("load", () => picture.classList.toggle("small", picture.naturalWidth < 200));
    picture.src = part.url;
    return picture;
  }));
}

function answerBox(parts, number, of) {
  const section = element("section");
  const heading = element("h2", of === 1 ? "The answer" : ["The first answer", "The second answer"][number]);
  const body = element("div");
  body.className = "document";
  show(body, parts);
  section.append(heading, body);
  return section;
}

function questionBox(question) {
  const fieldset = element("fieldset");
  const options = element("div");
  options.className = "options";
  question.options.forEach(([word, text], number) => {
    const label = element("label");
    const input = element("input");
    input.type = "radio";
    input.name = question.name;
    input.value = word;
    label.append(input, `${number + 1} · ${text}`);
    options.append(label);
  });
  fieldset.append(element("legend", question.text), options);
  return fieldset;
}

function given() {
  return Object.fromEntries(new FormData(at("judgment")));
}

async function next() {
  const told = await ask(`api/item?annotator=${encodeURIComponent(annotator)}`);
  item = told.item;
  at("progress").textContent = `${told.done} judged by you`;
  at("who").hidden = true;
  at("work").hidden = item === null;
  at("end").hidden = item !== null;
  if (item === null) return;
  show(at("prompt"), item.prompt);
  at("answers").replaceChildren(...item.answers.map((parts, n) => answerBox(parts, n, item.answers.length)));
  at("questions").replaceChildren(...item.questions.map(questionBox));
  at("send").disabled = true;
  since = performance.now();
  scrollTo(0, 0);
  at("questions").querySelector("input").focus({ preventScroll: true });
}

at("who").addEventListener("submit", (event) => {
  event.preventDefault();
  annotator = at("name").value.trim();
  if (annotator) trying(next);
});

at("judgment").addEventListener("change", () => {
  at("send").disabled = Object.keys(given()).length < item.questions.length;
});

at("judgment").addEventListener("submit", (event) => {
  event.preventDefault();
  if (at("send").disabled) return;
  trying(async () => {
    const seconds = Math.min((performance.now() - since) / 1000, 86400);
    await ask("api/judgment", { annotator, item: item.key, answers: given(), seconds });
    await next();
  });
});

document.addEventListener("keydown", (event) => {
  if (at("work").hidden || event.ctrlKey || event.metaKey || event.altKey) return;
  const boxes = [...at("questions").querySelectorAll("fieldset")];
  if (event.key === "Enter" && !at("send").disabled) {
    event.preventDefault();
    at("judgment").requestSubmit();
    return;
  }
  const box = boxes.find((each) => each.contains(document.activeElement)) ?? boxes[0];
  const input = box?.querySelectorAll("input")[Number(event.key) - 1];
  if (!input) return;
  event.preventDefault();
  input.click();
  const after = boxes[boxes.indexOf(box) + 1];
  (after?.querySelector("input") ?? at("send")).focus();
});
