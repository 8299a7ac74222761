"use strict";

// one letter per region or box: "a" strongly against the word, "j" neutral, "s" strongly for it
const LEVELS = 9;
const strength = (letter) => (letter.charCodeAt(0) - "a".charCodeAt(0) - LEVELS) / LEVELS;
const SVG = "http://www.w3.org/2000/svg";

function regionsOf(picture, count) {
  let overlay = picture.querySelector(".regions");
  if (!overlay) {
    const side = Math.sqrt(count);
    overlay = document.createElementNS(SVG, "svg");
    overlay.setAttribute("class", "regions");
    overlay.setAttribute("viewBox", `0 0 ${side} ${side}`);
    overlay.setAttribute("preserveAspectRatio", "none");
    overlay.setAttribute("aria-hidden", "true");
    for (let k = 0; k < count; k++) {
      const cell = document.createElementNS(SVG, "rect");
      for (const [name, value] of Object.entries({ x: k % side, y: Math.floor(k / side), width: 1, height: 1 })) {
        cell.setAttribute(name, value);
      }
      overlay.append(cell);
    }
    picture.append(overlay);
  }
  return overlay.querySelectorAll("rect");
}

function paint(card, levels) {
  const picture = card.querySelector(".picture");
  const boxes = picture.querySelectorAll(".boxes rect");
  const parts = boxes.length || !levels || !picture.querySelector("img") ? boxes : regionsOf(picture, levels.length);
  picture.classList.toggle("attributed", Boolean(levels));
  const shown = levels ? parts : picture.querySelectorAll("rect");
  shown.forEach((part, k) => {
    const value = levels ? strength(levels[k]) : 0;
    part.style.fill = value === 0 ? "" : `var(${value > 0 ? "--for" : "--against"})`;
    part.style.fillOpacity = value === 0 ? (boxes.length ? "" : 0) : 0.75 * Math.abs(value);
  });
}

document.addEventListener("click", (event) => {
  const word = event.target.closest(".word");
  if (!word) return;
  const card = word.closest(".card");
  const chosen = word.getAttribute("aria-pressed") !== "true";
  card.querySelectorAll(".word").forEach((other) => other.setAttribute("aria-pressed", "false"));
  card.querySelectorAll(".attribution").forEach((line) => { line.textContent = ""; });
  word.setAttribute("aria-pressed", String(chosen));
  if (chosen) word.closest(".run-caption").querySelector(".attribution").textContent = word.dataset.text;
  paint(card, chosen ? word.dataset.levels : "");
});

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
