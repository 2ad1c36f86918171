// What concerns whole runs: convergence, failures, how they were made, and runs against each other.

function drawConvergence() {
  if (!window.Plotly) return;
  const palette = colours();
  for (const [id, key, title] of [["by-trials", "trials", "Evaluations"], ["by-seconds", "seconds", "Seconds"]]) {
    const traces = runs.map((of, r) => ({
      type: "scatter", mode: of.convergence.volume.length > 1 ? "lines" : "markers",
      x: of.convergence[key], y: of.convergence.volume, name: escaped(tail(of.name, 24)),
      line: { shape: "hv", width: 2, color: runColour(r, palette) }, marker: { color: runColour(r, palette), size: 7 },
      hovertemplate: `%{y:.4f} after %{x:.4~g}${key === "seconds" ? " s" : ""}<extra></extra>`,
    }));
    const axis = { gridcolor: palette.faint, linecolor: palette.grey, showline: true, zeroline: false, ticks: "",
      tickfont: { size: 11, color: palette.muted }, automargin: true, nticks: 6 };
    window.Plotly.react(id, traces, plotLayout(palette, {
      xaxis: { ...axis, rangemode: "tozero",
        title: { text: title, standoff: 10, font: { size: 12, color: palette.muted } } },
      yaxis: { ...axis, tickformat: ".4~g" }, hovermode: "closest", dragmode: false, margin: { l: 48, r: 12, t: 8, b: 40 },
      hoverlabel: { bgcolor: palette.paper, bordercolor: palette.grey, font: { color: palette.ink, size: 12 } },
    }), CONFIG);
  }
}

function drawClock() {
  const clocked = runs.every((of) => of.convergence.clock);
  $("seconds-caption").textContent = clocked ? "Hypervolume against seconds on the clock" : "Hypervolume against seconds of evaluation";
  $("seconds-note").textContent = clocked ? "Seconds are those that the run had been going on for."
    : "Seconds are those of the evaluations, added up in trial order over all workers: an older run has kept no clock.";
}

// The shares of each choice, the same bars as those of the layers.
function drawImportance() {
  const known = runs.map((of, r) => [of, r]).filter(([of]) => of.importance);
  $("importance-section").hidden = !known.length;
  replace($("importance"), h("div", { class: "abouts" }, known.map(([of, r]) => {
    const { metric, names, shares, trials, fit, skipped } = of.importance;
    const whose = runs.length > 1 ? [swatch(r), `${of.name}: `] : null;
    if (skipped) return h("div", null, h("h3", null, whose, capital(labelOf(metric))), h("p", { class: "note" }, `${capital(skipped)}.`));
    const most = Math.max(...shares);
    const learnt = fit === null ? `from all ${trials} candidates` : `learnt from ${plural(trials, "trial")}, `
      + `R² ${fit.toFixed(2)} on those held out`;
    return h("div", null, h("h3", null, whose, `${capital(labelOf(metric))}, ${learnt}`),
      h("div", { class: "widths", role: "table", "aria-label": "importance" }, names.map((name, i) =>
        h("div", { class: "matter", role: "row", "data-choice": name, title: name },
          h("span", { class: "layer", role: "cell" }, tail(name, 26)),
          h("span", { class: "track", role: "presentation" }, h("span", { class: "part", style: { width: `${(100 * shares[i]) / most}%` } })),
          h("span", { class: "units", role: "cell" }, h("b", null, `${fixed(100 * shares[i], 1)} %`))))));
  })));
}

function openButton(r, wanted) {
  const open = () => {
    choose(rowOf(r, wanted));
    $("trial-section").scrollIntoView({ block: "nearest" });
  };
  return h("button", { type: "button", class: "link", onclick: open }, wanted);
}

const MANY = 40; // trials named in one line
function trialButtons(r, numbers) {
  const first = numbers.slice(0, MANY).flatMap((wanted, i) => [i ? ", " : "", openButton(r, wanted)]);
  return numbers.length > MANY ? [...first, ` and ${numbers.length - MANY} more`] : first;
}

