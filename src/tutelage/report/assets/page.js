"use strict";
// Tooltips over the charts, and the switch between light and dark. No network, no storage, no HTML from strings.
const tip = document.getElementById("tip");

function show(event, rows) {
  tip.replaceChildren(...rows.map(([text, css]) => {
    const line = document.createElement("div");
    line.className = css;
    line.textContent = text;
    return line;
  }));
  tip.className = "on";
  const room = document.documentElement.clientWidth - tip.offsetWidth - 12;
  tip.style.left = Math.max(4, Math.min(event.clientX + 14, room)) + window.scrollX + "px";
  tip.style.top = event.clientY + 16 + window.scrollY + "px";
}

function hide() { tip.className = ""; }

function nearest(points, x) {
  let low = 0, high = points.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (points[middle][0] < x) low = middle + 1; else high = middle;
  }
  return low > 0 && x - points[low - 1][0] < points[low][0] - x ? points[low - 1] : points[low];
}

for (const svg of document.querySelectorAll("svg[data-chart]")) {
  const chart = JSON.parse(svg.dataset.chart);
  const cursor = svg.querySelector(".cursor");
  const lines = chart.series.filter((series) => series.points.length);
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = (event.clientX - box.left) * svg.viewBox.baseVal.width / box.width;
    const hits = lines.map((series) => [series, nearest(series.points, x)]);
    const [, anchor] = hits.reduce((best, hit) => Math.abs(hit[1][0] - x) < Math.abs(best[1][0] - x) ? hit : best);
    cursor.setAttribute("x1", anchor[0]);
    cursor.setAttribute("x2", anchor[0]);
    svg.classList.add("active");
    const rows = hits.map(([series, point]) => {
      const at = point[2] === anchor[2] ? "" : " (at " + point[2] + ")";
      return [series.name + ": " + point[3] + at, "c" + series.colour];
    });
    show(event, [[chart.x + " " + anchor[2], "head"], ...rows]);
  });
  svg.addEventListener("pointerleave", () => { svg.classList.remove("active"); hide(); });
}

for (const shape of document.querySelectorAll("[data-tip]")) {
  shape.addEventListener("pointermove", (event) => show(event, [[shape.dataset.tip, "head"]]));
  shape.addEventListener("pointerleave", hide);
}

const root = document.documentElement;
document.getElementById("theme").addEventListener("click", () => {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});
