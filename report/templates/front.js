// The front as a picture: any two metrics, a third as colour.

const BIGGEST = 1e150; // beyond it plotly's arithmetic on ranges overflows
const plottable = (value) => value !== null && value !== undefined && Math.abs(value) < BIGGEST;

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
const FADED = { marker: { opacity: 0.12 } };

// Least and greatest drawn value of a metric, with a margin of some share of the width.
function extent(name, margin) {
  let low = Infinity, high = -Infinity;
  for (let row = 0; row < rowCount; row += 1) {
    if (!inPicture(row)) continue;
    const value = score(row, name), [up, down] = margin ? errorBars(row, name) : [0, 0];
    if (plottable(value)) { low = Math.min(low, value - down); high = Math.max(high, value + up); }
  }
  if (!(low <= high)) return [0, 1];
  const room = margin * (high - low) || (margin ? Math.abs(low) * 0.05 || 1 : 0);
  return [low - room, high + room];
}

function pointTrace(rows, palette, r) {
  const marker = { symbol: SYMBOLS[r % SYMBOLS.length], size: 9, opacity: 1, color: runColour(r, palette),
    line: { width: 1, color: palette.paper } };
  if (state.colour) Object.assign(marker, { color: rows.map((row) => score(row, state.colour)), coloraxis: "coloraxis" });
  return {
    type: "scatter", mode: "markers", x: xs(rows), y: ys(rows), customdata: rows, hoverinfo: "skip", marker, meta: "front",
    selectedpoints: selected(rows), selected: { marker: { opacity: 1 } }, unselected: FADED,
    error_x: bars(rows, state.x, palette.grey), error_y: bars(rows, state.y, palette.grey),
  };
}

function mark(rows, symbol, size, colour, line, palette) {
  return {
    type: "scatter", mode: "markers", x: xs(rows), y: ys(rows), customdata: rows, hoverinfo: "skip",
    marker: { symbol, size, color: colour, line: { width: line, color: palette.paper }, opacity: 1 },
    selected: { marker: { opacity: 1 } }, unselected: { marker: { opacity: 1 } }, // plotly's own brush leaves it alone
  };
}

function frontTraces(palette) {
  const fronts = [];
  runs.forEach((of, r) => {
    const rows = of.numbers.map((_, place) => of.first + place).filter(inPicture);
    const best = rows.filter((row) => onFront[row]);
    const border = metricOf.get(state.x).goal && metricOf.get(state.y).goal ? staircase(best) : [];
    fronts.push({ type: "scatter", mode: "lines", x: border.map((p) => p[0]), y: border.map((p) => p[1]),
      line: { shape: "hv", width: 1.5, color: runColour(r, palette) }, opacity: state.colour ? 0.3 : 0.45,
      hoverinfo: "skip" });
    const line = [...uniformRows(r), ...(baseRow(r) === null ? [] : [baseRow(r)])].filter(inPicture);
    line.sort((a, b) => score(a, state.x) - score(b, state.x));
    if (line.length > 1 && !state.colour) fronts.push({ type: "scatter", mode: "lines+markers", x: xs(line), y: ys(line),
      line: { width: 1, dash: "dash", color: palette.muted }, marker: { symbol: "square", size: 5, color: palette.muted },
      hoverinfo: "skip", customdata: line, selected: { marker: { opacity: 1 } }, unselected: { marker: { opacity: 1 } } });
    fronts.push(pointTrace(best, palette, r));
  });
  const special = (find) => runs.map((_, r) => find(r)).filter((row) => row !== null && inPicture(row));
  const base = special(baseRow), knees = special(kneeRow);
  const star = mark(base, "star", 15, palette.ink, 1, palette);
  Object.assign(star, { error_x: bars(base, state.x, palette.grey), error_y: bars(base, state.y, palette.grey) });
  const diamond = mark(knees, "diamond", 14, knees.map((row) => runColour(runOf[row], palette)), 1.5, palette);
  const open = state.chosen !== null && inPicture(state.chosen) ? [state.chosen] : [];
  const ring = { ...mark(open, "circle-open", 21, palette.ink, 2, palette) };
  ring.marker.line = { width: 2, color: palette.ink };
  return [...fronts, star, diamond, ring];
}

