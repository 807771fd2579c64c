// Boxes and strokes over one picture. Coordinates are pixels of the picture at its native size.
const canvas = document.getElementById("canvas"), pen = canvas.getContext("2d");
const { width: W, height: H } = { width: +canvas.dataset.width, height: +canvas.dataset.height };
const buttons = [...document.querySelectorAll("[data-mark]")], marks = buttons.map((b) => b.dataset.mark);
const colours = ["#ff4d4d", "#ffa940", "#ffe14d", "#5ee65e", "#4dd2ff", "#4d7dff", "#b366ff", "#ff66d9", "#ffffff", "#a0a0a0"];
const status = document.getElementById("state");
let shapes = JSON.parse(canvas.dataset.shapes).shapes.map(({ label, box, stroke, width }) => box ? { label, box } : { label, stroke, width });
let label = sessionStorage.getItem("label") ?? marks[1], tool = sessionStorage.getItem("tool") ?? "box", thick = +(sessionStorage.getItem("thick") ?? 3);
let past = [], chosen = -1, drag = null, done = canvas.dataset.done === "yes", saving = Promise.resolve();
let scale = Math.max(1, Math.min(4, (canvas.parentElement.clientWidth - 40) / W, 0.8 * innerHeight / H));
const image = new Image();

function draw() {
  canvas.width = Math.round(W * scale); canvas.height = Math.round(H * scale);
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  pen.imageSmoothingEnabled = false;
  pen.drawImage(image, 0, 0, W, H);
  [...shapes, ...(drag?.shape ? [drag.shape] : [])].forEach((shape, i) => {
    pen.strokeStyle = colours[marks.indexOf(shape.label)];
    pen.lineCap = pen.lineJoin = "round";
    pen.lineWidth = (i === chosen ? 3 : 1.5) / scale;
    if (shape.box) {
      const [x0, y0, x1, y1] = shape.box;
      pen.strokeRect(x0, y0, x1 - x0, y1 - y0);
    } else {
      pen.globalAlpha = i === chosen ? 0.9 : 0.6;
      pen.lineWidth = shape.width;
      pen.beginPath();
      shape.stroke.forEach(([x, y], j) => j ? pen.lineTo(x + 0.5, y + 0.5) : pen.moveTo(x + 0.5, y + 0.5));
      if (shape.stroke.length === 1) pen.lineTo(shape.stroke[0][0] + 0.51, shape.stroke[0][1] + 0.5);
      pen.stroke();
      pen.globalAlpha = 1;
    }
  });
  buttons.forEach((b) => b.setAttribute("aria-pressed", b.dataset.mark === label));
  document.getElementById("tool").firstChild.textContent = tool === "box" ? "Boxes " : `Strokes, ${thick} px `;
}

function change(next) {
  past.push(JSON.stringify(shapes));
  shapes = next;
  save();
}

function save() {
  draw();
  status.textContent = "saving";
  const sent = JSON.stringify(shapes), said = done ? "yes" : "no";
  saving = saving.catch(() => 0).then(async () => {
    const body = new URLSearchParams({ form_token: canvas.dataset.token, shapes: sent, done: said });
    const answer = await fetch(canvas.dataset.save, { method: "POST", body });
    if (!answer.ok) throw new Error(answer.status);
    document.getElementById("count").textContent = (await answer.json()).done;
    status.textContent = `${said === "yes" ? "done" : "open"}, saved`;
    return true;
  });
  saving.catch(() => { status.textContent = "NOT SAVED: load the page again"; status.className = "bad"; });
  return saving;
}

const point = (event) => {
  const place = canvas.getBoundingClientRect(), clip = (v, most) => Math.min(Math.max(Math.floor(v), 0), most - 1);
  return [clip((event.clientX - place.left) * W / place.width, W), clip((event.clientY - place.top) * H / place.height, H)];
};

