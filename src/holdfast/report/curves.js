// Curves that react: drag to zoom, a logarithmic axis, one cursor for all charts over the same axis, series on and off.
// Python's drawing of the same data stays in the page for print and for readers without a script.
const SVG = "http://www.w3.org/2000/svg";
const LINKS = new Map(); // label of the horizontal axis -> the charts over it and the stretch they show

function shape(name, attributes, parent) {
  const made = document.createElementNS(SVG, name);
  for (const key in attributes) made.setAttribute(key, attributes[key]);
  return parent ? parent.appendChild(made) : made;
}
function make(name, css, text, parent) {
  const made = document.createElement(name);
  if (css) made.className = css;
  if (text) made.textContent = text;
  return parent ? parent.appendChild(made) : made;
}

// As `number` in scales.py writes it.
function written(value, digits = 3) {
  if (value === null || value === undefined || isNaN(value)) return "–";
  const size = Math.abs(value), minus = (text) => text.replace("-", "−");
  if (size !== 0 && (size < 1e-3 || size >= 1e7)) {
    const [mantissa, exponent] = value.toExponential(digits - 1).split("e");
    return minus(`${Number(mantissa)}×10${raised(Number(exponent))}`);
  }
  const decimals = size ? Math.max(0, digits - 1 - Math.floor(Math.log10(size))) : 0;
  return minus(Number(value.toFixed(decimals)).toLocaleString("en", { maximumFractionDigits: 12 }));
}
const raised = (exponent) => [...String(exponent)].map((c) => (c === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[c])).join("");

function scaleOf(values, log, tight, wanted) {
  let low = Infinity, high = -Infinity;
  for (const v of values) if (v !== null && (v > 0 || !log)) { low = Math.min(low, v); high = Math.max(high, v); }
  if (low > high) [low, high] = log ? [0.1, 1] : [0, 1];
  const ticks = [];
  if (log) {
    if (high / low < 1.0001) [low, high] = [low / 3, high * 3];
    const first = Math.floor(Math.log10(low) + 1e-9), last = Math.ceil(Math.log10(high) - 1e-9);
    const marks = [], stride = Math.max(1, Math.ceil((last - first) / 6));
    for (let e = first; e <= last; e += stride) for (const m of last - first <= 2 ? [1, 2, 5] : [1]) marks.push(m * 10 ** e);
    low = Math.max(...marks.filter((m) => m <= low * 1.000001), 10 ** first);
    high = Math.min(...marks.filter((m) => m >= high * 0.999999), 10 ** last);
    ticks.push(...marks.filter((m) => m >= low * 0.999999 && m <= high * 1.000001));
    const span = Math.log(high / low);
    return { low, high, log, ticks, at: (v) => Math.min(1, Math.max(0, Math.log(v / low) / span)) };
  }
  if (high - low <= 1e-12 * Math.max(Math.abs(low), Math.abs(high), 1e-300)) {
    const pad = Math.abs(low) * 0.1 || 0.5;
    low -= pad; high += pad;
  }
  const raw = (high - low) / wanted, power = 10 ** Math.floor(Math.log10(raw));
  let step = [1, 2, 5, 10].find((m) => raw <= m * power * (1 + 1e-9)) * power;
  if (tight) step = Math.max(1, step);
  const first = tight ? Math.ceil(low / step - 1e-9) : Math.floor(low / step + 1e-9);
  const last = tight ? Math.floor(high / step + 1e-9) : Math.ceil(high / step - 1e-9);
  for (let i = first; i <= last; i++) ticks.push(Number((i * step).toPrecision(12)));
  if (!tight) [low, high] = [first * step, last * step];
  const span = high - low;
  return { low, high, log, ticks, at: (v) => Math.min(1, Math.max(0, (v - low) / span)) };
}

// Significant digits that tell neighbouring ticks apart, as in scales.py.
function digitsOf({ ticks, log }) {
  if (log || ticks.length < 2) return 3;
  const largest = Math.max(...ticks.map(Math.abs)), step = ticks[1] - ticks[0];
  return Math.max(3, Math.floor(Math.log10(largest)) - Math.floor(Math.log10(step) + 1e-9) + 1);
}
const tickText = (tick, scale) => {
  const { log } = scale, exponent = log ? Math.round(Math.log10(tick)) : 0;
  return log && (exponent <= -3 || exponent >= 5) && Math.abs(tick / 10 ** exponent - 1) < 1e-9 ? "10" + raised(exponent) : written(tick, digitsOf(scale));
};

