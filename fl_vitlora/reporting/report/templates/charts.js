"use strict";
(() => {
  const places = [...document.querySelectorAll("[data-chart]")];
  const draw = (place) => {
    const text = document.getElementById(place.dataset.chart).textContent;
    return pageLook.draw(place, JSON.parse(text));
  };

  document.documentElement.dataset.charts = "drawing";
  Promise.all(places.map(draw)).then(() => {
    document.documentElement.dataset.charts = "drawn";
  });
})();
