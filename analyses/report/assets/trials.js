// The browser of trials: filters, a list that draws only the rows in sight, and one item in all conditions.
// Texts of models and prompts are put into the page as text, never as markup.
(function () {
  "use strict";
  const source = document.getElementById("data-trials");
  const browser = document.getElementById("browser");
  if (!source || !browser) return;
  const data = JSON.parse(source.textContent);
  if (data.n === 0) return;

  const ROW = 34, SPARE = 8, CARDS = 60;
  const columns = data.columns;
  const word = (name, row) => {
    const column = columns[name];
    if (!column) return null;
    const at = column.at[row];
    return at < 0 ? null : column.words[at];
  };
  const numberAt = (name, row) => (data.readouts[name] || data.numbers[name] || [])[row] ?? null;
  const shown = new Intl.NumberFormat("en", { maximumFractionDigits: 2 });
  const precise = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
  const format = (value) => {
    if (value === null) return "\u2013";
    if (Number.isInteger(value)) return shown.format(value);
    return Math.abs(value) < 0.1 || Math.abs(value) >= 1e5 ? precise.format(value) : value.toFixed(2);
  };
  const counted = (n, noun) => `${shown.format(n)} ${noun}${n === 1 ? "" : "s"}`;

  const make = (tag, className, text) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined && text !== null) element.textContent = text;
    return element;
  };

  // The items, in order: all rows of each.
  const items = [];
  const itemOf = new Int32Array(data.n);
  const byName = new Map();
  for (let row = 0; row < data.n; row++) {
    const name = `${columns.stage.at[row]}/${columns.item.at[row]}`;
    let place = byName.get(name);
    if (place === undefined) {
      place = items.length;
      byName.set(name, place);
      items.push({ stage: word("stage", row), item: word("item", row), rows: [] });
    }
    items[place].rows.push(row);
    itemOf[row] = place;
  }
  // An output that nobody asked for is none: no token, and no reason to end.
  const textOf = (row) => word("finish", row) === null && (data.numbers.n_new || [])[row] === 0 ? null : word("text", row);
  const readouts = Object.keys(data.readouts);
  const primaries = [...new Set(Object.values(data.stages).map((stage) => stage.primary))];
  const ordered = [...readouts.filter((name) => primaries.includes(name)), ...readouts.filter((name) => !primaries.includes(name))];
  const folded = columns.text ? columns.text.words.map((text) => text.toLowerCase()) : [];

  // What is asked of the list, and what it shows.
  const initial = () => ({ text: "", stage: "", conditions: new Set(), group: "", status: "", readout: ordered[0] || "", least: "", most: "", sort: "", down: false });
  let asked = initial();
  let rows = [];
  let chosen = -1; // the place in `rows` that the keyboard is at
  let open = null; // the item that is shown

  const filters = document.getElementById("filters");
  const body = document.getElementById("rows-body");
  const space = document.getElementById("rows-space");
  const head = document.getElementById("rows-head");
  const tally = document.getElementById("tally");
  const picker = document.getElementById("conditions-picker");
  const boxes = picker.querySelector(".boxes");
  const narrow = window.matchMedia("(max-width: 700px)");

  const options = (select, values, all) => {
    select.replaceChildren(...(all ? [["", all]] : []).concat(values.map((value) => [value, value])).map(([value, text]) => {
      const option = make("option", "", text);
      option.value = value;
      return option;
    }));
    select.closest("label, fieldset").hidden = values.length < (all ? 2 : 1);
  };
  options(filters.elements.stage, columns.stage.words, "All");
  options(filters.elements.group, columns.group ? [...columns.group.words].sort() : [], "All");
  options(filters.elements.status, columns.status.words, "All");
  options(filters.elements.readout, ordered, "");

  const labels = new Map();
  for (const stage of Object.values(data.stages)) for (const [name, label] of Object.entries(stage.conditions)) labels.set(name, label);
  const conditionOrder = [...labels.keys()];
  const checks = new Map();
  for (const name of conditionOrder) {
    const label = make("label", "box");
    const box = make("input");
    box.type = "checkbox";
    box.addEventListener("change", () => {
      if (box.checked) asked.conditions.add(name);
      else asked.conditions.delete(name);
      changed();
    });
    label.append(box, make("span", "name", name));
    if (labels.get(name) !== name) label.append(make("span", "aside", labels.get(name)));
    checks.set(name, box);
    boxes.append(label);
  }
  const finder = picker.querySelector("input[type=search]");
  finder.hidden = conditionOrder.length < 8;
  finder.addEventListener("input", () => {
    const wanted = finder.value.toLowerCase();
    for (const label of boxes.children) label.hidden = !label.textContent.toLowerCase().includes(wanted);
  });
  document.addEventListener("click", (event) => { if (!picker.contains(event.target)) picker.open = false; });

  // Filtering.
  const filter = () => {
    const wanted = asked.text.trim().toLowerCase();
    const texts = wanted ? folded.map((text) => text.includes(wanted)) : null;
    const stage = asked.stage === "" ? -1 : columns.stage.words.indexOf(asked.stage);
    const group = asked.group === "" ? -1 : columns.group.words.indexOf(asked.group);
    const status = asked.status === "" ? -1 : columns.status.words.indexOf(asked.status);
    const conditions = asked.conditions.size ? columns.condition.words.map((name) => asked.conditions.has(name)) : null;
    const least = asked.least === "" ? -Infinity : Number(asked.least);
    const most = asked.most === "" ? Infinity : Number(asked.most);
    const bounded = least !== -Infinity || most !== Infinity;
    const values = data.readouts[asked.readout] || [];
    rows = [];
    for (let row = 0; row < data.n; row++) {
      if (stage >= 0 && columns.stage.at[row] !== stage) continue;
      if (group >= 0 && columns.group.at[row] !== group) continue;
      if (status >= 0 && columns.status.at[row] !== status) continue;
      if (conditions && !conditions[columns.condition.at[row]]) continue;
      if (bounded) {
        const value = values[row];
        if (value === null || value === undefined || value < least || value > most) continue;
      }
      if (texts && (columns.text.at[row] < 0 || !texts[columns.text.at[row]])) continue;
      rows.push(row);
    }
    if (asked.sort) sort();
  };
  const sort = () => {
    const sign = asked.down ? -1 : 1;
    const values = data.readouts[asked.sort];
    const key = values ? (row) => values[row] : (row) => word(asked.sort, row);
    rows.sort((a, b) => {
      const one = key(a), other = key(b);
      if (one === null || other === null) return one === other ? a - b : one === null ? 1 : -1;
      return one < other ? -sign : one > other ? sign : a - b;
    });
  };

  // The list.
  let layout = [];
  const plan = () => {
    const small = narrow.matches;
    const wide = (name, least, most) => `${Math.min(Math.max(...columns[name].words.map((each) => each.length), least), most) * 0.51 + 0.4}rem`;
    const several = rows.some((row) => word("status", row) !== "ok");
    const told = ordered.filter((name) => rows.some((row) => data.readouts[name][row] !== null));
    const texts = !small && rows.some((row) => textOf(row));
    layout = [{ name: "item", title: "item", width: small ? "3.2rem" : "3.4rem" }];
    if (data.staged && !small) layout.push({ name: "stage", title: "stage", width: wide("stage", 6, 16) });
    layout.push({ name: "condition", title: "condition", width: small || !texts ? "minmax(0, 1fr)" : wide("condition", 10, 30) });
    if (!small && columns.group && columns.group.words.length > 1) layout.push({ name: "group", title: "group", width: wide("group", 6, 18) });
    if (several && !small) layout.push({ name: "status", title: "status", width: "5rem" });
    for (const name of told.slice(0, small ? 1 : data.staged && !asked.stage ? 2 : 4)) layout.push({ name, title: name, width: small ? "3.6rem" : `${Math.min(Math.max(name.length, 6), 12) * 0.56}rem`, number: true });
    if (texts) layout.push({ name: "text", title: "output", width: "minmax(0, 1fr)" });
    const grid = layout.map((column) => column.width).join(" ");
    head.style.gridTemplateColumns = grid;
    body.style.setProperty("--columns", grid);
    head.replaceChildren(...layout.map((column) => {
      const button = make("button", column.number ? "number" : "", column.title);
      button.type = "button";
      button.title = `Sort by ${column.title}`;
      if (asked.sort === column.name) button.append(make("span", "", asked.down ? " \u2193" : " \u2191"));
      button.addEventListener("click", () => {
        if (asked.sort !== column.name) Object.assign(asked, { sort: column.name, down: Boolean(column.number) });
        else if (asked.down === Boolean(column.number)) asked.down = !asked.down;
        else asked.sort = "";
        changed();
      });
      return button;
    }));
  };
  const line = (place) => {
    const row = rows[place];
    const element = make("div", place === chosen ? "row chosen" : "row");
    element.setAttribute("role", "option");
    element.setAttribute("aria-selected", String(place === chosen));
    element.id = `trial-${row}`;
    element.dataset.place = place;
    element.style.top = `${place * ROW}px`;
    for (const column of layout) {
      if (column.number) element.append(make("span", "number", format(numberAt(column.name, row))));
      else {
        const text = column.name === "text" ? textOf(row) : word(column.name, row);
        const told = column.name === "text" && text === null ? word("reason", row) : text;
        const kind = column.name === "text" ? (text === null ? "reason" : text === "" ? "aside" : "prose") : column.name === "condition" ? "name" : column.name === "status" && text !== "ok" ? "sign-bad" : "";
        element.append(make("span", kind, text === "" ? "(empty)" : told));
      }
    }
    return element;
  };
  let first = -1, last = -1;
  const draw = (force) => {
    const from = Math.max(0, Math.floor(body.scrollTop / ROW) - SPARE);
    const to = Math.min(rows.length, Math.ceil((body.scrollTop + body.clientHeight) / ROW) + SPARE);
    if (!force && from === first && to === last) return;
    [first, last] = [from, to];
    const lines = [];
    for (let place = from; place < to; place++) lines.push(line(place));
    space.replaceChildren(...lines);
    if (chosen >= from && chosen < to) body.setAttribute("aria-activedescendant", `trial-${rows[chosen]}`);
    else body.removeAttribute("aria-activedescendant");
  };
  const changed = (keep) => {
    filter();
    chosen = -1;
    plan();
    space.style.height = `${Math.max(rows.length, 1) * ROW}px`;
    body.style.height = `${Math.min(Math.max(rows.length, 1), 16) * ROW}px`;
    if (!keep) body.scrollTop = 0;
    draw(true);
    if (!rows.length) space.replaceChildren(make("p", "nothing", "No trial is like that."));
    const held = new Set();
    for (const row of rows) held.add(itemOf[row]);
    tally.textContent = `${shown.format(rows.length)} of ${counted(data.n, "trial")}, ${shown.format(held.size)} of ${counted(items.length, "item")}`;
    const several = asked.conditions.size;
    picker.querySelector("summary").textContent = several === 0 ? "All" : several === 1 ? [...asked.conditions][0] : `${several} of ${conditionOrder.length}`;
    remember();
  };
  body.addEventListener("scroll", () => draw(false), { passive: true });
  window.addEventListener("resize", () => draw(true));
  narrow.addEventListener("change", () => { plan(); draw(true); });
  body.addEventListener("click", (event) => {
    const element = event.target.closest(".row");
    if (!element) return;
    chosen = Number(element.dataset.place);
    draw(true);
    show(itemOf[rows[chosen]], word("condition", rows[chosen]));
  });
  body.addEventListener("keydown", (event) => {
    const step = { j: 1, ArrowDown: 1, k: -1, ArrowUp: -1 }[event.key];
    if (event.metaKey || event.ctrlKey || event.altKey) return;
    if (step) {
      event.preventDefault();
      chosen = Math.min(Math.max(chosen + step, 0), rows.length - 1);
      if (chosen * ROW < body.scrollTop) body.scrollTop = chosen * ROW;
      if ((chosen + 1) * ROW > body.scrollTop + body.clientHeight) body.scrollTop = (chosen + 1) * ROW - body.clientHeight;
      draw(true);
    } else if (event.key === "Enter" && chosen >= 0) {
      event.preventDefault();
      show(itemOf[rows[chosen]], word("condition", rows[chosen]));
    }
  });

  // One item in all conditions.
  const dialog = document.getElementById("item");
  const inside = document.getElementById("item-body");
  const title = document.getElementById("item-title");
  const only = document.getElementById("item-filter");
  const highlight = document.getElementById("highlight");
  options(highlight, data.highlights.map((each) => each.name), "");
  if (data.highlights.length) {
    const none = make("option", "", "nothing");
    none.value = "";
    highlight.append(none);
  }
  const escaped = (text) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
  const patterns = new Map();
  for (const each of data.highlights) {
    const longest = [...each.words].filter(Boolean).sort((a, b) => b.length - a.length).map(escaped);
    if (longest.length) patterns.set(each.name, new RegExp(longest.join("|"), "giu"));
  }
  const letter = /[\p{L}\p{N}_]/u;
  const isWhole = (text, from, to) => !(from > 0 && letter.test(text[from - 1])) && !(to < text.length && letter.test(text[to]));

  // A text with its words marked, and what it shares with the baseline's beginning in grey.
  const prose = (text, shared) => {
    const element = make("p", "prose");
    const pattern = patterns.get(highlight.value);
    const pieces = [];
    let at = 0;
    if (pattern) {
      for (const found of text.matchAll(pattern)) {
        const end = found.index + found[0].length;
        if (found[0] === "") continue;
        pieces.push([at, found.index, ""], [found.index, end, isWhole(text, found.index, end) ? "whole" : "part"]);
        at = end;
      }
    }
    pieces.push([at, text.length, ""]);
    const put = (from, to, kind, same) => {
      if (from >= to) return;
      const piece = kind ? make("mark", kind, text.slice(from, to)) : same ? make("span", "", text.slice(from, to)) : document.createTextNode(text.slice(from, to));
      if (same) piece.classList.add("same");
      element.append(piece);
    };
    for (const [from, to, kind] of pieces) {
      const cut = Math.min(Math.max(shared, from), to);
      put(from, cut, kind, true);
      put(cut, to, kind, false);
    }
    return element;
  };
  const sharedWith = (text, other) => {
    if (text === null || other === null) return 0;
    let i = 0;
    while (i < text.length && i < other.length && text[i] === other[i]) i++;
    if (i === text.length && i === other.length) return i;
    const within = letter.test(text[i] || " ") || letter.test(other[i] || " ");
    while (within && i > 0 && letter.test(text[i - 1])) i--; // not in the middle of a word
    return i;
  };
  const promptText = (place) => {
    const held = data.prompts;
    if (!held || place < 0) return null;
    return held.texts[place] ?? `${held.tokens[place]} tokens; their text was not stored.`;
  };
  const readBy = (row) => {
    const at = data.prompts ? data.prompts.read.at[row] : -1;
    return at < 0 ? [] : data.prompts.read.words[at];
  };
  const roleWords = (role) => role === "donor" ? "Donor" : role === "other_donor" ? "Donor of another item" : `Donor, ${role.replaceAll("_", " ")}`;

  const promptsOf = (item) => {
    const block = make("div", "prompts");
    if (!data.prompts) return block;
    const add = (role, id, text) => {
      const part = make("div", "prompt");
      const line = make("p", "prompt-role", role);
      if (id) line.append(make("span", "name aside", ` ${id}`));
      part.append(line, make("p", "prose", text));
      block.append(part);
    };
    const stage = data.stages[item.stage];
    const base = item.rows.find((row) => word("condition", row) === stage.baseline) ?? item.rows[0];
    const common = data.prompts.fed[base];
    add("Prompt", word("target", base), promptText(common));
    const seen = new Set();
    for (const row of item.rows) for (const [role, place] of readBy(row)) {
      if (seen.has(`${role}/${place}`)) continue;
      seen.add(`${role}/${place}`);
      add(roleWords(role), role === "donor" ? word("donor", row) : "", promptText(place));
    }
    return { block, common };
  };

  const receiptsAt = new Map();
  for (const [write, held] of Object.entries(data.receipts)) {
    const places = new Map();
    held.rows.forEach((row, place) => places.set(row, place));
    receiptsAt.set(write, places);
  }
  const receiptsOf = (row) => {
    const told = [];
    for (const [write, held] of Object.entries(data.receipts)) {
      const place = receiptsAt.get(write).get(row);
      if (place === undefined) continue;
      const field = (name) => (held.fields[name] ? held.fields[name][place] : null) || 0;
      const parts = [];
      for (const phase of ["prefill", "decode"]) {
        const wanted = field(`asked_${phase}`), written = field(`positions_${phase}`);
        if (wanted || written) parts.push(`${phase} ${shown.format(written)} of ${shown.format(wanted)}`);
      }
      const change = held.fields.relative_change ? held.fields.relative_change[place] : null;
      if (change !== null) parts.push(`change ${format(change)}`);
      const hidden = field("positions_shadowed") + field("decode_shadowed");
      if (hidden) parts.push(`${shown.format(hidden)} overwritten`);
      if (field("keys_ahead")) parts.push(`${shown.format(field("keys_ahead"))} keys ahead`);
      const fired = field("positions_prefill") + field("positions_decode") > 0;
      told.push({ write, text: parts.join(", ") || "not asked", fired: fired || !parts.length });
    }
    return told;
  };

  const trialBlock = (item, row, base, common, repeats) => {
    const block = make("div", "trial");
    const stage = data.stages[item.stage];
    const status = word("status", row);
    if (repeats) block.append(make("p", "aside", `repeat ${numberAt("repeat", row)}`));
    const figures = make("div", "figures");
    for (const name of [stage.primary, ...ordered.filter((each) => each !== stage.primary)]) {
      const value = numberAt(name, row);
      if (value === null || value === undefined) continue;
      const part = make("span", name === stage.primary ? "figure-main" : "figure-other");
      part.append(make("span", "aside", name), make("span", "", format(value)));
      const against = base === undefined || base === row ? null : numberAt(name, base);
      if (against !== null) {
        const difference = value - against;
        if (name === stage.primary || difference !== 0) part.append(make("span", "delta", difference === 0 ? "\u00b10" : `${difference > 0 ? "+" : "\u2212"}${format(Math.abs(difference))}`));
      }
      figures.append(part);
    }
    block.append(figures);
    if (status !== "ok") block.append(make("p", "reason", `${status}${word("reason", row) ? `: ${word("reason", row)}` : ""}`));
    const fed = data.prompts ? data.prompts.fed[row] : -1;
    if (fed >= 0 && fed !== common) {
      const details = make("details");
      details.append(make("summary", "", "Its own prompt"), make("p", "prose", promptText(fed)));
      block.append(details);
    }
    const text = textOf(row);
    if (text !== null) {
      const shared = base === undefined || base === row ? 0 : sharedWith(text, textOf(base));
      block.append(prose(text, shared));
      if (shared && shared === text.length) block.append(make("p", "aside", `The same output as ${stage.baseline}.`));
      else if (!text) block.append(make("p", "aside", "An empty output."));
    }
    const told = receiptsOf(row);
    const ends = [numberAt("n_new", row) === null || text === null ? "" : counted(numberAt("n_new", row), "token"), word("finish", row) ? `ended by ${word("finish", row)}` : ""].filter(Boolean).join(", ");
    const foot = make("dl", "receipts");
    for (const each of told) foot.append(make("dt", "name", each.write), make("dd", each.fired ? "" : "sign-bad", each.fired ? each.text : `${each.text}: never fired`));
    if (ends) foot.append(make("dt", "", "output"), make("dd", "", ends));
    if (foot.children.length) block.append(foot);
    return block;
  };

  const fill = (place, at) => {
    const item = items[place];
    const stage = data.stages[item.stage];
    const one = item.rows[0];
    const parts = [`Item ${item.item}`];
    if (data.staged) parts.push(`stage ${item.stage}`);
    title.replaceChildren(parts.join(", "));
    const about = [word("group", one), word("target", one) && `target ${word("target", one)}`, word("donor", one) && `donor ${word("donor", one)}`].filter(Boolean).join(" \u00b7 ");
    title.append(make("span", "aside", about));
    const { block, common } = data.prompts ? promptsOf(item) : { block: make("div"), common: -1 };
    const wanted = only.value.trim().toLowerCase();
    const names = Object.keys(stage.conditions).filter((name) => !wanted || `${name} ${stage.conditions[name]}`.toLowerCase().includes(wanted));
    const apart = new Map();
    for (const row of item.rows) {
      const name = word("condition", row);
      if (!apart.has(name)) apart.set(name, []);
      apart.get(name).push(row);
    }
    const bases = new Map((apart.get(stage.baseline) || []).map((row) => [numberAt("repeat", row), row]));
    const cards = make("div", "cards");
    const present = names.filter((name) => apart.has(name));
    const add = (from, to) => {
      for (const name of present.slice(from, to)) {
        const card = make("article", name === at ? "card at" : "card");
        card.dataset.condition = name;
        const label = stage.conditions[name];
        const top = make("h4", "", label);
        if (label !== name) top.append(make("span", "name aside", name));
        card.append(top);
        const own = apart.get(name);
        for (const row of own) card.append(trialBlock(item, row, bases.get(numberAt("repeat", row)), common, own.length > 1));
        cards.append(card);
      }
      if (to < present.length) {
        const more = make("button", "more", `Show ${shown.format(Math.min(CARDS, present.length - to))} more of ${shown.format(present.length)} conditions`);
        more.type = "button";
        more.addEventListener("click", () => { more.remove(); add(to, to + CARDS); });
        cards.append(more);
      }
    };
    const there = Math.max(CARDS, present.indexOf(at) + 1);
    add(0, there);
    const legend = make("p", "about legend");
    const texts = item.rows.some((row) => textOf(row) !== null);
    if (texts && patterns.has(highlight.value)) legend.append(make("mark", "whole", "a whole word"), " and ", make("mark", "part", "part"), ` of a word that ${highlight.value} count. `);
    if (texts && bases.size) legend.append(make("span", "same", "Grey"), `: the same as ${stage.baseline} from the beginning up to there. `);
    if (bases.size) legend.append(`+, \u2212: difference from ${stage.baseline}.`);
    inside.replaceChildren(block, legend, cards);
    inside.scrollTop = 0;
    const card = at && cards.querySelector(".at");
    if (card && present.indexOf(at) > 2) card.scrollIntoView({ block: "nearest" });
    const order = sequence();
    const here = order.indexOf(place);
    document.getElementById("item-previous").disabled = here <= 0;
    document.getElementById("item-next").disabled = here < 0 || here >= order.length - 1;
  };
  // The items of the rows that are listed, in their order; all of them, where the one that is open is not.
  const sequence = () => {
    const order = [...new Set(rows.map((row) => itemOf[row]))];
    return order.includes(open) ? order : items.map((_, place) => place);
  };
  const show = (place, at) => {
    open = place;
    fill(place, at);
    if (!dialog.open) {
      dialog.showModal();
      inside.focus();
    }
    remember();
  };
  const step = (by) => {
    const order = sequence();
    const next = order[order.indexOf(open) + by];
    if (next !== undefined) show(next, null);
  };
  dialog.addEventListener("keydown", (event) => {
    if (event.target.matches("input, select") || event.metaKey || event.ctrlKey || event.altKey) return;
    if (event.key === "j") step(1);
    else if (event.key === "k") step(-1);
    else return;
    event.preventDefault();
  });
  // The address changes with the dialog, not at its "close" event, which comes some time after.
  const leave = () => {
    if (dialog.open) dialog.close();
    if (open === null) return;
    open = null;
    remember();
    body.focus({ preventScroll: true });
  };
  dialog.addEventListener("cancel", (event) => {
    if (event.target !== dialog) return;
    event.preventDefault();
    leave();
  });
  dialog.addEventListener("close", leave);
  dialog.addEventListener("click", (event) => { if (event.target === dialog) leave(); });
  document.getElementById("item-close").addEventListener("click", leave);
  document.getElementById("item-next").addEventListener("click", () => step(1));
  document.getElementById("item-previous").addEventListener("click", () => step(-1));
  highlight.addEventListener("change", () => { if (open !== null) fill(open, null); });
  only.addEventListener("input", () => { if (open !== null) fill(open, null); });

  // The address of the page: what is asked, and the item that is open.
  let quiet = true;
  const remember = () => {
    if (quiet) return;
    const told = new URLSearchParams();
    if (open !== null) {
      told.set("item", items[open].item);
      if (data.staged) told.set("stage", items[open].stage);
    } else if (asked.stage) told.set("stage", asked.stage);
    for (const key of ["text", "group", "status", "least", "most"]) if (asked[key] !== "") told.set(key, asked[key]);
    if (asked.least !== "" || asked.most !== "") told.set("readout", asked.readout);
    if (asked.conditions.size) told.set("condition", [...asked.conditions].join("|"));
    if (asked.sort) told.set("sort", `${asked.down ? "-" : ""}${asked.sort}`);
    const hash = told.toString();
    if (hash || window.location.hash.includes("=")) window.history.replaceState(null, "", `#${hash || "trials"}`);
  };
  const recall = () => {
    const hash = window.location.hash.slice(1);
    if (!hash.includes("=")) return;
    const told = new URLSearchParams(hash);
    asked = initial();
    for (const key of ["text", "stage", "group", "status", "least", "most"]) asked[key] = told.get(key) ?? "";
    for (const key of ["stage", "group", "status"]) if (!columns[key] || !columns[key].words.includes(asked[key])) asked[key] = "";
    for (const key of ["least", "most"]) if (!Number.isFinite(Number(asked[key]))) asked[key] = "";
    if (readouts.includes(told.get("readout"))) asked.readout = told.get("readout");
    for (const name of (told.get("condition") || "").split("|")) if (labels.has(name)) asked.conditions.add(name);
    const wanted = (told.get("sort") || "").replace(/^-/, "");
    if (readouts.includes(wanted) || columns[wanted]) Object.assign(asked, { sort: wanted, down: told.get("sort")[0] === "-" });
    const name = told.get("item");
    const place = name === null ? -1 : items.findIndex((each) => each.item === name && (!told.get("stage") || each.stage === told.get("stage")));
    if (place >= 0) asked.stage = "";
    put();
    changed();
    browser.scrollIntoView();
    if (place >= 0) show(place, null);
    else if (name !== null) tally.textContent += `. Item ${name} is not among them.`;
  };
  const put = () => {
    for (const key of ["text", "stage", "group", "status", "readout", "least", "most"]) filters.elements[key].value = asked[key];
    for (const [name, box] of checks) box.checked = asked.conditions.has(name);
  };
  filters.addEventListener("input", (event) => {
    const key = event.target.name;
    if (!key) return;
    asked[key] = event.target.validity.badInput ? "" : event.target.value;
    changed();
  });
  filters.addEventListener("reset", (event) => {
    event.preventDefault();
    asked = initial();
    put();
    changed();
  });
  filters.addEventListener("submit", (event) => event.preventDefault());
  window.addEventListener("hashchange", recall);

  browser.hidden = false;
  put();
  changed();
  recall();
  quiet = false;
})();
