"use strict";
{
const data = JSON.parse(document.getElementById("data").textContent);
const ROW = 18, LABEL = 20, AXIS = 24, FONT = "12px system-ui, sans-serif";

// --- words -----------------------------------------------------------------------------------------------------------

function digits(number) {
  return number.toFixed(Math.abs(number) >= 99.95 ? 0 : Math.abs(number) >= 9.995 ? 1 : 2);
}
function timeWords(ns) {
  for (const [unit, size] of [["s", 1e9], ["ms", 1e6]]) if (Math.abs(ns) >= 0.9995 * size) return `${digits(ns / size)} ${unit}`;
  return `${digits(ns / 1e3)} µs`;
}
function bytesWords(bytes) {
  for (const [unit, size] of [["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10]]) {
    if (bytes >= 0.9995 * size) return `${digits(bytes / size)} ${unit}`;
  }
  return `${bytes} B`;
}

// --- rows: for each run a lane for each thread and its GPU work, in a lane a row for each depth -------------------------

/** A row of the timeline; its spans do not overlap and are in order, so that they can be searched. */
class Row {
  constructor(top, run, onDevice) {
    Object.assign(this, { top, run, onDevice, spans: [], starts: [], ends: [] });
  }
  add(span, start, end) {
    this.spans.push(span);
    this.starts.push(start);
    this.ends.push(end);
  }
  /** Position of the first span that ends after a time. */
  firstAfter(time) {
    let low = 0, high = this.ends.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.ends[middle] > time) high = middle; else low = middle + 1;
    }
    return low;
  }
}

const rows = [], labels = [];
let height = AXIS;
let longest = 1;
for (const run of data.runs) {
  longest = Math.max(longest, run.duration);
  run.depth = [];
  run.parent.forEach((parent, span) => run.depth.push(parent < 0 ? 0 : run.depth[parent] + 1));
  const lanes = run.threads.map((name) => ({ name, spans: [], onDevice: false }));
  const queues = run.threads.map((name) => ({ name: `GPU, work of ${name}`, spans: [], onDevice: true }));
  run.name.forEach((_, span) => {
    lanes[run.thread[span]].spans.push(span);
    if (run.device[span]) queues[run.thread[span]].spans.push(span);
  });
  if (!run.name.length) {
    labels.push({ y: height, text: run.label });
    height += LABEL;
  }
  for (const lane of [...lanes, ...queues]) {
    if (!lane.spans.length) continue;
    labels.push({ y: height, text: [run.label, lane.name].filter(Boolean).join(": ") });
    height += LABEL;
    const byDepth = new Map();
    if (lane.onDevice) lane.spans.sort((a, b) => run.device[a][0] - run.device[b][0] || run.depth[a] - run.depth[b]);
    for (const span of lane.spans) {
      const depth = run.depth[span];
      if (!byDepth.has(depth)) byDepth.set(depth, new Row(0, run, lane.onDevice));
      const [start, end] = lane.onDevice ? run.device[span] : [run.start[span], run.start[span] + run.time[span]];
      byDepth.get(depth).add(span, start, end);
    }
    for (const depth of [...byDepth.keys()].sort((a, b) => a - b)) {
      const row = byDepth.get(depth);
      row.top = height;
      height += ROW;
      rows.push(row);
    }
    height += 6;
  }
}
height = Math.min(height, 16000);  // more than browsers draw

// --- drawing ---------------------------------------------------------------------------------------------------------

const canvas = document.querySelector("canvas");
const context = canvas.getContext("2d");
const whole = { from: 0, to: longest };
let view = { ...whole }, width = 0, colors = {};

const toX = (time) => ((time - view.from) / (view.to - view.from)) * width;
const toTime = (x) => view.from + (x / width) * (view.to - view.from);

function readColors() {
  const style = getComputedStyle(document.documentElement);
  const color = (name) => style.getPropertyValue(name).trim();
  colors = { text: color("--text"), dim: color("--dim"), line: color("--line"), on: color("--on-color") };
  colors.stages = Array.from({ length: 12 }, (_, number) => color(`--c${number}`));
}

function draw() {
  const ratio = window.devicePixelRatio || 1;
  width = canvas.clientWidth;
  canvas.style.height = `${height}px`;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  context.font = FONT;
  context.textBaseline = "middle";
  drawAxis();
  context.fillStyle = colors.dim;
  for (const { y, text } of labels) context.fillText(text, 0, y + LABEL / 2);
  rows.forEach(drawRow);
}

function drawAxis() {
  const about = ((view.to - view.from) / width) * 110;
  const power = 10 ** Math.floor(Math.log10(about));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= about);
  const [unit, size] = [["s", 1e9], ["ms", 1e6], ["µs", 1e3]].find(([, size]) => view.to >= size) || ["ns", 1];
  const decimals = Math.max(0, Math.ceil(-Math.log10(step / size) - 1e-9));
  for (let time = Math.ceil(view.from / step) * step; time <= view.to; time += step) {
    const x = Math.round(toX(time)) + 0.5;
    context.fillStyle = colors.line;
    context.fillRect(x, AXIS - 6, 1, height);
    context.fillStyle = colors.dim;
    const text = `${(time / size).toFixed(decimals)} ${unit}`;
    context.fillText(text, Math.min(x, width - context.measureText(text).width), AXIS / 2 - 2);
  }
}

