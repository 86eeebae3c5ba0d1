"use strict";
(() => {
  const touch = matchMedia("(pointer: coarse)").matches;

  /** What the page adds to every figure: its colours and fonts, for the scheme that is on. */
  function dressed(layout) {
    const css = getComputedStyle(document.body);
    const printing = document.documentElement.classList.contains("printing");
    const size = (pixels) => (pixels * parseFloat(getComputedStyle(document.documentElement).fontSize)) / 16;
    const colour = (name) => css.getPropertyValue(`--${name}`).trim();
    const axis = {
      automargin: true,
      gridcolor: colour("line"),
      linecolor: colour("line"),
      zeroline: false,
      tickcolor: colour("line"),
    };
    const titled = (own = {}) => ({
      ...axis,
      ...own,
      title: { ...own.title, font: { size: size(12), color: colour("muted") }, standoff: 8 },
    });
    return {
      ...layout,
      hovermode: "closest",
      legend: {
        orientation: "h",
        x: 0,
        y: 1.02,
        yanchor: "bottom",
        font: { size: printing ? 9 : size(11) },
        ...(printing ? { entrywidth: 0.48, entrywidthmode: "fraction" } : {}),
        ...layout.legend,
      },
      annotations: (layout.annotations || []).map((note) => ({
        ...note,
        bgcolor: colour("page"),
        borderpad: 1,
        font: { size: size(10), color: colour("ink") },
      })),
      autosize: true,
      margin: { l: 48, r: 12, t: layout.showlegend === false ? 8 : 24, b: 40 },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: css.fontFamily, size: size(12), color: colour("ink") },
      hoverlabel: { font: { size: size(12) } },
      dragmode: touch ? false : "zoom",
      xaxis: titled(layout.xaxis),
      yaxis: titled(layout.yaxis),
    };
  }

  const config = {
    responsive: true,
    displayModeBar: false, // it would cover the legend, and can send a figure to a cloud
  };

  /** The text of a script of the page that lies there packed. */
  async function unpack(id) {
    const packed = document.getElementById(id);
    const bytes = Uint8Array.from(atob(packed.textContent), (letter) => letter.charCodeAt(0));
    packed.remove();
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  }

  let plotly = null; // its code, until a figure needs it
  let lines = null; // the JSON of each figure
  const unpacked = new Promise((done) => {
    if (document.readyState === "complete") done();
    else addEventListener("load", () => setTimeout(done)); // the page is there before
  })
    .then(() => Promise.all([unpack("plotly"), unpack("figures")]))
    .then(([code, text]) => {
      plotly = code;
      lines = text.split("\n");
    });

  function draw(place) {
    if (plotly !== null) {
      const script = document.createElement("script");
      script.textContent = plotly;
      plotly = null;
      document.head.append(script);
    }
    const { data, layout } = JSON.parse(lines[Number(place.dataset.figure.slice(1))]);
    Plotly.react(place, data, dressed(layout), config);
    place.dataset.drawn = "";
  }

  // A figure is drawn when it comes near the window, so never in a panel that is not shown.
  const watcher = new IntersectionObserver(
    (entries) => {
      for (const { isIntersecting, target } of entries) {
        if (isIntersecting && !("drawn" in target.dataset)) draw(target);
      }
    },
    { rootMargin: "300px" },
  );
  const places = document.querySelectorAll("[data-figure]");
  unpacked.then(
    () => places.forEach((place) => watcher.observe(place)),
    () => places.forEach((place) => place.append("To draw figures the page needs a browser of 2023 or newer.")),
  );

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    for (const place of places) if ("drawn" in place.dataset) draw(place);
  });

  function release(place) {
    Plotly.purge(place);
    delete place.dataset.drawn;
    watcher.unobserve(place);
    watcher.observe(place);
  }

  /** Shows one panel of its group; the figures of the others are let go. */
  function show(panel) {
    for (const other of document.querySelectorAll(`[data-group="${panel.dataset.group}"]`)) {
      other.classList.toggle("off", other !== panel);
      if (other === panel) continue;
      for (const place of other.querySelectorAll("[data-drawn]")) {
        release(place);
      }
    }
    document.querySelector(`[data-panels="${panel.dataset.group}"]`).value = panel.id;
  }

  for (const select of document.querySelectorAll("[data-panels]")) {
    select.addEventListener("change", () => show(document.getElementById(select.value)));
  }

  function follow() {
    const target = document.getElementById(location.hash.slice(1));
    if (target && target.dataset.group) {
      show(target);
      target.parentElement.scrollIntoView();
    }
  }
  addEventListener("hashchange", follow);
  // A link to the panel that the address names already changes nothing of the address.
  document.addEventListener("click", (event) => {
    const link = event.target.closest('a[href^="#"]');
    if (link && link.getAttribute("href") === location.hash) follow();
  });
  // The browser keeps what was selected when a page is loaded again.
  for (const select of document.querySelectorAll("[data-panels]")) {
    if (select.value) show(document.getElementById(select.value));
  }
  follow();

  // What a printed page shows is drawn, in its colours and at its width, before it is printed.
  let opened = [];
  addEventListener("beforeprint", () => {
    if (lines === null) return;
    document.documentElement.classList.add("printing");
    opened = [...document.querySelectorAll("details:not([open])")];
    for (const details of opened) details.open = true;
    for (const place of places) if (place.offsetParent !== null) draw(place);
  });
  addEventListener("afterprint", () => {
    document.documentElement.classList.remove("printing");
    for (const details of opened) details.open = false;
    for (const place of places) {
      if (!("drawn" in place.dataset)) continue;
      if (place.offsetParent === null) release(place);
      else draw(place);
    }
  });

  /** Moves the threshold of a detector, and finds the best for what a missed defect costs. */
  function slide(box) {
    const { steps, chosen, good, bad } = JSON.parse(box.dataset.steps);
    const find = (selector) => box.querySelector(selector);
    const [range, ratio, rate] = [find("[type=range]"), find(".ratio"), find(".rate")];
    const percent = (value) => (value > 0 && value < 9.95 ? value.toFixed(1) : value.toFixed(0));
    const told = ([, missed, alarms]) =>
      `misses ${missed} of ${bad} defects, false alarms ${alarms} of ${good} good`;

    function show() {
      const step = steps[range.value];
      const [threshold, , , missedLow, missedHigh, alarmsLow, alarmsHigh, place] = step;
      const shown = Number(threshold.toPrecision(6));
      const own = Number(range.value) === chosen ? " (chosen on validation)" : "";
      find(".value").textContent = `${shown}${own}`;
      find(".at").style.left = `${place}%`;
      const ranges = document.createElement("span");
      ranges.textContent = `95 %: ${percent(missedLow)}-${percent(missedHigh)} % missed, ${percent(alarmsLow)}-${percent(alarmsHigh)} % false alarms`;
      find(".counts").replaceChildren(`${told(step)} `, ranges);
      range.setAttribute("aria-valuetext", `threshold ${shown}: ${told(step)}`);
    }

    const number = (value) => value.toLocaleString("en", { maximumSignificantDigits: 3 });

    function weigh() {
      const cost = ratio.valueAsNumber;
      const share = Number.isNaN(rate.valueAsNumber) ? bad / (good + bad) : rate.valueAsNumber / 100;
      if (!(cost >= 0) || !(share >= 0 && share <= 1)) {
        find(".best").textContent = "";
        return;
      }
      const price = ([, missed, alarms]) =>
        (cost * share * missed) / bad + ((1 - share) * alarms) / good;
      // Of equal ones the first, which misses the fewest defects.
      const best = steps.reduce((least, step, i) => (price(step) < price(steps[least]) ? i : least), 0);
      range.value = best;
      const worth = (step) =>
        `1,000 parts cost as much as ${number(1000 * price(step))} false alarms`;
      const own = chosen === null ? "" : ` At the chosen threshold ${worth(steps[chosen])}.`;
      find(".best").textContent =
        `Cheapest on these images: ${told(steps[best])}; ${worth(steps[best])}.${own} ` +
        "Chosen on the images that it is counted on, so optimistic.";
      show();
    }

    range.addEventListener("input", show);
    for (const input of [ratio, rate]) input.addEventListener("input", weigh);
    if (chosen !== null) {
      const mark = find(".chosen");
      mark.style.left = `${steps[chosen][7]}%`;
      mark.hidden = false;
      find(".back").addEventListener("click", () => {
        range.value = chosen;
        show();
      });
    }
    show();
  }
  for (const box of document.querySelectorAll("[data-steps]")) slide(box);

  for (const button of document.querySelectorAll("[data-shows]")) {
    button.addEventListener("click", () => {
      for (const other of button.parentElement.children) {
        other.setAttribute("aria-pressed", String(other === button));
        document.getElementById(other.dataset.shows).classList.toggle("off", other !== button);
      }
    });
  }

  /** Sorts a table by one of its columns; what is not known stands last either way. */
  function sort(heading) {
    const table = heading.closest("table");
    const numeric = heading.classList.contains("number");
    const down = heading.getAttribute("aria-sort") === "ascending";
    const column = heading.cellIndex;
    for (const other of heading.parentElement.children) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = (row) => row.cells[column].dataset.key;
    const rows = [...table.tBodies[0].rows];
    rows.sort((a, b) => {
      const [first, second] = [key(a), key(b)];
      if (first === "" || second === "") return (first === "") - (second === "");
      const order = numeric ? first - second : first.localeCompare(second);
      return down ? -order : order;
    });
    table.tBodies[0].append(...rows);
  }
  for (const button of document.querySelectorAll(".sortable thead button")) {
    button.addEventListener("click", () => sort(button.parentElement));
  }
})();
