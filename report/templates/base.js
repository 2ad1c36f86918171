"use strict";
// What all pages share: elements without HTML, numbers as text, colours, the frame of a chart.

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

const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;
const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

// The end of a name tells layers apart, its beginning seldom does.
function tail(text, length) {
  const signs = Array.from(text);
  return signs.length <= length ? text : `…${signs.slice(1 - length).join("")}`;
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

// A colour between two of the style sheet's, written #rrggbb, as plotly mixes them too.
function mixed(low, high, share) {
  const part = (text, i) => parseInt(text.slice(1 + 2 * i, 3 + 2 * i), 16);
  return `rgb(${[0, 1, 2].map((i) => Math.round(part(low, i) + share * (part(high, i) - part(low, i)))).join(",")})`;
}

// Charts.

const escaped = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const CONFIG = { displaylogo: false, responsive: true, displayModeBar: false, doubleClick: false };

function plotLayout(palette, more) {
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false,
    font: { family: palette.font, color: palette.ink, size: 12 }, margin: { l: 56, r: 12, t: 12, b: 48 },
    ...more,
  };
}

function problem(text) {
  $("problem").textContent = text;
  $("problem").hidden = false;
}

const painted = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
