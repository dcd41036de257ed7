"use strict";
// The theme switch, and the values of a chart under the pointer. The page is whole without it.

function darkNow() {
  const chosen = document.documentElement.dataset.theme;
  if (chosen) return chosen === "dark";
  return matchMedia("(prefers-color-scheme: dark)").matches;
}

const themeButton = document.querySelector("button.theme");
themeButton.hidden = false;
themeButton.addEventListener("click", () => {
  document.documentElement.dataset.theme = darkNow() ? "light" : "dark";
});

const reader = document.createElement("div");
reader.className = "reader";
reader.hidden = true;
document.body.append(reader);

function nearest(places, x) {
  let low = 0, high = places.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (places[middle] < x) low = middle; else high = middle;
  }
  return x - places[low] < places[high] - x ? low : high;
}

function readAt(svg, data, event) {
  const box = svg.getBoundingClientRect();
  const x = (event.clientX - box.left) * svg.viewBox.baseVal.width / box.width;
  const found = data.series.map((series) => [series, nearest(series.x, x)]);
  const closest = found.reduce((a, b) =>
    Math.abs(b[0].x[b[1]] - x) < Math.abs(a[0].x[a[1]] - x) ? b : a);
  const place = closest[0].x[closest[1]];
  const head = document.createElement("div");
  head.textContent = `${data.axis} ${closest[0].step[closest[1]]}`;
  const lines = found.filter(([series, at]) => Math.abs(series.x[at] - place) < 25).map(
    ([series, at]) => {
      const line = document.createElement("div");
      const swatch = document.createElement("span");
      swatch.className = `swatch s${series.colour}`;
      line.append(swatch, `${series.name} ${series.value[at]}`);
      return line;
    });
  reader.replaceChildren(head, ...lines);
  reader.hidden = false;
  const cross = svg.querySelector(".cross");
  cross.setAttribute("x1", place);
  cross.setAttribute("x2", place);
  cross.style.visibility = "visible";
  const room = document.documentElement.clientWidth - reader.offsetWidth - 8;
  const left = Math.max(4, Math.min(event.clientX + 14, room));
  reader.style.left = `${left + scrollX}px`;
  reader.style.top = `${event.clientY + scrollY - reader.offsetHeight - 12}px`;
}

for (const svg of document.querySelectorAll("svg[data-chart]")) {
  const data = JSON.parse(svg.dataset.chart);
  svg.addEventListener("pointermove", (event) => readAt(svg, data, event));
  svg.addEventListener("pointerleave", () => {
    reader.hidden = true;
    svg.querySelector(".cross").style.visibility = "hidden";
  });
}
