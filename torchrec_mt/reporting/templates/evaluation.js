// A key of a map shows its group alone; again, or another key, takes it back.
for (const figure of document.querySelectorAll("figure.mapped")) {
  const map = figure.querySelector("svg.map"), keys = figure.querySelectorAll("button[data-group]");
  for (const key of keys) {
    key.setAttribute("aria-pressed", "false");
    key.addEventListener("click", () => {
      const on = key.getAttribute("aria-pressed") !== "true";
      for (const other of keys) other.setAttribute("aria-pressed", String(on && other === key));
      map.classList.toggle("alone", on);
      for (const point of map.children) point.classList.toggle("on", on && point.classList.contains(key.dataset.group));
    });
  }
}
