// The page: texts that were read, a text that is being read, its memory, and chats.

import { call, events, json, keepKey, onKeyNeeded } from "./api.js";
import { Chat, download, element, forget, fork } from "./chat.js";

const $ = (id) => document.getElementById(id);
const count = new Intl.NumberFormat("en").format;
const percent = (x) => `${Math.round(100 * x)}%`;
const mean = (list) => list.reduce((sum, x) => sum + x, 0) / Math.max(1, list.length);
const books = new Map(); // texts by session; in this tab alone
const TOPS = [0.1, 0.2, 0.5, 1]; // the possible values of the full height of a bar
const LARGEST_BOOK = 30e6; // bytes that are kept in the tab

let model = null;
let gates = null; // of each layer, those of its heads; null: a model without gates
let chats = [];
let sessions = [];
let before = 0; // tokens of the first event of a reading
let reading = null; // the AbortController of the text that is being read

function say(problem) {
  $("problem").hidden = !problem;
  $("problem").textContent = problem ?? "";
}

/** Runs what a user has asked for; its failure is shown. */
async function attempt(work) {
  say(null);
  try {
    return await work();
  } catch (error) {
    if (error.name !== "AbortError") say(error.message);
  }
}

onKeyNeeded((said) => {
  const dialog = $("ask-key");
  $("key-said").hidden = !said;
  $("key-said").textContent = said;
  $("key").value = "";
  dialog.showModal();
  return new Promise((resolve, reject) => {
    dialog.addEventListener("close", () => {
      if (!$("key").value) return reject(new Error("Reload the page to give a key."));
      keepKey($("key").value);
      resolve();
    }, { once: true });
  });
});
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  $("ask-key").close();
});
$("ask-key").addEventListener("cancel", () => ($("key").value = ""));

// Sessions

async function refresh() {
  sessions = (await json("/v1/sessions")).data;
  $("none").hidden = sessions.length > 0;
  $("sessions").replaceChildren(...sessions.map((session) => {
    const item = element("li");
    const button = element("button");
    button.type = "button";
    button.append(
      element("span", session.name || "untitled"),
      element("small", `${count(session.tokens)} tokens · ${size(session.bytes)}`),
    );
    button.setAttribute("aria-pressed", chats.some((chat) => chat.session.id === session.id));
    button.addEventListener("click", () => attempt(() => open(session)));
    item.append(button);
    return item;
  }));
  $("about").hidden = chats.length > 0 || reading !== null;
}

function size(bytes) {
  if (bytes < 1e6) return `${count(Math.ceil(bytes / 1e3))} kB`;
  return `${count(Math.round(bytes / 1e5) / 10)} MB`;
}

/** Opens a chat with a session, alone or next to those that are open. */
async function open(session, beside = false) {
  let chat = chats.find((one) => one.session.id === session.id);
  if (!beside) {
    for (const other of chats) if (other !== chat) other.close();
    chats = chats.filter((one) => one === chat);
  }
  if (!chat) {
    chat = new Chat(session, model, () => books.get(session.id), actions);
    chats.push(chat);
    $("panes").append(chat.root);
  }
  chat.input.focus();
  await refresh();
  const { used } = await json(`/v1/sessions/${session.id}/memory`);
  memory(used, session.name || "untitled");
}

const actions = {
  fork: (chat) => attempt(async () => {
    const made = await fork(chat.session);
    if (books.has(chat.session.id)) books.set(made.id, books.get(chat.session.id));
    await open(made, true);
  }),
  save: (chat) => attempt(() => download(chat.session)),
  forget: (chat) => attempt(async () => {
    if (!confirm(`Remove "${chat.session.name || "untitled"}" from the server?`)) return;
    await forget(chat.session);
    books.delete(chat.session.id);
    sessionStorage.removeItem(`talk ${chat.session.id}`);
    await actions.close(chat);
  }),
  close: async (chat) => {
    chat.close();
    chats = chats.filter((one) => one !== chat);
    if (!chats.length) $("memory").hidden = true;
    await attempt(refresh);
  },
};

// A text that is read

