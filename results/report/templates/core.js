"use strict";
// What all parts of the page share: the runs as columns, the state, numbers as text, elements without HTML.

const $ = (id) => document.getElementById(id);
const media = (query) => window.matchMedia(query);

// An element with text inside. Names come from a run and are never read as HTML: strings become text nodes.
function h(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") Object.assign(element.style, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined).map((child) =>
    child instanceof Node ? child : String(child)));
  return element;
}
const td = (...content) => h("td", null, ...content);
const words = (...content) => h("td", { class: "words" }, ...content); // to the left, figures to the right
const th = (...content) => h("th", { scope: "col" }, ...content);
const wordsHead = (...content) => h("th", { scope: "col", class: "words" }, ...content);
const note = (...content) => h("p", { class: "note" }, ...content);
const replace = (element, ...children) => element.replaceChildren(...children.flat().filter(Boolean));

async function unpack(id) {
  const element = $(id);
  const bytes = Uint8Array.from(atob(element.textContent), (c) => c.charCodeAt(0));
  element.remove();
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

// Numbers as the command line writes them (results/table.py).

// Halves to the even digit as Python does; toFixed rounds them up, and ratios such as 0.125 are common here.
function fixed(value, decimals) {
  const up = value.toFixed(decimals);
  if (Math.abs(value) >= 1e15 || decimals > 50) return up;
  const [whole, rest] = value.toFixed(decimals + 45).split("."); // exact, by the standard
  if (!/^50*$/.test(rest.slice(decimals))) return up;
  const cut = decimals ? `${whole}.${rest.slice(0, decimals)}` : whole;
  return Number(cut.at(-1)) % 2 ? up : cut;
}

const exponentOf = (value) => Number(value.toExponential().split("e")[1]);

// The value at so many significant digits.
function rounded(value, digits) {
  const decimals = digits - 1 - exponentOf(value);
  return decimals >= 0 && decimals <= 50 ? Number(fixed(value, decimals)) : Number(value.toPrecision(digits));
}

function plain(value, digits) {
  if (value === 0) return "0";
  const near = rounded(value, digits), exponent = exponentOf(near);
  if (exponent >= -5 && exponent < 9) return near.toFixed(Math.max(0, digits - 1 - exponent));
  const [mantissa, power] = near.toExponential().split("e");
  return `${mantissa}e${power[0]}${power.slice(1).padStart(2, "0")}`;
}

function si(value) {
  if (Math.abs(value) < 1000 && Number.isInteger(value)) return String(value);
  let power = 0;
  while (power < 5 && Math.abs(rounded(value / 1000 ** power, 3)) >= 1000) power += 1;
  return `${plain(value / 1000 ** power, 3)} ${["", "k", "M", "G", "T", "P"][power]}`.trim();
}

function metricText(name, value) {
  if (value === null || value === undefined) return "";
  const metric = metricOf.get(name);
  if (metric.kind === "percent") return `${fixed(100 * value, 2)} %`;
  if (metric.kind === "count") return si(value);
  return `${plain(value, Number(metric.digits))} ${metric.unit}`.trim();
}

function ratioText(value, base) {
  const ratio = value / base;
  if (value === null || value === undefined || !base || !Number.isFinite(ratio)) return "";
  if (ratio === 0 || (Math.abs(ratio) >= 0.095 && Math.abs(ratio) < 9.995)) return `${fixed(ratio, 2)}x`;
  return `${plain(ratio, Math.abs(ratio) < 1 ? 2 : 3)}x`;
}

const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;
const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

// The end of a name tells layers apart, its beginning seldom does.
function tail(text, length) {
  const signs = Array.from(text);
  return signs.length <= length ? text : `…${signs.slice(1 - length).join("")}`;
}

// The runs. A trial is one number all over the page: its row, counted through all runs.

let doc, runs, metrics, metricOf, rowCount, runOf, placeOf, onFront, shown;

function readDocument(text) {
  doc = JSON.parse(text);
  runs = doc.runs;
  metrics = doc.metrics;
  metricOf = new Map(metrics.map((metric) => [metric.name, metric]));
  rowCount = runs.reduce((sum, run) => sum + run.numbers.length, 0);
  runOf = new Uint16Array(rowCount);
  placeOf = new Uint32Array(rowCount);
  onFront = new Uint8Array(rowCount);
  shown = new Uint8Array(rowCount).fill(1);
  let row = 0;
  runs.forEach((run, r) => {
    run.first = row;
    run.columns = new Map(Object.entries(run.scores));
    run.spread = new Map(Object.entries(run.spread)); // a metric may be called "constructor"
    run.byName = new Map(run.choices.map((choice, c) => [choice.name, c]));
    run.numbers.forEach((_, place) => { runOf[row] = r; placeOf[row] = place; row += 1; });
    for (const place of run.front) onFront[run.first + place] = 1;
  });
}

const run = (row) => runs[runOf[row]];
const number = (row) => run(row).numbers[placeOf[row]];
const failed = (row) => String(number(row)) in run(row).errors;
const column = (r, name) => runs[r].columns.get(name);
function score(row, name) {
  const values = column(runOf[row], name);
  return values === undefined ? null : values[placeOf[row]];
}
const baseRow = (r) => (runs[r].baseline === null ? null : runs[r].first + runs[r].baseline);
const kneeRow = (r) => (runs[r].knee === null ? null : runs[r].first + runs[r].knee);
const baseScore = (r, name) => (baseRow(r) === null ? null : score(baseRow(r), name));
const better = (name) => (metricOf.get(name).goal === "max" ? -1 : 1);
// What a choice stands for: "prune:stage1.conv" is the kind "prune" and the place "stage1.conv".
function namePair(name) {
  const found = /^([a-z]+):(.+)$/s.exec(name);
  return found ? [found[1], found[2]] : ["", name];
}
function optionText(choice, index) {
  if (choice.kept) return String(choice.kept[index]);
  const [yes, no] = namePair(choice.name)[0] === "drop" ? ["dropped", "kept"] : ["yes", "no"];
  const option = choice.options[index];
  return option === "True" ? yes : option === "False" ? no : option;
}
const labelOf = (name) => metricOf.get(name).label;
const label = (row) => `Trial ${number(row)}`;
const rowOf = (r, wanted) => runs[r].first + runs[r].numbers.indexOf(wanted);

// The state, and who draws it again when it changes.

const state = {
  x: "", y: "", colour: "", // metrics of the picture; colour "" is none
  chosen: null, // row of the open trial
  scope: "all", // or "front"
  box: null, // brushed in the picture: {x: metric, y: metric, low: [x, y], high: [x, y]}
  axes: new Map(), // brushed axes: key -> {low, high, text}, in the axis' own measure
};
const drawn = { filter: [], chosen: [] };

function choose(row) {
  state.chosen = row;
  drawn.chosen.forEach((draw) => draw());
}

let waiting = false;
function filter() {
  for (let row = 0; row < rowCount; row += 1) shown[row] = passes(row) ? 1 : 0;
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; drawn.filter.forEach((draw) => draw()); });
}

function passes(row) {
  if (state.scope === "front" && !onFront[row]) return false;
  if (state.box) {
    const { x, y, low, high } = state.box;
    const a = score(row, x), b = score(row, y);
    if (a === null || b === null || a < low[0] || a > high[0] || b < low[1] || b > high[1]) return false;
  }
  for (const [key, { low, high }] of state.axes) {
    const at = axisOf.get(key).at(row);
    if (at === null || at < low || at > high) return false;
  }
  return true;
}

// Colours, from the style sheet, so that light and dark are told in one place.

function colours() {
  const style = getComputedStyle(document.documentElement);
  const get = (name) => style.getPropertyValue(`--${name}`).trim();
  return {
    ink: get("ink"), muted: get("muted"), faint: get("faint"), grey: get("grey"), paper: get("paper"),
    accent: get("accent"), runs: [get("accent"), get("run-2"), get("run-3"), get("run-4"), get("run-5")],
    low: get("scale-low"), high: get("scale-high"), font: style.fontFamily || "sans-serif",
  };
}
const runColour = (r, palette) => palette.runs[r % palette.runs.length];
const SYMBOLS = ["circle", "square", "triangle-up", "diamond", "pentagon", "hexagon"];
