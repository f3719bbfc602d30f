// Ladders and layer charts: a stage of a ladder is marked in the layer chart; controls are shown on demand. Both are
// kept in the address, as stage, chart and controls.
(() => {
  const form = document.getElementById("controls");
  if (!form) return;
  const boxes = page.all("[data-control]", form);
  const status = form.querySelector(".marked");
  const unmark = document.getElementById("unmark");
  let wanted = ""; // the chart to go to
  const show = (view) => {
    const shown = page.state.get("controls").split(".");
    const stage = page.state.get("stage");
    for (const model of view.model.document.all_models) {
      for (const tag of model.tags ?? []) {
        const [kind, ...name] = String(tag).split("-");
        if (kind === "control") model.visible = shown.includes(name.join("-"));
        if (kind === "stage") model.visible = stage === name.join("-");
      }
    }
  };
  const chartOf = (id) => document.getElementById(id)?.closest(".layer-chart");
  const update = () => {
    const shown = page.state.get("controls").split(".");
    for (const box of boxes) box.checked = shown.includes(box.dataset.control);
    const stage = page.state.get("stage");
    const link = page.all("[data-stage]").find((element) => element.dataset.stage === stage);
    status.textContent = link ? `Marked: ${link.textContent}` : "";
    unmark.hidden = !link;
    const chart = page.state.get("chart");
    for (const element of page.all(".layer-chart")) element.classList.toggle("marked", Boolean(link) && element.id === chart);
    page.plots.forEach((view, id) => chartOf(id) && show(view));
  };
  for (const box of boxes) {
    box.addEventListener("change", () => {
      page.state.set("controls", boxes.filter((item) => item.checked).map((item) => item.dataset.control).join("."));
      update();
    });
  }
  form.addEventListener("submit", (event) => event.preventDefault());
  for (const link of page.all("[data-stage]")) {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      page.state.set("stage", link.dataset.stage);
      page.state.set("chart", link.dataset.chart);
      wanted = link.dataset.chart;
      location.hash = "layers"; // differs from the address with the stage, so that the listener below is called
    });
  }
  unmark.addEventListener("click", () => {
    page.state.set("stage", "");
    page.state.set("chart", "");
    update();
    boxes[0].focus();
  });
  addEventListener("hashchange", () => {
    update();
    document.getElementById(wanted)?.scrollIntoView(); // after the page has gone to the section
    wanted = "";
  });
  addEventListener("load", () => {
    if (!location.hash.startsWith("#layers")) return;
    const chart = document.getElementById(page.state.get("chart"));
    const frame = (count) => (count ? requestAnimationFrame(() => frame(count - 1)) : chart?.scrollIntoView({ behavior: "instant" }));
    frame(3);
  });
  page.onPlot((view, id) => chartOf(id) && show(view));
  update();
})();
