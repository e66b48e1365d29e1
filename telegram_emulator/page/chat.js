// The phone: one person's chat with its messages and actions. The draft is handled in composer.js.

import * as api from "./api.js";
import { Composer } from "./composer.js";
import { $, h } from "./dom.js";
import { day, render } from "./render.js";
import { t } from "./words.js";

export class Chat {
  /** `say(text, wrong)` shows a toast; `changed()` is called after everything that may change the hint; `note()`
   * returns the line above the invitation to send a picture. */
  constructor({ say, changed, note }) {
    this.say = say;
    this.changed = changed;
    this.note = note;
    this.bot = null;
    this.person = null;
    this.group = null;
    this.messages = new Map();
    this.waiting = new Map();
    this.reactions = new Map();
    this.composer = new Composer({ say, send: (draft) => this.attempt(() => this.send(draft), draft.files), command: (text) => this.write(text) });
    this.listen();
  }

  /** Show a person's chat with the bot, or a `group` to which both belong. */
  async open(person, group = null) {
    this.person = person;
    this.chat = group?.id ?? person.id;
    this.group = group;
    $("bot-name").textContent = group?.title ?? this.bot.first_name;
    $("avatar").textContent = group ? "👥" : "👍";
    this.busy(null);
    this.composer.open(this.opening());
    const { messages } = await api.messages(person.id, this.chat);
    this.messages = new Map(messages.map((message) => [message.message_id, message]));
    this.draw();
    this.loadCommands();
  }

  async loadCommands() {
    this.composer.offer(await api.commands(this.person.id, this.chat));
  }

  /** Apply an event; return whether it belongs to this chat. */
  take(event) {
    if (event.chat !== this.chat) return false;
    if (event.kind === "message" || event.kind === "edited") this.put(event.message);
    if (event.kind === "deleted") {
      this.messages.delete(event.message_id);
      this.draw();
    }
    if (event.kind === "action") this.busy(event.action);
    if (event.kind === "force_reply" && this.messages.has(event.message_id)) this.composer.reply(this.messages.get(event.message_id));
    if (event.kind === "reaction") {
      this.reactions.set(event.message_id, event.emoji);
      const message = this.messages.get(event.message_id);
      if (message) this.put(message);
    }
    if (event.kind === "toast" && event.person === this.person.id) {
      this.wait(event.message_id);
      if (event.text) this.say(event.text);
    }
    this.changed();
    return true;
  }

  put(message) {
    const below = this.atEnd();
    this.messages.set(message.message_id, message);
    const element = this.element(message);
    const old = $("messages").querySelector(`[data-id="${message.message_id}"]`);
    if (old) old.replaceWith(element);
    else if (this.messages.size === 1) this.draw();
    else {
      element.classList.add("new");
      this.append(message, element);
    }
    const growing = message.reply_markup?.inline_keyboard?.flat().some((button) => button.text.startsWith("⏹"));
    if (message.from.is_bot && !growing) this.busy(null);
    if (below || message.from.id === this.person.id) this.toEnd();
    else $("to-end").hidden = false;
  }

  /** Append an element; the pictures of an album share one container. */
  append(message, element) {
    const list = $("messages");
    const album = message.media_group_id;
    if (!album || !message.photo) return list.append(element);
    if (list.lastElementChild?.dataset.album !== album) {
      const mine = message.from.id === this.person.id ? " mine" : "";
      list.append(h("div", { class: `album${mine}`, "data-album": album }));
    }
    return list.lastElementChild.append(element);
  }

  element(message) {
    return render(message, {
      me: this.person.id,
      group: Boolean(this.group),
      waiting: this.waiting.get(message.message_id),
      reaction: this.reactions.get(message.message_id),
      on: {
        command: (text) => this.write(text),
        press: (pressed, data) => this.press(pressed, data),
        view: (source) => this.view(source),
        edit: (own) => this.composer.edit(own),
        reply: (to) => this.composer.reply(to),
        react: (to, emoji) => this.react(to, emoji),
      },
    });
  }

  draw() {
    const list = $("messages");
    list.replaceChildren();
    if (!this.messages.size) list.append(this.welcome());
    let shown = "";
    for (const message of this.messages.values()) {
      const today = day(message.date);
      if (today !== shown) list.append(h("div", { class: "day" }, today));
      shown = today;
      this.append(message, this.element(message));
    }
    this.toEnd();
    this.changed();
  }

