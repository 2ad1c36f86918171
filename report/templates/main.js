// Start: read, draw what needs no charts, then plotly, which takes the browser a moment to read.

function drawHead() {
  const names = [...new Set(runs.map((of) => of.task || "space without a model"))];
  const title = runs.length === 1 ? `${names[0]}, ${runs[0].searcher}` : `${names.join(", ")}: ${runs.length} runs`;
  $("title").textContent = title;
  document.title = `${title} · netcarve`;
  const trials = plural(rowCount, "trial"), fronts = onFront.reduce((sum, on) => sum + on, 0);
  const lost = runs.reduce((sum, of) => sum + Object.keys(of.errors).length, 0);
  const facts = [trials, `${fronts} on the front${runs.length > 1 ? "s" : ""}`];
  if (lost) facts.push(`${lost} failed`);
  if (runs.length === 1) {
    if (runs[0].hypervolume !== null && fronts) facts.push(`hypervolume ${runs[0].hypervolume.toFixed(4)}`);
    if (runs[0].wall !== null) facts.push(`${runs[0].wall.toFixed(0)} s`);
    if (runs[0].status === "running" || runs[0].status === "interrupted") facts.push(runs[0].status);
  }
  $("facts").textContent = facts.join(" · ");
  const empty = runs.filter((of) => !of.front.length);
  if (empty.length) {
    const which = runs.length > 1 ? ` of ${empty.map((of) => of.name).join(", ")}` : "";
    problem(runs.length === 1 && lost === rowCount ? "Every trial failed; the reasons are below."
      : `The front${which} is empty: no trial has every objective within the limits.`);
  }
}

function startAxes() {
  const goals = runs[0].objectives.filter((name) => column(0, name));
  const names = metrics.map((metric) => metric.name).filter((name) => runs.some((_, r) => column(r, name)));
  // A cost across and a quality up, as in results/plot.py.
  const costs = goals.filter((name) => metricOf.get(name).goal === "min" && name !== "loss");
  const usual = names.find((name) => ["macs", "params", "latency_ms"].includes(name));
  state.x = costs[0] || usual || goals[1] || names.find((name) => name !== goals[0]) || names[0] || "";
  state.y = goals.find((name) => name !== state.x) || names.find((name) => name !== state.x) || state.x;
  state.colour = runs.length === 1 ? goals.find((name) => name !== state.x && name !== state.y) || "" : "";
  const fill = (id, options, key) => {
    replace($(id), options.map(([value, text]) => h("option", { value }, text)));
    $(id).value = state[key];
    $(id).addEventListener("change", () => { state[key] = $(id).value; drawFront(); });
  };
  const options = names.map((name) => [name, capital(labelOf(name))]);
  fill("axis-x", options, "x");
  fill("axis-y", options, "y");
  fill("axis-colour", [["", runs.length > 1 ? "Run" : "None"], ...options], "colour");
}

function drawChips() {
  const chips = [...state.axes].map(([key, { text }]) =>
    [`${tail(axisOf.get(key).name, 28)}: ${text}`, () => state.axes.delete(key)]);
  if (state.box) {
    const { x, y, low, high } = state.box;
    const side = (name, i) => `${capital(labelOf(name))}: ${metricText(name, low[i])} to ${metricText(name, high[i])}`;
    chips.unshift([`${side(y, 1)}, ${side(x, 0)}`, () => { state.box = null; }]);
  }
  const clear = () => { state.box = null; state.axes.clear(); filter(); };
  replace($("chips"), chips.map(([text, drop]) => h("button", { type: "button", class: "chip", title: "remove this filter",
    onclick: () => { drop(); filter(); } }, text, h("span", { "aria-hidden": "true" }, " ×"))),
  chips.length > 1 ? h("button", { type: "button", class: "quiet", id: "clear", onclick: clear }, "Clear all") : null);
  const passing = shown.reduce((sum, on) => sum + on, 0), all = plural(rowCount, "trial");
  $("count").textContent = passing === rowCount ? all : `${passing.toLocaleString("en")} of ${all}`;
}

function listen() {
  $("scope").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    state.scope = button.dataset.scope;
    $("scope").querySelectorAll("button").forEach((b) => b.setAttribute("aria-pressed", String(b === button)));
    filter();
  });
  $("previous").addEventListener("click", () => step(-1));
  $("next").addEventListener("click", () => step(1));
  listenTable();
  const redraw = () => { drawFront(); drawConvergence(); drawChoices(); drawAbout(); drawRivals(); drawImportance(); };
  media("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  let width = $("choices-scroll").clientWidth;
  new ResizeObserver(() => {
    if (Math.abs($("choices-scroll").clientWidth - width) < 2) return;
    width = $("choices-scroll").clientWidth;
    layChoices();
  }).observe($("choices-scroll"));
  drawn.filter.push(drawChips, fadeFront, drawChoices, () => { sorting.count = PAGE; drawTable(); });
  drawn.chosen.push(drawTrial, ringFront, drawChoices, markOpenRow);
}

async function start() {
  if (!("DecompressionStream" in window)) throw new Error("it needs a browser of 2023 or later");
  readDocument(await unpack("data"));
  makeAxes();
  startAxes();
  const knee = runs.map((_, r) => kneeRow(r)).find((row) => row !== null);
  state.chosen = knee ?? (runs[0].front.length ? runs[0].front[0] : 0);
  listen();
  drawHead();
  drawChips();
  drawTrial();
  layChoices();
  drawTable();
  drawFailures();
  drawClock();
  drawImportance();
  drawAbout();
  drawRivals();
  await painted();
  performance.mark("netcarve first");
  const code = await unpack("plotly");
  document.head.append(h("script", null, code));
  if (!window.Plotly) throw new Error("its charts are not allowed to run here");
  if (state.x && state.y) drawFront();
  else replace($("front"), note("No trial has scores, so there is nothing to draw."));
  drawConvergence();
  await painted();
  performance.mark("netcarve ready");
  document.documentElement.dataset.ready = "yes";
}

start().catch((error) => {
  problem(`This page cannot be drawn: ${error.message}.`);
  throw error;
});
