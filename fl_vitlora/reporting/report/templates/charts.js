"use strict";
(() => {
  const scheme = window.matchMedia("(prefers-color-scheme: dark)");
  const calm = window.matchMedia("(prefers-reduced-motion: reduce)");
  const touch = window.matchMedia("(hover: none), (max-width: 40rem)");
  const places = [...document.querySelectorAll("[data-chart]")];

  // The colours of the page, for every axis of a chart.
  const look = (layout) => {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    const found = {
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      "font.color": colour("--text"),
      "font.family": "system-ui, sans-serif",
      "hoverlabel.bgcolor": colour("--raised"),
      "hoverlabel.font.color": colour("--text"),
      "hoverlabel.bordercolor": colour("--line"),
      "modebar.bgcolor": "rgba(0,0,0,0)",
      "modebar.color": colour("--quiet"),
      "modebar.activecolor": colour("--accent"),
    };
    for (const axis of Object.keys(layout).filter((name) => /^[xy]axis/.test(name))) {
      for (const part of ["gridcolor", "linecolor", "zerolinecolor"]) {
        found[`${axis}.${part}`] = colour("--line");
      }
    }
    return found;
  };

  const options = {
    responsive: true,
    displaylogo: false,
    displayModeBar: touch.matches ? false : "hover",
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
  };
  const draw = async (place) => {
    const figure = JSON.parse(document.getElementById(place.dataset.chart).textContent);
    if (touch.matches) figure.layout.dragmode = false; // a finger scrolls the page
    if (calm.matches) figure.layout.transition = { duration: 0 };
    await Plotly.newPlot(place, figure.data, figure.layout, options);
    await Plotly.relayout(place, look(place.layout));
  };

  document.documentElement.dataset.charts = "drawing";
  Promise.all(places.map(draw)).then(() => {
    document.documentElement.dataset.charts = "drawn";
  });
  scheme.addEventListener("change", () => {
    for (const place of places) Plotly.relayout(place, look(place.layout));
  });
})();
