// One function a kind of picture (explain/section.py names them). Each fills an element.

const ROW = 21; // pixels a bar of a lying chart
const signs = (text, most) => escaped(tail(text, most));
const shareFormat = (figure) => (figure.percent ? ".3~%" : ".3~g");

function axisFrame(palette, more) {
  return { gridcolor: palette.faint, linecolor: palette.grey, showline: false, zeroline: true, zerolinecolor: palette.grey,
    ticks: "", tickfont: { size: 11, color: palette.muted }, automargin: true, ...more };
}

function axisTitle(text, palette) {
  return { text: escaped(capital(text)), standoff: 8, font: { size: 12, color: palette.muted } };
}

function hover(palette) {
  return { bgcolor: palette.paper, bordercolor: palette.grey, font: { color: palette.ink, size: 12 } };
}

// Original grey, subnetwork in colour; what is neither has the colour too.
function seriesColour(name, i, all, palette) {
  if (name === "original") return palette.grey;
  return all.some((one) => one.name === "original") ? palette.accent : palette.runs[i % palette.runs.length];
}

function keyOf(all, palette) {
  if (all.length < 2) return null;
  return h("div", { class: "legend" }, all.map(({ name }, i) =>
    h("span", null, h("i", { style: { color: seriesColour(name, i, all, palette) } }, "■"), name)));
}

function draw(element, traces, layout, height, palette) {
  element.style.height = `${height}px`;
  window.Plotly.react(element, traces, plotLayout(palette, { dragmode: false, hoverlabel: hover(palette), ...layout }), CONFIG);
}

// Bars lie, the first on top, so that long names of layers can be read.
function drawBars(element, figure, palette, width) {
  const room = width < 360 ? 18 : width < 480 ? 24 : 34, all = figure.series;
  const at = figure.labels.map((_, i) => i);
  const positive = (values) => values.map((v) => (figure.log && !(v > 0) ? null : v));
  const traces = all.map(({ name, values }, i) => ({
    ...(figure.log ? { type: "scatter", mode: "markers" } : { type: "bar", orientation: "h" }), y: at, x: positive(values), name: escaped(name),
    customdata: figure.labels.map(escaped), marker: { color: seriesColour(name, i, all, palette), size: 9 },
    hovertemplate: `%{customdata}<br>%{x:${shareFormat(figure)}}${all.length > 1 ? ` ${escaped(name)}` : ""}<extra></extra>`,
  }));
  const x = axisFrame(palette, { title: axisTitle(figure.axis, palette), tickformat: shareFormat(figure), nticks: 6 });
  if (figure.log) Object.assign(x, { type: "log", zeroline: false, dtick: 1, tickformat: ".0e", rangemode: "normal" });
  if (figure.whole) x.range = [0, 1.02];
  if (figure.log) {
    const least = Math.min(...all.flatMap(({ values }) => values.filter((v) => v > 0)), 1);
    x.range = [Math.floor(Math.log10(least) - 0.3), 0.05];
    x.dtick = Math.max(1, Math.ceil(-x.range[0] / 5));
  }
  draw(element, traces, {
    barmode: "group", bargap: 0.3, bargroupgap: 0.05, hovermode: "closest", margin: { l: 8, r: 12, t: 4, b: 40 }, xaxis: x,
    yaxis: axisFrame(palette, { autorange: "reversed", showgrid: false, zeroline: false, tickmode: "array", tickvals: at,
      ticktext: figure.labels.map((text) => signs(text, room)) }),
  }, Math.max(120, at.length * (all.length > 1 ? ROW + 5 : ROW) + 64), palette);
}

function drawLines(element, figure, palette, width) {
  const all = figure.series, count = figure.labels.length;
  const traces = all.map(({ name, values }, i) => ({
    type: "scatter", mode: count > 40 ? "lines" : "lines+markers", x: figure.labels.map((_, k) => k), y: values,
    name: escaped(name), customdata: figure.labels.map(escaped), connectgaps: false,
    line: { width: 2, color: seriesColour(name, i, all, palette), dash: i < palette.runs.length ? "solid" : "dot" }, marker: { size: 6 },
    hovertemplate: `%{customdata}<br>%{y:${shareFormat(figure)}}${all.length > 1 ? ` ${escaped(name)}` : ""}<extra></extra>`,
  }));
  const every = Math.ceil(count / (width < 480 ? 8 : 16));
  const marks = figure.labels.map((_, i) => i).filter((i) => i % every === 0);
  draw(element, traces, {
    hovermode: "closest", margin: { l: 8, r: 12, t: 8, b: 8 },
    xaxis: axisFrame(palette, { showgrid: false, zeroline: false, tickmode: "array", tickvals: marks,
      ticktext: marks.map((i) => signs(figure.labels[i], 18)), tickangle: count > 6 ? -50 : 0 }),
    yaxis: axisFrame(palette, { title: axisTitle(figure.axis, palette), tickformat: shareFormat(figure), nticks: 6,
      rangemode: figure.from === 0 ? "tozero" : "normal" }),
  }, 300, palette);
}

