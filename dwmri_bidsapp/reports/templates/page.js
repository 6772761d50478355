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

// Plotly rides in the page, packed; it is unpacked when something is to be drawn.
let plotlyLoading = null;
function loadPlotly() {
  plotlyLoading ??= (async () => {
    const text = atob(document.getElementById("plotly").textContent);
    const packed = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i += 1) packed[i] = text.charCodeAt(i);
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  })();
  return plotlyLoading;
}

// Files are made in the browser and saved by it: nothing is sent.
function saveText(text, name, type) {
  const link = Object.assign(document.createElement("a"), { download: name, href: URL.createObjectURL(new Blob([text], { type })) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

document.querySelectorAll("figure.flicker").forEach(setUpFlicker);
