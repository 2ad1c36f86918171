// The front as a picture: any two metrics, a third as colour.

const BIGGEST = 1e150; // beyond it plotly's arithmetic on ranges overflows
const plottable = (value) => value !== null && value !== undefined && Math.abs(value) < BIGGEST;
const escaped = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const CONFIG = { displaylogo: false, responsive: true, displayModeBar: false, doubleClick: false };

function axisLayout(name, palette) {
  const metric = metricOf.get(name);
  const unit = metric.kind === "percent" ? "%" : metric.unit;
  const arrow = { min: ", less is better", max: ", more is better" }[metric.goal] || "";
  return {
    title: { text: escaped(`${capital(tail(metric.label, 40))}${unit ? ` [${unit}]` : ""}${arrow}`), standoff: 12,
      font: { size: 12, color: palette.muted } },
    tickformat: metric.kind === "percent" ? ".3~%" : metric.kind === "count" ? "~s" : "",
    gridcolor: palette.faint, linecolor: palette.grey, zeroline: false, showline: true, ticks: "",
    tickfont: { size: 11, color: palette.muted }, automargin: true, nticks: 7, hoverformat: "",
  };
}

function plotLayout(palette, more) {
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false,
    font: { family: palette.font, color: palette.ink, size: 12 }, margin: { l: 56, r: 12, t: 12, b: 48 },
    ...more,
  };
}

// The border of what a run's front dominates in these two metrics.
function staircase(rows) {
  const [sx, sy] = [better(state.x), better(state.y)];
  const points = rows.map((row) => [score(row, state.x), score(row, state.y)]);
  points.sort((a, b) => sx * (a[0] - b[0]) || sy * (a[1] - b[1]));
  let best = Infinity;
  return points.filter(([, y]) => sy * y < best && ((best = sy * y), true));
}

function errorBars(row, name) {
  const spread = run(row).spread.get(name);
  const low = spread && spread[0][placeOf[row]], high = spread && spread[1][placeOf[row]];
  const value = score(row, name);
  return low === null || low === undefined ? [0, 0] : [Math.max(0, high - value), Math.max(0, value - low)];
}

function bars(rows, name, colour) {
  const all = rows.map((row) => errorBars(row, name));
  if (!all.some(([up, down]) => up || down)) return { visible: false };
  return { type: "data", symmetric: false, array: all.map((b) => b[0]), arrayminus: all.map((b) => b[1]),
    color: colour, thickness: 1, width: 3, visible: true };
}

const xs = (rows) => rows.map((row) => score(row, state.x));
const ys = (rows) => rows.map((row) => score(row, state.y));
const inPicture = (row) => plottable(score(row, state.x)) && plottable(score(row, state.y));
const selected = (rows) => rows.flatMap((row, i) => (shown[row] ? [i] : []));
const FADED = { marker: { opacity: 0.1 } };

function pointTrace(rows, palette, r, front) {
  const marker = {
    symbol: SYMBOLS[r % SYMBOLS.length], size: front ? 9 : 5, opacity: front ? 1 : 0.6,
    color: front ? runColour(r, palette) : palette.grey, line: { width: front ? 1 : 0, color: palette.paper },
  };
  if (state.colour) {
    Object.assign(marker, { color: rows.map((row) => score(row, state.colour)), coloraxis: "coloraxis",
      opacity: front ? 1 : 0.5 });
  }
  return {
    type: "scatter", mode: "markers", x: xs(rows), y: ys(rows), customdata: rows, hoverinfo: "none", marker,
    selectedpoints: selected(rows), selected: { marker: { opacity: marker.opacity } }, unselected: FADED,
    ...(front ? { error_x: bars(rows, state.x, palette.muted), error_y: bars(rows, state.y, palette.muted) } : {}),
  };
}

function mark(rows, symbol, size, colour, line, palette) {
  return {
    type: "scatter", mode: "markers", x: xs(rows), y: ys(rows), customdata: rows, hoverinfo: "none",
    marker: { symbol, size, color: colour, line: { width: line, color: palette.paper }, opacity: 1 },
  };
}

function frontTraces(palette) {
  const others = [], fronts = [];
  runs.forEach((of, r) => {
    const rows = of.numbers.map((_, place) => of.first + place).filter(inPicture);
    const best = rows.filter((row) => onFront[row]);
    others.push(pointTrace(rows.filter((row) => !onFront[row] && row !== baseRow(r)), palette, r, false));
    const border = metricOf.get(state.x).goal && metricOf.get(state.y).goal ? staircase(best) : [];
    fronts.push({ type: "scatter", mode: "lines", x: border.map((p) => p[0]), y: border.map((p) => p[1]),
      line: { shape: "hv", width: 1.5, color: runColour(r, palette) }, opacity: state.colour ? 0.3 : 0.45,
      hoverinfo: "skip" });
    fronts.push(pointTrace(best, palette, r, true));
  });
  const special = (find) => runs.map((_, r) => find(r)).filter((row) => row !== null && inPicture(row));
  const base = special(baseRow), knees = special(kneeRow);
  const star = mark(base, "star", 15, palette.ink, 1, palette);
  Object.assign(star, { error_x: bars(base, state.x, palette.muted), error_y: bars(base, state.y, palette.muted) });
  const diamond = mark(knees, "diamond", 14, knees.map((row) => runColour(runOf[row], palette)), 1.5, palette);
  const open = state.chosen !== null && inPicture(state.chosen) ? [state.chosen] : [];
  const ring = { ...mark(open, "circle-open", 21, palette.ink, 2, palette) };
  ring.marker.line = { width: 2, color: palette.ink };
  return [...others, ...fronts, star, diamond, ring];
}

