"use strict";
(() => {
  const root = document.documentElement;
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const live = document.getElementById("live");
  const coarse = matchMedia("(pointer: coarse)").matches;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const state = figures.map(() => 0);
  let chosen = "auto";
  let printing = false;

  // A colour is a name of the style, so that a figure follows light and dark.
  const named = (value, style) => {
    if (typeof value === "string") {
      const match = /^var\((--[a-z-]+)\)$/.exec(value);
      return match ? style.getPropertyValue(match[1]).trim() : value;
    }
    if (Array.isArray(value)) return value.map((item) => named(item, style));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, named(item, style)]));
    }
    return value;
  };

  const layoutOf = (figure, style) => {
    const axis = { gridcolor: "var(--line)", linecolor: "var(--line)", zerolinecolor: "var(--line)", tickcolor: "var(--line)" };
    const layout = {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", height: figure.height, autosize: true,
      font: { family: style.getPropertyValue("--sans").trim(), size: 12, color: "var(--ink)" },
      hoverlabel: { bgcolor: "var(--panel)", bordercolor: "var(--line)", font: { color: "var(--ink)" } },
      hovermode: "closest", dragmode: coarse ? false : "zoom", ...figure.layout,
    };
    for (const name of Object.keys(layout)) {
      if (/^[xy]axis\d*$/.test(name)) layout[name] = { ...axis, ...layout[name] };
    }
    if (printing) { layout.autosize = false; layout.width = 640; }
    return named(layout, style);
  };

  const draw = (index) => {
    const figure = figures[index];
    const style = getComputedStyle(root);
    const div = document.getElementById(figure.id);
    const data = named(structuredClone(figure.views[state[index]].data), style);
    return Plotly.react(div, data, layoutOf(figure, style), {
      responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
      displayModeBar: coarse ? false : "hover",
    });
  };
  const drawAll = () => Promise.all(figures.map((_, index) => draw(index)));

  const paint = () => {
    const dark = !printing && (chosen === "dark" || (chosen === "auto" && system.matches));
    root.dataset.theme = dark ? "dark" : "light";
    return drawAll();
  };

  // The keys walk through the points of a figure; what a pointer would show is shown and said.
  const walk = (index) => {
    const div = document.getElementById(figures[index].id);
    let curve = 0;
    let point = -1;
    const pickable = () => div.data.map((t, i) => i).filter((i) => div.data[i].hoverinfo !== "skip");
    const count = (trace) => (trace.type === "heatmap" ? trace.z.length * trace.z[0].length : (trace.x || trace.y).length);
    div.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      const turn = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (event.key === "Escape") { point = -1; Plotly.Fx.unhover(div); live.textContent = ""; return; }
      if (!step && !turn) return;
      event.preventDefault();
      const traces = pickable();
      if (turn) {
        curve = (curve + turn + traces.length) % traces.length;
        point = Math.max(0, Math.min(point, count(div.data[traces[curve]]) - 1));
      } else {
        const all = count(div.data[traces[curve % traces.length]]);
        point = (point + step + all) % all;
      }
      const number = traces[curve % traces.length];
      const trace = div.data[number];
      const wide = trace.type === "heatmap" ? trace.z[0].length : 0;
      const place = wide ? [Math.floor(point / wide), point % wide] : point;
      const subplot = trace.yaxis ? "x" + trace.yaxis : "xy";
      Plotly.Fx.hover(div, [{ curveNumber: number, pointNumber: place }], subplot);
      const shown = [...div.querySelectorAll(".hoverlayer text")].map((text) => text.textContent).join(" ");
      const value = wide ? `${trace.y[place[0]]}, ${trace.x[place[1]]}: ${trace.z[place[0]][place[1]]}`
        : `${trace.x ? trace.x[point] : ""}, ${trace.y ? trace.y[point] : ""}`;
      live.textContent = shown || `${trace.name || ""} ${value}`;
    });
    div.addEventListener("blur", () => { if (point >= 0) Plotly.Fx.unhover(div); point = -1; });
  };

  document.querySelectorAll(".views").forEach((group) => {
    const index = Number(group.dataset.figure);
    group.querySelectorAll("button").forEach((button, view) => {
      button.addEventListener("click", () => {
        state[index] = view;
        group.querySelectorAll("button").forEach((other, i) => other.setAttribute("aria-pressed", String(i === view)));
        draw(index);
      });
    });
  });

  const theme = document.getElementById("theme");
  theme.addEventListener("click", () => {
    chosen = { auto: "dark", dark: "light", light: "auto" }[chosen];
    theme.textContent = `Colours: ${chosen}`;
    paint();
  });
  system.addEventListener("change", paint);
  addEventListener("beforeprint", () => { printing = true; paint(); });
  addEventListener("afterprint", () => { printing = false; paint(); });

  paint().then(() => {
    figures.forEach((_, index) => walk(index));
    root.dataset.drawn = String(figures.length);
  });
})();
