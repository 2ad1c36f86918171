// What is left of each layer, as bars in network order. A bar's grey length is the original's share of the widest,
// so that the bars show the shape of the network.

// [{name, title, now, of, gone}]: of every layer where the run has kept them, else of every choice that cuts units.
function widthsOf(row) {
  const of = run(row), place = placeOf[row];
  const keptBy = new Map(of.choices.map((choice, c) => [choice.name, choice.kept && choice.kept[of.taken[c][place]]]));
  const takes = (name) => of.byName.has(name) && of.taken[of.byName.get(name)][place] > 0;
  if (of.layers.length) {
    return of.layers.map(({ name, width, fixed, units, drops }) => ({
      name, title: [name, ...units.map(([choice]) => choice)].join(" \u00b7 "), of: width,
      now: units.reduce((sum, [choice, each]) => sum + each * keptBy.get(choice), fixed), gone: drops.some(takes) }));
  }
  // A dropped block takes the units inside it along, whatever was chosen for them.
  const dropped = of.choices.flatMap(({ name }) => {
    const [kind, block] = namePair(name);
    return kind === "drop" && takes(name) ? [`${block}.`] : [];
  });
  return of.choices.flatMap((choice) => (choice.kept ? [{ name: namePair(choice.name)[1], title: choice.name,
    of: choice.kept[0], now: keptBy.get(choice.name),
    gone: dropped.some((block) => namePair(choice.name)[1].startsWith(block)) }] : []));
}

function trialWidths(row) {
  const layers = widthsOf(row);
  if (!layers.length) return null;
  const widest = Math.max(...layers.map((layer) => layer.of));
  const bar = (part, units) => h("span", { class: part, style: { width: `${(100 * units) / widest}%` } });
  const what = run(row).layers.length ? "Outputs of each layer" : "Units kept";
  return h("div", null, h("h3", null, `${what}, in network order`),
    h("div", { class: "widths", role: "table", "aria-label": "units kept" }, layers.map(({ name, title, now, of, gone }) =>
      h("div", { class: "width", role: "row", "data-choice": title, title },
        h("span", { class: "layer", role: "cell" }, tail(name, 26)),
        h("span", { class: "track", role: "presentation" }, bar("whole", of), gone ? null : bar("part", now)),
        h("span", { class: "units", role: "cell" }, gone ? "dropped" : [h("b", null, now), ` of ${of}`])))));
}