// A path through points in pixels, gaps as null; of a column of pixels only its first, lowest, highest and last stay.
function pathOf(points) {
  let path = "", open = false, column = null, kept = [];
  const flush = () => {
    if (!kept.length) return;
    let low = 0, high = 0;
    kept.forEach((p, i) => { if (p[1] < kept[low][1]) low = i; if (p[1] > kept[high][1]) high = i; });
    for (const i of [...new Set([0, low, high, kept.length - 1])].sort((a, b) => a - b)) {
      path += `${open ? "L" : "M"}${kept[i][0].toFixed(1)} ${kept[i][1].toFixed(1)}`;
      open = true;
    }
    kept = [];
  };
  for (const point of points) {
    if (!point) { flush(); open = false; column = null; continue; }
    if (Math.floor(point[0]) !== column) { flush(); column = Math.floor(point[0]); }
    kept.push(point);
  }
  flush();
  return path;
}

class Curves {
  constructor(figure) {
    const given = JSON.parse(figure.dataset.live);
    Object.assign(this, { figure, title: given.t, xLabel: given.x, yLabel: given.y, log: !!given.l, rules: given.r || [], held: given.h || [] });
    this.series = given.s.map((s, i) => ({ name: s.n, x: s.x || given.s[0].x, y: s.y, low: s.lo, high: s.hi, colour: (i % 6) + 1, dashed: Math.floor(i / 6) % 2, on: true }));
    if (!LINKS.has(this.xLabel)) LINKS.set(this.xLabel, { charts: [], range: null, at: null });
    this.link = LINKS.get(this.xLabel);
    this.link.charts.push(this);
    this.build(figure);
    // Drawing changes sizes, which must not happen while sizes are being told.
    new ResizeObserver(([entry]) => {
      const width = Math.round(entry.contentRect.width);
      if (width !== this.width) requestAnimationFrame(() => { this.width = width; this.draw(); });
    }).observe(this.host);
  }

  build(figure) {
    figure.classList.add("alive");
    this.box = make("div", "live");
    figure.insertBefore(this.box, figure.querySelector(".size-s, .caption, details") || null);
    const bar = make("div", "bar", "", this.box);
    this.legend = make("div", "legend", "", bar);
    this.keys = this.series.length > 1 || this.series[0].low ? this.series.map((s) => this.key(s)) : [];
    const tools = make("div", "tools", "", bar);
    this.reset = make("button", "tool", "whole range", tools);
    this.reset.hidden = true;
    this.reset.addEventListener("click", () => this.zoom(null));
    if (this.series.some((s) => s.y.some((v) => v > 0))) {
      const button = make("button", "tool", "log", tools);
      const tell = () => { button.setAttribute("aria-pressed", this.log); button.setAttribute("aria-label", `log axis: ${this.title}`); };
      tell();
      button.addEventListener("click", () => { this.log = !this.log; tell(); this.draw(); });
    }
    this.host = make("div", "host", "", this.box);
    Object.assign(this.host, { tabIndex: 0 });
    this.host.setAttribute("role", "group");
    this.host.setAttribute("aria-label", `${this.title}: arrow keys read the curve, plus and minus zoom, 0 shows all`);
    this.spoken = make("p", "spoken", "", this.box);
    this.spoken.setAttribute("aria-live", "polite");
    this.host.addEventListener("keydown", (event) => this.press(event));
    this.host.addEventListener("pointermove", (event) => this.move(event));
    this.host.addEventListener("pointerdown", (event) => this.grab(event));
    this.host.addEventListener("pointerup", (event) => this.drop(event));
    this.host.addEventListener("pointercancel", () => { this.from = undefined; this.select(null); });
    this.host.addEventListener("pointerleave", () => { hideTip(); if (this.from === undefined) this.point(null); });
    this.host.addEventListener("dblclick", () => this.zoom(null));
  }

  key(series) {
    const button = make("button", "key-of", "", this.legend);
    make("i", `b${series.colour}${series.dashed ? " dashed" : ""}`, "", button);
    button.append(series.name);
    const value = make("b", "", "", button);
    button.setAttribute("aria-pressed", true);
    button.addEventListener("click", () => {
      series.on = !series.on;
      button.setAttribute("aria-pressed", series.on);
      this.draw();
    });
    return value;
  }

  get shown() { return this.series.filter((s) => s.on); }

