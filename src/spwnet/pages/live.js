"use strict";

const SURE_SECONDS = 6;
const RETRY_SECONDS = 3;
const MARGIN = { left: 52, right: 10, top: 8, bottom: 38 };
const SMALL = 240;

const name = document.body.dataset.name;
const stop = document.getElementById("stop");
let known = null;
let shownVersion = 0;
let spoken = "";
let sureUntil = 0;

async function ask(path, body) {
  const post = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const answer = await fetch(path, body ? post : {});
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer.json();
}

function make(tag, attributes = {}, ...content) {
  const space = ["svg", "line", "polyline", "circle", "text"].includes(tag) ? "http://www.w3.org/2000/svg" : "http://www.w3.org/1999/xhtml";
  const element = document.createElementNS(space, tag);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...content);
  return element;
}

function put(id, text) {
  const element = document.getElementById(id);
  if (element.textContent !== text) element.textContent = text;
}

function say(text) {
  if (text !== spoken) put("spoken", (spoken = text));
}

function duration(seconds) {
  if (seconds < 1) return "less than a second";
  if (seconds < 60) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

function number(value) {
  return Math.abs(value) >= 1000 || (value !== 0 && Math.abs(value) < 0.001) ? value.toExponential(2) : value.toPrecision(3);
}

const TEXTS = {
  preparing: ["Preparing", "The images are divided and described before the first step."],
  training: ["Training", ""],
  fitting: ["Finishing", "All steps are done; the classes are fitted and everything is saved."],
  keeping: ["Stopping here", "Training ends after this step; the classes are fitted and the run is saved as finished."],
  finished: ["Finished", "This page does not change any more; it may be closed."],
  stopped: ["Stopped", ""],
  failed: ["Failed", ""],
  closed: ["Ended", "Nothing more comes; the program that was training says how it ended."],
  lost: ["No connection", "No answer from the program that trains. If it still runs, training goes on; this page looks for it every few seconds."],
};

function stateOf(state) {
  if (state.ending) return state.ending;
  if (state.keeping) return "keeping";
  if (state.total === 0) return "preparing";
  return state.done < state.total ? "training" : "fitting";
}

function showState(state, kind) {
  document.body.dataset.state = kind;
  const share = state.total ? state.done / state.total : kind === "finished" ? 1 : 0;
  const percent = Math.floor(100 * share);
  const early = kind === "finished" && state.keeping && state.done < state.total;
  const figures = [];
  if (state.total) figures.push(early ? `stopped at step ${state.done} of ${state.total} and kept` : `step ${state.done} of ${state.total}`);
  if (state.total && !early) figures.push(`${percent} %`);
  if (kind === "training") figures.push(`about ${duration(state.seconds_left)} left`);
  const [title, text] = TEXTS[kind];
  put("state", title);
  put("figures", figures.join(" · "));
  put("message", (kind !== "lost" && state.message) || text);
  const bar = document.getElementById("bar");
  bar.setAttribute("aria-valuenow", percent);
  bar.setAttribute("aria-valuetext", figures.join(", ") || title);
  bar.firstElementChild.style.width = `${100 * share}%`;
  document.title = `${kind === "training" ? `${percent} %` : title} · ${name} · SP-WNet`;
  // Every ten percent, and when something else begins.
  say(kind === "training" ? `Training, ${Math.floor(percent / 10) * 10} %` : `${title}. ${(kind !== "lost" && state.message) || text}`);
  showButton(kind);
}

function showButton(kind) {
  const possible = kind === "training";
  if (!possible) sureUntil = 0;
  const sure = sureUntil > Date.now();
  stop.disabled = !possible;
  stop.classList.toggle("sure", sure);
  const text = sure ? "Press again to stop and keep" : kind === "keeping" ? "Stopping …" : "Stop here and keep";
  if (stop.textContent !== text) stop.textContent = text;
}

function unsure() {
  sureUntil = 0;
  if (known) showButton(document.body.dataset.state);
}

stop.addEventListener("click", async () => {
  if (sureUntil < Date.now()) {
    sureUntil = Date.now() + 1000 * SURE_SECONDS;
    showButton("training");
    say("Press again to stop and keep.");
    setTimeout(() => sureUntil && sureUntil <= Date.now() && unsure(), 1000 * SURE_SECONDS + 50);
    return;
  }
  sureUntil = 0;
  try {
    await show(await ask("stop", {}));
  } catch {
    showState(known, "lost");
  }
});
stop.addEventListener("blur", unsure);
stop.addEventListener("keydown", (event) => event.key === "Escape" && unsure());

function showChart(chart) {
  const svg = document.getElementById("chart");
  const { width, height } = svg.getBoundingClientRect();
  const inner = { width: width - MARGIN.left - MARGIN.right, height: height - MARGIN.top - MARGIN.bottom };
  const x = (share) => MARGIN.left + share * inner.width;
  const y = (share) => MARGIN.top + (1 - share) * inner.height;
  const parts = [];
  for (const [place, text] of chart.y) {
    parts.push(make("line", { class: "grid", x1: x(0), x2: x(1), y1: y(place), y2: y(place) }));
    parts.push(make("text", { x: x(0) - 6, y: y(place) + 4, "text-anchor": "end" }, text));
  }
  for (const [place, text] of chart.x) parts.push(make("text", { x: x(place), y: y(0) + 16, "text-anchor": "middle" }, text));
  if (chart.curves.length) {
    parts.push(make("text", { x: x(0.5), y: height - 4, "text-anchor": "middle" }, "step"));
    const middle = y(0.5);
    parts.push(make("text", { x: 11, y: middle, "text-anchor": "middle", transform: `rotate(-90 11 ${middle})` }, "loss"));
  }
  for (const curve of [...chart.curves].reverse()) {
    const points = curve.points.map(([across, up]) => `${x(across).toFixed(1)},${y(up).toFixed(1)}`).join(" ");
    parts.push(make("polyline", { points, stroke: curve.colour, "stroke-dasharray": curve.dash }));
    const [[across, up]] = curve.points;
    if (curve.points.length === 1) parts.push(make("circle", { cx: x(across), cy: y(up), r: 3, fill: curve.colour }));
  }
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.replaceChildren(...parts);
  const latest = chart.curves.map((curve) => `${curve.name} ${number(curve.last)}`).join(", ");
  svg.setAttribute("aria-label", latest ? `Losses over the steps, at last: ${latest}` : "Losses: none yet");
  if (latest) put("losses-note", `What training makes smaller${chart.log ? ", on a logarithmic scale" : ""}.`);
  const lines = chart.curves.map((curve) => {
    const line = make("line", { x1: 0, x2: 34, y1: 5, y2: 5, stroke: curve.colour, "stroke-width": 2.5, "stroke-dasharray": curve.dash });
    return make("li", {}, make("svg", { "aria-hidden": "true" }, line), make("span", {}, curve.name), number(curve.last));
  });
  document.getElementById("legend").replaceChildren(...lines);
}

const WHAT = { input: "Input", reconstruction: "Reconstruction", classes: "Classes" };

function showPictures(found) {
  const after = found.step ? ` after step ${found.step}` : "";
  const rows = found.rows.map((row) => {
    const figures = row.pictures.map((picture) => {
      const alt = `${WHAT[picture.kind]} of ${row.name}${picture.kind === "input" ? "" : after}`;
      const image = make("img", { src: picture.source, width: picture.width, height: picture.height, alt, decoding: "sync" });
      if (Math.max(picture.width, picture.height) < SMALL) image.classList.add("small");
      return make("figure", {}, image, make("figcaption", {}, WHAT[picture.kind]));
    });
    return make("article", { class: "row" }, make("h3", {}, row.name), make("div", {}, ...figures));
  });
  document.getElementById("rows").replaceChildren(...rows);
  const drawn = found.rows.some((row) => row.pictures.some((picture) => picture.kind === "classes"));
  const own = found.provisional ? " These classes are the network's own; those that stay are fitted at the end." : "";
  if (found.rows.length) put("pictures-note", drawn ? `Seen${after || " without training"}.${own}` : "Classes come with the first look after training began.");
  const bars = found.classes.map(({ id, colour, share }) => {
    const bar = make("div");
    bar.style.width = `${(100 * share) / found.classes[0].share}%`;
    bar.style.background = colour;
    const text = make("span", { class: "share" }, `${(100 * share).toFixed(1)} %`);
    return make("li", {}, make("span", {}, `Class ${id}`), make("div", { class: "track" }, bar), text);
  });
  document.getElementById("classes").replaceChildren(...bars);
  if (bars.length) put("classes-note", `Share of each class in the pictures${after}.`);
}

async function show(state) {
  known = state;
  showState(state, stateOf(state));
  showChart(state.chart);
  if (state.pictures > shownVersion) {
    const found = await ask("pictures");
    showPictures(found);
    shownVersion = found.version;
  }
}

async function watch() {
  for (let path = "state"; ; ) {
    try {
      const state = await ask(path);
      await show(state);
      path = "news";
      if (state.ending) {
        await ask("seen", {});
        return;
      }
    } catch {
      if (known?.ending) return;
      if (known) showState(known, "lost");
      path = "state";
      await new Promise((done) => setTimeout(done, 1000 * RETRY_SECONDS));
    }
  }
}

new ResizeObserver(() => known && showChart(known.chart)).observe(document.getElementById("chart"));
watch();
