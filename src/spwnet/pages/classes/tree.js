// The tree of classes.

const tree = { leaves: [], lines: [], cut: null };

function makeTree() {
  const note = $("tree-note");
  if (!data.parents || data.finest === 1) {
    note.textContent = "The classes of this run have no tree: they are merged one by one, and split into the finest.";
    return;
  }
  const n = Math.min(data.finest, MOST_LEAVES);
  const few = n < data.finest ? ` Shown down to ${n} of ${data.finest} classes.` : "";
  note.textContent = `The more to the right two classes part, the more alike they are. The line is the number of classes; click a branch to select what is on it.${few}`;
  const order = [0];
  for (let k = 1; k < n; k++) order.splice(order.indexOf(data.parents[k]) + 1, 0, k);
  const height = LEAF * n;
  const nodes = new Map(order.map((k, index) => [k, { x: n, y: LEAF * (index + 0.5), leaves: [k] }]));
  const svg = make("svg", {
    viewBox: `0.5 0 ${n - 0.5} ${height}`,
    height,
    preserveAspectRatio: "none",
    "aria-hidden": "true",
    focusable: "false",
  });
  for (let k = n - 1; k > 0; k--) {
    const [one, other] = [nodes.get(data.parents[k]), nodes.get(k)];
    const x = k + 0.5;
    for (const [node, d] of [
      [one, `M${one.x} ${one.y}H${x}`],
      [other, `M${other.x} ${other.y}H${x}`],
      [{ leaves: [...one.leaves, ...other.leaves] }, `M${x} ${one.y}V${other.y}`],
    ]) {
      const line = make("path", { d });
      const hit = make("path", { d, class: "hit" });
      hit.addEventListener("click", (event) => toggleBranch(node.leaves, event.shiftKey));
      svg.append(make("path", { d, class: "base" }), line, hit);
      tree.lines.push({ line, leaves: node.leaves });
    }
    nodes.set(data.parents[k], { x, y: (one.y + other.y) / 2, leaves: [...one.leaves, ...other.leaves] });
  }
  tree.cut = make("line", { class: "cut", y1: 0, y2: height });
  svg.append(tree.cut);
  const list = make("ul", { "aria-label": "Finest classes and the class of each" });
  for (const k of order) {
    const swatch = make("span", { class: "swatch" });
    const text = make("span");
    const button = make("button", { type: "button" }, swatch, make("span", { class: "id" }, String(k)), text);
    button.addEventListener("click", (event) => toggle(classes[shown.owners[k]].id, event.shiftKey || event.ctrlKey));
    list.append(make("li", {}, button));
    tree.leaves.push({ k, button, swatch, text });
  }
  $("tree").append(svg, list);
}

function toggleBranch(leaves, adds) {
  if (pointing) return;
  const ids = new Set(leaves.map((k) => classes[shown.owners[k]].id));
  if (!adds && settled) selected.clear();
  const off = [...ids].every((id) => selected.has(id));
  for (const id of ids) off ? selected.delete(id) : selected.add(id);
  settled = false;
  say(`${plural(selected.size, "class", "classes")} selected.`);
  refresh();
}

function showTree() {
  if (!tree.cut) return;
  const cut = plain() ? classes.length : null;
  tree.cut.classList.toggle("off", cut === null);
  if (cut !== null) for (const key of ["x1", "x2"]) tree.cut.setAttribute(key, Math.min(cut, data.finest - 0.2));
  for (const { k, button, swatch, text } of tree.leaves) {
    const one = classes[shown.owners[k]];
    swatch.style.background = one.colour ?? data.palette[one.id % data.finest];
    put(text, one.name);
    button.setAttribute("aria-pressed", String(selected.has(one.id)));
  }
  for (const { line, leaves } of tree.lines) {
    const owner = shown.owners[leaves[0]];
    const whole = leaves.every((k) => shown.owners[k] === owner);
    line.style.stroke = whole ? (classes[owner].colour ?? "") : "";
    line.classList.toggle(
      "selected",
      leaves.every((k) => selected.has(classes[shown.owners[k]].id)),
    );
  }
}
