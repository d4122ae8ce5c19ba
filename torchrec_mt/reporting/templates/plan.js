// A click on a column's head sorts the table by it, numbers from the largest; again, the other way round.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const value = (row, at) => {
    const cell = row.cells[at], text = cell.dataset.v ?? cell.textContent;
    return text.trim() !== "" && !isNaN(text) ? Number(text) : text;
  };
  heads.forEach((head, at) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const rows = [...body.rows], numbers = rows.every((row) => typeof value(row, at) === "number");
      const now = head.getAttribute("aria-sort");
      const up = now ? now === "descending" : !numbers;
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const order = (a, b) => (numbers ? value(a, at) - value(b, at) : String(value(a, at)).localeCompare(String(value(b, at)), undefined, { numeric: true }));
      rows.sort((a, b) => (up ? order(a, b) : order(b, a)));
      body.append(...rows);
    });
  });
}
