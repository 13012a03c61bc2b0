// The table of documents: sort by a heading, search, choose a domain. Without this script it is a plain table.
"use strict";
(() => {
  const table = document.getElementById("listed");
  const rows = [...table.tBodies[0].rows];
  const headings = [...table.tHead.rows[0].cells];
  const bar = document.createElement("div");
  bar.className = "controls";

  const search = document.createElement("input");
  search.type = "search";
  search.placeholder = "search id and text";
  search.setAttribute("aria-label", "search documents by id and text");

  const choice = (name, options) => {
    const select = document.createElement("select");
    select.setAttribute("aria-label", name);
    for (const [value, text] of options) {
      const option = document.createElement("option");
      option.value = value;
      option.textContent = text;
      select.append(option);
    }
    return select;
  };
  const names = [...new Set(rows.map((row) => row.cells[1].textContent))].sort();
  const domain = choice("domain", [["", "every domain"], ...names.map((name) => ["=" + name, name])]);
  const kind = choice("chosen or not", [["", "chosen or not"], ["1", "chosen"], ["0", "left out"]]);

  const told = document.createElement("span");
  told.setAttribute("role", "status");
  bar.append(search, domain, kind, told);
  table.before(bar);

  const show = () => {
    const words = search.value.toLowerCase();
    let count = 0;
    for (const row of rows) {
      const fits =
        (!domain.value || "=" + row.cells[1].textContent === domain.value) &&
        (!kind.value || row.dataset.chosen === kind.value) &&
        row.textContent.toLowerCase().includes(words);
      row.hidden = !fits;
      count += fits;
    }
    told.textContent = `${count} of ${rows.length} shown`;
  };

  const sort = (place, button) => {
    const heading = headings[place];
    const up = heading.getAttribute("aria-sort") !== "ascending";
    for (const other of headings) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", up ? "ascending" : "descending");
    const value = (row) => row.cells[place].dataset.value ?? row.cells[place].textContent;
    const numbers = heading.classList.contains("number");
    const compare = (a, b) => (numbers ? Number(value(a)) - Number(value(b)) : value(a).localeCompare(value(b)));
    rows.sort((a, b) => (up ? compare(a, b) : compare(b, a)));
    table.tBodies[0].append(...rows);
    button.focus();
  };

  headings.forEach((heading, place) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = heading.textContent;
    button.addEventListener("click", () => sort(place, button));
    heading.replaceChildren(button);
  });
  for (const control of [search, domain, kind]) control.addEventListener("input", show);
  show();
})();
