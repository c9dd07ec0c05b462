"use strict";

const PER_PAGE = 20;
const SVG = "http://www.w3.org/2000/svg";
const byId = (id) => document.getElementById(id);
const { pairs, failures, chunk } = JSON.parse(byId("data").textContent);
const filters = byId("filters");
const number = new Intl.NumberFormat("en-US");
let found = []; // indices of the pairs, or of the failures, that the filters let through
let page = 0;

/** An element with a class and children. Texts become text nodes, so that no data is ever read as HTML. */
function element(name, className, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children.filter((child) => child !== null));
  return made;
}

/** A text of the data, in its own writing direction. */
function text(name, className, ...children) {
  const made = element(name, className, ...children);
  made.dir = "auto";
  return made;
}

function marked([words, changed]) {
  return changed ? element("mark", "", words) : words;
}

// Filters

function haystack(entry) {
  const texts = entry.kind === undefined
    ? [entry.prompt.map((message) => message[1]), entry.chosen, entry.rejected.map((piece) => piece[0]).join("")]
    : [entry.kind, entry.reason, entry.rejected ?? ""];
  return [...texts.flat(), entry.key, entry.id, `row ${entry.row}`].join("\n").toLowerCase();
}

function fits(pair) {
  const same = (id, value) => byId(id).value === "" || byId(id).value === String(value);
  const { least, largest } = filters.elements;
  return same("iteration", pair.iterations) && same("guided", pair.guided) && same("swapped", pair.swapped)
    && (least.value === "" || pair.similarity >= least.valueAsNumber)
    && (largest.value === "" || pair.similarity <= largest.valueAsNumber);
}

function search() {
  const wanted = byId("search").value.trim().toLowerCase();
  const kind = byId("show").value;
  const order = Number(byId("order").value);
  const entries = kind ? failures : pairs;
  found = [];
  entries.forEach((entry, index) => {
    if (kind ? entry.kind !== kind : !fits(entry)) return;
    if (wanted) entry.haystack ??= haystack(entry);
    if (!wanted || entry.haystack.includes(wanted)) found.push(index);
  });
  if (order && !kind) found.sort((a, b) => order * (pairs[a].similarity - pairs[b].similarity) || a - b);
  for (const id of ["iteration", "guided", "swapped", "least", "largest", "order", "dim"]) byId(id).disabled = kind !== "";
  const total = kind ? entries.filter((entry) => entry.kind === kind).length : entries.length;
  const name = kind ? "examples without a pair" : "pairs";
  byId("count").textContent = found.length === total
    ? `${number.format(total)} ${name}` : `${number.format(found.length)} of ${number.format(total)} ${name}`;
  show(0);
}

// Cards

function chip(name, className = "") {
  return element("span", `chip ${className}`, name);
}

function identity(entry) {
  const parts = [["key", entry.key], ["id", entry.id]].filter(([, value]) => value !== null && value !== undefined);
  const named = parts.map(([name, value]) => element("span", "", `${name} `, element("bdi", "", String(value))));
  return element("p", "identity", ...named);
}

function heading(entry, ...chips) {
  return element("header", "", element("h3", "", `Row ${number.format(entry.row)}`), element("p", "chips", ...chips), identity(entry));
}

function field(name, className, ...children) {
  return element("div", `field ${className}`, element("h4", "", name), text("p", "", ...children));
}

function prompt(messages) {
  if (messages.length === 1) return field("Prompt", "prompt", messages[0][1]);
  const turns = messages.map(([role, words]) => text("p", "", element("b", "", `${role} `), words));
  return element("div", "field prompt", element("h4", "", "Prompt"), ...turns);
}

function pairCard(pair, index) {
  const visible = `${number.format(pair.visible)} of ${number.format(pair.tokens)} image tokens visible`;
  const chips = [
    chip(`similarity ${pair.similarity.toFixed(3)}`, "strong"),
    chip(`iteration ${pair.iterations}`),
    chip(pair.guided ? "guided" : "unguided"),
    ...(pair.swapped ? [chip("yes/no swapped")] : []),
    ...pair.faults.map((fault) => chip(fault, "fault")),
  ];
  const images = element("div", "images", element("div", "frames"), element("p", "note", pair.noise ? `noise ${pair.noise}` : visible));
  images.dataset.index = index;
  const texts = element("div", "texts", prompt(pair.prompt), field("Chosen", "chosen", pair.chosen), field("Rejected", "rejected", ...pair.rejected.map(marked)));
  return element("article", "card", heading(pair, ...chips), images, texts);
}

function failureCard(failure) {
  const rejected = failure.rejected === null ? null : field("Rejected", "", failure.rejected);
  const chips = [chip(failure.kind.replaceAll("_", " "), "fault")];
  return element("article", "card failure", heading(failure, ...chips), element("div", "texts", field("Reason", "", failure.reason), rejected));
}

function show(wanted) {
  const pages = Math.max(1, Math.ceil(found.length / PER_PAGE));
  page = Math.min(Math.max(wanted, 0), pages - 1);
  const begin = page * PER_PAGE;
  const make = byId("show").value ? (index) => failureCard(failures[index]) : (index) => pairCard(pairs[index], index);
  const cards = found.slice(begin, begin + PER_PAGE).map(make);
  for (const card of cards) {
    card.tabIndex = -1;
    card.setAttribute("aria-label", card.querySelector("h3").textContent);
  }
  const nothing = element("p", "nothing", "Nothing matches these filters.");
  byId("cards").replaceChildren(...(cards.length ? cards : [nothing]));
  for (const pager of document.querySelectorAll(".pager")) {
    pager.querySelector(".page").textContent = `${number.format(page + 1)} of ${number.format(pages)}`;
    pager.querySelector(".previous").disabled = page === 0;
    pager.querySelector(".next").disabled = page === pages - 1;
  }
  drawImages();
}

