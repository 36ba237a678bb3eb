"use strict";
// Before anything is drawn, so that no page flashes in the other theme.
(() => {
  const themes = ["system", "light", "dark"];
  let theme = themes.includes(localStorage.theme) ? localStorage.theme : "system";
  const apply = () => {
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
  };
  apply();
  addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const name = () => {
      button.setAttribute("aria-label", "Colours: " + (theme === "system" ? "as the system" : theme));
      button.title = button.getAttribute("aria-label");
    };
    name();
    button.addEventListener("click", () => {
      theme = themes[(themes.indexOf(theme) + 1) % themes.length];
      localStorage.theme = theme;
      apply();
      name();
    });
  });
})();
