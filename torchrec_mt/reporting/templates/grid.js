// A method's key shows its marks alone in all charts; again, or another key, takes it back.
const keys = document.querySelectorAll("button[data-key]");
for (const key of keys) {
  key.setAttribute("aria-pressed", "false");
  key.addEventListener("click", () => {
    const on = key.getAttribute("aria-pressed") !== "true";
    for (const other of keys) other.setAttribute("aria-pressed", String(on && other.dataset.key === key.dataset.key));
    document.body.classList.toggle("alone", on);
    for (const mark of document.querySelectorAll(".chart g[data-method]")) mark.classList.toggle("on", on && mark.dataset.method === key.dataset.key);
  });
}
// Of the costs one is shown, the first to begin with.
const costs = document.querySelectorAll("button[data-cost]");
const show = (cost) => {
  for (const button of costs) button.setAttribute("aria-pressed", String(button.dataset.cost === cost));
  for (const part of document.querySelectorAll("div[data-cost]")) part.hidden = part.dataset.cost !== cost;
};
for (const button of costs) button.addEventListener("click", () => show(button.dataset.cost));
if (costs.length) show(costs[0].dataset.cost);
