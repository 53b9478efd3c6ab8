"use strict";
(() => {
  const page = JSON.parse(document.getElementById("data").textContent);

  // Charts take the page's colours, so they follow light, dark and print without being drawn again.
  const config = {
    background: "transparent",
    font: "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif",
    axis: {
      labelColor: "var(--muted)", titleColor: "var(--muted)", domainColor: "var(--line)", tickColor: "var(--line)",
      gridColor: "var(--line)", gridOpacity: 0.6, labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal",
    },
    axisX: { tickCount: 6, labelOverlap: "greedy", labelSeparation: 8 },
    axisY: { tickCount: 5 },
    legend: {
      orient: "top", direction: "horizontal", labelColor: "var(--ink)", labelFontSize: 12, symbolOpacity: 1,
      symbolStrokeWidth: 0, columns: 3, offset: 4, padding: 0,
      layout: { top: { direction: "vertical", anchor: "start" } },
    },
    view: { stroke: null },
  };

  // From columns to the rows that Vega wants; one value stands for a whole column, `run` points into `shared`.
  function expand(columns, shared) {
    const names = Object.keys(columns).filter((name) => name !== "length");
    return Array.from({ length: columns.length }, (_, i) => {
      const row = {};
      for (const name of names) row[name] = Array.isArray(columns[name]) ? columns[name][i] : columns[name];
      if (shared) {
        const run = row.run ?? i;
        for (const name of Object.keys(shared)) row[name] = shared[name][run];
      }
      return row;
    });
  }

  const chosen = {};
  const views = {};
  const empty = (column) => !Array.isArray(column) ? column == null : column.every((value) => value == null);

  function rowsOf(chart) {
    if (!chart.choice) return expand(chart.rows, null);
    const { choices, shared } = page.choices[chart.choice];
    return expand(choices[chosen[chart.choice]], shared);
  }

  async function draw(id) {
    const chart = page.charts[id];
    const figure = document.getElementById(id);
    const columns = chart.choice && page.choices[chart.choice].choices[chosen[chart.choice]];
    figure.hidden = Boolean(chart.needs) && empty(columns[chart.needs]);
    if (figure.hidden) return;
    views[id]?.finalize();
    const spec = { ...chart.spec, datasets: { ...chart.spec.datasets, rows: rowsOf(chart) } };
    // Without `eval`: expressions are interpreted, as the page's security policy asks for.
    views[id] = await vegaEmbed(figure.querySelector(".plot"), spec, {
      mode: "vega-lite", renderer: "svg", actions: false, ast: true, config, logLevel: 1, tooltip: { theme: "custom" },
      loader: { target: "_blank" },
    });
  }

  // What is in sight first, the rest when the browser has time, so that printing finds all of it.
  const waiting = new Set(Object.keys(page.charts));
  const drawing = {};
  function drawOnce(id) {
    if (!waiting.delete(id)) return drawing[id];
    drawing[id] = draw(id).catch((error) => {
      document.getElementById(id).querySelector(".plot").textContent = `This chart could not be drawn: ${error}`;
      console.error(error);
    });
    return drawing[id];
  }
  const idle = window.requestIdleCallback ?? ((act) => setTimeout(act, 30));
  async function drawRest() {
    for (const id of [...waiting]) {
      await new Promise((resolve) => idle(resolve, { timeout: 500 }));
      await drawOnce(id);
    }
    document.documentElement.dataset.drawn = "all";
  }

  function choose(prefix, name) {
    chosen[prefix] = name;
    for (const [id, chart] of Object.entries(page.charts)) {
      if (chart.choice === prefix && !waiting.has(id)) drawing[id] = Promise.resolve(drawing[id]).then(() => draw(id));
    }
  }

  for (const select of document.querySelectorAll("select[data-choice]")) {
    const prefix = select.dataset.choice;
    chosen[prefix] = select.value;
    select.addEventListener("change", () => choose(prefix, select.value));
    for (const button of select.closest("section").querySelectorAll("button[data-choose]")) {
      button.addEventListener("click", () => {
        select.value = button.dataset.choose;
        choose(prefix, select.value);
        select.closest("section").scrollIntoView();
      });
    }
  }

  // Tables: a click on a heading sorts, the search box filters.
  function valueOf(row, column) {
    const cell = row.cells[column];
    if (cell.dataset.sort !== undefined) return Number(cell.dataset.sort);
    return cell.textContent.trim();
  }
  const isMissing = (row, column, numeric) =>
    numeric ? row.cells[column].dataset.sort === undefined : row.cells[column].textContent.trim() === "";

  function sort(table, column) {
    const headings = [...table.tHead.rows[0].cells];
    const heading = headings[column];
    const numeric = heading.classList.contains("number");
    const descending = heading.getAttribute("aria-sort") ? heading.getAttribute("aria-sort") === "ascending" : false;
    for (const other of headings) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const body = table.tBodies[0];
    const compare = (a, b) => {
      const [left, right] = [valueOf(a, column), valueOf(b, column)];
      if (typeof left === "number" && typeof right === "number") return left - right;
      return String(left).localeCompare(String(right), "en", { numeric: true });
    };
    const rows = [...body.rows];
    const known = rows.filter((row) => !isMissing(row, column, numeric));
    known.sort(descending ? (a, b) => compare(b, a) : compare);
    body.append(...known, ...rows.filter((row) => isMissing(row, column, numeric))); // what is missing comes last
  }

  for (const box of document.querySelectorAll(".table")) {
    const table = box.querySelector("table");
    [...table.tHead.rows[0].cells].forEach((heading, column) => {
      if (heading.classList.contains("number")) {
        for (const row of table.tBodies[0].rows) row.cells[column].classList.add("numeric");
      }
      heading.querySelector("button").addEventListener("click", () => sort(table, column));
    });
    const filter = box.querySelector("input");
    filter?.addEventListener("input", () => {
      const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const row of table.tBodies[0].rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
        shown += !row.hidden;
      }
      box.querySelector(".count").textContent = words.length ? `${shown} of ${table.tBodies[0].rows.length}` : "";
    });
  }

  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) drawOnce(entry.target.id);
  }, { rootMargin: "300px" });
  for (const id of Object.keys(page.charts)) observer.observe(document.getElementById(id));
  if (document.readyState === "complete") drawRest();
  else addEventListener("load", drawRest);
})();