// Images, whose data follows this script in the page and is read when a card needs it

/** The views of a pair's images, or null while its part of the page has not arrived. */
function views(index) {
  const holder = byId(`thumbnails-${Math.floor(index / chunk)}`);
  const complete = holder && (document.readyState !== "loading" || holder.nextSibling);
  if (!complete) return null;
  holder.parsed ??= JSON.parse(holder.textContent);
  return holder.parsed[index % chunk];
}

function drawImages() {
  let missing = false;
  for (const images of document.querySelectorAll(".images:not(.drawn)")) {
    const found = views(Number(images.dataset.index));
    if (found) {
      images.classList.add("drawn");
      images.firstChild.replaceChildren(...found.map(frame));
    } else {
      missing = true;
    }
  }
  if (missing && document.readyState === "loading") requestAnimationFrame(drawImages);
}

function frame(view, position) {
  if (!view.src) {
    const path = view.path ? text("span", "path", view.path) : null;
    return element("div", "placeholder", element("b", "", "Image not shown"), path, text("span", "", view.fault));
  }
  const image = element("img", Math.max(view.width, view.height) < 128 ? "small" : "");
  Object.assign(image, { alt: `Image ${position + 1}`, loading: "lazy", decoding: "async", width: view.width, height: view.height, src: view.src });
  if (view.path) image.title = view.path;
  const shown = element("div", "frame", image);
  shown.style.aspectRatio = `${view.width} / ${view.height}`;
  if (view.grid && view.visible.length < view.grid[0] * view.grid[1]) shown.append(overlay(view.grid, view.visible));
  return shown;
}

/** One path that dims all tokens but the visible ones, and one around each visible token. */
function overlay([rows, columns], visible) {
  const drawing = document.createElementNS(SVG, "svg");
  drawing.setAttribute("viewBox", `0 0 ${columns} ${rows}`);
  drawing.setAttribute("preserveAspectRatio", "none");
  drawing.setAttribute("aria-hidden", "true");
  drawing.classList.toggle("fine", Math.max(rows, columns) > 30); // tokens of few pixels
  const tokens = visible.map((token) => `M${token % columns} ${Math.floor(token / columns)}h1v1h-1z`).join("");
  for (const [name, path] of [["hidden", `M0 0H${columns}V${rows}H0z${tokens}`], ["visible", tokens]]) {
    const shape = document.createElementNS(SVG, "path");
    shape.setAttribute("class", name);
    shape.setAttribute("d", path);
    drawing.append(shape);
  }
  return drawing;
}

// Going through the pairs

function turn(pages) {
  const before = page;
  show(page + pages);
  if (page !== before) byId("pairs").scrollIntoView();
  return page !== before;
}

/** Move the focus to the next or the previous pair, across pages too. */
function step(by) {
  const cards = [...document.querySelectorAll(".card")];
  let target = cards.indexOf(document.activeElement?.closest(".card"));
  target = target < 0 ? (by > 0 ? 0 : -1) : target + by;
  if (target >= 0 && target < cards.length) return focusCard(cards[target]);
  if (turn(by)) focusCard(by > 0 ? document.querySelector(".card") : [...document.querySelectorAll(".card")].at(-1));
}

function focusCard(card) {
  card.focus({ preventScroll: true });
  card.scrollIntoView({ block: "start" });
}

const KEYS = {
  j: () => step(1),
  ArrowRight: () => step(1),
  k: () => step(-1),
  ArrowLeft: () => step(-1),
  n: () => turn(1),
  p: () => turn(-1),
  "/": () => byId("search").focus(),
  "?": () => byId("keys").showModal(),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || byId("keys").open) return;
  const typing = event.target.closest("input, select");
  if (typing && event.key === "Escape") typing.blur();
  if (typing || !Object.hasOwn(KEYS, event.key)) return;
  event.preventDefault();
  KEYS[event.key]();
});

// Light and dark

function isDark() {
  const chosen = document.documentElement.style.colorScheme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function nameTheme() {
  byId("theme").textContent = isDark() ? "Light" : "Dark";
}

byId("theme").addEventListener("click", () => {
  document.documentElement.style.colorScheme = isDark() ? "light" : "dark";
  nameTheme();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", nameTheme);

byId("help").addEventListener("click", KEYS["?"]);
byId("dim").addEventListener("change", () => byId("cards").classList.toggle("bright", !byId("dim").checked));
filters.addEventListener("submit", (event) => event.preventDefault());
byId("pairs").addEventListener("input", (event) => event.target.id !== "dim" && search());
filters.addEventListener("reset", () => setTimeout(() => {
  byId("cards").classList.remove("bright");
  search();
}));
for (const button of document.querySelectorAll(".previous")) button.addEventListener("click", () => turn(-1));
for (const button of document.querySelectorAll(".next")) button.addEventListener("click", () => turn(1));

nameTheme();
search();
// A task that a frame's callback starts runs when that frame is on the screen.
requestAnimationFrame(() => setTimeout(() => performance.mark("first-card")));