function drawFailures() {
  const several = runs.length > 1;
  const lines = runs.flatMap((of, r) => of.failures.map(([reason, numbers]) => h("tr", null, td(numbers.length),
    several ? words(of.name) : null, h("td", { class: "words reason" }, reason), words(trialButtons(r, numbers)))));
  $("failures-section").hidden = !lines.length;
  replace($("failures"), h("table", { class: "figures" },
    h("thead", null, h("tr", null, th("Trials"), several ? wordsHead("Run") : null, wordsHead("Reason"),
      wordsHead("Which"))),
    h("tbody", null, lines)));
}

function drawAbout() {
  replace($("about"), runs.map((of, r) => h("div", null,
    runs.length > 1 ? h("h3", null, swatch(r), of.name) : null,
    h("dl", null, of.about.flatMap(([what, text]) => [h("dt", null, what), h("dd", null, text)])))));
  replace($("footer"), `Made by netcarve on ${doc.made.replace("T", " ").replace("+00:00", " UTC")}. `,
    "This file is complete: it loads nothing and sends nothing.");
}

const swatch = (r) => h("i", { class: "swatch", style: { background: runColour(r, colours()) } });

const runNamed = (name) => runs.findIndex((of) => of.name === name);

function drawRivals() {
  if (runs.length < 2) return;
  $("rivals-section").hidden = false;
  const found = doc.rivals;
  if (!found.table) {
    replace($("rivals"), note("Hypervolumes of these runs cannot be compared: they share no objective, or its values ",
      "are too large."));
    return;
  }
  const reference = found.objectives.map((name) => `${labelOf(name)} ${metricText(name, found.reference[name])}`);
  replace($("rivals"), h("div", { class: "scroll" }, volumeTable(found)),
    note(`Under one reference: ${reference.join(", ")}.`), budgetTable(found.budget),
    h("h3", null, "Who dominates whom"), found.pairs.map((pair) => pairDetails(pair, found.table)));
}

function volumeTable(found) {
  const best = (line, name) => (Object.hasOwn(line.best, name) ? metricText(name, line.best[name]) : "–");
  const heads = ["Trials", "Front", ...found.objectives.map((name) => `Best ${labelOf(name)}`), "Hypervolume"];
  return h("table", { class: "figures", id: "hypervolumes" },
    h("thead", null, h("tr", null, wordsHead("Run"), wordsHead("Searcher"), wordsHead("Seed"),
      heads.map((text) => th(text)))),
    h("tbody", null, found.table.map((line) => {
      const r = runNamed(line.run);
      return h("tr", null, words(swatch(r), line.run), words(runs[r].searcher), words(runs[r].seed),
        td(runs[r].numbers.length), td(line.size), found.objectives.map((name) => td(best(line, name))),
        td(line.hypervolume === null ? "–" : line.hypervolume.toFixed(4)));
    })));
}

function budgetTable({ metric, cost, rows }) {
  if (!rows.length) return null;
  return h("div", null, h("h3", null, `Best ${labelOf(metric)} within a budget of ${labelOf(cost)}`),
    h("table", { class: "figures narrow" },
      h("thead", null, h("tr", null, wordsHead("Budget"), runs.map((of) => th(of.name)))),
      h("tbody", null, rows.map(([share, ...cells]) =>
        h("tr", null, words(share), cells.map((cell) => td(cell === "-" ? "–" : cell)))))));
}

function pairDetails({ a, b, dominates }, table) {
  const [p, q] = [runNamed(a), runNamed(b)];
  const beaten = new Set(dominates.flatMap(([, numbers]) => numbers)).size;
  const points = plural(table.find((line) => line.run === b).size, "point");
  return h("details", null,
    h("summary", null, swatch(p), h("b", null, a), ` dominates ${beaten} of the ${points} of `, swatch(q), h("b", null, b)),
    dominates.length ? h("table", { class: "figures" }, h("tbody", null, dominates.map(([ours, theirs]) =>
      h("tr", null, td(openButton(p, ours)), words("dominates ", trialButtons(q, theirs))))))
      : note("None of its points dominates one of the other's."));
}
