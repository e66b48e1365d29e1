const cards = [...document.querySelectorAll(".lesson")];
const current = () => cards.indexOf(document.activeElement.closest(".lesson"));

function show(index) {
  const card = cards[Math.max(0, Math.min(index, cards.length - 1))];
  card?.focus({ preventScroll: true });
  card?.scrollIntoView({ block: "nearest" });
}

function press(decision) {
  cards[current()]?.querySelector(`form [value=${decision}]`)?.click();
}

function edit(open) {
  const card = cards[current()], details = card?.querySelector("form details");
  if (!details) return;
  details.open = open;
  if (!open) return card.focus();
  const text = card.querySelector("textarea");
  text.focus();
  text.setSelectionRange(text.value.length, text.value.length);
}

const keys = {
  j: () => show(current() + 1),
  k: () => show(current() - 1),
  y: () => press("keep"),
  d: () => press("drop"),
  e: () => edit(true),
  u: () => press("undo"),
};

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") return edit(false);
  if (event.key === "Enter" && event.ctrlKey && event.target.name === "text") return press("edit");
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select, textarea")) return;
  if (!keys[event.key]) return;
  event.preventDefault();
  keys[event.key]();
});

const decided = document.getElementById(location.hash.slice(1));
if (decided) show(cards.indexOf(decided));
