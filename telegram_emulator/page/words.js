// The page's words, in the language of the person one is. English is written where it is shown; zh.json has the Chinese.

import { h } from "./dom.js";

const LABELS = ["aria-label", "title", "placeholder"];
const chinese = await (await fetch("/page/zh.json")).json();
const texts = [...document.querySelectorAll("[data-say]")].map((element) => [element, element.innerHTML.trim().replace(/\s+/g, " ")]);
const labels = LABELS.flatMap((name) => [...document.querySelectorAll(`[${name}]`)].map((element) => [element, name, element.getAttribute(name)]));
let catalogue = {};

/** Put the page into a language; true if it was in another. */
export function speak(language) {
  const code = language.startsWith("zh") ? "zh" : "en";
  if (document.documentElement.lang === code) return false;
  document.documentElement.lang = code;
  catalogue = code === "zh" ? chinese : {};
  for (const [element, english] of texts) element.innerHTML = t(english);
  for (const [element, name, english] of labels) element.setAttribute(name, t(english));
  return true;
}

/** A sentence in the page's language, its {places} filled. */
export const t = (sentence, values = {}) => (catalogue[sentence] ?? sentence).replace(/\{(\w+)\}/g, (place, name) => values[name] ?? place);

/** The same as nodes, what fills the places in bold. */
export const bold = (sentence, values) =>
  (catalogue[sentence] ?? sentence).split(/\{(\w+)\}/).map((part, turn) => (turn % 2 ? h("b", {}, values[part]) : part));
