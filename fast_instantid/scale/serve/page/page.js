"use strict";

const find = (id) => document.getElementById(id);
const [form, picture, progress, stop] = ["form", "picture", "progress", "stop"].map(find);
let running = null;

function headers() {
  const key = find("key").value;
  return key ? { Authorization: `Bearer ${key}` } : {};
}

function say(text, isError = false) {
  find("status").textContent = text;
  find("status").className = isError ? "error" : "";
}

function show(source, isPreview) {
  picture.src = source;
  picture.hidden = false;
  picture.className = isPreview ? "preview" : "";
  picture.alt = isPreview ? "a preview" : form.prompt.value;
}

const handlers = {
  queued: ({ waiting }) => say(`waiting, ${waiting} in the queue`),
  step({ step, steps }) {
    progress.max = steps;
    progress.value = step;
    say(`step ${step} of ${steps}`);
  },
  preview: ({ jpeg }) => show(`data:image/jpeg;base64,${jpeg}`, true),
  picture({ png, likeness, seed }) {
    show(`data:image/png;base64,${png}`, false);
    const told = (likeness ?? []).map(({ cosine, word }) => (cosine === null ? word : `${cosine.toFixed(2)} (${word})`));
    say(`likeness ${told.join(", ")}; seed ${seed}`);
  },
  error: ({ error }) => say(error, true),
};

/** Call the handler of each Server-Sent Event of an answer. */
async function receive(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    const events = text.split("\n\n");
    text = events.pop();
    for (const event of events) {
      const [, name, data] = event.match(/^event: (\w+)\ndata: (.*)$/s) ?? [];
      handlers[name]?.(JSON.parse(data));
    }
  }
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  running?.abort();
  running = new AbortController();
  const body = new FormData(form);
  if (!form.photos.files.length) body.delete("photos");
  if (!form.persons.value) body.delete("persons");
  stop.disabled = false;
  progress.value = 0;
  say("sending");
  try {
    const answer = await fetch("v1/pictures", {
      method: "POST",
      body,
      headers: { ...headers(), Accept: "text/event-stream" },
      signal: running.signal,
    });
    if (answer.ok) await receive(answer);
    else say((await answer.json()).error, true);
  } catch (error) {
    say(error.name === "AbortError" ? "stopped" : `no answer: ${error.message}`, true);
  }
  stop.disabled = true;
});

stop.addEventListener("click", () => running?.abort());

async function listPersons() {
  const answer = await fetch("v1/persons", { headers: headers() });
  if (!answer.ok) return;
  const { persons } = await answer.json();
  form.persons.replaceChildren(new Option("none", ""), ...persons.map((name) => new Option(name, name)));
}

async function listRoutes() {
  const { paths } = await (await fetch("openapi.json")).json();
  for (const [path, methods] of Object.entries(paths))
    for (const [method, { description, summary }] of Object.entries(methods)) {
      const row = document.createElement("li");
      row.textContent = `${method.toUpperCase()} ${path}: ${description ?? summary}`;
      find("routes").append(row);
    }
}

find("key").addEventListener("change", listPersons);
listPersons();
listRoutes();
