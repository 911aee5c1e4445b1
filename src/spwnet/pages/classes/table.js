// The table of classes.

const CLEANING = [
  ["smooth", "Smooth borders by", "px", { min: 0, max: 100, step: 0.5 }],
  ["fill_holes", "Fill holes smaller than", data.solid ? "voxels" : "px", { min: 0, step: 1 }],
  ["remove_objects", "Remove pieces smaller than", data.solid ? "voxels" : "px", { min: 0, step: 1 }],
];

function makeRow(id) {
  const box = make("input", { type: "checkbox" });
  const colour = make("input", { type: "color" });
  const thumb = make("canvas", { width: THUMB, height: THUMB, role: "img" });
  const name = make("input", { type: "text", maxlength: 80, autocomplete: "off", spellcheck: "false" });
  const badges = make("span", { class: "badges" });
  const fill = make("div");
  const share = make("span", { class: "share" });
  const means = make("td", { class: "number wide" });
  const doubt = make("td", { class: "number wide" });
  const more = make("button", {
    type: "button",
    class: "quiet more",
    "aria-expanded": "false",
    "aria-controls": `more-${id}`,
  });
  const main = make(
    "tr",
    {},
    make("td", {}, box),
    make("td", { class: "id" }, String(id)),
    make("td", {}, colour),
    make("td", { class: "wide" }, thumb),
    make("td", { class: "name" }, name, badges),
    make("td", { class: "area" }, make("div", { class: "track" }, fill), share),
    means,
    doubt,
    make("td", {}, more),
  );
  const inner = make("td", { colspan: 9 });
  const detail = make("tr", { id: `more-${id}`, class: "detail", hidden: true }, inner);
  const row = {
    id,
    main,
    detail,
    box,
    colour,
    thumb,
    name,
    badges,
    fill,
    share,
    means,
    doubt,
    more,
    inner,
    fields: null,
    drawn: "",
  };
  box.addEventListener("change", () => toggle(id));
  colour.addEventListener("input", () => recolour([id], colour.value));
  colour.addEventListener("change", () => (lastKind = null));
  name.addEventListener("change", () => rename(id, name.value));
  name.addEventListener("keydown", (event) => event.key === "Enter" && name.blur());
  more.addEventListener("click", () => {
    detail.hidden = !detail.hidden;
    more.setAttribute("aria-expanded", String(!detail.hidden));
    refresh();
  });
  return row;
}

function makeFields(row) {
  const fields = {};
  const facts = make("p", { class: "note" });
  const group = make("fieldset", { class: "cleaning" }, make("legend", {}, "Cleaning"));
  const set = (values) => {
    const one = find(row.id);
    if (Object.entries(values).every(([key, value]) => one[key] === value)) return;
    if (edit(`clean ${row.id}`, (now) => model.change(now, row.id, values))) previewSoon(true);
  };
  for (const [key, text, unit, limits] of CLEANING) {
    const input = make("input", { type: "number", id: `${key}-${row.id}`, ...limits });
    input.addEventListener("change", () => {
      const value = key === "smooth" ? Number(input.value) : Math.round(Number(input.value));
      input.value = Math.min(limits.max ?? 1e12, Math.max(0, value || 0));
      set({ [key]: Number(input.value) });
    });
    fields[key] = input;
    group.append(make("label", { for: input.id }, text), make("span", {}, input, ` ${unit}`));
  }
  const to = make("select", { id: `remove_to-${row.id}` });
  to.addEventListener("change", () => set({ remove_to: to.value === "" ? null : Number(to.value) }));
  group.append(make("label", { for: to.id }, "Removed pieces become"), to);
  const largest = make("input", { type: "checkbox", id: `keep_largest-${row.id}` });
  largest.addEventListener("change", () => set({ keep_largest: largest.checked }));
  group.append(make("label", { for: largest.id }, "Keep only the largest piece"), make("span", {}, largest));
  row.inner.append(facts, group);
  return { ...fields, to, largest, facts };
}

function setValue(input, value) {
  if (input.value !== value && document.activeElement !== input) input.value = value;
}