function near(shape, [x, y]) {
  if (shape.box) return x >= shape.box[0] && x < shape.box[2] && y >= shape.box[1] && y < shape.box[3];
  const reach = shape.width / 2 + 2, ends = shape.stroke;
  return ends.some(([ax, ay], i) => {
    const [bx, by] = ends[Math.min(i + 1, ends.length - 1)], dx = bx - ax, dy = by - ay;
    const t = Math.min(1, Math.max(0, ((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy || 1)));
    return Math.hypot(x - ax - t * dx, y - ay - t * dy) <= reach;
  });
}

const area = (shape) => shape.box ? (shape.box[2] - shape.box[0]) * (shape.box[3] - shape.box[1]) : 0;

canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  drag = { from: point(event), shape: null };
});
canvas.addEventListener("pointermove", (event) => {
  if (!drag) return;
  const [x, y] = point(event), [ox, oy] = drag.from;
  if (!drag.shape && Math.hypot(x - ox, y - oy) < 2) return;
  if (tool === "box") drag.shape = { label, box: [Math.min(x, ox), Math.min(y, oy), Math.max(x, ox) + 1, Math.max(y, oy) + 1] };
  else {
    const stroke = drag.shape?.stroke ?? [drag.from], [lx, ly] = stroke.at(-1);
    if (Math.hypot(x - lx, y - ly) >= 3) drag.shape = { label, stroke: [...stroke, [x, y]], width: thick };
  }
  draw();
});
canvas.addEventListener("pointerup", (event) => {
  if (!drag) return;
  const shape = drag.shape;
  drag = null;
  if (shape) { chosen = -1; change([...shapes, shape]); return; }
  const at = point(event), under = shapes.map((s, i) => [area(s), i]).filter(([, i]) => near(shapes[i], at));
  chosen = under.length ? under.sort((a, b) => a[0] - b[0])[0][1] : -1;
  draw();
});
canvas.addEventListener("pointercancel", () => { drag = null; draw(); });

function setLabel(next) {
  label = next;
  sessionStorage.setItem("label", next);
  if (chosen >= 0) change(shapes.map((s, i) => i === chosen ? { ...s, label } : s)); else draw();
}
function undo() { if (past.length) { shapes = JSON.parse(past.pop()); chosen = -1; save(); } }
function remove() { if (chosen >= 0) { const at = chosen; chosen = -1; change(shapes.filter((_, i) => i !== at)); } }
function switchTool() { tool = tool === "box" ? "stroke" : "box"; sessionStorage.setItem("tool", tool); draw(); }
function thicken(by) { thick = Math.min(200, Math.max(1, thick + by)); sessionStorage.setItem("thick", thick); draw(); }
function zoom(by) { scale = Math.min(8, Math.max(0.25, scale * by)); draw(); }
async function go(address) { try { await saving; location.href = address; } catch { /* said in the status */ } }
async function finish() { done = true; try { await save(); go(canvas.dataset.after); } catch { /* said in the status */ } }

buttons.forEach((b) => b.addEventListener("click", () => { setLabel(b.dataset.mark); canvas.focus(); }));
const actions = { tool: switchTool, undo, delete: remove, done: finish };
for (const [id, act] of Object.entries(actions)) document.getElementById(id).addEventListener("click", () => { act(); canvas.focus(); });

document.addEventListener("keydown", (event) => {
  if (event.altKey || event.metaKey || (event.ctrlKey && event.key !== "z")) return;
  if (event.key === "Enter" && event.target.closest("a, button")) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (/^[0-9]$/.test(key)) setLabel(marks[(+key + 9) % 10]);
  else if (key === "z" || key === "u") undo();
  else if (key === "Delete" || key === "Backspace") remove();
  else if (key === "s") switchTool();
  else if (key === "[" || key === "]") thicken(key === "[" ? -1 : 1);
  else if (key === "+" || key === "=" || key === "-") zoom(key === "-" ? 1 / 1.25 : 1.25);
  else if (key === "ArrowRight" || key === "n") go(canvas.dataset.after);
  else if (key === "ArrowLeft" || key === "p") go(canvas.dataset.before);
  else if (key === "Escape") { chosen = -1; drag = null; draw(); }
  else if (key === "Enter") finish();
  else return;
  event.preventDefault();
});

image.addEventListener("load", draw);
image.src = canvas.dataset.picture;
canvas.focus({ preventScroll: true });
