// Changes of the classes with undo and redo, and the selection.

// `after` gives the ids that are selected then.
function edit(kind, change, { joined = false, after = null } = {}) {
  if (pointing) applyPoints();
  let next;
  try {
    next = change(classes);
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    say(error.message, true);
    refresh();
    return false;
  }
  if (!joined || kind !== lastKind) past.push(classes);
  lastKind = kind;
  future.length = 0;
  show(next, after);
  return true;
}

function show(next, after = null) {
  classes = next;
  if (after) {
    selected.clear();
    for (const id of after()) selected.add(id);
    settled = true;
  }
  for (const id of [...selected]) if (!find(id)) selected.delete(id);
  forgetCleaned();
  refresh();
}

function step(from, to, word) {
  if (pointing) {
    if (word === "Undone") removePoint();
    return;
  }
  if (!from.length) return;
  to.push(classes);
  lastKind = null;
  settled = true;
  show(from.pop());
  say(`${word}: ${plural(classes.length, "class", "classes")} now.`);
}

function mergeSelected() {
  if (selected.size < 2)
    return say("Select two classes or more to merge: click them in the images, the table or the tree.", true);
  const count = selected.size;
  const ids = new Set(selected);
  if (!edit("merge", (now) => model.merge(now, ids), { after: () => [Math.min(...ids)] })) return;
  say(`${count} classes are one now; type its name.`);
  $("name").focus();
  $("name").select();
}

function splitSelected() {
  if (selected.size !== 1) return say("Select one class to split.", true);
  const [id] = selected;
  const before = new Set(classes.map((one) => one.id));
  const parts = () => classes.filter((one) => one.id === id || !before.has(one.id));
  if (!edit("split", (now) => model.split(now, id), { after: () => parts().map((one) => one.id) })) return;
  say(
    `Split into ${parts()
      .map((one) => `${one.name} (${one.id})`)
      .join(" and ")}.`,
  );
}

function markBackground() {
  if (selected.size !== 1) return say("Select one class to be the background.", true);
  const [id] = selected;
  const off = find(id).background;
  if (!edit("background", (now) => model.markBackground(now, off ? null : id), { after: () => [off ? id : 0] })) return;
  say(off ? "There is no background now." : `${find(0).name} is the background now: class 0, not drawn over pictures.`);
}

function rename(id, name) {
  const one = find(id);
  if (!one || one.name === name) return;
  if (edit("name", (now) => model.change(now, id, { name }))) say(`Class ${id} is called ${name} now.`);
  settled = true;
}

function recolour(ids, colour) {
  edit(`colour ${ids}`, (now) => ids.reduce((found, id) => model.change(found, id, { colour }), now), { joined: true });
  settled = true;
}

async function cutTo(n) {
  if (n === classes.length && plain()) return refresh();
  if (!plain()) {
    const given = (one) => !model.isDefault(one) && !(one.background && one.name === "background");
    const named = classes.filter(given).length;
    const lost = named
      ? `Names, merges and cleaning are lost, ${plural(named, "name")} among them`
      : "Merges and cleaning are lost";
    const answer = await ask(
      "Cut the tree anew?",
      `${plural(n, "class", "classes")} as the tree divides them. ${lost}; Undo brings them back.`,
      ["Cut anew", "Keep the classes"],
    );
    if (answer !== "Cut anew") return refresh();
  }
  edit("cut", () => model.ofTree(n), { joined: true });
  say(`${plural(n, "class", "classes")}, as the tree divides them.`);
}

function choose(ids) {
  selected.clear();
  for (const id of ids) selected.add(id);
  settled = true;
  refresh();
}

function toggle(id, adds = true) {
  if (!adds && settled) {
    const alone = selected.size === 1 && selected.has(id);
    selected.clear();
    if (!alone) selected.add(id);
  } else if (!selected.delete(id)) selected.add(id);
  settled = false;
  const one = find(id);
  say(
    selected.has(id)
      ? `Selected ${one.name} (${id}), ${percent(measure(one).share)} of the pixels; ${plural(selected.size, "class", "classes")} in all.`
      : `${one.name} (${id}) is not selected any more.`,
  );
  refresh();
}
