"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const touch = matchMedia("(pointer: coarse)").matches;

  /** What the page adds to every figure: its colours and fonts, for the scheme that is on. */
  function dressed(layout) {
    const css = getComputedStyle(document.body);
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
      title: { ...own.title, font: { size: 12, color: colour("muted") }, standoff: 8 },
    });
    return {
      ...layout,
      hovermode: "closest",
      legend: {
        orientation: "h",
        x: 0,
        y: 1.02,
        yanchor: "bottom",
        font: { size: 11 },
        ...layout.legend,
      },
      annotations: (layout.annotations || []).map((note) => ({
        ...note,
        bgcolor: colour("page"),
        borderpad: 1,
        font: { size: 10, color: colour("ink") },
      })),
      autosize: true,
      margin: { l: 48, r: 12, t: layout.showlegend === false ? 8 : 24, b: 40 },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: css.fontFamily, size: 12, color: colour("ink") },
      hoverlabel: { font: { size: 12 } },
      dragmode: touch ? false : "zoom",
      xaxis: titled(layout.xaxis),
      yaxis: titled(layout.yaxis),
    };
  }

  const config = {
    responsive: true,
    displayModeBar: false, // it would cover the legend, and can send a figure to a cloud
  };

  function draw(place) {
    const { data, layout } = figures[place.dataset.figure];
    Plotly.react(place, data, dressed(layout), config);
    place.dataset.drawn = "";
  }

  // A figure is drawn when it comes near the window, so never in a panel that is not shown.
  const watcher = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        if (entry.isIntersecting && !("drawn" in entry.target.dataset)) draw(entry.target);
      }
    },
    { rootMargin: "300px" },
  );
  const places = document.querySelectorAll("[data-figure]");
  for (const place of places) watcher.observe(place);

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    for (const place of places) if ("drawn" in place.dataset) draw(place);
  });

  /** Shows one panel of its group; the figures of the others are let go. */
  function show(panel) {
    for (const other of document.querySelectorAll(`[data-group="${panel.dataset.group}"]`)) {
      other.classList.toggle("off", other !== panel);
      if (other === panel) continue;
      for (const place of other.querySelectorAll("[data-drawn]")) {
        Plotly.purge(place);
        delete place.dataset.drawn;
        watcher.unobserve(place);
        watcher.observe(place);
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
