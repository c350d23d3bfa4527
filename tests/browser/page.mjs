// Opens a page as a file in headless Chromium and says what a person would meet, as JSON.
// node page.mjs PAGE CHROMIUM MODULES [look], where MODULES holds playwright-core and axe-core.
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [page, chromium, modules, only] = process.argv.slice(2);
const require = createRequire(modules + "/");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf-8");
const browser = await require("playwright-core").chromium.launch({ executablePath: chromium, args: ["--no-sandbox"] });
const address = pathToFileURL(page).href;
const seen = { messages: [], requests: [], wide: {}, spilled: {}, repeated: {}, colour: {}, axe: {} };

async function open(width, colorScheme) {
  // The page's own policy would forbid the checker, and only the checker.
  const context = await browser.newContext({ viewport: { width, height: 900 }, colorScheme, bypassCSP: true });
  const tab = await context.newPage();
  tab.on("console", (message) => seen.messages.push(message.text()));
  tab.on("pageerror", (error) => seen.messages.push(String(error)));
  tab.on("dialog", (dialog) => { seen.messages.push("dialog: " + dialog.message()); dialog.dismiss(); });
  tab.on("request", (request) => { if (request.url() !== address) seen.requests.push(request.url().slice(0, 80)); });
  await tab.goto(address);
  return tab;
}

for (const [width, scheme] of [[380, "light"], [380, "dark"], [1200, "light"], [1200, "dark"]]) {
  const tab = await open(width, scheme), name = `${width} ${scheme}`;
  seen.wide[name] = await tab.evaluate(() => ({
    page: document.documentElement.scrollWidth - innerWidth,
    elements: [...document.querySelectorAll("main *")]
      .filter((e) => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest(".scroll") && !e.closest("svg"))
      .map((e) => e.tagName + "." + e.className).slice(0, 5),
  }));
  // Text that leaves its box lies over its neighbour's.
  seen.spilled[name] = await tab.evaluate(() => [...document.querySelectorAll("main *")]
    .filter((e) => e.clientWidth > 0 && e.scrollWidth > e.clientWidth + 1 && !e.closest(".scroll") && !e.closest("svg")
      && [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim())
      && getComputedStyle(e).overflowX === "visible")
    .map((e) => e.tagName + "." + e.className + ": " + e.textContent.slice(0, 40)));
  // Two ticks of one axis that read alike: too few digits.
  seen.repeated[name] = await tab.evaluate(() => [...document.querySelectorAll("svg.chart")].flatMap((svg) => {
    const marks = [...svg.querySelectorAll("text.tick[text-anchor=end]")];
    const read = marks.map((m) => m.getAttribute("x") + ": " + m.textContent);
    return read.filter((text, i) => read.indexOf(text) < i).map((text) => svg.getAttribute("aria-label") + " at " + text);
  }));
  seen.colour[name] = await tab.evaluate(() => getComputedStyle(document.body).backgroundColor);
  await tab.evaluate(() => document.querySelectorAll("details").forEach((d) => { d.open = true; }));
  await tab.evaluate(axe);
  const result = await tab.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
  seen.axe[name] = result.violations.map((v) => `${v.id}: ${v.nodes.length} × ${v.nodes[0].html.slice(0, 120)}`);
  await tab.context().close();
}

const tab = await open(1200, "light");
if (only === "look") {
  await browser.close();
  console.log(JSON.stringify(seen));
  process.exit(0);
}
const column = () => tab.$$eval("table.sortable", (tables) =>
  [...tables.at(0).tBodies[0].rows].map((row) => parseFloat(row.cells[1].dataset.sort)));
const button = tab.locator("table.sortable").first().locator("th button").nth(1);
await button.click();
seen.once = await column();
await button.press("Enter");
seen.twice = await column();
const viewer = tab.locator(".tokens").first();
await viewer.focus();
for (let i = 0; i < 3; i++) await tab.keyboard.press("ArrowRight");
seen.spoken = await tab.locator(".readout").first().textContent();
await tab.locator(".tokens [data-tip]").first().hover();
seen.tip = await tab.locator("#tip").innerText();
const evidence = tab.locator("article.finding summary").first();
if (await evidence.count()) {
  await evidence.press("Enter");
  seen.opened = await tab.locator("article.finding details").first().evaluate((d) => d.open);
}
const copy = tab.locator("button.copy").first();
if (await copy.count()) {
  const label = await copy.elementHandle();
  await copy.click();
  // The clipboard answers later than the click, and the old label comes back after two seconds.
  const changed = await tab.waitForFunction((b) => b.textContent !== "copy" && b.textContent, label, { timeout: 10000 });
  seen.copied = await changed.jsonValue();
}
await browser.close();
console.log(JSON.stringify(seen));
