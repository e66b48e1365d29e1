// Translations, by the language of the current person. The English texts are in the code, the Chinese ones in zh.json.

import { h } from "./dom.js";

const LABELS = ["aria-label", "title", "placeholder"];
const chinese = await (await fetch("/page/zh.json")).json();
const texts = [...document.querySelectorAll("[data-say]")].map((element) => [element, element.innerHTML.trim().replace(/\s+/g, " ")]);
const labels = LABELS.flatMap((name) => [...document.querySelectorAll(`[${name}]`)].map((element) => [element, name, element.getAttribute(name)]));
let catalogue = {};

/** Switch the page's language, and return whether it changed. */
export function speak(language) {
  const code = language.startsWith("zh") ? "zh" : "en";
  if (document.documentElement.lang === code) return false;
  document.documentElement.lang = code;
  catalogue = code === "zh" ? chinese : {};
  for (const [element, english] of texts) element.innerHTML = t(english);
  for (const [element, name, english] of labels) element.setAttribute(name, t(english));
  return true;
}

/** Return a sentence in the page's language with its {placeholders} filled in. */
export const t = (sentence, values = {}) => (catalogue[sentence] ?? sentence).replace(/\{(\w+)\}/g, (place, name) => values[name] ?? place);

/** Return the same sentence as nodes, with the values in bold. */
export const bold = (sentence, values) =>
  (catalogue[sentence] ?? sentence).split(/\{(\w+)\}/).map((part, turn) => (turn % 2 ? h("b", {}, values[part]) : part));

/** Return translated sentences one after the other; in Chinese, no space separates them. */
export const joined = (...sentences) => sentences.join(catalogue === chinese ? "" : " ");
