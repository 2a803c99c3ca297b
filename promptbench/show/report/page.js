
"use strict";
(() => {
  const filter = document.getElementById("filter");
  const together = document.getElementById("together");
  const count = document.getElementById("count");
  const panel = document.getElementById("panel");
  const tables = [...document.querySelectorAll("table.figures")].map(opened);
  const NAMES = 4; // columns before the figures
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
    const rows = bodies.flatMap((body) => [...body.rows].map((row) => ({ row, body })));
    for (const item of rows) {
      item.text = `${item.row.cells[0].textContent} ${item.row.cells[1].textContent}`.toLowerCase();
    }
    const heads = [...table.tHead.rows[0].cells];
    const titles = heads.map((head) => head.textContent.toLowerCase());
    const found = { table, bodies, rows, heads, titles, column: -1, way: "" };
    heads.forEach((head, column) => {
      const button = element("button", head.textContent);
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
    const ordered = [...bodies];
    if (column === 0 && !apart) ordered.sort((a, b) => compare(key(a.rows[0], 0), key(b.rows[0], 0), way));
    table.append(...ordered);
  }

  // Filtering: a row has every word; a word that no row has chooses among the columns.

  function narrow() {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const { table, rows, titles } of tables) {
      const ofRows = words.filter((word) => rows.some((one) => one.text.includes(word)));
      const others = words.filter((word) => !ofRows.includes(word));
      const last = titles.length - 1;
      const has = (title) => others.some((word) => title.includes(word));
      const chosen = titles.map((title, place) => place < NAMES || place === last || has(title));
      const none = others.some((word) => !titles.slice(NAMES, last).some((title) => title.includes(word)));
      for (const one of rows) {
        one.row.hidden = none || !ofRows.every((word) => one.text.includes(word));
        shown += one.row.hidden ? 0 : 1;
      }
      for (const row of table.rows) {
        for (const cell of row.cells) cell.hidden = others.length > 0 && !none && !chosen[cell.cellIndex];
      }
      table.closest("section").hidden = rows.every((one) => one.row.hidden);
      moveStop(table, visible(table).flatMap((row) => figures(row))[0]);
    }
    const all = tables.reduce((sum, { rows }) => sum + rows.length, 0);
    count.textContent = words.length ? `${shown} of ${all} lines` : "";
  }

  // Keyboard: one stop per table, arrows from figure to figure, Enter opens.

  function visible(table) {
    return [...table.tBodies].flatMap((body) => [...body.rows]).filter((row) => !row.hidden);
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
    const table = data().tables[cell.closest("table").dataset.table];
    const line = table.lines[cell.parentElement.dataset.line];
    const column = table.columns[cell.cellIndex - NAMES];
    return { line, column, figure: line.cells[column.key] };
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
    const { line, column, figure } = behind(cell);
    const names = [...cell.parentElement.cells].slice(0, 2).map((one) => one.textContent);
    const title = element("h2", `${names[1]}, ${names[0]}, ${column.title}`);
    title.id = "panel-title";
    const close = element("button", "Close");
    close.type = "button";
    close.addEventListener("click", () => panel.close());
    panel.replaceChildren(close, title, element("p", said(figure)), ...seeds(figure));
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

  function runs(names) {
    const found = names.map((name) => ({ name, ...data().runs[name] }));
    if (!found.length) return [];
    const others = found.slice(1).map((run) => new Set(run.facts));
    const shared = found[0].facts.filter((fact) => others.every((facts) => facts.has(fact)));
    const common = new Set(shared);
    if (found.length === 1) return [element("h3", "The run"), element("p", file(found[0])), ...sheets(shared)];
    const each = found.map((run) => {
      const what = element("summary", `${run.dataset}, seed ${run.seeds}: ${file(run)}`);
      return element("details", "", what, ...sheets(run.facts.filter((fact) => !common.has(fact))));
    });
    return [element("h3", `The ${found.length} runs, and what sets them apart`), ...each,
      element("h3", `Common to all ${found.length}`), ...sheets(shared)];
  }

  function file(run) {
    return `results/${run.name}.json`;
  }

  filter.addEventListener("input", narrow);
  together.addEventListener("change", () => tables.forEach(arrange));
  panel.addEventListener("click", (event) => { if (event.target === panel) panel.close(); });
  document.getElementById("tools").hidden = false;
})();
