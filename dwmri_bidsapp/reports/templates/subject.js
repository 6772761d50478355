"use strict";
// Directions on a sphere: drawn by Plotly once the reader comes near, so that the page opens at once.
function drawSphere(figure) {
  const place = figure.querySelector(".sphere");
  const { shells } = JSON.parse(figure.querySelector("script").textContent);
  const style = getComputedStyle(document.documentElement);
  const ink = style.getPropertyValue("--ink").trim();
  const grid = style.getPropertyValue("--line").trim();
  const flip = (points, sign) => [0, 1, 2].map((axis) => points.map((point) => sign * point[axis]));
  const trace = ({ name, colour, points, volumes }, sign) => {
    const [x, y, z] = flip(points, sign);
    return { type: "scatter3d", mode: "markers", name, legendgroup: name, showlegend: sign > 0, x, y, z,
      text: volumes.map((volume) => `volume ${volume}`), hovertemplate: "%{text}<extra>" + name + "</extra>",
      marker: { size: sign > 0 ? 5 : 4, color: colour, opacity: sign > 0 ? 1 : 0.45, symbol: sign > 0 ? "circle" : "circle-open" } };
  };
  const circle = Array.from({ length: 73 }, (_, i) => [Math.cos((i * Math.PI) / 36), Math.sin((i * Math.PI) / 36)]);
  const rings = [[0, 1], [0, 2], [1, 2]].map(([a, b]) => {
    const line = [[], [], []];
    circle.forEach(([c, s]) => [0, 1, 2].forEach((axis) => line[axis].push(axis === a ? c : axis === b ? s : 0)));
    return { type: "scatter3d", mode: "lines", x: line[0], y: line[1], z: line[2], line: { color: grid, width: 2 }, hoverinfo: "skip", showlegend: false };
  });
  const letters = { type: "scatter3d", mode: "text", x: [1.2, 0, 0], y: [0, 1.2, 0], z: [0, 0, 1.2], text: ["R", "A", "S"],
    textfont: { color: ink, size: 15 }, hoverinfo: "skip", showlegend: false };
  const axis = { visible: false, range: [-1.25, 1.25] };
  const traces = [...rings, letters, ...shells.flatMap((shell) => [trace(shell, 1), trace(shell, -1)])];
  Plotly.newPlot(place, traces, {
    paper_bgcolor: "rgba(0,0,0,0)", font: { color: ink, size: 13 }, margin: { l: 0, r: 0, t: 0, b: 0 },
    legend: { x: 0, y: 1 }, scene: { xaxis: axis, yaxis: axis, zaxis: axis, aspectmode: "cube",
      camera: { eye: { x: 0.72, y: -0.88, z: 0.55 } } },
  }, { displaylogo: false, displayModeBar: false, responsive: true }).then(() => { place.dataset.drawn = "yes"; });
}

const nearby = new IntersectionObserver((entries) => entries.filter((entry) => entry.isIntersecting).forEach(({ target }) => {
  nearby.unobserve(target);
  loadPlotly().then(() => drawSphere(target));
}), { rootMargin: "600px" });
document.querySelectorAll(".sphere-figure").forEach((figure) => nearby.observe(figure));

document.querySelectorAll(".rating form").forEach((form) => form.addEventListener("submit", (event) => {
  event.preventDefault();
  const given = new FormData(form);
  const rating = { run: form.dataset.run, rating: given.get("rating"), seen: given.getAll("seen"), rater: given.get("rater"),
    notes: given.get("notes"), date: new Date().toISOString() };
  saveText(JSON.stringify(rating, null, 2) + "\n", `${form.dataset.run}_rating.json`, "application/json");
}));
