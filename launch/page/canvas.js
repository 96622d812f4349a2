// The frame with its mask, to draw on.  gr.HTML runs this once with `element`, `props`, `trigger` and `watch`.
// props.value, from Python: frame (address of a picture), width, height, ids (run lengths "id*count id*count ..."), t,
// drawable, fresh (of another video), colours ([id] -> [r, g, b]).  To Python: trigger("input", {t, w, h, ids, serial})
// when something was drawn, and trigger("select", {t, w, h, ids, serial, id, box: [x, y, w, h]}) when a box was; until the
// answer to a box has come, for WAIT ms at most, nothing can be drawn.
const find = (selector) => element.querySelector(selector);
const canvas = find(".mask"), pen = canvas.getContext("2d"), before = [];  // masks to go back to
const tints = new Uint32Array(256);  // of each id, the four bytes of a pixel
let ids = new Uint8Array(0), sent = 0, shown = -1, pixels = null, tool = "brush", object = 1, start = null, last = null;
const WAIT = 5000;
let waiting = 0;  // for the answer to a box, until this time

function packed() {
  const runs = [];
  for (let i = 0, from = 0; i < ids.length; i++)
    if (i + 1 === ids.length || ids[i + 1] !== ids[from]) {
      runs.push(ids[from] + "*" + (i + 1 - from));
      from = i + 1;
    }
  return runs.join(" ");
}

function unpack(runs) {
  let at = 0;
  for (const run of runs.split(" ")) {
    const [id, count] = run.split("*").map(Number);
    ids.fill(id, at, at += count);
  }
}

function paint(box) {
  const words = new Uint32Array(pixels.data.buffer);
  for (let i = 0; i < ids.length; i++) words[i] = tints[ids[i]];
  pen.putImageData(pixels, 0, 0);
  if (!box) return;
  pen.strokeStyle = "rgb(" + props.value.colours[object] + ")";
  pen.lineWidth = Math.max(2, canvas.width / 300);
  pen.strokeRect(...box);
}

function stamp(from, to, id) {
  const radius = find(".size").value / 2 * canvas.width / 800, steps = Math.ceil(Math.hypot(to.x - from.x, to.y - from.y));
  for (let step = 0; step <= steps; step++) {
    const x0 = from.x + (to.x - from.x) * step / (steps || 1), y0 = from.y + (to.y - from.y) * step / (steps || 1);
    for (let y = Math.max(0, Math.ceil(y0 - radius)); y <= Math.min(canvas.height - 1, y0 + radius); y++) {
      const half = Math.sqrt(radius * radius - (y - y0) * (y - y0));
      const left = Math.max(0, Math.round(x0 - half)), right = Math.min(canvas.width, Math.round(x0 + half) + 1);
      ids.fill(id, y * canvas.width + left, y * canvas.width + Math.max(left, right));
    }
  }
}

function buttons() {
  const objects = find(".objects"), count = Math.min(254, Math.max(object, ids.reduce((a, b) => Math.max(a, b), 0)) + 1);
  objects.replaceChildren(...Array.from({ length: count }, (_, i) => {
    const button = document.createElement("button"), [r, g, b] = props.value.colours[i + 1];
    button.textContent = button.dataset.object = i + 1;
    button.title = "object " + (i + 1);
    button.style.background = "rgb(" + [r, g, b] + ")";
    button.style.color = 0.3 * r + 0.6 * g + 0.1 * b > 140 ? "black" : "white";
    button.classList.toggle("chosen", i + 1 === object);
    return button;
  }));
  element.querySelectorAll("[data-tool]").forEach((b) => b.classList.toggle("chosen", b.dataset.tool === tool));
}

function show() {
  const value = props.value;
  if (!value) return;
  find(".frame").src = value.frame;
  find(".stage").classList.toggle("still", !value.drawable);
  find(".stage").style.width = "min(100%, " + 62 * value.width / value.height + "vh)";
  canvas.width = value.width;
  canvas.height = value.height;
  pixels = pen.createImageData(value.width, value.height);
  ids = new Uint8Array(value.width * value.height);
  unpack(value.ids);
  new Uint8Array(tints.buffer).set(value.colours.flatMap((colour, id) => [...colour, id ? 140 : 0]));
  if (value.t !== shown || value.fresh) before.length = 0;
  shown = value.t;
  start = null;
  waiting = 0;
  paint();
  buttons();
}

function place(event) {
  const area = canvas.getBoundingClientRect();
  return { x: (event.clientX - area.left) / area.width * canvas.width, y: (event.clientY - area.top) / area.height * canvas.height };
}

function mask() {
  return { t: props.value.t, w: canvas.width, h: canvas.height, ids: packed(), serial: ++sent };
}

function changed() {
  paint();
  buttons();
  trigger("input", mask());
}

function boxed(a, b) {
  const clip = (value, most) => Math.round(Math.min(Math.max(value, 0), most));
  const [x0, x1] = [clip(Math.min(a.x, b.x), canvas.width), clip(Math.max(a.x, b.x), canvas.width)];
  const [y0, y1] = [clip(Math.min(a.y, b.y), canvas.height), clip(Math.max(a.y, b.y), canvas.height)];
  return [x0, y0, x1 - x0, y1 - y0];
}

function move(event) {
  if (!start) return;
  const now = place(event);
  if (tool !== "box") stamp(last, now, tool === "eraser" ? 0 : object);
  paint(tool === "box" ? boxed(start, now) : null);
  last = now;
}

canvas.addEventListener("pointermove", move);

canvas.addEventListener("pointerdown", (event) => {
  if (!props.value?.drawable || Date.now() < waiting || event.button) return;
  event.preventDefault();
  canvas.setPointerCapture(event.pointerId);
  start = last = place(event);
  before.push(ids.slice());
  if (before.length > 20) before.shift();
  move(event);
});

for (const end of ["pointerup", "pointercancel"])
  canvas.addEventListener(end, () => {
    if (!start) return;
    const box = boxed(start, last);
    start = null;
    if (tool !== "box") return changed();
    waiting = Date.now() + WAIT;
    trigger("select", { ...mask(), id: object, box });
  });

element.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button || !props.value) return;
  if (button.dataset.object) object = Number(button.dataset.object);
  if (button.dataset.tool) tool = button.dataset.tool;
  if (button.dataset.object && tool === "eraser") tool = "brush";
  buttons();
  if (!props.value.drawable || Date.now() < waiting) return;
  if (button.matches(".clear")) {
    before.push(ids.slice());
    ids.fill(0);
    changed();
  }
  if (button.matches(".undo") && before.length) {
    ids = before.pop();
    changed();
  }
});

watch("value", show);
show();
