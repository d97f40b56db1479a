"use strict";
const buttons = [...document.querySelectorAll("#maps button")];
for (const button of buttons) {
  button.addEventListener("click", () => {
    for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
    for (const shown of document.querySelectorAll("[data-map]")) shown.hidden = shown.dataset.map !== button.value;
  });
}
for (const frame of document.querySelectorAll("#gallery figure")) {
  frame.addEventListener("click", () => frame.classList.toggle("large"));
}
