// The draft: a text, its pictures, the message that it edits or replies to, and the command menu.

import { isPhoto } from "./api.js";
import { $, h } from "./dom.js";
import { t } from "./words.js";

export class Composer {
  /** `send(draft)` receives a text, files and the IDs of the messages that it edits and replies to, and returns a true
   * value if they were sent; `command(text)` sends a command; `say(text, wrong)` shows a toast. */
  constructor({ say, send, command }) {
    this.say = say;
    this.send = send;
    this.command = command;
    this.opening = "";
    this.menu = [];
    this.files = [];
    this.editing = null;
    this.replying = null;
    this.listen();
  }

  /** Start in another chat, where a new message begins with `opening`. */
  open(opening) {
    this.opening = opening;
    this.cancel();
  }

  /** Set the command menu. */
  offer(menu) {
    this.menu = menu;
    $("open-menu").hidden = !menu.length;
  }

  draft() {
    const { files, editing, replying } = this;
    return { text: $("text").value.trim(), files, editing: editing?.message_id, replyTo: replying?.message_id };
  }

  async submit() {
    const draft = this.draft();
    if (await this.send(draft)) this.clear(draft.text);
  }

  /** Send files with the draft's text as a new message. */
  async sendWith(files) {
    const { text, replyTo, editing } = this.draft();
    if (await this.send({ text: editing ? "" : text, files, replyTo })) this.clear(text);
  }

  /** Clear the draft whose text has been sent; what was typed in the meantime stays. */
  clear(sent) {
    const typed = $("text").value;
    this.cancel();
    if (!typed.trim() || typed.trim() === sent) return;
    $("text").value = typed;
    this.grow();
  }

  edit(message) {
    this.cancel();
    this.editing = message;
    $("text").value = message.text ?? message.caption ?? "";
    $("text").focus();
    this.drawChips();
    this.grow();
  }

  reply(message) {
    this.cancel();
    this.replying = message;
    if (message.from.is_bot) $("text").value = ""; // a reply to the bot needs no mention
    $("text").focus();
    this.drawChips();
  }

  cancel() {
    this.editing = null;
    this.replying = null;
    this.files = [];
    $("text").value = this.opening;
    this.drawChips();
    this.grow();
    this.drawMenu();
  }

  attach(files) {
    this.editing = null;
    this.files.push(...files);
    if (this.files.length > 10) this.say(t("An album can have up to ten pictures"), true);
    this.files = this.files.slice(0, 10);
    this.drawChips();
    $("text").focus();
  }

  detach(files) {
    this.files = this.files.filter((file) => !files.includes(file));
    this.drawChips();
  }

  drawChips() {
    const chip = (content, off) =>
      h("div", { class: "chip" }, content, h("button", { type: "button", "aria-label": t("Remove"), onclick: off }, "✕"));
    const chips = this.files.map((file, index) => {
      const drop = () => {
        this.files.splice(index, 1);
        this.drawChips();
      };
      if (!isPhoto(file)) return chip(h("span", {}, file.name), drop);
      const url = URL.createObjectURL(file);
      return chip(h("img", { src: url, alt: file.name, onload: () => URL.revokeObjectURL(url) }), drop);
    });
    if (this.editing) chips.push(chip(h("span", { class: "wide" }, t("✎ Editing your message")), () => this.cancel()));
    if (this.replying) {
      const words = this.replying.text ?? this.replying.caption ?? t("a picture");
      chips.push(chip(h("span", { class: "wide" }, `↩ ${words.slice(0, 60)}`), () => this.cancel()));
    }
    $("chips").replaceChildren(...chips);
    $("chips").hidden = !chips.length;
    $("text").placeholder = t(this.files.length ? "Ask about the picture" : "Write a message");
  }

  grow() {
    const box = $("text");
    box.style.height = "auto";
    box.style.height = `${Math.min(140, box.scrollHeight + 2)}px`;
  }

  drawMenu(all = false) {
    const typed = $("text").value;
    const open = all || (/^\/\w*$/.test(typed) && !this.editing);
    const fitting = open ? this.menu.filter((item) => all || `/${item.command}`.startsWith(typed)) : [];
    const pick = (item) => {
      this.cancel();
      this.command(`/${item.command}`);
      $("text").focus();
    };
    $("menu").replaceChildren(...fitting.map((item) =>
      h("button", { type: "button", role: "option", onclick: () => pick(item) }, h("b", {}, `/${item.command}`), h("span", {}, item.description))));
    $("menu").hidden = !fitting.length;
  }

  listen() {
    $("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    $("text").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        this.submit();
      }
      if (event.key === "Escape") this.cancel();
    });
    $("text").addEventListener("input", () => {
      this.grow();
      this.drawMenu();
    });
    $("open-menu").addEventListener("click", () => ($("menu").hidden ? this.drawMenu(true) : this.drawMenu()));
    $("attach").addEventListener("click", () => $("file").click());
    $("file").addEventListener("change", () => {
      this.attach($("file").files);
      $("file").value = "";
    });
    document.addEventListener("paste", (event) => {
      if (event.clipboardData.files.length) {
        event.preventDefault();
        this.attach(event.clipboardData.files);
      }
    });
    let depth = 0;
    const drag = (change) => {
      depth = Math.max(0, depth + change);
      $("drop").hidden = !depth;
    };
    document.addEventListener("dragenter", (event) => event.dataTransfer.types.includes("Files") && drag(1));
    document.addEventListener("dragleave", (event) => event.dataTransfer.types.includes("Files") && drag(-1));
    document.addEventListener("dragover", (event) => event.preventDefault());
    document.addEventListener("drop", (event) => {
      event.preventDefault();
      drag(-depth);
      if (event.dataTransfer.files.length) this.attach(event.dataTransfer.files);
    });
  }
}
