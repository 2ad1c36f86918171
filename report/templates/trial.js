// One subnetwork: what was cut where, its scores against the unchanged model, its log, how to export it.

function drawTrial() {
  const row = state.chosen;
  if (row === null) {
    replace($("trial"), note("Choose a trial in the picture or in the table."));
    return;
  }
  const about = rowNotes(row);
  const of = runs.length > 1 ? run(row).name : "";
  replace($("trial-heading"), label(row), " ", h("small", null, [of, about].filter(Boolean).join(" · ")));
  replace($("trial"), trialScores(row), trialStages(row), trialWidths(row), trialChoices(row), trialLog(row), trialExport(row));
  const along = frontOrder();
  const at = along.indexOf(row);
  $("previous").disabled = along.length < 2 || at === 0;
  $("next").disabled = along.length < 2 || at === along.length - 1;
}

// The front of the open trial's run, in the order of its first objective.
function frontOrder() {
  const of = runs[state.chosen === null ? 0 : runOf[state.chosen]];
  return of.front.map((place) => of.first + place);
}

function step(by) {
  const along = frontOrder(), at = along.indexOf(state.chosen);
  const next = at < 0 ? along[by > 0 ? 0 : along.length - 1] : along[at + by];
  if (next !== undefined) choose(next);
}

function trialScores(row) {
  const names = metrics.map((metric) => metric.name).filter((name) => score(row, name) !== null);
  if (!names.length) return null;
  const r = runOf[row], base = baseRow(r) !== null && baseRow(r) !== row;
  const goals = new Set(run(row).objectives);
  const line = (name) => {
    const was = baseScore(r, name);
    return h("tr", { class: goals.has(name) ? "goal" : null, "data-metric": name },
      h("td", { class: "words", title: name }, capital(labelOf(name))),
      td(metricText(name, score(row, name)), spreadText(row, name)),
      base ? [td(metricText(name, was)), td(ratioText(score(row, name), was))] : null);
  };
  const table = h("table", { class: "figures scores" },
    h("thead", null, h("tr", null, wordsHead("Metric"), th("This"), base ? [th("Unchanged"), th("Ratio")] : null)),
    h("tbody", null, names.map(line)));
  const alike = run(row).alike[String(number(row))];
  return alike ? h("div", null, table, note(`Not told apart, on these samples, from ${alike.join(", ")}.`)) : table;
}

function spreadText(row, name) {
  const spread = run(row).spread.get(name), place = placeOf[row];
  if (!spread || spread[0][place] === null) return null;
  const percent = metricOf.get(name).kind === "percent";
  const [low, high] = spread.map((values) => (percent ? fixed(100 * values[place], 1) : plain(values[place], 3)));
  const what = name.startsWith("confirmed ") ? "95 % interval" : "quartiles of the measurement";
  return h("small", { title: what }, `${low} to ${high}`);
}

// Where the network was cut, and what runs each stage.
function trialStages(row) {
  const found = run(row).stages;
  if (!found) return null;
  const way = found.ways[found.taken[placeOf[row]]], key = String(number(row));
  const times = found.ms[key], changes = found.changes[key];
  const measured = times && times.length === way.length;
  const percent = (share) => `${Math.round(100 * share)} %`;
  return h("div", null, h("h3", null, way.length === 1 ? "In one piece" : `In ${way.length} stages`),
    h("table", { class: "figures stages" },
      h("thead", null, h("tr", null, wordsHead("Stage"), wordsHead("Device"), measured ? th("Measured alone") : null)),
      h("tbody", null, way.map(([stage, device], k) => h("tr", null,
        h("td", { class: "words", title: stage }, tail(stage, 34)), h("td", { class: "words" }, device),
        measured ? td(`${plain(times[k], 3)} ms`) : null)))),
    changes ? note(`If one speed, bandwidth or latency is 10 to 50 % other, latency rises by ${percent(changes[0])} and `
      + `throughput falls by ${percent(changes[1])} at worst (modelled).`) : null);
}

// Everything else that was decided: dropped blocks, operators, bits; cuts and devices of a record that makes no sense.
function trialChoices(row) {
  const of = run(row), told = new Set(of.stages ? of.stages.choices : []);
  const others = of.choices.flatMap((choice, c) => (choice.kept || told.has(choice.name) ? [] : [[choice, of.taken[c][placeOf[row]]]]));
  if (!others.length) return null;
  const changed = others.filter(([, index]) => index > 0);
  const same = others.length - changed.length;
  return h("div", null, h("h3", null, "Other choices"),
    changed.length ? h("table", { class: "figures choices" }, h("tbody", null, changed.map(([choice, index]) =>
      h("tr", { "data-choice": choice.name }, h("td", { class: "words", title: choice.name }, tail(choice.name, 34)),
        h("td", null, optionText(choice, index)), h("td", { class: "was" }, `was ${optionText(choice, 0)}`))))) : null,
    same ? note(changed.length ? `${same} more` : `All ${same}`, " as in the unchanged model.") : null);
}

function trialLog(row) {
  const of = run(row), place = placeOf[row];
  const worker = of.worker_names[of.workers[place]];
  const error = of.errors[String(number(row))];
  return h("div", null, h("h3", null, "Log"),
    h("p", { class: "log" }, `${plain(of.seconds[place], 3)} s`, worker ? ` on ${worker}` : ""),
    error === undefined ? null : h("pre", { class: "error" }, of.error_texts[error]));
}

// What a POSIX shell reads as this one word.
const quoted = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replace(/'/g, "'\"'\"'")}'`);

// What to type, or to run in Python where the command line cannot find the task again; null where nothing can be done.
function commandsOf(row) {
  const of = run(row);
  if (of.task === null || failed(row)) return null;
  const at = of.path.startsWith("-") ? `./${of.path}` : of.path;
  if (of.found) return [`export ${quoted(at)} ${number(row)} --format pt2,onnx,state`, `explain ${quoted(at)} ${number(row)}`]
    .map((text) => `${doc.program} ${text}`);
  const loaded = `netcarve.load(${JSON.stringify(of.path)}, task=task)`;
  return [`${loaded}.export(${number(row)}, "export-${number(row)}")`, `${loaded}.explain(${number(row)})`];
}

function trialExport(row) {
  if (run(row).task === null) return note("The run has no model, so there is nothing to export.");
  const commands = commandsOf(row);
  if (commands === null) return null;
  const box = (id, text) => {
    const button = h("button", { type: "button", class: "copy", onclick: () => copy(text, button) }, "Copy");
    return h("div", { class: "command" }, h("code", { id }, text), button);
  };
  const where = run(row).found ? "" : ", in Python, with the task at hand";
  return h("div", null, h("h3", null, `Export${where}`), box("command", commands[0]),
    h("h3", null, `Explain${where}`), box("explain-command", commands[1]));
}

async function copy(text, button) {
  let done = false;
  try {
    await navigator.clipboard.writeText(text);
    done = true;
  } catch { // not allowed here: the way of older browsers
    const area = h("textarea", { readonly: true, style: { position: "fixed", opacity: "0" } });
    area.value = text;
    document.body.append(area);
    area.select();
    done = document.execCommand("copy");
    area.remove();
  }
  button.textContent = done ? "Copied" : "Select it and copy";
  setTimeout(() => { button.textContent = "Copy"; }, 1600);
}
