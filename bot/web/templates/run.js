const progress = document.getElementById("progress");
const source = new EventSource(progress.dataset.events);
source.addEventListener("message", (event) => {
  progress.innerHTML = event.data;
});
source.addEventListener("over", () => {
  source.close();
  location.reload();
});
