// A canvas of faces: draws their keypoints, and places and turns them with mouse and keyboard. It knows no host.
// SVG in place of a bitmap: sharp at each zoom of the graph, and its units are the pixels of the picture.

const NAMESPACE = "http://www.w3.org/2000/svg";
// As fast_instantid/faces/keypoints.py draws them: each point to the nose, lengths in pixels of the picture.
const LIMBS = [[0, 2], [1, 2], [3, 2], [4, 2]];
const [LIMB_HALF_WIDTH, DOT_RADIUS] = [4, 10];

const RANGES = { x: [0, 1], y: [0, 1], size: [0.02, 2], yaw: [-90, 90], pitch: [-90, 90] };
const KEYS = {
  ArrowLeft: ["x", -0.01], ArrowRight: ["x", 0.01], ArrowUp: ["y", -0.01], ArrowDown: ["y", 0.01],
  "+": ["size", 0.01], "=": ["size", 0.01], "-": ["size", -0.01],
  a: ["yaw", -5], d: ["yaw", 5], w: ["pitch", 5], s: ["pitch", -5],
  q: ["roll", -5], e: ["roll", 5], "[": ["roll", -5], "]": ["roll", 5],
};
const HINTS = [
  "Drag a face to move it, the corner to scale, the top to tilt, the nose (or Shift) to turn it. The wheel scales.",
  "Arrows move, + \u2212 scale, A D W S turn, Q E tilt, 0 front, Shift is finer. Tab chooses, Ins adds, Del removes.",
];
const STYLE = `
.instantid-poses { display: flex; flex-direction: column; gap: 4px; min-height: 300px; overflow: hidden;
  color: var(--input-text, #ddd); font: 11px/1.35 sans-serif; user-select: none; }
.instantid-poses div { display: flex; gap: 4px; }
.instantid-poses button, .instantid-poses select { flex: 0 0 auto; height: 24px; min-width: 28px; padding: 0 6px;
  font: inherit; color: inherit; background: var(--comfy-input-bg, #222); border: 1px solid var(--border-color, #666);
  border-radius: 4px; }
.instantid-poses select { flex: 1 1 auto; min-width: 0; }
.instantid-poses button:disabled { opacity: 0.4; }
.instantid-poses svg { flex: 1 1 0; width: 100%; min-height: 160px; touch-action: none; border-radius: 4px; }
.instantid-poses :focus-visible, .instantid-poses svg:focus {
  outline: 2px solid var(--p-primary-color, #4a9eff); outline-offset: -2px; }
.instantid-poses p { margin: 0; font-variant-numeric: tabular-nums; }
.instantid-poses p ~ p { color: var(--descrip-text, #999); }
.instantid-poses text { font-weight: bold; text-anchor: middle; stroke: #000; paint-order: stroke; }
.instantid-poses text, .instantid-poses line { pointer-events: none; }
.instantid-poses [data-face] { cursor: move; fill: transparent; }
.instantid-poses [data-handle] { cursor: grab; fill: #fff; stroke: #000; }
`;

/** Five keypoints of a pose in pixels, by the parallel projection of fast_instantid/people/pose.py. */
function keypointsOf(pose, model, width, height) {
  const [yaw, pitch, roll] = [pose.yaw, pose.pitch, pose.roll].map(radians);
  return model.map(([x, y, z]) => {
    const across = x * Math.cos(yaw) + z * Math.sin(yaw);
    const down = y * Math.cos(pitch) - (z * Math.cos(yaw) - x * Math.sin(yaw)) * Math.sin(pitch);
    const [u, v] = turned(across, down, roll);
    const scale = pose.size * Math.min(width, height);
    return [pose.x * width + u * scale, pose.y * height + v * scale];
  });
}

const radians = (degrees) => (degrees * Math.PI) / 180;
const turned = (x, y, angle) => [x * Math.cos(angle) - y * Math.sin(angle), x * Math.sin(angle) + y * Math.cos(angle)];

