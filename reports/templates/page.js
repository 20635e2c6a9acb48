(() => {
  "use strict";
  const box = document.getElementById("values");
  const values = new Map();  // mark -> what it says; a <title> would appear late, and never on a touch screen
  for (const title of document.querySelectorAll("svg .mark > title")) {
    values.set(title.parentNode, title.textContent);
    title.remove();
  }

  // A strategy lights up in every figure and table: under the pointer, or until the next click or Escape.
  const owned = [...document.querySelectorAll("[data-strategy]")].filter((one) => one.dataset.strategy);
  let pinned = null;
  const light = (strategy) => {
    document.body.classList.toggle("focused", strategy !== null);
    for (const one of owned) one.classList.toggle("on", one.dataset.strategy === strategy);
  };
  const ownerOf = (event) => {
    const mark = event.target.closest(".mark");
    if (mark) return mark;
    const cell = event.target.closest("td");
    return cell && cell.cellIndex === 0 ? cell.closest("tr[data-strategy]") : null;
  };
  const strategyOf = (owner) => (owner && owner.dataset.strategy) || null;
  document.addEventListener("pointerover", (event) => {
    const owner = ownerOf(event);
    light(strategyOf(owner) || pinned);
    box.hidden = !values.has(owner);
    box.textContent = values.get(owner) || "";
  });
  document.addEventListener("pointermove", (event) => {
    box.style.left = Math.max(4, Math.min(event.clientX + 14, innerWidth - box.offsetWidth - 8)) + "px";
    const below = event.clientY + 18;
    box.style.top = (below + box.offsetHeight > innerHeight ? event.clientY - box.offsetHeight - 12 : below) + "px";
  });
  document.addEventListener("click", (event) => {
    const strategy = strategyOf(ownerOf(event));
    pinned = strategy === pinned ? null : strategy;
    light(pinned);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") light(pinned = null);
  });
  for (const row of document.querySelectorAll("tr[data-strategy]")) {
    row.cells[0].tabIndex = 0;
    row.cells[0].addEventListener("focus", () => light(row.dataset.strategy));
    row.cells[0].addEventListener("blur", () => light(pinned));
  }

  // Tables of three rows and more are sorted by a click on a heading; what is missing stays last.
  const order = (column, sign) => (a, b) => {
    const [one, other] = [a.cells[column], b.cells[column]];
    const last = ("missing" in one.dataset) - ("missing" in other.dataset);
    if (last) return last;
    const words = !("sort" in one.dataset) - !("sort" in other.dataset);
    if (words) return words;
    if ("sort" in one.dataset) return sign * (one.dataset.sort - other.dataset.sort);
    return sign * one.textContent.localeCompare(other.textContent, "en");
  };
  for (const table of document.querySelectorAll("table")) {
    const body = table.tBodies[0];
    if (!body || body.rows.length < 3) continue;
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.append(...head.childNodes);
      head.append(button);
      head.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => {
        const upwards = head.getAttribute("aria-sort") !== "ascending";
        for (const one of heads) one.setAttribute("aria-sort", "none");
        head.setAttribute("aria-sort", upwards ? "ascending" : "descending");
        body.append(...[...body.rows].sort(order(column, upwards ? 1 : -1)));
      });
    });
  }

  // What is folded away belongs on paper too.
  const folded = [...document.querySelectorAll("details:not([open])")];
  addEventListener("beforeprint", () => folded.forEach((one) => (one.open = true)));
  addEventListener("afterprint", () => folded.forEach((one) => (one.open = false)));
})();
