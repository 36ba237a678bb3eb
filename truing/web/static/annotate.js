"use strict";
// The page of one item: keys, drafts, sending until it has arrived, and the time that was really spent.
(() => {
  const form = document.getElementById("judgement");
  if (!form) return;
  const $ = (selector, root = document) => root.querySelector(selector);
  const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
  const csrf = $("meta[name=csrf]").content;
  const { kind, lease, me, home } = form.dataset;
  const notice = $("#notice");
  const hex = () => [...crypto.getRandomValues(new Uint8Array(16))].map((b) => b.toString(16).padStart(2, "0")).join("");
  const wait = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));

  function tell(text, bad = false, link = "") {
    notice.textContent = text;
    notice.className = text ? (bad ? "problem" : "said") : "";
    if (link) {
      const a = document.createElement("a");
      a.href = link;
      a.textContent = "Sign in";
      notice.append(" ", a);
    }
    if (bad && text) notice.scrollIntoView({ block: "nearest" });
  }

  // --- Active time: what passes while the page is in front and in use. Reading moves nothing, so
  // only after minutes without any sign does a spell end, and then at the last sign plus those.
  const READING = 5 * 60_000;
  const shown = Date.now();
  const draftKey = `truing:draft:${me}:${lease}`;
  const timing = { shown_ms: 0, hidden_ms: 0, idle_ms: 0, first_ms: -1 };
  let active = Number(form.active_ms.value) || 0;
  let counted = performance.now();
  let sign = performance.now();
  const here = () => document.visibilityState === "visible" && document.hasFocus();
  let front = here();

  function count() {
    const now = performance.now();
    const end = front ? Math.min(now, Math.max(counted, sign + READING)) : counted;
    active += end - counted;
    timing[front ? "idle_ms" : "hidden_ms"] += now - end;
    counted = now;
    front = here();
    timing.shown_ms = Date.now() - shown;
    form.active_ms.value = Math.round(active);
    form.timing.value = JSON.stringify(timing, (_, v) => (typeof v === "number" ? Math.round(v) : v));
  }
  for (const name of ["keydown", "pointerdown", "pointermove", "wheel", "scroll", "touchstart", "input"])
    addEventListener(name, () => { count(); sign = performance.now(); }, { passive: true, capture: true });
  for (const name of ["focus", "blur"]) addEventListener(name, count);
  document.addEventListener("visibilitychange", count);

  // --- Drafts: on this device at once, on the server soon, which also holds the item for longer.
  const fields = () => {
    const out = {};
    for (const [name, value] of new FormData(form)) if (!["csrf", "token", "action", "timing"].includes(name)) out[name] = value;
    return out;
  };
  let late = false;
  let saved = "";
  let timer = 0;
  async function saveDraft(force = false) {
    const body = new URLSearchParams(fields());
    const now = JSON.stringify(Object.entries(fields()).filter(([name]) => name !== "active_ms"));
    if (late || sent || (now === saved && !force)) return;
    try {
      const answer = await fetch(`/judge/${lease}/draft`, { method: "POST", body, headers: { "X-CSRF-Token": csrf, Accept: "application/json" } });
      if (answer.ok) saved = now;
      late = answer.status === 409;
    } catch { /* it is kept on this device */ }
  }
  function changed() {
    count();
    try { localStorage.setItem(draftKey, JSON.stringify(fields())); } catch { /* full or forbidden */ }
    clearTimeout(timer);
    timer = setTimeout(saveDraft, 1500);
    ready();
  }
  function restore() {
    let kept = {};
    try { kept = JSON.parse(localStorage.getItem(draftKey)) || {}; } catch { /* none */ }
    for (const [name, value] of Object.entries(kept)) {
      const field = form.elements[name];
      if (!field || name === "reopened") continue;
      if (field instanceof RadioNodeList || field.type === "radio") {
        const one = $$(`input[name="${CSS.escape(name)}"]`, form).find((input) => input.value === value);
        if (one) one.checked = true;
      } else field.value = value;
    }
    active = Math.max(active, Number(kept.active_ms) || 0);
    for (const details of $$("details.improve")) {
      const text = $("textarea", details);
      if (text.value !== text.dataset.edit) details.open = true;
    }
  }
  setInterval(() => { count(); if (here() && performance.now() - sign < READING) saveDraft(true); }, 120_000);

  // --- Sending. What cannot be sent now is kept on this device under the person's pseudonym, and
  // sent again with the same token, so that it counts once.
  const UNSENT = `truing:unsent:${me}`;
  let sent = false;
  const unsent = () => { try { return JSON.parse(localStorage.getItem(UNSENT)) || []; } catch { return []; } };
  const keep = (list) => { try { localStorage.setItem(UNSENT, JSON.stringify(list)); } catch { /* full */ } };

  const post = (url, body) => fetch(url, { method: "POST", body: new URLSearchParams(body), headers: { "X-CSRF-Token": csrf, Accept: "application/json" } });

  async function deliver(parcel) {
    for (let pause = 1; ; pause = Math.min(30, 2 * pause)) {
      let answer = null;
      try { answer = await post(parcel.url, parcel.body); } catch { /* no connection */ }
      if (answer && answer.status < 500 && answer.status !== 429) {
        const said = await answer.json().catch(() => ({}));
        return { status: answer.status, ...said };
      }
      parcel.body.timing = parcel.body.timing?.replace(/}$/, ',"resent":true}').replace(/(,"resent":true)+}$/, ',"resent":true}');
      tell("The connection is lost. Your answer is kept on this device and sent again; you need not do anything.", true);
      await Promise.race([wait(pause), new Promise((done) => addEventListener("online", done, { once: true }))]);
    }
  }

  async function submit() {
    count();
    const body = Object.fromEntries(new FormData(form));
    delete body.csrf;
    const parcel = { url: form.getAttribute("action"), body };
    sent = true;
    lock(true);
    keep([...unsent().filter((p) => p.body.token !== body.token), parcel]);
    const said = await deliver(parcel);
    if (said.status === 401 || said.status === 403) {
      tell(said.detail || "You are signed out. Your answer is kept on this device.", true, `/sign-in?next=${encodeURIComponent(home)}`);
      return;
    }
    keep(unsent().filter((p) => p.body.token !== body.token));
    if (said.status === 400 || said.status === 422) {
      sent = false;
      lock(false);
      tell(sentence(said.detail), true);
      return;
    }
    localStorage.removeItem(draftKey);
    location.assign(said.next || home);
  }
  const sentence = (text) => (text ? text[0].toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".") : "That did not work.");

  // Left over from before a lost connection, a closed browser or a session that ended.
  async function sendLeftOvers() {
    for (const parcel of unsent()) {
      const answer = await post(parcel.url, parcel.body).catch(() => null);
      if (!answer || answer.status >= 500 || answer.status === 401 || answer.status === 403) return;
      keep(unsent().filter((p) => p.body.token !== parcel.body.token));
      if (parcel.url.endsWith(`/judge/${lease}`) && answer.ok) location.assign(home);
    }
  }

  function lock(on) {
    for (const button of $$("button", form)) button.disabled = on;
    form.setAttribute("aria-busy", on);
    $$("fieldset", form).forEach((set) => { set.disabled = on; });
  }

  // --- Rows: one of them is where digits go.
  const rows = $$("[data-row]", form);
  let row = 0;
  const chosen = (set) => $("input:checked", set);
  function go(to, focus = true) {
    if (!rows.length) return;
    row = Math.max(0, Math.min(rows.length - 1, to));
    rows.forEach((each, i) => each.classList.toggle("current", i === row));
    if (focus) {
      (chosen(rows[row]) || $("input", rows[row])).focus({ preventScroll: true });
      rows[row].scrollIntoView({ block: "nearest" });
    }
  }
  function digit(n) {
    const input = $$("input", rows[row])[n - 1];
    if (!input) return false;
    input.checked = true;
    changed();
    const next = rows.findIndex((set, i) => i > row && !chosen(set));
    go(next < 0 ? row : next);
    return true;
  }
  rows.forEach((set, i) => set.addEventListener("focusin", () => go(i, false)));

  // --- What is missing, and what shows only after the choice.
  function complete() {
    if (kind === "pairwise") return !!$("input[name=choice]:checked", form);
    if (kind === "steps") {
      const wrong = rows.findIndex((set) => chosen(set)?.value === "wrong");
      return rows.every((set, i) => chosen(set) || (wrong >= 0 && i > wrong));
    }
    if (rows.length) return rows.every(chosen);
    const text = $("textarea[data-edit], #text", form);
    return text.value.trim() !== "" && text.value !== text.dataset.edit;
  }
  const afterwards = $("#afterwards");
  function ready() {
    const done = complete();
    $("#submit").classList.toggle("waiting", !done);
    if (afterwards) afterwards.hidden = !done;
    strip();
    return done;
  }

  // --- The strip of a ranking: the order as it stands, to be dragged.
  const list = $("#strip");
  function strip() {
    if (!list || list.dataset.dragging) return;
    const places = rows.map((set) => ({ letter: set.dataset.row, rank: Number(chosen(set)?.value) || 0 }));
    const order = [...places].sort((a, b) => (a.rank || 99) - (b.rank || 99));
    list.replaceChildren(...order.map(({ letter, rank }, i) => {
      const chip = document.createElement("li");
      chip.textContent = letter;
      chip.dataset.letter = letter;
      chip.classList.toggle("open", !rank);
      chip.classList.toggle("tied", i > 0 && rank > 0 && order[i - 1].rank === rank);
      return chip;
    }));
  }
  list?.addEventListener("pointerdown", (event) => {
    const chip = event.target.closest("li");
    if (!chip) return;
    event.preventDefault();
    list.dataset.dragging = "1";
    chip.classList.add("held");
    list.setPointerCapture(event.pointerId); // the list stays in its place, the chip does not
    const move = (e) => {
      const over = [...list.children].find((c) => c !== chip && e.clientX > c.getBoundingClientRect().left && e.clientX < c.getBoundingClientRect().right);
      if (!over) return;
      const after = [...list.children].indexOf(over) > [...list.children].indexOf(chip);
      list.insertBefore(chip, after ? over.nextSibling : over);
    };
    const drop = () => {
      for (const [name, listener] of [["pointermove", move], ["pointerup", drop], ["pointercancel", drop]]) list.removeEventListener(name, listener);
      delete list.dataset.dragging;
      [...list.children].forEach((c, i) => {
        const set = rows.find((r) => r.dataset.row === c.dataset.letter);
        $$("input", set)[i].checked = true;
      });
      changed();
    };
    list.addEventListener("pointermove", move);
    list.addEventListener("pointerup", drop);
    list.addEventListener("pointercancel", drop);
  });

  // --- A visible diff of an edit, word by word.
  function diff(before, after) {
    const a = before.match(/\s+|[^\s]+/g) || [];
    const b = after.match(/\s+|[^\s]+/g) || [];
    let start = 0;
    while (start < a.length && start < b.length && a[start] === b[start]) start++;
    let end = 0;
    while (end < a.length - start && end < b.length - start && a[a.length - 1 - end] === b[b.length - 1 - end]) end++;
    const x = a.slice(start, a.length - end);
    const y = b.slice(start, b.length - end);
    const parts = [["", a.slice(0, start).join("")]];
    if (x.length * y.length > 4e6) parts.push(["del", x.join("")], ["ins", y.join("")]);
    else {
      // Longest common subsequence of what lies between.
      const width = y.length + 1;
      const best = new Uint32Array((x.length + 1) * width);
      for (let i = x.length - 1; i >= 0; i--)
        for (let j = y.length - 1; j >= 0; j--)
          best[i * width + j] = x[i] === y[j] ? best[(i + 1) * width + j + 1] + 1 : Math.max(best[(i + 1) * width + j], best[i * width + j + 1]);
      let i = 0;
      let j = 0;
      while (i < x.length || j < y.length) {
        if (i < x.length && j < y.length && x[i] === y[j]) { parts.push(["", x[i]]); i++; j++; }
        else if (i < x.length && (j === y.length || best[(i + 1) * width + j] >= best[i * width + j + 1])) parts.push(["del", x[i++]]);
        else parts.push(["ins", y[j++]]);
      }
    }
    parts.push(["", a.slice(a.length - end).join("")]);
    return parts;
  }
  function drawDiff(text) {
    const place = $(`[data-diff="${text.id}"]`);
    const parts = diff(text.dataset.edit, text.value).filter(([, words]) => words);
    if (parts.every(([tag]) => !tag)) { place.textContent = "Nothing changed yet."; return; }
    // Words that change together stand together: a space between two changes belongs to both.
    const joined = [];
    for (let i = 0; i < parts.length; ) {
      if (!parts[i][0]) { joined.push(parts[i++]); continue; }
      const gone = [];
      const come = [];
      for (; i < parts.length; i++) {
        const [tag, words] = parts[i];
        const between = !tag && !words.trim() && parts[i + 1]?.[0];
        if (!tag && !between) break;
        if (tag !== "ins") gone.push(words);
        if (tag !== "del") come.push(words);
      }
      if (gone.join("").trim() || !come.length) joined.push(["del", gone.join("")]);
      if (come.join("").trim() || !gone.length) joined.push(["ins", come.join("")]);
    }
    place.replaceChildren(...joined.map(([tag, words]) => {
      if (!tag) return document.createTextNode(words);
      const made = document.createElement(tag);
      made.textContent = words;
      return made;
    }));
  }
  for (const text of $$("textarea[data-edit]")) text.addEventListener("input", () => drawDiff(text));

  // --- Dialogs: skip, flag, help, guideline.
  let opener = null;
  function open(name) {
    const dialog = document.getElementById(name);
    if (!dialog) return;
    opener = document.activeElement;
    dialog.showModal();
    const asked = $("[data-from]", dialog);
    if (asked) fetch(asked.dataset.from).then(async (answer) => { if (answer.ok) asked.innerHTML = await answer.text(); }).catch(() => {});
  }
  for (const dialog of $$("dialog")) {
    dialog.addEventListener("close", () => opener?.focus?.());
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  }
  for (const beside of $$("form[data-beside]")) {
    beside.addEventListener("submit", async (event) => {
      event.preventDefault();
      count();
      const body = Object.fromEntries(new FormData(beside));
      delete body.csrf;
      if (beside.dataset.beside === "skip") Object.assign(body, { active_ms: form.active_ms.value, timing: form.timing.value });
      const said = await deliver({ url: beside.getAttribute("action"), body });
      beside.closest("dialog").close();
      if (said.status !== 200) { tell(sentence(said.detail), true); return; }
      if (beside.dataset.beside === "skip") {
        localStorage.removeItem(draftKey);
        location.assign(said.next);
        return;
      }
      beside.reset();
      beside.token.value = hex();
      tell(said.message);
    });
  }

  // --- Keys and clicks.
  const raw = (on) => {
    for (const drawn of $$(".drawn")) drawn.hidden = on;
    for (const text of $$(".raw")) text.hidden = !on;
    for (const button of $$("[data-raw]")) { button.setAttribute("aria-pressed", on); button.textContent = on ? "Drawn text" : "Raw text"; }
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if (button.dataset.open) open(button.dataset.open);
    else if ("close" in button.dataset) button.closest("dialog").close();
    else if ("raw" in button.dataset) raw(button.getAttribute("aria-pressed") !== "true");
    else if ("dismiss" in button.dataset) button.parentElement.remove();
  });

  const writes = (element) => element?.matches?.("textarea, select, input:not([type=radio], [type=checkbox])") || element?.isContentEditable;
  addEventListener("keydown", (event) => {
    if (event.isComposing || event.altKey || event.metaKey) return;
    const dialog = $("dialog[open]");
    const writing = writes(event.target);
    if (event.key === "Enter" && (event.ctrlKey || (!writing && !event.target.closest("button, summary, a")))) {
      event.preventDefault();
      (dialog ? $("form[data-beside]", dialog) : form)?.requestSubmit();
      return;
    }
    if (event.key === "Escape" && writing && !dialog) { event.target.blur(); return; }
    if (writing || event.ctrlKey) return;
    if (timing.first_ms < 0) timing.first_ms = Date.now() - shown;
    if (dialog) {
      const one = $(`[data-key="${CSS.escape(event.key)}"]`, dialog);
      if (one) { event.preventDefault(); one.checked = true; one.focus(); }
      return;
    }
    if (sent) return;
    if (rows.length && (event.key === "ArrowDown" || event.key === "ArrowUp")) {
      event.preventDefault();
      go(row + (event.key === "ArrowDown" ? 1 : -1));
      return;
    }
    if (rows.length && /^[1-9]$/.test(event.key) && digit(Number(event.key))) { event.preventDefault(); return; }
    if (event.key === "r") { raw(!$(".raw:not([hidden])")); return; }
    if (event.key === "h") { open("help"); return; }
    const one = $(`[data-key="${CSS.escape(event.key)}"]`);
    if (!one || one.closest("dialog") || one.closest("[hidden]")) return;
    event.preventDefault();
    if (one.type === "radio") {
      one.checked = true;
      one.focus({ preventScroll: true });
      one.dispatchEvent(new Event("change", { bubbles: true }));
    } else if (one.tagName === "TEXTAREA") one.focus();
    else one.click();
  });

  form.addEventListener("input", changed);
  form.addEventListener("change", (event) => {
    changed();
    if ("auto" in form.dataset && event.target.type === "radio" && complete()) form.requestSubmit();
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (sent) return;
    if (!ready()) {
      tell({ pairwise: "Choose first: which is better?", edit: "Change the response first, or skip it.", demonstration: "Write a response first." }[kind] || "Something is still open.", true);
      const open = rows.findIndex((set) => !chosen(set));
      if (open >= 0) go(open);
      return;
    }
    submit();
  });
  addEventListener("pagehide", () => { count(); try { if (!sent) localStorage.setItem(draftKey, JSON.stringify(fields())); } catch { /* full */ } });

  restore();
  for (const text of $$("textarea[data-edit]")) drawDiff(text);
  go(rows.findIndex((set) => !chosen(set)) < 0 ? 0 : rows.findIndex((set) => !chosen(set)), false);
  ready();
  sendLeftOvers();
})();
