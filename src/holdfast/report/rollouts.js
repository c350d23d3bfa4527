// The browser over all logged rollouts: an index to sort and filter, and the token viewer for the one that is asked for.
const EDGES = [0.01, 0.03, 0.1, 0.3, 1];
const SORTS = {
  "worst drift first": [(r) => r.worst ?? -1, true],
  "lowest reward first": [(r) => r.reward ?? Infinity, false],
  "highest reward first": [(r) => r.reward ?? -Infinity, true],
  "longest first": [(r) => r.tokens, true],
  "latest step first": [(r) => r.step ?? -1, true],
  "in logged order": [(r) => r.place, false],
};
const PER_PAGE = 15;

class Rollouts {
  constructor(host) {
    this.host = host;
    this.parts = new Map();
    this.waiting = new Map();
    this.at = 0;
    const packed = host.dataset.rollouts;
    if (packed) {
      const log = JSON.parse(packed);
      for (const name in log.parts) this.parts.set(name, log.parts[name]);
      return this.start(log.files);
    }
    window.holdfastRollouts = (name, value) => this.waiting.get(name)?.(value);
    this.note = make("p", "absent", "Reading the index of the rollouts …", host);
    this.load("index").then((index) => { this.note.remove(); this.start(index.files); }, () => {
      this.note.textContent = `The rollouts are in the folder ${host.dataset.folder}/ next to this page, which is not there: keep the two together.`;
    });
  }

  load(name) {
    return new Promise((done, failed) => {
      this.waiting.set(name, done);
      const script = document.createElement("script");
      script.src = `${this.host.dataset.folder}/${encodeURIComponent(name)}.js`;
      script.onerror = failed;
      document.head.appendChild(script);
    });
  }
  async sequence(row) {
    if (!this.parts.has(row.part)) this.parts.set(row.part, await this.load(row.part));
    return this.parts.get(row.part)[row.inside];
  }

  start(files) {
    this.rows = files.flatMap((file) => file.rows.map(([step, prompt, reward, verdict, tokens, worst, part, inside]) => ({ step, prompt: file.prompts[prompt], reward, verdict, tokens, worst, part: file.parts[part], inside })));
    this.rows.forEach((row, i) => { row.place = i; });
    const form = make("form", "", "", this.host);
    form.addEventListener("submit", (event) => event.preventDefault());
    const field = (name, input) => { make("label", "", name, form).append(input); input.addEventListener("input", () => { this.at = 0; this.list(); }); return input; };
    const select = (options) => { const made = make("select"); options.forEach((o) => make("option", "", o, made)); return made; };
    const input = (kind, hint) => Object.assign(make("input"), { type: kind, placeholder: hint, step: "any" });
    this.sort = field("order", select(Object.keys(SORTS)));
    this.verdict = field("mask", select(["any", ...new Set(this.rows.map((r) => r.verdict))]));
    const ends = (key) => { const known = this.rows.map((r) => r[key]).filter((v) => v !== null); return known.length ? [known.reduce((a, b) => Math.min(a, b)), known.reduce((a, b) => Math.max(a, b))] : ["", ""]; };
    [this.from, this.to] = ends("step").map((end, i) => field(i ? "to step" : "from step", input("number", String(end))));
    [this.least, this.most] = ends("reward").map((end, i) => field(i ? "highest reward" : "lowest reward", input("number", String(end))));
    this.search = field("prompt has", input("search", "any text"));
    const scroll = make("div", "scroll", "", this.host);
    Object.assign(scroll, { tabIndex: 0 });
    scroll.setAttribute("role", "group");
    scroll.setAttribute("aria-label", "Logged rollouts");
    this.table = make("table", "", "", scroll);
    const pager = make("div", "pager", "", this.host);
    const turn = (words, by) => { const button = make("button", "", words, pager); button.addEventListener("click", () => { this.at += by * PER_PAGE; this.list(); }); return button; };
    this.back = turn("previous", -1);
    this.next = turn("next", 1);
    this.count = make("span", "", "", pager);
    this.count.setAttribute("aria-live", "polite");
    this.view = make("div", "", "", this.host);
    this.list();
  }

  chosen() {
    const number = (field) => (field.value === "" ? null : Number(field.value)), text = this.search.value.toLowerCase();
    const [from, to, least, most] = [this.from, this.to, this.least, this.most].map(number);
    const within = (v, low, high) => (low === null || (v !== null && v >= low)) && (high === null || (v !== null && v <= high));
    const [key, down] = SORTS[this.sort.value];
    return this.rows
      .filter((r) => (this.verdict.value === "any" || r.verdict === this.verdict.value) && within(r.step, from, to) && within(r.reward, least, most) && (!text || r.prompt.toLowerCase().includes(text)))
      .sort((a, b) => { const x = key(a), y = key(b); return x === y ? a.place - b.place : (x < y) === down ? 1 : -1; });
  }

