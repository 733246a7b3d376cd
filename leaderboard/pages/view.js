// The sample viewer. Data arrive as scripts (data/*.js), one file at a time, because file:// has no fetch.
// Everything a record says is set as text; names that records bring along are values, never keys.
"use strict";
(() => {
  const IMAGES = document.currentScript.dataset.images;
  const MARKS = {
    r: ["✓", "right", "good"], w: ["✗", "wrong", "bad"], p: ["◐", "partly right", "doubt"],
    f: ["!", "failed", "bad"], u: ["•", "no verdict", "dim"], n: ["○", "no record", "dim"],
  };
  const INFERNO = ["000004", "0b0724", "210c4a", "3d0965", "57106e", "71196e", "8a226a", "a32c61", "bc3754",
    "d24644", "e45a31", "f1731d", "f98e09", "fcac11", "f9cb35", "f2ea69", "fcffa4"]
    .map((hex) => [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16)));
  const KEPT = 24; // files of samples held at once
  const byId = (id) => document.getElementById(id);

  // ------------------------------------------------------------ elements

  const words = (text) => String(text).replace(/[\x00-\x08\x0b-\x1f]/g, (letter) => String.fromCharCode(0x2400 + letter.charCodeAt(0)));
  const el = (name, set, ...kids) => {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(set || {})) {
      if (value === undefined || value === null || value === false) continue;
      if (key === "class") made.className = value;
      else if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
      else made.setAttribute(key, value === true ? "" : value);
    }
    made.append(...kids.flat().filter((kid) => kid !== null && kid !== undefined && kid !== "").map((kid) => (typeof kid === "string" ? words(kid) : kid)));
    return made;
  };
  const svg = (name, set, ...kids) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(set)) made.setAttribute(key, value);
    made.append(...kids);
    return made;
  };
  const count = (number) => number.toLocaleString("en");
  const many = (number, one, more = `${one}s`) => `${count(number)} ${number === 1 ? one : more}`;
  const three = (number) => (Number.isInteger(number) ? count(number) : Math.abs(number) >= 1e-3 && Math.abs(number) < 1e6 ? String(+number.toPrecision(4)) : number.toExponential(2));
  const clock = (seconds) => (seconds >= 100 ? `${count(Math.round(seconds))} s` : seconds >= 1 ? `${seconds.toFixed(1)} s` : `${+(seconds * 1000).toPrecision(3)} ms`);
  const glyph = (mark) => el("span", { class: MARKS[mark][2] }, MARKS[mark][0]);
  const address = (file) => `${IMAGES}/${encodeURIComponent(file)}`;

  // ------------------------------------------------------------ data

  let index = null;
  const files = new Map(); // name -> rows, the latest used last
  const waiting = new Map(); // name -> {promise, resolve}

  const load = (name, keep = true) => {
    if (files.has(name)) {
      const rows = files.get(name);
      files.delete(name);
      files.set(name, rows);
      return Promise.resolve(rows);
    }
    if (waiting.has(name)) return waiting.get(name).promise;
    const entry = { keep };
    entry.promise = new Promise((resolve, reject) => {
      entry.resolve = resolve;
      const tag = el("script", { src: `data/${name}.js?${index.version}` });
      tag.addEventListener("load", () => tag.remove());
      tag.addEventListener("error", () => {
        tag.remove();
        waiting.delete(name);
        reject(new Error(`data/${name}.js cannot be read; export the run again`));
      });
      document.head.append(tag);
    });
    waiting.set(name, entry);
    return entry.promise;
  };

  window.fovea = {
    start(found) { index = found; if (document.readyState === "loading") addEventListener("DOMContentLoaded", begin); else begin(); },
    take(name, rows) {
      const entry = waiting.get(name);
      if (!entry) return;
      waiting.delete(name);
      if (entry.keep) {
        files.set(name, rows);
        if (files.size > KEPT) files.delete(files.keys().next().value);
      }
      entry.resolve(rows);
    },
  };

  addEventListener("load", () => {
    if (!index) byId("sample").replaceChildren(el("p", { class: "bad" }, "data/index.js cannot be read; export the run again"));
  });

  const detail = async (place, side) => {
    const { files: at, places } = index.sides[side];
    if (at[place] < 0) return null;
    return (await load(`${"ab"[side]}-${at[place]}`))[places[place]];
  };

  // ------------------------------------------------------------ which samples, in which order

  const state = { which: "all", groups: [], text: "", order: "asked", place: 0 };
  let two = false;
  let shown = new Int32Array(0);
  let texts = null; // per sample, lower case, once a search has asked for it
  let places = null; // id -> place, of runs whose answers are other samples
  let change = null; // two runs: how much better the second is

  const mark = (side, place) => index.sides[side].marks[place];
  const WHICH_ONE = [
    ["all", "All", () => true],
    ["right", "✓ Right", (at) => mark(0, at) === "r"],
    ["partly", "◐ Partly", (at) => mark(0, at) === "p"],
    ["wrong", "✗ Wrong", (at) => mark(0, at) === "w"],
    ["failed", "! Failed", (at) => mark(0, at) === "f"],
    ["unjudged", "• No verdict", (at) => mark(0, at) === "u"],
    ["missing", "○ No record", (at) => mark(0, at) === "n"],
  ];
  const WHICH_TWO = [
    ["all", "All", () => true],
    ["better", "B better", (at) => change[at] > 0],
    ["worse", "B worse", (at) => change[at] < 0],
    ["differ", "Other answer", (at) => differ(at)],
    ["right", "✓ Both right", (at) => mark(0, at) === "r" && mark(1, at) === "r"],
    ["wrong", "✗ Both wrong", (at) => mark(0, at) === "w" && mark(1, at) === "w"],
    ["failed", "! Failed", (at) => mark(0, at) === "f" || mark(1, at) === "f"],
    ["one", "○ In one only", (at) => (mark(0, at) === "n") !== (mark(1, at) === "n")],
  ];
  const differ = (at) => index.same[at] === "0";
  const changes = () => Float64Array.from(index.ids, (_, at) => {
    const [a, b] = index.sides;
    if (a.values[at] === null || b.values[at] === null) return 0;
    return (b.values[at] - a.values[at]) * (b.higher ? 1 : -1);
  });
  const ORDERS = () => [
    ...(two ? [["apart", "Most apart first", (a, b) => rank(b) - rank(a)]] : []),
    ["asked", "As asked", null],
    ...(index.sides.some((side) => side.values.some((value) => value !== null))
      ? [["worst", two ? "B worst first" : "Worst first", (a, b) => worth(a) - worth(b)]] : []),
  ];
  const rank = (at) => Math.abs(change[at]) * 4 + ("fn".includes(mark(0, at)) !== "fn".includes(mark(1, at)) ? 2 : 0) + (differ(at) ? 1 : 0);
  const worth = (at) => {
    const side = index.sides[two ? 1 : 0];
    return side.values[at] === null ? Infinity : side.higher ? side.values[at] : -side.values[at];
  };

  const searchable = async () => {
    if (!texts) {
      const parts = await Promise.all(Array.from({ length: index.texts }, (_, part) => load(`text-${part}`, false)));
      texts = parts.flat().map((text) => text.toLowerCase());
    }
  };

  const choose = () => {
    const [, , holds] = (two ? WHICH_TWO : WHICH_ONE).find(([name]) => name === state.which);
    const wanted = state.text.trim().toLowerCase();
    const grouped = state.groups.map((value, group) => [index.groups[group][2], value]).filter(([, value]) => value >= 0);
    const found = [];
    for (let at = 0; at < index.ids.length; at += 1) {
      if (!holds(at)) continue;
      if (!grouped.every(([of, value]) => of[at].includes(value))) continue;
      if (wanted && texts && !texts[at].includes(wanted)) continue;
      found.push(at);
    }
    const [, , order] = ORDERS().find(([name]) => name === state.order);
    if (order) found.sort((a, b) => { const d = order(a, b); return d || a - b; });
    shown = Int32Array.from(found);
  };

  // ------------------------------------------------------------ the list: only the rows in sight exist

  const list = byId.bind(null, "list");
  let room = null;
  const tall = () => parseFloat(getComputedStyle(document.documentElement).getPropertyValue("--row"));
  const draw = () => {
    const box = list(), high = tall();
    const first = Math.max(0, Math.floor(box.scrollTop / high) - 6);
    const last = Math.min(shown.length, Math.ceil((box.scrollTop + box.clientHeight) / high) + 6);
    const rows = [];
    for (let line = first; line < last; line += 1) rows.push(row(shown[line], line, high));
    if (!shown.length) rows.push(el("p", { class: "empty" }, "No sample is so. Clear the filters to see all."));
    room.replaceChildren(...rows);
    const current = room.querySelector('[aria-selected="true"]');
    if (current) box.setAttribute("aria-activedescendant", current.id); else box.removeAttribute("aria-activedescendant");
  };
  const name = (at) => (index.repeats.length && index.repeats[at] ? `${index.ids[at]} · repeat ${index.repeats[at]}` : index.ids[at]);
  const row = (at, line, high) => {
    const marks = index.sides.map((side) => side.marks[at]);
    const said = index.sides.map((side) => (index.offers && index.questions[placeOf(side.answers[at])]) || side.answers[at]);
    const answers = two && said[0] !== said[1] ? said.map((text) => text || "–").join(" → ") : said.find(Boolean) || "";
    const made = el("div", {
      class: two ? "row two" : "row", role: "option", id: `row-${at}`,
      "aria-selected": at === state.place ? "true" : "false", "aria-posinset": line + 1, "aria-setsize": shown.length,
    },
    el("span", { class: "glyphs", role: "img", "aria-label": marks.map((one) => MARKS[one][1]).join(", then ") }, ...marks.map(glyph)),
    el("p", { dir: "auto" }, answers || (marks[0] === "n" ? "not answered" : "(nothing)")),
    el("p", {}, name(at), index.questions[at] ? ` · ${index.questions[at]}` : ""));
    made.style.top = `${line * high}px`;
    made.addEventListener("click", () => go(at, true));
    return made;
  };
  const reveal = () => {
    const line = shown.indexOf(state.place);
    const box = list(), high = tall();
    if (!room) { room = el("div", { role: "presentation" }); box.append(room); }
    room.style.height = `${shown.length * high}px`;
    if (line >= 0 && (line * high < box.scrollTop || (line + 1) * high > box.scrollTop + box.clientHeight)) {
      box.scrollTop = Math.max(0, line * high - box.clientHeight / 3);
    }
  };

  // ------------------------------------------------------------ the picture and what was done to it

  const layers = new Map(); // name -> whether it is drawn; the map's and the tokens' opacity
  const layer = (key, first) => { if (!layers.has(key)) layers.set(key, first); return layers.get(key); };

  const colour = (part) => {
    const at = Math.min(part * 16, 15.999), low = Math.floor(at), rest = at - low;
    return [0, 1, 2].map((band) => Math.round(INFERNO[low][band] * (1 - rest) + INFERNO[low + 1][band] * rest));
  };
  /** Parts of the greatest (0..1, NaN is clear) as pixels, clearer where they are low. */
  const heat = (canvas, rows, columns, parts) => {
    canvas.width = columns; canvas.height = rows;
    const context = canvas.getContext("2d"), pixels = context.createImageData(columns, rows);
    for (let cell = 0; cell < rows * columns; cell += 1) {
      if (Number.isNaN(parts[cell])) continue;
      pixels.data.set([...colour(parts[cell]), 45 + 210 * parts[cell]], cell * 4);
    }
    context.putImageData(pixels, 0, 0);
  };
  const over = (element, [x1, y1, x2, y2], [width, height]) => {
    Object.assign(element.style, {
      left: `${(100 * x1) / width}%`, top: `${(100 * y1) / height}%`,
      width: `${(100 * (x2 - x1)) / width}%`, height: `${(100 * (y2 - y1)) / height}%`,
    });
    return element;
  };
  const frame = ([x1, y1, x2, y2], stroke, thick, dash, halo = true) => {
    const place = { x: x1, y: y1, width: Math.max(0, x2 - x1), height: Math.max(0, y2 - y1), fill: "none", "vector-effect": "non-scaling-stroke" };
    const line = svg("rect", { ...place, stroke, "stroke-width": thick, ...(dash ? { "stroke-dasharray": dash } : {}) });
    return halo ? [svg("rect", { ...place, stroke: "#ffffff", "stroke-opacity": 0.85, "stroke-width": thick + 2 }), line] : [line];
  };
  const within = ([x1, y1, x2, y2], [width, height]) => [Math.max(0, x1), Math.max(0, y1), Math.min(width, x2), Math.min(height, y2)];
  const tag = (text, fill, [x, y], [width, height], corner) => {
    const made = el("span", { class: "tag" }, text);
    const [red, green, blue] = [1, 3, 5].map((at) => (parseInt(fill.slice(at, at + 2), 16) / 255) ** 2.2);
    const bright = 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.18; // then black is read more easily
    Object.assign(made.style, { background: fill, color: bright ? "#000" : "#fff" });
    if (corner.includes("right")) { made.style.left = "auto"; made.style.right = `${100 - (100 * x) / width}%`; } else made.style.left = `${(100 * x) / width}%`;
    if (corner.includes("bottom")) { made.style.top = "auto"; made.style.bottom = `${100 - (100 * y) / height}%`; } else made.style.top = `${(100 * y) / height}%`;
    return made;
  };

  /** Part of a picture, enlarged, with frames. */
  const look = (picture, box, wide, high, frames = []) => {
    const [x1, y1, x2, y2] = within(box, picture.size);
    if (x2 <= x1 || y2 <= y1) return null;
    const scale = Math.min(wide / (x2 - x1), high / (y2 - y1));
    const made = svg("svg", { viewBox: `${x1} ${y1} ${x2 - x1} ${y2 - y1}`, width: (x2 - x1) * scale, height: (y2 - y1) * scale, class: scale > 3 ? "look coarse" : "look", "aria-hidden": "true" },
      svg("image", { href: address(picture.file), x: 0, y: 0, width: picture.size[0], height: picture.size[1], preserveAspectRatio: "none" }), ...frames);
    return made;
  };

  const gone = (why) => el("div", { class: "gone" }, el("p", {}, "The picture cannot be shown.", el("br"), why));

  const toggle = (key, first, text, swatch, act) => {
    const box = el("input", { type: "checkbox" });
    box.checked = layer(key, first);
    box.addEventListener("change", () => { layers.set(key, box.checked); act(box.checked); });
    act(box.checked);
    const chip = swatch ? el("i", { class: "swatch" }) : null;
    if (chip) chip.style.borderColor = swatch;
    return el("label", {}, box, chip, text);
  };
  const slider = (key, text, act) => {
    const range = el("input", { type: "range", min: 0, max: 100, step: 1, "aria-label": `${text}: opacity in per cent`, class: `opacity-${key}` });
    const says = el("output", {}, "");
    const set = () => { says.textContent = `${range.value} %`; act(range.value / 100); };
    range.value = layer(key, 60);
    range.addEventListener("input", () => { layers.set(key, +range.value); set(); });
    set();
    return el("label", {}, text, range, says);
  };

  const scene = (one) => {
    const figure = el("div", { class: "scene" }), looks = el("div", { class: "looks" });
    const [picture, ...others] = one.pictures || [];
    const notes = [...(one.notes || [])];
    if (!picture) return [null, null];
    if (!picture.file) {
      figure.append(gone(picture.why));
    } else {
      const { size } = picture, [width, height] = size;
      const stage = el("div", { class: "stage" });
      stage.style.aspectRatio = `${width} / ${height}`;
      stage.style.setProperty("--shape", String(width / height));
      const image = el("img", { src: address(picture.file), alt: "The picture that was asked about", decoding: "async", class: Math.max(width, height) < 250 ? "coarse" : null });
      image.addEventListener("error", () => stage.replaceWith(gone(`The browser cannot show ${picture.file}; export the run again.`)));
      const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true" });
      const controls = el("div", { class: "layers" });
      stage.append(image);
      if (one.map) controls.append(...mapped(one.map, stage, size));
      if (one.tokens && one.tokens.often) controls.append(...selected(one.tokens, stage, size));
      stage.append(drawing);
      if (one.parts) outlined(one.parts, stage, drawing, controls, size, notes);
      for (const [number, { name: label, box, kind }] of (one.boxes || []).entries()) {
        const paint = kind === "crop" ? "#0969da" : "#1a7f37";
        const group = svg("g", {}, ...frame(box, paint, 2.5, kind === "crop" ? "" : "6 4"));
        drawing.append(group);
        controls.append(toggle(`${kind}-${number}`, true, (kind === "crop" ? "crop: " : "detected: ") + label, paint, (on) => { group.style.display = on ? "" : "none"; }));
        const part = kind === "crop" && whole(box, size) ? null : look(picture, box, 260, 190);
        if (part && kind === "crop") looks.append(el("figure", {}, part, el("figcaption", {}, `the crop (${label}), ${Math.round(box[2] - box[0])} × ${Math.round(box[3] - box[1])} px`)));
      }
      if (one.region) {
        const pad = 4, [x1, y1, x2, y2] = one.region;
        const group = svg("g", {}, ...frame([x1 - pad, y1 - pad, x2 + pad, y2 + pad], "#e16f24", 2));
        drawing.append(group);
        controls.append(toggle("region", true, "the target’s region", "#e16f24", (on) => { group.style.display = on ? "" : "none"; }));
        const side = Math.max(x2 - x1, y2 - y1, 12) * 2.2, x = (x1 + x2) / 2, y = (y1 + y2) / 2;
        const part = whole(one.region, size) ? null : look(picture, [x - side / 2, y - side / 2, x + side / 2, y + side / 2], 190, 190);
        if (part) looks.append(el("figure", {}, part, el("figcaption", {}, `around the target, which is ${Math.round(x2 - x1)} × ${Math.round(y2 - y1)} px`)));
      }
      figure.append(stage);
      if (controls.children.length) figure.append(controls);
      const scaled = Math.max(width, height) > 1600 ? `, shown at ${count(Math.round((width * 1600) / Math.max(width, height)))} × ${count(Math.round((height * 1600) / Math.max(width, height)))}` : "";
      figure.append(el("p", { class: "under" }, `${count(width)} × ${count(height)} px${scaled} · `, el("span", { class: "mono" }, picture.label)));
    }
    for (const text of notes) figure.append(el("p", { class: "note" }, text));
    if (one.tokens) figure.append(steps(one.tokens));
    for (const [number, other] of others.entries()) {
      if (other.file) {
        const image = el("img", { src: address(other.file), alt: `Picture ${number + 2}`, loading: "lazy" });
        image.style.maxWidth = "100%";
        image.style.maxHeight = "320px";
        figure.append(el("p", { class: "under" }, `Picture ${number + 2} · `, el("span", { class: "mono" }, other.label)), image);
      } else figure.append(gone(other.why));
    }
    return [figure, looks.children.length ? looks : null];
  };
  const whole = (box, size) => box[0] <= 0 && box[1] <= 0 && box[2] >= size[0] && box[3] >= size[1];

  const mapped = (map, stage, size) => {
    const levels = Uint8Array.from(atob(map.levels), (letter) => letter.charCodeAt(0));
    const canvas = over(el("canvas", { class: "map", "aria-hidden": "true" }), map.rectangle, size);
    heat(canvas, map.shape[0], map.shape[1], Array.from(levels, (level) => (level === 255 ? NaN : level / 254)));
    stage.append(canvas);
    const label = `${map.name}${map.of > 1 ? `, 1 of ${map.of}` : ""}`;
    return [slider("map", label, (part) => { canvas.style.opacity = part; }),
      el("span", { class: "scale" }, three(map.range[0]), el("i"), three(map.range[1]))];
  };

  /** Which image tokens were selected: by all decoded tokens together, or by one of them. */
  const selected = (tokens, stage, size) => {
    const [rows, columns] = tokens.shape;
    const canvas = over(el("canvas", { class: "tokens coarse", "aria-hidden": "true" }), tokens.rectangle, size);
    const paint = (often) => { const most = Math.max(1, ...often); heat(canvas, rows, columns, often.map((times) => (times ? times / most : NaN))); };
    paint(tokens.often);
    stage.append(canvas);
    const found = [slider("tokens", "selected image tokens", (part) => { canvas.style.opacity = part; })];
    if (tokens.steps && tokens.steps.length > 1) {
      const says = el("output", {}, "all");
      const range = el("input", { type: "range", min: 0, max: tokens.steps.length, step: 1, value: 0, "aria-label": "Of which decoded token", class: "token" });
      range.addEventListener("input", () => {
        const step = +range.value;
        says.textContent = step ? `${step + 1}, ${count(tokens.counts[step - 1])} selected` : "all";
        const often = new Array(rows * columns).fill(0);
        for (const cell of step ? tokens.steps[step - 1] : []) often[cell] = 1;
        paint(step ? often : tokens.often);
      });
      found.push(el("label", {}, "by decoded token", range, says));
    }
    return found;
  };
  const steps = (tokens) => {
    const { counts } = tokens, most = Math.max(1, ...counts), wide = 4;
    const bars = counts.map((number, at) => svg("rect", { x: at * wide, y: 60 - (58 * number) / most, width: wide - 1, height: (58 * number) / most, fill: "var(--accent)" }));
    const chart = svg("svg", { viewBox: `0 0 ${Math.max(40, counts.length) * wide} 60`, preserveAspectRatio: "none", role: "img", "aria-label": `Image tokens selected per decoded token: ${count(most)} at most` }, ...bars);
    Object.assign(chart.style, { width: "100%", height: "60px", display: "block", borderBottom: "1px solid var(--line)", marginTop: "12px" });
    return el("div", {}, chart, el("p", { class: "under" }, `image tokens selected per decoded token (from the second on): ${count(counts.reduce((a, b) => a + b, 0))} in all, ${count(most)} at most`));
  };

  const outlined = (parts, stage, drawing, controls, size, notes) => {
    if (parts.size.length && (parts.size[0] !== size[0] || parts.size[1] !== size[1])) {
      notes.push(`the parts are of a picture of another size: ${parts.size[0]} × ${parts.size[1]} px`);
      return;
    }
    const tags = [];
    if (parts.proposals.length) {
      const group = svg("g", {});
      const own = parts.proposals.map(([label, box]) => {
        const inner = within(box, size);
        group.append(...frame(inner, "#8c959f", 1.2));
        return tag(label, "#424a53", [inner[0], inner[3]], size, "bottom");
      });
      drawing.append(group);
      stage.append(...own);
      controls.append(toggle("proposals", true, many(parts.proposals.length, "proposal"), "#8c959f", (on) => { for (const each of [group, ...own]) each.style.display = on ? "" : "none"; }));
    }
    const step = 5 * Math.max(size[0] / 740, size[1] / 640);
    const taken = [];
    for (const pairs of [false, true]) {
      const group = svg("g", {}), own = [];
      for (const [number, card] of parts.cards.entries()) {
        if (card.pair !== pairs || !card.box.length) continue;
        const [x1, y1, x2, y2] = within(card.box, size);
        const inset = Math.min((number + 0.6) * step, (x2 - x1) / 3, (y2 - y1) / 3);
        const inner = [x1 + inset, y1 + inset, x2 - inset, y2 - inset];
        const lines = svg("g", { "data-part": number }, ...frame(inner, card.colours[0], 2.2));
        if (pairs) lines.append(...frame(inner, card.colours[card.colours.length - 1], 2.2, "7 7", false));
        group.append(lines);
        const [spot, corner] = free(inner, taken, size, !pairs);
        taken.push(spot);
        own.push(tag(card.name, pairs ? "#1f2328" : card.colours[0], spot, size, corner));
      }
      if (!own.length) continue;
      drawing.append(group);
      stage.append(...own);
      tags.push(...own);
      controls.append(toggle(pairs ? "pairs" : "patches", true, pairs ? many(own.length, "overlapping pair") : many(own.length, "patch", "patches"), pairs ? "#1f2328" : "#0072B2", (on) => { for (const each of [group, ...own]) each.style.display = on ? "" : "none"; }));
    }
  };
  /** Where a label may stand: the corner (of a pair, the middle of an edge) farthest out that has room. */
  const free = ([x1, y1, x2, y2], taken, size, corners) => {
    const x = (x1 + x2) / 2, y = (y1 + y2) / 2;
    const spots = corners
      ? [[[x1, y1], "left top"], [[x2, y1], "right top"], [[x1, y2], "left bottom"], [[x2, y2], "right bottom"]]
      : [[[x, y2], "left bottom"], [[x, y1], "left top"], [[x1, y], "left top"], [[x2, y], "right top"]];
    const far = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1]);
    const scored = spots.map(([spot, corner]) => {
      const near = Math.min(Infinity, ...taken.map((other) => far(spot, other)));
      const out = far(spot, [size[0] / 2, size[1] / 2]);
      return [near < 0.12 * Math.max(...size) ? 1e9 - near : -out, spot, corner];
    });
    const [, spot, corner] = scored.reduce((best, one) => (one[0] < best[0] ? one : best));
    return [spot, corner];
  };

  const cards = (parts, picture) => parts.cards.map((card, number) => {
    const kept = card.sentences.filter(([, , , is]) => is).length;
    const tally = card.sentences.length ? `${kept} kept, ${card.sentences.length - kept} dropped` : "";
    const [x1, y1, x2, y2] = card.box;
    const geometry = [
      card.box.length ? `${Math.round(x2 - x1)} × ${Math.round(y2 - y1)} px at (${Math.round(x1)}, ${Math.round(y1)})` : "",
      card.iou === null ? "" : `IoU ${card.iou.toFixed(2)}`, card.like ? `the same pixels as ${card.like}` : "", tally,
    ].filter(Boolean).join(" · ");
    const strip = el("div", { class: "strip" }, ...card.colours.map((each) => { const made = el("i"); made.style.background = each; return made; }));
    const thumb = picture && picture.file && card.box.length && sameSize(parts, picture) ? look(picture, card.box, 150, 120) : null;
    const made = el("article", { class: "card", "data-card": number }, strip, el("h3", {}, card.name, el("span", {}, geometry)),
      el("div", { class: "body" }, thumb, el("p", { dir: "auto" }, card.caption || "(no caption)")));
    for (const kind of [...new Set(card.sentences.map(([each]) => each))]) {
      const own = card.sentences.filter(([each]) => each === kind);
      const reasons = new Set(own.map(([, , , , reason]) => reason));
      const same = own.length > 1 && reasons.size === 1 && own[0][4];
      made.append(el("h4", {}, same ? `${kind} · ${own[0][4]}` : kind), el("ul", {}, ...own.map(([, ids, text, is, reason, score]) => el("li", { class: "s" },
        el("span", { class: is ? "good" : "dim", role: "img", "aria-label": is ? "kept" : "dropped" }, is ? "✓" : "–"),
        el("span", { class: is ? "" : "dropped" }, text || "(nothing)", ids ? el("span", { class: "mono" }, ` ${ids}`) : null, reason && !same ? el("em", {}, reason) : null),
        el("span", { class: "mono" }, score === null ? "" : score.toFixed(2))))));
    }
    if (card.candidates.length) made.append(el("details", {}, el("summary", {}, `${card.candidates.length} candidates`), el("ol", {}, ...card.candidates.map((text) => el("li", { dir: "auto" }, text)))));
    return made;
  });
  const sameSize = (parts, picture) => !parts.size.length || (parts.size[0] === picture.size[0] && parts.size[1] === picture.size[1]);

  // ------------------------------------------------------------ the words

  const said = (text, more = "") => {
    const long = text.length > 1500;
    return el("div", { class: `said ${more} ${text.length > 240 ? "long" : ""}`, dir: "auto", ...(long ? { tabindex: "0" } : {}) }, text);
  };
  const entry = (title, ...content) => [el("dt", {}, title), el("dd", {}, ...content)];

  const asked = (one) => [
    ...(one.question ? entry("Question", said(one.question)) : []),
    ...(one.prompt ? entry("Prompt, as sent", said(one.prompt)) : []),
    ...(one.system ? entry("System text", said(one.system)) : []),
    ...(one.targets && !one.offers ? entry(one.objects ? "In the picture" : one.targets.length > 1 ? `Reference, any of ${count(one.targets.length)}` : "Reference", targets(one.targets, one)) : []),
  ];
  const targets = (all, one) => {
    const times = new Map();
    for (const each of all) times.set(each, (times.get(each) || 0) + 1);
    if (one.objects) return el("span", {}, all.length ? all.join(", ") : "none of the objects");
    return el("div", { class: "targets" }, ...[...times].map(([text, number]) => el("span", { dir: "auto" }, text, number > 1 ? el("span", { class: "dim" }, ` ×${number}`) : null)));
  };

  const answered = (one, at, side) => {
    const kind = mark(side, at), [sign, means, tone] = MARKS[kind];
    const { number } = index.sides[side], value = index.sides[side].values[at];
    const graded = value === null ? "" : `${means}, ${number} ${three(value)}`;
    const head = el("span", {}, "Answer ", el("span", { class: tone }, `${sign} ${graded || means}`));
    const made = [];
    if (one.failure) {
      made.push(el("dt", {}, el("span", { class: "bad" }, `! Failed: ${one.failure[0]}`)), el("dd", {}, el("div", { class: "fail said" }, one.failure[1])));
      if (one.answer) made.push(...entry("Answer until then", said(one.answer)));
    } else if (one.objects) {
      const [mentions, invented] = one.objects.counted, [marks, bad] = one.objects.marked;
      const text = el("div", { class: "said long", dir: "auto" }, ...one.objects.pieces.map(([piece, is]) => (is ? el("b", { class: is, title: is === "kept" ? "in the picture" : "not in the picture" }, piece) : piece)));
      made.push(el("dt", {}, head), el("dd", {}, text, el("p", { class: "under" }, `${mentions} objects mentioned: `, el("span", { class: "good" }, `${mentions - invented} in the picture`), ", ", el("span", { class: "bad" }, `${invented} not`),
        marks === mentions && bad === invented ? "" : `. Marked word by word: ${marks} and ${bad} of them; the metric, which reads whole sentences, counted otherwise.`)));
    } else made.push(el("dt", {}, head), el("dd", {}, said((one.offers && index.questions[placeOf(one.answer)]) || one.answer || "(nothing)", "answer")));
    if (one.text) made.push(...entry("Raw text, before the task read it", said(one.text)));
    if (one.finish && !one.failure) made.push(...entry("Ended", one.finish));
    if (one.options) made.push(...entry("Options, by negative log-likelihood (tokens)", one.options.map(([nll, tokens]) => `${nll === null ? "–" : nll.toFixed(3)} (${tokens})`).join(" · ")));
    if (one.offers) made.push(...entry("Likeliest first", offers(one)));
    if (one.parts) {
      for (const [title, text] of one.parts.words) made.push(...entry(title, said(text, "long")));
      if (one.parts.warnings.length) made.push(...entry("Warnings", ...one.parts.warnings.map((text) => el("p", { class: "note" }, text))));
    }
    return made;
  };
  const spent = (one) => {
    const made = [];
    if (one.numbers) made.push(...entry("Measures of this sample", el("table", { class: "nums" }, el("tbody", {}, ...one.numbers.flatMap(([metric, values]) => values.map(([what, value], row) => el("tr", {}, el("th", { scope: "row" }, row ? "" : metric), el("td", {}, what), el("td", {}, value === null ? "–" : three(value)))))))));
    const [calls, tokensIn, tokensOut, images, passes, seconds, dollars] = one.usage;
    const parts = [[count(calls), calls === 1 ? "call" : "calls"], [count(tokensIn), "tokens in"], [count(tokensOut), "out"], [count(images), images === 1 ? "picture" : "pictures"], [count(passes), passes === 1 ? "forward pass" : "forward passes"], [seconds === null ? "–" : clock(seconds), ""], [dollars === null ? "cost unknown" : `$${dollars ? dollars.toPrecision(3) : 0}`, ""]];
    made.push(...entry("Usage", el("div", { class: "usage" }, ...parts.map(([number_, what]) => el("span", {}, el("b", {}, number_), what && ` ${what}`)))));
    return made;
  };
  const folds = (one) => [["Trace", one.trace], ["Counts", one.counts], ["What the dataset adds (meta)", one.meta]].filter(([, text]) => text)
    .map(([title, text]) => {
      const made = el("details", {}, el("summary", {}, title), el("pre", { tabindex: "0" }, text));
      made.open = layer(`fold-${title}`, false);
      made.addEventListener("toggle", () => layers.set(`fold-${title}`, made.open));
      return made;
    });

  /** A query's likeliest answers: each a sample of this run, with its words or its picture. */
  const placeOf = (id) => {
    if (!places) places = new Map(index.ids.map((each, at) => [each, at]));
    return places.has(id) ? places.get(id) : -1;
  };
  const offers = (one) => {
    const own = new Set(one.targets || []);
    const line = (id, score) => {
      const at = placeOf(id);
      const what = el("span", { dir: "auto" }, at < 0 ? id : el("a", { href: link(at) }, id), at >= 0 && index.questions[at] ? ` ${index.questions[at]}` : "");
      if (at >= 0 && !index.questions[at]) {
        detail(at, 0).then((found) => {
          const picture = found && (found.pictures || [])[0];
          if (picture && picture.file) what.append(el("img", { src: address(picture.file), alt: id, loading: "lazy" }));
        }, () => {});
      }
      return el("li", {}, el("span", { class: own.has(id) ? "good" : "dim", role: "img", "aria-label": own.has(id) ? "right" : "not its own" }, own.has(id) ? "✓" : "·"), what, el("span", { class: "mono dim" }, score === null ? "" : score.toFixed(3)));
    };
    const shownIds = new Set(one.offers.map(([id]) => id));
    const rest = [...own].filter((id) => !shownIds.has(id));
    return el("div", {}, el("ol", { class: "offers" }, ...one.offers.map(([id, score]) => line(id, score))),
      rest.length ? el("p", { class: "under" }, "Its own, not among these: ", ...rest.slice(0, 20).flatMap((id) => {
        const at = placeOf(id);
        return [at < 0 ? id : el("a", { href: link(at) }, id), at >= 0 && index.questions[at] ? ` ${index.questions[at]}  ` : " "];
      })) : null);
  };

  // ------------------------------------------------------------ one sample

  let turn = 0;
  const present = async () => {
    const mine = (turn += 1);
    const at = state.place;
    const box = byId("sample");
    if (!index.ids.length) { box.replaceChildren(el("p", { class: "dim" }, "This run asked for no sample.")); return; }
    let found;
    try {
      found = await Promise.all(index.sides.map((_, side) => detail(at, side)));
    } catch (error) {
      if (mine === turn) box.replaceChildren(el("p", { class: "bad" }, error.message));
      return;
    }
    if (mine !== turn) return;
    const lost = state.lost ? el("p", { class: "note" }, `The link names ${state.lost}, which these pages do not have.`) : null;
    state.lost = "";
    box.replaceChildren(...[lost].filter(Boolean), head(at), two ? beside(at, found) : alone(at, found[0]));
    box.scrollTop = 0;
    document.title = `${name(at)} · ${document.querySelector("h1").firstChild.textContent.trim()}`;
    ahead();
  };
  const head = (at) => {
    const line = shown.indexOf(at);
    const chips = index.groups.flatMap(([group, values, of]) => of[at].map((value) => el("span", { class: "chip", title: group }, values[value].length > 60 ? `${values[value].slice(0, 59)}…` : values[value])));
    const previous = el("button", { type: "button", "aria-label": "Previous sample", onclick: () => step(-1) }, "‹ Previous");
    const next = el("button", { type: "button", "aria-label": "Next sample", onclick: () => step(1) }, "Next ›");
    previous.disabled = line === 0;
    next.disabled = line === shown.length - 1;
    const drawer = el("button", { type: "button", class: "drawer", "aria-controls": "list", "aria-expanded": "false", onclick: () => {
      const open = byId("panes").classList.toggle("open");
      drawer.setAttribute("aria-expanded", String(open));
      if (open) { reveal(); draw(); scrollTo(0, byId("panes").offsetTop); }
    } }, "List");
    return el("div", { class: "top" }, el("span", { class: "id", role: "heading", "aria-level": "2" }, name(at)), el("span", { class: "where" }, line < 0 ? "not among the filtered" : `${count(line + 1)} of ${count(shown.length)}`), ...chips,
      two ? null : el("span", { class: MARKS[mark(0, at)][2] }, MARKS[mark(0, at)].slice(0, 2).join(" ")),
      two && change[at] ? el("span", { class: change[at] > 0 ? "good" : "bad" }, change[at] > 0 ? "B is better" : "B is worse") : null,
      el("span", { class: "step" }, previous, drawer, next));
  };
  const NOT = "This run has no record of the sample: it was not asked, or the run did not get there.";
  const alone = (at, one) => {
    if (!one) return el("p", { class: "dim" }, NOT);
    const [picture, looks] = scene(one);
    const rest = [el("dl", {}, ...spent(one)), ...folds(one)];
    const text = el("div", { class: "words" }, el("dl", {}, ...asked(one), ...answered(one, at, 0)), ...(one.parts ? [] : rest));
    const left = looks || (one.parts ? el("div", { class: "looks" }, el("div", { class: "rest" }, ...rest)) : null);
    const made = el("div", {}, el("div", { class: picture ? "one" : "" }, picture, text, left));
    if (one.parts) made.append(partly(one));
    return made;
  };
  const partly = (one) => el("div", {}, el("div", { class: "cards" }, ...cards(one.parts, (one.pictures || [])[0])), one.parts.more ? el("p", { class: "under" }, `… and ${count(one.parts.more)} more parts`) : null);
  const beside = (at, found) => {
    const made = el("div", {});
    const both = found.filter(Boolean).map((one) => asked(one).map((each) => each.textContent).join("\n"));
    const same = both.length === 2 && both[0] === both[1];
    if (same) made.append(el("dl", { class: "shared" }, ...asked(found[0])));
    made.append(el("div", { class: "pair" }, ...found.map((one, side) => {
      const run = document.querySelectorAll(".run")[side];
      const letter = run.querySelector(".letter").cloneNode(true), title = run.querySelector("b").textContent;
      const box = el("div", { class: "side" }, el("h2", {}, letter, ` ${title}`));
      if (!one) box.append(el("p", { class: "dim" }, NOT));
      else box.append(...[el("dl", {}, ...(same ? [] : asked(one)), ...answered(one, at, side)), ...scene(one), el("dl", {}, ...spent(one)), ...folds(one), one.parts ? partly(one) : null].filter(Boolean));
      return box;
    })));
    return made;
  };
  /** The next sample's data and picture, so that going on does not wait. */
  const ahead = () => {
    const next = shown[shown.indexOf(state.place) + 1];
    if (next === undefined) return;
    detail(next, 0).then((one) => {
      const picture = one && (one.pictures || [])[0];
      if (picture && picture.file) new Image().src = address(picture.file);
    }, () => {});
  };

  // ------------------------------------------------------------ the address: filters and sample

  const link = (at) => {
    const found = new URLSearchParams();
    if (state.which !== "all") found.set("which", state.which);
    state.groups.forEach((value, group) => { if (value >= 0) found.append("in", `${index.groups[group][0]}\t${index.groups[group][1][value]}`); });
    if (state.text) found.set("text", state.text);
    if (state.order !== ORDERS()[0][0]) found.set("order", state.order);
    if (at !== undefined && index.ids.length) {
      found.set("id", index.ids[at]);
      if (index.repeats.length && index.repeats[at]) found.set("repeat", index.repeats[at]);
    }
    return `#${found}`;
  };
  const remember = () => {
    const hash = link(state.place);
    if (hash !== location.hash) { try { history.replaceState(null, "", hash); } catch { location.replace(hash); } }
  };
  const recall = () => {
    const asked_ = new URLSearchParams(location.hash.slice(1));
    const known = (options, value) => (options.some(([each]) => each === value) ? value : options[0][0]);
    state.which = known(two ? WHICH_TWO : WHICH_ONE, asked_.get("which"));
    state.order = known(ORDERS(), asked_.get("order"));
    state.text = asked_.get("text") || "";
    state.groups = index.groups.map(([group, values]) => {
      const wanted = asked_.getAll("in").map((each) => each.split("\t")).find(([each]) => each === group);
      return wanted ? values.indexOf(wanted.slice(1).join("\t")) : -1;
    });
    const id = asked_.get("id"), repeat = +(asked_.get("repeat") || 0);
    const at = id === null ? -1 : index.ids.findIndex((each, place) => each === id && (index.repeats[place] || 0) === repeat);
    state.lost = id !== null && at < 0 ? id : "";
    return at;
  };

  // ------------------------------------------------------------ controls

  const update = async (keep = true) => {
    if (state.text && !texts) {
      byId("count").textContent = "reading the texts …";
      try { await searchable(); } catch (error) { byId("count").textContent = error.message; return; }
    }
    choose();
    if ((!keep || !shown.includes(state.place)) && shown.length) state.place = shown[0];
    controls();
    list().scrollTop = 0;
    reveal();
    draw();
    remember();
    present();
  };
  const controls = () => {
    for (const button of byId("marks").children) button.setAttribute("aria-pressed", String(button.dataset.which === state.which));
    state.groups.forEach((value, group) => { byId("groups").children[group].value = value; });
    byId("order").value = state.order;
    if (byId("text").value !== state.text) byId("text").value = state.text;
    byId("count").textContent = shown.length === index.ids.length ? `${count(shown.length)} samples` : `${count(shown.length)} of ${count(index.ids.length)}`;
    byId("clear").hidden = state.which === "all" && !state.text && state.groups.every((value) => value < 0);
  };
  const go = (at, keepDrawer) => {
    state.place = at;
    if (keepDrawer && innerWidth <= 900) byId("panes").classList.remove("open");
    reveal();
    draw();
    remember();
    present();
  };
  const step = (by) => {
    const line = shown.indexOf(state.place);
    const next = line < 0 ? 0 : line + by;
    if (next >= 0 && next < shown.length) go(shown[next]);
  };

  const begin = () => {
    two = index.sides.length > 1;
    if (two) change = changes();
    const which = (two ? WHICH_TWO : WHICH_ONE).map(([key, text, holds]) => [key, text, index.ids.reduce((sum, _, at) => sum + holds(at), 0)]);
    byId("marks").append(...which.filter(([key, , number]) => key === "all" || number).map(([key, text, number]) => {
      const button = el("button", { type: "button", "data-which": key, "aria-pressed": "false", onclick: () => { state.which = key; update(); } }, text, el("span", {}, count(number)));
      return button;
    }));
    byId("groups").append(...index.groups.map(([group, values, of], place) => {
      const numbers = new Array(values.length).fill(0);
      for (const each of of) for (const value of each) numbers[value] += 1;
      const select = el("select", { "aria-label": group.replace(/_/g, " ") }, el("option", { value: "-1" }, `any ${group.replace(/_/g, " ")}`), ...values.map((value, number) => el("option", { value: number }, `${value.length > 60 ? `${value.slice(0, 59)}…` : value} (${count(numbers[number])})`)));
      select.addEventListener("change", () => { state.groups[place] = +select.value; update(); });
      return select;
    }));
    byId("order").append(...ORDERS().map(([key, text]) => el("option", { value: key }, text)));
    byId("order").addEventListener("change", () => { state.order = byId("order").value; update(false); });
    byId("text").addEventListener("input", () => { state.text = byId("text").value; update(); });
    byId("clear").addEventListener("click", () => { Object.assign(state, { which: "all", text: "", groups: state.groups.map(() => -1) }); update(); });
    list().addEventListener("scroll", () => requestAnimationFrame(draw), { passive: true });
    addEventListener("resize", () => { reveal(); draw(); });
    addEventListener("hashchange", () => { if (location.hash !== link(state.place)) arrive(); });
    addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const typing = event.target.closest && event.target.closest("input, select, textarea");
      if (typing && event.target === byId("text") && (event.key === "Escape" || event.key === "Enter")) { list().focus(); return; }
      if (typing && !(event.target.type === "checkbox")) return;
      const by = { j: 1, ArrowRight: 1, k: -1, ArrowLeft: -1 }[event.key] || (event.target === list() ? { ArrowDown: 1, ArrowUp: -1 }[event.key] : 0);
      if (by) { event.preventDefault(); step(by); }
      if (event.key === "/") { event.preventDefault(); byId("text").focus(); }
      if (event.key === "m") {
        const range = document.querySelector(".opacity-map, .opacity-tokens");
        if (range) { const off = +range.value > 0; if (off) layers.set("before", +range.value); range.value = off ? 0 : layers.get("before") || 60; for (const each of document.querySelectorAll(".opacity-map, .opacity-tokens")) { each.value = range.value; each.dispatchEvent(new Event("input")); } }
      }
    });
    byId("bar").hidden = false;
    arrive();
  };
  const arrive = () => {
    const wanted = recall();
    state.place = Math.max(0, wanted);
    choose();
    if (wanted < 0 && shown.length) state.place = shown[0];
    if (state.text && !texts) { const place = wanted; update().then(() => { if (place >= 0) go(place); }); return; }
    controls();
    reveal();
    draw();
    remember();
    present();
  };
})();
