"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const FOLD_TOKENS = 400, KEEP_TOKENS = 120, FOLD_MESSAGES = 5, OPEN_DOCUMENTS = 3;

  const make = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "class") node.className = value;
      else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else node.setAttribute(name, value);
    }
    node.append(...children.filter((child) => child !== null));
    return node;
  };
  const count = (number) => number.toLocaleString("en");
  const spread = (runs) => runs.flatMap(([length, value]) => Array(length).fill(value));
  const share = (one) => one.supervised / Math.max(1, one.pieces.length);

  data.documents.forEach((one, place) => {
    one.place = place;
    one.w = spread(one.weight);
    one.m = spread(one.message);
    one.p = spread(one.part);
    one.isControl = new Set(one.control);
    one.isPartial = new Set(one.partial);
    one.role = (token) => one.roles[one.m[token]] || "nobody";
  });

  const partName = (one, token) => data.parts[one.p[token]];
  const isStop = (one, token) => one.w[token] !== 0 && partName(one, token) === "stop";

  // One token.
  const drawToken = (one, token) => {
    const weight = one.w[token], classes = ["t"];
    if (isStop(one, token)) classes.push("stop");
    else if (weight) classes.push("on");
    if (weight && partName(one, token) !== "content") classes.push(partName(one, token).replace(" ", "-"));
    if (one.isControl.has(token)) classes.push("control");
    if (one.isPartial.has(token)) classes.push("partial");
    const node = make("span", { class: classes.join(" "), "data-token": token }, one.pieces[token]);
    if (weight && weight !== 1) node.style.setProperty("--strength", `${Math.min(100, 35 + 65 * weight)}%`);
    return node;
  };

  // Tokens [start, end) of one message; long stretches without loss are folded.
  const drawRange = (one, start, end) => {
    const nodes = [];
    let last = 1;
    for (let token = start; token < end; ) {
      let stretch = token;
      while (stretch < end && one.w[stretch] === 0) stretch++;
      if (stretch - token > FOLD_TOKENS) {
        const from = token + KEEP_TOKENS, to = stretch - KEEP_TOKENS;
        for (let i = token; i < from; i++) nodes.push(drawToken(one, i));
        const fold = make("button", { class: "fold", type: "button" }, `${count(to - from)} tokens without loss`);
        fold.addEventListener("click", () => fold.replaceWith(...Array.from({ length: to - from }, (_, i) => drawToken(one, from + i))));
        nodes.push(fold);
        token = to;
        continue;
      }
      const weight = one.w[token];
      if (weight && weight !== last) {
        nodes.push(make("span", { class: "times" }, `×${+weight.toPrecision(4)}`));
        last = weight;
      }
      nodes.push(drawToken(one, token++));
    }
    return nodes;
  };

  // Tokens [start, end) of every message, with how many of them are trained.
  const messagesOf = (one) => {
    const messages = [];
    for (let start = 0, end; start < one.m.length; start = end) {
      let trained = 0;
      for (end = start; end < one.m.length && one.m[end] === one.m[start]; end++) trained += end > 0 && one.w[end] !== 0;
      messages.push({ start, end, trained });
    }
    return messages;
  };

  const drawMessage = (one, { start, end, trained }) => {
    const role = one.role(start);
    const note = trained ? `${count(trained)} of ${count(end - start)}` : count(end - start);
    const name = role === "nobody" ? (trained ? "text" : "no message") : `${role} ${one.m[start]}`;
    const heading = make("h2", {}, name, make("small", {}, note));
    return make("section", { class: role }, heading, make("p", {}, ...drawRange(one, start, end)));
  };

  // All messages; many without loss in a row are folded, but for the first and the two before the next trained one.
  const drawMessages = (one) => {
    const messages = messagesOf(one), box = make("div", { class: "tokens" });
    for (let first = 0, next; first < messages.length; first = next) {
      next = first + 1;
      if (messages[first].trained) { box.append(drawMessage(one, messages[first])); continue; }
      while (next < messages.length && !messages[next].trained) next++;
      const folded = next - first > FOLD_MESSAGES ? messages.slice(first + 1, next - 2) : [];
      const shown = messages.slice(first, next).filter((message) => !folded.includes(message)).map((message) => drawMessage(one, message));
      if (folded.length) {
        const tokens = folded.at(-1).end - folded[0].start;
        const fold = make("button", { class: "fold", type: "button" }, `${count(folded.length)} messages, ${count(tokens)} tokens without loss`);
        const line = make("section", { class: "nobody" }, make("h2", {}, "…"), make("p", {}, fold));
        fold.addEventListener("click", () => line.replaceWith(...folded.map((message) => drawMessage(one, message))));
        shown.splice(1, 0, line);
      }
      box.append(...shown);
    }
    return box;
  };

  // The whole document in one strip: filled where there is loss, a hairline of the role's colour elsewhere.
  const drawStrip = (one, canvas) => {
    const colour = (name) => {
      const probe = make("span");
      probe.style.color = `var(--${name})`;
      document.body.append(probe);
      const value = getComputedStyle(probe).color;
      probe.remove();
      return value;
    };
    const colours = Object.fromEntries(["system", "user", "assistant", "tool", "nobody", "stop-edge", "rule"].map((name) => [name, colour(name)]));
    const width = (canvas.width = Math.max(1, Math.round(canvas.clientWidth * devicePixelRatio)));
    const height = (canvas.height = Math.round(12 * devicePixelRatio));
    const pen = canvas.getContext("2d"), total = one.m.length;
    for (let x = 0; x < width; x++) {
      const from = Math.floor((x * total) / width), to = Math.max(from + 1, Math.floor(((x + 1) * total) / width));
      let loss = 0, stop = false;
      for (let i = from; i < to; i++) { loss += one.w[i] !== 0; stop = stop || isStop(one, i); }
      const role = one.role(from);
      pen.fillStyle = stop ? colours["stop-edge"] : colours[role];
      if (loss) pen.fillRect(x, 0, 1, height);
      else { pen.globalAlpha = 0.55; pen.fillRect(x, height * 0.62, 1, height * 0.38); pen.globalAlpha = 1; }
    }
  };

  const drawDocument = (one, opened) => {
    const length = one.pieces.length;
    const alarm = one.supervised === 0 ? make("small", { class: "alarm" }, "nothing is trained") : null;
    const typed = one.typed ? make("small", { class: "alarm" }, `${count(one.typed)} control strings typed as text`) : null;
    const stage = one.stage ? make("small", {}, `turn ${one.stage} of a split conversation`) : null;
    const why = one.why ? make("small", { class: "why" }, one.why) : null;
    const figures = make("small", { class: "right" }, `${count(length)} tokens · ${count(one.supervised)} with loss · ${(100 * share(one)).toFixed(share(one) < 0.1 ? 1 : 0)} %`);
    const strip = make("canvas", { class: "strip", "aria-hidden": "true" });
    const where = make("span", { class: "where" }, one.where || "document");
    const head = make("button", { type: "button", "aria-expanded": "false" }, make("div", { class: "line" }, where, why, stage, typed, alarm, figures), strip);
    const card = make("article", { "data-place": one.place }, head);
    const toggle = () => {
      const body = card.querySelector(".tokens");
      if (body) body.remove();
      else card.append(drawMessages(one));
      head.setAttribute("aria-expanded", String(!body));
    };
    head.addEventListener("click", toggle);
    if (opened) toggle();
    requestAnimationFrame(() => drawStrip(one, strip));
    return card;
  };

  const orders = {
    "worst first": (a, b) => a.place - b.place,
    "longest": (a, b) => b.pieces.length - a.pieces.length,
    "least trained": (a, b) => share(a) - share(b),
    "most trained tokens": (a, b) => b.supervised - a.supervised,
    "most control strings": (a, b) => b.typed - a.typed,
    "as in the file": (a, b) => a.where.localeCompare(b.where, "en", { numeric: true }) || a.stage - b.stage,
  };
  const filters = {
    "all": () => true,
    "without loss": (one) => one.supervised === 0,
    "with control strings": (one) => one.typed > 0,
    "with weights": (one) => one.w.some((weight) => weight !== 0 && weight !== 1),
    "with tools": (one) => one.roles.includes("tool"),
    "split by turn": (one) => one.stage > 0,
  };

  const main = document.getElementById("documents");
  const options = (table) => Object.keys(table).map((name) => make("option", {}, name));
  const order = make("select", {}, ...options(orders));
  const filter = make("select", {}, ...options(filters));
  const search = make("input", { type: "search", placeholder: "text, file or source", size: "18" });
  const dim = make("input", { type: "checkbox" });

  const redraw = () => {
    const wanted = search.value.toLowerCase();
    const contains = (one) => !wanted || `${one.where} ${one.source} ${one.pieces.join("")}`.toLowerCase().includes(wanted);
    const chosen = data.documents.filter(filters[filter.value]).filter(contains).sort(orders[order.value]);
    const note = `${count(chosen.length)} of ${count(data.documents.length)} documents on this page` + (data.total > data.documents.length ? `, of ${count(data.total)} in all` : "");
    main.replaceChildren(make("p", { id: "shown" }, note), ...chosen.map((one, place) => drawDocument(one, place < OPEN_DOCUMENTS)));
  };
  let pause = 0;
  order.addEventListener("change", redraw);
  filter.addEventListener("change", redraw);
  search.addEventListener("input", () => { clearTimeout(pause); pause = setTimeout(redraw, 150); });
  dim.addEventListener("change", () => document.body.classList.toggle("only-trained", dim.checked));

  const isDark = () => document.documentElement.dataset.theme ? document.documentElement.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  const theme = make("button", { type: "button", title: "light or dark" }, "◐");
  theme.addEventListener("click", () => { document.documentElement.dataset.theme = isDark() ? "light" : "dark"; redraw(); });

  const key = (classes, text) => make("span", { class: `t ${classes}` }, text);
  const legend = make("div", { class: "legend" }, key("on", " trained "), key("on reasoning", " reasoning "), key("on tool-call", " tool call "), key("stop", " stop token "), key("control", " control token "), key("", " read only "), make("span", {}, make("span", { class: "times" }, "×0.5"), "weight"));
  document.getElementById("tools").append(make("div", {}, make("label", {}, "Order", order), make("label", {}, "Show", filter), search, make("label", {}, dim, "fade the rest"), make("span", { class: "grow" }), legend, theme));

  const tip = document.getElementById("tip");
  const row = (name, value) => make("tr", {}, make("td", {}, name), make("td", {}, value));
  document.addEventListener("pointerover", (event) => {
    const node = event.target.closest?.("[data-token]");
    tip.hidden = !node;
    if (!node) return;
    const one = data.documents[+node.closest("article").dataset.place], token = +node.dataset.token;
    const message = one.m[token] < 0 ? "none" : `${one.m[token]} (${one.role(token)})`;
    const kind = one.isControl.has(token) ? "control token" : one.isPartial.has(token) ? "part of a character" : "text";
    tip.replaceChildren(make("b", {}, one.pieces[token].trim() || "⎵"), make("table", {}, row("id", String(one.ids[token])), row("place", `${token} of ${one.pieces.length}`), row("message", message), row("part", partName(one, token)), row("kind", kind), row("loss weight", String(+one.w[token].toPrecision(6)))));
    const box = node.getBoundingClientRect();
    const left = Math.min(box.left, innerWidth - tip.offsetWidth - 12), below = box.bottom + 8;
    tip.style.left = `${Math.max(8, left)}px`;
    tip.style.top = `${below + tip.offsetHeight > innerHeight ? box.top - tip.offsetHeight - 8 : below}px`;
  });
  addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });

  redraw();
})();
