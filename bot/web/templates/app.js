const app = window.Telegram?.WebApp;
if (app?.initData) {
  app.ready();
  app.expand();
  document.documentElement.dataset.scheme = app.colorScheme;
  const form = document.querySelector("form");
  form.init_data.value = app.initData;
  form.scheme.value = app.colorScheme;
  form.submit();
} else document.querySelector(".notice").hidden = false;
