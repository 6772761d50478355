"use strict";
document.documentElement.classList.add("js");

// Before / after: three buttons, a click on the picture, or the keys b, a and f while it has the focus.
function setUpFlicker(figure) {
  const buttons = [...figure.querySelectorAll(".controls button")];
  let timer = null;
  const show = (which) => { figure.dataset.shown = which; };
  const choose = (mode) => {
    clearInterval(timer);
    timer = null;
    if (mode === "flicker") {
      timer = setInterval(() => show(figure.dataset.shown === "before" ? "after" : "before"), 700);
    } else {
      show(mode);
    }
    buttons.forEach((button) => button.setAttribute("aria-pressed", String(button.value === mode)));
  };
  buttons.forEach((button) => button.addEventListener("click", () => choose(button.value)));
  figure.querySelector("svg").addEventListener("click", () =>
    choose(figure.dataset.shown === "before" ? "after" : "before"));
  figure.addEventListener("keydown", (event) => {
    const mode = { b: "before", a: "after", f: "flicker" }[event.key];
    if (mode && !event.ctrlKey && !event.metaKey && !event.altKey) choose(mode);
  });
  choose("after");
}

// Tables: a click on a heading sorts by it, a second one turns the order round. Empty cells stay last.
function setUpSorting(table) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    const button = heading.querySelector("button");
    if (!button) return;
    button.addEventListener("click", () => {
      const up = heading.getAttribute("aria-sort") !== "ascending";
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", up ? "ascending" : "descending");
      const keyed = [...table.tBodies[0].rows].map((row) => [row.cells[column].dataset.value ?? "", row]);
      const numeric = heading.classList.contains("number");
      keyed.sort(([x], [y]) => {
        if (x === "" || y === "") return (x === "") - (y === "");
        const order = numeric ? Number(x) - Number(y) : x.localeCompare(y, undefined, { numeric: true });
        return up ? order : -order;
      });
      table.tBodies[0].append(...keyed.map(([, row]) => row));
    });
  });
}

function setUpSearch(input) {
  const table = document.getElementById(input.dataset.table);
  const count = document.getElementById(input.dataset.count);
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/);
    let shown = 0;
    for (const row of table.tBodies[0].rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      shown += !row.hidden;
    }
    count.textContent = `${shown} of ${table.tBodies[0].rows.length} runs`;
  });
}

document.querySelectorAll("figure.flicker").forEach(setUpFlicker);
document.querySelectorAll("table.sortable").forEach(setUpSorting);
document.querySelectorAll("input[data-table]").forEach(setUpSearch);
