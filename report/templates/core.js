// What all parts of the report share: the runs as columns, the state.

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
const uniformRows = (r) => runs[r].uniform.map((place) => runs[r].first + place);
const isUniform = (row) => run(row).uniform.includes(placeOf[row]);
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

const runColour = (r, palette) => palette.runs[r % palette.runs.length];
const SYMBOLS = ["circle", "square", "triangle-up", "diamond", "pentagon", "hexagon"];
