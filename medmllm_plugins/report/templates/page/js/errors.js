// The error browser: confusion matrices whose cells filter thumbnails, and a dialog for each document.
(() => {
  const UNREADABLE = "(unreadable)";
  const statuses = { ambiguous: "names several classes", out_of_list: "names no class", refusal: "refuses to answer" };
  const percent = (share) => (share > 0.999 ? "> 99.9%" : share > 0 && share < 0.001 ? "< 0.1%" : `${(100 * share).toFixed(1)}%`);
  const number = (count) => count.toLocaleString("en");
  const shorten = (text, length) => (text.length > length ? `${text.slice(0, length - 1)}…` : text);

  // Builds elements; texts are never parsed as HTML.
  const make = (tag, attributes = {}, ...children) => {
    const drawing = ["svg", "use"].includes(tag);
    const element = drawing ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };
  const isolate = (text) => make("bdi", {}, text);
  const drawing = (id, width, height, label) => {
    const picture = make("svg", { viewBox: `0 0 ${width} ${height}`, focusable: "false" }, make("use", { href: `#${id}` }));
    if (label) {
      picture.setAttribute("role", "img");
      picture.setAttribute("aria-label", label);
    } else picture.setAttribute("aria-hidden", "true");
    return picture;
  };

  const readAnswer = ([predicted, status, confidence, shares, text, hidden, related], classes) => ({
    predicted, status, confidence, shares, hidden, related,
    text: text === null ? classes[predicted] : text === 0 ? null : text,
  });

  const browserCount = page.all(".error-browser").length;
  const browsers = page.all(".error-browser").map((root, index) => {
    const data = JSON.parse(root.querySelector("script").textContent);
    for (const question of data.questions) {
      for (const key of Object.keys(question.answers)) question.answers[key] = readAnswer(question.answers[key], data.classes);
    }
    const key = (name) => (index ? `${name}.${index + 1}` : name);
    const controls = page.all("[data-filter-by]", root);
    const radios = page.all(".browse-models input", root);
    const boxes = page.all(".confusion-box", root);
    const list = root.querySelector(".thumbs");
    const status = root.querySelector(".browse-status");
    const more = root.querySelector(".more");
    const models = data.models.filter((model) => !model.reference);
    let model = String(data.models[0].number);
    let shown = 0;
    let matches = [];

    const answered = (answer) => (answer.predicted < 0 ? UNREADABLE : data.classes[answer.predicted]);
    const value = (name) => {
      const control = controls.find((item) => item.dataset.filterBy === name);
      return control ? (control.type === "checkbox" ? (control.checked ? "yes" : "") : control.value.trim()) : "";
    };
    const setValue = (name, text) => {
      const control = controls.find((item) => item.dataset.filterBy === name);
      if (!control) return;
      if (control.type === "checkbox") control.checked = text === "yes";
      else control.value = text;
    };
    const wrong = (question, name) => question.answers[name] && question.answers[name].predicted !== question.label;

    const wanted = () => {
      const [find, label, answer, group, finding] = ["find", "label", "answer", "group", "finding"].map(value);
      const [low, high] = ["from", "to"].map((name) => (value(name) === "" ? null : Number(value(name)) / 100));
      const [allWrong, correct] = [value("all-wrong"), value("correct")];
      const words = find.toLowerCase();
      const wholeGroup = data.questions.some((question) => question.group === group);
      return data.questions.filter((question) => {
        const given = question.answers[model];
        if (!given || (!correct && !wrong(question, model))) return false;
        if (label && data.classes[question.label] !== label) return false;
        if (answer && answered(given) !== answer) return false;
        if (group && !(wholeGroup ? question.group === group : question.group.includes(group))) return false;
        if (finding && question.finding !== finding) return false;
        if (low !== null && !(given.confidence !== null && given.confidence >= low)) return false;
        if (high !== null && !(given.confidence !== null && given.confidence <= high)) return false;
        if (allWrong && !models.every((item) => wrong(question, item.number))) return false;
        return !words || question.id.toLowerCase().includes(words) || (given.text ?? "").toLowerCase().includes(words);
      });
    };
    const order = (left, right) => {
      const [first, second] = [left, right].map((question) => question.answers[model]);
      return wrong(right, model) - wrong(left, model) || (second.confidence ?? -1) - (first.confidence ?? -1)
        || (left.id < right.id ? -1 : 1);
    };

    const thumbnail = (question) => {
      const given = question.answers[model];
      const bad = wrong(question, model);
      const sure = given.confidence === null ? "" : percent(given.confidence);
      const answer = given.predicted < 0 ? "unreadable" : data.classes[given.predicted];
      const button = make("button", {
        type: "button", class: "thumb",
        "aria-label": `${question.id}: true class ${data.classes[question.label]}, answered ${answer}, ${bad ? "wrong" : "correct"}${sure ? `, ${sure} confident` : ""}`,
      });
      if (question.picture) {
        const [id, , , , , , , width, height] = question.picture;
        button.append(make("span", { class: "frame" }, drawing(id, width, height)));
      } else if (!root.classList.contains("no-pictures")) button.append(make("span", { class: "frame" }, "no picture"));
      else button.append(make("span", { class: "thumb-id" }, isolate(shorten(question.id, 60))));
      const line = make("span", { class: "thumb-answer" });
      if (bad) line.append(isolate(shorten(data.classes[question.label], 40)), " → ", isolate(shorten(answer, 40)));
      else line.append("✓ ", isolate(shorten(answer, 40)));
      button.append(line, make("span", { class: "thumb-sure" }, sure || (given.predicted < 0 ? statuses[given.status] : "")));
      button.addEventListener("click", () => open(browser, question));
      return make("li", {}, button);
    };

    // Whole lines; fewer where the page has several data sets.
    const several = () => (browserCount > 1 ? 2 : 3) * getComputedStyle(list).gridTemplateColumns.split(" ").length;
    const render = () => {
      list.replaceChildren(...matches.slice(0, shown).map(thumbnail));
      more.classList.toggle("off", matches.length <= shown);
      more.textContent = `Show ${Math.min(several(), matches.length - shown)} more`;
    };
    const update = () => {
      for (const box of boxes) box.classList.toggle("chosen", box.dataset.model === model);
      matches = wanted().sort(order);
      shown = several();
      const noun = data.questions.some((question) => question.finding || question.variant) ? "questions" : "documents";
      const errors = value("correct") ? "" : matches.length === 1 ? ", answered wrongly" : ", all answered wrongly";
      status.textContent = `${number(matches.length)} of ${number(data.total)} ${noun}${matches.length ? errors : ""}`;
      for (const button of page.all("[data-cell]", root)) {
        const [label, answer] = cell(button);
        button.setAttribute("aria-pressed", String(value("label") === label && value("answer") === answer));
      }
      render();
    };
    const save = () => {
      for (const control of controls) page.state.set(key(control.dataset.filterBy), value(control.dataset.filterBy));
      page.state.set(key("model"), model === first() ? "" : model);
    };
    const change = () => {
      save();
      update();
    };
    const cell = (button) => {
      const [label, answer] = button.dataset.cell.split(",").map(Number);
      return [data.classes[label], answer < 0 ? UNREADABLE : data.classes[answer]];
    };
    const visible = () => data.models.filter((item) => !page.hidden.includes(String(item.number)));
    const first = () => String((visible()[0] ?? data.models[0]).number);
    const choose = (name) => {
      const allowed = visible().some((item) => String(item.number) === name);
      model = allowed ? name : first();
      for (const radio of radios) radio.checked = radio.value === model;
    };
    const restore = () => {
      for (const control of controls) setValue(control.dataset.filterBy, page.state.get(key(control.dataset.filterBy)));
      choose(page.state.get(key("model")));
      update();
    };

    // Counts become buttons.
    for (const count of page.all("[data-cell]", root)) {
      const button = make("button", { type: "button", "data-cell": count.dataset.cell, "aria-pressed": "false" }, ...count.childNodes);
      const [label, answer] = cell(button);
      const [counted, share] = Array.from(button.children, (part) => part.textContent);
      button.setAttribute("aria-label", `${counted}, ${share}: true class ${label}, answered ${answer === UNREADABLE ? "unreadable" : answer}`);
      count.replaceWith(button);
      button.addEventListener("click", () => {
        const pressed = button.getAttribute("aria-pressed") === "true";
        setValue("label", pressed ? "" : label);
        setValue("answer", pressed ? "" : answer);
        setValue("correct", !pressed && label === answer ? "yes" : "");
        change();
      });
    }
    for (const control of controls) control.addEventListener("input", change);
    root.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
    root.querySelector("[data-clear]").addEventListener("click", () => {
      for (const control of controls) setValue(control.dataset.filterBy, "");
      change();
    });
    for (const radio of radios) {
      radio.addEventListener("change", () => {
        choose(radio.value);
        change();
      });
    }
    more.addEventListener("click", () => {
      const next = shown;
      shown += several();
      render();
      list.children[next]?.querySelector("button").focus();
    });
    const browser = {
      data, key, restore, wrong,
      matches: () => matches,
      visible,
      model: () => model,
      focus: (question) => {
        const position = matches.indexOf(question);
        if (position >= shown) {
          shown = position + 1;
          render();
        }
        list.children[position]?.querySelector("button").focus();
        return position >= 0;
      },
      refresh: () => {
        choose(model);
        update();
      },
    };
    return browser;
  });

  // One dialog for all documents.
  const dialog = document.getElementById("document");
  if (!dialog) return;
  const pictureBox = dialog.querySelector(".document-picture");
  const factBox = dialog.querySelector(".document-facts");
  let current = null;

  const slider = (title, options, change) => {
    const input = make("input", { type: "range", ...options });
    const output = make("output");
    const set = () => {
      output.textContent = change(Number(input.value));
    };
    input.addEventListener("input", set);
    set();
    return make("label", { class: "slider" }, title, input, output);
  };
  const mapsOf = (data, question) => page.all(".card").filter((card) =>
    card.dataset.dataset === data.dataset && card.dataset.document === question.document && !page.hidden.includes(card.dataset.series));

  const showPicture = ({ browser, question }, chosen) => {
    const cards = mapsOf(browser.data, question);
    const map = chosen ?? (question.picture ? null : cards[0]);
    const view = make("div", {}, ...pictureParts(question, map));
    if (!cards.length) return pictureBox.replaceChildren(view);
    const select = make("select", {}, make("option", { value: "" }, "no map"));
    cards.forEach((card, position) => select.append(make("option", { value: String(position) }, card.dataset.title)));
    select.value = map ? String(cards.indexOf(map)) : "";
    select.addEventListener("change", () => view.replaceChildren(...pictureParts(question, cards[select.value])));
    return pictureBox.replaceChildren(make("label", { class: "document-map" }, "Map", select), view);
  };
  const pictureParts = (question, map) => {
    const parts = [];
    let picture = null;
    let slices = 1;
    let caption = "";
    if (map) {
      picture = map.querySelector(".map")?.cloneNode(true);
      slices = Number(map.dataset.slices);
    } else if (question.picture) {
      const [name, large, count, width, height, ownWidth, ownHeight] = question.picture;
      picture = drawing(large ? `${name}-large` : name, width, height, `image of ${question.document}`);
      slices = count;
      const size = `${ownWidth} × ${ownHeight} pixels`;
      caption = width < ownWidth ? `${size}, shown at ${width} × ${height}` : size;
    }
    if (picture) {
      const box = picture.viewBox.baseVal;
      parts.push(picture);
      if (slices > 1) {
        parts.push(slider("Slice", { min: 1, max: slices, value: Math.floor(slices / 2) + 1 }, (slice) => {
          box.y = (slice - 1) * box.height;
          return `${slice} of ${slices}`;
        }));
      }
    } else if (!map) parts.push(make("p", { class: "frame" }, "no picture"));
    if (caption) parts.push(make("p", { class: "note" }, caption));
    if (map) {
      if (picture?.querySelector(".layer")) {
        parts.push(slider("Opacity", { min: 0, max: 100, step: 5, value: 60 }, (opacity) => {
          picture.style.setProperty("--opacity", String(opacity / 100));
          return `${opacity}%`;
        }));
      }
      for (const extra of page.all(".tokens, .mini", map)) parts.push(extra.cloneNode(true));
    }
    return parts;
  };

  const fact = (name, text) => make("div", {}, make("dt", {}, name), make("dd", {}, isolate(text)));
  const bars = (answer, question, classes, series) => {
    const rows = answer.shares.map((share, index) => [share, index]);
    const kept = rows.length <= 10 ? rows
      : rows.filter(([share, index]) => index === question.label || rows.filter(([other]) => other > share).length < 8);
    return make("div", { class: "bars", style: `--tone: var(--series-${series % 6})` }, ...kept.flatMap(([share, index]) => [
      make("span", { class: index === question.label ? "true" : "" }, isolate(classes[index]), index === question.label ? " (true)" : ""),
      make("span", { class: "track" }, make("span", { class: "fill", style: `width: ${100 * share}%` })),
      make("span", { class: "share" }, percent(share)),
    ]));
  };
  const related = (answer, question, data, unfolded) => {
    const rows = answer.related.map(([name, predicted, text]) => {
      const [title, control] = data.related[name]; // without its own image, a right answer is a guess
      const good = predicted === question.label;
      const words = predicted < 0 ? ["unreadable", ...(text ? [": “", isolate(text), "”"] : [])] : [isolate(data.classes[predicted])];
      return make("tr", {}, make("th", { scope: "row" }, isolate(title)),
        make("td", {}, control ? make("span", {}, ...words) : make("span", { class: good ? "correct" : "wrong" }, good ? "✓ " : "✗ ", ...words)));
    });
    if (!rows.length) return [];
    const changed = answer.related.filter(([, predicted]) => predicted !== answer.predicted).length;
    return [make("details", { class: "related", ...(unfolded ? { open: "" } : {}) },
      make("summary", {}, `Asked otherwise: ${changed} of ${rows.length} answers differ`), make("table", {}, make("tbody", {}, ...rows)))];
  };
  const answerBlock = (model, question, data, unfolded) => {
    const answer = question.answers[model.number];
    if (!answer) return [];
    const good = answer.predicted === question.label;
    const words = answer.predicted < 0 ? `unreadable: ${statuses[answer.status] ?? answer.status}` : data.classes[answer.predicted];
    const head = make("h4", {}, isolate(model.label), " ",
      make("span", { class: good ? "correct" : "wrong" }, good ? "✓ " : "✗ ", isolate(words)),
      ...(answer.confidence === null ? [] : [` ${percent(answer.confidence)}`]));
    const parts = [head];
    if (answer.shares.length) parts.push(bars(answer, question, data.classes, model.number));
    if (answer.text !== null) {
      parts.push(make("p", { class: "said" }, "Answer, word for word"));
      parts.push(make("pre", { dir: "auto", tabindex: "0", "aria-label": `Answer of ${model.label}`, role: "region" }, answer.text || "(empty)"));
      if (answer.hidden) parts.push(make("p", { class: "note" }, `and ${number(answer.hidden)} more characters in the run folder`));
    }
    return [make("div", { class: "document-answer" }, ...parts, ...related(answer, question, data, unfolded))];
  };

  const showFacts = ({ browser, question }) => {
    const { data } = browser;
    const list = make("dl", { class: "mini" }, fact("true class", data.classes[question.label]));
    for (const name of ["finding", "variant", "group", "fold"]) {
      if (question[name] && !(name === "group" && question.group === question.document)) list.append(fact(name, question[name]));
    }
    if (question.document !== question.id) list.append(fact("document", question.document));
    const chosen = browser.model();
    const models = browser.visible().sort((left, right) => (String(right.number) === chosen) - (String(left.number) === chosen));
    const prompts = new Map();
    const way = [question.finding, question.variant].filter(Boolean).join(" | ");
    for (const model of models) {
      const prompt = model.prompts[way] ?? model.prompt;
      if (prompt) prompts.set(prompt, [...(prompts.get(prompt) ?? []), model.label]);
    }
    const asked = Array.from(prompts, ([prompt, labels]) => make("details", {},
      make("summary", {}, prompts.size > 1 ? `Prompt of ${labels.join(", ")}` : "Prompt"),
      make("p", { class: "note" }, "Prompt as the model got it for the first document that was asked this question."), make("pre", { dir: "auto", tabindex: "0" }, prompt)));
    factBox.replaceChildren(list, ...models.flatMap((model, position) => answerBlock(model, question, data, position === 0)), ...asked);
  };

  const open = (browser, question, map = null) => {
    current = { browser, question, opener: dialog.open ? current?.opener : document.activeElement };
    dialog.querySelector("#document-title").replaceChildren(isolate(question.id));
    const matches = browser.matches();
    const position = matches.indexOf(question);
    dialog.querySelector(".document-position").textContent = position < 0 ? "" : `${number(position + 1)} of ${number(matches.length)}`;
    for (const button of page.all("[data-step]", dialog)) button.disabled = !matches[position + Number(button.dataset.step)];
    showPicture(current, map);
    showFacts(current);
    for (const other of browsers) page.state.set(other.key("doc"), other === browser ? question.id : "");
    if (!dialog.open) {
      dialog.showModal();
      dialog.querySelector("[data-close]").focus();
    }
    dialog.scrollTop = 0;
  };
  const step = (direction) => {
    const matches = current.browser.matches();
    const next = matches[matches.indexOf(current.question) + direction];
    if (next) open(current.browser, next);
  };
  for (const button of page.all("[data-step]", dialog)) button.addEventListener("click", () => step(Number(button.dataset.step)));
  dialog.querySelector("[data-close]").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close(); // beside the document
  });
  dialog.addEventListener("keydown", (event) => {
    const direction = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!direction || event.target.matches("input, select, textarea")) return;
    event.preventDefault();
    step(direction);
  });
  dialog.addEventListener("close", () => {
    const { browser, question, opener } = current;
    page.state.set(browser.key("doc"), "");
    if (opener?.matches(".card *") || !browser.focus(question)) opener?.focus();
  });

  const restore = () => {
    for (const browser of browsers) browser.restore();
    const linked = browsers.find((browser) => page.state.get(browser.key("doc")));
    const id = linked && page.state.get(linked.key("doc"));
    const question = linked?.data.questions.find((item) => item.id === id);
    if (question && !(dialog.open && current.question === question)) open(linked, question);
    else if (!question && dialog.open) dialog.close();
  };
  let restored = false; // when it is known which models are hidden
  page.onModels(() => {
    if (!restored) restore();
    else for (const browser of browsers) browser.refresh();
    restored = true;
  });
  addEventListener("hashchange", restore);
  page.documentOf = (card) => {
    for (const browser of browsers) {
      if (browser.data.dataset !== card.dataset.dataset) continue;
      const question = browser.data.questions.find((item) => item.document === card.dataset.document);
      if (question) return () => open(browser, question, card);
    }
    return null;
  };
})();