  draw() {
    const width = this.width;
    if (!width) return;
    const range = this.link.range, inside = (x) => !range || (x >= range[0] && x <= range[1]);
    const xs = range || this.series.flatMap((s) => s.x), ys = [];
    for (const s of this.shown) s.x.forEach((x, i) => { if (inside(x)) ys.push(s.y[i], ...(s.low ? [s.low[i], s.high[i]] : [])); });
    if (!range) ys.push(...this.held, ...this.rules.map((r) => r.v));
    this.x = scaleOf(xs, false, true, width < 420 ? 4 : 6);
    this.y = scaleOf(ys, this.log, false, 5);
    const texts = this.y.ticks.map((t) => tickText(t, this.y));
    const left = Math.max(20, ...texts.map((t) => 7 * t.length)) + 10, top = 24, bottom = top + Math.min(240, Math.max(150, 0.45 * width));
    this.plot = { left, top, right: width - 12, bottom };
    const svg = shape("svg", { class: "chart", role: "img", width, height: bottom + 40, viewBox: `0 0 ${width} ${bottom + 40}`, "aria-label": `${this.title}: ${this.yLabel} against ${this.xLabel}` });
    const text = (x, y, words, anchor, css) => { shape("text", { x, y, class: css || "tick", "text-anchor": anchor }, svg).textContent = words; };
    text(0, 12, this.yLabel, "start");
    this.y.ticks.forEach((tick, i) => {
      const y = this.py(tick);
      shape("path", { class: "grid", d: `M${left} ${y}H${width - 12}` }, svg);
      text(left - 8, y + 4, texts[i], "end");
    });
    shape("path", { class: "axis", d: `M${left} ${bottom}H${width - 12}` }, svg);
    let taken = -Infinity;
    for (const tick of this.x.ticks) {
      const words = written(tick, 6), x = this.px(tick), half = 3.5 * words.length;
      if (x - half > taken + 8 && x + half <= width) { text(x, bottom + 17, words, "middle"); taken = x + half; }
    }
    text(width - 12, bottom + 34, this.xLabel, "end");
    this.shown.forEach((s) => this.line(svg, s, inside));
    for (const rule of this.rules) {
      if (this.log ? rule.v <= 0 : false) continue;
      if (rule.v < this.y.low || rule.v > this.y.high) continue;
      shape("path", { class: "reference", d: `M${left} ${this.py(rule.v)}H${width - 12}` }, svg);
      text(left + 4, this.py(rule.v) - 5, rule.t, "start", "name halo");
    }
    this.selection = shape("rect", { class: "selection", y: top, height: bottom - top, width: 0, x: 0 }, svg);
    this.pins = shape("g", { class: "pins" }, svg);
    this.host.replaceChildren(svg);
    this.reset.hidden = !range;
    this.pin();
  }

  px(x) { return this.plot.left + this.x.at(x) * (this.plot.right - this.plot.left); }
  py(y) { return this.plot.bottom - this.y.at(y) * (this.plot.bottom - this.plot.top); }
  drawable(v) { return v !== null && v !== undefined && (v > 0 || !this.log); }

  line(svg, s, inside) {
    const rows = s.x.map((x, i) => i).filter((i) => inside(s.x[i]));
    if (s.low) {
      const band = rows.filter((i) => this.drawable(s.low[i]) && this.drawable(s.high[i]));
      const edge = (values, of) => of.map((i) => `${this.px(s.x[i]).toFixed(1)} ${this.py(values[i]).toFixed(1)}`).join("L");
      if (band.length > 1) shape("path", { class: `band f${s.colour}`, d: `M${edge(s.high, band)}L${edge(s.low, band.slice().reverse())}Z` }, svg);
    }
    const points = rows.map((i) => (this.drawable(s.y[i]) ? [this.px(s.x[i]), this.py(s.y[i])] : null));
    shape("path", { class: `curve l${s.colour}${s.dashed ? " dashed" : ""}`, d: pathOf(points) }, svg);
    const drawn = points.filter(Boolean);
    points.forEach((p, i) => {
      if (p && (drawn.length <= 16 || (!points[i - 1] && !points[i + 1]))) shape("circle", { class: `f${s.colour}`, cx: p[0], cy: p[1], r: 2.4 }, svg);
    });
  }

  xAt(event) {
    const frame = this.host.getBoundingClientRect();
    const share = (event.clientX - frame.left - this.plot.left) / (this.plot.right - this.plot.left);
    return this.x.low + Math.min(1, Math.max(0, share)) * (this.x.high - this.x.low);
  }
  nearest(x) {
    let best = null;
    for (const s of this.shown) s.x.forEach((at, i) => {
      if (this.drawable(s.y[i]) && at >= this.x.low && at <= this.x.high && (best === null || Math.abs(at - x) < Math.abs(best - x))) best = at;
    });
    return best;
  }

