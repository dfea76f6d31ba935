"use strict";
// Draws the figures in the page's colours, sorts the table, moves the operating point. Reads #firn-data, asks no network.
(() => {
  const data = JSON.parse(document.getElementById("firn-data").textContent);
  const $ = (id) => document.getElementById(id);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const state = { view: 0, hidden: new Set(), point: null };

  // ---- figures: colours come from the style sheet, so that they follow light and dark ------------------------------
  const themed = (value, style) => {
    if (Array.isArray(value)) return typeof value[0] === "number" ? value : value.map((item) => themed(item, style));
    if (value && typeof value === "object")
      return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, themed(item, style)]));
    const name = typeof value === "string" && /^var\((--\w+)\)$/.exec(value);
    return name ? style.getPropertyValue(name[1]).trim() : value;
  };

  const ring = (x, y) => ({
    type: "scatter", mode: "markers", x: [x], y: [y], hoverinfo: "skip", name: "operating point",
    marker: { size: 14, color: "rgba(0,0,0,0)", line: { width: 2.5, color: "var(--ink)" } },
  });

  const additions = { // what the operating point adds to a figure
    roc: (p) => ({ traces: [ring(1 - p.specificity, p.sensitivity)] }),
    pr: (p) => ({ traces: p.called ? [ring(p.sensitivity, p.precision)] : [] }),
    scores: (p) => ({ shapes: [{ type: "line", yref: "paper", x0: p.threshold, x1: p.threshold, y0: 0, y1: 1,
      line: { width: 2, color: "var(--ink)" } }] }),
  };

  const draw = (node) => {
    const name = node.dataset.figure;
    const figure = data.figures[name];
    const added = state.point && additions[name] ? additions[name](state.point) : {};
    const shown = (trace) => !(trace.meta && state.hidden.has(trace.meta.run));
    const style = getComputedStyle(document.documentElement);
    const labels = node.clientWidth > 560;
    const traces = figure.views[Math.min(state.view, figure.views.length - 1)].filter(shown).concat(added.traces || [])
      .map((trace) => (trace.mode === "markers+text" && !labels ? { ...trace, mode: "markers" } : trace));
    const layout = {
      ...figure.layout, width: node.clientWidth, height: node.clientHeight, shapes: added.shapes || [], margin: { l: 52, r: 14, t: 14, b: 48 }, dragmode: false, hovermode: "closest",
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: style.getPropertyValue("--sans"), size: 0.81 * parseFloat(style.fontSize), color: "var(--muted)" },
    };
    layout.hoverlabel = { ...layout.hoverlabel, bgcolor: "var(--raised)", bordercolor: "var(--line)", font: { color: "var(--ink)" } };
    const config = { displayModeBar: false, showTips: false };
    Plotly.react(node, themed(traces, style), themed(layout, style), config);
  };

  const waiting = new Set();
  const redraw = (...names) => { // at most once a frame, however fast a slider moves
    if (!waiting.size) requestAnimationFrame(() => {
      const nodes = all("[data-figure]").filter((node) => waiting.has(node.dataset.figure));
      waiting.clear();
      nodes.forEach(draw);
    });
    (names.length ? names : Object.keys(data.figures)).forEach((name) => waiting.add(name));
  };

  const choose = (event) => {
    const run = Number(event.target.dataset.run);
    event.target.checked ? state.hidden.delete(run) : state.hidden.add(run);
    redraw("roc", "pr");
  };
  for (const box of all("[data-run]")) {
    if (!box.checked) state.hidden.add(Number(box.dataset.run));
    box.addEventListener("change", choose);
  }
  const selects = all("select.class");
  for (const select of selects) select.addEventListener("change", () => {
    for (const other of selects) other.value = select.value;
    state.view = Number(select.value);
    redraw("roc", "pr", "reliability", "decision");
  });

  // ---- ranking: a heading sorts, a second time the other way round; what is missing stays at the end ---------------
  const key = (row, column) => row.cells[column].dataset.value;
  const order = (a, b) => (a === "") - (b === "") || (isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b);
  const sort = (heading) => {
    const table = heading.closest("table");
    const first = heading.querySelector("button").dataset.first;
    const other = first === "ascending" ? "descending" : "ascending";
    const direction = heading.getAttribute("aria-sort") === first ? other : first;
    const sign = direction === "ascending" ? 1 : -1;
    const column = heading.cellIndex;
    const rows = all("tbody tr", table).sort((a, b) => {
      const [x, y] = [key(a, column), key(b, column)];
      return x === "" || y === "" ? order(x, y) : sign * order(x, y);
    });
    all("th[aria-sort]", table).forEach((cell) => cell.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", direction);
    table.tBodies[0].append(...rows);
  };
  all(".ranking thead button").forEach((button) => button.addEventListener("click", () => sort(button.closest("th"))));
  if ($("all-runs")) $("all-runs").addEventListener("change", (event) => document.querySelector(".ranking").classList.toggle("every", event.target.checked));
  if ($("all-metrics")) $("all-metrics").addEventListener("change", (event) => document.querySelector(".ranking").classList.toggle("all", event.target.checked));

  // ---- operating point: everything follows from the counts at one threshold ----------------------------------------
  const operating = data.operating;
  const ratio = (part, whole) => (whole > 0 ? part / whole : NaN);
  const text = (number) => (isNaN(number) ? "–" : number.toFixed(3));
  const at = (place) => {
    const tp = operating.true_positives[place], fp = operating.false_positives[place];
    const fn = operating.positives - tp, tn = operating.negatives - fp;
    const sensitivity = ratio(tp, operating.positives), specificity = ratio(tn, operating.negatives);
    const p = Math.min(Math.max(Number($("prevalence").value) / 100, 0), 1);
    const found = sensitivity * p, missed = (1 - sensitivity) * p, alarms = (1 - specificity) * (1 - p), cleared = specificity * (1 - p);
    return { threshold: operating.thresholds[place], tp, fp, fn, tn, sensitivity, specificity, p, found, missed, alarms,
      called: tp + fp, precision: ratio(tp, tp + fp), ppv: ratio(found, found + alarms), npv: ratio(cleared, cleared + missed) };
  };

  const move = () => {
    const place = Number($("threshold").value);
    const p = (state.point = at(place));
    $("threshold-value").textContent = p.threshold.toFixed(3);
    for (const name of ["sensitivity", "specificity", "ppv", "npv"]) $(name).textContent = text(p[name]);
    const cells = { "true-positives": [p.tp, p.sensitivity], "false-negatives": [p.fn, 1 - p.sensitivity],
      "false-positives": [p.fp, 1 - p.specificity], "true-negatives": [p.tn, p.specificity] };
    for (const [id, [count, share]] of Object.entries(cells)) {
      $(id).textContent = count.toLocaleString("en");
      $(id).style.setProperty("--share", isNaN(share) ? 0 : share);
    }
    const [real, found, alarms] = [p.p, p.found, p.alarms].map((share) => Math.round(1000 * share));
    $("frequencies").textContent = `Of 1,000 images at a prevalence of ${(100 * p.p).toFixed(1)} %, ${real} are “${operating.label}”: ${found} found, `
      + `${real - found} missed. Of the other ${1000 - real}, ${alarms} are false alarms.`;
    $("threshold").setAttribute("aria-valuetext",
      `threshold ${p.threshold.toFixed(3)}, sensitivity ${text(p.sensitivity)}, specificity ${text(p.specificity)}`);
    for (const button of all("[data-preset]")) button.setAttribute("aria-pressed", operating.presets[button.dataset.preset] === place);
    $("exploratory").hidden = Object.values(operating.presets).includes(place);
    redraw("roc", "pr", "scores");
  };

  if (operating) {
    $("threshold").addEventListener("input", move);
    $("prevalence").addEventListener("input", move);
    for (const button of all("[data-preset]")) button.addEventListener("click", () => {
      $("threshold").value = operating.presets[button.dataset.preset];
      move();
    });
    move();
  }

  // ---- what is wider than the screen: reached by the keyboard too, and a hint says so ------------------------------
  const widths = () => all(".scroll").forEach((box) => {
    const wide = box.scrollWidth > box.clientWidth + 1;
    box.classList.toggle("wide", wide);
    if (wide) box.tabIndex = 0;
    if (wide && !box.hasAttribute("aria-label")) {
      box.setAttribute("role", "region");
      box.setAttribute("aria-label", (box.querySelector("caption") || box).textContent.slice(0, 80));
    }
  });
  addEventListener("resize", widths);
  all("details").forEach((more) => more.addEventListener("toggle", widths));
  widths();

  // ---- size, light, dark, paper ------------------------------------------------------------------------------------
  let closed = []; // print shows what is folded
  const paper = (on) => () => {
    document.documentElement.toggleAttribute("data-paper", on);
    if (on) closed = all("details:not([open])");
    closed.forEach((more) => (more.open = on));
    all("[data-figure]").forEach(draw);
    widths();
  };
  addEventListener("resize", () => redraw());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraw());
  addEventListener("beforeprint", paper(true));
  addEventListener("afterprint", paper(false));
  redraw();
})();
