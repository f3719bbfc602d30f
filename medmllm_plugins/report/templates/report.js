"use strict";
// Everything on the page can be read without this script; it adds sorting, filters and sliders.
(() => {
  const all = (selector, root = document) => Array.from(root.querySelectorAll(selector));
  document.documentElement.classList.add("scripted");

  // Tables: each heading becomes a button; undefined numbers stay last in both directions.
  const compare = (one, other, down) => {
    if (one === "" || other === "") return (one === "") - (other === "");
    const [x, y] = [Number(one), Number(other)];
    const order = Number.isNaN(x) || Number.isNaN(y) ? one.localeCompare(other, undefined, { numeric: true }) : x - y;
    return down ? -order : order;
  };
  for (const table of all("table.sortable")) {
    const heads = all("thead th", table);
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const numeric = head.classList.contains("number");
        const now = head.getAttribute("aria-sort");
        const down = now ? now === "ascending" : numeric;
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const body = table.tBodies[0];
        const rows = Array.from(body.rows, (row, place) => [row.cells[column].dataset.sort ?? "", place, row]);
        rows.sort((one, other) => compare(one[0], other[0], down) || one[1] - other[1]);
        body.append(...rows.map((row) => row[2]));
      });
    });
  }

  // Models: shown and hidden in figures, tables and gallery alike.
  for (const box of all("[data-shows]")) {
    const show = () => {
      for (const one of all(`[data-series="${box.dataset.shows}"]`)) one.classList.toggle("off", !box.checked);
      count();
    };
    box.addEventListener("change", show);
  }

  // The gallery: filters, strength of the overlay, slices.
  const cards = all(".card");
  const filters = all("[data-filter]");
  const status = document.getElementById("count");
  const count = () => {
    if (!status) return;
    const shown = cards.filter((card) => !card.hidden && !card.classList.contains("off")).length;
    status.textContent = `${shown} of ${cards.length} shown`;
  };
  const filter = () => {
    for (const card of cards) {
      card.hidden = filters.some((one) => one.value !== "" && card.dataset[one.dataset.filter] !== one.value);
    }
    count();
  };
  for (const one of filters) one.addEventListener("change", filter);
  const form = document.getElementById("filters");
  if (form) form.addEventListener("submit", (event) => event.preventDefault());
  const opacity = document.getElementById("opacity");
  if (opacity) {
    const set = () => {
      document.documentElement.style.setProperty("--opacity", String(Number(opacity.value) / 100));
      opacity.parentElement.querySelector("output").textContent = `${opacity.value} %`;
    };
    opacity.addEventListener("input", set);
    set();
  }
  for (const slider of all("input.slice")) {
    const pair = slider.closest(".card").querySelector(".pair");
    slider.addEventListener("input", () => {
      for (const picture of all("svg", pair)) {
        const box = picture.viewBox.baseVal;
        box.y = (Number(slider.value) - 1) * box.height;
      }
      slider.parentElement.querySelector("output").textContent = `${slider.value} of ${slider.max}`;
    });
  }
  // Paper cannot be unfolded: all is open on it but long texts and long tables, which say where they are.
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = all("details:not(.whole, .screen):not([open])");
    for (const one of folded) one.open = true;
  });
  addEventListener("afterprint", () => {
    for (const one of folded) one.open = false;
    folded = [];
  });
  filter(); // a browser may have kept the choices of an earlier visit
  for (const box of all("[data-shows]")) if (!box.checked) box.dispatchEvent(new Event("change"));
})();
