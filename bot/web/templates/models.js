const source = new EventSource("/models/events");
source.addEventListener("message", () => {
  source.close();
  location.assign("/models");
});
