// Hover readouts, the token viewer's keys, and sortable tables. The page is complete without it: every number shown
// here is also in a table. Text is only ever set through textContent.
const tip = document.body.appendChild(document.createElement("div"));
tip.id = "tip";
tip.hidden = true;
tip.setAttribute("aria-hidden", "true");

function showTip(event, head, names, values) {
  const table = document.createElement("table");
  const title = document.createElement("b");
  title.textContent = head;
  names.forEach((name, i) => {
    if (values[i] === undefined || values[i] === "–") return;
    const row = table.insertRow();
    row.appendChild(document.createElement("th")).textContent = name;
    row.insertCell().textContent = values[i];
  });
  tip.replaceChildren(title, table);
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const left = event.clientX + 16 + box.width > innerWidth ? event.clientX - 16 - box.width : event.clientX + 16;
  const top = event.clientY + 16 + box.height > innerHeight ? event.clientY - 16 - box.height : event.clientY + 16;
  tip.style.left = Math.max(4, left) + "px";
  tip.style.top = Math.max(4, top) + "px";
}
const hideTip = () => { tip.hidden = true; };

document.querySelectorAll("figure.plot").forEach((figure) => {
  const table = figure.querySelector("table");
  if (!table) return;
  const headers = [...table.tHead.rows[0].cells].map((cell) => cell.textContent);
  const rows = [...table.tBodies[0].rows].filter((row) => row.dataset.u || row.dataset.v);
  if (figure.dataset.live) return; // curves.js draws it
  figure.querySelectorAll("svg.chart").forEach((svg) => {
    const [left, top, right, bottom] = svg.dataset.plot.split(" ").map(Number);
    const pin = document.createElementNS("http://www.w3.org/2000/svg", "path");
    pin.setAttribute("class", "pin");
    svg.insertBefore(pin, svg.querySelector(".hover"));
    const at = (row) => [
      row.dataset.u ? left + row.dataset.u * (right - left) : null,
      row.dataset.v ? top + row.dataset.v * (bottom - top) : null,
    ];
    svg.addEventListener("pointermove", (event) => {
      const frame = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / frame.width;
      const x = (event.clientX - frame.left) * scale, y = (event.clientY - frame.top) * scale;
      let best = null, least = Infinity;
      for (const row of rows) {
        const [px, py] = at(row);
        const distance = Math.hypot(px === null ? 0 : px - x, py === null ? 0 : py - y);
        if (distance < least) { least = distance; best = row; }
      }
      if (!best) return;
      const [px, py] = at(best), both = px !== null && py !== null;
      pin.setAttribute("d", both ? `M${px - 7} ${py}a7 7 0 1 0 14 0a7 7 0 1 0 -14 0` : px !== null ? `M${px} ${top}V${bottom}` : "");
      const cells = [...best.cells].map((cell) => cell.textContent);
      showTip(event, [headers[0], cells[0]].filter(Boolean).join(" "), headers.slice(1), cells.slice(1));
    });
    svg.addEventListener("pointerleave", () => { pin.setAttribute("d", ""); hideTip(); });
  });
});

function readTokens(viewer) {
  const tokens = [...viewer.querySelectorAll("[data-tip]")];
  const names = (viewer.dataset.names || "").split("|");
  const readout = viewer.parentNode.querySelector(".readout");
  const read = (token) => [token.dataset.at + "  " + (token.textContent.trim() || "(white space)"), token.dataset.tip.split("|")];
  let current = -1;
  viewer.addEventListener("pointerover", (event) => {
    const token = event.target.closest("[data-tip]");
    if (token) showTip(event, read(token)[0], names, read(token)[1]); else hideTip();
  });
  viewer.addEventListener("pointerleave", hideTip);
  viewer.addEventListener("keydown", (event) => {
    const move = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10 }[event.key];
    if (!move || !tokens.length) return;
    event.preventDefault();
    tokens[current]?.classList.remove("at");
    current = Math.min(tokens.length - 1, Math.max(0, current < 0 ? 0 : current + move));
    tokens[current].classList.add("at");
    tokens[current].scrollIntoView({ block: "nearest" });
    const [head, values] = read(tokens[current]);
    if (readout) readout.textContent = head + ": " + names.map((name, i) => `${name} ${values[i]}`).join(", ");
  });
}
document.querySelectorAll(".tokens").forEach(readTokens);

document.querySelectorAll("button.copy").forEach((button) => {
  const code = button.parentNode.querySelector("code");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "copied";
    } catch {
      getSelection().selectAllChildren(code);
      button.textContent = "selected";
    }
    setTimeout(() => { button.textContent = "copy"; }, 2000);
  });
});

document.querySelectorAll("table.sortable").forEach((table) => {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    head.querySelector("button")?.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") !== "descending";
      [...table.tHead.rows[0].cells].forEach((cell) => cell.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => row.cells[column].dataset.sort ?? row.cells[column].textContent;
      const order = (a, b) => {
        const x = key(a), y = key(b), numeric = x !== "" && y !== "" && !isNaN(x) && !isNaN(y);
        return numeric ? x - y : x.localeCompare(y);
      };
      const rows = [...table.tBodies[0].rows].sort((a, b) => (down ? order(b, a) : order(a, b)));
      table.tBodies[0].append(...rows);
    });
  });
});
