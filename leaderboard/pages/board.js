// The board: a table (DataTables) of the rows that the page holds, and two plots (plotly) of them.
// Nothing in a row is trusted: words reach the page escaped, numbers as numbers.
(() => {
  "use strict";
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);
  const rows = data.rows.map((cells, place) => {
    const row = { place };
    data.columns.forEach((name, index) => { row[name] = cells[index]; });
    row.theirs = row.kind === "reported";
    return row;
  });
  const about = (row) => data.comparisons[row.comparison - 1];
  const distinct = (values) => [...new Set(values)];
  const MOST = rows.length > 300 ? 50 : 100; // rows to a page of the table
  const DRAWN = 600; // cells of the overview that still have their bars
  const SHOWN = 40; // runs in an interval plot: the best
  const BARRED = 400; // points in the scatter that still have their intervals drawn
  const COSTS = [
    ["tokens", "tokens"], ["calls", "calls"], ["forward_passes", "forward passes"], ["seconds", "seconds"], ["dollars", "dollars"],
  ];

  // ---------------------------------------------------------------- words and numbers

  const escaped = (text) => String(text ?? "").replace(/[&<>"']/g, (letter) => `&#${letter.charCodeAt(0)};`);
  const broken = (text) => escaped(text).replace(/[:,=_/]/g, "$&<wbr>"); // where a name may go on in the next line
  const named = (text) => `<bdi class="name" dir="auto"${text && text.length > 60 ? ` title="${escaped(text.slice(0, 2000))}"` : ""}>${broken(text)}</bdi>`;
  const cut = (text, most) => { const letters = [...String(text ?? "")]; return letters.length > most ? `${letters.slice(0, most - 1).join("")}…` : letters.join(""); };
  const plain = (text, most) => escaped(cut(String(text ?? "").replace(/[\u0000-\u001f\u200e\u200f\u2028-\u202e\u2066-\u2069]/g, " "), most));
  const known = (value) => value !== null && value !== undefined;
  const fixed = (value, sign = "") => (sign && value >= 0 ? "+" : "") + value.toFixed(3).replace("-", "−");
  const interval = (low, high, sign = "") => known(low) && known(high) ? `[${fixed(low, sign)}, ${fixed(high, sign)}]` : "";
  const times = (value) => known(value) ? `× ${value.toFixed(value >= 9.95 ? 0 : value >= 0.995 ? 1 : 2)}` : "";
  const dollars = (value) => !known(value) ? "unknown" : value === 0 ? "0" : value.toFixed(value >= 1 ? 2 : value >= 0.001 ? 4 : 6);
  const chance = (value) => !known(value) ? "" : value < 0.0001 ? "< .0001" : value.toFixed(value >= 0.01 ? 3 : 4).replace(/^0/, "");
  function amount(value) {
    if (!known(value)) return "";
    for (const [size, name] of [[1e6, "M"], [1e3, "k"]]) {
      if (value >= 0.9995 * size) return `${(value / size).toFixed(value < 9.95 * size ? 1 : 0)}${name}`;
    }
    if (Number.isInteger(value)) return String(value);
    return value.toFixed(value >= 99.95 ? 0 : value >= 9.95 ? 1 : value >= 0.995 ? 2 : 3);
  }
  const unranked = (row) => row.theirs || known(row.rank) ? "" : row.note || (known(row.score) ? "not ranked" : "score undefined");
  function verdict(row) {
    if (!known(row.p_holm) || row.p_holm >= 0.05 || !row.difference) return "";
    return (row.difference > 0) === about(row).higher_is_better ? "good" : "bad";
  }

  // ---------------------------------------------------------------- bars in cells

  const scales = data.comparisons.map((_, index) => {
    const mine = rows.filter((row) => row.comparison === index + 1 && !row.theirs);
    const range = (values, ...always) => {
      const seen = values.filter(known).concat(always);
      const [low, high] = [seen.reduce((a, b) => Math.min(a, b), Infinity), seen.reduce((a, b) => Math.max(a, b), -Infinity)];
      return high > low ? (value) => 2 + 96 * (value - low) / (high - low) : () => 50;
    };
    return {
      score: range(mine.flatMap((row) => [row.low, row.score, row.high])),
      difference: range(mine.flatMap((row) => [row.difference_low, row.difference, row.difference_high]), 0),
    };
  });
  function bar(scale, value, low, high, rule, tone) {
    if (!known(value)) return "";
    const at = (number) => `${scale(number).toFixed(1)}%`;
    const range = known(low) && known(high) ? `<i class="range" style="left:${at(low)};width:${(scale(high) - scale(low)).toFixed(1)}%"></i>` : "";
    return `<span class="bar ${tone}" aria-hidden="true">${known(rule) ? `<i class="rule" style="left:${at(rule)}"></i>` : ""}${range}<i class="dot" style="left:${at(value)}"></i></span>`;
  }
  const best = data.comparisons.map((_, index) => rows.find((row) => row.comparison === index + 1 && row.rank === 1)?.score);
  function score(row, small = false) {
    if (row.theirs) return `<span class="value">${escaped(Number(row.reported.toPrecision(7)))}${row.unit && row.unit !== "points" ? ` ${escaped(row.unit)}` : ""}</span>`;
    if (!known(row.score)) return '<span class="dim">undefined</span>';
    const top = known(row.rank) && row.score === best[row.comparison - 1] ? " best" : "";
    const rule = known(row.difference) ? row.score - row.difference : null;
    const value = `<span class="value${top}">${fixed(row.score)}</span>`;
    return small ? value : `${value} <small>${interval(row.low, row.high)}</small>${bar(scales[row.comparison - 1].score, row.score, row.low, row.high, rule, "")}`;
  }
  const source = (row) => escaped(`${[row.paper, row.venue].filter(Boolean).join(", ")}; ${row.confidence}`);
  function difference(row, small = false, bars = true) {
    if (!known(row.difference)) return "";
    const tone = verdict(row);
    const value = `<span class="value ${tone}">${fixed(row.difference, "+")}</span>`;
    const drawn = bar(scales[row.comparison - 1].difference, row.difference, row.difference_low, row.difference_high, 0, tone);
    return small ? value + (bars ? drawn : "") : `${value} <small>${interval(row.difference_low, row.difference_high, "+")}</small>${drawn}`;
  }
  const cost = (name, shown = amount) => (row) => row.theirs || (!known(row[name]) && name !== "dollars") ? "" : `${shown(row[name])}<small class="times">${times(row[`times_${name}`])}</small>`;
  const tag = (text) => text ? ` <span class="tag">${escaped(text)}</span>` : "";

  // ---------------------------------------------------------------- the table

  function details(row) {
    const compared = about(row);
    const costs = COSTS.map(([name, words]) => [`${words} per sample`, known(row[name]) ? `${name === "dollars" ? dollars(row[name]) : amount(row[name])} ${times(row[`times_${name}`])}` : "unknown"]);
    const shared = [["task", compared.title], ["version", compared.version], ["split", compared.split], ["measured", `${compared.metric} ${compared.number}`], ["variant", row.variant], ["model", row.model], ["method", row.method]];
    const own = row.theirs
      ? [["reported", `${row.reported} ${row.unit}`], ["setting", row.setting], ["paper", [row.paper, row.venue, row.table && `table ${row.table}`].filter(Boolean).join(", ")], ["arXiv", row.arxiv], ["how it is known", row.confidence], ["via", row.via], ["note", row.note]]
      : [["score", known(row.score) ? `${fixed(row.score)} ${interval(row.low, row.high)}` : "undefined"],
        ["difference", known(row.difference) ? `${fixed(row.difference, "+")} ${interval(row.difference_low, row.difference_high, "+")}` : row.method === "none" ? "this is the model without a method" : "unknown"],
        ["p", chance(row.p)], ["p, Holm", chance(row.p_holm)], ["scored", `${row.scored} of ${row.n}`], ["not ranked", unranked(row)],
        ...costs, ["tokens in + out", known(row.tokens_in) && known(row.tokens_out) ? `${amount(row.tokens_in)} + ${amount(row.tokens_out)}` : ""], ["dollars in all", dollars(row.dollars_in_all)],
        ["fidelity", row.fidelity], ["started", row.date], ["commit", row.commit], ["run", row.id], ["path", row.run]];
    const list = document.createElement("dl");
    list.className = "details";
    for (const [term, words] of [...shared, ...own]) {
      if (!known(words) || words === "") continue;
      const pair = list.appendChild(document.createElement("div"));
      pair.appendChild(document.createElement("dt")).textContent = term;
      const said = pair.appendChild(document.createElement("dd")).appendChild(document.createElement("bdi"));
      said.dir = "auto";
      said.textContent = words;
    }
    return list;
  }

  // Missing numbers come last, whichever way the others are sorted.
  const last = (a, b, sign) => known(a) && known(b) ? sign * (a - b) : known(a) ? -1 : known(b) ? 1 : 0;
  DataTable.ext.type.order["number-asc"] = (a, b) => last(a, b, 1);
  DataTable.ext.type.order["number-desc"] = (a, b) => last(a, b, -1);
  DataTable.ext.errMode = "throw";

  const number = (title, name, display, className) => ({
    title, data: null, type: "number", className: `number ${className}`, orderSequence: ["desc", "asc"],
    render: (_, kind, row) => kind === "display" ? display(row) : kind === "sort" || kind === "type" ? row[name] ?? null : "",
  });
  const words = (title, name, display, className) => ({
    title, data: null, className, type: "string", render: (_, kind, row) => kind === "display" ? display(row) : String(row[name] ?? ""),
  });
  const paid = rows.some((row) => !row.theirs && row.dollars_in_all !== 0);
  const has = (name) => rows.some((row) => known(row[name]) && row[name] > 0);
  const linked = rows.some((row) => row.page);
  const one = data.comparisons.length === 1;
  const models = distinct(rows.filter((row) => !row.theirs).map((row) => row.model));
  const alone = models.length === 1 && !rows.some((row) => row.theirs); // one model: told once, not in every row
  const columns = [
    { title: "comparison", data: "comparison", visible: false, type: "num" },
    { ...number("#", "place", (row) => row.theirs ? "" : known(row.rank) ? String(row.rank) : "–", "rank"), orderSequence: ["asc", "desc"] },
    ...(alone ? [] : [words("model", "model", (row) => named(row.model), "k4")]),
    words("method", "method", (row) => `${alone ? "" : `<bdi class="name under">${broken(row.model)}</bdi>`}${named(row.method || "not named")}${tag(unranked(row))}${tag(known(row.rank) ? row.note : "")}${row.theirs ? `${tag("reported")} <small class="narrow">${source(row)}</small>` : ""}`, "method"),
    number(one ? data.comparisons[0].number : "score", "score", (row) => `${score(row)}<span class="under">${difference(row)}</span>`, "measured"),
    number("difference", "difference", (row) => row.theirs ? `<small class="source">${source(row)}</small>` : difference(row), "measured k3"),
    { ...number("p, Holm", "p_holm", (row) => chance(row.p_holm), "k5"), orderSequence: ["asc", "desc"] },
    number("scored", "scored", (row) => row.theirs ? "" : `${row.scored} <small>of ${row.n}</small>`, "k5"),
    ...(has("calls") ? [number("calls", "calls", cost("calls"), "k6")] : []),
    ...(has("tokens") ? [number("tokens", "tokens", cost("tokens"), "k4")] : []),
    ...(has("forward_passes") ? [number("passes", "forward_passes", cost("forward_passes"), "k7")] : []),
    number("seconds", "seconds", cost("seconds"), "k6"),
    ...(paid ? [number("$", "dollars", cost("dollars", dollars), "k4")] : []),
    words("date", "date", (row) => escaped((row.date ?? "").slice(0, 10)), "k7 date"),
    { title: '<span class="hidden">more</span>', data: null, orderable: false, className: "more", render: (_, kind, row) => kind !== "display" ? "" : `${row.page ? `<a href="${escaped(row.page)}">samples</a> ` : ""}<button type="button" aria-expanded="false">more</button>` },
  ];

  const filters = { task: "", model: "", method: "", kind: "" };
  let sought = [];
  const spoken = (row) => [about(row).title, about(row).metric, row.model, row.method, row.id, row.note, row.date, row.commit, row.fidelity, row.paper, row.venue, row.kind].filter(Boolean).join(" ").toLowerCase();
  const kinds = {
    ranked: (row) => known(row.rank), "not ranked": (row) => !row.theirs && !known(row.rank), "reported by papers": (row) => row.theirs,
  };
  const inTask = (row) => !filters.task || row.comparison === Number(filters.task);
  const fits = (row) => (!filters.model || row.model === filters.model)
    && (!filters.method || row.method === filters.method) && (!filters.kind || kinds[filters.kind](row)) && sought.every((word) => spoken(row).includes(word));

  const table = new DataTable("#board", {
    data: rows, columns, deferRender: true, autoWidth: false, pageLength: MOST, lengthMenu: [25, 50, 100, 500],
    order: [[1, "asc"]], orderFixed: { pre: [[0, "asc"]] },
    layout: { topStart: null, topEnd: null, bottomStart: rows.length > 25 ? ["info", "pageLength"] : "info", bottomEnd: rows.length > 25 ? "paging" : null },
    language: { info: "_START_ to _END_ of _TOTAL_ rows", infoFiltered: "(of _MAX_)", infoEmpty: "No rows", zeroRecords: "No run fits these filters.", emptyTable: "No runs with scores.", lengthMenu: "_MENU_ to a page" },
    rowGroup: {
      dataSrc: "comparison",
      startRender: (_, group) => {
        const compared = data.comparisons[group - 1];
        const cell = document.createElement("span");
        cell.innerHTML = `<bdi class="name">${escaped(compared.title)}</bdi> <small>${escaped(compared.facts)}${alone ? `; model <bdi>${escaped(models[0])}</bdi>` : ""}</small>`;
        return cell;
      },
    },
    createdRow: (element, row) => {
      if (row.theirs) element.classList.add("reported");
      else if (!known(row.rank)) element.classList.add("unranked");
    },
  });
  table.search.fixed("filters", (_, row) => inTask(row) && fits(row));
  function sortedBy() { // DataTables would tell a screen reader the direction of the comparisons, which stay where they are
    for (const heading of byId("board").querySelectorAll("thead th")) {
      const direction = heading.classList.contains("dt-ordering-asc") ? "ascending" : heading.classList.contains("dt-ordering-desc") ? "descending" : null;
      if (direction) heading.setAttribute("aria-sort", direction);
      else heading.removeAttribute("aria-sort");
    }
  }
  table.on("draw", sortedBy);
  sortedBy();
  byId("board").addEventListener("click", (event) => {
    const button = event.target.closest("td.more button");
    if (!button) return;
    const row = table.row(button.closest("tr"));
    const open = !row.child.isShown();
    if (open) row.child(details(row.data()), "child").show();
    else row.child.hide();
    button.setAttribute("aria-expanded", String(open));
    button.textContent = open ? "less" : "more";
  });

  // ---------------------------------------------------------------- filters

  function options(select, entries, all) {
    for (const [value, words] of [...(all ? [["", all]] : []), ...entries]) {
      const option = select.appendChild(document.createElement("option"));
      option.value = value;
      option.textContent = cut(words, 70);
    }
    select.parentElement.hidden = entries.length < 2;
  }
  const sorted = (name) => distinct(rows.map((row) => row[name] ?? "")).filter(Boolean).sort().map((value) => [value, value]);
  const titles = data.comparisons.map((compared, index) => {
    const twins = data.comparisons.filter((other) => other.title === compared.title).length > 1;
    return [String(index + 1), twins ? `${compared.title}, ${compared.metric} ${compared.number} (${index + 1})` : compared.title];
  });
  options(byId("task"), titles, "all");
  options(byId("model"), sorted("model"), "all");
  options(byId("method"), sorted("method"), "all");
  options(byId("kind"), Object.keys(kinds).filter((kind) => rows.some(kinds[kind])).map((kind) => [kind, kind]), "everything");
  function filtered() {
    for (const name of Object.keys(filters)) filters[name] = byId(name).value;
    sought = byId("words").value.toLowerCase().split(/\s+/).filter(Boolean);
    byId("clear").hidden = !sought.length && !Object.values(filters).some(Boolean);
    table.draw();
    if (filters.task && [...byId("gain-task").options].some((option) => option.value === filters.task)) byId("gain-task").value = filters.task;
    redraw("scatter");
  }
  byId("filters").addEventListener("input", filtered);
  byId("filters").addEventListener("reset", () => setTimeout(filtered));
  byId("filters").addEventListener("submit", (event) => event.preventDefault());

  // ---------------------------------------------------------------- in one look

  function matrix() {
    const own = rows.filter((row) => !row.theirs);
    const lines = new Map();
    for (const row of own) {
      const key = JSON.stringify([row.model, row.method]);
      if (!lines.has(key)) lines.set(key, { model: row.model, method: row.method, cells: new Map() });
      const cells = lines.get(key).cells;
      if (!cells.has(row.comparison)) cells.set(row.comparison, row);
    }
    const order = (line) => [line.model, line.method === "none" ? "" : line.method];
    const listed = [...lines.values()].sort((a, b) => { const [x, y] = [order(a), order(b)]; return x[0] < y[0] ? -1 : x[0] > y[0] ? 1 : x[1] < y[1] ? -1 : x[1] > y[1] ? 1 : 0; });
    const heads = data.comparisons.map((compared) => `<th scope="col" class="number"><bdi class="name">${escaped(compared.title)}</bdi><small>${escaped(compared.number)} ${compared.higher_is_better ? "↑" : "↓"}</small></th>`);
    const bars = listed.length * data.comparisons.length <= DRAWN;
    let shown = null;
    const body = listed.map((line) => {
      const head = line.model === shown ? "" : `<tr class="dtrg-group"><th scope="colgroup" colspan="${heads.length + 1}">${named(line.model)}</th></tr>`;
      shown = line.model;
      const cells = data.comparisons.map((_, index) => {
        const row = line.cells.get(index + 1);
        if (!row) return '<td class="number dim">–</td>';
        const why = unranked(row);
        return `<td class="number${why ? " unranked" : ""}"><span class="cell">${tag(why)}${score(row, true)}${difference(row, true, bars)}</span></td>`;
      });
      return `${head}<tr><th scope="row">${named(line.method)}</th>${cells.join("")}</tr>`;
    });
    byId("matrix").innerHTML = `<thead><tr><th scope="col">method</th>${heads.join("")}</tr></thead><tbody>${body.join("")}</tbody>`;
  }
  if (data.comparisons.length > 1) {
    byId("look").hidden = false;
    if (rows.length <= DRAWN) matrix();
    else { // the table first: it is what a reader of many runs waits for
      byId("look").querySelector(".box").style.height = "1100px";
      requestAnimationFrame(() => setTimeout(matrix));
    }
  }

  // ---------------------------------------------------------------- plots

  const methods = distinct(rows.filter((row) => !row.theirs).map((row) => row.method)).sort();
  const stem = (method) => method.split(" > ").map((link) => link.split(":")[0]).join(" > ");
  const family = methods.length <= 13 ? (method) => method : stem;
  const families = distinct(methods.filter((method) => method !== "none").map(family));
  const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "x", "star", "hexagon"];
  const HUES = 8;
  function colours() {
    const style = getComputedStyle(document.documentElement);
    const of = (name) => style.getPropertyValue(`--${name}`).trim();
    return { ink: of("ink"), dim: of("dim"), line: of("line"), raised: of("raised"), hues: Array.from({ length: HUES }, (_, index) => of(`hue${index}`)) };
  }
  function marked(method, palette) {
    const place = families.indexOf(family(method));
    return place < 0 ? { color: palette.ink, symbol: "circle" } : { color: palette.hues[place % HUES], symbol: SYMBOLS[(place + Math.floor(place / HUES)) % SYMBOLS.length] };
  }
  function layout(palette, more) {
    const axis = { gridcolor: palette.line, linecolor: palette.line, zeroline: false, automargin: true, tickfont: { color: palette.dim }, ...(coarse ? { fixedrange: true } : {}) };
    const { xaxis, yaxis, ...rest } = more;
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", dragmode: coarse ? false : "zoom", hovermode: "closest",
      font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: palette.ink },
      hoverlabel: { bgcolor: palette.raised, bordercolor: palette.line, font: { color: palette.ink, size: 13 }, align: "left" },
      xaxis: { ...axis, ...xaxis }, yaxis: { ...axis, ...yaxis }, ...rest,
    };
  }
  const coarse = matchMedia("(pointer: coarse)").matches;
  const CONFIG = { displaylogo: false, responsive: true, displayModeBar: false };

  function said(row) {
    const lines = [`<b>${plain(row.method, 80)}</b>`, plain(row.model, 80), plain(about(row).title, 80)];
    if (row.theirs) return [...lines, `${row.reported} ${plain(row.unit, 20)}, reported`, plain(`${row.paper}, ${row.venue ?? ""}`, 80), plain(row.confidence, 40)].join("<br>");
    lines.push(`${plain(about(row).number, 40)} ${known(row.score) ? `${fixed(row.score)} ${interval(row.low, row.high)}` : "undefined"}`);
    if (known(row.difference)) lines.push(`difference ${fixed(row.difference, "+")} ${interval(row.difference_low, row.difference_high, "+")}`);
    if (known(row.p)) lines.push(`p ${chance(row.p)}, Holm ${chance(row.p_holm)}`);
    lines.push(`scored ${row.scored} of ${row.n}${unranked(row) ? `; ${plain(unranked(row), 60)}` : ""}`);
    for (const [name, words] of COSTS) {
      if (known(row[name]) && (name !== "dollars" || row[name] > 0)) lines.push(`${words} ${name === "dollars" ? dollars(row[name]) : amount(row[name])} ${times(row[`times_${name}`])}`);
    }
    return [...lines, `run ${plain(row.id, 12)}`].join("<br>");
  }

  const gains = rows.filter((row) => known(row.difference));
  const offered = COSTS.filter(([name]) => gains.some((row) => row[`times_${name}`] > 0));
  const places = (() => { // comparisons with differences; those that share a number also together
    const own = titles.filter(([value]) => gains.some((row) => row.comparison === Number(value)));
    const numbers = new Map();
    for (const [value] of own) {
      const compared = data.comparisons[value - 1];
      const key = `${compared.number}${compared.higher_is_better ? "" : ", lower is better"}`;
      numbers.set(key, [...(numbers.get(key) ?? []), value]);
    }
    const together = [...numbers].filter(([, members]) => members.length > 1).map(([key, members]) => [members.join(" "), `all ${members.length} by ${key}`]);
    return [...together, ...own];
  })();
  options(byId("gain-task"), places, null);
  options(byId("gain-cost"), offered, null);
  byId("gain").hidden = places.length === 0 || offered.length === 0;
  byId("gain").querySelector("form").addEventListener("input", () => redraw("scatter"));

  function scatter(target) {
    const palette = colours();
    const name = byId("gain-cost").value;
    const members = byId("gain-task").value.split(" ").map(Number);
    const chosen = gains.filter((row) => members.includes(row.comparison) && fits(row));
    const points = chosen.filter((row) => row[`times_${name}`] > 0);
    const compared = data.comparisons[members[0] - 1];
    const bars = points.length <= BARRED;
    const xs = points.map((row) => row[`times_${name}`]).concat(1);
    const ticks = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10, 20, 30, 50, 100, 200, 500, 1000];
    const [low, high] = [xs.reduce((a, b) => Math.min(a, b)), xs.reduce((a, b) => Math.max(a, b))].map(Math.log10);
    const pad = Math.max(0.06, 0.06 * (high - low));
    const spread = Math.min(0.015, 0.3 / points.length) * Math.LN10 * (high - low + 2 * pad);
    const beside = new Map(); // how many points of (nearly) this cost stand already
    const apart = new Map(points.map((row) => {
      const key = Math.round(Math.log(row[`times_${name}`]) * 40);
      beside.set(key, (beside.get(key) ?? 0) + 1);
      return [row, [key, beside.get(key) - 1]];
    }));
    const at = (row) => {
      const [key, place] = apart.get(row);
      return row[`times_${name}`] * (bars ? Math.exp(spread * (place - (beside.get(key) - 1) / 2)) : 1);
    };
    const groups = distinct(points.map((row) => family(row.method))).sort();
    const traces = groups.map((group) => {
      const mine = points.filter((row) => family(row.method) === group);
      const { color, symbol } = marked(mine[0].method, palette);
      const open = mine.map((row) => known(row.rank) ? symbol : `${symbol}-open`);
      return {
        type: "scatter", mode: "markers", name: plain(group, 44), x: mine.map(at), y: mine.map((row) => row.difference),
        marker: { color, symbol: open, size: 10, line: { width: 2, color } },
        error_y: bars ? { type: "data", symmetric: false, array: mine.map((row) => known(row.difference_high) ? row.difference_high - row.difference : 0), arrayminus: mine.map((row) => known(row.difference_low) ? row.difference - row.difference_low : 0), color, thickness: 1.2, width: 0 } : undefined,
        hoverinfo: "text", hovertext: mine.map(said),
      };
    });
    const narrow = target.clientWidth < 560;
    const wide = high - low > 1.2 || narrow ? ticks.filter((tick) => /^0?\.?0*[125]0*$/.test(String(tick))) : ticks;
    target.style.height = `${narrow ? 420 + 20 * groups.length : 440}px`;
    Plotly.react(target, traces, layout(palette, {
      margin: { t: 12, r: 12, b: 48, l: 56 }, showlegend: groups.length > 1,
      legend: narrow ? { orientation: "h", y: -0.22, yanchor: "top", x: 0 } : { x: 1.02, y: 1 },
      xaxis: { type: "log", range: [low - pad, high + pad], tickvals: wide, ticktext: wide.map((tick) => `× ${tick}`), tickangle: 0, title: { text: `${offered.find(([key]) => key === name)?.[1] ?? ""}, ${narrow ? "× no method" : "times those without a method"}`, standoff: 8 } },
      yaxis: { autorange: compared.higher_is_better ? true : "reversed", tickformat: "+.3~g", title: { text: `difference in ${plain(compared.number, narrow ? 16 : 40)}${compared.higher_is_better ? "" : narrow ? " ↓" : " (axis turned: up is better)"}`, standoff: 8 } },
      shapes: [
        { type: "line", xref: "paper", x0: 0, x1: 1, y0: 0, y1: 0, line: { color: palette.dim, width: 1, dash: "dot" } },
        { type: "line", yref: "paper", y0: 0, y1: 1, x0: 1, x1: 1, line: { color: palette.dim, width: 1, dash: "dot" } },
      ],
    }), CONFIG);
    const missing = chosen.length - points.length;
    byId("gain-note").textContent = [
      "Dotted lines: the same model without a method. Above and left of a point is better and cheaper. Open: not ranked.",
      bars ? "Bars: 95 % intervals of the paired difference; points of equal cost stand side by side." : `With more than ${BARRED} points intervals are shown on hover only.`,
      missing ? `${missing} without this cost ${missing === 1 ? "is" : "are"} not drawn.` : "",
    ].join(" ");
  }

  function intervals(target, index) {
    const palette = colours();
    const compared = data.comparisons[index];
    const all = rows.filter((row) => row.comparison === index + 1 && !row.theirs && known(row.score));
    const mine = all.slice(0, SHOWN);
    for (const row of all.slice(SHOWN)) if (row.method === "none" && mine.length < SHOWN + 5) mine.push(row);
    const most = mine.reduce((high, row) => Math.max(high, Math.abs(row.score)), 0);
    const reported = rows.filter((row) => row.comparison === index + 1 && row.theirs)
      .map((row) => ({ ...row, score: row.unit === "%" && most <= 1 ? row.reported / 100 : row.unit === "%" || most > 1 ? row.reported : null }))
      .filter((row) => known(row.score));
    const models = distinct(mine.map((row) => row.model));
    const narrow = target.clientWidth < 560;
    const label = narrow ? 22 : 44;
    const ticks = [];
    const shapes = [];
    const lines = [];
    const place = (text) => { ticks.push(text); return -ticks.length; };
    for (const model of models) {
      if (models.length > 1) place(`<b>${plain(model, label)}</b>`);
      const group = mine.filter((row) => row.model === model);
      const top = -ticks.length - 0.5;
      for (const row of group) lines.push({ row, y: place(plain(row.method, label)) });
      const identity = group.find((row) => row.method === "none");
      if (identity && group.length > 1) shapes.push({ type: "line", x0: identity.score, x1: identity.score, y0: top, y1: -ticks.length - 0.5, line: { color: palette.dim, width: 1, dash: "dot" } });
    }
    if (reported.length) place("<b>reported by papers</b>");
    for (const row of reported) lines.push({ row, y: place(plain(`${row.method || "?"}, ${row.model ?? ""}`, label)) });
    const colour = ({ row }) => row.theirs ? palette.dim : known(row.rank) ? marked(row.method, palette).color : palette.dim;
    const widths = ({ row }) => [known(row.high) ? row.high - row.score : 0, known(row.low) ? row.score - row.low : 0];
    const traces = distinct(lines.map(colour)).map((color) => {
      const part = lines.filter((line) => colour(line) === color);
      return {
        type: "scatter", mode: "markers", x: part.map(({ row }) => row.score), y: part.map(({ y }) => y), hoverinfo: "text", hovertext: part.map(({ row }) => said(row)),
        marker: { color, size: 9, symbol: part.map(({ row }) => row.theirs ? "diamond-open" : known(row.rank) ? "circle" : "circle-open"), line: { width: 2, color } },
        error_x: { type: "data", symmetric: false, array: part.map((line) => widths(line)[0]), arrayminus: part.map((line) => widths(line)[1]), color, thickness: 1.6, width: 0 },
      };
    });
    target.style.height = `${76 + 24 * ticks.length}px`;
    Plotly.react(target, traces, layout(palette, {
      margin: { t: 6, r: 14, b: 46, l: 20 }, showlegend: false, shapes,
      xaxis: { title: { text: narrow ? `${plain(compared.number, 20)} ${compared.higher_is_better ? "↑" : "↓"}` : `${plain(compared.number, 40)} (${compared.higher_is_better ? "higher" : "lower"} is better)`, standoff: 6 }, nticks: narrow ? 5 : 9 },
      yaxis: { tickvals: ticks.map((_, row) => -row - 1), ticktext: ticks, range: [-ticks.length - 0.7, -0.3], showgrid: false, tickfont: { color: palette.ink, size: 12 }, ticks: "" },
    }), CONFIG);
  }

  // A plot is drawn when it comes near the window, and again when its colours or rows change.
  const plots = new Map();
  const drawn = new Set();
  function redraw(name) {
    const names = name ? [name] : [...drawn];
    for (const each of names) if (drawn.has(each)) plots.get(each)();
  }
  let loading = null;
  const plotly = () => loading ??= new Promise((done, failed) => {
    const script = document.createElement("script");
    script.src = "assets/plotly.min.js";
    script.onload = done;
    script.onerror = failed;
    document.head.appendChild(script);
  });
  const seen = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting || drawn.has(target.id)) continue;
      seen.unobserve(target);
      plotly().then(() => { drawn.add(target.id); plots.get(target.id)(); target.dataset.drawn = ""; });
    }
  }, { rootMargin: "200px" });

  if (!byId("gain").hidden) {
    plots.set("scatter", () => scatter(byId("scatter")));
    seen.observe(byId("scatter"));
  }
  data.comparisons.forEach((compared, index) => {
    const all = rows.filter((row) => row.comparison === index + 1 && !row.theirs && known(row.score));
    if (!all.length) return;
    const figure = byId("intervals").appendChild(document.createElement("figure"));
    const heading = figure.appendChild(document.createElement("h3"));
    heading.appendChild(document.createElement("bdi")).textContent = compared.title;
    const plot = figure.appendChild(document.createElement("div"));
    plot.id = `interval-${index + 1}`;
    plot.className = "plot";
    plot.style.height = `${76 + 24 * Math.min(all.length, SHOWN)}px`;
    plot.setAttribute("role", "img");
    plot.setAttribute("aria-label", `Scores with 95 % intervals: ${compared.title}; the numbers are in the table.`);
    const left = all.length - SHOWN;
    const notes = ["Dotted: the model without a method. Open: not ranked.", left > 0 ? `The best ${SHOWN} of ${all.length}, and the models without a method.` : "", compared.more ? `${compared.more} more variations of the papers' numbers are in board.csv.` : ""];
    const note = figure.appendChild(document.createElement("figcaption"));
    note.className = "dim";
    note.textContent = notes.filter(Boolean).join(" ");
    plots.set(plot.id, () => intervals(plot, index));
    seen.observe(plot);
  });
  byId("scores").hidden = plots.size === (byId("gain").hidden ? 0 : 1);
  addEventListener("themechange", () => redraw());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraw());
  document.documentElement.dataset.ready = "";
  performance.mark("board-ready");
})();
