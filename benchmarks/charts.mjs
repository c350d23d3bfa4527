// Our own charts against libraries: size in a page, time to draw 12 charts of 5,000 points, what axe finds, requests.
// Once: npm install --prefix .browser playwright-core axe-core uplot chart.js plotly.js-dist-min
// Then: node benchmarks/charts.mjs [CHROMIUM]      (medians of fifteen loads in headless Chromium, each with the three frames after the script)
import { readFileSync, writeFileSync, mkdtempSync } from "fs";
import { createRequire } from "module";
import { tmpdir } from "os";
import { join } from "path";

const root = new URL("..", import.meta.url).pathname, modules = join(root, ".browser/node_modules/");
const { chromium } = createRequire(modules)("playwright-core");
const read = (...parts) => readFileSync(join(...parts), "utf8");
const CHARTS = 12, POINTS = 5000, LOADS = 15;
const y = (chart) => Array.from({ length: POINTS }, (_, i) => Math.sin(i / 300 + chart) + ((i * 7919 + chart * 31) % 997) / 3000 + 2);
const data = `const X = Array.from({length: ${POINTS}}, (_, i) => i), Y = ${JSON.stringify([...Array(CHARTS).keys()].map((c) => y(c).map((v) => Number(v.toPrecision(4)))))};`;
const own = join(root, "src/holdfast/report"), ours = read(own, "page.js") + read(own, "curves.js");
const palette = ":root{--surface:#fff;--ink:#1a1c20;--muted:#5c626d;--line:#e3e5e9;--axis:#a9aeb8;--accent:#1f5fd0;--s1:#1f5fd0}.chart .curve{fill:none;stroke:var(--s1)}";
const boxes = (inner) => Array.from({ length: CHARTS }, (_, i) => `<section><h2>chart ${i}</h2>${inner(i)}</section>`).join("");

const KINDS = {
  ours: {
    code: ours, css: read(own, "page.css"), body: "", style: palette,
    draw: `const main = document.querySelector("main"); Y.forEach((y, i) => { const f = main.appendChild(document.createElement("figure")); f.className = "plot"; f.dataset.live = JSON.stringify({t: "chart " + i, x: "step", y: "value", s: [{n: "a", x: X, y}]}); });`,
    after: true,
  },
  uPlot: {
    code: read(modules, "uplot/dist/uPlot.iife.min.js"), css: read(modules, "uplot/dist/uPlot.min.css"), body: boxes((i) => `<div id="c${i}"></div>`),
    draw: `Y.forEach((y, i) => new uPlot({width: 500, height: 280, scales: {x: {time: false}}, cursor: {sync: {key: "a"}}, series: [{}, {stroke: "#1f5fd0", label: "a"}]}, [X, y], document.getElementById("c" + i)));`,
  },
  "Chart.js": {
    code: read(modules, "chart.js/dist/chart.umd.min.js"), css: "", body: boxes((i) => `<div style="width:500px"><canvas id="c${i}" width="500" height="280"></canvas></div>`),
    draw: `Y.forEach((y, i) => new Chart(document.getElementById("c" + i), {type: "line", data: {datasets: [{label: "a", data: y.map((v, j) => ({x: j, y: v})), pointRadius: 0}]}, options: {animation: false, parsing: false, normalized: true, responsive: false, scales: {x: {type: "linear"}}, plugins: {decimation: {enabled: true, algorithm: "min-max"}}}}));`,
  },
  Plotly: {
    code: read(modules, "plotly.js-dist-min/plotly.min.js"), css: "", body: boxes((i) => `<div id="c${i}" style="width:500px;height:280px"></div>`),
    draw: `Y.forEach((y, i) => Plotly.newPlot("c" + i, [{x: X, y, mode: "lines"}], {width: 500, height: 280}));`,
  },
};
const page = (kind) => {
  const run = kind.after ? `${kind.draw}\n${kind.code}` : kind.draw;
  const load = kind.after ? "" : `<script>${kind.code}</script>`;
  return `<!doctype html><html lang="en"><meta charset="utf-8"><title>charts</title><style>${kind.style || ""}${kind.css}</style><body><main><h1>charts</h1>${kind.body}</main>${load}<script>${data}\nconst begun = performance.now();\n{\n${run}\n}\nconst frames = (n) => requestAnimationFrame(() => (n ? frames(n - 1) : (window.took = performance.now() - begun))); frames(3);</script></body></html>`;
};

const folder = mkdtempSync(join(tmpdir(), "charts-"));
const browser = await chromium.launch({ executablePath: process.argv[2] || "/usr/bin/chromium", args: ["--no-sandbox"] });
console.log("| | kB in the page | ms to draw, median (lowest) | axe finds | words for a screen reader | requests |\n|-|-|-|-|-|-|");
for (const [name, kind] of Object.entries(KINDS)) {
  const file = join(folder, `${name}.html`), times = [];
  writeFileSync(file, page(kind));
  let found, requests = 0, words;
  for (let load = 0; load < LOADS; load++) {
    const tab = await browser.newPage({ viewport: { width: 1200, height: 900 } });
    tab.on("request", (request) => { requests += !request.url().startsWith("file:") && !request.url().startsWith("data:") && !request.url().startsWith("blob:"); });
    await tab.goto("file://" + file);
    await tab.waitForFunction("window.took !== undefined");
    times.push(await tab.evaluate("window.took"));
    if (load === LOADS - 1) {
      words = await tab.evaluate(`document.querySelectorAll("main [role=img][aria-label], main [role=group][aria-label]").length`);
      await tab.evaluate(read(modules, "axe-core/axe.min.js"));
      found = await tab.evaluate("axe.run().then((r) => r.violations.map((v) => v.id + ' ×' + v.nodes.length))");
    }
    await tab.close();
  }
  times.sort((a, b) => a - b);
  console.log(`| ${name} | ${((kind.code.length + kind.css.length) / 1000).toFixed(0)} | ${times[LOADS >> 1].toFixed(0)} (${times[0].toFixed(0)}) | ${found.join(", ") || "nothing"} | ${words ? `${words} labels` : "none"} | ${requests} |`);
}
await browser.close();
