"use strict";
// The group page: filters choose runs, Plotly draws them; the statistics were computed by SciPy and ride along.
function setUpGroup(data) {
  const get = (id) => document.getElementById(id);
  const everyRun = data.runs.map((_, run) => run);
  const state = { measure: data.first, reference: "", shell: "", session: "", acquisition: "",
                  search: "", sort: null, up: true, page: 0 };
  const ROWS = 50;
  const EDGE = 4; // of the chart of effect sizes: what is larger is drawn as an arrow at the edge

  const option = (value, text) => new Option(text, value);
  const unique = (list) => [...new Set(list)].filter(Boolean);
  const sorted = (list) => unique(list).sort((x, y) => x.localeCompare(y, undefined, { numeric: true }));
  const index = (name) => data.measures.findIndex((measure) => measure.name === name);
  const value = (measure, method, run) => data.values[measure][method][run];
  const known = (list) => list.filter((x) => x !== null);
  const median = (list) => {
    const ordered = [...list].sort((x, y) => x - y);
    const half = ordered.length / 2;
    return (ordered[Math.ceil(half) - 1] + ordered[Math.floor(half)]) / 2;
  };
  const show = (x) => {
    if (x === null || x === undefined) return "";
    const size = Math.abs(x);
    const text = size >= 1000 ? Math.round(x).toLocaleString("en") : size && size < 1e-3 ? x.toExponential(2)
      : String(Number(x.toPrecision(3)));
    return text.replaceAll("-", "−");
  };

  function fill(id, choices, all) {
    const box = get(id);
    if (all) box.append(option("", all));
    choices.forEach(([choice, text]) => box.append(option(choice, text)));
    box.disabled = box.options.length < 2;
    box.addEventListener("change", () => { state[id] = box.value; state.page = 0; draw(); });
  }

  function fillMeasures() {
    const box = get("measure");
    const shown = data.measures.filter((m) => !state.shell || !m.shell || m.shell === state.shell || m.shell === "0");
    box.replaceChildren(...shown.map((m) => option(m.name, m.label)));
    if (!shown.some((m) => m.name === state.measure)) state.measure = shown[0].name;
    box.value = state.measure;
  }

  const selectedRuns = () => everyRun.filter((i) => {
    const run = data.runs[i];
    return (!state.shell || run.shells.includes(state.shell))
      && (!state.session || run.session === state.session)
      && (!state.acquisition || run.acquisition === state.acquisition);
  });

  const statistics = () => data.statistics[[state.shell, state.session, state.acquisition].join("|")];

  function theme(forPrint) {
    const style = getComputedStyle(document.documentElement);
    const name = (variable, light) => (forPrint ? light : style.getPropertyValue(variable).trim());
    return { ink: name("--ink", "#000"), line: name("--line", "#bbb"), soft: name("--soft", "#333"),
             bad: name("--bad", "#a3260d"), after: name("--after", "#0072b2") };
  }

  let printing = false;
  let later = 0;
  const colourOf = (method) => (method === "denoised" ? theme(printing).after : data.colours[method]);

  function layout(extra) {
    const colours = theme(printing);
    const axis = { gridcolor: colours.line, zerolinecolor: colours.soft, linecolor: colours.line, automargin: true };
    const { xaxis = {}, yaxis = {}, ...rest } = extra;
    return { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: colours.ink, size: 13 },
             margin: { l: 60, r: 15, t: 34, b: 45 }, showlegend: false, hovermode: "closest",
             xaxis: { ...axis, ...xaxis }, yaxis: { ...axis, ...yaxis }, ...rest };
  }

  function plot(id, traces, extra) {
    const place = get(id);
    if (!place) return;
    Plotly.react(place, traces, layout(extra), { displaylogo: false, responsive: true,
      modeBarButtonsToRemove: ["select2d", "lasso2d"] });
    if (!place.dataset.linked) {
      place.dataset.linked = "yes";
      place.on("plotly_click", (event) => {
        const page = event.points[0].customdata;
        if (typeof page === "string") window.location.href = page;
      });
    }
  }

  function drawValues(runs, measure) {
    const m = index(measure.name);
    const traces = data.methods.map((method, k) => {
      const here = runs.filter((run) => value(m, k, run) !== null);
      const many = here.length >= 12;
      const colour = colourOf(method);
      return { type: many ? "violin" : "box", name: method, x: here.map(() => method),
               y: here.map((run) => value(m, k, run)), text: here.map((run) => data.runs[run].label),
               customdata: here.map((run) => data.runs[run].page), hovertemplate: "%{text}<br>%{y:.4g}<extra>" + method + "</extra>",
               hoveron: "points", line: { color: colour, width: 1.5 }, marker: { color: colour, size: here.length > 300 ? 3 : 6, opacity: 0.65 },
               ...(many ? { side: "positive", points: "all", pointpos: -0.6, jitter: 0.6, box: { visible: true, width: 0.16 }, width: 0.75, spanmode: "hard" }
                 : { boxpoints: "all", pointpos: 0, jitter: 0.4, fillcolor: "rgba(0,0,0,0)" }) };
    }).filter((trace) => trace.y.length);
    const unit = measure.unit ? ` (${measure.unit})` : "";
    plot("chart-values", traces, { title: { text: measure.label + unit, font: { size: 15 }, x: 0, xref: "paper" } });
    get("chart-values").setAttribute("aria-label", `${measure.label}: ` + traces.map((t) => `${t.name}, ${t.y.length} runs, median ${show(median(t.y))}`).join("; "));
  }

  function differences(runs, m, a, b) {
    const sums = new Map();
    runs.forEach((run) => {
      const [x, y] = [value(m, a, run), value(m, b, run)];
      if (x === null || y === null) return;
      const entry = sums.get(data.runs[run].participant) ?? { sum: 0, n: 0, page: data.runs[run].page };
      entry.sum += y - x;
      entry.n += 1;
      sums.set(data.runs[run].participant, entry);
    });
    return [...sums].map(([participant, { sum, n, page }]) => ({ participant, page, difference: Number((sum / n).toPrecision(6)) }));
  }

  function drawDifferences(runs, measure, found) {
    const m = index(measure.name);
    const a = data.methods.indexOf(state.reference);
    const traces = [], names = [], words = [];
    data.methods.forEach((method, b) => {
      if (method === state.reference || method === "acquired") return;
      const points = differences(runs, m, a, b);
      const pair = found?.[`${state.reference}|${method}`]?.[measure.name];
      if (!points.length) return;
      const at = names.push(method) - 1;
      const colour = colourOf(method);
      traces.push({ type: "scatter", mode: "markers", x: points.map((_, i) => at - 0.12 - 0.25 * ((i * 0.618034) % 1)),
                    y: points.map((p) => p.difference), text: points.map((p) => p.participant), customdata: points.map((p) => p.page),
                    hovertemplate: "%{text}<br>%{y:.4g}<extra>" + method + "</extra>",
                    marker: { color: colour, size: points.length > 300 ? 3 : 6, opacity: 0.65 } });
      if (!pair) return;
      const [n, , , mean, low, high] = pair;
      traces.push({ type: "scatter", mode: "markers", x: [at + 0.12], y: [mean], marker: { symbol: "diamond", size: 11, color: colour },
                    hovertemplate: `mean %{y:.4g}<br>95%: ${show(low)} to ${show(high)}<br>${n} participants<extra>${method}</extra>`,
                    error_y: low === null ? {} : { type: "data", symmetric: false, array: [high - mean], arrayminus: [mean - low], color: colour, thickness: 2.5, width: 8 } });
      words.push(`${method} minus ${state.reference}: ${show(mean)}, 95% ${show(low)} to ${show(high)}`);
    });
    const better = { higher: "above zero is better", lower: "below zero is better" }[measure.better] ?? "";
    const unit = measure.unit ? ` (${measure.unit})` : "";
    plot("chart-differences", traces, {
      title: { text: `Difference to ${state.reference}${unit}`, subtitle: { text: better }, font: { size: 15 }, x: 0, xref: "paper" },
      margin: { l: 60, r: 15, t: 64, b: 45 },
      xaxis: { tickvals: names.map((_, i) => i), ticktext: names, range: [-0.6, names.length - 0.4], zeroline: false },
      yaxis: { zeroline: true, zerolinewidth: 2, rangemode: "tozero" } });
    get("chart-differences").setAttribute("aria-label", words.join("; ") || "No differences");
  }

  const comparedMethods = (found) => data.methods.filter((method) => found?.[`${state.reference}|${method}`]);

  function drawOverview(found) {
    const methods = comparedMethods(found);
    const measures = data.measures.filter((m) => m.better && (!state.shell || !m.shell || m.shell === state.shell || m.shell === "0")
      && methods.some((method) => found[`${state.reference}|${method}`][m.name]?.[6] != null));
    const traces = methods.map((method, k) => {
      const points = measures.map((m, row) => ({ row, sign: m.better === "higher" ? 1 : -1, pair: found[`${state.reference}|${method}`][m.name] }))
        .filter(({ pair }) => pair && pair[6] !== null);
      const colour = colourOf(method);
      const effects = points.map(({ sign, pair }) => sign * pair[6]);
      const shape = ["circle", "square", "diamond", "cross", "star"][k % 5];
      return { type: "scatter", mode: "markers", name: method, y: points.map(({ row }) => row + (k - (methods.length - 1) / 2) * 0.17),
               x: effects.map((effect) => Math.max(-EDGE, Math.min(EDGE, effect))),
               marker: { color: colour, size: 9, symbol: effects.map((effect) => (effect > EDGE ? "triangle-right" : effect < -EDGE ? "triangle-left" : shape)) },
               text: points.map(({ row }, i) => `${measures[row].label}: ${show(effects[i])}`), hovertemplate: "%{text}<extra>" + method + "</extra>",
               error_x: { type: "data", symmetric: true, array: points.map(({ pair }, i) => (Math.abs(effects[i]) > EDGE ? 0 : (pair[8] - pair[7]) / 2)), color: colour, thickness: 1.3, width: 3 } };
    });
    document.getElementById("overview-figure").hidden = !measures.length;
    document.getElementById("overview-missing").hidden = measures.length > 0 || !statistics();
    document.getElementById("overview-unknown").hidden = Boolean(statistics());
    get("chart-overview").style.height = `${Math.max(150, 90 + measures.length * (22 + 7 * methods.length))}px`;
    plot("chart-overview", traces, { showlegend: methods.length > 1, legend: { orientation: "h", y: 1, yanchor: "bottom" },
      xaxis: { title: { text: `worse ← effect against ${state.reference} → better` }, range: [-EDGE - 0.2, EDGE + 0.2], zeroline: true, zerolinewidth: 2 },
      yaxis: { tickvals: measures.map((_, i) => i), ticktext: measures.map((m) => m.label), range: [measures.length - 0.4, -0.6], zeroline: false } });
    get("chart-overview").setAttribute("aria-label", measures.length ? "Effect sizes, the same numbers as in the table below" : "Too few participants for effect sizes");
  }

  function cell(row, text, className, header) {
    const made = document.createElement(header ? "th" : "td");
    if (header) made.scope = "row";
    made.className = className ?? "";
    made.textContent = text;
    row.append(made);
    return made;
  }

  function fillStatistics(found) {
    const methods = comparedMethods(found);
    const rows = [];
    let last = "";
    data.measures.forEach((m) => methods.forEach((method) => {
      const pair = found[`${state.reference}|${method}`][m.name];
      if (!pair || (state.shell && m.shell && m.shell !== state.shell && m.shell !== "0")) return;
      const [n, reference, own, difference, low, high, effect, least, most, improved] = pair;
      if (difference === 0 && low === null) return; // a measure of the acquired data: the same for all methods
      const row = document.createElement("tr");
      const head = cell(row, m.label + (m.unit ? ` (${m.unit})` : ""), m.name === last ? "again" : "", true);
      head.title = m.description;
      last = m.name;
      cell(row, method);
      cell(row, n, "number");
      [reference, own, difference].forEach((x) => cell(row, show(x), "number"));
      cell(row, low === null ? "" : `${show(low)} to ${show(high)}`, "number");
      cell(row, effect === null ? "" : `${effect.toFixed(2)} (${least.toFixed(2)} to ${most.toFixed(2)})`.replaceAll("-", "−"), "number");
      cell(row, improved === null ? "" : `${improved} of ${n}`);
      rows.push(row);
    }));
    get("table-statistics").tBodies[0].replaceChildren(...rows);
  }

  function drawOutliers(runs) {
    const here = runs.filter((run) => data.runs[run].distance !== null);
    const colours = theme(printing);
    // Protocols have limits of their own.
    const shares = here.map((run) => (data.runs[run].limit ? data.runs[run].distance / data.runs[run].limit : 0));
    const most = Math.max(...shares, 0);
    plot("chart-outliers", [{ type: "scatter", mode: "markers", x: here.map((_, i) => i + 1), y: shares,
      text: here.map((run) => data.runs[run].label), customdata: here.map((run) => data.runs[run].page), hovertemplate: "%{text}<br>%{y:.2f} of the limit<extra></extra>",
      marker: { size: 7, color: here.map((run) => (data.runs[run].outlier ? colours.bad : colours.after)),
                symbol: here.map((run) => (data.runs[run].outlier ? "x" : "circle")) } }],
    { xaxis: { title: { text: "run, by label" }, zeroline: false }, yaxis: { title: { text: "robust distance / limit" }, ...(most > 20 ? { type: "log" } : { rangemode: "tozero" }) },
      shapes: [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: 1, y1: 1, line: { dash: "dash", color: colours.soft } }] });
  }

  // The table: a row for each run and method. It is built from the data, 50 rows at a time: thousands would be slow.
  const hasEntities = ["session", "acquisition"].filter((name) => data.runs.some((run) => run[name]));
  // Warnings, distance and mark are of the own method: other rows of the run have none.
  const own = (row, name) => (data.methods[row.method] === "denoised" ? data.runs[row.run][name] : null);
  const columns = [
    { label: "Run", text: (r) => data.runs[r.run].label, link: (r) => data.runs[r.run].page },
    { label: "Method", text: (r) => data.methods[r.method] },
    ...hasEntities.map((name) => ({ label: name[0].toUpperCase() + name.slice(1), text: (r) => data.runs[r.run][name] })),
    { label: "Protocol", number: (r) => data.runs[r.run].protocol + 1, title: "1 is that of most runs" },
    { label: "Warnings", number: (r) => own(r, "warnings") },
    ...(data.runs.some((run) => run.distance !== null) ? [{ label: "Robust distance", number: (r) => own(r, "distance") }] : []),
    ...data.columns.map((name) => {
      const m = index(name);
      return { label: data.measures[m].label, unit: data.measures[m].unit, title: data.measures[m].description, number: (r) => value(m, r.method, r.run) };
    }),
  ];
  const text = (column, row) => (column.number ? show(column.number(row)) : column.text(row));
  const everyRow = everyRun.flatMap((run) => data.methods.map((_, method) => ({ run, method })))
    .filter(({ run, method }) => method > 0 && data.values.some((byMethod) => byMethod[method][run] !== null));

  function selectedRows(runs) {
    const chosen = new Set(runs);
    const words = state.search.toLowerCase().split(/\s+/).filter(Boolean);
    const rows = everyRow.filter((row) => {
      if (!chosen.has(row.run)) return false;
      if (!words.length) return true;
      const run = data.runs[row.run];
      const all = `${run.label} ${data.methods[row.method]} ${run.session} ${run.acquisition} ${own(row, "outlier") ? "outlier" : ""}`.toLowerCase();
      return words.every((word) => all.includes(word));
    });
    if (state.sort === null) return rows;
    const column = columns[state.sort];
    const key = (row) => (column.number ? column.number(row) : column.text(row));
    return rows.map((row) => [key(row), row]).sort(([x], [y]) => {
      const [gone, gone2] = [x === null || x === "", y === null || y === ""];
      if (gone || gone2) return gone - gone2;
      const order = column.number ? x - y : x.localeCompare(y, undefined, { numeric: true });
      return state.up ? order : -order;
    }).map(([, row]) => row);
  }

  function fillTable(runs) {
    const rows = selectedRows(runs);
    const pages = Math.max(1, Math.ceil(rows.length / ROWS));
    state.page = Math.min(state.page, pages - 1);
    get("table-runs").tBodies[0].replaceChildren(...rows.slice(state.page * ROWS, (state.page + 1) * ROWS).map((entry) => {
      const row = document.createElement("tr");
      columns.forEach((column) => {
        const made = cell(row, column.link ? "" : text(column, entry), column.number ? "number" : "whole");
        if (column.link) made.append(Object.assign(document.createElement("a"), { href: column.link(entry), textContent: text(column, entry) }));
      });
      if (own(entry, "outlier")) row.className = "outlier";
      return row;
    }));
    get("count-runs").textContent = `${rows.length} of ${everyRow.length} rows`;
    get("page").textContent = `page ${state.page + 1} of ${pages}`;
    get("previous").disabled = state.page === 0;
    get("next").disabled = state.page === pages - 1;
  }

  function setUpTable() {
    const heads = columns.map((column, place) => {
      const head = document.createElement("th");
      Object.assign(head, { scope: "col", title: column.title ?? "", className: column.number ? "number" : "" });
      const button = Object.assign(document.createElement("button"), { type: "button", textContent: column.label });
      head.append(button);
      if (column.unit) head.append(Object.assign(document.createElement("small"), { textContent: column.unit }));
      button.addEventListener("click", () => {
        state.up = state.sort === place ? !state.up : true;
        state.sort = place;
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", state.up ? "ascending" : "descending");
        fillTable(selectedRuns());
      });
      return head;
    });
    get("table-runs").tHead.rows[0].append(...heads);
    get("search").addEventListener("input", (event) => { state.search = event.target.value; state.page = 0; fillTable(selectedRuns()); });
    get("previous").addEventListener("click", () => { state.page -= 1; fillTable(selectedRuns()); });
    get("next").addEventListener("click", () => { state.page += 1; fillTable(selectedRuns()); });
    document.querySelectorAll("button[data-download]").forEach((button) => button.addEventListener("click", () => download(button.dataset.download)));
  }

  function download(kind) {
    const comma = kind === "csv";
    const quote = (x) => (comma && /[",\n]/.test(x) ? `"${x.replaceAll('"', '""')}"` : x);
    const names = columns.map((column) => column.label + (column.unit ? ` (${column.unit})` : ""));
    const rows = selectedRows(selectedRuns()).map((row) => columns.map((column) => String((column.number ? column.number(row) : column.text(row)) ?? "n/a")));
    const lines = [names, ...rows].map((row) => row.map(quote).join(comma ? "," : "\t"));
    saveText(lines.join("\n") + "\n", `group_selection.${kind}`, comma ? "text/csv" : "text/tab-separated-values");
  }

  function drawCharts(runs) {
    if (typeof Plotly === "undefined") return;
    const measure = data.measures[index(state.measure)];
    const found = statistics();
    drawValues(runs, measure);
    drawDifferences(runs, measure, found);
    // What lies below the fold is drawn when the rest can be used.
    clearTimeout(later);
    later = setTimeout(() => { drawOverview(found); drawOutliers(runs); }, 0);
  }

  function draw() {
    fillMeasures();
    const runs = selectedRuns();
    const measure = data.measures[index(state.measure)];
    get("selected").textContent = `${runs.length} of ${everyRun.length} runs`;
    get("measure-words").textContent = `${measure.label}: ${measure.description}` + (measure.ideal ? ` Good: ${measure.ideal}.` : "");
    drawCharts(runs);
    fillStatistics(statistics());
    fillTable(runs);
  }

  const hasBefore = data.values.some((byMethod) => known(byMethod[0]).length);
  fill("measure", []);
  fill("reference", data.methods.filter((method) => (method === "acquired" && hasBefore) || (method === "denoised" && data.methods.length > 2))
    .map((method) => [method, method]));
  state.reference = get("reference").value || "acquired";
  fill("shell", sorted(data.runs.flatMap((run) => run.shells)).map((b) => [b, `b=${b}`]), "all");
  fill("session", sorted(data.runs.map((run) => run.session)).map((s) => [s, s]), "all");
  fill("acquisition", sorted(data.runs.map((run) => run.acquisition)).map((s) => [s, s]), "all");
  get("measure").disabled = false;
  get("reset").addEventListener("click", () => {
    ["shell", "session", "acquisition"].forEach((id) => { state[id] = ""; get(id).value = ""; });
    state.search = get("search").value = "";
    state.page = 0;
    draw();
  });
  setUpTable();
  draw();
  loadPlotly().then(() => drawCharts(selectedRuns()), () => { get("charts-missing").hidden = false; });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawCharts(selectedRuns()));
  const forPrint = (on) => { printing = on; drawCharts(selectedRuns()); };
  matchMedia("print").addEventListener("change", (event) => forPrint(event.matches));
}

if (document.getElementById("data")) setUpGroup(JSON.parse(document.getElementById("data").textContent));