function drawRow(row) {
  const last = row.spans.length;
  for (let at = row.firstAfter(view.from); at < last && row.starts[at] < view.to; ) {
    const name = row.run.name[row.spans[at]];
    const left = Math.max(0, toX(row.starts[at])), right = Math.min(width, toX(row.ends[at]));
    context.fillStyle = colors.stages[data.colors[name]];
    if (right - left < 1) {  // what begins and ends inside of one pixel is drawn once
      context.fillRect(Math.floor(left), row.top, 1, ROW - 2);
      at = Math.max(at + 1, row.firstAfter(toTime(Math.floor(left) + 1)));
      continue;
    }
    context.fillRect(left, row.top, Math.max(1, right - left - (right - left > 4 ? 1 : 0)), ROW - 2);
    if (right - left > 24) {
      context.fillStyle = colors.on;
      context.fillText(shortened(data.names[name], right - left - 10), left + 5, row.top + ROW / 2 - 0.5);
    }
    at++;
  }
}

function shortened(text, room) {
  if (context.measureText(text).width <= room) return text;
  const letters = Math.floor((text.length * room) / context.measureText(text).width) - 1;
  return letters > 1 ? `${text.slice(0, letters)}…` : "";
}

// --- pointing at a stage ---------------------------------------------------------------------------------------------

const tip = document.getElementById("tip");

/** The span under the pointer, with how many others share its pixel. */
function hit(x, y) {
  const row = rows.find(({ top }) => y >= top && y < top + ROW);
  if (!row) return null;
  const at = row.firstAfter(toTime(x - 1));
  if (at >= row.spans.length || row.starts[at] > toTime(x + 1)) return null;
  const next = row.firstAfter(toTime(x + 1));
  return { row, at, span: row.spans[at], others: Math.max(0, next - at - 1) };
}

function describe({ row, at, span, others }) {
  const { run } = row, names = [];
  for (let outer = run.parent[span]; outer >= 0; outer = run.parent[outer]) names.unshift(data.names[run.name[outer]]);
  const facts = { ...(run.facts[span] || {}) };
  const lines = [];
  if (names.length) lines.push(["inside", names.join(" > ")]);
  if (run.label) lines.push(["run", run.label]);
  lines.push(["begins at", timeWords(run.start[span])], ["on the host", timeWords(run.time[span])]);
  if (run.device[span]) {
    const [start, end] = run.device[span];
    lines.push(["on the GPU", `${timeWords(end - start)}, from ${timeWords(start)}`]);
  }
  for (const [name, value] of Object.entries(facts)) {
    if (name === "nbytes") lines.push(["bytes", bytesWords(value)]);
    else if (name === "allocated") lines.push(["allocated at its end", bytesWords(value)]);
    else if (name === "unfinished") lines.push(["cut off", "the recording ended, or the stage around it"]);
    else lines.push([name.replace("_", " "), String(value)]);
  }
  if (others) lines.push(["and", `${others} more here: zoom in`]);
  return { title: data.names[run.name[span]], lines };
}

