
"use strict";
(() => {
  const sheet = JSON.parse(document.getElementById("sheet").textContent);
  const rows = sheet.rows, keep = "plumbline-people-" + sheet.token;
  const accepted = new Map(sheet.verdicts.map((one) => [one.value.toLowerCase(), one.value]));
  const known = new Map(rows.map((row, place) => [row.id, place]));
  const state = { rater: "", at: 0, verdicts: {}, comments: {} };
  const part = (name) => document.getElementById(name);
  let stored = true;

  function say(text) { part("message").textContent = text; }

  function save() {
    try { localStorage.setItem(keep, JSON.stringify(state)); } catch { stored = false; }
    if (!stored) say("This browser keeps nothing: download your answers before you close the page.");
  }

  function restore() {
    let found = null;
    try { found = JSON.parse(localStorage.getItem(keep)); } catch { stored = false; }
    if (!found || typeof found !== "object") return;
    state.rater = String(found.rater || "");
    state.at = Number.isInteger(found.at) && found.at >= 0 && found.at < rows.length ? found.at : 0;
    for (const row of rows) {
      const verdict = accepted.get(String((found.verdicts || {})[row.id]).toLowerCase());
      if (verdict) state.verdicts[row.id] = verdict;
      const comment = (found.comments || {})[row.id];
      if (typeof comment === "string" && comment) state.comments[row.id] = comment;
    }
  }

  const answered = () => rows.filter((row) => state.verdicts[row.id]).length;

  function show() {
    const row = rows[state.at];
    part("request").textContent = row.request;
    part("answers").replaceChildren(...row.answers.map((text, place) => {
      const box = document.createElement("section"), head = document.createElement("h2"), body = document.createElement("pre");
      head.textContent = row.answers.length > 1 ? "Answer " + (place + 1) : "Answer";
      body.textContent = text;
      body.dir = "auto";
      box.append(head, body);
      return box;
    }));
    part("comment").value = state.comments[row.id] || "";
    part("rater").value = state.rater;
    for (const button of part("verdicts").children) {
      button.setAttribute("aria-pressed", String(button.dataset.value === state.verdicts[row.id]));
    }
    part("progress").max = rows.length;
    part("progress").value = answered();
    part("count").textContent = answered() + " of " + rows.length + " answered; this is number " + (state.at + 1);
  }

  function go(place) {
    state.at = Math.max(0, Math.min(rows.length - 1, place));
    save();
    show();
    window.scrollTo(0, 0);
  }

  function goOpen() {
    for (let step = 1; step <= rows.length; step++) {
      const place = (state.at + step) % rows.length;
      if (!state.verdicts[rows[place].id]) return go(place);
    }
    go(state.at);
    say("All " + rows.length + " are answered. Download your answers and send the file back.");
  }

  function judge(value) {
    const id = rows[state.at].id, anew = !state.verdicts[id];
    say("");
    state.verdicts[id] = value;
    save();
    if (anew) goOpen(); else show();
  }

  function takeBack() {
    delete state.verdicts[rows[state.at].id];
    save();
    show();
  }

  const defused = (text) => (/^[\s\x85\ufeff]*[=+\-@＝＋－＠]/.test(text) ? "'" + text : text);

  function csv() {
    const quoted = (cells) => cells.map((cell) => '"' + cell.replaceAll('"', '""') + '"').join(",") + "\r\n";
    const line = (row) => quoted([
      row.id, defused(state.rater), defused(row.request), ...row.answers.map(defused), state.verdicts[row.id] || "",
      defused(state.comments[row.id] || ""),
    ]);
    return "\ufeff" + quoted(sheet.columns) + rows.map(line).join("");
  }

  function download() {
    if (!state.rater.trim()) {
      say("Please write your name first; any name will do, it tells your answers from those of others.");
      part("rater").focus();
      return;
    }
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([csv()], { type: "text/csv;charset=utf-8" }));
    link.download = "answers-" + state.rater.trim().replace(/[^\p{L}\p{N}]+/gu, "-") + ".csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    const left = rows.length - answered();
    say(link.download + " is among your downloads" + (left ? "; " + left + " are still without a verdict." : "."));
  }

  function parse(text, mark) {
    const found = [];
    let cells = [], cell = "", quoted = false, line = 1, start = 1;
    const close = () => { cells.push(cell); cell = ""; };
    const end = () => { close(); found.push({ line: start, cells }); cells = []; };
    for (let i = 0; i < text.length; i++) {
      const c = text[i];
      if (c === "\n") line++;
      if (quoted) {
        if (c !== '"') cell += c;
        else if (text[i + 1] === '"') { cell += c; i++; } else quoted = false;
      } else if (c === '"' && cell === "") quoted = true;
      else if (c === mark) close();
      else if (c === "\n") { end(); start = line; } else if (c !== "\r") cell += c;
    }
    if (cell || cells.length) end();
    return found.filter((one) => one.cells.some((value) => value.trim()));
  }

  function read(text) {
    const body = text.replace(/^\ufeff/, "").replace(/^sep=.\r?\n/i, "");
    for (const mark of [",", ";", "\t"]) {
      const table = parse(body, mark);
      const head = table.length ? table[0].cells.map((cell) => cell.trim().toLowerCase()) : [];
      const place = (name) => head.findIndex((cell) => cell.split("(")[0].trim() === name);
      if (place("id") >= 0 && place("verdict") >= 0) return { table: table.slice(1), place };
    }
    return null;
  }

  function load(text) {
    const found = read(text), problems = [], verdicts = {}, comments = {};
    if (!found) return say("That file is no sheet: it has no columns id and verdict.");
    let rater = "";
    for (const { line, cells } of found.table) {
      const cell = (name) => (cells[found.place(name)] || "").trim();
      const id = cell("id").toLowerCase(), said = cell("verdict").toLowerCase().replace(/\.0$/, "");
      if (!known.has(id)) problems.push("line " + line + ": id '" + cell("id") + "' is not of this sheet");
      else if (said && !accepted.has(said)) problems.push("line " + line + ": verdict '" + cell("verdict") + "' is none; accepted: " + [...accepted.values()].join(", "));
      else {
        if (said) verdicts[id] = accepted.get(said);
        if (cell("comment")) comments[id] = cell("comment").replace(/^'(?=[\s\x85\ufeff]*[=+\-@＝＋－＠])/, "");
        rater = rater || cell("rater").replace(/^'(?=[\s\x85\ufeff]*[=+\-@＝＋－＠])/, "");
      }
    }
    if (problems.length) return say("Nothing was loaded.\n" + problems.slice(0, 5).join("\n"));
    Object.assign(state.verdicts, verdicts);
    Object.assign(state.comments, comments);
    state.rater = rater || state.rater;
    save();
    show();
    say(Object.keys(verdicts).length + " verdicts were loaded.");
  }

  for (const { value, meaning } of sheet.verdicts) {
    const button = document.createElement("button");
    button.dataset.value = value;
    button.textContent = value + " – " + meaning;
    button.title = "key " + value[0].toUpperCase();
    button.addEventListener("click", () => judge(value));
    part("verdicts").append(button, " ");
  }
  part("previous").addEventListener("click", () => go(state.at - 1));
  part("next").addEventListener("click", () => go(state.at + 1));
  part("open").addEventListener("click", goOpen);
  part("clear").addEventListener("click", takeBack);
  part("download").addEventListener("click", download);
  part("rater").addEventListener("input", (event) => { state.rater = event.target.value; save(); });
  part("comment").addEventListener("input", (event) => {
    state.comments[rows[state.at].id] = event.target.value;
    save();
  });
  part("load").addEventListener("change", async (event) => {
    const file = event.target.files[0];
    if (file) load(await file.text());
    event.target.value = "";
  });
  part("restart").addEventListener("click", () => {
    if (!confirm("Forget all verdicts of this sheet in this browser?")) return;
    Object.assign(state, { rater: "", at: 0, verdicts: {}, comments: {} });
    save();
    show();
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("#rater, textarea")) return;
    const key = event.key.toLowerCase();
    const said = sheet.verdicts.find((one) => one.value[0].toLowerCase() === key);
    if (said) judge(said.value);
    else if (key === "arrowleft") go(state.at - 1);
    else if (key === "arrowright") go(state.at + 1);
    else if (key === "n") goOpen();
    else if (key === "backspace") takeBack();
    else return;
    event.preventDefault();
  });
  restore();
  show();
})();
