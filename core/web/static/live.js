// Swaps the page's main part for a fresh one every few seconds, unless somebody is filling in a form or reading
// further down a picture. Without this script the page is complete and asks to be reloaded by hand.
const SECONDS = 4;
async function refresh() {
  const main = document.getElementById("live");
  const busy = main.contains(document.activeElement) && document.activeElement.matches("input, textarea, select, button, summary");
  if (!document.hidden && !busy && !main.querySelector("details[open] form")) {
    try {
      const answer = await fetch(location.href, { headers: { "X-Live": "1" } });
      if (answer.ok && !answer.redirected) {
        const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById("live");
        if (fresh && fresh.innerHTML !== main.innerHTML) main.innerHTML = fresh.innerHTML;
        document.body.classList.remove("stale");
      }
    } catch { document.body.classList.add("stale"); }
  }
  setTimeout(refresh, SECONDS * 1000);
}
setTimeout(refresh, SECONDS * 1000);
