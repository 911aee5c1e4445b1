// Tools, and all that is shown anew after a change.

function showTools() {
  const chosen = classes.filter((one) => selected.has(one.id));
  const texts = ["Nothing selected", chosen.length === 1 ? `Class ${chosen[0].id}` : `${chosen.length} classes`];
  put($("chosen"), pointing ? "Points" : texts[Math.min(1, chosen.length)]);
  const one = chosen.length === 1 ? chosen[0] : null;
  $("name").disabled = !one || Boolean(pointing);
  if (document.activeElement !== $("name") || $("name").dataset.id !== String(one?.id))
    $("name").value = one?.name ?? "";
  $("name").dataset.id = String(one?.id);
  $("colour").disabled = !chosen.length || Boolean(pointing);
  setValue($("colour"), chosen[0]?.colour ?? "#808080");
  $("merge").disabled = chosen.length < 2 || Boolean(pointing);
  $("split").disabled = !one || one.members.length === 1 || Boolean(pointing);
  $("background").disabled = !one || Boolean(pointing);
  put($("background"), one?.background ? "No background" : "Background");
  $("undo").disabled = pointing ? !pointing.placed.length : !past.length;
  $("redo").disabled = Boolean(pointing) || !future.length;
  $("slider").value = $("count").value = classes.length;
  const unsaved = classes !== saved;
  put($("save"), data.served ? (unsaved ? "Save" : "Saved") : "Download classes.toml");
  $("save").classList.toggle("done", data.served && !unsaved);
  const share =
    data.parents && plain()
      ? ` They explain ${percent(explained(classes.length))} of what all ${data.finest} finest classes tell apart.`
      : "";
  put(
    $("explained"),
    `${plural(classes.length, "class", "classes")}${data.parents && !plain() ? ", edited" : ""}.${share}`,
  );
}

function refresh() {
  shown.owners = model.owners(classes);
  drawImages();
  showTable();
  showTree();
  showTools();
  showPoints();
}

function ask(title, text, answers) {
  const dialog = $("asking");
  put($("asking-title"), title);
  put($("asking-text"), text);
  return new Promise((done) => {
    const buttons = answers.map((answer, k) => {
      const button = make("button", { type: "button", class: k === 0 ? "main" : "quiet" }, answer);
      button.addEventListener("click", () => dialog.close(answer));
      return button;
    });
    $("answers").replaceChildren(...buttons);
    dialog.returnValue = "";
    dialog.addEventListener("close", () => done(dialog.returnValue), { once: true });
    if (!dialog.open) dialog.showModal();
  });
}
