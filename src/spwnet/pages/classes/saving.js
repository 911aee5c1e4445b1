// Saving, downloading, and the preview of cleaning.

async function post(path, body) {
  const answer = await fetch(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
  const found = await answer.json();
  if (!answer.ok) throw new Refusal(found.error);
  return found;
}

function told(error, what) {
  if (error instanceof Refusal) return say(`${what}: ${error.message}`, true);
  if (!(error instanceof TypeError)) throw error;
  say(`${what}: no answer from the program that serves this page. Is it still running?`, true);
}

const quoted = (path) => (/^[\w./~+-]+$/.test(path) ? path : `'${path.replaceAll("'", "'\\''")}'`);

function download() {
  const address = URL.createObjectURL(new Blob([model.toToml(classes)], { type: "application/toml" }));
  const link = make("a", { href: address, download: "classes.toml" });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
  saved = classes;
  say(`Downloaded. To use it: spwnet segment ${quoted(data.run)} IMAGES --out labels --classes classes.toml`);
}

// One save waits for the other: each begins from the version that the one before made.
async function save() {
  if (pointing) applyPoints();
  if (!data.served) return download();
  again = saving;
  if (saving) return;
  saving = true;
  try {
    let done = true;
    while (done) {
      again = false;
      done = (await send()) && again && classes !== saved;
    }
  } finally {
    saving = false;
  }
}

// Whether the file has the classes now.
async function send(overwrite = false) {
  const sent = classes;
  try {
    const answer = await post("save", { classes: sent, version: data.version, overwrite });
    if (answer.saved) {
      data.version = answer.version;
      saved = sent;
      lastKind = null;
      showTools();
      say(`Saved. To use it: spwnet segment ${quoted(data.run)} IMAGES --out labels --classes ${quoted(data.place)}`);
      return true;
    }
  } catch (error) {
    told(error, "Not saved");
    return false;
  }
  const answer = await ask(
    "The file has changed",
    `${data.place} is not what it was when this page was opened: somebody changed it elsewhere.`,
    ["Keep editing", "Load it, losing the changes here", "Overwrite it"],
  );
  if (answer === "Overwrite it") return send(true);
  if (answer.startsWith("Load")) {
    saved = classes;
    location.reload();
  } else say("Not saved.", true);
  return false;
}

function forgetCleaned() {
  asked++;
  for (const image of images) image.cleaned = null;
  previewSoon();
}

function previewSoon(on = false) {
  const box = $("cleaned");
  if (!box) return;
  if (on) box.checked = true;
  clearTimeout(timer);
  if (box.checked && !pointing) timer = setTimeout(previewNow, SETTLE_MS);
}

async function previewNow() {
  const mine = ++asked;
  const sent = classes;
  say("Cleaning …");
  try {
    const answer = await post("preview", { classes: sent });
    const found = await Promise.all(answer.labels.map(unpacked));
    if (mine !== asked || !$("cleaned").checked || pointing) return;
    images.forEach((image, k) => (image.cleaned = found[k]));
    drawImages();
    const slices = data.solid ? " Volumes are cleaned in three dimensions; slices show about what comes out." : "";
    const hint = sent.some(cleans) ? "" : " Say what to clean in the row that ▸ opens.";
    say(`Cleaning changes ${percent(answer.changed)} of the pixels shown.${hint}${slices}`);
  } catch (error) {
    told(error, "No preview");
  }
}
