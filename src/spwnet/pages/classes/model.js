// Classes: the same as spwnet.naming, in plain values.

class Refusal extends Error {}

function makeModel({ finest, parents, palette, fingerprint }) {
  const PLAIN = {
    background: false,
    smooth: 0,
    fill_holes: 0,
    remove_objects: 0,
    remove_to: null,
    keep_largest: false,
  };
  const FLOATS = new Set(["smooth"]);

  function coarser(n) {
    const table = Int32Array.from({ length: finest }, (_, k) => k);
    for (let k = n; k < finest; k++) table[k] = table[parents[k]];
    return table;
  }

  function made(id, name, members, colour) {
    return { id, name, members, colour, ...PLAIN };
  }

  const isDefault = (one) => /^class \p{Nd}+(\.\p{Nd}+)?$/u.test(one.name);

  function ofTree(n) {
    const table = parents ? coarser(n) : Int32Array.from({ length: finest }, (_, k) => k);
    const groups = Array.from({ length: n }, () => []);
    table.forEach((k, member) => groups[k].push(member));
    return groups.map((members, k) => made(k, `class ${k}`, members, palette[k]));
  }

  function checkName(name) {
    const odd = [...name].some((letter) => letter !== " " && /[\p{C}\p{Z}]/u.test(letter));
    const length = [...name].length;
    if (length < 1 || length > 80 || odd || name.trim() !== name) {
      throw new Refusal("Expected a name of 1 to 80 printable characters without spaces around it.");
    }
  }

  function checked(classes, moved = null) {
    const found = classes.map((one) => {
      if (!moved || one.remove_to === null) return one;
      const to = moved.get(one.remove_to) ?? one.remove_to;
      return { ...one, remove_to: to === one.id ? null : to };
    });
    found.sort((one, other) => one.id - other.id);
    const names = new Set();
    for (const { name } of found) {
      if (names.has(name))
        throw new Refusal(`Another class is called “${name}” already; merge the two, or choose another name.`);
      names.add(name);
    }
    return found;
  }

  function merge(classes, ids) {
    const group = classes.filter((one) => ids.has(one.id));
    const called = group.find((one) => !isDefault(one)) ?? group[0];
    const members = group.flatMap((one) => one.members).sort((a, b) => a - b);
    const whole = { ...called, id: group[0].id, background: group[0].background, members };
    const moved = new Map(group.map((one) => [one.id, whole.id]));
    return checked([...classes.filter((one) => !moved.has(one.id)), whole], moved);
  }

  function parts(members) {
    if (!parents) return members.map((k) => [k]);
    for (let n = 2; n <= finest; n++) {
      const table = coarser(n);
      const groups = new Map();
      for (const k of members) groups.set(table[k], [...(groups.get(table[k]) ?? []), k]);
      if (groups.size > 1) return [...groups.values()].sort((one, other) => one[0] - other[0]);
    }
    return [members];
  }

  function split(classes, id) {
    const one = classes.find((other) => other.id === id);
    if (one.members.length === 1) {
      throw new Refusal(
        `“${one.name}” is one of the finest classes and cannot be split; train with a higher codebook.finest for more.`,
      );
    }
    const [first, ...others] = parts(one.members);
    const found = classes.filter((other) => other !== one);
    found.push({ ...one, members: first });
    for (const group of others) {
      const taken = new Set(found.map((other) => other.id));
      let k = group[0];
      if (taken.has(k)) for (k = 0; taken.has(k);) k++;
      const names = new Set(found.map((other) => other.name));
      let name = `class ${k}`;
      for (let n = 1; names.has(name); n++) name = `class ${k}.${n}`;
      found.push(made(k, name, group, palette[group[0]]));
    }
    return checked(found);
  }

  function change(classes, id, values) {
    if ("name" in values) checkName(values.name);
    return checked(classes.map((one) => (one.id === id ? { ...one, ...values } : one)));
  }

  function markBackground(classes, id) {
    const plain = classes.map((one) => {
      const name = one.background && one.name === "background" ? `class ${one.id}` : one.name;
      return { ...one, name, background: false };
    });
    if (id === null) return checked(plain);
    const swapped = new Map([
      [0, id],
      [id, 0],
    ]);
    const found = plain.map((one) => {
      const to = swapped.get(one.id) ?? one.id;
      const name = isDefault(one) && swapped.has(one.id) ? (one.id === id ? "background" : `class ${to}`) : one.name;
      return { ...one, id: to, name, background: one.id === id };
    });
    return checked(found, swapped);
  }

  function commonest(votes) {
    return votes.indexOf(Math.max(...votes));
  }

  // Names with their points as the finest classes that lie there.
  function fromPoints(points) {
    const votes = points.map(([, places]) => {
      const row = new Int32Array(finest);
      for (const k of places) row[k]++;
      return row;
    });
    const owner = Int32Array.from({ length: finest }, (_, k) => {
      const column = votes.map((row) => row[k]);
      return column.some((n) => n > 0) ? commonest(column) : -1;
    });
    const lost = points.find((_, row) => !owner.includes(row));
    if (lost) {
      throw new Refusal(
        `Nothing is left for “${lost[0]}”: where its points are, another name has more. Mark other places, or train with more classes (codebook.finest).`,
      );
    }
    const filled = inherited(owner, points.length);
    return points.map(([name], row) =>
      made(
        row,
        name,
        [...filled.keys()].filter((k) => filled[k] === row),
        palette[row],
      ),
    );
  }

  function inherited(owner, n_names) {
    const filled = owner.slice();
    const unknown = new Set([...owner.keys()].filter((k) => owner[k] < 0));
    for (let n = parents ? finest - 1 : 1; n > 0 && unknown.size; n--) {
      const table = parents ? coarser(n) : new Int32Array(finest);
      const votes = new Map();
      for (let k = 0; k < finest; k++) {
        if (owner[k] < 0) continue;
        if (!votes.has(table[k])) votes.set(table[k], new Array(n_names).fill(0));
        votes.get(table[k])[owner[k]]++;
      }
      for (const k of unknown) {
        if (!votes.has(table[k])) continue;
        filled[k] = commonest(votes.get(table[k]));
        unknown.delete(k);
      }
    }
    return filled;
  }

  // Class of each of the finest, as its place in the list.
  function owners(classes) {
    const table = new Int32Array(finest);
    classes.forEach((one, index) => {
      for (const k of one.members) table[k] = index;
    });
    return table;
  }

  function float(value) {
    if (Number.isInteger(value)) return `${value}.0`;
    if (Math.abs(value) >= 1e-4) return String(value);
    return value.toExponential().replace(/e-(\d)$/, "e-0$1");
  }

  function toToml(classes) {
    const lines = [
      "# Classes of an SP-WNet run: which of its finest classes belong together, and what they are called.",
      "version = 1",
      `finest = ${finest}`,
    ];
    if (fingerprint !== null) lines.push(`model = "${fingerprint}"`);
    for (const one of classes) {
      lines.push("", "[[classes]]");
      const { id, name, members, colour, ...rest } = one;
      lines.push(`id = ${id}`, `name = ${JSON.stringify(name)}`, `members = [${members.join(", ")}]`);
      if (colour !== null) lines.push(`colour = "${colour}"`);
      for (const [key, plain] of Object.entries(PLAIN)) {
        if (rest[key] !== plain) lines.push(`${key} = ${FLOATS.has(key) ? float(rest[key]) : rest[key]}`);
      }
    }
    return `${lines.join("\n")}\n`;
  }

  return { checkName, isDefault, ofTree, merge, split, change, markBackground, fromPoints, owners, toToml };
}
