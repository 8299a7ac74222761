"use strict";

// one letter per region or box: "a" the most negative, "j" zero, "s" the most positive
const LEVELS = 9;
const strength = (letter) => (letter.charCodeAt(0) - "a".charCodeAt(0) - LEVELS) / LEVELS;
const LEGENDS = { attention: ["weak", "strong"], attribution: ["against", "for"] };
const OPACITY = 0.8; // of the strongest region
const SECONDS = 1; // of a word that is played
const still = matchMedia("(prefers-reduced-motion: reduce)");
let preferred = "attention"; // what is shown of words that have both maps

function kindOf(caption) {
  const kinds = caption.dataset.maps.split(" ");
  return kinds.includes(preferred) ? preferred : kinds[0];
}

function colourOf(kind, value) {
  const name = kind === "attention" ? "--glow" : value > 0 ? "--glow-for" : "--glow-against";
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

// A canvas with a pixel for each region, which the browser enlarges smoothly.
function drawRegions(picture, caption, kind, levels) {
  const side = Math.sqrt(levels.length);
  let canvas = picture.querySelector("canvas");
  if (!canvas) {
    canvas = document.createElement("canvas");
    canvas.setAttribute("aria-hidden", "true");
    picture.append(canvas);
  }
  canvas.width = canvas.height = side;
  const [left, top, right, bottom] = (caption.dataset.area || "0 0 1 1").split(" ").map(Number);
  for (const [name, share] of Object.entries({ left, top, width: right - left, height: bottom - top })) {
    canvas.style[name] = `${100 * share}%`;
  }
  const pixels = canvas.getContext("2d");
  [...levels].forEach((letter, k) => {
    pixels.fillStyle = colourOf(kind, strength(letter));
    pixels.globalAlpha = OPACITY * Math.abs(strength(letter));
    pixels.fillRect(k % side, Math.floor(k / side), 1, 1);
  });
}

function paint(card, caption, levels) {
  const picture = card.querySelector(".picture");
  const boxes = picture.querySelectorAll(".boxes rect");
  const kind = caption && kindOf(caption);
  picture.classList.toggle("mapped", Boolean(levels));
  if (levels && !boxes.length) drawRegions(picture, caption, kind, levels);
  boxes.forEach((box, k) => {
    const value = levels ? strength(levels[k]) : 0;
    box.style.fill = value === 0 ? "" : kind === "attention" ? "var(--glow)" : `var(${value > 0 ? "--for" : "--against"})`;
    box.style.fillOpacity = value === 0 ? "" : 0.75 * Math.abs(value);
  });
}

// Which of a caption's layers and heads is chosen; of each layer the mean comes first, then its heads.
function headOf(caption) {
  const [layer, head] = [...caption.querySelectorAll(".head select")];
  return layer && layer.selectedIndex * (Number(caption.dataset.heads) + 1) + head.selectedIndex;
}

function levelsOf(caption, word, kind) {
  const heads = kind === "attention" && word.dataset.heads;
  return heads ? heads.split(" ")[headOf(caption)] : word.dataset[kind];
}

// The text of a word's map; that of attention is of the mean of the last layer's heads.
function textOf(caption, word, kind) {
  const [layer, head] = [...caption.querySelectorAll(".head select")];
  const other = head && kind === "attention" && (head.selectedIndex || layer.selectedIndex < layer.length - 1);
  return other ? `attention of layer ${layer.value}, head ${head.value}` : word.dataset[`${kind}Text`];
}

// A row for each word with the weights of the words read before it was chosen.
function drawAmong(caption) {
  const words = [...caption.querySelectorAll(".word")].map((word) => word.textContent);
  const levels = caption.dataset.among.split(" ")[headOf(caption)];
  const cell = (name, text) => Object.assign(document.createElement(name), { textContent: text });
  const table = document.createElement("table");
  const head = table.createTHead().insertRow();
  head.append(cell("td", ""), ...["<START>", ...words.slice(0, -1)].map((word) => cell("th", word)));
  const body = table.createTBody();
  words.forEach((word, t) => {
    const row = body.insertRow();
    row.append(cell("th", word));
    for (let k = 0; k <= t; k++) {
      row.insertCell().style.setProperty("--weight", `${100 * strength(levels[t * (t + 1) / 2 + k])}%`);
    }
  });
  const text = cell("p", "A row for each word chosen, a column for each word read before; the stronger the colour, the larger the weight.");
  caption.querySelector(".among").replaceChildren(caption.querySelector(".among summary"), table, text);
}

// Choose a word of a card, or none.
function choose(card, word) {
  card.querySelectorAll(".word").forEach((other) => other.setAttribute("aria-pressed", String(other === word)));
  card.querySelectorAll(".described").forEach((line) => { line.textContent = ""; });
  card.querySelectorAll(".legend").forEach((legend) => legend.classList.remove("shown"));
  const caption = word && word.closest(".run-caption");
  const kind = caption && kindOf(caption);
  const description = kind && textOf(caption, word, kind);
  const drawable = card.querySelector(".picture img, .picture .boxes rect");
  const levels = kind && drawable && levelsOf(caption, word, kind);
  if (word) caption.querySelector(".described").textContent = word.dataset.text + (description ? `; ${description}` : "");
  if (levels) {
    const legend = caption.querySelector(".legend");
    const [low, high] = legend.querySelectorAll("span");
    [low.textContent, high.textContent] = LEGENDS[kind];
    legend.className = `legend shown ${kind}`;
  }
  paint(card, caption, levels);
}

function chooseAgain() {
  document.querySelectorAll('.word[aria-pressed="true"]').forEach((word) => choose(word.closest(".card"), word));
}

let playing = null; // { caption, timer }

function stop() {
  if (!playing) return;
  clearTimeout(playing.timer);
  playing.caption.querySelector(".play").textContent = "Play";
  playing = null;
}

// Choose the next word of a caption; where motion is welcome, and then the others.
function play(caption) {
  const words = [...caption.querySelectorAll(".word")];
  const next = words.findIndex((word) => word.getAttribute("aria-pressed") === "true") + 1;
  choose(caption.closest(".card"), words[next % words.length]);
  if (still.matches) return;
  const last = next % words.length === words.length - 1;
  playing = { caption, timer: setTimeout(() => (last ? stop() : play(caption)), 1000 * SECONDS) };
  caption.querySelector(".play").textContent = "Stop";
}

document.addEventListener("click", (event) => {
  const button = event.target.closest(".word, .play, .map");
  if (!button) return;
  const caption = button.closest(".run-caption");
  if (button.matches(".map")) {
    preferred = button.dataset.map;
    document.querySelectorAll(".map").forEach((other) => {
      other.setAttribute("aria-pressed", String(other.dataset.map === preferred));
    });
    chooseAgain();
    return;
  }
  const another = !playing || playing.caption !== caption;
  stop();
  if (button.matches(".word")) {
    choose(button.closest(".card"), button.getAttribute("aria-pressed") === "true" ? null : button);
  } else if (another) {
    play(caption);
  }
});

// A layer or a head that is chosen is chosen for all captions of the run.
document.addEventListener("change", (event) => {
  if (!event.target.matches(".head select")) return;
  const run = event.target.closest(".run2") ? ".run2" : ".run1";
  document.querySelectorAll(`${run} select[name="${event.target.name}"]`).forEach((other) => { other.value = event.target.value; });
  document.querySelectorAll(`${run} .among[open]`).forEach((table) => drawAmong(table.closest(".run-caption")));
  chooseAgain();
});
document.addEventListener("toggle", (event) => {
  if (event.target.matches(".among[open]")) drawAmong(event.target.closest(".run-caption"));
}, true);

function namePlay() {
  stop();
  document.querySelectorAll(".play").forEach((button) => { button.textContent = still.matches ? "Next word" : "Play"; });
}
still.addEventListener("change", namePlay);
namePlay();

const form = document.getElementById("filter");
const all = document.getElementById("all");
const cards = [...all.children];
const texts = new Map(cards.map((card) =>
  [card, [...card.querySelectorAll("h3, .caption, .references")].map((part) => part.textContent).join(" ").toLowerCase()]));
const more = document.getElementById("more");
let limit = 24; // cards shown before "Show all" is chosen

function show() {
  const words = form.elements.words.value.toLowerCase().split(/\s+/).filter(Boolean);
  const [run, sign] = form.elements.order.value.split(" ").map(Number);
  const value = (card) => Number(card.dataset.values.split(" ")[run]);
  const ordered = form.elements.order.value ? [...cards].sort((a, b) => sign * (value(a) - value(b))) : cards;
  let count = 0;
  for (const card of ordered) {
    const found = words.every((word) => texts.get(card).includes(word));
    card.hidden = !found || count >= limit;
    count += found;
  }
  all.append(...ordered);
  more.hidden = count <= limit;
  more.textContent = `Show all ${count}`;
  form.querySelector("output").textContent = `${count} of ${cards.length}`;
}

form.addEventListener("input", show);
more.addEventListener("click", () => { limit = cards.length; show(); });
form.addEventListener("submit", (event) => event.preventDefault());
show();
