/** Small figures made of HTML and SVG. What comes from a sweep is set as text, never as markup. */

const SVG = "http://www.w3.org/2000/svg";

/** Returns an element. Attributes whose names begin with -- are custom properties of its style. */
export function h(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

function s(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("--")) element.style.setProperty(name, value);
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Returns a time as people read it. */
export function duration(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  const minutes = Math.round(whole / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return `${hours} h ${String(minutes % 60).padStart(2, "0")} min`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

export const figure = (value) => (value === null || value === undefined ? "-" : value.toFixed(3));

export const count = (number) => number.toLocaleString("en");

/** Returns a bar of segments `[value, class or colour, label]`, of a whole. */
export function bar(segments, whole) {
  const total = Math.max(whole, segments.reduce((sum, [value]) => sum + value, 0), 1e-9);
  const label = segments.filter(([value]) => value > 0).map(([, , words]) => words).join(", ");
  return h(
    "span",
    { class: "stack", role: "img", "aria-label": label, title: label },
    ...segments
      .filter(([value]) => value > 0)
      .map(([value, look]) => {
        const own = look.startsWith("#") ? { "--colour": look } : { class: look };
        return h("i", { "--part": `${(100 * value) / total}%`, ...own });
      }),
  );
}

/** Returns the intervals of the methods of a category, in order of rank. */
export function forest(studies, start) {
  const place = (value) => `${Math.min(100, Math.max(0, (100 * (value - start)) / (1 - start)))}%`;
  const rows = studies.flatMap((study, index) => {
    const known = study.low !== null && study.high !== null;
    const words =
      `${study.method}: ${figure(study.value)}` +
      (known ? ` (${figure(study.low)}-${figure(study.high)})` : "") +
      (study.test === null ? "" : `, held out ${figure(study.test)}`);
    return [
      h("span", { class: "forest-name", title: study.method },
        `${study.tied && index ? "= " : ""}${study.method}`),
      h("span", { class: "track", role: "img", "aria-label": words, title: words },
        known ? h("i", { class: "band", "--from": place(study.low), "--to": place(study.high) }) : null,
        h("i", { class: "tick", "--at": place(study.value) }),
        study.test === null ? null : h("i", { class: "dot", "--at": place(study.test) })),
      h("span", { class: "forest-value" }, figure(study.value)),
    ];
  });
  const ends = h("span", { class: "ends", "aria-hidden": "true" },
    h("span", {}, start.toFixed(1)), h("span", {}, "AUROC"), h("span", {}, "1.0"));
  return h("div", { class: "forest" }, ...rows, h("span"), ends, h("span"));
}

const WIDTH = 340, HEIGHT = 190, LEFT = 34, RIGHT = 8, TOP = 8, BOTTOM = 22;

/** Returns the learning curves of a category: `{method, colour, curves}` each. */
export function curves(studies, rungs) {
  const values = studies.flatMap((study) =>
    study.curves.flatMap((curve) => curve.points.map(([, value]) => value)));
  const least = Math.min(...values), most = Math.max(...values);
  const step = [0.01, 0.02, 0.05, 0.1, 0.2].find((one) => (most - least) / one <= 4) || 0.25;
  const low = Math.max(0, Math.floor(least / step - 1e-9) * step);
  const high = Math.min(1, Math.max(low + step, Math.ceil(most / step - 1e-9) * step));
  const x = (rung) => LEFT + ((rung - 1) / Math.max(1, rungs - 1)) * (WIDTH - LEFT - RIGHT);
  const y = (value) => TOP + (1 - (value - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);
  const lines = [], texts = [];
  for (let value = low; value < high + step / 2; value += step) {
    lines.push(s("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value) }));
    texts.push(s("text", { x: LEFT - 6, y: y(value) + 3.5, "text-anchor": "end" }, value.toFixed(2)));
  }
  const every = Math.ceil(rungs / 8);
  for (let rung = 1; rung <= rungs; rung += every) {
    texts.push(s("text", { x: x(rung), y: HEIGHT - 6, "text-anchor": "middle" }, String(rung)));
  }
  const drawn = studies.flatMap((study) => study.curves.map((curve) => ({ study, curve })));
  const order = ["recent", "paper", "running", "best"];
  drawn.sort((a, b) => order.indexOf(a.curve.kind) - order.indexOf(b.curve.kind));
  const paths = drawn.map(({ study, curve }) => {
    const [rung, value] = curve.points.at(-1);
    const words = `${study.method}, trial ${curve.n} (${curve.kind}): ${figure(value)} at rung ${rung}`;
    const points = curve.points.map(([at, one]) => `${x(at).toFixed(1)},${y(one).toFixed(1)}`);
    const alone = curve.points.length === 1;
    return s("g", { class: `curve ${curve.kind}`, "--colour": study.colour },
      s("title", {}, words),
      s("polyline", { points: points.join(" ") }),
      alone || curve.kind === "running"
        ? s("circle", { cx: x(rung), cy: y(value), r: curve.kind === "recent" ? 2.5 : 3.5 }) : null);
  });
  return s("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": "AUROC by rung" },
    ...lines, ...texts, ...paths);
}
