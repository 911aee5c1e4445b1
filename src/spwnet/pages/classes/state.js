// What is shown now, and what every other part needs.

document.documentElement.classList.add("js");

const data = JSON.parse(document.getElementById("data").textContent);
const model = makeModel({
  finest: data.finest,
  parents: data.parents,
  palette: data.palette,
  fingerprint: data.model,
});

const MOST_ROWS = 200;
const MOST_LEAVES = 128;
const LEAF = 24;
const SETTLE_MS = 250;
const THUMB = 44;
const LEAST = 150;
// Cividis, which the colour-blind see as others do.
const CIVIDIS = ["#00224e", "#35456c", "#666970", "#948e77", "#c8b866", "#fee838"];

const $ = (id) => document.getElementById(id);
const images = [];
const rows = new Map();
const selected = new Set();
const past = [];
const future = [];
let classes = data.classes;
let saved = classes;
let settled = false;
let lastKind = null;
let view = "overlay";
let enlarged = null;
let pointing = null;
let saving = false;
let again = false;
let asked = 0;
let timer = 0;

function make(tag, attributes = {}, ...content) {
  const drawn = { svg: 1, path: 1, line: 1, text: 1, title: 1 }[tag];
  const element = document.createElementNS(drawn ? "http://www.w3.org/2000/svg" : "http://www.w3.org/1999/xhtml", tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === true) element.setAttribute(key, "");
    else if (value !== false && value !== null) element.setAttribute(key, value);
  }
  element.append(...content);
  return element;
}

function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function say(text, wrong = false) {
  put($("said"), text);
  $("said").classList.toggle("wrong", wrong);
}

const percent = (share) => `${(100 * share).toFixed(share > 0 && share < 0.001 ? 2 : 1)} %`;
function number(value, digits = 4) {
  const size = Math.abs(value);
  if (size >= 1e6 || (size > 0 && size < 1e-3)) return value.toExponential(2);
  return size >= 10 ** digits ? value.toFixed(0) : String(Number(value.toPrecision(digits)));
}

const plural = (n, one, many = `${one}s`) => `${n} ${n === 1 ? one : many}`;
const find = (id) => classes.find((one) => one.id === id);
const cleans = (one) => Boolean(one.smooth || one.fill_holes || one.remove_objects || one.keep_largest);

const measures = data.measures;
const pixels = measures.reduce((sum, one) => sum + one.pixels, 0) || 1;

function measure(one) {
  const members = one.members.map((k) => measures[k]).filter((entry) => entry.pixels > 0);
  const total = members.reduce((sum, entry) => sum + entry.pixels, 0);
  if (!total) return { share: 0, means: null, uncertainty: null, place: null };
  const mean = (pick) => members.reduce((sum, entry) => sum + pick(entry) * entry.pixels, 0) / total;
  const known = members.every((entry) => entry.uncertainty !== null);
  const seen = members.filter((entry) => entry.place && entry.place[0] < images.length);
  const largest = seen.reduce((best, entry) => (entry.pixels > (best?.pixels ?? 0) ? entry : best), null);
  return {
    share: total / pixels,
    means: members[0].means.map((_, channel) => mean((entry) => entry.means[channel])),
    uncertainty: known ? mean((entry) => entry.uncertainty) : null,
    place: largest?.place ?? null,
  };
}

function explained(n) {
  const parts = data.heights.slice(1);
  const total = parts.reduce((sum, height) => sum + height, 0);
  return total ? parts.slice(0, n - 1).reduce((sum, height) => sum + height, 0) / total : 1;
}

const same = (one, other) => Object.keys(other).every((key) => String(one[key]) === String(other[key]));

// Whether the classes are as the tree divides them, with nothing named, merged or cleaned.
function plain() {
  if (data.parents === null) return false;
  const cut = model.ofTree(classes.length);
  return classes.every((one, k) => same(one, cut[k]));
}
