// The lead's pages: progress that stays fresh, and links to copy. Without it they work, too.
"use strict";

const live = document.querySelector("[data-live]");
const EVERY = 5000; // milliseconds

async function refresh() {
  if (document.visibilityState === "visible" && !live.contains(document.activeElement)) {
    try {
      const came = await fetch(live.dataset.live, { credentials: "same-origin", redirect: "manual" });
      if (came.ok) {
        const made = new DOMParser().parseFromString(await came.text(), "text/html");
        live.replaceChildren(...made.body.childNodes);
      } else if (came.status === 401 || came.type === "opaqueredirect") {
        return; // signed out: what is there stays
      }
    } catch {
      // no connection: again later
    }
  }
  setTimeout(refresh, EVERY);
}
if (live) setTimeout(refresh, EVERY);

for (const button of document.querySelectorAll("[data-copies]")) {
  const text = document.querySelector("[data-copy]");
  button.addEventListener("click", async () => {
    text.select();
    try {
      await navigator.clipboard.writeText(text.value);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Selected: copy with Ctrl C";
    }
  });
}

// An item to be decided on: raw texts, and the keys that are printed on its choices.
for (const button of document.querySelectorAll("[data-raw]")) {
  button.addEventListener("click", () => {
    const raw = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", raw);
    for (const part of button.closest(".pane").querySelectorAll(".drawn, .raw")) {
      part.hidden = part.classList.contains("raw") !== raw;
    }
  });
}
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("textarea, input:not([type=radio]), select")) return;
  const choice = [...document.querySelectorAll("#decision [data-key]")].find((one) => one.dataset.key === event.key);
  if (choice && choice.type === "radio") {
    event.preventDefault();
    choice.click();
    choice.focus();
  }
});
