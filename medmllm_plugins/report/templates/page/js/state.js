"use strict";
// The page is readable without these scripts, which add interactive figures, sorting, filters and dialogs.
document.documentElement.classList.add("scripted");

// What the scripts share. Filters are kept in the hash after the section's name, as in #errors?label=benign&hide=1, so
// that a copied address opens the same view.
const page = (() => {
  const read = () => {
    const [section, query = ""] = location.hash.slice(1).split("?");
    return { section, values: new URLSearchParams(query) };
  };
  let { section, values } = read();
  const listeners = [];
  const write = () => {
    const query = values.toString();
    history.replaceState(null, "", `#${section}${query ? `?${query}` : ""}`);
  };
  const state = {
    get: (name) => values.get(name) ?? "",
    set: (name, value) => {
      if ((values.get(name) ?? "") === value) return;
      if (value) values.set(name, value);
      else values.delete(name);
      write();
    },
  };
  addEventListener("hashchange", () => {
    const next = read();
    section = next.section;
    if (location.hash.includes("?")) values = next.values;
    else if (values.size) write(); // a link to a section keeps the filters
    reveal("auto");
  });
  const reveal = (behavior) => {
    const target = section && document.getElementById(section);
    if (!target) return;
    for (let element = target; element; element = element.parentElement) {
      if (element.tagName === "DETAILS") element.open = true; // a link into a folded part unfolds it
    }
    target.scrollIntoView({ behavior });
  };
  // After the first figures have their room; a browser scrolls before.
  addEventListener("load", () => requestAnimationFrame(() => requestAnimationFrame(() => reveal("instant"))));
  return {
    all: (selector, root = document) => Array.from(root.querySelectorAll(selector)),
    state,
    hidden: [],
    onModels: (listener) => listeners.push(listener),
    hideModels: (hidden) => {
      page.hidden = hidden;
      for (const listener of listeners) listener(hidden);
    },
  };
})();