function within(name, value) {
  if (name === "roll") return Number(((((value + 180) % 360) + 360) % 360 - 180).toFixed(1));
  const [low, high] = RANGES[name];
  return Number(Math.min(Math.max(value, low), high).toFixed(high > 2 ? 1 : 4));
}

function add(parent, name, attributes = {}, text = "") {
  const isDrawn = name === "svg" || parent.namespaceURI === NAMESPACE;
  const element = document.createElementNS(isDrawn ? NAMESPACE : parent.namespaceURI, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text) element.textContent = text;
  parent.append(element);
  return element;
}

export class PoseCanvas {
  /**
   * @param spec of the input: `face`, the default pose; `model`, 3-D keypoints of a face of height 1; `colors` of the
   *   keypoints; `angles`, by name.
   * @param changed is called after each edit.
   */
  constructor(spec, changed) {
    Object.assign(this, { spec, changed, faces: [], chosen: 0, width: 1024, height: 1024 });
    const root = (this.element = document.createElement("div"));
    root.className = "instantid-poses";
    add(root, "style", {}, STYLE);
    const bar = add(root, "div");
    add(bar, "button", { title: "Add a face (Insert)", "aria-label": "Add a face" }, "+").onclick = () => this.insert();
    this.remover = add(bar, "button", { title: "Remove the face (Delete)", "aria-label": "Remove the face" }, "\u2212");
    this.remover.onclick = () => this.remove();
    this.angles = add(bar, "select", { title: "Angle of the face", "aria-label": "Angle of the face" });
    add(this.angles, "option", { value: "", hidden: true }, "angle \u2026");
    for (const value of Object.keys(spec.angles)) add(this.angles, "option", { value }, value);
    this.angles.onchange = () => this.turn(spec.angles[this.angles.value]);
    const said = { role: "application", "aria-label": "Poses of the faces", "aria-description": HINTS.join(" ") };
    const svg = (this.svg = add(root, "svg", { tabindex: 0, "data-capture-wheel": true, ...said }));
    this.ground = add(svg, "rect", { fill: "#000" });
    this.image = add(svg, "image", { preserveAspectRatio: "xMidYMid slice", opacity: 0.6 });
    this.layer = add(svg, "g");
    this.status = add(root, "p", { "aria-live": "polite" });
    for (const hint of HINTS) add(root, "p", {}, hint);
    root.addEventListener("keydown", (event) => this.key(event));
    svg.addEventListener("pointerdown", (event) => this.grab(event));
    svg.addEventListener("pointermove", (event) => this.drag(event));
    for (const name of ["pointerup", "pointercancel"]) svg.addEventListener(name, () => (this.held = null));
    svg.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    new ResizeObserver(() => this.draw()).observe(svg);
  }

  /** Show other poses: JSON. What cannot be read is kept, and shown as no face. */
  read(text) {
    this.text = text;
    const isPose = (face) =>
      face?.constructor === Object &&
      Object.entries(face).every(([name, value]) => Object.hasOwn(this.spec.face, name) && Number.isFinite(value));
    try {
      const given = JSON.parse(text);
      this.faces = given.every(isPose) ? given.map((face) => ({ ...this.spec.face, ...face })) : [];
    } catch {
      this.faces = [];
    }
    this.choose(this.chosen);
  }

  /** Show the size of the picture in pixels, and a background by its address. */
  show(width, height, background) {
    Object.assign(this, { width, height });
    if (background) this.image.setAttribute("href", background);
    else this.image.removeAttribute("href");
    this.draw();
  }

  write() {
    this.text = JSON.stringify(this.faces);
    this.draw();
    this.changed();
  }

  choose(number) {
    this.chosen = Math.max(0, Math.min(number, this.faces.length - 1));
    this.draw();
  }

  edit(changes) {
    if (!this.faces.length) return;
    for (const [name, value] of Object.entries(changes)) this.faces[this.chosen][name] = within(name, value);
    this.write();
  }

  turn = ([yaw, pitch, roll]) => this.edit({ yaw, pitch, roll });

