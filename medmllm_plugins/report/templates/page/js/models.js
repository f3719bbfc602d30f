// Chips of the bar: models are shown and hidden in figures, tables and galleries.
(() => {
  const boxes = page.all("[data-shows]");
  const show = () => {
    const hidden = boxes.filter((box) => !box.checked).map((box) => box.dataset.shows);
    for (const element of page.all("[data-series]")) element.classList.toggle("off", hidden.includes(element.dataset.series));
    page.state.set("hide", hidden.join("."));
    page.hideModels(hidden);
  };
  const hidden = page.state.get("hide").split(".");
  for (const box of boxes) {
    box.checked = !hidden.includes(box.dataset.shows);
    box.addEventListener("change", show);
  }
  show();

  // The section in view is marked in the bar.
  const links = page.all(".top-bar nav a");
  const mark = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      for (const link of links) {
        if (link.hash === `#${entry.target.id}`) link.setAttribute("aria-current", "true");
        else link.removeAttribute("aria-current");
      }
    }
  }, { rootMargin: "-15% 0px -75% 0px" });
  for (const section of page.all("main > section")) mark.observe(section);
})();
