// What the page does: colours, tables (sort, filter, hide, copy, download), the drawer behind numbers, charts.
// Plain script without libraries, but for vegaEmbed, which draws charts; texts are set as text, never as HTML.
"use strict";

const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const status = document.getElementById("status");
let statusTimer = 0;

function say(text) {
  status.textContent = text;
  clearTimeout(statusTimer);
  statusTimer = setTimeout(() => { status.textContent = ""; }, 4000);
}

function make(name, text = "", attributes = {}) {
  const made = document.createElement(name);
  made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

// Colours of the page -------------------------------------------------------------------------------------------------

function setTheme(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  for (const button of all("[data-theme-choice]")) button.setAttribute("aria-pressed", String(button.dataset.themeChoice === theme));
}

function remembered() {
  try { return localStorage.getItem("lutbench-theme") || "auto"; } catch { return "auto"; }
}

for (const button of all("[data-theme-choice]")) {
  button.addEventListener("click", () => {
    setTheme(button.dataset.themeChoice);
    try { localStorage.setItem("lutbench-theme", button.dataset.themeChoice); } catch { /* a browser that keeps nothing */ }
  });
}
setTheme(remembered());

const contents = document.querySelector(".contents");
const wide = matchMedia("(min-width: 72rem)");
const unfold = () => { if (contents) contents.open = wide.matches; };
wide.addEventListener("change", unfold);
unfold();

// Tables --------------------------------------------------------------------------------------------------------------

function sortKey(text) {
  const found = /^[+-]?[\d,]+(\.\d+)?(e[+-]?\d+)?/i.exec(text.trim());
  return found ? Number(found[0].replaceAll(",", "")) : null;
}

function compareTexts(one, other) {
  const [a, b] = [sortKey(one), sortKey(other)];
  if (a !== null && b !== null) return a - b;
  if (a !== null) return -1;
  if (b !== null) return 1;
  return one.localeCompare(other, "en");
}

class Grid {
  constructor(element) {
    this.element = element;
    this.body = element.querySelector("tbody");
    this.rows = this.body ? [...this.body.rows] : [];
    this.heads = all("thead tr:last-child th", element);
    this.heads.forEach((head, column) => head.querySelector(".sort").addEventListener("click", () => this.sort(column)));
    this.filter = element.querySelector("input");
    if (this.filter) this.filter.addEventListener("input", () => this.show());
    element.addEventListener("click", (event) => {
      const button = event.target.closest("[data-action]");
      if (button) this.act(button.dataset.action, button);
    });
  }

  act(action, button) {
    if (action === "hide") {
      const row = button.closest("tr");
      const next = row.nextElementSibling || row.previousElementSibling;
      row.dataset.gone = "1";
      this.show();
      const focused = next && next.querySelector("[data-action=hide]");
      if (focused) focused.focus();
      say("Row hidden. “Show hidden rows” brings it back.");
    } else if (action === "unhide") {
      for (const row of this.rows) delete row.dataset.gone;
      this.show();
    } else if (action === "markdown") copy(this.markdown(), "Markdown", this.shown.length);
    else if (action === "latex") copy(this.latex(), "LaTeX", this.shown.length);
    else if (action === "csv") download(this.csv(), `${this.element.dataset.name}.csv`);
    else if (action === "all") unpack(button.dataset.csv).then((text) => download(text, `${this.element.dataset.name}-all.csv`));
  }

  sort(column) {
    const head = this.heads[column];
    const order = { none: "descending", descending: "ascending", ascending: "none" }[head.getAttribute("aria-sort")];
    for (const other of this.heads) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    const textOf = (row) => row.cells[column].dataset.text;
    const sorted = order === "none" ? this.rows : [...this.rows].sort((a, b) => {
      if (!textOf(a) || !textOf(b)) return Number(!textOf(a)) - Number(!textOf(b));  // what is absent is last in any order
      return sign * compareTexts(textOf(a), textOf(b));
    });
    this.body.append(...sorted);
    this.show();
  }

  get shown() {
    return [...this.body.rows].filter((row) => !row.hidden);
  }

  show() {
    const words = this.filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of this.rows) {
      const text = this.texts(row).join(" ").toLowerCase();
      row.hidden = Boolean(row.dataset.gone) || !words.every((word) => text.includes(word));
    }
    const gone = this.rows.filter((row) => row.dataset.gone).length;
    const unhide = this.element.querySelector("[data-action=unhide]");
    unhide.hidden = gone === 0;
    unhide.textContent = `Show ${gone} hidden row${gone === 1 ? "" : "s"}`;
    let above = null;
    for (const row of this.shown) {
      [...row.cells].forEach((cell, column) => {
        if (cell.classList.contains("groups")) {
          cell.classList.toggle("again", Boolean(cell.dataset.text && above && above.cells[column].dataset.text === cell.dataset.text));
        }
      });
      above = row;
    }
    if (words.length) say(`${this.shown.length} of ${this.rows.length} rows`);
  }

  texts(row) {
    return [...row.cells].slice(0, this.heads.length).map((cell) => cell.dataset.text);
  }

  get headings() {
    const above = [];
    for (const cell of all("thead .above > *", this.element)) above.push(...Array(cell.colSpan).fill(cell.textContent));
    return this.heads.map((head, column) => [above[column], head.textContent.trim()].filter(Boolean).join(", "));
  }

  marked(row, escape, best, second) {
    return [...row.cells].slice(0, this.heads.length).map((cell) => {
      const text = cell.dataset.text;
      const [, number, rest] = /^(\S+)(.*)$/s.exec(text) || [null, text, ""];
      if (cell.classList.contains("best")) return best(escape(number)) + escape(rest);
      if (cell.classList.contains("second")) return second(escape(number)) + escape(rest);
      return escape(text);
    });
  }

  markdown() {
    const escape = (text) => text.replace(/[\\`*|<]|\](?=\()|(?<!\w)_|_(?!\w)/g, "\\$&");
    const line = (cells) => `| ${cells.join(" | ")} |`;
    const rules = this.heads.map((head) => (head.classList.contains("number") ? "---:" : ":---"));
    const rows = this.shown.map((row) => line(this.marked(row, escape, (text) => `**${text}**`, (text) => `<u>${text}</u>`)));
    const mark = this.element.dataset.mark ? ["", `${this.element.dataset.mark}: no evidence about the method.`] : [];
    return `${[line(this.headings.map(escape)), line(rules), ...rows, ...mark].join("\n")}\n`;
  }

  latex() {
    const signs = { "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "↑": "$\\uparrow$", "↓": "$\\downarrow$", "±": "$\\pm$" };
    const escape = (text) => text.replace(/[&%$#_{}\\~^↑↓±]/g, (sign) => signs[sign] || `\\${sign}`);
    const line = (cells) => `${cells.join(" & ")} \\\\`;
    const rows = this.shown.map((row) => line(this.marked(row, escape, (text) => `\\textbf{${text}}`, (text) => `\\underline{${text}}`)));
    const columns = this.heads.map((head) => (head.classList.contains("number") ? "r" : "l")).join("");
    const mark = this.element.dataset.mark ? [`% ${this.element.dataset.mark}: no evidence about the method.`] : [];
    return `${[...mark, `\\begin{tabular}{${columns}}`, "\\toprule", line(this.headings.map(escape)), "\\midrule", ...rows, "\\bottomrule", "\\end{tabular}"].join("\n")}\n`;
  }

  csv() {
    // a text that a spreadsheet would take for a formula gets an apostrophe
    const guarded = (text) => (/^[=@\t\r]|^[+-](?![\d.])/.test(text) ? `'${text}` : text);
    const quoted = (text) => (/[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
    const line = (cells) => cells.map((text) => quoted(guarded(text))).join(",");
    return `${[line(this.headings), ...this.shown.map((row) => line(this.texts(row)))].join("\n")}\n`;
  }
}

async function copy(text, format, count) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = make("textarea", text, { readonly: "" });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  say(`Copied ${count} row${count === 1 ? "" : "s"} as ${format}`);
}

function download(text, name) {
  const link = make("a", "", { href: URL.createObjectURL(new Blob([text], { type: "text/csv" })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  say(`Saved as ${name}`);
}

async function unpack(packed) {
  const bytes = Uint8Array.from(atob(packed), (character) => character.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

const grids = all(".grid").map((element) => new Grid(element));

// The drawer ----------------------------------------------------------------------------------------------------------

const drawer = document.getElementById("drawer");
const drawerBody = document.getElementById("drawer-body");

function openDrawer(ids, title) {
  const found = ids.split(" ").map((id) => document.getElementById(id)).filter(Boolean);
  if (!found.length) return false;
  const copies = found.map((element) => element.cloneNode(true));
  for (const copied of copies) {
    for (const element of [copied, ...all("[id]", copied)]) element.removeAttribute("id");
    const details = copied.matches("details") ? [copied, ...all("details", copied)] : all("details", copied);
    details.forEach((element, place) => { element.open = place === 0; });
  }
  drawerBody.replaceChildren(...copies);
  document.getElementById("drawer-title").textContent = title;
  if (!drawer.open) drawer.showModal();
  drawer.scrollTop = 0;
  return true;
}

document.addEventListener("click", (event) => {
  const link = event.target.closest("a[data-behind]");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  if (openDrawer(link.dataset.behind, `Behind ${link.closest("td")?.dataset.text ?? link.textContent}`)) event.preventDefault();
});
document.getElementById("drawer-close").addEventListener("click", () => drawer.close());
drawer.addEventListener("click", (event) => { if (event.target === drawer) drawer.close(); });

function openTarget() {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target && target.matches("details")) target.open = true;
}
addEventListener("hashchange", openTarget);
openTarget();

// Charts --------------------------------------------------------------------------------------------------------------

const unpacked = unpack(document.getElementById("specs").textContent).then(JSON.parse);
const ink = "currentColor";
const config = {
  background: "transparent",
  font: "system-ui, sans-serif",
  view: { stroke: null },
  axis: {
    labelColor: ink, titleColor: ink, domainColor: ink, domainOpacity: 0.35, tickColor: ink, tickOpacity: 0.35, tickSize: 4,
    gridColor: ink, gridOpacity: 0.1, titleFontWeight: "normal", labelFontSize: 11, titleFontSize: 11, labelOverlap: true, titlePadding: 6,
  },
};

async function draw(figure, specs) {
  const hidden = new Set();
  const views = [];
  for (const element of all(".plot", figure)) {
    // ast: expressions are interpreted, so that the page needs no eval, which its policy forbids
    const options = { actions: false, renderer: "svg", ast: true, config, tooltip: { theme: "custom" } };
    views.push((await window.vegaEmbed(element, specs[element.dataset.spec], options)).view);
  }
  for (const button of all(".legend button", figure)) {
    button.addEventListener("click", () => {
      const label = button.dataset.label;
      if (!hidden.delete(label)) hidden.add(label);
      button.setAttribute("aria-pressed", String(!hidden.has(label)));
      for (const view of views) view.signal("hidden", [...hidden]).runAsync();
    });
  }
}

function numbersOf(figure, specs) {
  const table = make("table");
  const head = table.createTHead().insertRow();
  const isForest = figure.classList.contains("forest");
  const panels = all(".panel", figure).map((panel) => ({ title: panel.querySelector(".panel-title").textContent, ...specs[panel.querySelector(".plot").dataset.spec] }));
  const hasCurves = panels.some((panel) => panel.data.values.some((value) => value.n));
  const names = isForest
    ? ["task", "pair", "what is given", "value, interval over images", "interval over seeds or draws"]
    : ["plot", "method", ...(hasCurves ? ["curve"] : []), "position", "what is given", "value, with its interval if there is one"];
  for (const name of names) head.append(make("th", name, { scope: "col" }));
  const body = table.createTBody();
  for (const { title, data, usermeta } of panels) {
    for (const value of data.values) {
      const row = body.insertRow();
      const linked = (text) => (value.k ? make("a", text, { href: `#${value.k.split(" ")[0]}`, "data-behind": value.k }) : text);
      const cells = isForest
        ? [title, value.r, usermeta.quantity, linked(value.t), value.u]
        : [title, value.s, ...(hasCurves ? [value.n] : []), `${usermeta.place} ${value.p}`.trim(), usermeta.quantity, linked(value.t)];
      for (const cell of cells) row.insertCell().append(cell);
    }
  }
  const scroll = make("div", "", { class: "scroll", role: "region", tabindex: "0", "aria-label": "Numbers of the chart" });
  scroll.append(table);
  return scroll;
}

for (const details of all(".numbers")) {
  details.addEventListener("toggle", async () => {
    const specs = await unpacked;
    if (details.open && !details.querySelector("table")) details.querySelector("div").append(numbersOf(details.closest("figure"), specs));
  });
}

const drawn = (async () => {
  const specs = await unpacked;
  for (const figure of all("figure")) {
    if (figure.querySelector(".plot")) await draw(figure, specs);
  }
  document.documentElement.dataset.drawn = "1";
})();