  welcome() {
    return h("div", { class: "welcome" },
      h("div", { class: "big" }, "🖼️"),
      h("strong", {}, t("Send a picture and ask about it")),
      this.note() ? h("p", { class: "note" }, t(this.note())) : null,
      h("p", {}, t(this.note() ? "Pick a sample below." : "Pick a sample below, or drop or paste your own picture here.")),
      h("button", { type: "button", class: "primary", onclick: () => this.write("/start") }, t("Start")));
  }

  atEnd() {
    const list = $("messages");
    return list.scrollHeight - list.scrollTop - list.clientHeight < 80;
  }

  toEnd() {
    const list = $("messages");
    list.scrollTop = list.scrollHeight;
    this.pinned = true;
    $("to-end").hidden = true;
  }

  busy(action) {
    clearTimeout(this.busyTimer);
    const words = { typing: "typing…", upload_photo: "sending a picture…", upload_document: "sending a file…" };
    $("bot-state").textContent = action ? t(words[action] ?? "working…") : this.resting();
    $("bot-state").classList.toggle("busy", Boolean(action));
    if (action) this.busyTimer = setTimeout(() => this.busy(null), 5000);
  }

  /** The line under the name while the bot is idle. */
  resting() {
    return this.group ? t("{number} people and the bot", { number: this.group.members.length }) : t("bot");
  }

  /** The text that a new message begins with: in a group, a mention of the bot. */
  opening() {
    return this.group ? `@${this.bot.username} ` : "";
  }

  /** Run `doing` and show its error, if any. If the server refused `files`, they are removed from the draft. */
  async attempt(doing, files = []) {
    try {
      return await doing();
    } catch (error) {
      this.say(error.message, true);
      if (error instanceof api.Refused) this.composer.detach(files);
      return null;
    }
  }

  write(text) {
    return this.attempt(() => api.write(this.person.id, text, this.chat));
  }

  /** Send the draft, or change the message that it edits. */
  send({ text, files, editing, replyTo }) {
    if (editing) return api.edit(this.person.id, editing, text, this.chat);
    if (files.length) return api.send(this.person.id, files, text, this.chat, replyTo);
    return text ? api.write(this.person.id, text, this.chat, replyTo) : null;
  }

  async press(message, data) {
    this.wait(message.message_id, data);
    setTimeout(() => this.wait(message.message_id), 15000);
    if (!(await this.attempt(() => api.press(this.person.id, message.message_id, data, this.chat)))) return this.wait(message.message_id);
    return this.changed();
  }

  /** Mark the message's button with this data as pressed until the bot answers, or no button if `data` is undefined. */
  wait(message, data) {
    if (data) this.waiting.set(message, data);
    else if (!this.waiting.delete(message)) return;
    if (this.messages.has(message)) this.put(this.messages.get(message));
  }

  view(source) {
    $("viewer").querySelector("img").src = source;
    $("viewer").showModal();
  }

  async sampleFile(sample) {
    const picture = await (await fetch(sample.url)).blob();
    return new File([picture], `${sample.name}.${sample.sticker ? "webp" : "jpg"}`, { type: picture.type });
  }

  async collectSample(sample) {
    this.composer.attach([await this.sampleFile(sample)]);
  }

  /** Send a sample. A sticker is sent alone and without a caption, so the draft is kept. */
  async sendSample(sample) {
    if (this.composer.files.length && !sample.sticker) return this.collectSample(sample);
    const file = await this.sampleFile(sample);
    if (sample.sticker) return this.attempt(() => this.send({ text: "", files: [file], replyTo: this.composer.draft().replyTo }));
    return this.composer.sendWith([file]);
  }

  react(message, emoji) {
    const taken = this.reactions.get(message.message_id) === emoji ? "" : emoji;
    return this.attempt(() => api.react(this.person.id, message.message_id, taken, this.chat));
  }

  listen() {
    $("to-end").addEventListener("click", () => this.toEnd());
    let top = 0;
    $("messages").addEventListener("scroll", () => {
      const { scrollTop } = $("messages");
      this.pinned = this.atEnd() || (this.pinned && scrollTop >= top); // a picture that loads moves the end, not the view
      top = scrollTop;
      if (this.pinned) $("to-end").hidden = true;
    });
    $("messages").addEventListener("load", () => this.pinned && this.toEnd(), true); // a picture's height is now known
    new ResizeObserver(() => this.pinned && this.toEnd()).observe($("messages"));
    $("viewer").addEventListener("click", () => $("viewer").close());
  }
}
