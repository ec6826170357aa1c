"use strict";
// How charts look on this page: its colours, and options for screens that are touched.
const pageLook = (() => {
  const scheme = window.matchMedia("(prefers-color-scheme: dark)");
  const calm = window.matchMedia("(prefers-reduced-motion: reduce)");
  const touch = window.matchMedia("(hover: none), (max-width: 40rem)");

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
  // Draws a figure, or changes the chart that is drawn already.
  const draw = async (place, figure) => {
    if (touch.matches) figure.layout.dragmode = false; // a finger scrolls the page
    if (calm.matches) figure.layout.transition = { duration: 0 };
    await Plotly.react(place, figure.data, figure.layout, options);
    await Plotly.relayout(place, look(place.layout));
  };
  scheme.addEventListener("change", () => {
    for (const place of document.querySelectorAll("[data-chart]")) {
      if (place.layout) Plotly.relayout(place, look(place.layout));
    }
  });
  return { draw };
})();
