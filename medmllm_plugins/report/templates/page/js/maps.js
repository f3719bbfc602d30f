// The gallery of maps: filters, opacity, and a way to each document.
(() => {
  const FEW = 24;
  const cards = page.all(".card");
  const filters = page.all("[data-filter]");
  const status = document.getElementById("count");
  const all = document.getElementById("all-cards");
  if (!cards.length) return;
  const show = () => {
    const matching = cards.filter((card) => !card.classList.contains("off")
      && filters.every(({ value, dataset }) => value === "" || card.dataset[dataset.filter] === value));
    const shown = new Set(all.getAttribute("aria-pressed") === "true" ? matching : matching.slice(0, FEW));
    for (const card of cards) card.hidden = !shown.has(card);
    status.textContent = `${shown.size} of ${cards.length} shown`;
    all.classList.toggle("off", matching.length <= FEW);
    all.textContent = shown.size < matching.length ? `Show all ${matching.length}` : `Show the first ${FEW} only`;
  };
  for (const select of filters) {
    select.value = page.state.get(`map-${select.dataset.filter}`);
    if (select.selectedIndex < 0) select.value = "";
    select.addEventListener("change", () => {
      page.state.set(`map-${select.dataset.filter}`, select.value);
      show();
    });
  }
  all.addEventListener("click", () => {
    all.setAttribute("aria-pressed", String(all.getAttribute("aria-pressed") !== "true"));
    show();
  });
  document.getElementById("filters").addEventListener("submit", (event) => event.preventDefault());
  const opacity = document.getElementById("opacity");
  const set = () => {
    document.documentElement.style.setProperty("--opacity", String(Number(opacity.value) / 100));
    opacity.parentElement.querySelector("output").textContent = `${opacity.value}%`;
  };
  opacity.addEventListener("input", set);
  set();
  for (const card of cards) {
    const open = page.documentOf?.(card);
    if (!open) continue;
    // The picture becomes a button, or the title where a map is of words.
    const picture = card.querySelector(".map") ?? card.querySelector(".card-title bdi");
    const button = document.createElement("button");
    button.type = "button";
    button.className = "open-document";
    button.setAttribute("aria-label", `Open ${card.dataset.document}: ${card.dataset.title}`);
    picture.replaceWith(button);
    button.append(picture);
    button.addEventListener("click", open);
  }
  page.onModels(show);
  show();
})();