async function read(file) {
  if (reading) return say("A text is being read. Wait for its end, or cancel it.");
  const body = new FormData();
  body.append("file", file, file.name);
  if (file.name.endsWith(".state")) {
    body.append("name", file.name.slice(0, -".state".length));
    return open(await json("/v1/sessions/state", { method: "POST", body }));
  }
  body.append("stream", "true");
  for (const chat of chats) chat.close();
  chats = [];
  reading = new AbortController();
  $("about").hidden = true;
  $("reading").hidden = false;
  $("cancel").hidden = false;
  $("title").textContent = `Reading ${file.name}`;
  progress({ tokens: 0, share: 0, seconds: 0 });
  if (gates) memory(null, file.name);
  try {
    const response = await call("/v1/sessions", { method: "POST", body, signal: reading.signal });
    let last = null;
    for await (const event of events(response)) {
      if (event.object === "session.progress") progress(event, file.name);
      last = event;
    }
    if (file.size < LARGEST_BOOK) books.set(last.id, await file.text());
    $("bar").value = 1;
    $("share").textContent = "100%";
    $("title").textContent = `Has read ${file.name}`;
    $("cancel").hidden = true;
    await open(last);
  } catch (error) {
    $("reading").hidden = true;
    $("memory").hidden = true;
    throw error;
  } finally {
    reading = null;
    $("about").hidden = chats.length > 0;
  }
}

function progress({ tokens, share, seconds, used }, name) {
  $("bar").value = share;
  $("tokens").textContent = count(tokens);
  $("share").textContent = percent(share);
  $("seconds").textContent = seconds.toFixed(1);
  if (!seconds) before = tokens; // the time begins when these are read
  $("speed").textContent = seconds > 0.2 ? count(Math.round((tokens - before) / seconds)) : "–";
  if (used) memory(used, name);
}

// The memory: a bar for each layer, and a cell for the gate of each head

function memory(used, name) {
  $("memory").hidden = !used && !gates;
  if ($("memory").hidden) return;
  const layers = (gates ?? used).length;
  const filled = used?.map(mean) ?? Array(layers).fill(0);
  $("of").textContent = name;
  $("last").textContent = layers > 1 ? `layer ${layers}` : "";
  $("chart").style.maxWidth = `${4 * layers}rem`;
  $("filled").textContent = used ? `${percent(mean(filled))} in use` : "empty";
  $("bars").hidden = !used && !reading;
  const bars = $("bars");
  if (bars.childElementCount !== layers) {
    bars.replaceChildren(...filled.map(() => {
      const bar = element("span");
      bar.append(element("i"));
      return bar;
    }));
  }
  const top = TOPS.find((one) => one >= Math.max(...filled)) ?? 1;
  $("top").textContent = percent(top);
  filled.forEach((share, layer) => {
    bars.children[layer].title = `layer ${layer + 1}: ${percent(share)} in use`;
    bars.children[layer].firstChild.style.height = `${(100 * share) / top}%`;
  });
  const said = filled.map((share, layer) => `${layer + 1}: ${percent(share)}`).join(", ");
  bars.setAttribute("aria-label", `Memory in use by layer. ${said}`);
}

function drawGates() {
  $("gates").hidden = $("scale").hidden = !gates;
  if (!gates) return;
  $("gates").replaceChildren(...gates.map((heads, layer) => {
    const column = element("span");
    heads.forEach((gate, head) => {
      const cell = element("i");
      cell.style.setProperty("--gate", gate);
      cell.title = `layer ${layer + 1}, head ${head + 1}: gate ${gate.toFixed(2)}`;
      column.append(cell);
    });
    return column;
  }));
  const all = gates.flat();
  const range = `from ${Math.min(...all).toFixed(2)} to ${Math.max(...all).toFixed(2)}`;
  const by = gates.map((heads, layer) => `${layer + 1}: ${mean(heads).toFixed(2)}`).join(", ");
  $("gates").setAttribute("aria-label", `Gates ${range}. Means by layer: ${by}`);
}

// What the user does

$("file").addEventListener("change", () => {
  const [file] = $("file").files;
  $("file").value = "";
  if (file) attempt(() => read(file));
});
$("cancel").addEventListener("click", () => reading?.abort());
addEventListener("dragover", (event) => {
  event.preventDefault();
  $("drop").classList.add("over");
});
addEventListener("dragleave", () => $("drop").classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  const [file] = event.dataTransfer.files;
  if (file) attempt(() => read(file));
});

attempt(async () => {
  [model] = (await json("/v1/models")).data;
  gates = (await json("/v1/memory")).gates;
  $("model").textContent = `${model.id}, step ${count(model.step)}`;
  $("size").textContent = size(model.state_bytes);
  document.title = `${model.id} – infini_jax`;
  $("report").hidden = !model.report;
  drawGates();
  await refresh();
});
