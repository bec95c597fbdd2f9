// Filters the decisions of a step. Without this script the page shows all of them.
for (const step of document.querySelectorAll("[data-step]")) {
  const controls = step.querySelector(".filter");
  if (!controls) continue;
  const search = controls.querySelector("input");
  const action = controls.querySelector("select");
  const count = controls.querySelector("output");
  const rows = [...step.querySelectorAll("tbody tr")];
  const update = () => {
    const wanted = search.value.trim().toLowerCase();
    let shown = 0;
    for (const row of rows) {
      const fits = (!action.value || row.dataset.action === action.value) && row.textContent.toLowerCase().includes(wanted);
      row.hidden = !fits;
      shown += fits;
    }
    count.textContent = `${shown} of ${rows.length}`;
  };
  search.addEventListener("input", update);
  action.addEventListener("change", update);
  controls.hidden = false;
  update();
}
// A point of the trade-off leads to a row of a closed list: open it first.
const reveal = () => {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  const closed = target && target.closest("details");
  if (!closed) return;
  closed.open = true;
  target.scrollIntoView();
};
window.addEventListener("hashchange", reveal);
reveal();
