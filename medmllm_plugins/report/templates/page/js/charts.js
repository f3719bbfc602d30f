// Interactive figures: drawn when they come into view, again when light or dark mode changes.
(() => {
  // The drawn figures by the ids of their elements, and what to do with each that is drawn.
  const listeners = [];
  page.plots = new Map();
  page.onPlot = (listener) => listeners.push(listener);
  if (typeof Bokeh === "undefined") return;
  Bokeh.logger.set_level("warn");
  const tones = { "#1b2127": "--ink", "#5d6872": "--muted", "#dde2e6": "--line", "#fefefe": "--card", "#0072b2": "--series-0",
    "#d55e00": "--series-1", "#009e73": "--series-2", "#cc79a7": "--series-3", "#e69f00": "--series-4", "#56b4e9": "--series-5" };
  const drawn = new Map();
  const themed = (text) => {
    const style = getComputedStyle(document.documentElement);
    return text.replace(/#[0-9a-f]{6}/g, (colour) => (tones[colour] ? style.getPropertyValue(tones[colour]).trim() : colour));
  };
  const hide = (view) => {
    for (const model of view.model.document.all_models) {
      // Tags that are given to a method of Bokeh's figure are those of the glyph, but only its renderer can be hidden.
      const series = [...(model.tags ?? []), ...(model.glyph?.tags ?? [])].find((tag) => String(tag).startsWith("series-"));
      if (series && "visible" in model.attributes) model.visible = !page.hidden.includes(series.slice(7));
    }
  };
  const draw = async (script) => {
    const target = document.getElementById(script.dataset.plot);
    target.replaceChildren();
    const [view] = await Bokeh.embed.embed_item(JSON.parse(themed(script.textContent)));
    drawn.set(script, view);
    page.plots.set(target.id, view);
    hide(view);
    for (const listener of listeners) listener(view, target.id);
  };
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      seen.unobserve(entry.target);
      draw(document.querySelector(`[data-plot="${entry.target.id}"]`));
    }
  }, { rootMargin: "600px" });
  for (const target of page.all(".interactive")) {
    // Room is kept from the start, so that nothing moves when a figure is drawn.
    const { doc } = JSON.parse(document.querySelector(`[data-plot="${target.id}"]`).textContent);
    target.style.minHeight = `${doc.roots[0].attributes.height}px`;
    seen.observe(target);
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    for (const script of drawn.keys()) draw(script);
  });
  page.onModels(() => drawn.forEach(hide));
})();
