"use strict";
(() => {
  const root = document.documentElement;
  const plots = [...document.querySelectorAll(".plot")];
  const figures = plots.map((plot) => JSON.parse(plot.nextElementSibling.textContent));
  const touch = matchMedia("(pointer: coarse)").matches;
  const config = {
    responsive: true,
    displaylogo: false,
    displayModeBar: !touch,
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
  };

  const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();

  function themedTrace(trace) {
    const hue = colour(`--hue-${trace.meta.hue}`);
    const whisker = { color: hue, thickness: 1, width: 3 };
    return {
      ...trace,
      line: { ...trace.line, color: hue },
      ...(trace.marker && { marker: { ...trace.marker, color: hue, line: { color: hue, width: 1.5 } } }),
      ...(trace.error_x && { error_x: { ...trace.error_x, ...whisker } }),
      ...(trace.error_y && { error_y: { ...trace.error_y, ...whisker } }),
    };
  }

  function themedLayout(layout) {
    const ink = colour("--ink"), quiet = colour("--quiet"), grid = colour("--grid");
    const axis = {
      gridcolor: grid, zerolinecolor: grid, linecolor: colour("--line"), tickcolor: grid,
      tickfont: { color: quiet }, zeroline: false,
    };
    const box = { bgcolor: colour("--raised"), bordercolor: colour("--line"), font: { color: ink } };
    return {
      ...layout,
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: "system-ui, sans-serif", size: 12, color: ink },
      dragmode: touch ? false : "zoom",
      hoverlabel: { ...box, namelength: -1 },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: quiet, activecolor: ink },
      xaxis: { ...axis, ...layout.xaxis },
      yaxis: { ...axis, ...layout.yaxis },
      shapes: layout.shapes.map((s) => ({ ...s, line: { ...s.line, color: quiet } })),
    };
  }

  const hidden = new WeakMap();
  function draw(plot, figure) {
    const without = hidden.get(plot.closest("section")) || new Set();
    const traces = figure.data.map(themedTrace)
      .map((t) => ({ ...t, visible: !without.has(t.meta.series) }));
    return Plotly.react(plot, traces, themedLayout(figure.layout), config);
  }
  const drawAll = () => plots.forEach((plot, at) => draw(plot, figures[at]));

  document.querySelectorAll(".legend button").forEach((button) => {
    button.addEventListener("click", () => {
      const section = button.closest("section");
      const without = hidden.get(section) || new Set();
      const shown = button.getAttribute("aria-pressed") === "true";
      if (shown) without.add(button.dataset.series);
      else without.delete(button.dataset.series);
      hidden.set(section, without);
      button.setAttribute("aria-pressed", String(!shown));
      plots.forEach((plot, at) => { if (section.contains(plot)) draw(plot, figures[at]); });
    });
  });

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  addEventListener("beforeprint", () => {
    root.classList.add("print");
    drawAll();
    plots.forEach((plot) => Plotly.Plots.resize(plot));
  });
  addEventListener("afterprint", () => { root.classList.remove("print"); drawAll(); });
  drawAll();
})();
