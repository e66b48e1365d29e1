// Calls to the emulator's HTTP API for users.

import { t } from "./words.js";

/** Messages for Telegram's error codes. */
const WORDS = {
  PHOTO_INVALID_DIMENSIONS: () => t("This picture is too large or too narrow to send as a photo, so it was removed. The limits are 80 million pixels and an aspect ratio of 20."),
  IMAGE_PROCESS_FAILED: () => t("This file can't be opened as a picture, so it was removed. It may be damaged, or its format may not match its name."),
};

/** The server refused the request; repeating it would not help. */
export class Refused extends Error {}

async function call(path, options = {}) {
  const answer = await fetch(path, options);
  const body = await answer.json();
  const code = (body.description ?? "").replace("Bad Request: ", "");
  if (!answer.ok) throw new Refused(WORDS[code]?.() ?? (code || `${path} answered ${answer.status}`));
  return body;
}

const post = (path, body) =>
  call(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });

export const overview = () => call("/people");
export const learning = () => call("/people/learning");
export const samples = () => call("/samples");
export const messages = (person, chat) => call(`/people/${person}/messages?chat=${chat}`);
export const commands = async (person, chat) => (await call(`/people/${person}/commands?chat=${chat}`)).commands;
export const speak = (person, language) => post("/people", { id: person, language });
export const write = (person, text, chat, replyTo) =>
  post(`/people/${person}/messages`, { text, chat, reply_to: replyTo });
export const edit = (person, message, text, chat) => post(`/people/${person}/edit`, { message, text, chat });
export const press = (person, message, data, chat) => post(`/people/${person}/press`, { message, data, chat });
export const react = (person, message, emoji, chat) => post(`/people/${person}/react`, { message, emoji, chat });
export const castVotes = (coin) => post("/people/sample-votes", { coin });
export const fileUrl = (id) => `/people/files/${encodeURIComponent(id)}`;

/** Send files: pictures as photos, others as documents, several of a kind as an album. A small WebP picture without a
 * caption is sent as a sticker, as in Telegram's apps. */
export async function send(person, files, caption, chat, replyTo) {
  const kinds = files.length === 1 && !caption && isSticker(files[0])
    ? [["sticker", files]]
    : [["photo", files.filter(isPhoto)], ["document", files.filter((file) => !isPhoto(file))]];
  let words = caption;
  let answer = null;
  for (const [field, some] of kinds.filter(([, some]) => some.length)) {
    const form = new FormData();
    form.append("caption", words);
    form.append("chat", chat);
    if (replyTo) form.append("reply_to", replyTo);
    for (const file of some) form.append(field, file, file.name || "picture.png");
    answer = await call(`/people/${person}/messages`, { method: "POST", body: form });
    words = "";
  }
  return answer;
}

/** Return whether Telegram's apps would send a file as a photo: a picture of at most 10 MB in a format that they display. */
export const isPhoto = (file) => /^image\/(jpeg|png|webp|gif|bmp)$/.test(file.type) && file.size <= 10 * 2 ** 20;

const isSticker = (file) => file.type === "image/webp" && file.size <= 512 * 2 ** 10;

/** Follow all events after number `after`; the browser reconnects and resumes by itself. */
export function follow(after, onEvent, onState) {
  const source = new EventSource(`/people/events?after=${after}`);
  source.onopen = () => onState(true);
  source.onerror = () => onState(false);
  source.onmessage = (event) => onEvent(JSON.parse(event.data));
}
