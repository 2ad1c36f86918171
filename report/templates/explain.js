// The page of one trial: its scores, what each analysis found in a sentence, then the pictures.

let doc;
const drawn = []; // {element, figure}

function drawHead() {
  const text = `${doc.task || "space without a model"}, trial ${doc.trial}`;
  $("title").textContent = text;
  document.title = `${text} explained · netcarve`;
  $("facts").textContent = [doc.run, doc.searcher, `seed ${doc.seed}`].filter(Boolean).join(" · ");
  replace($("scores"), doc.scores.length ? h("table", { class: "figures scores" },
    h("thead", null, h("tr", null, wordsHead("Metric"), th("This"), th("Unchanged"), th("Ratio"))),
    h("tbody", null, doc.scores.map((row) => h("tr", null, row.map((cell, i) => (i ? td(cell) : words(cell)))))),
  ) : note("The trial has no scores."));
  replace($("summary"), h("dl", null, doc.sections.flatMap((section) => [
    h("dt", null, section.skipped ? section.title : h("a", { href: `#${section.name}` }, section.title)),
    h("dd", { class: section.skipped ? "left" : null }, section.skipped ? `Left out: ${section.skipped}.` : `${capital(section.summary)}.`)])));
  replace($("footer"), `Made by netcarve on ${doc.made.replace("T", " ").replace("+00:00", " UTC")}. `,
    "This file is complete: it loads nothing and sends nothing.");
}

function drawSection(section) {
  if (section.skipped) return null;
  const heading = `${section.name}-heading`;
  const pictures = section.figures.map((figure) => {
    const element = h("div", { class: CHARTS.includes(figure.kind) ? "chart" : null });
    drawn.push({ element, figure: { kind: figure.kind, ...figure.content } });
    const broad = figure.kind === "images" || section.figures.length === 1;
    return h("figure", { class: broad ? "broad" : null, "data-kind": figure.kind }, h("figcaption", null, figure.title),
      h("p", { class: "read" }, figure.read), element);
  });
  const narrow = section.figures.filter((figure) => figure.kind !== "images").length;
  return h("section", { class: "explained", id: section.name, "aria-labelledby": heading },
    h("div", { class: "heading" }, h("h2", { id: heading }, section.title)),
    h("div", { class: narrow === 3 ? "pictures three" : "pictures" }, pictures), note(`${capital(section.basis)}. Took ${plain(section.seconds, 2)} s.`));
}

function drawFigures(charts) {
  const palette = colours();
  for (const { element, figure } of drawn) {
    if (CHARTS.includes(figure.kind) !== charts) continue;
    DRAW[figure.kind](element, figure, palette, element.clientWidth);
    const key = charts && figure.series && keyOf(figure.series, palette);
    if (key) {
      const old = element.parentElement.querySelector(".legend");
      if (old) old.replaceWith(key); else element.before(key);
    }
  }
}

async function start() {
  if (!("DecompressionStream" in window)) throw new Error("it needs a browser of 2023 or later");
  doc = JSON.parse(await unpack("data"));
  drawHead();
  replace($("sections"), doc.sections.map(drawSection));
  drawFigures(false);
  await painted();
  const code = await unpack("plotly");
  document.head.append(h("script", null, code));
  if (!window.Plotly) throw new Error("its charts are not allowed to run here");
  drawFigures(true);
  media("(prefers-color-scheme: dark)").addEventListener("change", () => { drawFigures(false); drawFigures(true); });
  await painted();
  document.documentElement.dataset.ready = "yes";
}

start().catch((error) => {
  problem(`This page cannot be drawn: ${error.message}.`);
  throw error;
});
