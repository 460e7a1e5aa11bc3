"use strict";

const find = (id) => document.getElementById(id);
const [form, picture, progress, draw, stop] = ["form", "picture", "progress", "draw", "stop"].map(find);
let running = null; // the controller of the newest request

const headers = () => (find("key").value ? { Authorization: `Bearer ${find("key").value}` } : {});

function say(text, isError = false) {
  find("status").className = isError ? "error" : "";
  // A screen reader says the same text again if it is set again.
  if (find("status").textContent !== text) find("status").textContent = text;
}

function show(source, isPreview) {
  if (picture.hidden) requestAnimationFrame(() => picture.scrollIntoView({ block: "nearest" }));
  picture.src = source;
  picture.hidden = false;
  picture.className = isPreview ? "preview" : "";
  picture.alt = isPreview ? "a preview" : form.prompt.value;
}

function count(step, steps) {
  progress.max = steps || 1;
  progress.value = step;
  find("steps").textContent = steps ? `${step} / ${steps}` : "";
}

const handlers = {
  // The queue counts this request too, until it is drawn.
  queued: ({ waiting }) => say(waiting > 1 ? `Waiting: ${waiting - 1} before this one.` : "Waiting: this one is next."),
  step({ step, steps }) {
    count(step, steps);
    say("Drawing.");
  },
  preview: ({ jpeg }) => show(`data:image/jpeg;base64,${jpeg}`, true),
  picture({ png, likeness, seed, photos }) {
    show(`data:image/png;base64,${png}`, false);
    const told = (likeness ?? []).map(({ cosine, word }) => (cosine === null ? word : `${cosine.toFixed(2)} (${word})`));
    const differ = ["weak", "none"].includes(photos?.alike?.word) ? " The photographs seem to show different people." : "";
    say(`Done. Likeness to the person: ${told.join(", ")}. Seed: ${seed}.${differ}`);
  },
  error: ({ error }) => say(named(error), true),
};

/** An error with names of files in place of the fields that hold them. */
function named(error) {
  return error.replace(/photos\.(\d+)/g, (field, number) => form.photos.files[number]?.name ?? field);
}

/** Call the handler of each Server-Sent Event of an answer, while its request is the newest. */
async function receive(answer, mine) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let [text, last] = ["", ""];
  for (;;) {
    const { done, value } = await reader.read();
    if (running !== mine) return;
    if (done) break;
    text += value;
    const events = text.split("\n\n");
    text = events.pop();
    for (const event of events) {
      const [, name, data] = event.match(/^event: (\w+)\ndata: (.*)$/s) ?? [];
      handlers[name]?.(JSON.parse(data));
      last = name ?? last;
    }
  }
  if (last !== "picture" && last !== "error") say("The answer ended without a picture: draw again.", true);
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  running?.abort();
  const mine = (running = new AbortController());
  const body = new FormData(form); // without the disabled field of the other choice
  body.delete("who");
  if (!body.get("seed")) body.set("seed", crypto.getRandomValues(new Uint32Array(1))[0]);
  stop.disabled = false;
  picture.hidden = true;
  count(0, 0);
  say("Sending.");
  try {
    const answer = await fetch("v1/pictures", {
      method: "POST",
      body,
      headers: { ...headers(), Accept: "text/event-stream" },
      signal: mine.signal,
    });
    if (answer.ok) await receive(answer, mine);
    else {
      // A proxy's own errors are no JSON.
      const { error } = await answer.json().catch(() => ({ error: `The service answers ${answer.status}: draw again.` }));
      if (running === mine) say(answer.status === 401 ? "The key is missing or wrong." : named(error), true);
      if (answer.status === 503) waitUntilReady();
    }
  } catch (error) {
    if (running !== mine) return;
    if (error.name === "AbortError") say("Stopped.");
    else say(`No answer: ${error.message}`, true);
  }
  if (running === mine) stop.disabled = true;
});

stop.addEventListener("click", () => running?.abort());

/** Send either photographs or a kept person, and show only what is sent. */
function choose() {
  if (form.who.value === "persons") listPersons();
  for (const name of ["photos", "persons"]) form[name].hidden = form[name].disabled = form.who.value !== name;
}

async function listPersons() {
  const answer = await fetch("v1/persons", { headers: headers() });
  const { persons } = answer.ok ? await answer.json() : { persons: [] };
  form.persons.replaceChildren(...persons.map((name) => new Option(name, name)));
  const why = answer.ok ? "none yet" : "their names need the key";
  find("kept").textContent = persons.length ? "A person kept here" : `A person kept here: ${why}`;
}

async function waitUntilReady() {
  for (;;) {
    const answer = await fetch("readyz").catch(() => null);
    if (answer?.ok) break;
    draw.disabled = true;
    const { error } = (await answer?.json().catch(() => null)) ?? { error: "The service does not answer." };
    say(error === "warming up" ? "The service warms up: a moment." : error, error !== "warming up");
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
  if (draw.disabled) say("Ready.");
  draw.disabled = false;
}

form.who.forEach((radio) => radio.addEventListener("change", choose));
find("key").addEventListener("change", listPersons);
choose();
listPersons();
waitUntilReady();
