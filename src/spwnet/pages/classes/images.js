// Images: pictures, classes over them, marks, the pointer.

async function unpacked({ bytes, data: text }) {
  const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const buffer = await new Response(stream).arrayBuffer();
  return bytes === 1 ? new Uint8Array(buffer) : new Uint16Array(buffer);
}

async function openImage(entry, index) {
  const { name, width, height } = entry;
  const picture = make("img", { src: entry.picture, width, height, alt: `Training image ${name}`, draggable: "false" });
  const tint = make("canvas", { width, height, "aria-hidden": "true", class: "tint" });
  const marks = make("canvas", { width, height, "aria-hidden": "true" });
  const pins = make("div", { class: "pins", "aria-hidden": "true" });
  const cross = make("div", { class: "cross", hidden: true });
  const what = "arrow keys move a mark over it, Enter clicks there";
  const surface = make(
    "div",
    { class: "surface", tabindex: "0", role: "application", "aria-label": `Image ${name}: ${what}` },
    picture,
    tint,
    marks,
    pins,
    cross,
  );
  const enlarge = make(
    "button",
    { type: "button", class: "quiet", "aria-label": `Enlarge ${name}`, title: "Enlarge" },
    make("span", { "aria-hidden": "true" }, "⤢"),
  );
  const figure = make("figure", {}, make("figcaption", {}, make("span", {}, name), enlarge), surface);
  surface.style.setProperty("--aspect", width / height);
  const image = {
    index,
    name,
    width,
    height,
    picture,
    tint,
    marks,
    pins,
    cross,
    surface,
    figure,
    at: [height >> 1, width >> 1],
    seen: true,
    stale: true,
    cleaned: null,
  };
  image.finest = await unpacked(entry.labels);
  image.edges = edgesOf(image.finest, width, height);
  image.doubt = entry.uncertainty && (await unpacked(entry.uncertainty));
  await picture.decode();
  surface.addEventListener("pointermove", (event) => event.pointerType === "mouse" && hover(image, event));
  surface.addEventListener("pointerleave", () => ($("tip").hidden = true));
  surface.addEventListener("click", (event) =>
    pick(image, ...place(image, event), event.shiftKey || event.ctrlKey || event.metaKey),
  );
  surface.addEventListener("keydown", (event) => steer(image, event));
  surface.addEventListener("blur", () => (cross.hidden = true));
  enlarge.addEventListener("click", () => showOnly(index));
  return image;
}

function place({ surface, width, height }, event) {
  const box = surface.getBoundingClientRect();
  const inside = (share, size) => Math.min(size - 1, Math.max(0, Math.floor(share * size)));
  return [
    inside((event.clientY - box.top) / box.height, height),
    inside((event.clientX - box.left) / box.width, width),
  ];
}

function classAt(image, row, column) {
  const at = row * image.width + column;
  return image.cleaned ? find(image.cleaned[at]) : classes[shown.owners[image.finest[at]]];
}

function describe(image, row, column) {
  const one = classAt(image, row, column);
  const doubt = image.doubt ? `, uncertainty ${(image.doubt[row * image.width + column] / 255).toFixed(2)}` : "";
  return `${one.name} (${one.id}) · ${percent(measure(one).share)}${doubt}`;
}

function hover(image, event) {
  const tip = $("tip");
  put(tip, describe(image, ...place(image, event)));
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  tip.style.left = `${Math.min(event.clientX + 14, innerWidth - width - 8)}px`;
  tip.style.top = `${event.clientY + 18 + height > innerHeight ? event.clientY - height - 10 : event.clientY + 18}px`;
}

function pick(image, row, column, adds) {
  if (pointing) addPoint(image.index, row, column);
  else toggle(classAt(image, row, column).id, adds);
}

function steer(image, event) {
  const far = event.shiftKey ? 1 : Math.max(1, Math.round(image.width / 40));
  const moves = { ArrowUp: [-far, 0], ArrowDown: [far, 0], ArrowLeft: [0, -far], ArrowRight: [0, far] };
  const [row, column] = image.at;
  if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    pick(image, row, column, event.shiftKey);
  } else if (moves[event.key]) {
    event.preventDefault();
    const [down, right] = moves[event.key];
    image.at = [
      Math.min(image.height - 1, Math.max(0, row + down)),
      Math.min(image.width - 1, Math.max(0, column + right)),
    ];
    say(describe(image, ...image.at));
  } else return;
  image.cross.hidden = false;
  pin(image.cross, image, ...image.at);
}

function pin(element, image, row, column) {
  element.style.left = `${(100 * (column + 0.5)) / image.width}%`;
  element.style.top = `${(100 * (row + 0.5)) / image.height}%`;
}

function word(colour, alpha = 255) {
  const value = parseInt(colour.slice(1), 16);
  return ((alpha << 24) | ((value & 255) << 16) | (value & 0xff00) | (value >> 16)) >>> 0;
}

const cividis = Uint32Array.from({ length: 256 }, (_, k) => {
  const at = (k / 255) * (CIVIDIS.length - 1);
  const low = Math.min(CIVIDIS.length - 2, Math.floor(at));
  const channels = [1, 3, 5].map((from) => {
    const [one, other] = [low, low + 1].map((n) => parseInt(CIVIDIS[n].slice(from, from + 2), 16));
    return Math.round(one + (other - one) * (at - low));
  });
  return ((255 << 24) | (channels[2] << 16) | (channels[1] << 8) | channels[0]) >>> 0;
});

const shown = { owners: null, version: 0 };

