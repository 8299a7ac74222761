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

// Choose a word of a card, or none.
function choose(card, word) {
  card.querySelectorAll(".word").forEach((other) => other.setAttribute("aria-pressed", String(other === word)));
  card.querySelectorAll(".described").forEach((line) => { line.textContent = ""; });
  card.querySelectorAll(".legend").forEach((legend) => legend.classList.remove("shown"));
  const caption = word && word.closest(".run-caption");
  const kind = caption && kindOf(caption);
  const description = kind && word.dataset[`${kind}Text`];
  const drawable = card.querySelector(".picture img, .picture .boxes rect");
  const levels = kind && drawable && word.dataset[kind];
  if (word) caption.querySelector(".described").textContent = word.dataset.text + (description ? `; ${description}` : "");
  if (levels) {
    const legend = caption.querySelector(".legend");
    const [low, high] = legend.querySelectorAll("span");
    [low.textContent, high.textContent] = LEGENDS[kind];
    legend.className = `legend shown ${kind}`;
  }
  paint(card, caption, levels);
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
    document.querySelectorAll('.word[aria-pressed="true"]').forEach((word) => choose(word.closest(".card"), word));
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
