// Names by points.

function startPoints() {
  if (pointing) return applyPoints();
  selected.clear();
  pointing = { before: classes, names: [], active: null, placed: [] };
  forgetCleaned();
  refresh();
  $("pointname").focus();
  say("Type a name, then click a few places of it in the images.");
}

function addName(name) {
  try {
    model.checkName(name);
  } catch (error) {
    say(error.message, true);
    return false;
  }
  if (!pointing.names.includes(name)) pointing.names.push(name);
  pointing.active = name;
  $("pointname").value = "";
  say(`Click where ${name} is.`);
  refresh();
  return true;
}

function addPoint(index, row, column) {
  if ($("pointname").value.trim() && !addName($("pointname").value.trim())) return;
  if (pointing.active === null) {
    $("pointname").focus();
    return say("Type a name first, then click where it is.", true);
  }
  pointing.placed.push({ name: pointing.active, index, row, column });
  const count = pointing.placed.filter((one) => one.name === pointing.active).length;
  const told = voteAgain(`${plural(count, "point")} of ${pointing.active}; click again where a class is wrong.`);
  const found = classAt(images[index], row, column).name;
  if (told && found !== pointing.active) {
    say(`It stays ${found} there, which has as many points in the same finest class; more points decide.`, true);
  }
}

function removePoint() {
  if (!pointing?.placed.length) return;
  pointing.placed.pop();
  voteAgain("The last point is gone.");
}

function voteAgain(text) {
  const names = pointing.names.filter((name) => pointing.placed.some((one) => one.name === name));
  const places = (name) =>
    pointing.placed
      .filter((one) => one.name === name)
      .map(({ index, row, column }) => images[index].finest[row * images[index].width + column]);
  let told = true;
  try {
    classes = names.length ? model.fromPoints(names.map((name) => [name, places(name)])) : pointing.before;
    say(text);
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    say(error.message, true);
    told = false;
  }
  refresh();
  return told;
}

function endPoints(next, text) {
  const { before } = pointing;
  pointing = null;
  settled = true;
  if (next !== before) {
    past.push(before);
    future.length = 0;
    lastKind = null;
  }
  show(next);
  say(text);
  $("points").focus();
}

function applyPoints() {
  const changed = classes !== pointing.before;
  endPoints(classes, changed ? `${plural(classes.length, "class", "classes")} by points.` : "No points, no change.");
}

function showPoints() {
  $("pointing").hidden = !pointing;
  $("points").setAttribute("aria-pressed", String(Boolean(pointing)));
  document.body.classList.toggle("pointing", Boolean(pointing));
  for (const image of images) image.pins.replaceChildren();
  if (!pointing) return;
  const colour = (name) => classes.find((one) => one.name === name)?.colour ?? "#808080";
  for (const { name, index, row, column } of pointing.placed) {
    const mark = make("span", { class: column > 0.7 * images[index].width ? "left" : "" }, name);
    mark.style.setProperty("--colour", colour(name));
    pin(mark, images[index], row, column);
    images[index].pins.append(mark);
  }
  const names = pointing.names.map((name) => {
    const radio = make("input", { type: "radio", name: "pointname" });
    radio.checked = name === pointing.active;
    radio.addEventListener("change", () => (pointing.active = name));
    const swatch = make("span", { class: "swatch" });
    swatch.style.background = colour(name);
    const count = pointing.placed.filter((one) => one.name === name).length;
    return make("label", { class: "check" }, radio, swatch, `${name} (${count})`);
  });
  const focused = [...$("pointnames").querySelectorAll("input")].indexOf(document.activeElement);
  $("pointnames").replaceChildren(...names);
  if (focused >= 0) $("pointnames").querySelectorAll("input")[focused]?.focus();
  $("unpoint").disabled = !pointing.placed.length;
  $("apply").disabled = classes === pointing.before;
}
