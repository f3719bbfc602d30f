"use strict";
// The page is readable without this script, which adds sorting, filters and sliders.
(() => {
  const all = (selector, root = document) => Array.from(root.querySelectorAll(selector));
  document.documentElement.classList.add("scripted");

  // Tables: each heading becomes a button; undefined numbers are last in both directions.
  const compare = (left, right, down) => {
    if (left === "" || right === "") return (left === "") - (right === "");
    const [x, y] = [Number(left), Number(right)];
    const order = Number.isNaN(x) || Number.isNaN(y) ? left.localeCompare(right, undefined, { numeric: true }) : x - y;
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
        const rows = Array.from(body.rows, (row, index) => [row.cells[column].dataset.sort ?? "", index, row]);
        rows.sort((left, right) => compare(left[0], right[0], down) || left[1] - right[1]);
        body.append(...rows.map((row) => row[2]));
      });
    });
  }

  // Models: shown and hidden in figures, tables and gallery.
  for (const box of all("[data-shows]")) {
    const show = () => {
      for (const element of all(`[data-series="${box.dataset.shows}"]`)) element.classList.toggle("off", !box.checked);
      count();
    };
    box.addEventListener("change", show);
  }

  // The gallery: filters, opacity of the map, slices.
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
      card.hidden = filters.some(({ value, dataset }) => value !== "" && card.dataset[dataset.filter] !== value);
    }
    count();
  };
  for (const select of filters) select.addEventListener("change", filter);
  const form = document.getElementById("filters");
  if (form) form.addEventListener("submit", (event) => event.preventDefault());
  const opacity = document.getElementById("opacity");
  if (opacity) {
    const set = () => {
      document.documentElement.style.setProperty("--opacity", String(Number(opacity.value) / 100));
      opacity.parentElement.querySelector("output").textContent = `${opacity.value}%`;
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
  // Everything is unfolded for printing, except long texts and long tables, which say where to find them.
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = all("details:not(.whole, .screen):not([open])");
    for (const details of folded) details.open = true;
  });
  addEventListener("afterprint", () => {
    for (const details of folded) details.open = false;
    folded = [];
  });
  filter(); // a browser may restore the choices of an earlier visit
  for (const box of all("[data-shows]")) if (!box.checked) box.dispatchEvent(new Event("change"));
})();
