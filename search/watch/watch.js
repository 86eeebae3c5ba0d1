import { bar, count, curves, duration, figure, forest, h } from "./figures.js";

/** Milliseconds between two questions to the server. */
const EVERY = 1500;

const by = (id) => document.getElementById(id);
const part = (name) => document.querySelector(`[data-part="${name}"]`);
const sum = (values) => values.reduce((total, value) => total + value, 0);

/** What each part showed last: what has not changed is not drawn anew. */
const shown = new Map();
let tag = "";
/** What the server's clock is ahead of ours. */
let ahead = 0;
let last = null;

function draw(name, data, make) {
  const text = JSON.stringify(data);
  if (shown.get(name) === text) return;
  shown.set(name, text);
  part(name).replaceChildren(...[make(data)].flat().filter(Boolean));
}

const since = (time, words = (text) => text) => {
  const element = h("span", { "data-since": time });
  element.words = words;
  tick(element);
  return element;
};

function tick(element) {
  const seconds = (Date.now() + ahead - Number(element.dataset.since)) / 1000;
  const text = element.words(duration(seconds));
  if (element.textContent !== text) element.textContent = text;
}

const swatch = (colour) => h("i", { class: "swatch", "--colour": colour });
const nothing = (words) => h("p", { class: "note" }, words);

const PHASES = {
  waiting: ["plain", "waiting"], reading: ["plain", "reading"], running: ["good", "running"],
  silent: ["plain", "no sign of its driver"], stopped: ["caution", "stopped"],
  finished: ["good", "finished"], gone: ["caution", "directory gone"],
};

function head(state) {
  const [kind, words] = PHASES[state.phase];
  by("phase").className = `phase ${kind} ${state.phase}`;
  by("phase").textContent = words;
  by("name").textContent = state.name || state.place;
  by("about").textContent = state.name ? `${state.dataset} in ${state.place}. ${state.words}` : state.words;
  by("trouble").textContent = state.trouble || "";
  by("trouble").classList.toggle("off", !state.trouble);
  by("board").classList.toggle("off", !state.name);
  by("tiles").classList.toggle("off", !state.name);
  const done = state.totals ? Math.floor((100 * state.totals.ended) / Math.max(1, state.totals.target)) : 0;
  document.title = state.name ? `${done} % ${state.name} - anomtune watch` : "anomtune watch";
}

function tile(title, value, note, more = null, kind = "") {
  return h("div", { class: `tile ${kind}` },
    h("span", { class: "tile-title" }, title), h("span", { class: "tile-value" }, value),
    more, h("span", { class: "tile-note" }, note));
}

function tiles({ totals, left, late, last: when, hours, phase, confirms }) {
  const open = totals.target - totals.ended;
  const known = [`${count(totals.complete)} complete`];
  for (const name of ["pruned", "failed", "running", "interrupted"]) {
    if (totals[name]) known.push(`${count(totals[name])} ${name}`);
  }
  const segments = [
    [totals.complete, "complete", `${totals.complete} complete`],
    [totals.pruned, "pruned", `${totals.pruned} pruned`],
    [totals.failed, "failed", `${totals.failed} failed`],
  ];
  const found = [
    tile("Trials", hours ? count(totals.ended) : `${count(totals.ended)} / ${count(totals.target)}`,
      known.join(", "), hours ? null : bar(segments, totals.target), "wide"),
  ];
  if (confirms) {
    const failed = totals.confirm_failed ? `, ${totals.confirm_failed} failed` : "";
    found.push(tile("Confirm runs", `${count(totals.confirmed)} / ${count(totals.confirm_target)}`,
      (open > 0 ? "at most, until the search has ended" : "with other seeds, on held-out images") + failed,
      bar([[totals.confirmed - totals.confirm_failed, "complete", `${totals.confirmed} confirmed`],
        [totals.confirm_failed, "failed", `${totals.confirm_failed} failed`]], totals.confirm_target)));
  }
  let time = left === null ? "not known" : duration(left);
  let note = left === null ? "no run tells yet how long one takes" : "about, if as many go on at once as now";
  if (late) note = `${late} running longer than expected`;
  if (phase === "finished") [time, note] = ["none", "all runs have ended"];
  if (phase === "stopped") [time, note] = ["-", "nothing runs"];
  if (phase === "gone" || phase === "reading") [time, note] = ["-", ""];
  found.push(tile("Time left", time, note));
  if (hours) {
    found.push(tile("Budget", `${(hours.spent / 3600).toFixed(1)} / ${hours.of} h`, "hours spent",
      bar([[hours.spent, "complete", "spent"]], 3600 * hours.of)));
  }
  found.push(tile("Last result", when === null ? "none yet" : since(when), when === null ? "" : "ago"));
  return found;
}