  move(event) {
    if (!this.plot) return;
    if (this.from !== undefined) return this.select([this.from, this.xAt(event)]);
    const at = this.nearest(this.xAt(event));
    this.point(at);
    if (at !== null) showTip(event, `${this.xLabel} ${written(at, 6)}`, this.shown.map((s) => s.name), this.shown.map((s) => this.value(s, at)));
  }
  value(s, at) {
    const i = s.x.indexOf(at), band = i >= 0 && s.low && s.low[i] !== null ? ` (${written(s.low[i])} to ${written(s.high[i])})` : "";
    return i < 0 ? "–" : written(s.y[i]) + band;
  }
  point(at) {
    this.link.at = at;
    this.link.charts.forEach((chart) => chart.pin());
  }
  pin() {
    if (!this.pins) return;
    this.pins.replaceChildren();
    const at = this.link.at, seen = at !== null && at >= this.x.low && at <= this.x.high;
    this.keys.forEach((value, i) => { value.textContent = seen && this.series[i].on && this.series[i].x.includes(at) ? " " + written(this.series[i].y[this.series[i].x.indexOf(at)]) : ""; });
    if (!seen) return;
    shape("path", { class: "pin", d: `M${this.px(at)} ${this.plot.top}V${this.plot.bottom}` }, this.pins);
    for (const s of this.shown) {
      const y = s.y[s.x.indexOf(at)];
      if (this.drawable(y)) shape("circle", { class: `f${s.colour} ring`, cx: this.px(at), cy: this.py(y), r: 4 }, this.pins);
    }
  }

  grab(event) {
    if (event.button || !this.plot) return;
    this.from = this.xAt(event);
    this.host.setPointerCapture?.(event.pointerId);
  }
  drop(event) {
    if (this.from === undefined) return;
    const ends = [this.from, this.xAt(event)].sort((a, b) => a - b);
    this.from = undefined;
    this.select(null);
    if (ends[1] - ends[0] > (this.x.high - this.x.low) / 50) this.zoom(ends);
  }
  select(ends) {
    const [a, b] = ends ? ends.map((x) => this.px(x)).sort((p, q) => p - q) : [0, 0];
    this.selection.setAttribute("x", a);
    this.selection.setAttribute("width", b - a);
  }
  zoom(range) {
    this.link.range = range;
    hideTip();
    this.link.charts.forEach((chart) => chart.draw());
  }

  press(event) {
    const at = this.link.at, x = this.x;
    const points = [...new Set(this.shown.flatMap((s) => s.x.filter((v, i) => this.drawable(s.y[i]))))].sort((a, b) => a - b).filter((v) => v >= x.low && v <= x.high);
    const move = { ArrowRight: 1, ArrowLeft: -1, PageDown: 10, PageUp: -10 }[event.key];
    if (move && points.length) {
      const place = points.indexOf(at), next = points[Math.min(points.length - 1, Math.max(0, place < 0 ? 0 : place + move))];
      this.point(next);
      this.spoken.textContent = `${this.xLabel} ${written(next, 6)}: ` + this.shown.map((s) => `${s.name} ${this.value(s, next)}`).join(", ");
    } else if (event.key === "+" || event.key === "-") {
      const middle = at ?? (x.low + x.high) / 2, half = (x.high - x.low) * (event.key === "+" ? 0.25 : 1);
      const all = this.series.flatMap((s) => s.x), ends = [Math.min(...all), Math.max(...all)];
      const next = [Math.max(ends[0], middle - half), Math.min(ends[1], middle + half)];
      this.zoom(next[0] <= ends[0] && next[1] >= ends[1] ? null : next);
    } else if (event.key === "0" || event.key === "Escape") this.zoom(null);
    else return;
    event.preventDefault();
  }
}

const charts = [...document.querySelectorAll("figure[data-live]")].map((figure) => new Curves(figure));
// All widths, then all drawings: the page is laid out once.
charts.map((chart) => Math.round(chart.host.clientWidth)).forEach((width, i) => { charts[i].width = width; charts[i].draw(); });

document.querySelectorAll("input.find").forEach((input) => {
  const groups = [...input.closest("section").querySelectorAll("details.curves")];
  const open = groups.map((group) => group.open);
  input.addEventListener("input", () => {
    const wanted = input.value.trim().toLowerCase();
    groups.forEach((group, i) => {
      const figures = [...group.querySelectorAll("figure")];
      figures.forEach((figure) => { figure.hidden = !!wanted && !figure.textContent.toLowerCase().includes(wanted); });
      group.open = wanted ? figures.some((figure) => !figure.hidden) : open[i];
      group.hidden = !!wanted && !group.open;
    });
  });
});
