"use strict";
// What models, people and servers write is put into the page as text, never as HTML.

const API = new URL("v1/", location.origin + location.pathname.replace(/\/?$/, "/"));
const find = (selector, within = document) => within.querySelector(selector);
const say = (text) => { find("#status").textContent = text; };

// --- the endpoint

async function ask(path, body, signal) {
  const key = find("#key").value.trim();
  if (!/^[\x21-\x7e]*$/.test(key)) throw new Error("The API key has characters that no key has; enter it again under Settings.");
  const headers = { "Content-Type": "application/json" };
  if (key) headers.Authorization = `Bearer ${key}`;
  const options = { method: body ? "POST" : "GET", headers, signal, cache: "no-store" };
  if (body) options.body = JSON.stringify(body);
  const response = await fetch(new URL(path, API), options).catch((error) => {
    throw error.name === "AbortError" ? error : new Error("The server cannot be reached: it has stopped, or the network is down.");
  });
  if (!response.ok) throw new Error(await refusal(response, key));
  return response;
}

async function refusal(response, key) {
  const error = (await response.json().catch(() => null))?.error ?? {};
  const said = error.message ?? (response.statusText || "no reason given");
  if (response.status === 401) {
    return key ? `The server refuses the API key: ${said}` : "The server wants an API key: enter it under Settings.";
  }
  if (response.status === 429) {
    const wait = response.headers.get("Retry-After");
    return `Too much is asked for now: ${said}${wait && !/try again/i.test(said) ? ` Try again in ${wait} s.` : ""}`;
  }
  if (error.code === "context_length_exceeded") {
    return `${said} Nothing was left out to make it fit; begin a new conversation, or ask for less.`;
  }
  return `The server answers ${response.status}: ${said}`;
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  const broken = new Error("The answer broke off: the connection to the server is lost.");
  for (let rest = ""; ;) {
    const { done, value } = await reader.read().catch((error) => { throw error.name === "AbortError" ? error : broken; });
    if (done) throw broken;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice("data:".length).trim();
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Error(`The server failed: ${event.error.message}`);
      yield event;
    }
  }
}

function settings() {
  const fields = {};
  for (const [name, selector] of [["temperature", "#temperature"], ["max_tokens", "#tokens"]]) {
    const input = find(selector);
    if (!input.checkValidity()) throw new Error(`${input.labels[0].textContent.trim()}: ${input.validationMessage}`);
    if (input.value !== "") fields[name] = Number(input.value);
  }
  return fields;
}

// --- a column: a model, and what it and the person have said

class Column {
  constructor(title) {
    this.turns = [];
    this.root = find("#column").content.cloneNode(true).firstElementChild;
    this.select = find("select", this.root);
    this.log = find(".log", this.root);
    find(".choice span", this.root).textContent = title;
    this.log.setAttribute("aria-label", `Conversation: ${title}`);
    this.select.addEventListener("change", () => this.describe());
    find("#columns").append(this.root);
  }

  get model() { return this.select.value; }

  offer(cards, chosen, optional) {
    this.cards = cards;
    const before = this.model;
    this.select.replaceChildren(...(optional ? [new Option("nobody", "")] : []), ...cards.map((card) => new Option(card.id, card.id)));
    this.select.value = cards.some((card) => card.id === before) ? before : chosen;
    this.describe();
  }

  describe() {
    const card = this.cards.find((one) => one.id === this.model);
    const facts = card ? [card.max_model_len && `context ${card.max_model_len} tokens`, card.fingerprint] : [];
    find(".about", this.root).textContent = facts.filter(Boolean).join(" · ");
  }

  clear() {
    this.turns = [];
    this.log.replaceChildren();
  }

  show(kind, who, text) {
    const turn = document.createElement("article");
    turn.className = `turn ${kind}`;
    const parts = ["p", "pre", "p"].map((tag) => document.createElement(tag));
    parts[0].className = "who";
    parts[0].textContent = who;
    parts[1].textContent = text;
    turn.append(...parts);
    this.log.append(turn);
    this.log.scrollTop = this.log.scrollHeight;
    return { text: parts[1], note: parts[2] };
  }

  write(node, text) {
    const follows = this.log.scrollTop + this.log.clientHeight > this.log.scrollHeight - 40;
    node.append(text);
    if (follows) this.log.scrollTop = this.log.scrollHeight;
  }