function joined(state, category) {
  return category.studies.map((study, index) => ({ ...study,
    method: state.methods[index].name, colour: state.methods[index].colour }));
}

function leaders(state) {
  const all = state.categories.flatMap((category) => category.studies)
    .filter((study) => study.value !== null)
    .flatMap((study) => [study.value, study.low, study.test]).filter((value) => value !== null);
  const start = Math.min(0.9, Math.floor(Math.min(1, ...all) * 10) / 10);
  const one = (category) => {
    const { verdict } = category;
    const ranked = joined(state, category).filter((study) => study.value !== null)
      .sort((a, b) => a.rank - b.rank);
    const first = ranked[0];
    const marks = [];
    if (verdict.words) marks.push(h("li", { class: verdict.kind }, verdict.words));
    if (first && state.confirms && !first.confirmed) marks.push(h("li", {}, "not confirmed yet"));
    if (first && state.protocol === "test") marks.push(h("li", { class: "caution" }, "optimistic: validation = test"));
    return h("article", { class: "card" },
      h("h3", {}, category.name),
      h("p", { class: "winner" }, first ? swatch(first.colour) : null,
        first ? first.method : "no result yet",
        first ? h("span", { class: "winner-value" }, figure(first.value)) : null),
      first ? h("ul", { class: "marks" }, ...marks) : null,
      first ? forest(ranked, start) : null);
  };
  return state.categories.map(one);
}

function progress(state) {
  const values = state.categories.flatMap((category) => category.studies.map((one) => one.value))
    .filter((value) => value !== null);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const cell = (study) => {
    const [complete, pruned, failed] = study.done;
    const ended = complete + pruned + failed;
    const segments = [[complete, "complete", `${complete} complete`], [pruned, "pruned", `${pruned} pruned`],
      [failed, "failed", `${failed} failed`], [study.running, "now", `${study.running} running`]];
    const level = study.value === null ? 0 : high > low ? (study.value - low) / (high - low) : 0.5;
    const known = study.value !== null && study.low !== null;
    return h("td", { class: `${study.rank === 1 ? "best" : ""} ${study.value === null ? "empty" : ""}`,
      "--level": level.toFixed(3) },
      h("span", { class: "value" }, `${study.tied && study.rank > 1 ? "= " : ""}${figure(study.value)}`),
      h("span", { class: "range" }, known ? `${figure(study.low)}-${figure(study.high)}` : "\u00a0"),
      bar(segments, state.hours ? ended + study.running : study.target),
      h("span", { class: "range" }, state.hours ? `${ended}` : `${ended}/${study.target}`,
        study.confirm[0] ? `, ${study.confirm[0]}/${study.confirm[1]} confirmed` : ""));
  };
  return h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Progress by category and method" },
    h("table", { class: "heat-map" },
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "category"),
        ...state.methods.map((method) => h("th", { scope: "col" }, swatch(method.colour), method.name)))),
      h("tbody", {}, ...state.categories.map((category) =>
        h("tr", {}, h("th", { scope: "row", title: category.name }, category.name), ...category.studies.map(cell))))));
}

