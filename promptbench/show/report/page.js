
"use strict";
(() => {
  const filter = document.getElementById("filter");
  const together = document.getElementById("together");
  const count = document.getElementById("count");
  const clear = document.getElementById("clear");
  const none = document.getElementById("none");
  const panel = document.getElementById("panel");
  const tables = [...document.querySelectorAll("table.figures")].map(opened);
  const boxes = [...document.querySelectorAll(".box")];
  let stored = null;

  function data() {
    stored ??= JSON.parse(document.getElementById("data").textContent);
    return stored;
  }

  // What is shown is set as text, never as markup: names are whatever people called their things.
  function element(name, text = "", ...children) {
    const made = document.createElement(name);
    made.textContent = text;
    made.append(...children);
    return made;
  }

  function opened(table) {
    const bodies = [...table.tBodies];
    const rows = bodies.flatMap((body) => [...body.rows].slice(1).map((row) => ({ row, body })));
    const summed = table.dataset.table === undefined; // the averages, whose lines are those of other tables
    for (const item of rows) {
      const head = item.row.cells[0];
      item.text = `${(summed ? head.firstChild : head).textContent} ${item.row.dataset.typed}`.toLowerCase();
    }
    const heads = [...table.tHead.rows[0].cells];
    const titles = heads.map((head) => head.textContent.toLowerCase());
    const found = { table, summed, bodies, rows, heads, titles, column: -1, way: "" };
    heads.forEach((head, column) => {
      const button = element("button", "", ...head.childNodes);
      button.type = "button";
      button.addEventListener("click", () => sort(found, column));
      head.replaceChildren(button);
    });
    table.setAttribute("role", "grid");
    table.classList.add("open", "together");
    table.querySelectorAll(".figure").forEach((cell, place) => { cell.tabIndex = place ? -1 : 0; });
    table.addEventListener("keydown", (event) => pressed(found, event));
    table.addEventListener("focusin", (event) => moveStop(table, event.target));
    table.addEventListener("click", (event) => {
      const cell = event.target.closest(".figure");
      if (cell) show(cell);
    });
    table.addEventListener("pointerover", (event) => hint(event.target.closest(".figure")));
    return found;
  }

  // Sorting: the better figures first, then the worse, then as it was.

  function sort(item, column) {
    const first = item.heads[column].dataset.first;
    const second = first === "ascending" ? "descending" : "ascending";
    const now = item.column === column ? item.way : "";
    item.way = now === "" ? first : now === first ? second : "";
    item.column = item.way ? column : -1;
    item.heads.forEach((head, place) => {
      if (place === item.column) head.setAttribute("aria-sort", item.way);
      else head.removeAttribute("aria-sort");
    });
    arrange(item);
  }

  function key(row, column) {
    const cell = row.cells[column];
    if (column === 0) return cell.firstChild.textContent;
    if (cell.classList.contains("figure")) return cell.dataset.value === undefined ? null : Number(cell.dataset.value);
    return cell.textContent || null;
  }

  function compare(a, b, way) {
    if (a === null || b === null) return (a === null) - (b === null); // what is missing comes last, either way
    const order = typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true });
    return way === "descending" ? -order : order;
  }

  function arrange(item) {
    const { table, rows, bodies, column, way } = item;
    const keyed = rows.map((one) => ({ ...one, key: column < 0 ? null : key(one.row, column) }));
    if (column >= 0) keyed.sort((a, b) => compare(a.key, b.key, way));
    const apart = column >= 0 && !together.checked;
    table.classList.toggle("together", !apart);
    for (const one of keyed) (apart ? bodies[0] : one.body).append(one.row);
    headings(item);
  }

  // What stands above lines is shown while any of them is.
  function headings({ bodies }) {
    for (const body of bodies) {
      const [heading, ...rows] = body.rows;
      heading.hidden = rows.every((row) => row.hidden);
    }
  }

  // Filtering: a row has every word; a word that no row has chooses among the columns.

  function narrow() {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    let all = 0;
    for (const item of tables) {
      const visible = narrowed(item, words);
      if (item.summed) continue;
      shown += visible;
      all += item.rows.length;
    }
    count.textContent = words.length ? `${shown} of ${all} lines` : "";
    clear.hidden = !filter.value;
    document.getElementById("sought").textContent = filter.value;
    none.hidden = shown > 0;
    look();
  }

  function narrowed(item, words) {
    const { table, rows, heads, titles } = item;
    const ofRows = words.filter((word) => rows.some((one) => one.text.includes(word)));
    const others = words.filter((word) => !ofRows.includes(word));
    const figured = heads.map((head) => head.dataset.figure !== undefined);
    const has = (word) => titles.some((title, place) => figured[place] && title.includes(word));
    const nothing = !others.every(has);
    let shown = 0;
    for (const one of rows) {
      one.row.hidden = nothing || !ofRows.every((word) => one.text.includes(word));
      shown += one.row.hidden ? 0 : 1;
    }
    const chosen = (place) => !others.length || nothing || !figured[place] ||
      others.some((word) => titles[place].includes(word));
    heads.forEach((head, place) => { head.hidden = !chosen(place); });
    for (const { row } of rows) {
      for (const cell of row.cells) cell.hidden = heads[cell.cellIndex].hidden;
    }
    headings(item);
    table.closest("section").hidden = !shown;
    moveStop(table, visible(table).flatMap((row) => figures(row))[0]);
    return shown;
  }

  function everything() {
    filter.value = "";
    narrow();
    filter.focus();
  }

  // A table that does not fit says so, and on which side there is more of it.

  function look() {
    for (const box of boxes) edges(box, true);
  }

  function edges(box, anew) {
    const wide = box.parentElement;
    const beyond = box.scrollWidth - box.clientWidth;
    if (anew) wide.querySelector(".hint").hidden = beyond < 2;
    wide.classList.toggle("more", box.scrollLeft < beyond - 1);
    wide.classList.toggle("moved", box.scrollLeft > 0);
  }

  // Keyboard: one stop per table, arrows from figure to figure, Enter opens.

  function visible(table) {
    const rows = [...table.tBodies].flatMap((body) => [...body.rows].slice(1));
    return rows.filter((row) => !row.hidden);
  }

  function figures(row) {
    return [...row.cells].filter((cell) => cell.classList.contains("figure") && !cell.hidden);
  }

  function moveStop(table, cell) {
    if (!cell || !cell.classList.contains("figure")) return;
    table.querySelectorAll('.figure[tabindex="0"]').forEach((other) => { other.tabIndex = -1; });
    cell.tabIndex = 0;
  }

  function pressed(item, event) {
    const cell = event.target;
    if (!cell.classList.contains("figure") || event.ctrlKey || event.metaKey || event.altKey) return;
    const row = cell.parentElement;
    const along = figures(row);
    const place = along.indexOf(cell);
    const next = {
      ArrowLeft: () => along[place - 1],
      ArrowRight: () => along[place + 1],
      Home: () => along[0],
      End: () => along[along.length - 1],
      ArrowUp: () => below(item.table, row, -1, cell),
      ArrowDown: () => below(item.table, row, 1, cell),
    }[event.key];
    if (next) next()?.focus();
    else if (event.key === "Enter" || event.key === " ") show(cell);
    else return;
    event.preventDefault();
  }

  function below(table, row, step, cell) {
    const rows = visible(table);
    for (let place = rows.indexOf(row) + step; rows[place]; place += step) {
      const other = rows[place].cells[cell.cellIndex];
      if (other.classList.contains("figure")) return other;
    }
    return undefined;
  }

  // The panel: what is behind a figure.

  function behind(cell) {
    const table = data().tables[cell.dataset.table ?? cell.closest("table").dataset.table];
    const line = table.lines[cell.dataset.line ?? cell.parentElement.dataset.line];
    const column = table.columns[cell.dataset.column ?? cell.cellIndex - 1];
    return { table, line, column, figure: line.cells[column.key] };
  }

  function seedName(seed) {
    return seed.data_seed === seed.train_seed ? `${seed.data_seed}` : `${seed.data_seed}/${seed.train_seed}`;
  }

  function hint(cell) {
    if (!cell || cell.title) return;
    const { figure } = behind(cell);
    const values = figure.seeds.map((seed) => `seed ${seedName(seed)}: ${seed.value.toFixed(2)}`);
    cell.title = figure.reason || values.join("; ");
  }

  function show(cell) {
    const { table, line, column, figure } = behind(cell);
    const method = cell.parentElement.cells[0].firstChild.textContent;
    const title = element("h2", `${method}, ${line.group}, ${column.title}`);
    title.id = "panel-title";
    const close = element("button", "Close");
    close.type = "button";
    close.addEventListener("click", () => panel.close());
    const where = element("p", table.name);
    where.className = "about";
    panel.replaceChildren(close, title, where, element("p", said(figure)), ...seeds(figure));
    panel.append(...published(line, figure), ...runs(figure.runs));
    panel.showModal();
    panel.scrollTop = 0;
  }

  function said(figure) {
    if (figure.mean === null) return [figure.gap, figure.reason].filter(Boolean).join(": ");
    const mean = `mean ${figure.mean.toFixed(3)}`;
    const spread = figure.std === null ? "" : ` ± ${figure.std.toFixed(3)}, population standard deviation`;
    return `${mean}${spread}${figure.n ? ` over ${figure.n} seed${figure.n > 1 ? "s" : ""}` : ""}`;
  }

  function seeds(figure) {
    if (!figure.seeds.length) return [];
    const far = (seed) => (seed.outlier ? "far from the other seeds" : "");
    const rows = figure.seeds.map((seed) => [`seed ${seedName(seed)}`, seed.value.toFixed(3), far(seed)]);
    return [sheet("Seed by seed", rows)];
  }

  function published(line, figure) {
    const sources = Object.entries(line.published);
    if (sources.length) return [sheet("Published, not measured here", sources)];
    const beside = figure.published;
    if (!beside) return [];
    const verdict = ["verdict", beside.verdict, beside.why];
    return [sheet("Published figure", [["value", beside.value, beside.source], verdict, ["line", beside.line]])];
  }

  function sheet(title, rows) {
    const table = element("table");
    table.className = "facts";
    table.append(element("caption", title));
    const sourced = rows.some(([, , source]) => source);
    for (const [name, value, source] of rows) {
      const head = element("th", name);
      head.scope = "row";
      const from = element("td", source);
      from.className = "from";
      table.append(element("tr", "", head, element("td", value), ...(sourced ? [from] : [])));
    }
    return table;
  }

  function sheets(places) {
    const sections = new Map();
    for (const place of places) {
      const [section, ...fact] = data().facts[place];
      sections.set(section, [...(sections.get(section) || []), fact]);
    }
    return [...sections].map(([section, rows]) => sheet(section, rows));
  }

  function runs(places) {
    const found = places.map((place) => data().runs[place]);
    if (!found.length) return [];
    const others = found.slice(1).map((run) => new Set(run.facts));
    const shared = found[0].facts.filter((fact) => others.every((facts) => facts.has(fact)));
    const common = new Set(shared);
    if (found.length === 1) {
      return [element("h3", "The run"), element("p", "", file(found[0])), command(found), ...sheets(shared)];
    }
    const together = command(found);
    const each = found.map((run) => {
      const what = element("summary", `${run.dataset}, seed ${run.seeds}: `, file(run));
      const own = together ? [] : [command([run])];
      return element("details", "", what, ...own, ...sheets(run.facts.filter((fact) => !common.has(fact))));
    });
    return [
      ...(together ? [element("h3", "The command that makes them again"), together] : []),
      element("h3", `The ${found.length} runs, and what sets them apart`), ...each,
      element("h3", `Common to all ${found.length}`), ...sheets(shared),
    ];
  }

  function file(run) {
    const name = `results/${run.name}.json`;
    if (run.file === undefined) return document.createTextNode(name);
    const link = element("a", name);
    link.href = run.file;
    return link;
  }

  // One line makes runs that differ in nothing but dataset and seed, where each is made with each.
  function command(found) {
    const [first] = found.map((run) => run.command[0]);
    const sets = [...new Set(found.map((run) => run.command[1]))];
    const seeds = [...new Set(found.map((run) => run.command[2]))];
    if (found.some((run) => run.command[0] !== first) || sets.length * seeds.length !== found.length) return null;
    const [before, between, behind] = data().commands[first];
    const text = [before, ...sets, between, ...seeds, behind].filter(Boolean).join(" ");
    const code = element("code", text);
    const copy = element("button", "Copy");
    copy.type = "button";
    copy.addEventListener("click", () => copied(code, copy));
    const line = element("div", "", code, copy);
    line.className = "command";
    return line;
  }

  async function copied(code, button) {
    getSelection().selectAllChildren(code); // where a page may not write to the clipboard, a key copies what is selected
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Selected";
    }
  }

  filter.addEventListener("input", narrow);
  filter.addEventListener("keydown", (event) => { if (event.key === "Escape") everything(); });
  clear.addEventListener("click", everything);
  document.getElementById("all").addEventListener("click", everything);
  for (const box of boxes) box.addEventListener("scroll", () => edges(box, false), { passive: true });
  addEventListener("resize", look);
  together.addEventListener("change", () => tables.forEach(arrange));
  panel.addEventListener("click", (event) => { if (event.target === panel) panel.close(); });
  document.getElementById("tools").hidden = false;
  look();
})();