  // Whether the question is now part of the conversation: it is once there is an answer to it, whole or stopped.
  async answer(question, system, fields, signal) {
    const model = this.model, before = this.turns;
    const asked = [...before, { role: "user", content: question }];
    const messages = [...(system ? [{ role: "system", content: system }] : []), ...asked.map(({ role, content }) => ({ role, content }))];
    this.show("user", "You", question);
    const shown = this.show("assistant", model, "");
    this.log.setAttribute("aria-busy", "true");
    const start = performance.now();
    const since = () => (performance.now() - start) / 1000;
    let text = "", first = null, usage = null, ended = null;
    try {
      const body = { model, messages, stream: true, stream_options: { include_usage: true }, ...fields };
      for await (const event of events(await ask("chat/completions", body, signal))) {
        usage = event.usage ?? usage;
        for (const choice of event.choices) {
          ended = choice.finish_reason ?? ended;
          if (!choice.delta.content) continue;
          first ??= since();
          text += choice.delta.content;
          this.write(shown.text, choice.delta.content);
        }
      }
    } catch (error) {
      if (error.name !== "AbortError") {
        shown.note.className = "error";
        this.write(shown.note, `${error.message.replace(/[^.!?]$/, "$&.")} This question is not part of the conversation.`);
        return false;
      }
      ended = "stopped";
    } finally {
      this.log.removeAttribute("aria-busy");
    }
    const seconds = since();
    const facts = {
      first_token_seconds: first === null ? null : Number(first.toFixed(3)),
      seconds: Number(seconds.toFixed(3)),
      tokens: usage?.completion_tokens ?? null,
      ended,
    };
    const said = first === null ? ["no text"] : [`first token after ${first.toFixed(2)} s`];
    if (usage) said.push(`${usage.completion_tokens} tokens in ${seconds.toFixed(2)} s`, `${(usage.completion_tokens / seconds).toFixed(1)} tokens/s`);
    if (ended === "length") said.push("cut at the longest answer allowed");
    if (ended === "stopped") said.push("stopped");
    shown.note.className = "soft facts";
    this.write(shown.note, said.join(" · "));
    if (ended === "stopped" && !text) return false;
    if (this.turns !== before) return true; // a new conversation has begun meanwhile
    this.turns = [...asked, { role: "assistant", content: text, model, ...facts }];
    return true;
  }
}

// --- the page

const columns = [new Column("Model"), new Column("Beside it")];
let stopping = null; // of the answers that are coming
let loaded = false;

async function load() {
  try {
    const cards = (await (await ask("models")).json()).data;
    columns[0].offer(cards, cards[0]?.id ?? "", false);
    columns[1].offer(cards, cards[1]?.id ?? "", true);
    loaded = true;
    say(cards.length ? "" : "The server serves no model.");
  } catch (error) {
    loaded = false;
    say(error.message);
  }
}

async function send() {
  const prompt = find("#prompt");
  const question = prompt.value.trim();
  if (!question || stopping) return;
  stopping = new AbortController();
  find("#send").disabled = true;
  find("#stop").disabled = false;
  try {
    if (!loaded) await load();
    if (!loaded) return;
    const fields = settings();
    const asked = columns.filter((column) => column.model);
    prompt.value = "";
    say("Answering …");
    const system = find("#system").value.trim();
    const answered = await Promise.all(asked.map((column) => column.answer(question, system, fields, stopping.signal)));
    if (!answered.includes(true) && !prompt.value) prompt.value = question; // nothing that was typed is lost
    say(stopping.signal.aborted ? "Stopped." : answered.every(Boolean) ? "Answered." : "Not every model has answered.");
  } catch (error) {
    say(error.message);
  } finally {
    stopping = null;
    find("#send").disabled = false;
    find("#stop").disabled = true;
    prompt.focus();
  }
}

const stop = () => stopping?.abort();

function save() {
  const conversations = columns.filter((column) => column.turns.length).map(({ model, turns }) => ({ model, messages: turns }));
  if (!conversations.length) {
    say("There is nothing to export yet.");
    return;
  }
  const whole = { exported: new Date().toISOString(), system: find("#system").value.trim(), conversations };
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(whole, null, 1)], { type: "application/json" }));
  link.download = "conversation.json";
  link.click();
  URL.revokeObjectURL(link.href);
}

find("#send").addEventListener("click", send);
find("#stop").addEventListener("click", stop);
find("#export").addEventListener("click", save);
find("#new").addEventListener("click", () => {
  stop();
  for (const column of columns) column.clear();
  say("A new conversation.");
  find("#prompt").focus();
});
find("#prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape") stop(); });

const KEY = "plumbline-key";
try { find("#key").value = sessionStorage.getItem(KEY) ?? ""; } catch { /* storage is turned off: the key lives in its field alone */ }
find("#key").addEventListener("change", () => {
  try { sessionStorage.setItem(KEY, find("#key").value); } catch { /* as above */ }
  load();
});
load();
find("#prompt").focus();
