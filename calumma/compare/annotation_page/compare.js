// One item at a time. Text is set as text, never as markup.
const at = (id) => document.getElementById(id);
const token = new URLSearchParams(location.search).get("token") ?? "";
let annotator = "";
let item = null;
let since = 0;

async function request(path, body) {
  const options = { headers: token ? { Authorization: `Bearer ${token}` } : {} };
  if (body) {
    options.method = "POST";
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  const response = await fetch(path, options);
  const content = await response.json();
  if (!response.ok) throw new Error(content.error ?? "The server rejected the request.");
  return content;
}

async function withErrors(work) {
  at("error").textContent = "";
  try {
    await work();
  } catch (error) {
    at("error").textContent = `${error.message} Your answers are kept; try again.`;
  }
}

function element(name, text) {
  const created = document.createElement(name);
  if (text !== undefined) created.textContent = text;
  return created;
}

function show(target, parts) {
  target.replaceChildren(...parts.map((part) => {
    if (part.type === "text") return element("span", part.text);
    const image = element("img");
    image.alt = "an image of the document";
    image.addEventListener("load", () => image.classList.toggle("small", image.naturalWidth < 200));
    image.src = part.url;
    return image;
  }));
}

function answerBox(parts, number, count) {
  const section = element("section");
  const heading = element("h2", count === 1 ? "The answer" : ["The first answer", "The second answer"][number]);
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

function currentAnswers() {
  return Object.fromEntries(new FormData(at("judgment")));
}

async function next() {
  const response = await request(`api/item?annotator=${encodeURIComponent(annotator)}`);
  item = response.item;
  at("progress").textContent = `${response.done} of ${response.total} judged by you`;
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
  if (annotator) withErrors(next);
});

at("judgment").addEventListener("change", () => {
  at("send").disabled = Object.keys(currentAnswers()).length < item.questions.length;
});

at("judgment").addEventListener("submit", (event) => {
  event.preventDefault();
  if (at("send").disabled) return;
  withErrors(async () => {
    const seconds = Math.min((performance.now() - since) / 1000, 86400);
    await request("api/judgment", { annotator, item: item.key, answers: currentAnswers(), seconds });
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