function tables(image) {
  // Of the finest classes, or of the ids that cleaning gave: place in the list, colour, whether selected.
  const length = image.cleaned ? Math.max(...classes.map((one) => one.id)) + 1 : data.finest;
  const owner = image.cleaned ? new Int32Array(length) : shown.owners;
  if (image.cleaned) classes.forEach((one, index) => (owner[one.id] = index));
  const colours = classes.map((one) =>
    word(one.colour ?? data.palette[one.id % data.finest], one.background ? 0 : 255),
  );
  return {
    owner,
    colour: Uint32Array.from(owner, (k) => colours[k] ?? 0),
    chosen: Uint8Array.from(owner, (k) => (classes[k] && selected.has(classes[k].id) ? 1 : 0)),
  };
}

function draw(image) {
  image.stale = false;
  const labels = image.cleaned ?? image.finest;
  const { owner, colour, chosen } = tables(image);
  image.sheet ??= new ImageData(image.width, image.height);
  image.words ??= new Uint32Array(image.sheet.data.buffer);
  const out = image.words;
  const [from, table] = view === "uncertainty" ? [image.doubt, cividis] : [labels, colour];
  if (from) for (let k = 0; k < out.length; k++) out[k] = table[from[k]];
  else out.fill(0);
  image.tint.getContext("2d").putImageData(image.sheet, 0, 0);
  drawMarks(image, labels, owner, chosen, out);
}

// Pixels next to another label: all that a border can be drawn at.
function edgesOf(labels, width, height) {
  const edges = new Uint8Array(labels.length);
  for (let y = 0, p = 0; y < height; y++) {
    for (let x = 0; x < width; x++, p++) {
      if (x + 1 < width && labels[p] !== labels[p + 1]) edges[p] = edges[p + 1] = 1;
      if (y + 1 < height && labels[p] !== labels[p + width]) edges[p] = edges[p + width] = 1;
    }
  }
  return edges;
}

function drawMarks(image, labels, owner, chosen, out) {
  const { width, height } = image;
  const borders = $("borders").checked;
  const any = selected.size > 0;
  const context = image.marks.getContext("2d");
  if (!borders && !any) {
    context.clearRect(0, 0, width, height);
    return;
  }
  const WHITE = 0xffffffff;
  const BLACK = 0xff000000;
  const STRIPE = 0xb0ffffff;
  const period = Math.max(6, Math.round(width / 50));
  const thick = Math.max(1, Math.round(period / 5));
  const edges = image.cleaned ? edgesOf(labels, width, height) : image.edges;
  out.fill(0);
  for (let y = 0, p = 0; y < height; y++) {
    for (let x = 0, phase = y % period; x < width; x++, p++, phase = phase + 1 === period ? 0 : phase + 1) {
      const here = chosen[labels[p]];
      if (edges[p]) {
        const right = labels[x + 1 < width ? p + 1 : p];
        const below = labels[y + 1 < height ? p + width : p];
        const around =
          chosen[right] + chosen[below] + chosen[labels[x ? p - 1 : p]] + chosen[labels[y ? p - width : p]];
        if (here ? around < 4 : around > 0) {
          out[p] = here ? WHITE : BLACK;
          continue;
        }
        const own = owner[labels[p]];
        if (borders && (own !== owner[right] || own !== owner[below])) {
          out[p] = WHITE;
          continue;
        }
      }
      if (here && phase < thick) out[p] = STRIPE;
    }
  }
  context.putImageData(image.sheet, 0, 0);
}

function drawImages() {
  for (const image of images) {
    image.stale = true;
    if (image.seen) draw(image);
  }
}

function showView() {
  const opacity = { input: 0, overlay: $("opacity").value / 100, classes: 1, uncertainty: 1 }[view];
  for (const image of images) image.tint.style.opacity = opacity;
  $("scale").hidden = view !== "uncertainty";
  document.querySelector(`[name=view][value=${view}]`).checked = true;
}

function setView(next) {
  const drawn = (view === "uncertainty") !== (next === "uncertainty");
  view = next;
  showView();
  if (drawn) drawImages();
}

function showOnly(index) {
  const from = enlarged;
  enlarged = index;
  $("grid").classList.toggle("one", index !== null);
  $("paging").hidden = index === null;
  document.body.classList.toggle("large", index !== null);
  fit();
  images.forEach((image) => image.figure.classList.toggle("shown", image.index === index));
  if (index !== null && from === null) {
    $("images-title").scrollIntoView();
    $("all").focus({ preventScroll: true });
  }
  if (index === null && from !== null) images[from].figure.querySelector("button").focus();
}

// On a wide screen all images fit beside the table, as large as they can.
function fit() {
  const grid = $("grid");
  document.documentElement.style.setProperty("--bar", `${$("bar").offsetHeight}px`);
  const beside = matchMedia("(min-width: 1151px) and (min-height: 601px)").matches && enlarged === null;
  grid.style.gridTemplateColumns = "";
  if (!beside) return;
  const gap = 14;
  const caption = 32;
  const room = innerHeight - $("bar").offsetHeight - document.querySelector("header").offsetHeight - 130;
  const aspect = Math.min(...images.map((image) => image.width / image.height));
  const widths = images.map((_, k) => {
    const down = Math.ceil(images.length / (k + 1));
    return Math.min((grid.clientWidth - gap * k) / (k + 1), ((room - (down - 1) * gap) / down - caption) * aspect);
  });
  const most = Math.max(...widths);
  grid.style.gridTemplateColumns = `repeat(${widths.indexOf(most) + 1}, minmax(0, ${Math.max(most, LEAST)}px))`;
}
