"use strict";
// Texts come from models and files: they are set as textContent, never as HTML.
const page = JSON.parse(document.getElementById("data").textContent);
const images = page.images;
const by = (id) => document.getElementById(id);
const number = (value) => value.toLocaleString("en");
const ROW = 44;  // pixels, as in the style
const WORDS = { accept: "\u2713 accepted", reject: "\u2715 rejected", "": "not decided" };

// What is decided of an image: {verdict: "accept" | "reject" | "", rejected: [region, ...]}.
const initial = images.map((each) => ({ verdict: each.verdict, rejected: each.rejected }));
const state = initial.map((each) => ({ verdict: each.verdict, rejected: new Set(each.rejected) }));
let shown = images.map((_, index) => index);  // positions of the images that the filter lets through
let current = 0;  // position in `shown`

// Decisions survive closing the page where the browser lets it keep something.
const key = "grain_jax review " + page.id;
function remember(index) {
  try {
    const kept = JSON.parse(localStorage.getItem(key) || "{}");
    kept[images[index].rows] = [state[index].verdict, [...state[index].rejected]];
    localStorage.setItem(key, JSON.stringify(kept));
  } catch (error) {
    by("stored").textContent = "This browser keeps nothing: download the decisions before you close the page.";
  }
}
function recall() {
  let kept = {};
  try { kept = JSON.parse(localStorage.getItem(key) || "{}"); } catch (error) { return; }
  images.forEach((each, index) => {
    const [verdict, rejected] = kept[each.rows] || [null, []];
    if (verdict !== null) state[index] = { verdict, rejected: new Set(rejected) };
  });
  if (Object.keys(kept).length) by("stored").textContent = "Decisions of an earlier visit are restored.";
}

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function statusOf(index) {
  const { verdict, rejected } = state[index];
  const boxes = rejected.size ? `, ${rejected.size} of ${images[index].regions.length} boxes rejected` : "";
  return WORDS[verdict] + boxes;
}

function showProgress() {
  const accepted = state.filter((each) => each.verdict === "accept").length;
  const rejected = state.filter((each) => each.verdict === "reject").length;
  by("progress").textContent = `${number(accepted + rejected)} of ${number(images.length)} images decided: ` +
    `${number(accepted)} accepted, ${number(rejected)} rejected.`;
}

function showList() {
  const list = by("list"), rows = by("rows");
  rows.style.height = `${Math.max(1, shown.length) * ROW}px`;
  const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 5);
  const last = Math.min(shown.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + 5);
  rows.replaceChildren();
  for (let place = first; place < last; place++) {
    const index = shown[place];
    const row = element("div", "row", images[index].name);
    row.append(element("small", "", `${index + 1}: ${statusOf(index)}`));
    row.id = `row-${place}`;
    row.title = images[index].name;
    row.style.top = `${place * ROW}px`;
    row.setAttribute("role", "option");
    row.setAttribute("aria-selected", String(place === current));
    row.setAttribute("aria-posinset", String(place + 1));
    row.setAttribute("aria-setsize", String(shown.length));
    row.addEventListener("click", () => show(place));
    rows.append(row);
  }
  if (shown.length) list.setAttribute("aria-activedescendant", `row-${current}`);
  else { list.removeAttribute("aria-activedescendant"); rows.append(element("p", "", "No image is left here.")); }
}

function scrollToCurrent() {
  const list = by("list"), top = current * ROW;
  if (top < list.scrollTop) list.scrollTop = top;
  else if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
}

function show(place) {
  if (place < 0 || place >= shown.length) return;
  current = place;
  const index = shown[current], found = images[index];
  by("name").textContent = `${number(index + 1)} of ${number(images.length)}: ${found.name}`;
  by("missing").hidden = true;
  by("frame").hidden = false;
  by("image").alt = found.captions[0] || found.name;
  by("image").src = found.source;
  by("captions").replaceChildren(...found.captions.map((text) => element("p", "", text)));
  by("subject").textContent = found.subject ? `Primary subject: ${found.subject}` : "";
  by("others").hidden = !found.unboxed.length;
  by("unboxed").replaceChildren(...found.unboxed.map(([text, score]) =>
    element("li", "", score === null ? text : `${text} (best score ${score.toFixed(3)})`)));
  by("regions").replaceChildren(...found.regions.map((each, region) => regionRow(index, region)));
  showDecision();
  const next = images[shown[current + 1]];
  if (next && !next.source.startsWith("data:")) new Image().src = next.source;
  scrollToCurrent();
  showList();
}

function regionRow(index, region) {
  const [text, score] = images[index].regions[region];
  const item = element("li"), button = element("button");
  button.type = "button";
  button.append(element("span", "number", String(region + 1)), element("span", "text", text),
    element("span", "score", ""));
  button.addEventListener("click", () => toggle(region));
  for (const [event, near] of [["mouseenter", true], ["mouseleave", false], ["focus", true], ["blur", false]])
    button.addEventListener(event, () => {
      const box = by("boxes").querySelector(`[data-region="${region}"]`);
      if (box) box.classList.toggle("near", near);
    });
  item.append(button);
  return item;
}