function drawFront() {
  if (!window.Plotly) return;
  const palette = colours();
  const touch = media("(pointer: coarse)").matches;
  const layout = plotLayout(palette, {
    xaxis: { ...axisLayout(state.x, palette), range: extent(state.x, 0.05) },
    yaxis: { ...axisLayout(state.y, palette), range: extent(state.y, 0.06) }, hovermode: false,
    dragmode: touch ? false : "select", selectdirection: "any", 
    newselection: { line: { color: palette.accent, width: 1, dash: "solid" } },
    activeselection: { fillcolor: palette.accent, opacity: 0.04 },
    selections: state.box && state.box.x === state.x && state.box.y === state.y ? [{
      type: "rect", xref: "x", yref: "y", x0: state.box.low[0], x1: state.box.high[0], y0: state.box.low[1],
      y1: state.box.high[1], line: { color: palette.accent, width: 1, dash: "solid" } }] : [],
  });
  if (state.colour) {
    const { tickformat } = axisLayout(state.colour, palette);
    const [cmin, cmax] = extent(state.colour, 0);
    layout.coloraxis = { cmin, cmax, colorscale: [[0, palette.low], [1, palette.high]], colorbar: {
      thickness: 8, outlinewidth: 0, len: 0.9, tickformat, nticks: 5, tickfont: { size: 11, color: palette.muted }, xpad: 4,
      title: { text: escaped(capital(tail(metricOf.get(state.colour).label, 24))), side: "right",
        font: { size: 11, color: palette.muted } } } };
  }
  const fresh = !$("front").data;
  window.Plotly.react("front", frontTraces(palette), layout, CONFIG);
  if (fresh) listenFront();
  drawCloud();
  drawLegend(palette);
}

// Only what a filter or a choice changes: far quicker than the whole picture with thousands of points.
function fadeFront() {
  if (!window.Plotly || !$("front").data) return;
  const which = [], points = [];
  $("front").data.forEach((trace, t) => {
    if (trace.meta === "front") { which.push(t); points.push(selected(trace.customdata)); }
  });
  window.Plotly.restyle("front", { selectedpoints: points }, which);
  if (!state.box && $("front").layout.selections.length) window.Plotly.relayout("front", { selections: [] });
  drawCloud();
}

function ringFront() {
  if (!window.Plotly || !$("front").data) return;
  const open = state.chosen !== null && inPicture(state.chosen) ? [state.chosen] : [];
  window.Plotly.restyle("front", { x: [xs(open)], y: [ys(open)], customdata: [open] }, [$("front").data.length - 1]);
}

// Where points overlap the front is what is meant, not what lies below it.
function rowNear({ clientX, clientY }) {
  const { xaxis, yaxis } = $("front")._fullLayout, box = $("front").getBoundingClientRect();
  const [x, y] = [clientX - box.left - xaxis._offset, clientY - box.top - yaxis._offset];
  let best, nearest = 14;
  for (let row = 0; row < rowCount; row += 1) {
    if (!inPicture(row)) continue;
    const away = Math.hypot(xaxis.d2p(score(row, state.x)) - x, yaxis.d2p(score(row, state.y)) - y);
    const handicap = (onFront[row] ? 0 : 4) + (shown[row] ? 0 : 8);
    if (away + handicap < nearest) { nearest = away + handicap; best = row; }
  }
  return best;
}

