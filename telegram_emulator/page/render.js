// Bot API messages as elements: bubbles, pictures, files, entities, buttons.

import { fileUrl } from "./api.js";
import { h } from "./dom.js";
import { t } from "./words.js";

const WRAP = {
  bold: () => h("b"),
  italic: () => h("i"),
  underline: () => h("u"),
  strikethrough: () => h("s"),
  spoiler: () => h("span", { class: "spoiler" }),
  code: () => h("code"),
  pre: () => h("pre"),
  blockquote: () => h("blockquote"),
  expandable_blockquote: () => h("blockquote"),
  text_link: (entity) => link(entity.url),
  url: (_, text) => link(text),
};

function link(url) {
  const safe = /^(https?|tg):/.test(url);
  return safe ? h("a", { href: url, target: "_blank", rel: "noopener noreferrer" }) : h("span");
}

/** Return the text with its entities; offsets are in UTF-16 units, as in JavaScript. */
function rich(text, entities = [], onCommand) {
  const root = h("div", { class: "text" });
  place(root, text, 0, text.length, entities, onCommand);
  return root;
}

function place(parent, text, begin, end, entities, onCommand) {
  let at = begin;
  const rest = [...entities];
  while (rest.length) {
    const entity = rest.shift();
    const stop = Math.min(end, entity.offset + entity.length);
    if (entity.offset < at || entity.offset >= end) continue;
    parent.append(text.slice(at, entity.offset));
    const words = text.slice(entity.offset, stop);
    const inner = [];
    while (rest.length && rest[0].offset < stop) inner.push(rest.shift());
    if (entity.type === "bot_command") {
      parent.append(h("button", { type: "button", class: "command", onclick: () => onCommand(words) }, words));
    } else {
      const wrapped = (WRAP[entity.type] || (() => h("span")))(entity, words);
      place(wrapped, text, entity.offset, stop, inner, onCommand);
      parent.append(wrapped);
    }
    at = stop;
  }
  parent.append(text.slice(at, end));
}

const clock = (seconds) =>
  new Date(seconds * 1000).toLocaleTimeString(document.documentElement.lang, { hour: "2-digit", minute: "2-digit", hour12: false });

export const day = (seconds) =>
  new Date(seconds * 1000).toLocaleDateString(document.documentElement.lang, { day: "numeric", month: "long" });

const size = (bytes) => (bytes < 2 ** 20 ? `${Math.ceil(bytes / 1024)} KB` : `${(bytes / 2 ** 20).toFixed(1)} MB`);

function photo(message, onView) {
  const largest = message.photo[message.photo.length - 1];
  const tiny = largest.width < 300 || largest.height < 200;
  const image = h("img", {
    src: fileUrl(largest.file_id), alt: message.caption || t("Picture"), width: largest.width, height: largest.height,
  });
  return h("button", { type: "button", class: `photo${tiny ? " tiny" : ""}`, onclick: () => onView(image.src) }, image);
}

function sticker(message) {
  const { file_id, emoji } = message.sticker;
  return h("img", { class: "sticker", src: fileUrl(file_id), alt: `${t("Sticker")} ${emoji}` });
}

function file(document_) {
  const words = h("div", {}, document_.file_name || t("File"), h("small", {}, size(document_.file_size)));
  return h("a", { class: "file", href: fileUrl(document_.file_id), download: document_.file_name }, h("i", {}, "⤓"), words);
}

function quote(message) {
  const reply = message.reply_to_message;
  if (!reply) return null;
  return h("span", { class: "quote" }, reply.text || reply.caption || t(reply.photo ? "Picture" : reply.sticker ? "Sticker" : "File"));
}

function keys(message, waiting, on) {
  const rows = message.reply_markup?.inline_keyboard;
  if (!rows) return null;
  const key = (button) => {
    const link = button.url ?? button.web_app?.url;
    if (link) return h("a", { href: link, target: "_blank", rel: "noopener noreferrer" }, `${button.text} ↗`);
    const thumb = /[👍👎]/u.test(button.text) && button.text.length <= 6;
    const classes = `${thumb ? "thumb" : ""} ${waiting === button.callback_data ? "waiting" : ""}`;
    return h("button", { type: "button", class: classes, onclick: () => on.press(message, button.callback_data) }, button.text);
  };
  return h("div", { class: "keys" }, ...rows.map((row) => h("div", {}, ...row.map(key))));
}

/** Return a message as an element. `on` holds the actions command, press, view, edit, reply and react; `waiting` is the
 * data of a press that has not been answered yet. */
export function render(message, { me, waiting = "", reaction = "", group = false, on }) {
  const mine = message.from.id === me;
  const text = message.text ?? message.caption ?? "";
  const entities = message.entities ?? message.caption_entities;
  const thinking = message.from.is_bot && message.text && !/[\p{L}\p{N}]/u.test(message.text);
  const over = (message.photo || message.sticker) && !text;
  const meta = h("span", { class: `meta${over ? " over" : ""}` }, `${message.edit_date && mine ? `${t("edited")} ` : ""}${clock(message.date)}`);
  const dots = () => h("span", { class: "dots", "aria-label": t("writing") }, h("i"), h("i"), h("i"));
  const kind = `${over ? " bare" : ""}${message.photo ? " pictured" : ""}${message.sticker ? " stuck" : ""}`;
  const bubble = h("div", { class: `bubble${kind}` },
    group && !mine ? h("div", { class: "from" }, message.from.first_name) : null,
    quote(message),
    message.photo ? photo(message, on.view) : null,
    message.sticker ? sticker(message) : null,
    message.document ? file(message.document) : null,
    thinking ? dots() : text ? rich(text, entities, on.command) : null,
  );
  if (message.photo) {
    const largest = message.photo[message.photo.length - 1];
    bubble.style.setProperty("--ratio", largest.width / largest.height);
  }
  (bubble.querySelector(":scope > .text") ?? bubble).append(meta);
  const rateable = !mine && message.reply_markup?.inline_keyboard?.flat().some((button) => button.text.includes("👍"));
  const act = (label, sign, doing) => h("button", { type: "button", "aria-label": label, title: label, onclick: doing }, sign);
  bubble.append(h("div", { class: "acts" },
    act(t("Reply"), "↩", () => on.reply(message)),
    mine && (message.text || message.photo) ? act(t("Edit"), "✎", () => on.edit(message)) : null,
    rateable ? act(t("React with 👍"), "👍", () => on.react(message, "👍")) : null,
    rateable ? act(t("React with 👎"), "👎", () => on.react(message, "👎")) : null));
  const badge = reaction ? h("span", { class: "reaction" }, reaction) : null;
  return h("article", { class: `message${mine ? " mine" : ""}`, "data-id": message.message_id }, bubble, badge, keys(message, waiting, on));
}
