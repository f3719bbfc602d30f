(() => {
  // Tables: each heading becomes a button; undefined numbers are last in both directions.
  const compare = (left, right, down) => {
    if (left === "" || right === "") return (left === "") - (right === "");
    const [x, y] = [Number(left), Number(right)];
    const order = Number.isNaN(x) || Number.isNaN(y) ? left.localeCompare(right, undefined, { numeric: true }) : x - y;
    return down ? -order : order;
  };
  for (const table of page.all("table.sortable")) {
    const heads = page.all("thead th", table);
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

  // A table that is wider than its card says so, until its end is in view.
  const hint = (box) => box.classList.toggle("overflows", box.scrollWidth - box.clientWidth - box.scrollLeft > 4);
  const sizes = new ResizeObserver((entries) => entries.forEach((entry) => hint(entry.target)));
  for (const box of page.all(".scroll")) {
    sizes.observe(box);
    box.addEventListener("scroll", () => hint(box), { passive: true });
  }
})();