  list() {
    const found = this.chosen(), page = found.slice(this.at, this.at + PER_PAGE);
    this.table.replaceChildren();
    const head = this.table.createTHead().insertRow();
    ["prompt", "step", "reward", "mask", "tokens", "worst |log ratio|"].forEach((name, i) => {
      const cell = make("th", i === 0 || i === 3 ? "" : "num", name, head);
      cell.scope = "col";
    });
    const body = this.table.createTBody();
    for (const row of page) {
      const line = body.insertRow(), cell = make("th", "said", "", line);
      cell.scope = "row";
      const button = make("button", "", row.prompt || "(no prompt)", cell);
      button.addEventListener("click", () => this.open(row, line));
      if (row === this.current) line.className = "open";
      [[row.step ?? "–", 1], [written(row.reward), 1], [row.verdict, 0], [row.tokens.toLocaleString("en"), 1], [written(row.worst), 1]].forEach(([text, num]) => make("td", num ? "num" : "", String(text), line));
    }
    this.back.disabled = this.at === 0;
    this.next.disabled = this.at + PER_PAGE >= found.length;
    const shown = found.length ? `${this.at + 1} to ${this.at + page.length} of ${found.length.toLocaleString("en")}` : "none";
    this.count.textContent = `${shown}${found.length < this.rows.length ? ` (${this.rows.length.toLocaleString("en")} logged)` : ""}`;
  }

  async open(row, line) {
    this.table.querySelector("tr.open")?.classList.remove("open");
    line.classList.add("open");
    this.current = row;
    let sequence;
    try { sequence = await this.sequence(row); } catch {
      this.view.replaceChildren(make("p", "absent", `${this.host.dataset.folder}/${row.part}.js cannot be read: write the page again with holdfast report.`));
      return;
    }
    if (this.current === row) this.view.replaceChildren(tokenView(row, sequence));
  }
}

function tokenView(row, s, most = 4000) {
  const view = make("div", "viewer"), count = (s.texts || s.ids).length;
  make("h3", "", `Step ${row.step ?? "–"}: ${row.prompt || "a sequence"}`.slice(0, 120), view);
  const why = make("p", "", "", view);
  make("span", `chip ${{ accepted: "good", rejected: "bad", "partly masked": "bad" }[row.verdict] || ""}`, row.verdict, why);
  why.append(`${s.why}.`);
  const tokens = make("div", `tokens${row.verdict === "rejected" ? " all-out" : ""}`, "", view);
  Object.assign(tokens, { tabIndex: 0 });
  tokens.setAttribute("role", "group");
  tokens.setAttribute("aria-label", "tokens; arrow keys read them one by one");
  tokens.dataset.names = `engine logprob|trainer logprob|log ratio|${s.proven ? "KL at least" : "exact KL"}|mask`;
  if (s.prompt) make("span", "prompt", s.prompt, tokens);
  const words = { k: "kept", m: "masked", g: "not the policy's own", n: "–" }, sizes = [];
  const one = (i) => {
    const known = s.engine && s.trainer && s.engine[i] !== null && s.trainer[i] !== null, ratio = known ? s.trainer[i] - s.engine[i] : null;
    const level = ratio === null ? 0 : EDGES.filter((edge) => Math.abs(ratio) >= edge).length;
    if (ratio !== null) sizes.push(Math.abs(ratio));
    const css = [level ? (ratio > 0 ? "p" : "n") + level : "", s.mask[i] === "g" ? "given" : "", s.mask[i] === "m" ? "out" : "", s.texts ? "" : "id"].filter(Boolean).join(" ");
    const token = make("span", css, "", tokens);
    const text = s.texts ? s.texts[i].replace(/[Ġ▁]/g, " ").replace(/Ċ/g, "\n") : String(s.ids[i]);
    (text || "∅").split("\n").forEach((part, k) => { if (k) { make("i", "eol", "↵", token); token.append("\n"); } token.append(part); });
    token.dataset.at = i + 1;
    token.dataset.tip = [written(s.engine?.[i]), written(s.trainer?.[i]), written(ratio), written(s.kl?.[i]), words[s.mask[i]]].join("|");
  };
  for (let i = 0; i < Math.min(count, most); i++) one(i);
  const readout = make("p", "readout", "", view);
  readout.setAttribute("aria-live", "polite");
  if (count > most) {
    const rest = make("button", "tool", `show the other ${(count - most).toLocaleString("en")} tokens`, view);
    rest.addEventListener("click", () => view.replaceWith(tokenView(row, s, Infinity)));
  }
  const line = make("p", "facts-line", "", view);
  const facts = [["step", row.step], ["environment", s.environment], ["reward", row.reward === null ? null : written(row.reward)], ["tokens", count], ["finished by", s.finish], ["expected answer", s.answer], ["largest |log ratio|", written(row.worst)]];
  facts.filter(([, value]) => value !== null && value !== undefined && value !== "–").forEach(([name, value], i) => { line.append(`${i ? " · " : ""}${name} `); make("b", "", String(value), line); });
  readTokens(tokens);
  return view;
}

document.querySelectorAll(".browse").forEach((host) => new Rollouts(host));