// The dominated, on a canvas below plotly's: as thousands of elements they would make every brush stroke stutter.
function drawCloud() {
  const { xaxis, yaxis } = $("front")._fullLayout, palette = colours(), dense = window.devicePixelRatio || 1;
  const canvas = $("cloud"), pen = canvas.getContext("2d");
  const [width, height] = [xaxis._length, yaxis._length];
  Object.assign(canvas, { width: Math.round(width * dense), height: Math.round(height * dense) });
  Object.assign(canvas.style, { left: `${xaxis._offset}px`, top: `${yaxis._offset}px` });
  Object.assign(canvas.style, { width: `${width}px`, height: `${height}px` });
  pen.scale(dense, dense);
  const [low, high] = state.colour ? extent(state.colour, 0) : [0, 1];
  let lit = 0;
  for (const on of [0, 1]) { // what the filter leaves lies above what it dims
    pen.globalAlpha = on ? 0.6 : 0.1;
    for (let row = 0; row < rowCount; row += 1) {
      if (shown[row] !== on || onFront[row] || row === baseRow(runOf[row]) || !inPicture(row)) continue;
      lit += on;
      const value = state.colour ? score(row, state.colour) : null;
      pen.fillStyle = plottable(value) ? mixed(palette.low, palette.high, (value - low) / (high - low || 1)) : palette.grey;
      pen.beginPath();
      pen.arc(xaxis.d2p(score(row, state.x)), yaxis.d2p(score(row, state.y)), 2.6, 0, 2 * Math.PI);
      pen.fill();
    }
  }
  canvas.setAttribute("aria-label", `${plural(lit, "dominated trial")} within the filter`);
}

function listenFront() {
  const picture = $("front");
  let pressed = null;
  picture.addEventListener("pointerdown", (event) => { pressed = [event.clientX, event.clientY]; }, true);
  picture.addEventListener("click", (event) => {
    if (!pressed || Math.hypot(event.clientX - pressed[0], event.clientY - pressed[1]) > 4) return;
    const row = rowNear(event);
    if (row !== undefined) choose(row);
  }, true);
  picture.addEventListener("pointermove", (event) => {
    const row = event.pointerType === "mouse" && !event.buttons ? rowNear(event) : undefined;
    if (row === undefined) $("tip").hidden = true; else tip(row, event);
  });
  picture.addEventListener("pointerleave", () => { $("tip").hidden = true; });
  picture.on("plotly_afterplot", drawCloud);
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
  const lines = names.map((name) => h("tr", null, h("td", null, labelOf(name)),
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
  if (isUniform(row)) found.push("uniform");
  if (failed(row)) found.push("failed");
  return found.length ? ` · ${found.join(", ")}` : "";
}

function drawLegend(palette) {
  const entry = (sign, colour, text) => h("span", null, h("i", { style: { color: colour } }, sign), text);
  const entries = runs.length === 1
    ? [entry("●", state.colour ? palette.high : palette.accent, "front")]
    : runs.map((of, r) => entry("●■▲◆⬟⬢"[r % 6], state.colour ? palette.muted : runColour(r, palette), of.name));
  if (runs.some((of) => of.uniform.length) && !state.colour) entries.push(entry("■", palette.muted, "uniform cuts"));
  entries.push(entry("●", palette.grey, "dominated"), entry("★", palette.ink, "unchanged model"));
  const knee = runs.length === 1 ? palette.accent : palette.muted;
  if (runs.some((of) => of.knee !== null)) entries.push(entry("◆", knee, "knee"));
  entries.push(entry("○", palette.ink, "open trial"));
  replace($("legend"), entries);
  const drawnRows = Array.from({ length: rowCount }, (_, row) => row).filter(inPicture).length;
  const away = rowCount - drawnRows;
  const touch = media("(pointer: coarse)").matches;
  const measured = [state.x, state.y].some((name) => runs.some((of) => of.spread.get(name)));
  const intervals = [state.x, state.y].some((name) => name.startsWith("confirmed "));
  replace($("front-certainty"), runs.flatMap((of) => of.notes.map((text) =>
    note(runs.length > 1 ? `${of.name}: ${text}` : text))));
  replace($("front-note"), [
    touch ? "Tap a point to open its trial."
      : "Click a point to open its trial; drag a box to filter everything on this page.",
    measured ? ` Bars are ${intervals ? "95 % intervals" : "quartiles"} of the measurement.` : "",
    away ? ` ${plural(away, "trial")} without both metrics ${away === 1 ? "is" : "are"} not drawn.` : "",
  ].join(""));
}
