// Parallel coordinates: one axis a choice, then the objectives. Lines on a canvas, axes as elements above it.

const TOP = 44, BOTTOM = 14, HEIGHT = 300, EDGE = 40;
let axisOf = new Map(); // key -> {key, name, kind, at(row) -> 0 (top) to 1 or null, ticks, left}

// Within one option lines fan out a little, the same way at every drawing.
const fan = (row) => ((row * 2654435761) % 1000) / 1000 - 0.5;

function makeAxes() {
  const axes = [];
  for (const name of new Set(runs.flatMap((of) => of.choices.map((choice) => choice.name)))) {
    const owner = runs.find((of) => of.byName.has(name));
    const choice = owner.choices[owner.byName.get(name)];
    // By what is taken, so that runs whose options differ in number stand on one scale.
    const counts = runs.map((of) => (of.byName.has(name) ? of.choices[of.byName.get(name)].options.length : 0));
    const last = Math.max(2, ...counts) - 1;
    const texts = choice.options.map((_, i) => optionText(choice, i));
    axes.push({
      key: `choice ${name}`, name, kind: "choice", last,
      at: (row) => {
        const c = run(row).byName.get(name);
        return c === undefined ? null : run(row).taken[c][placeOf[row]] / last;
      },
      ticks: texts.map((text, i) => ({ at: i / last, text })),
      read: (low, high) => {
        const within = texts.filter((_, i) => i / last >= low && i / last <= high);
        return within.length > 1 ? `${within[0]} to ${within[within.length - 1]}` : within[0] || "none";
      },
    });
  }
  for (const name of new Set(runs.flatMap((of) => of.objectives))) {
    let low = Infinity, high = -Infinity;
    for (const value of runs.flatMap((_, r) => column(r, name) || []).filter(plottable)) {
      low = Math.min(low, value);
      high = Math.max(high, value);
    }
    if (!(low <= high)) continue;
    const size = high - low || 1;
    axes.push({
      key: `metric ${name}`, name: capital(labelOf(name)), kind: "metric", last: 0,
      at: (row) => (plottable(score(row, name)) ? (high - score(row, name)) / size : null),
      ticks: [{ at: 0, text: metricText(name, high) }, { at: 1, text: metricText(name, low) }],
      read: (top, bottom) => `${metricText(name, high - bottom * size)} to ${metricText(name, high - top * size)}`,
    });
  }
  axisOf = new Map(axes.map((axis) => [axis.key, axis]));
}

const down = (at) => TOP + at * (HEIGHT - TOP - BOTTOM);
const upFrom = (pixel) => (pixel - TOP) / (HEIGHT - TOP - BOTTOM);

function layChoices() {
  const axes = [...axisOf.values()];
  if (!axes.length) {
    replace($("choices"), note("This run decides nothing."));
    return;
  }
  const room = $("choices-scroll").clientWidth;
  const gap = Math.max(62, Math.min(150, (room - 2 * EDGE) / Math.max(1, axes.length - 1)));
  const width = Math.round(2 * EDGE + gap * (axes.length - 1));
  const dense = window.devicePixelRatio || 1;
  const canvas = h("canvas", { width: Math.round(width * dense), height: HEIGHT * dense, "aria-hidden": "true",
    style: { width: `${width}px`, height: `${HEIGHT}px` } });
  canvas.addEventListener("click", (event) => pickLine(event.offsetX, event.offsetY));
  Object.assign($("choices").style, { width: `${width}px`, height: `${HEIGHT}px` });
  replace($("choices"), canvas, axes.map((axis, i) => {
    axis.left = EDGE + gap * i;
    const [kind, rest] = axis.kind === "choice" ? namePair(axis.name) : ["", axis.name];
    const fits = Math.max(6, Math.floor(gap / 7.4));
    const place = { left: `${axis.left - 16}px` };
    return h("div", { class: `axis ${axis.kind}`, "data-axis": axis.key, title: axis.name, style: place },
      h("span", { class: "name" }, h("small", null, kind), tail(rest, fits)), h("span", { class: "range", hidden: true }));
  }));
  document.querySelectorAll("#choices .axis").forEach(listenAxis);
  lines = new Map();
  drawChoices();
}

function listenAxis(element) {
  const axis = axisOf.get(element.dataset.axis);
  let from = null;
  const at = (event) => Math.min(1, Math.max(0, upFrom(event.clientY - $("choices").getBoundingClientRect().top)));
  const brush = (event) => {
    const [a, b] = [from, at(event)];
    // Half a step on either side, so that an option is caught by a drag across its mark.
    const slack = axis.last ? 0.25 / axis.last : 0;
    const low = Math.min(a, b) - slack, high = Math.max(a, b) + slack;
    state.axes.set(axis.key, { low, high, text: axis.read(low, high) });
    filter();
  };
  element.addEventListener("pointerdown", (event) => {
    from = at(event);
    element.setPointerCapture(event.pointerId);
    event.preventDefault();
  });
  element.addEventListener("pointermove", (event) => {
    if (from !== null && Math.abs(at(event) - from) > 0.02) brush(event);
  });
  element.addEventListener("pointerup", (event) => {
    if (from !== null && Math.abs(at(event) - from) <= 0.02 && state.axes.delete(axis.key)) filter();
    from = null;
  });
  element.addEventListener("pointercancel", () => { from = null; });
}