function drawFront() {
  if (!window.Plotly) return;
  const palette = colours();
  const touch = media("(pointer: coarse)").matches;
  const layout = plotLayout(palette, {
    xaxis: axisLayout(state.x, palette), yaxis: axisLayout(state.y, palette), hovermode: "closest", hoverdistance: 12,
    dragmode: touch ? false : "select", selectdirection: "any", uirevision: `${state.x}|${state.y}`,
    newselection: { line: { color: palette.accent, width: 1, dash: "solid" } },
    activeselection: { fillcolor: palette.accent, opacity: 0.1 },
    selections: state.box && state.box.x === state.x && state.box.y === state.y ? [{
      type: "rect", xref: "x", yref: "y", x0: state.box.low[0], x1: state.box.high[0], y0: state.box.low[1],
      y1: state.box.high[1], line: { color: palette.accent, width: 1, dash: "solid" } }] : [],
  });
  if (state.colour) {
    const { tickformat } = axisLayout(state.colour, palette);
    layout.coloraxis = { colorscale: [[0, palette.low], [1, palette.high]], colorbar: { thickness: 8, outlinewidth: 0,
      len: 0.9, tickformat, nticks: 5, tickfont: { size: 11, color: palette.muted }, xpad: 4,
      title: { text: escaped(capital(tail(metricOf.get(state.colour).label, 24))), side: "right",
        font: { size: 11, color: palette.muted } } } };
  }
  const fresh = !$("front").data;
  window.Plotly.react("front", frontTraces(palette), layout, CONFIG);
  if (fresh) listenFront();
  drawLegend(palette);
}

// Only what a filter or a choice changes: far quicker than the whole picture with thousands of points.
function fadeFront() {
  if (!window.Plotly || !$("front").data) return;
  const which = [], points = [];
  $("front").data.forEach((trace, t) => {
    if (trace.unselected && trace.customdata) { which.push(t); points.push(selected(trace.customdata)); }
  });
  window.Plotly.restyle("front", { selectedpoints: points }, which);
  if (!state.box) window.Plotly.relayout("front", { selections: [] });
}

function ringFront() {
  if (!window.Plotly || !$("front").data) return;
  const open = state.chosen !== null && inPicture(state.chosen) ? [state.chosen] : [];
  window.Plotly.restyle("front", { x: [xs(open)], y: [ys(open)], customdata: [open] }, [$("front").data.length - 1]);
}

function listenFront() {
  const picture = $("front");
  const rowAt = (event) => event.points && event.points.map((p) => p.customdata).find((row) => row !== undefined);
  picture.on("plotly_click", (event) => { const row = rowAt(event); if (row !== undefined) choose(row); });
  picture.on("plotly_hover", (event) => { const row = rowAt(event); if (row !== undefined) tip(row, event.event); });
  picture.on("plotly_unhover", () => { $("tip").hidden = true; });
  picture.on("plotly_selected", (event) => {
    if (!event || !event.range) return;
    const { x, y } = event.range;
    state.box = { x: state.x, y: state.y, low: [Math.min(...x), Math.min(...y)], high: [Math.max(...x), Math.max(...y)] };
    filter();
  });
}

function tip(row, event) {
  const r = runOf[row];
  const names = [...new Set([state.y, state.x, state.colour, ...run(row).objectives])].filter(Boolean);
  const lines = names.map((name) => h("tr", null, h("td", null, metricOf.get(name).label),
    h("td", null, metricText(name, score(row, name))), h("td", null, row === baseRow(r) ? "" :
      ratioText(score(row, name), baseScore(r, name)))));
  replace($("tip"), h("strong", null, label(row), runs.length > 1 ? ` of ${run(row).name}` : "", notes(row)),
    h("table", null, lines));
  $("tip").hidden = false;
  const { width, height } = $("tip").getBoundingClientRect();
  const left = Math.min(event.clientX + 14, document.documentElement.clientWidth - width - 8);
  const top = event.clientY + 14 + height > window.innerHeight ? event.clientY - height - 10 : event.clientY + 14;
  Object.assign($("tip").style, { left: `${Math.max(8, left)}px`, top: `${top}px` });
}

function notes(row) {
  const found = [];
  if (row === baseRow(runOf[row])) found.push("unchanged");
  if (row === kneeRow(runOf[row])) found.push("knee");
  if (failed(row)) found.push("failed");
  return found.length ? ` · ${found.join(", ")}` : "";
}

function drawLegend(palette) {
  const entry = (sign, colour, text) => h("span", null, h("i", { style: { color: colour } }, sign), text);
  const entries = runs.length === 1
    ? [entry("●", state.colour ? palette.high : palette.accent, "front")]
    : runs.map((of, r) => entry("●■▲◆⬟⬢"[r % 6], state.colour ? palette.muted : runColour(r, palette), of.name));
  entries.push(entry("●", palette.grey, "dominated"), entry("★", palette.ink, "unchanged model"));
  if (runs.some((of) => of.knee !== null)) entries.push(entry("◆", runs.length === 1 ? palette.accent : palette.muted, "knee"));
  entries.push(entry("○", palette.ink, "open trial"));
  replace($("legend"), entries);
  const drawnRows = Array.from({ length: rowCount }, (_, row) => row).filter(inPicture).length;
  const away = rowCount - drawnRows;
  const touch = media("(pointer: coarse)").matches;
  const measured = [state.x, state.y].some((name) => runs.some((of) => of.spread.get(name)));
  replace($("front-note"), [
    touch ? "Tap a point to open its trial." : "Click a point to open its trial; drag a box to filter everything on this page.",
    measured ? " Bars are quartiles of the measurement." : "",
    away ? ` ${plural(away, "trial")} without both metrics ${away === 1 ? "is" : "are"} not drawn.` : "",
  ].join(""));
}
