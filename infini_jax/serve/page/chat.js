// A chat with one session: questions, answers as they are written, and what helped them.

import { call, events, json, post } from "./api.js";
import { marked, passages, strength, words } from "./text.js";

const count = new Intl.NumberFormat("en").format;

export function element(name, text = "", kind = "") {
  const made = document.createElement(name);
  made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

/**
 * Every question starts from a fork of the session, so the session stays what was read. The
 * conversation is in this tab.
 */
export class Chat {
  /** `book` gives the text, if it is known; `actions`: of the buttons fork, save, forget, close. */
  constructor(session, model, book, actions) {
    this.session = session;
    this.model = model;
    this.book = book;
    this.turns = JSON.parse(sessionStorage.getItem(`talk ${session.id}`) ?? "[]");
    const root = document.getElementById("pane").content.cloneNode(true).firstElementChild;
    this.root = root;
    this.log = root.querySelector(".log");
    this.form = root.querySelector(".ask");
    this.input = root.querySelector("textarea");
    root.querySelector("h2").textContent = session.name || "untitled";
    root.setAttribute("aria-label", `Chat with ${session.name || "untitled"}`);
    const label = model.chat ? "Your question" : "Text that the model continues";
    this.input.setAttribute("aria-label", label);
    this.input.placeholder = model.chat ? "Ask about the text" : label;
    this.button = this.form.querySelector("button");
    if (!model.chat) this.button.textContent = "Continue";
    this.verb = this.button.textContent;
    root.querySelector("[name=tokens]").max = model.most_tokens;
    for (const button of root.querySelectorAll("[data-do]")) {
      button.addEventListener("click", () => actions[button.dataset.do](this));
    }
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.running) this.running.abort();
      else this.ask(this.input.value.trim());
    });
    this.input.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      if (!this.running) this.form.requestSubmit();
    });
    for (const turn of this.turns) {
      this.show("user", turn.question);
      this.below(this.show("assistant", turn.answer), turn);
    }
  }

  close() {
    this.running?.abort();
    this.root.remove();
  }

  /** What is before an answer, as fields of a request: all turns so far, and the question. */
  before(turns, question) {
    if (!this.model.chat) {
      return { prompt: turns.map((turn) => turn.question + turn.answer).join("") + question };
    }
    const messages = turns.flatMap((turn) => [
      { role: "user", content: turn.question },
      { role: "assistant", content: turn.answer },
    ]);
    return { messages: [...messages, { role: "user", content: question }] };
  }

  async ask(question) {
    if (!question) return;
    const asked = this.before(this.turns, question);
    const turn = { question, answer: "", tokens: [] };
    this.input.value = "";
    const said = this.show("user", question);
    const shown = this.show("assistant", "");
    shown.classList.add("busy");
    this.log.setAttribute("aria-busy", "true");
    const text = shown.querySelector(".text");
    this.running = new AbortController();
    this.button.textContent = "Stop";
    this.input.required = false;
    const started = performance.now();
    let first = 0;
    let failed = null;
    try {
      const path = this.model.chat ? "/v1/chat/completions" : "/v1/completions";
      const response = await post(path, { ...asked, ...this.how() }, this.running.signal);
      for await (const { choices } of events(response)) {
        const token = this.token(choices[0]);
        if (!token) continue;
        first ||= performance.now();
        turn.tokens.push(token);
        turn.answer += token.text;
        const low = this.log.scrollHeight - this.log.scrollTop - this.log.clientHeight < 60;
        text.textContent = turn.answer;
        if (low) this.log.scrollTop = this.log.scrollHeight;
      }
    } catch (error) {
      failed = error;
    }
    shown.classList.remove("busy");
    this.log.setAttribute("aria-busy", "false");
    this.running = null;
    this.button.textContent = this.verb;
    this.input.required = true;
    if (failed && failed.name !== "AbortError") {
      shown.append(element("p", failed.message, "problem"));
      shown.lastChild.setAttribute("role", "alert");
    }
    if (!turn.tokens.length) {
      said.remove();
      if (failed?.name === "AbortError") shown.remove();
      this.input.value = question;
      return;
    }
    if (failed) turn.said = failed.name === "AbortError" ? "stopped" : "broken off";
    turn.first = (first - started) / 1000;
    turn.speed = (1000 * (turn.tokens.length - 1)) / (performance.now() - first || 1);
    this.turns.push(turn);
    this.below(shown, turn);
    try {
      sessionStorage.setItem(`talk ${this.session.id}`, JSON.stringify(this.turns));
    } catch {
      // The browser cannot store more; the conversation continues, and is lost when the page is reloaded.
    }
  }

  /** How a question is asked, as fields of a request. */
  how() {
    const field = (name) => Number(this.root.querySelector(`[name=${name}]`).value);
    return {
      session: this.session.id,
      fork: true,
      stream: true,
      temperature: field("temperature"),
      max_tokens: Math.max(1, field("tokens")),
      seed: field("seed"),
      logprobs: this.model.chat ? true : 0,
    };
  }

  token(choice) {
    const told = choice?.logprobs;
    if (!told) return null;
    if (!this.model.chat) {
      return { text: choice.text, id: told.token_ids[0], logprob: told.token_logprobs[0] };
    }
    const [drawn] = told.content; // none in the first event
    return drawn ? { text: choice.delta.content, id: drawn.token_id, logprob: drawn.logprob } : null;
  }

  show(who, said) {
    const turn = element("div", "", `turn ${who}`);
    const text = element("p", said, "text");
    turn.append(text);
    this.log.append(turn);
    this.log.scrollTop = this.log.scrollHeight;
    return turn;
  }

  below(shown, turn) {
    const line = element("div", "", "below");
    const button = element("button", "What helped?");
    button.type = "button";
    const facts = [turn.said, `${count(turn.tokens.length)} tokens`];
    facts.push(`first after ${turn.first.toFixed(1)} s`);
    if (turn.tokens.length > 1) facts.push(`${turn.speed.toFixed(1)} tokens/s`);
    line.append(button, element("span", facts.filter(Boolean).join(" · ")));
    shown.append(line);
    button.addEventListener("click", async () => {
      button.disabled = true;
      button.textContent = "Reading the answer without the text …";
      try {
        await this.explain(shown, turn);
        button.remove();
      } catch (error) {
        button.disabled = false;
        button.textContent = "What helped?";
        line.append(element("span", error.message, "problem"));
      }
    });
  }

  /** Colours an answer by what the reading saved, and shows passages with the words it helped. */
  async explain(shown, turn) {
    const tokens = turn.tokens.map((token) => token.id);
    const asked = this.before(this.turns.slice(0, this.turns.indexOf(turn)), turn.question);
    const response = await post("/v1/scores", { ...asked, tokens });
    const found = words(turn.tokens, (await response.json()).logprobs);
    const text = shown.querySelector(".text");
    text.textContent = "";
    text.classList.add("colored");
    for (const { text: word, saved } of found) {
      const span = element("span", word, "word");
      const name = saved > 0 ? "--helped" : "--harmed";
      span.style.background = `rgb(var(${name}) / ${strength(saved).toFixed(2)})`;
      span.title = `${saved >= 0 ? "+" : "−"}${Math.abs(saved).toFixed(2)} nats`;
      text.append(span);
    }
    const sum = found.reduce((total, word) => total + word.saved, 0);
    const why = element("div", "", "why");
    const legend = element("p");
    const sample = (name, word) => {
      const span = element("span", word, "word");
      span.style.background = `rgb(var(${name}) / 0.5)`;
      return span;
    };
    legend.append(
      `The reading ${sum >= 0 ? "saved" : "cost"} ${Math.abs(sum).toFixed(1)} nats `,
      "of this answer's loss. ",
      sample("--helped", " Blue "), " words are likelier after the reading, ",
      sample("--harmed", " orange "), " words are less likely. The comparison is with the same " +
      "question to a model that has read nothing.",
    );
    why.append(legend);
    const book = this.book();
    const places = book ? passages(book, found) : [];
    let note = "No word that was helped by more than half a nat is in the text.";
    if (places.length) {
      note = "Passages of the text with the words that were helped most. They are found by these " +
        "words; the model does not tell where it has them from.";
    } else if (!book) {
      note = "Passages are shown only in the tab that has sent the text, until it is reloaded.";
    }
    why.append(element("p", note, "soft"));
    for (const { passage, found: which } of places) {
      const quote = element("blockquote");
      for (const { text: piece, is } of marked(passage, which)) {
        quote.append(is ? element("mark", piece) : piece);
      }
      why.append(quote);
    }
    shown.append(why);
  }
}

export async function download(session) {
  const blob = await (await call(`/v1/sessions/${session.id}/state`)).blob();
  const link = element("a");
  link.href = URL.createObjectURL(blob);
  link.download = `${session.name || "session"}.state`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

export const fork = async (session) => {
  const name = `${session.name || "untitled"} (fork)`.slice(0, 200);
  return (await post(`/v1/sessions/${session.id}/fork`, { name })).json();
};

export const forget = (session) => json(`/v1/sessions/${session.id}`, { method: "DELETE" });