function showDetail(row, one, found) {
  row.fields ??= makeFields(row);
  const { to, largest, facts, ...numbers } = row.fields;
  const channels = found.means
    ?.map((mean, k) => `${found.means.length > 1 ? `channel ${k + 1} ` : ""}${number(mean)}`)
    .join(", ");
  const doubt = found.uncertainty === null ? "" : ` Mean uncertainty ${found.uncertainty.toFixed(2)}.`;
  put(
    facts,
    `${found.means ? `Mean ${channels}.${doubt}` : "In no training image."} Made of ${one.members.length === 1 ? "finest class" : "finest classes"} ${one.members.join(", ")}.`,
  );
  for (const [key, input] of Object.entries(numbers)) setValue(input, String(one[key]));
  const options = classes.filter((other) => other !== one).map((other) => `${other.id}\t${other.name}`);
  if (to.dataset.options !== options.join("\n")) {
    to.dataset.options = options.join("\n");
    to.replaceChildren(
      make("option", { value: "" }, "the class each touches most"),
      ...classes
        .filter((other) => other !== one)
        .map((other) => make("option", { value: other.id }, `${other.name} (${other.id})`)),
    );
  }
  to.value = one.remove_to === null ? "" : String(one.remove_to);
  largest.checked = one.keep_largest;
}

function showThumb(row, place) {
  const key = String(place);
  if (row.drawn === key) return;
  row.drawn = key;
  const context = row.thumb.getContext("2d");
  context.clearRect(0, 0, THUMB, THUMB);
  row.thumb.hidden = place === null;
  if (place === null) return;
  const { picture, width, height } = images[place[0]];
  const side = Math.min(THUMB, width, height);
  const left = Math.min(width - side, Math.max(0, place[2] - side / 2));
  const top = Math.min(height - side, Math.max(0, place[1] - side / 2));
  const [sx, sy] = [picture.naturalWidth / width, picture.naturalHeight / height];
  context.drawImage(picture, left * sx, top * sy, side * sx, side * sy, 0, 0, THUMB, THUMB);
}

function showRow(one, most) {
  if (!rows.has(one.id)) rows.set(one.id, makeRow(one.id));
  const row = rows.get(one.id);
  const found = measure(one);
  row.box.checked = selected.has(one.id);
  row.main.classList.toggle("selected", row.box.checked);
  row.box.setAttribute("aria-label", `Select ${one.name}`);
  row.colour.setAttribute("aria-label", `Colour of ${one.name}`);
  row.thumb.setAttribute("aria-label", `Typical place of ${one.name}`);
  row.name.setAttribute("aria-label", `Name of class ${one.id}`);
  row.more.setAttribute("aria-label", `More of ${one.name}: values and cleaning`);
  setValue(row.colour, one.colour ?? data.palette[one.id % data.finest]);
  setValue(row.name, one.name);
  put(row.badges, [one.background ? "background" : "", cleans(one) ? "cleaned" : ""].filter(Boolean).join(", "));
  put(row.share, percent(found.share));
  row.fill.style.width = `${most ? (100 * found.share) / most : 0}%`;
  row.fill.style.background = row.colour.value;
  const means = found.means?.slice(0, 3).map((mean) => number(mean, 3)) ?? ["–"];
  put(row.means, means.join(" · ") + ((found.means?.length ?? 0) > 3 ? " …" : ""));
  put(row.doubt, found.uncertainty === null ? "–" : found.uncertainty.toFixed(2));
  showThumb(row, found.place);
  if (!row.detail.hidden) showDetail(row, one, found);
  return row;
}

function showTable() {
  const shares = new Map(classes.map((one) => [one.id, measure(one).share]));
  let listed = classes;
  if (classes.length > MOST_ROWS) {
    listed = [...classes].sort((one, other) => shares.get(other.id) - shares.get(one.id)).slice(0, MOST_ROWS);
  }
  put($("unlisted"), listed === classes ? "" : `The ${MOST_ROWS} largest of ${classes.length} classes.`);
  const most = Math.max(...shares.values());
  const elements = listed.flatMap((one) => {
    const { main, detail } = showRow(one, most);
    return [main, detail];
  });
  const body = $("table").tBodies[0];
  const same = body.children.length === elements.length && elements.every((element, k) => body.children[k] === element);
  if (!same) {
    const active = document.activeElement;
    body.replaceChildren(...elements);
    if (active !== document.activeElement && body.contains(active)) active.focus();
  }
}