function showTip(event) {
  const found = hit(event.offsetX, event.offsetY);
  tip.hidden = !found;
  if (!found) return;
  const { title, lines } = describe(found);
  const heading = document.createElement("b");
  heading.textContent = title;
  const table = document.createElement("table");
  for (const [name, value] of lines) {
    const line = table.insertRow();
    line.appendChild(document.createElement("th")).textContent = name;
    line.insertCell().textContent = value;
  }
  tip.replaceChildren(heading, table);
  tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8))}px`;
  const below = event.clientY + 18;
  tip.style.top = `${below + tip.offsetHeight > innerHeight ? event.clientY - tip.offsetHeight - 12 : below}px`;
}

// --- moving and zooming ----------------------------------------------------------------------------------------------

let waiting = false;
function show(from, to) {
  const span = Math.min(longest, Math.max(100, to - from));  // at least 100 ns
  const start = Math.min(Math.max(0, from), longest - span);
  view = { from: start, to: start + span };
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; draw(); });
}
function zoom(factor, x) {
  const time = toTime(x);
  show(time - (time - view.from) * factor, time + (view.to - time) * factor);
}
function move(pixels) {
  const time = (pixels / width) * (view.to - view.from);
  show(view.from + time, view.to + time);
}

canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  if (Math.abs(event.deltaX) > Math.abs(event.deltaY)) move(event.deltaX);
  else zoom(Math.exp(Math.max(-1, Math.min(1, event.deltaY / 300))), event.offsetX);
}, { passive: false });

let drag = null;
canvas.addEventListener("pointerdown", (event) => { drag = { x: event.clientX, moved: 0 }; });
canvas.addEventListener("pointermove", (event) => {
  if (!drag || !event.buttons) return showTip(event);
  tip.hidden = true;
  if (!drag.moved) canvas.setPointerCapture?.(event.pointerId);
  drag.moved += Math.abs(event.clientX - drag.x);
  move(drag.x - event.clientX);
  drag.x = event.clientX;
});
canvas.addEventListener("pointerup", (event) => {
  const found = drag && drag.moved < 4 && event.detail < 2 && hit(event.offsetX, event.offsetY);
  drag = null;
  if (!found) return;
  const start = found.row.starts[found.at], end = found.row.ends[found.at];
  show(start - (end - start) * 0.05, end + (end - start) * 0.05);
});
canvas.addEventListener("pointerleave", () => { tip.hidden = true; });
canvas.addEventListener("dblclick", () => show(whole.from, whole.to));
canvas.addEventListener("keydown", (event) => {
  const actions = {
    ArrowLeft: () => move(-width / 8), ArrowRight: () => move(width / 8), 0: () => show(whole.from, whole.to),
    "+": () => zoom(0.5, width / 2), "=": () => zoom(0.5, width / 2), "-": () => zoom(2, width / 2),
  };
  if (!actions[event.key] || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  actions[event.key]();
});
for (const button of document.querySelectorAll("[data-zoom]")) {
  const factor = Number(button.dataset.zoom);
  button.addEventListener("click", () => (factor ? zoom(factor, width / 2) : show(whole.from, whole.to)));
}

// --- folding the table -----------------------------------------------------------------------------------------------

const lines = [...document.querySelectorAll(".tree tbody tr")].map((row) => ({ row, depth: Number(row.dataset.depth) }));
function fold() {
  let hiddenBelow = Infinity;
  for (const { row, depth } of lines) {
    if (depth <= hiddenBelow) hiddenBelow = Infinity;
    row.hidden = depth > hiddenBelow;
    if (row.dataset.folded && !row.hidden) hiddenBelow = depth;
    const button = row.querySelector(".fold");
    if (!button) continue;
    button.textContent = row.dataset.folded ? "▸" : "▾";
    button.setAttribute("aria-expanded", String(!row.dataset.folded));
  }
}
lines.forEach(({ row, depth }, number) => {
  if (!(lines[number + 1]?.depth > depth)) return;
  const button = document.createElement("button");
  button.type = "button";
  button.className = "fold";
  button.setAttribute("aria-label", `stages inside ${row.querySelector("span").textContent}`);
  button.addEventListener("click", () => {
    row.dataset.folded = row.dataset.folded ? "" : "1";
    fold();
  });
  row.firstElementChild.prepend(button);
});
const foldAll = document.getElementById("fold");
foldAll.addEventListener("click", () => {
  const folded = foldAll.textContent === "fold all";
  foldAll.textContent = folded ? "unfold all" : "fold all";
  for (const { row, depth } of lines) if (depth > 0) row.dataset.folded = folded && row.querySelector(".fold") ? "1" : "";
  fold();
});
foldAll.hidden = !lines.some(({ depth }) => depth > 1);
fold();

document.getElementById("timeline").hidden = false;
readColors();
draw();
new ResizeObserver(() => draw()).observe(canvas.parentElement);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { readColors(); draw(); });
}