let lines = new Map(); // row -> its points on the canvas, one an axis; kept until the axes move

function linePoints(row) {
  if (lines.has(row)) return lines.get(row);
  const points = [];
  for (const axis of axisOf.values()) {
    const at = axis.at(row);
    points.push(at === null ? null : [axis.left, down(at) + (axis.last ? fan(row) * Math.min(8, 120 / axis.last) : 0)]);
  }
  lines.set(row, points);
  return points;
}

function strokeRows(pen, rows) {
  pen.beginPath();
  for (const row of rows) {
    let moved = false;
    for (const point of linePoints(row)) {
      if (point === null) { moved = false; continue; }
      if (moved) pen.lineTo(point[0], point[1]); else pen.moveTo(point[0], point[1]);
      moved = true;
    }
  }
  pen.stroke();
}

function drawChoices() {
  const canvas = $("choices").querySelector("canvas");
  if (!canvas) return;
  const palette = colours(), dense = window.devicePixelRatio || 1;
  const pen = canvas.getContext("2d");
  pen.setTransform(dense, 0, 0, dense, 0, 0);
  pen.clearRect(0, 0, canvas.width, canvas.height);
  pen.lineJoin = "round";
  const rows = [...shown.keys()].filter((row) => shown[row] && !failed(row));
  const others = rows.filter((row) => !onFront[row]);
  pen.lineWidth = 1;
  pen.strokeStyle = palette.grey;
  pen.globalAlpha = Math.max(0.12, Math.min(0.5, 40 / Math.max(1, others.length)));
  // Lines of one path do not add up where they cross, those of several do: dense places look dense.
  const together = Math.ceil(others.length / 250);
  for (let i = 0; i < others.length; i += together) strokeRows(pen, others.slice(i, i + together));
  pen.globalAlpha = 0.75;
  pen.lineWidth = 1.4;
  for (const row of rows.filter((r) => onFront[r])) {
    pen.strokeStyle = runColour(runOf[row], palette);
    strokeRows(pen, [row]);
  }
  pen.globalAlpha = 1;
  if (state.chosen !== null && !failed(state.chosen)) {
    pen.strokeStyle = palette.paper;
    pen.lineWidth = 5;
    strokeRows(pen, [state.chosen]);
    pen.strokeStyle = palette.ink;
    pen.lineWidth = 2.2;
    strokeRows(pen, [state.chosen]);
  }
  drawAxes(pen, palette);
}

function drawAxes(pen, palette) {
  pen.font = `10.5px ${palette.font}`;
  pen.textBaseline = "middle";
  for (const axis of axisOf.values()) {
    pen.strokeStyle = palette.grey;
    pen.lineWidth = 1;
    pen.beginPath();
    pen.moveTo(axis.left + 0.5, down(0));
    pen.lineTo(axis.left + 0.5, down(1));
    pen.stroke();
    const every = Math.ceil(axis.ticks.length / 9);
    axis.ticks.forEach(({ at, text }, i) => {
      if (i % every && i !== axis.ticks.length - 1) return;
      const short = tail(text, 9);
      const wide = pen.measureText(short).width;
      const y = axis.kind === "metric" ? down(at) + (at ? 8 : -8) : down(at);
      const x = axis.kind === "metric" ? axis.left - wide / 2 : axis.left - wide - 5;
      pen.globalAlpha = 0.82;
      pen.fillStyle = palette.paper;
      pen.fillRect(x - 1.5, y - 6, wide + 3, 12);
      pen.globalAlpha = 1;
      pen.fillStyle = palette.muted;
      pen.fillText(short, x, y);
    });
    const element = [...document.querySelectorAll("#choices .axis")].find((e) => e.dataset.axis === axis.key);
    const range = element.querySelector(".range"), brushed = state.axes.get(axis.key);
    range.hidden = !brushed;
    if (brushed) {
      const top = down(Math.max(-0.03, brushed.low)), bottom = down(Math.min(1.03, brushed.high));
      Object.assign(range.style, { top: `${top}px`, height: `${Math.max(3, bottom - top)}px` });
    }
  }
}

function pickLine(x, y) {
  let best = null, nearest = 8;
  for (let row = 0; row < rowCount; row += 1) {
    if (!shown[row] || failed(row)) continue;
    const points = linePoints(row);
    for (let i = 1; i < points.length; i += 1) {
      const [a, b] = [points[i - 1], points[i]];
      if (!a || !b || x < a[0] || x > b[0]) continue;
      const distance = Math.abs(a[1] + ((b[1] - a[1]) * (x - a[0])) / (b[0] - a[0]) - y) - (onFront[row] ? 3 : 0);
      if (distance < nearest) { nearest = distance; best = row; }
    }
  }
  if (best !== null) choose(best);
}