  insert() {
    const { y, size } = this.faces[this.chosen] ?? this.spec.face;
    const room = (x) => Math.min(...this.faces.map((face) => Math.abs(face.x - x)));
    const x = [0.5, 0.25, 0.75, 0.1, 0.9, 0.35, 0.65].reduce((best, x) => (room(x) > room(best) + 0.01 ? x : best));
    this.chosen = this.faces.push({ ...this.spec.face, x, y, size }) - 1;
    this.write();
  }

  remove() {
    if (this.faces.length < 2) return; // a scene of nobody is an error
    this.faces.splice(this.chosen, 1);
    this.chosen = Math.min(this.chosen, this.faces.length - 1);
    this.write();
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return; // undo, save and run are the host's
    event.stopPropagation();
    if (event.target !== this.svg) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (key in KEYS) {
      const [name, step] = KEYS[key];
      const factor = event.shiftKey && key !== "+" ? 0.1 : 1; // + needs Shift on many keyboards
      if (this.faces.length) this.edit({ [name]: this.faces[this.chosen][name] + step * factor });
    } else if (key === "Tab") {
      const next = this.chosen + (event.shiftKey ? -1 : 1);
      if (!(next in this.faces)) return; // leaves the canvas
      this.choose(next);
    } else if (key === "0") this.turn([0, 0, 0]);
    else if (key >= "1" && key <= "9") this.choose(Number(key) - 1);
    else if (key === "Insert") this.insert();
    else if (key === "Delete" || key === "Backspace") this.remove();
    else if (key === "Escape") this.svg.blur();
    else return;
    event.preventDefault();
  }

  wheel(event) {
    if (document.activeElement !== this.svg || event.ctrlKey || !this.faces.length) return; // the host zooms
    event.preventDefault();
    event.stopPropagation();
    this.edit({ size: this.faces[this.chosen].size * 1.05 ** -Math.sign(event.deltaY) });
  }

  /** Place of an event in pixels of the picture, which is centred in the element. */
  at(event) {
    const box = this.svg.getBoundingClientRect();
    const scale = Math.min(box.width / this.width, box.height / this.height);
    return [
      (event.clientX - box.left - box.width / 2) / scale + this.width / 2,
      (event.clientY - box.top - box.height / 2) / scale + this.height / 2,
    ];
  }

  grab(event) {
    if (event.button !== 0) return;
    event.stopPropagation();
    this.svg.focus({ preventScroll: true });
    const { face, handle } = event.target.dataset;
    if (face === undefined) return;
    this.choose(Number(face));
    this.svg.setPointerCapture(event.pointerId);
    const how = handle ?? (event.shiftKey ? "turn" : "move");
    this.held = { start: { ...this.faces[this.chosen] }, from: this.at(event), how };
  }

  drag(event) {
    if (!this.held) return;
    const { start, from, how } = this.held;
    const to = this.at(event);
    const [across, down] = [to[0] - from[0], to[1] - from[1]];
    const middle = [start.x * this.width, start.y * this.height];
    const [before, after] = [from, to].map(([x, y]) => [x - middle[0], y - middle[1]]);
    if (how === "move") this.edit({ x: start.x + across / this.width, y: start.y + down / this.height });
    else if (how === "size") {
      this.edit({ size: (start.size * Math.hypot(...after)) / Math.max(Math.hypot(...before), 1) });
    } else if (how === "roll") {
      const angle = Math.atan2(after[1], after[0]) - Math.atan2(before[1], before[0]);
      this.edit({ roll: start.roll + (angle * 180) / Math.PI });
    } else {
      const [u, v] = turned(across, down, radians(-start.roll));
      const degrees = 180 / (start.size * Math.min(this.width, this.height)); // half a face turns it by 90
      this.edit({ yaw: start.yaw + u * degrees, pitch: start.pitch - v * degrees });
    }
  }