function drawHeat(element, figure, palette, width) {
  const room = width < 360 ? 14 : 24, flat = figure.values.flat().filter((v) => v !== null);
  const most = Math.max(1e-12, ...flat.map(Math.abs));
  const scale = figure.signed ? [[0, palette.runs[1]], [0.5, palette.paper], [1, palette.accent]]
    : [[0, palette.paper], [1, palette.high]];
  const [across, down] = [figure.across, figure.down];
  const ticks = (names) => ({ tickmode: "array", tickvals: names.map((_, i) => i), ticktext: names.map((n) => signs(n, room)) });
  const [first, second] = figure.sides || ["", ""];
  const text = figure.values.map((row, i) => row.map((_, j) => escaped(`${down[i]}${second ? ` (${second})` : ""} and `
    + `${across[j]}${first ? ` (${first})` : ""}`)));
  draw(element, [{
    type: "heatmap", z: figure.values, x: across.map((_, i) => i), y: down.map((_, i) => i), colorscale: scale, text,
    zmin: figure.signed ? -most : 0, zmax: figure.axis === "CKA" ? 1 : most, xgap: 1, ygap: 1,
    hovertemplate: `%{text}<br>%{z:${shareFormat(figure)}}<extra></extra>`,
    colorbar: { thickness: 8, outlinewidth: 0, len: 0.9, nticks: 5, tickformat: shareFormat(figure), xpad: 6,
      tickfont: { size: 11, color: palette.muted }, title: { text: escaped(capital(figure.axis)), side: "right",
        font: { size: 11, color: palette.muted } } },
  }], {
    margin: { l: 8, r: 8, t: 8, b: 8 },
    xaxis: axisFrame(palette, { showgrid: false, zeroline: false, tickangle: -50, ...ticks(across),
      ...(first ? { title: axisTitle(first, palette) } : {}) }),
    yaxis: axisFrame(palette, { showgrid: false, zeroline: false, autorange: "reversed", ...ticks(down),
      ...(second ? { title: axisTitle(second, palette) } : {}) }),
  }, Math.max(280, Math.min(620, 130 + 22 * down.length)), palette);
}

function drawIntervals(element, figure, palette, width) {
  const at = figure.labels.map((_, i) => i), middle = figure.middle;
  const colour = middle.map((v, i) => (figure.high[i] < 0 ? palette.runs[1] : figure.low[i] > 0 ? palette.accent : palette.muted));
  draw(element, [{
    type: "scatter", mode: "markers", x: middle, y: at, customdata: figure.labels.map(escaped),
    marker: { size: 9, color: colour }, hovertemplate: `%{customdata}<br>%{x:${shareFormat(figure)}}<extra></extra>`,
    error_x: { type: "data", symmetric: false, array: figure.high.map((v, i) => v - middle[i]),
      arrayminus: figure.low.map((v, i) => middle[i] - v), color: palette.grey, thickness: 1.5, width: 4 },
  }], {
    hovermode: "closest", margin: { l: 8, r: 12, t: 4, b: 40 },
    xaxis: axisFrame(palette, { title: axisTitle(figure.axis, palette), tickformat: shareFormat(figure), nticks: 7 }),
    yaxis: axisFrame(palette, { autorange: "reversed", showgrid: false, zeroline: false, tickmode: "array", tickvals: at,
      ticktext: figure.labels.map((text) => signs(text, width < 480 ? 16 : 30)) }),
  }, Math.max(140, at.length * 24 + 64), palette);
}

function picture({ name, pixels, signed }, palette) {
  const [rows, columns] = [pixels.length, pixels[0].length];
  const canvas = h("canvas", { width: columns, height: rows, role: "img", "aria-label": name });
  const pen = canvas.getContext("2d");
  const side = rows === 1 ? { height: "18px" } : { aspectRatio: `${columns} / ${rows}` };
  Object.assign(canvas.style, side);
  pixels.forEach((line, y) => line.forEach((value, x) => {
    const size = Math.min(1, Math.abs(value));
    pen.fillStyle = signed ? mixed(palette.paper, value < 0 ? palette.runs[1] : palette.accent, size)
      : mixed("#0b0d10", "#f5f7fa", Math.max(0, value));
    pen.fillRect(x, y, 1, 1);
  }));
  return h("figure", { class: "tile" }, canvas, h("figcaption", null, name));
}

function drawImages(element, figure, palette) {
  replace(element, h("div", { class: "gallery" }, figure.rows.map((row) => h("div", { class: "strip" },
    h("h4", null, row.name), h("div", null, row.pictures.map((one) => picture(one, palette)))))));
}

function drawCells(element, figure) {
  replace(element, h("div", { class: "scroll" }, h("table", { class: "figures" },
    h("thead", null, h("tr", null, figure.head.map((text, i) => (i ? th(text) : wordsHead(text))))),
    h("tbody", null, figure.rows.map((row) => h("tr", null, row.map((text, i) => (i ? td(text) : words(text)))))))));
}

function drawText(element, figure) {
  replace(element, h("pre", { class: "rules" }, figure.lines.join("\n")));
}

const DRAW = { bars: drawBars, lines: drawLines, heat: drawHeat, intervals: drawIntervals, images: drawImages,
  table: drawCells, text: drawText };
const CHARTS = ["bars", "lines", "heat", "intervals"]; // drawn by plotly
