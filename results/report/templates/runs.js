// What concerns whole runs: convergence, failures, how they were made, and runs against each other.

function drawConvergence() {
  if (!window.Plotly) return;
  const palette = colours();
  for (const [id, key, title] of [["by-trials", "trials", "Evaluations"], ["by-seconds", "seconds", "Seconds"]]) {
    const traces = runs.map((of, r) => ({
      type: "scatter", mode: of.convergence.volume.length > 1 ? "lines" : "markers", x: of.convergence[key], y: of.convergence.volume,
      line: { shape: "hv", width: 2, color: runColour(r, palette) }, marker: { color: runColour(r, palette), size: 7 },
      name: escaped(tail(of.name, 24)), hovertemplate: `%{y:.4f} after %{x:.4~g}${key === "seconds" ? " s" : ""}<extra></extra>`,
    }));
    const axis = { gridcolor: palette.faint, linecolor: palette.grey, showline: true, zeroline: false, ticks: "",
      tickfont: { size: 11, color: palette.muted }, automargin: true, nticks: 6 };
    window.Plotly.react(id, traces, plotLayout(palette, {
      xaxis: { ...axis, rangemode: "tozero", title: { text: title, standoff: 10, font: { size: 12, color: palette.muted } } },
      yaxis: { ...axis, tickformat: ".4~g" }, hovermode: "closest", dragmode: false, margin: { l: 48, r: 12, t: 8, b: 40 },
      hoverlabel: { bgcolor: palette.paper, bordercolor: palette.grey, font: { color: palette.ink, size: 12 } },
    }), CONFIG);
  }
}

function openButton(r, wanted) {
  const row = rowOf(r, wanted);
  return h("button", { type: "button", class: "link", onclick: () => { choose(row); $("trial-section").scrollIntoView({ block: "nearest" }); } }, wanted);
}

const MANY = 40; // trials named in one line
function trialButtons(r, numbers) {
  const first = numbers.slice(0, MANY).flatMap((wanted, i) => [i ? ", " : "", openButton(r, wanted)]);
  return numbers.length > MANY ? [...first, ` and ${numbers.length - MANY} more`] : first;
}

function drawFailures() {
  const some = runs.some((of) => of.failures.length);
  $("failures-section").hidden = !some;
  if (!some) return;
  replace($("failures"), h("table", { class: "figures" },
    h("thead", null, h("tr", null, h("th", { scope: "col" }, "Trials"), runs.length > 1 ? h("th", { class: "words", scope: "col" }, "Run") : null,
      h("th", { class: "words", scope: "col" }, "Reason"), h("th", { class: "words", scope: "col" }, "Which"))),
    h("tbody", null, runs.flatMap((of, r) => of.failures.map(([reason, numbers]) => h("tr", null,
      h("td", null, numbers.length), runs.length > 1 ? h("td", { class: "words" }, of.name) : null,
      h("td", { class: "words reason" }, reason), h("td", { class: "words" }, trialButtons(r, numbers))))))));
}

function drawAbout() {
  replace($("about"), runs.map((of, r) => h("div", null,
    runs.length > 1 ? h("h3", null, swatch(r), of.name) : null,
    h("dl", null, of.about.flatMap(([what, text]) => [h("dt", null, what), h("dd", null, text)])))));
  replace($("footer"), `Made by netcarve on ${doc.made.replace("T", " ").replace("+00:00", " UTC")}. `,
    "This file is complete: it loads nothing and sends nothing.");
}

const swatch = (r) => h("i", { class: "swatch", style: { background: runColour(r, colours()) } });

function drawRivals() {
  if (runs.length < 2) return;
  $("rivals-section").hidden = false;
  const found = doc.rivals;
  if (!found || !found.table) {
    replace($("rivals"), h("p", { class: "note" }, "Hypervolumes of these runs cannot be compared: they share no objective, or its values are too large."));
    return;
  }
  const place = (name) => runs.findIndex((of) => of.name === name);
  const words = (text) => h("td", { class: "words" }, text);
  const reference = found.objectives.map((name) => `${metricOf.get(name).label} ${metricText(name, found.reference[name])}`).join(", ");
  const table = h("table", { class: "figures", id: "hypervolumes" },
    h("thead", null, h("tr", null, ["Run", "Searcher", "Seed"].map((t) => h("th", { class: "words", scope: "col" }, t)),
      ["Trials", "Front", ...found.objectives.map((name) => `Best ${metricOf.get(name).label}`), "Hypervolume"].map((t) => h("th", { scope: "col" }, t)))),
    h("tbody", null, found.table.map((line) => {
      const r = place(line.run);
      return h("tr", null, h("td", { class: "words" }, swatch(r), line.run), words(runs[r].searcher), words(runs[r].seed),
        h("td", null, runs[r].numbers.length), h("td", null, line.size),
        found.objectives.map((name) => h("td", null, (Object.hasOwn(line.best, name) && metricText(name, line.best[name])) || "–")),
        h("td", null, line.hypervolume === null ? "–" : line.hypervolume.toFixed(4)));
    })));
  const budget = found.budget.rows.length ? [h("h3", null, `Best ${metricOf.get(found.budget.metric).label} within a budget of ${metricOf.get(found.budget.cost).label}`),
    h("table", { class: "figures" }, h("thead", null, h("tr", null, h("th", { class: "words", scope: "col" }, "Budget"),
      runs.map((of) => h("th", { scope: "col" }, of.name)))), h("tbody", null, found.budget.rows.map(([share, ...cells]) =>
      h("tr", null, words(share), cells.map((cell) => h("td", null, cell === "-" ? "–" : cell))))))] : [];
  const pairs = found.pairs.map(({ a, b, dominates }) => {
    const [p, q] = [place(a), place(b)];
    const beaten = new Set(dominates.flatMap(([, numbers]) => numbers)).size;
    const size = found.table.find((line) => line.run === b).size;
    return h("details", { "data-pair": `${a} ${b}` },
      h("summary", null, swatch(p), h("b", null, a), ` dominates ${beaten} of the ${plural(size, "point")} of `, swatch(q), h("b", null, b)),
      dominates.length ? h("table", { class: "figures" }, h("tbody", null, dominates.map(([ours, theirs]) =>
        h("tr", null, h("td", null, openButton(p, ours)), h("td", { class: "words" }, "dominates ", trialButtons(q, theirs))))))
        : h("p", { class: "note" }, "No point of one front is dominated by the other."));
  });
  replace($("rivals"), h("div", { class: "scroll" }, table), h("p", { class: "note" }, `Under one reference: ${reference}.`),
    budget, h("h3", null, "Who dominates whom"), pairs);
}