function running({ runs, more, rungs, colours }) {
  if (!runs.length) return nothing("Nothing runs at the moment.");
  const rows = runs.map((run) => h("li", { class: run.late ? "late" : "" },
    h("span", { class: "run-name" }, swatch(colours[run.method]),
      `${run.category}/${run.method} ${run.number}${run.seed === undefined ? "" : `, seed ${run.seed}`}`),
    h("span", { class: "run-time" }, run.started === null ? "" : since(run.started)),
    run.seed === undefined ? bar([[run.step, "now", `rung ${run.step} of ${rungs}`]], rungs) : h("span", { class: "stack confirm" }),
    h("span", { class: "run-note" }, run.seed === undefined
      ? (run.step ? `rung ${run.step}/${rungs}, ${figure(run.auroc)}` : "no rung yet") : "confirm run",
    run.late ? h("b", {}, " longer than expected") : "")));
  return [h("ul", { class: "runs" }, ...rows), more > 0 ? nothing(`and ${more} more`) : null];
}

function allCurves(state) {
  const drawn = state.categories.map((category) => {
    const studies = joined(state, category).filter((study) => study.curves.length);
    return studies.length ? h("figure", { class: "chart" }, h("figcaption", {}, category.name), curves(studies, state.rungs)) : null;
  });
  return drawn.some(Boolean) ? drawn : nothing("No trial has reached its first rung yet.");
}

const KINDS = ["complete", "pruned", "failed", "confirmed"];

function budget({ methods, categories }) {
  const total = sum(categories.flatMap((category) => category.studies.flatMap((study) => study.seconds)));
  if (!total) return nothing("No run has ended yet.");
  const row = (name, colour, segments, whole, most) => [
    h("span", { class: "budget-name", title: name }, colour ? swatch(colour) : null, name),
    h("span", { class: "budget-bar" }, bar(segments, most)),
    h("span", { class: "number" }, `${duration(whole)}`),
    h("span", { class: "number muted" }, `${Math.round((100 * whole) / total)} %`)];
  const ofMethods = methods.map((method, index) => {
    const parts = KINDS.map((_, kind) => sum(categories.map((category) => category.studies[index].seconds[kind])));
    return { ...method, parts, whole: sum(parts) };
  });
  const ofCategories = categories.map((category) => {
    const parts = category.studies.map((study) => sum(study.seconds));
    return { name: category.name, parts, whole: sum(parts) };
  });
  const [mostMethod, mostCategory] = [ofMethods, ofCategories].map((all) => Math.max(...all.map((one) => one.whole)));
  return [
    h("div", {}, h("h3", {}, "by method"),
      h("div", { class: "budget" }, ...ofMethods.flatMap((one) => row(one.name, one.colour,
        one.parts.map((value, kind) => [value, KINDS[kind], `${KINDS[kind]} ${duration(value)}`]), one.whole, mostMethod))),
      h("p", { class: "key" }, ...KINDS.map((kind) => h("span", {}, h("i", { class: `chip ${kind}` }), kind === "confirmed" ? "confirm runs" : `${kind} trials`)))),
    h("div", {}, h("h3", {}, "by category"),
      h("div", { class: "budget" }, ...ofCategories.flatMap((one) => row(one.name, null,
        one.parts.map((value, index) => [value, methods[index].colour, `${methods[index].name} ${duration(value)}`]), one.whole, mostCategory))))];
}

function failures({ failures: found, unreadable }) {
  const parts = [];
  if (unreadable.count) {
    parts.push(h("p", { class: "notice" }, `${unreadable.count} unreadable: ${unreadable.first.join("; ")}`));
  }
  if (!found.count) return [...parts, nothing("No run has failed.")];
  parts.push(h("ul", { class: "reasons" }, ...found.reasons.map(([reason, number]) =>
    h("li", {}, h("b", {}, `${count(number)} x `), reason))));
  parts.push(h("details", {}, h("summary", {}, `The last ${found.latest.length}`),
    h("ul", { class: "reasons" }, ...found.latest.map((one) => h("li", {},
      h("span", { class: "muted" }, `${one.category}/${one.method} ${one.number}${one.seed === null ? "" : `, seed ${one.seed}`}: `),
      one.error)))));
  return parts;
}

