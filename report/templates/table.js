// The trials that pass the filter, as a table that sorts by any column.

const PAGE = 25; // rows shown at first, and more at each press
const sorting = { by: "", ascending: true, count: PAGE }; // by "": the front first, best first objective first

function tableColumns() {
  const columns = [{ key: "number", title: "Trial", value: number, text: (row) => String(number(row)) }];
  if (runs.length > 1) {
    columns.push({ key: "run", title: "Run", words: true, value: (row) => runOf[row], text: (row) => run(row).name });
  }
  for (const metric of metrics) {
    columns.push({ key: `metric ${metric.name}`, title: capital(metric.label), hint: metric.name, metric,
      value: (row) => score(row, metric.name), text: (row) => metricText(metric.name, score(row, metric.name)) });
  }
  const seconds = (row) => run(row).seconds[placeOf[row]];
  columns.push({ key: "seconds", title: "Seconds", value: seconds, text: (row) => plain(seconds(row), 3) });
  columns.push({ key: "note", title: "", words: true, value: (row) => rowNotes(row), text: rowNotes });
  return columns;
}

function rowNotes(row) {
  const found = [];
  if (onFront[row]) found.push("front");
  if (row === kneeRow(runOf[row])) found.push("knee");
  if (row === baseRow(runOf[row])) found.push("unchanged");
  if (isUniform(row)) found.push("uniform");
  if (failed(row)) found.push("failed");
  return found.join(", ");
}

function sortedRows() {
  const rows = [...shown.keys()].filter((row) => shown[row]);
  const by = tableColumns().find((c) => c.key === sorting.by);
  if (!by) {
    const lead = metrics[0] && metrics[0].name;
    const order = (row) => (lead && score(row, lead) !== null ? better(lead) * score(row, lead) : Infinity);
    return rows.sort((a, b) => onFront[b] - onFront[a] || order(a) - order(b) || a - b);
  }
  const sign = sorting.ascending ? 1 : -1;
  return rows.sort((a, b) => {
    const [p, q] = [by.value(a), by.value(b)];
    if (p === null || q === null) return (p === null) - (q === null) || a - b; // what is missing comes last
    return (p < q ? -sign : p > q ? sign : 0) || a - b;
  });
}

function drawTable() {
  const columns = tableColumns(), rows = sortedRows();
  const head = h("tr", null, columns.map((c) => h("th", { scope: "col", class: c.words ? "words" : null, title: c.hint,
    "aria-sort": c.key === sorting.by ? (sorting.ascending ? "ascending" : "descending") : null },
  c.title ? h("button", { type: "button", onclick: () => sortBy(c) }, c.title) : "")));
  const kind = (row) => [onFront[row] && "best", failed(row) && "failed", row === state.chosen && "open"]
    .filter(Boolean).join(" ");
  const cell = (row) => (c, i) => (i ? h("td", { class: c.words ? "words" : null }, c.text(row))
    : h("th", { scope: "row" }, h("button", { type: "button", "aria-label": label(row) }, c.text(row))));
  const body = rows.slice(0, sorting.count).map((row) =>
    h("tr", { "data-row": row, class: kind(row) }, columns.map(cell(row))));
  replace($("table"), h("thead", null, head), h("tbody", null, body.length ? body : h("tr", null,
    h("td", { colspan: columns.length, class: "words" }, "No trial passes the filter."))));
  const left = rows.length - sorting.count;
  $("more").hidden = left <= 0;
  $("more").textContent = `Show ${Math.min(left, PAGE)} more of ${plural(rows.length, "trial")}`;
}

function sortBy(column) {
  if (sorting.by === column.key) sorting.ascending = !sorting.ascending;
  else Object.assign(sorting, { by: column.key, ascending: !(column.metric && column.metric.goal === "max") });
  sorting.count = PAGE;
  drawTable();
}

function markOpenRow() {
  document.querySelectorAll("#table tr.open").forEach((row) => row.classList.remove("open"));
  const open = document.querySelector(`#table tr[data-row="${state.chosen}"]`);
  if (open) open.classList.add("open");
}

function listenTable() {
  $("table").addEventListener("click", (event) => {
    const row = event.target.closest("tr[data-row]");
    if (row) choose(Number(row.dataset.row));
  });
  $("more").addEventListener("click", () => { sorting.count += PAGE; drawTable(); });
}
