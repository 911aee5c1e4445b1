// What keys, buttons and the browser do; the start.

function listen() {
  $("slider").addEventListener("input", () => cutTo(Number($("slider").value)));
  $("slider").addEventListener("change", () => (lastKind = null));
  $("count").addEventListener("change", () => {
    const n = Math.round(Number($("count").value));
    if (n >= 1 && n <= data.finest) cutTo(n).then(() => (lastKind = null));
    else {
      say(`Expected 1 to ${data.finest} classes.`, true);
      refresh();
    }
  });
  $("suggest").addEventListener("click", () => cutTo(data.suggested));
  for (const radio of document.querySelectorAll("[name=view]"))
    radio.addEventListener("change", () => setView(radio.value));
  $("opacity").addEventListener("input", () => setView("overlay"));
  $("borders").addEventListener("change", drawImages);
  $("cleaned")?.addEventListener("change", () => {
    forgetCleaned();
    drawImages();
    if (!$("cleaned").checked) say("Classes as they are before cleaning.");
  });
  $("name").addEventListener("change", () => rename(Number($("name").dataset.id), $("name").value));
  $("name").addEventListener("keydown", (event) => event.key === "Enter" && $("name").blur());
  $("colour").addEventListener("input", () => recolour([...selected], $("colour").value));
  $("colour").addEventListener("change", () => (lastKind = null));
  $("merge").addEventListener("click", mergeSelected);
  $("split").addEventListener("click", splitSelected);
  $("background").addEventListener("click", markBackground);
  $("points").addEventListener("click", startPoints);
  $("undo").addEventListener("click", () => step(past, future, "Undone"));
  $("redo").addEventListener("click", () => step(future, past, "Done again"));
  $("save").addEventListener("click", save);
  $("naming").addEventListener("submit", (event) => {
    event.preventDefault();
    addName($("pointname").value.trim());
  });
  $("unpoint").addEventListener("click", removePoint);
  $("apply").addEventListener("click", applyPoints);
  $("cancel").addEventListener("click", () =>
    endPoints(pointing.before, "Points are left; the classes are as before."),
  );
  $("all").addEventListener("click", () => showOnly(null));
  $("previous").addEventListener("click", () => showOnly((enlarged + images.length - 1) % images.length));
  $("next").addEventListener("click", () => showOnly((enlarged + 1) % images.length));
  $("copy").addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText($("citation").textContent);
      say("Copied.");
    } catch {
      getSelection().selectAllChildren($("citation"));
      say("Selected; copy it by Ctrl+C.");
    }
  });
  document.addEventListener("keydown", onKey);
  addEventListener("resize", fit);
  new ResizeObserver(fit).observe($("bar"));
  addEventListener("beforeunload", (event) => data.served && (classes !== saved || pointing) && event.preventDefault());
  const opened = [];
  addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details:not([open]):not(#keys)")) {
      details.open = true;
      opened.push(details);
    }
    for (const image of images) if (image.stale) draw(image);
  });
  addEventListener("afterprint", () => {
    for (const details of opened.splice(0)) details.open = false;
  });
}

const LETTERS = { m: mergeSelected, s: splitSelected, b: markBackground, p: startPoints };

function onKey(event) {
  if ($("asking").open) return;
  const typing = event.target.matches(
    "input:not([type=checkbox], [type=radio], [type=range], [type=color]), select, textarea",
  );
  const key = event.key.toLowerCase();
  if (event.ctrlKey || event.metaKey) {
    const actions = {
      s: save,
      z: () => (event.shiftKey ? step(future, past, "Done again") : step(past, future, "Undone")),
      y: () => step(future, past, "Done again"),
    };
    if (!actions[key] || event.altKey || (typing && key !== "s")) return;
    event.preventDefault();
    if (typing) event.target.blur();
    actions[key]();
  } else if (key === "escape") {
    if (typing) event.target.blur();
    else if (enlarged !== null) showOnly(null);
    else if (pointing) endPoints(pointing.before, "Points are left; the classes are as before.");
    else choose([]);
  } else if (!typing && !event.altKey && $("letters").checked && (LETTERS[key] || key === "n")) {
    event.preventDefault();
    if (key !== "n") return LETTERS[key]();
    if (selected.size !== 1) return say("Select one class to name.", true);
    $("name").focus();
    $("name").select();
  }
}

async function start() {
  if (!("DecompressionStream" in window)) {
    return say("This browser is too old to show the images; take one of 2023 or newer.", true);
  }
  images.push(...(await Promise.all(data.images.map(openImage))));
  $("grid").append(...images.map((image) => image.figure));
  const watcher = new IntersectionObserver(
    (entries) => {
      for (const { target, isIntersecting } of entries) {
        const image = images.find((one) => one.figure === target);
        image.seen = isIntersecting;
        if (image.seen && image.stale) draw(image);
      }
    },
    { rootMargin: "300px" },
  );
  for (const image of images) watcher.observe(image.figure);
  const scale = $("scale").querySelector("canvas").getContext("2d");
  const sheet = new ImageData(128, 1);
  new Uint32Array(sheet.data.buffer).set(cividis.filter((_, k) => k % 2 === 0));
  scale.putImageData(sheet, 0, 0);
  $("cut").hidden = data.parents === null || data.finest === 1;
  $("slider").max = $("count").max = data.finest;
  put($("suggest"), `Suggested: ${data.suggested}`);
  document.querySelector("[name=view][value=uncertainty]").disabled = images.every((image) => !image.doubt);
  makeTree();
  listen();
  refresh();
  showView();
  fit();
  say("Click classes to select them, in the images, the table or the tree; m merges them, n names one.");
  document.body.dataset.ready = "yes";
}

window.spwnet = {
  model,
  makeModel,
  data,
  state: () => ({ classes, selected: [...selected], saved: classes === saved, images }),
};
start();
