// Draws what the page's data say: the score over each knob, the gain against the cost, and every cell.
(() => {
  const parts = JSON.parse(document.getElementById("data").textContent);
  const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const dark = () => css("--page").toLowerCase() !== "#ffffff";
  // Okabe and Ito; on dark ground the blue and the oranges are lightened.
  const paint = () => dark()
    ? { swept: "#56B4E9", control: "#E69F00", plain: css("--dim"), oracle: css("--ink"), band: "rgba(158,167,179,.16)", fill: "rgba(86,180,233,.2)" }
    : { swept: "#0072B2", control: "#A84A00", plain: css("--dim"), oracle: css("--ink"), band: "rgba(89,99,110,.14)", fill: "rgba(0,114,178,.16)" };
  // What Plotly would take for markup in a name is text here.
  const text = words => String(words).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const round = value => (Math.abs(value) >= 20 ? value.toFixed(1) : value.toFixed(3));
  const signed = value => (value < 0 ? "−" : "+") + round(Math.abs(value));
  const range3 = (three, say) => say(three[0]) + (three[1] === null ? "" : ` [${say(three[1])}, ${say(three[2])}]`);
  const colour = (arm, paints) => arm.part === "identity" ? paints.plain : arm.oracle ? paints.oracle : arm.part === "control" ? paints.control : paints.swept;
  const symbol = arm => (arm.part === "identity" ? "diamond" : arm.part === "control" ? "square" : "circle") + (arm.oracle ? "-open" : "");
  const spread = (heights, gap) => {
    const groups = [];
    for (const height of heights) {
      groups.push([height, 1]);
      while (groups.length > 1) {
        const [[one, some], [other, more]] = groups.slice(-2);
        if (other - (more - 1) / 2 * gap - one - (some - 1) / 2 * gap >= gap - 1e-9) break;
        groups.splice(-2, 2, [(one * some + other * more) / (some + more), some + more]);
      }
    }
    return groups.flatMap(([mean, n]) => Array.from({ length: n }, (_, k) => mean + (k - (n - 1) / 2) * gap));
  };
  const hover = (part, arm) => {
    const lines = [`<b>${text(arm.label)}</b>${arm.oracle ? " (was told where the answer is)" : ""}`];
    if (arm.score) lines.push(`${text(part.number)} ${range3(arm.score, round)}`);
    if (arm.gain) lines.push(`difference ${range3(arm.gain, signed)}, all cells considered`);
    if (arm.times !== null) lines.push(`× ${arm.times.toFixed(2)} ${part.cost}`);
    lines.push(`scored ${arm.scored}`);
    return lines.join("<br>");
  };
  const errors = (triples, width, paint) => ({ type: "data", symmetric: false, thickness: width, width: 0, color: paint,
    array: triples.map(t => t[2] === null ? 0 : t[2] - t[0]), arrayminus: triples.map(t => t[1] === null ? 0 : t[0] - t[1]) });
  const base = height => ({
    height, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, dragmode: false,
    font: { family: css("--font") || "sans-serif", size: 12.5, color: css("--ink") }, margin: { l: 60, r: 16, t: 12, b: 48 },
    hoverlabel: { bgcolor: css("--raised"), bordercolor: css("--line"), font: { color: css("--ink") }, align: "left" },
    shapes: [], annotations: [],
  });
  const axis = more => ({ gridcolor: css("--line"), linecolor: css("--line"), zeroline: false, automargin: true, fixedrange: true, ...more });
  const title = words => ({ text: text(words), standoff: 8 });

  function knobs(part, family, width) {
    const panels = part.panels.filter(panel => panel.kind === "knob" && panel.family === family);
    const paints = paint(), columns = Math.min(panels.length, width < 620 ? 1 : width < 900 ? 2 : 3);
    const rows = Math.ceil(panels.length / columns);
    const layout = { ...base(rows * 280 + 30), grid: { rows, columns, pattern: "independent", xgap: .08, ygap: .34 } };
    const levels = part.arms.filter(arm => arm.part !== "swept" && arm.score);
    const members = [...levels, ...panels.flatMap(panel => panel.arms.map(n => part.arms[n]))].filter(arm => arm.score);
    const ends = members.flatMap(arm => arm.score).filter(end => end !== null);
    const low = Math.min(...ends), high = Math.max(...ends), air = .06 * (high - low || 1);
    const traces = [];
    panels.forEach((panel, place) => {
      const id = place ? String(place + 1) : "", arms = panel.arms.map(n => part.arms[n]), keep = arms.map(arm => arm.score !== null);
      const some = list => list.filter((_, n) => keep[n]), xs = some(panel.xs), shown = some(arms), scores = shown.map(arm => arm.score);
      layout["xaxis" + id] = axis({ title: title(panel.knobs[0]), type: panel.numeric ? (panel.log ? "log" : "linear") : "category", showgrid: false,
        ...(panel.numeric && xs.length <= 8 ? { tickvals: xs, ticktext: xs.map(String) } : {}), ...(panel.numeric ? {} : { range: [-.6, xs.length - .4], categoryarray: xs }) });
      layout["yaxis" + id] = axis({ range: [low - air, high + air], ...(place % columns ? { showticklabels: false } : { title: title(part.number) }) });
      if (panel.numeric && xs.length > 2) {
        const open = scores.map(score => score[1] ?? score[0]), shut = scores.map(score => score[2] ?? score[0]);
        traces.push({ x: [...xs, ...[...xs].reverse()], y: [...shut, ...open.reverse()], fill: "toself", fillcolor: paints.fill, line: { width: 0 }, hoverinfo: "skip", xaxis: "x" + id, yaxis: "y" + id, mode: "lines" });
      }
      traces.push({ x: xs, y: scores.map(score => score[0]), mode: panel.numeric && xs.length > 2 ? "lines+markers" : "markers", line: { color: paints.swept, width: 2 },
        marker: { size: 9, color: shown.map(arm => colour(arm, paints)), symbol: shown.map(symbol), line: { width: shown.map(arm => arm.centre ? 2 : arm.oracle ? 2 : 0), color: paints.oracle } },
        ...(panel.numeric && xs.length > 2 ? {} : { error_y: errors(scores, 2, paints.swept) }),
        text: shown.map(arm => hover(part, arm)), hovertemplate: "%{text}<extra></extra>", xaxis: "x" + id, yaxis: "y" + id });
      for (const arm of levels) {
        const where = { xref: `x${id} domain`, yref: "y" + id, x0: 0, x1: 1, layer: "below" };
        if (arm.part === "identity" && arm.score[1] !== null) layout.shapes.push({ ...where, type: "rect", y0: arm.score[1], y1: arm.score[2], fillcolor: paints.band, line: { width: 0 } });
        layout.shapes.push({ ...where, type: "line", y0: arm.score[0], y1: arm.score[0], line: { color: colour(arm, paints), width: 1.3, dash: arm.part === "identity" ? "solid" : "dash" } });
      }
      if (place % columns === columns - 1 || place === panels.length - 1) {
        const sorted = [...levels].sort((a, b) => a.score[0] - b.score[0]);
        const heights = spread(sorted.map(arm => arm.score[0]), (high - low + 2 * air) * 15 / 190);
        sorted.forEach((arm, n) => layout.annotations.push({ xref: `x${id} domain`, yref: "y" + id, x: 1.01, y: heights[n], xanchor: "left", showarrow: false,
          text: text(arm.label.slice(0, 22)), font: { size: 11.5, color: colour(arm, paints) } }));
        layout.margin.r = Math.max(layout.margin.r, 12 + 6.6 * Math.max(0, ...sorted.map(arm => Math.min(22, arm.label.length))));
      }
    });
    return [traces, layout];
  }

  function maps(part, family, width) {
    const panels = part.panels.filter(panel => panel.kind === "map" && panel.family === family);
    const columns = Math.min(panels.length, width < 620 ? 1 : 3), rows = Math.ceil(panels.length / columns);
    const gains = part.arms.some(arm => arm.gain), value = arm => gains ? arm.gain?.[0] ?? null : arm.score?.[0] ?? null;
    const all = panels.flatMap(panel => panel.cells.map(([, , n]) => value(part.arms[n]))).filter(v => v !== null);
    const most = gains ? Math.max(...all.map(Math.abs), 1e-9) : Math.max(...all), least = gains ? -most : Math.min(...all);
    const layout = { ...base(rows * (panels[0].rows.length * 38 + 90) + 40), grid: { rows, columns, pattern: "independent", xgap: .12, ygap: .35 } };
    const scale = gains ? (dark() ? ["#5e4b9c", "#21262d", "#a85b0a"] : ["#998ec3", "#f7f7f7", "#f1a340"]) : dark() ? ["#21262d", "#163c58", "#0b5a8c"] : ["#f7f7f7", "#b5daf1", "#56b4e9"];
    const traces = panels.map((panel, place) => {
      const id = place ? String(place + 1) : "", grid = panel.rows.map(() => panel.columns.map(() => null)), said = grid.map(row => row.map(() => "")), told = grid.map(row => row.map(() => ""));
      for (const [row, column, n, words] of panel.cells) {
        const r = panel.rows.indexOf(row), c = panel.columns.indexOf(column), arm = part.arms[n];
        grid[r][c] = value(arm); said[r][c] = n === part.best ? `<b>${words}</b>` : words; told[r][c] = hover(part, arm);
      }
      layout["xaxis" + id] = axis({ type: "category", title: title(panel.knobs[1] + (panel.held ? ` (${panel.held})` : "")), showgrid: false });
      layout["yaxis" + id] = axis({ type: "category", title: title(panel.knobs[0]), showgrid: false });
      return { type: "heatmap", x: panel.columns, y: panel.rows, z: grid, zmin: least, zmax: most, text: said, texttemplate: "%{text}", customdata: told, hovertemplate: "%{customdata}<extra></extra>", xgap: 2, ygap: 2,
        colorscale: scale.map((shade, n) => [n / 2, shade]), textfont: { color: dark() ? "#ffffff" : "#1f2328" }, showscale: place === 0,
        colorbar: { thickness: 12, outlinewidth: 0, title: { text: gains ? "difference" : text(part.number), side: "right" } }, xaxis: "x" + id, yaxis: "y" + id };
    });
    return [traces, layout];
  }

  function costs(part, width) {
    const paints = paint(), field = part.field, narrow = width < 620, layout = base(440);
    const plain = { label: part.plain, part: "identity", oracle: false, centre: false };
    const arm = spot => spot.arm === null ? plain : part.arms[spot.arm];
    const traces = field.spots.map(spot => ({ x: [spot.x], y: [spot.gain[0]], mode: "markers",
      marker: { size: 10, color: colour(arm(spot), paints), symbol: symbol(arm(spot)), line: { width: arm(spot).oracle || arm(spot).centre ? 2 : 0, color: paints.oracle } },
      error_y: errors([spot.gain], 2, colour(arm(spot), paints)), text: [spot.arm === null ? text(part.plain) : hover(part, arm(spot))], hovertemplate: "%{text}<extra></extra>" }));
    const best = spot => spot.arm !== null && spot.arm === part.best;
    const powers = Array.from({ length: 12 }, (_, n) => n - 4), all = powers.flatMap(n => [1, 2, 5].map(mark => Number((mark * 10 ** n).toPrecision(1))));
    const ticks = all.filter(tick => Math.log10(tick) >= field.x[0] && Math.log10(tick) <= field.x[1]);
    for (const spot of field.spots) {
      if (!spot.label || (narrow && !best(spot) && spot.arm !== null)) continue;
      const aside = narrow && best(spot), [x, y] = aside ? [spot.at[0] - .08, spot.at[1] + .02] : spot.label, ink = colour(arm(spot), paints);
      layout.shapes.push({ type: "line", xref: "paper", yref: "paper", x0: spot.at[0], y0: spot.at[1], x1: x, y1: y, line: { color: ink, width: .8 }, layer: "below" });
      layout.annotations.push({ xref: "paper", yref: "paper", x, y, xanchor: aside || (spot.left && !narrow) ? "right" : "left", yanchor: "middle", showarrow: false, font: { size: 11.5, color: ink },
        text: best(spot) ? `<b>${text(narrow ? spot.name.slice(0, 18) : spot.name)}</b>` : text(spot.name) });
    }
    layout.shapes.push({ type: "line", xref: "paper", x0: 0, x1: 1, y0: 0, y1: 0, line: { color: paints.plain, width: 1 }, layer: "below" });
    layout.xaxis = axis({ type: field.log ? "log" : "linear", range: field.x, title: title(`${part.cost}, × those of ${part.plain}`), tickprefix: "× ", showgrid: false, ...(field.log ? { tickvals: ticks, ticktext: ticks.map(String) } : { nticks: narrow ? 5 : 9 }) });
    layout.yaxis = axis({ range: field.y, title: title(`${part.number}, difference to ${part.plain}`) });
    return [traces, layout];
  }

  function cells(part, width) {
    const paints = paint(), sign = part.better === "higher" ? 1 : -1, narrow = width < 620;
    const arms = part.arms.filter(arm => arm.score).sort((a, b) => sign * (b.score[0] - a.score[0]));
    const gains = arms.some(arm => arm.gain), ys = arms.map((_, n) => n), layout = base(arms.length * 26 + 90);
    const names = arms.map(arm => { const words = text(arm.label.length > 30 && narrow ? arm.label.slice(0, 29) + "…" : arm.label); return part.arms[part.best] === arm ? `<b>${words}</b>` : words; });
    const marker = some => ({ size: 9, color: some.map(arm => colour(arm, paints)), symbol: some.map(symbol) });
    const row = (some, at, key, axes, width, size) => some.map((arm, n) => ({ x: [arm[key][0]], y: [at[n]], mode: "markers", marker: { ...marker([arm]), ...(size ? {} : { opacity: 0 }) },
      error_x: errors([arm[key]], width, colour(arm, paints)), text: [hover(part, arm)], hovertemplate: "%{text}<extra></extra>", ...axes }));
    const left = !gains || !narrow, traces = left ? row(arms, ys, "score", {}, 2, true) : [];
    layout.yaxis = axis({ tickvals: ys, ticktext: names, range: [arms.length - .4, -.6], gridcolor: css("--line") });
    layout.xaxis = axis({ title: title(left ? part.number : `difference to ${part.plain}`), domain: gains && left ? [0, .48] : [0, 1], showgrid: false });
    const plain = arms.find(arm => arm.part === "identity");
    if (left && plain && plain.score[1] !== null) layout.shapes.push({ type: "rect", xref: "x", x0: plain.score[1], x1: plain.score[2], yref: "paper", y0: 0, y1: 1, fillcolor: paints.band, line: { width: 0 }, layer: "below" });
    if (gains) {
      const some = arms.filter(arm => arm.gain), at = some.map(arm => arms.indexOf(arm)), axes = left ? { xaxis: "x2", yaxis: "y" } : {};
      traces.push(...row(some, at, "gain", axes, 1, true));
      const own = some.filter(arm => arm.difference);
      traces.push(...row(own, own.map(arm => arms.indexOf(arm)), "difference", axes, 4, false));
      if (left) layout.xaxis2 = axis({ title: title(`difference to ${part.plain}`), domain: [.52, 1], anchor: "y", showgrid: false });
      layout.shapes.push({ type: "line", xref: left ? "x2" : "x", x0: 0, x1: 0, yref: "paper", y0: 0, y1: 1, line: { color: paints.plain, width: 1 }, layer: "below" });
    }
    return [traces, layout];
  }

  function drawings(part) {
    const found = [];
    for (const family of [...new Set(part.panels.map(panel => panel.family))]) {
      const map = part.panels.some(panel => panel.family === family && panel.kind === "map");
      found.push([map ? `${family}: two knobs, * is told apart from 0, all cells considered` : `${family}: each knob; the band is ${part.plain}, the ring the arm around which knobs were varied`, width => (map ? maps : knobs)(part, family, width)]);
    }
    if (part.field) found.push(["Gain against cost; whiskers are 95 % intervals of the paired difference; point at one for its numbers", width => costs(part, width)]);
    found.push([part.models ? "Every model" : "Every cell; right: thick for each difference by itself, thin for all at once", width => cells(part, width)]);
    return found;
  }

  const drawn = [];
  document.querySelectorAll(".plots").forEach(element => {
    for (const [name, draw] of drawings(parts[Number(element.dataset.part)])) {
      const heading = document.createElement("h3"), box = document.createElement("div");
      heading.textContent = name;
      box.setAttribute("role", "img");
      box.setAttribute("aria-label", `${name}. The numbers are in the table below.`);
      element.append(heading, box);
      drawn.push([box, draw]);
    }
  });
  const one = (box, draw) => { box.dataset.width = box.clientWidth; const [traces, layout] = draw(box.clientWidth); return Plotly.react(box, traces, layout, { displayModeBar: false, responsive: true }); };
  const sight = new IntersectionObserver(seen => seen.forEach(({ isIntersecting, target }) => {
    if (isIntersecting) { sight.unobserve(target); one(...drawn.find(([box]) => box === target)); }
  }), { rootMargin: "600px" });
  drawn.forEach(([box]) => { box.style.minHeight = "260px"; sight.observe(box); });
  const again = () => drawn.forEach(([box, draw]) => { if (box.dataset.width) one(box, draw); });
  addEventListener("themechange", again);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
  let wait;
  addEventListener("resize", () => { clearTimeout(wait); wait = setTimeout(() => drawn.forEach(([box, draw]) => { if (box.dataset.width && Number(box.dataset.width) !== box.clientWidth) one(box, draw); }), 150); });
})();
