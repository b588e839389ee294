// A table is sorted by a column when its heading is pressed; without a script it stays as it is.
for (const table of document.querySelectorAll("table")) {
  const heads = table.tHead?.rows, body = table.tBodies[0];
  if (heads?.length !== 1 || body?.rows.length < 2 || body.querySelector("[rowspan]")) continue;
  const value = (row, column) => {
    const text = row.cells[column].textContent.trim().replace("−", "-").replace(/,(?=\d)/g, "");
    return Number.isNaN(parseFloat(text)) ? text : parseFloat(text);
  };
  [...heads[0].cells].forEach((head, column) => {
    if (!head.textContent.trim() || head.colSpan > 1) return;
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.onclick = () => {
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      for (const other of heads[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const order = (x, y) => (typeof x === typeof y && typeof x === "number" ? x - y : `${x}`.localeCompare(`${y}`));
      body.append(...[...body.rows].sort((a, b) => sign * order(value(a, column), value(b, column))));
    };
  });
}
