// Keeps a page as it is on the server, without reloading it.
//
// The server says by SSE that something changed (ids, never content); the page is fetched again and every element
// with `data-live` and an id is exchanged where it differs. So there is one template for the first view and for every
// later one, and a page reads the same without this script.

const state = document.getElementById("live-state");
const say = (text) => { if (state) state.textContent = text; };

// ---- times: `<time data-ago>` and `<time data-until>` in seconds since 1970, in the reader's words
const ago = (seconds) => {
  if (seconds < 5) return "now";
  if (seconds < 90) return `${seconds} s ago`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min ago`;
  if (seconds < 129600) return `${Math.round(seconds / 3600)} h ago`;
  return `${Math.round(seconds / 86400)} days ago`;
};
const tick = () => {
  const now = Math.floor(Date.now() / 1000);
  for (const e of document.querySelectorAll("time[data-ago]")) e.textContent = ago(Math.max(0, now - e.dataset.ago));
  for (const e of document.querySelectorAll("time[data-until]")) {
    e.textContent = `${Math.max(0, e.dataset.until - now)} s`;
  }
};
tick();
setInterval(tick, 1000);

// ---- exchange what changed
let fetching = false, again = false;
async function refresh() {
  if (fetching) { again = true; return; }
  fetching = true;
  try {
    const answer = await fetch(location.href, { credentials: "same-origin", headers: { "x-copal-live": "1" } });
    if (answer.redirected || answer.status === 401) { location.reload(); return; }
    if (!answer.ok) return;
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    for (const part of fresh.querySelectorAll("[data-live][id]")) {
      const old = document.getElementById(part.id);
      if (!old || old.dataset.stamp === part.dataset.stamp && old.isEqualNode(part)) continue;
      const bare = (e) => { const c = e.cloneNode(true); c.classList.remove("changed"); for (const t of c.querySelectorAll("time")) t.textContent = ""; for (const t of c.querySelectorAll(".changed")) t.classList.remove("changed"); return c; };
      if (bare(old).isEqualNode(bare(part))) continue;
      const rows = new Map([...old.querySelectorAll("tr[id]")].map((r) => [r.id, bare(r)]));
      const next = document.importNode(part, true);
      old.replaceWith(next);
      for (const row of next.querySelectorAll("tr[id]")) {
        if (!rows.has(row.id) || !rows.get(row.id).isEqualNode(bare(row))) row.classList.add("changed");
      }
    }
    tick();
  } catch { /* the stream says when the cloud is away */ } finally {
    fetching = false;
    if (again) { again = false; setTimeout(refresh, 150); }
  }
}

const root = document.body.dataset;
if (root.events) {
  let timer = null;
  const soon = () => { timer ??= setTimeout(() => { timer = null; refresh(); }, 120); };
  let lost = false;
  const stream = new EventSource(root.events);
  stream.onopen = () => { say("live"); if (lost) refresh(); lost = false; };
  stream.onerror = () => { say("connection lost; trying again"); lost = true; };
  for (const kind of ["device", "release", "build", "fleet", "reset"]) stream.addEventListener(kind, soon);
  // Online and offline are a matter of time, which no event tells.
  setInterval(refresh, 30000);
}

// ---- a build's log, as it grows
const log = document.getElementById("build-log");
if (log?.dataset.follow) {
  (async () => {
    const answer = await fetch(log.dataset.follow, { credentials: "same-origin" });
    if (!answer.ok) return;
    log.textContent = "";
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      const atEnd = log.scrollTop + log.clientHeight >= log.scrollHeight - 40;
      log.append(value);
      if (atEnd) log.scrollTop = log.scrollHeight;
    }
    refresh();
  })();
}

// ---- keyboard
let prefix = "";
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, textarea, select")) return;
  const go = (id) => { const link = document.getElementById(id); if (link) location.href = link.href; };
  if (prefix === "g") {
    prefix = "";
    if (event.key === "o") go("go-overview");
    if (event.key === "d") go("go-devices");
    if (event.key === "r") go("go-releases");
    if (event.key === "s") go("go-systems");
    return;
  }
  if (event.key === "g") { prefix = "g"; setTimeout(() => { prefix = ""; }, 1000); }
  if (event.key === "/") { const box = document.querySelector("input[type=search]"); if (box) { event.preventDefault(); box.focus(); } }
  if (event.key === "?") document.getElementById("keys")?.showModal();
});
