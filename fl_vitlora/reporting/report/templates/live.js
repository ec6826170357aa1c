"use strict";
(() => {
  const EVERY = 2000; // milliseconds between two questions
  const place = (name) => document.getElementById(name);
  let mark = ""; // names the content that the page shows

  // Every text is set as text, so that no name in a folder can become a part of the page.
  const element = (name, text, properties) => {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    return Object.assign(made, properties);
  };

  const pair = ([name, text]) => {
    const made = element("div");
    made.append(element("dt", name), element("dd", text));
    return made;
  };

  const row = (cells, texts, head) => {
    const made = element("tr");
    cells.forEach((text, column) => {
      const cell = element(head || column === 0 ? "th" : "td", text);
      if (head || column === 0) cell.scope = head ? "col" : "row";
      if (column >= texts) cell.className = "number";
      made.append(cell);
    });
    return made;
  };

  const table = ({ title, head, rows, texts }) => {
    const made = element("table"), top = element("thead"), body = element("tbody");
    top.append(row(head, texts, true));
    body.append(...rows.map((cells) => row(cells, texts, false)));
    made.append(element("caption", title), top, body);
    const around = element("div", undefined, { className: "scroll", tabIndex: 0 });
    around.setAttribute("role", "region");
    around.setAttribute("aria-label", title);
    around.append(made);
    return around;
  };

  // Makes the places of all charts before any is drawn: a chart takes the width of its place.
  const makePlace = ({ name, title, told }) => {
    if (!place(`chart-${name}`)) {
      const around = element("figure");
      const drawn = element("div", undefined, { className: "chart", id: `chart-${name}` });
      drawn.dataset.chart = name;
      drawn.setAttribute("role", "img");
      drawn.setAttribute("aria-label", title);
      drawn.setAttribute("aria-describedby", `told-${name}`);
      around.append(element("figcaption", title), drawn);
      around.append(element("p", undefined, { className: "told", id: `told-${name}` }));
      place("charts").append(around);
    }
    place(`told-${name}`).textContent = told;
  };

  const show = async (content) => {
    document.title = `${content.state}: ${content.title}`;
    place("title").textContent = content.title;
    place("summary").textContent = content.told;
    place("state").textContent = content.state;
    place("state").dataset.state = content.state;
    place("error").textContent = content.error;
    place("error").hidden = !content.error;
    place("figures").replaceChildren(...content.figures.map(pair));
    place("remarks").replaceChildren(...content.remarks.map((text) => element("li", text)));
    place("tables").replaceChildren(...content.tables.map(table));
    const names = new Set(content.charts.map(({ name }) => `chart-${name}`));
    for (const drawn of document.querySelectorAll("[data-chart]")) {
      if (!names.has(drawn.id)) drawn.closest("figure").remove();
    }
    content.charts.forEach(makePlace);
    for (const { name, figure } of content.charts) {
      await pageLook.draw(place(`chart-${name}`), figure);
    }
  };

  const ask = async () => {
    try {
      const answer = await fetch("state", { headers: mark ? { "If-None-Match": mark } : {} });
      if (answer.status === 200) {
        mark = answer.headers.get("ETag");
        await show(await answer.json());
        document.documentElement.dataset.charts = "drawn";
        document.documentElement.dataset.shown = mark;
      } else if (answer.status !== 304) {
        throw new Error(`status ${answer.status}`);
      }
    } catch (error) {
      mark = "";
      place("error").textContent = `The program that shows this page does not answer (${error.message}). The page shows what was known last.`;
      place("error").hidden = false;
    }
    setTimeout(ask, EVERY);
  };
  ask();
})();