function pictures({ sheets, colours }) {
  if (!sheets.length) return nothing("No detector with pictures has been confirmed yet.");
  const one = (sheet) => h("figure", { class: "example" },
    h("figcaption", {}, swatch(colours[sheet.method]), h("b", {}, `${sheet.category}, ${sheet.method}`),
      sheet.auroc === null ? "" : ` held out ${figure(sheet.auroc)}`),
    h("div", { class: "sheet", "--rows": sheet.examples.length },
      h("img", { src: `sheets/${sheet.id}.png`, loading: "lazy", alt: `Held-out images of ${sheet.category} as ${sheet.method} sees them` }),
      h("ol", {}, ...sheet.examples.map((example) => h("li", {},
        h("b", {}, example.kind), h("span", {}, example.defect), h("span", { class: "muted" }, `score ${example.score}`))))));
  const [first, others] = [sheets.filter((sheet) => sheet.rank === 1), sheets.filter((sheet) => sheet.rank > 1)];
  return [h("div", { class: "examples" }, ...first.map(one)),
    others.length ? h("details", { class: "more-sheets" }, h("summary", {}, `${others.length} more, of methods that do not lead`),
      h("div", { class: "examples" }, ...others.map(one))) : null];
}

function render(state) {
  head(state);
  if (!state.name) return;
  const colours = Object.fromEntries(state.methods.map(({ name, colour }) => [name, colour]));
  const { methods, categories, hours, rungs, confirms, protocol } = state;
  const text = JSON.stringify([state.totals, state.left, state.late, state.last, hours, state.phase]);
  if (shown.get("tiles") !== text) {
    shown.set("tiles", text);
    by("tiles").replaceChildren(...tiles(state));
  }
  const without = categories.map((one) => ({ ...one, studies: one.studies.map((study) => ({ ...study, curves: [] })) }));
  draw("leaders", { methods, categories: without.map((one) => ({ ...one, studies: one.studies.map((study) => ({ ...study, done: 0, running: 0, seconds: 0 })) })), confirms, protocol }, leaders);
  draw("progress", { methods, categories: without, hours: hours && hours.of }, progress);
  draw("running", { runs: state.running, more: state.totals.running - state.running.length, rungs, colours }, running);
  draw("methods", methods, (all) => all.map(({ name, colour }) => h("span", {}, swatch(colour), name)));
  draw("curves", { methods, categories, rungs }, allCurves);
  draw("budget", { methods, categories: without }, budget);
  draw("failures", { failures: state.failures, unreadable: state.unreadable }, failures);
  draw("sheets", { sheets: state.sheets, colours }, pictures);
}

async function look() {
  try {
    const answer = await fetch("state.json", { cache: "no-store", headers: tag ? { "If-None-Match": tag } : {} });
    ahead = Date.parse(answer.headers.get("Date")) - Date.now() || 0;
    if (Math.abs(ahead) < 2000) ahead = 0; // the header has whole seconds
    if (answer.status === 200) {
      tag = answer.headers.get("ETag");
      last = await answer.json();
      render(last);
      document.body.dataset.ready = "";
    } else if (answer.status === 304 && by("phase").classList.contains("lost")) {
      head(last);
    }
  } catch {
    by("phase").className = "phase caution lost";
    by("phase").textContent = "anomtune watch has ended";
  }
}

let waiting = null;
async function follow() {
  clearTimeout(waiting);
  if (!document.hidden) await look();
  waiting = setTimeout(follow, EVERY);
}
document.addEventListener("visibilitychange", () => { if (!document.hidden) follow(); });
setInterval(() => document.querySelectorAll("[data-since]").forEach(tick), 1000);
follow();