  draw() {
    const { width, height, svg, layer, faces, chosen } = this;
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    for (const element of [this.ground, this.image]) {
      element.setAttribute("width", width);
      element.setAttribute("height", height);
    }
    layer.replaceChildren();
    const points = faces.map((face) => keypointsOf(face, this.spec.model, width, height));
    for (const five of points) {
      for (const [start, end] of LIMBS) {
        const [[x0, y0], [x1, y1]] = [five[start], five[end]];
        const degrees = (Math.atan2(y1 - y0, x1 - x0) * 180) / Math.PI;
        const place = `translate(${(x0 + x1) / 2} ${(y0 + y1) / 2}) rotate(${degrees})`;
        const fill = `rgb(${this.spec.colors[start].map((value) => Math.trunc(value * 0.6))})`;
        add(layer, "ellipse", { rx: Math.hypot(x1 - x0, y1 - y0) / 2, ry: LIMB_HALF_WIDTH, transform: place, fill });
      }
    }
    points.flat().forEach(([cx, cy], i) => {
      add(layer, "circle", { cx, cy, r: DOT_RADIUS, fill: `rgb(${this.spec.colors[i % this.spec.colors.length]})` });
    });
    faces.forEach((_, number) => number !== chosen && this.outline(number));
    if (faces.length) this.outline(chosen, points[chosen][2]);
    this.tell();
  }

  /** The outline and the number of a face; with a nose, the handles of the chosen one. */
  outline(number, nose) {
    const { width, height, svg, layer } = this;
    const { x, y, size, roll } = this.faces[number];
    const pixel = Math.max(width / (svg.clientWidth || 1), height / (svg.clientHeight || 1)); // of the screen
    const [tall, angle] = [(size * Math.min(width, height)) / 2, radians(roll)];
    const wide = 0.74 * tall;
    const inside = (value, side) => Math.min(Math.max(value, 9 * pixel), side - 9 * pixel);
    const place = (across, down) => {
      const [u, v] = turned(across, down, angle);
      return [inside(x * width + u, width), inside(y * height + v, height)];
    };
    const middle = `translate(${x * width} ${y * height}) rotate(${roll})`;
    const line = { stroke: nose ? "#fff" : "#aaa", "stroke-width": (nose ? 1.5 : 1) * pixel };
    if (!nose) line["stroke-dasharray"] = `${4 * pixel} ${3 * pixel}`;
    add(layer, "ellipse", { rx: wide, ry: tall, transform: middle, ...line, "data-face": number });
    const [left, top] = place(-0.8 * wide, -0.8 * tall);
    const label = { x: left, y: top, fill: line.stroke, "font-size": 15 * pixel, "stroke-width": 3 * pixel };
    add(layer, "text", label, number + 1);
    if (!nose) return;
    const handle = (how, [cx, cy], attributes) => {
      const look = { cx, cy, r: 6 * pixel, "stroke-width": pixel, ...attributes };
      add(layer, "circle", { ...look, "data-face": number, "data-handle": how });
    };
    const [[x1, y1], [x2, y2]] = [place(0, -tall), place(0, -tall - 18 * pixel)];
    add(layer, "line", { x1, y1, x2, y2, ...line });
    handle("roll", [x2, y2]);
    handle("size", place(0.71 * wide, 0.71 * tall));
    if (tall > 36 * pixel) handle("turn", nose, { r: 8 * pixel, style: "fill: rgba(255,255,255,0.35); stroke: #fff" });
  }

  tell() {
    const face = this.faces[this.chosen];
    this.remover.disabled = this.faces.length < 2;
    const turns = String([face?.yaw, face?.pitch, face?.roll]);
    this.angles.value = Object.entries(this.spec.angles).find(([, angle]) => String(angle) === turns)?.[0] ?? "";
    const numbers = Object.entries(face ?? {}).map(([name, value]) => `${name} ${Number(value.toFixed(3))}`);
    this.status.textContent = face
      ? `Face ${this.chosen + 1} of ${this.faces.length}: ${numbers.join(", ")}`
      : "No face can be read here: + adds one.";
  }
}
