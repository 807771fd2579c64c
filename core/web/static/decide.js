// Keys on the quarantine's table: arrows move, space chooses, R releases, D drops, Z zooms. Without this script the
// boxes and the two buttons do the same.
const form = document.getElementById("table");
const tiles = () => [...form.querySelectorAll("li[data-id]")];

function move(from, step) {
  const all = tiles(), at = all.indexOf(from);
  const next = all[Math.min(Math.max(at + step, 0), all.length - 1)];
  if (next) { next.focus(); next.scrollIntoView({ block: "nearest" }); }
}

async function decide(tile, decision) {
  const data = new URLSearchParams({ form_token: form.elements.form_token.value, id: tile.dataset.id, decision });
  tile.classList.add("deciding");
  const answer = await fetch("/quarantine/decide", { method: "POST", body: data });
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  const said = page.querySelector("[role=status]")?.textContent ?? "";
  tile.classList.remove("deciding");
  if (!answer.ok || !said.startsWith("1 ")) { tile.title = said || "not decided"; tile.classList.add("failed"); return; }
  const all = tiles(), next = all[all.indexOf(tile) + 1] ?? all[all.indexOf(tile) - 1];
  const focused = document.activeElement === tile;
  tile.remove();
  if (!next) location.reload(); else if (focused) next.focus();
}

form?.addEventListener("keydown", (event) => {
  const tile = event.target.closest("li[data-id]");
  if (!tile || event.ctrlKey || event.metaKey || event.altKey) return;
  const columns = Math.max(1, Math.round(tile.parentElement.clientWidth / (tile.clientWidth + 12)));
  const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns };
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (key in steps) move(tile, steps[key]);
  else if (key === "r") decide(tile, "release");
  else if (key === "d") decide(tile, "drop");
  else if (key === "z") tile.classList.toggle("zoomed");
  else if (key === " " && event.target === tile) tile.querySelector("input").click();
  else return;
  event.preventDefault();
});
tiles()[0]?.focus({ preventScroll: true });