function showDecision() {
  if (!shown.length) return;
  const index = shown[current], { verdict, rejected } = state[index];
  by("verdict").textContent = statusOf(index);
  by("verdict").className = verdict;
  by("accept").setAttribute("aria-pressed", String(verdict === "accept"));
  by("reject").setAttribute("aria-pressed", String(verdict === "reject"));
  [...by("regions").children].forEach((item, region) => {
    const button = item.firstChild, out = rejected.has(region), score = images[index].regions[region][1];
    button.className = out ? "rejected" : "";
    button.querySelector(".score").textContent = `${score.toFixed(3)} ${out ? "\u2715 rejected" : "\u2713 kept"}`;
  });
  showBoxes(index);
  showProgress();
}

function showBoxes(index) {
  const frame = by("boxes"), tags = [];
  const { width, height } = frame.getBoundingClientRect();
  frame.replaceChildren();
  images[index].regions.forEach(([, , box], region) => {
    const out = state[index].rejected.has(region) ? " rejected" : "";
    const [x0, y0, x1, y1] = box.map((value) => Math.min(1, Math.max(0, value)));
    const outline = element("div", "box" + out);
    outline.dataset.region = region;
    Object.assign(outline.style, { left: `${100 * x0}%`, top: `${100 * y0}%`,
      width: `${100 * (x1 - x0)}%`, height: `${100 * (y1 - y0)}%` });
    const tag = element("span", "tag" + out, String(region + 1));
    // Numbers of boxes with the same corner stand beside each other.
    let left = Math.min(x0 * width, Math.max(0, width - 28)), top = Math.min(y0 * height, Math.max(0, height - 20));
    while (tags.some(([x, y]) => Math.abs(x - left) < 26 && Math.abs(y - top) < 20) && left < width - 54) left += 27;
    while (tags.some(([x, y]) => Math.abs(x - left) < 26 && Math.abs(y - top) < 20) && top < height - 42) top += 21;
    tags.push([left, top]);
    Object.assign(tag.style, { left: `${left}px`, top: `${top}px` });
    frame.append(outline, tag);
  });
}

function decide(verdict) {
  if (!shown.length) return;
  const index = shown[current];
  state[index].verdict = verdict;
  if (!verdict) state[index].rejected.clear();
  remember(index);
  showDecision();
  if (verdict && current + 1 < shown.length) show(current + 1);
  else showList();
}

function toggle(region) {
  if (!shown.length || region >= images[shown[current]].regions.length) return;
  const { rejected } = state[shown[current]];
  if (!rejected.delete(region)) rejected.add(region);
  remember(shown[current]);
  showDecision();
  showList();
}

function filter() {
  const wanted = by("filter").value;
  const passes = { all: () => true, open: (each) => !each.verdict, accept: (each) => each.verdict === "accept",
    reject: (each) => each.verdict === "reject", regions: (each) => each.rejected.size > 0 }[wanted];
  const index = shown[current];
  shown = images.map((_, place) => place).filter((place) => passes(state[place]));
  by("detail").hidden = !shown.length;
  by("list").scrollTop = 0;
  current = Math.max(0, shown.indexOf(index));
  if (shown.length) show(current); else showList();
}

function decisions() {
  const changed = (index) => initial[index].verdict !== state[index].verdict ||
    initial[index].rejected.length !== state[index].rejected.size ||
    initial[index].rejected.some((region) => !state[index].rejected.has(region));
  const found = [];
  images.forEach((each, index) => {
    const { verdict, rejected } = state[index];
    if (!verdict && !rejected.size && !changed(index)) return;
    found.push({ image: each.name, rows: each.rows, verdict: verdict || null,
      rejected_regions: [...rejected].sort((a, b) => a - b).map((region) => ({
        description: each.regions[region][0], box_xyxy: each.regions[region][2] })) });
  });
  return { format: page.format, version: page.version, decisions: found };
}

function download() {
  const link = element("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(decisions(), null, 1)], { type: "application/json" }));
  link.download = "decisions.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  by("stored").textContent = `decisions.json: give it to annotate review --apply=decisions.json.`;
}

const KEYS = {
  j: () => show(current + 1), ArrowDown: () => show(current + 1),
  k: () => show(current - 1), ArrowUp: () => show(current - 1),
  Home: () => show(0), End: () => show(shown.length - 1),
  a: () => decide("accept"), r: () => decide("reject"), u: () => decide(""),
};
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("select, input[type=text]")) return;
  const letter = event.key.length === 1, inList = event.target === by("list");
  if (!by("shortcuts").checked && (letter || !inList)) return;
  const action = /^[1-9]$/.test(event.key) ? () => toggle(Number(event.key) - 1) : KEYS[event.key];
  if (!action || (!letter && !inList)) return;  // elsewhere, arrows scroll
  event.preventDefault();
  action();
});
for (const [id, action] of [["previous", KEYS.k], ["next", KEYS.j], ["accept", KEYS.a], ["reject", KEYS.r],
  ["clear", KEYS.u], ["download", download]]) by(id).addEventListener("click", action);
by("filter").addEventListener("change", filter);
by("list").addEventListener("scroll", showList);
by("image").addEventListener("error", () => { by("missing").hidden = false; by("frame").hidden = true; });
by("image").addEventListener("load", () => { if (shown.length) showBoxes(shown[current]); });
addEventListener("resize", () => { if (shown.length) showBoxes(shown[current]); showList(); });
recall();
showProgress();
if (images.length) show(0); else filter();
