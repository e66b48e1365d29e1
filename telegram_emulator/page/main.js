// The demo around the phone: people, sample pictures, sample votes, the admin's commands, and the hint.

import * as api from "./api.js";
import { Chat } from "./chat.js";
import { $, h } from "./dom.js";
import { bold, joined, speak, t } from "./words.js";

const FACES = ["#3b62d9", "#b84e26", "#217a51", "#8741bb", "#8f6413", "#227488", "#b63d75"];
const FIRST_ANSWERS = 4;
const ADMIN_COMMANDS = [
  ["/status", "Show the bot's status"],
  ["/models", "List its models"],
  ["/stats", "Chart of answers and votes"],
  ["/rollback", "Go back to the previous model"],
  ["/cancel", "Cancel the run in progress"],
];

let people = [];
let groups = [];
let unread = new Map();
let votes = null;
let note = "";
let learning = { run: "", ended: 0, votes: "", back: false };
let looking = false;
let outdated = false;

function say(text, wrong = false) {
  const toast = h("div", { class: `toast${wrong ? " wrong" : ""}` }, text);
  $("toasts").append(toast);
  setTimeout(() => toast.remove(), wrong ? 5000 : 3000);
}

const chat = new Chat({ say, changed: hint, note: () => note });

/** A radio button for a person or a chat, with its number of unread messages. */
function choice(id, chosen, choose, ...content) {
  const count = unread.get(id);
  return h("button", { type: "button", class: "person", role: "radio", "aria-checked": String(chosen), onclick: choose },
    ...content, count ? h("span", { class: "unread" }, String(count)) : null);
}

function person(someone) {
  const face = h("span", { class: "face" }, [...someone.name][0] ?? "?");
  face.style.background = FACES[someone.id % FACES.length];
  const admin = someone.admin ? h("small", {}, t("admin")) : null;
  return choice(someone.id, someone.id === chat.person?.id, () => become(someone), face, someone.name, admin);
}

/** A chat of the current person: with the bot alone, or in a group. */
function place(group) {
  const face = h("span", { class: "face" }, group ? "👥" : "👍");
  const name = group?.title ?? chat.bot.first_name;
  return choice(group?.id, group?.id === chat.group?.id, () => become(chat.person, group), face, name);
}

function drawPeople() {
  $("people").replaceChildren(...people.filter((p) => !p.sample).map(person));
  $("sample-list").replaceChildren(...people.filter((p) => p.sample).map(person));
  $("sample-people").hidden = !people.some((p) => p.sample);
  $("admin").hidden = !people.some((p) => p.admin);
  const me = chat.person;
  if (me) {
    const mine = groups.filter((group) => group.members.includes(me.id));
    $("chats").hidden = !mine.length;
    $("chats").replaceChildren(...[null, ...mine].map(place));
    $("me-badge").textContent = t(me.sample ? "viewing {name}'s chat" : "you are {name}", { name: me.name });
    document.body.classList.toggle("looking", me.sample);
    $("language").value = me.language.startsWith("zh") ? "zh" : "en";
  }
}

async function become(someone, group = null) {
  showPanel(false);
  if (speak(someone.language)) drawWords();
  unread.delete(group?.id ?? someone.id);
  await chat.open(someone, group);
  sessionStorage.setItem("person", someone.id);
  sessionStorage.setItem("group", group?.id ?? "");
  drawPeople();
  hint();
}

async function asAdmin(command) {
  const admin = chat.person?.admin ? chat.person : people.find((p) => p.admin);
  if (admin.id !== chat.person?.id) say(t("You are {name} now, the admin.", admin));
  if (admin.id !== chat.chat) await become(admin);
  showPanel(false);
  await chat.write(command);
  hint();
}

function drawVotes() {
  $("votes").hidden = $("demo-title").hidden = !votes;
  const admin = people.find((p) => p.admin);
  $("demo").hidden = !votes && !admin;
  if (admin) $("admin-title").textContent = t(votes ? "Then, as {name}, the admin" : "As {name}, the admin", admin);
  if (!votes) return;
  $("cast").disabled = $("toss").disabled = votes.running;
  $("cast").textContent = t(votes.running ? "Casting votes…" : votes.done ? "Cast more sample votes" : "Cast 60 sample votes");
  $("votes-bar").setAttribute("aria-valuemax", votes.total);
  $("votes-bar").setAttribute("aria-valuenow", votes.done);
  $("votes-fill").style.width = `${votes.total ? (100 * votes.done) / votes.total : 0}%`;
  const tally = t("{done} of {total} · 👍 {ups} · 👎 {downs}", votes);
  $("votes-state").textContent = votes.error ? t("Stopped: {error}", votes) : votes.total ? tally : t("no sample votes yet");
}

/** Fetch the bot's learning status, at most once a second, and show the resulting hint. */
async function look() {
  outdated = true;
  if (looking) return;
  looking = true;
  while (outdated) {
    outdated = false;
    if (!votes?.running) learning = await api.learning().catch(() => learning);
    hint();
    await new Promise((done) => setTimeout(done, 1000));
    outdated ||= ["running", "waiting", "starting"].includes(learning.run);
  }
  looking = false;
}

const waiting = () =>
  bold("The new model is waiting for approval: press {button} under the run's result, or open the Models page.", { button: `✔ ${t("Approve")}` });

/** Return the hint about the newest run, or null. The hint about its end is shown until sample votes are cast or a
 * picture is sent, and the hint that the model has learned during its first answers. */
function aboutRun(questions) {
  const since = questions.filter((m) => m.date >= Math.floor(learning.ended));
  if (learning.run === "running") return [t("Keep chatting while it learns; the message above shows its progress.")];
  if (learning.run === "waiting") return waiting();
  if (learning.run === "starting") return [t("The new model is starting; the old one answers until it is ready.")];
  if (votes?.last > learning.ended) return null;
  if (learning.run === "live" && since.length < FIRST_ANSWERS)
    return [t(votes?.done ? "It has learned: ask again, its answers should be playful now." : "It has learned: ask again and see how it answers now.")];
  if (since.some((m) => m.photo)) return null;
  if (learning.run === "cancelled") return bold("That run was cancelled, and the bot keeps its old model. {command} starts another one.", { command: "/retrain" });
  return learning.run && learning.run !== "live" ? [t("That run has ended. The bot keeps its old model; the run's message says why and what to do next.")] : null;
}

/** Show the hint: the next step, depending on what has been done. */
function hint() {
  const said = [...chat.messages.values()];
  const own = (m) => m.from.id === chat.person?.id;
  const all = said.slice(said.findLastIndex((m) => own(m) && m.text === "/delete_my_data") + 1); // the bot has deleted the rest
  const mine = all.filter(own);
  const asked = mine.filter((m) => !m.text?.startsWith("/"));
  const buttons = all.flatMap((m) => m.reply_markup?.inline_keyboard?.flat() ?? []);
  const rateable = buttons.some((b) => b.text.includes("👍"));
  const rated = buttons.some((b) => /^(👍|👎) ✓$/.test(b.text));
  const admin = people.find((p) => p.admin);
  const button = $("cast").textContent;
  const alone = chat.person?.admin && !chat.group;
  const voted = learning.votes === "ready" && !votes?.running;
  $("hint").replaceChildren(...next());

  function next() {
    if (chat.person?.sample) return [t("You're viewing a sample person's chat. To write, choose yourself in the demo panel.")];
    const news = alone && aboutRun(said.filter((m) => own(m) && !m.text?.startsWith("/")));
    if (news) return news;
    if (alone && buttons.some((b) => /^✔ (Approve|批准)$/.test(b.text))) return waiting();
    if (chat.group && !rateable) return [t("In groups the bot answers when you mention it or reply to it: send a picture with its name in the caption.")];
    if (chat.group) return [t("Everyone here can see and rate the answers. Reply to one to ask a follow-up question.")];
    if (votes?.running) return [t("The sample people are voting. You can keep chatting in the meantime.")];
    if (alone && learning.votes === "alike")
      return learning.back
        ? bold("Nearly all answers are liked, so a run would find no preference. Give {down} to those you like less, or press {command} in the demo panel and cast votes on the earlier model.", { down: "👎", command: "/rollback" })
        : bold("Nearly all answers are liked, so a run would find no preference. Give {down} to those you like less.", { down: "👎" });
    if (voted && alone) return bold("It has votes to learn from: press {command} in the demo panel.", { command: "/retrain" });
    if (!asked.some((m) => m.photo || m.document))
      return [note ? joined(t("Send a picture: tap a sample below."), t(note)) : t("Send a picture: tap a sample below, or drop your own. A caption is your question.")];
    if (!rateable) return [t("Watch the answer stream in.")];
    if (!rated) return bold("Tell it what you like: {up} or {down} under its answer.", { up: "👍", down: "👎" });
    if (!asked.some((m) => m.text) && asked.filter((m) => m.caption).length < 2)
      return [t("Ask a follow-up question, such as “How many are there?” It remembers the picture.")];
    if (voted && admin) return bold("It has votes to learn from. Rate a few more, or choose {name}, the admin, in the demo panel to start a run.", { name: admin.name });
    return votes ? bold("Rate a few more, or press {button} in the demo panel.", { button }) : []; // a bot that reports no learning status
  }
}

/** Show or hide the demo panel in layouts where it covers the chat; the chat is inert while the panel is shown. */
function showPanel(open) {
  const was = document.body.classList.contains("panel-open");
  document.body.classList.toggle("panel-open", open);
  $("open-panel").setAttribute("aria-expanded", String(open));
  $("phone").inert = open;
  if (open) $("panel").focus();
  else if (was) $("open-panel").focus();
}

async function reload() {
  const seen = await api.overview();
  people = seen.people;
  groups = seen.groups;
  votes = seen.sample_votes;
  chat.bot = seen.bot;
  if (chat.person) chat.person = people.find((p) => p.id === chat.person.id) ?? chat.person;
  if (chat.person && speak(chat.person.language)) {
    chat.draw();
    chat.busy(null);
  }
  drawPeople();
  drawWords();
  return seen;
}

async function onEvent(event) {
  if (event.kind === "reset") return location.reload();
  if (event.kind === "person" || event.kind === "chat") return reload();
  if (event.kind === "commands") return chat.loadCommands();
  if (event.kind === "votes") {
    votes = event;
    drawVotes();
    return look();
  }
  look();
  const sample = people.some((p) => p.id === event.chat && p.sample);
  const news = event.kind === "message" && (event.message.from.is_bot || event.message.chat.type !== "private");
  if (!chat.take(event) && news && !sample) {
    unread.set(event.chat, (unread.get(event.chat) ?? 0) + 1);
    drawPeople();
  }
}

function onState(connected) {
  document.title = t(connected ? "thumbtune · a chat that learns from 👍 and 👎" : "thumbtune (not running)");
  if (connected) chat.busy(null);
  else $("bot-state").textContent = t("not running; waiting for it to come back…");
}

/** Redraw the texts that depend on the language. */
function drawWords() {
  drawVotes();
  $("admin-commands").replaceChildren(...ADMIN_COMMANDS.map(([command, word]) =>
    h("button", { type: "button", title: t(word), onclick: () => asAdmin(command) }, command)));
}

/** Give the admin the browser's language, unless the admin has already chatted. */
async function greetAdmin() {
  const admin = (await api.overview()).people.find((p) => p.admin);
  const language = navigator.language.startsWith("zh") ? "zh" : "en";
  if (!admin || admin.language.startsWith(language)) return;
  const { messages } = await api.messages(admin.id, admin.id);
  if (!messages.length) await api.speak(admin.id, language);
}

async function begin() {
  const { samples, note: said } = await api.samples();
  note = said;
  await greetAdmin();
  const seen = await reload();
  const last = (what) => Number(sessionStorage.getItem(what));
  const first = people.find((p) => p.id === last("person")) ?? people.find((p) => !p.sample);
  if (first) await become(first, groups.find((g) => g.id === last("group") && g.members.includes(first.id)));
  api.follow(seen.last_event, onEvent, onState);
  look();

  $("tray").hidden = !samples.length;
  $("tray-sticker").hidden = !samples.some((sample) => sample.sticker);
  $("tray-pictures").hidden = !$("tray-sticker").hidden;
  $("samples").replaceChildren(...samples.map((sample) => h("div", {},
    h("button", { type: "button", class: "sample", title: sample.name, onclick: () => chat.sendSample(sample) },
      h("img", { class: sample.sticker ? "cut" : "", src: sample.url, alt: t("Send the sample {name}", sample) })),
    sample.sticker ? null : h("button", {
      type: "button", class: "collect", "aria-label": t("Select the sample {name}", sample), title: t("Select it for an album"),
      onclick: () => chat.collectSample(sample),
    }, "+"))));

  $("retrain").addEventListener("click", () => asAdmin("/retrain"));
  drawWords();
  for (const [id, coin] of [["cast", false], ["toss", true]]) {
    $(id).addEventListener("click", async () => {
      $("cast").disabled = $("toss").disabled = true;
      await api.castVotes(coin).catch((error) => say(error.message, true));
      await reload();
      hint();
    });
  }
  $("language").addEventListener("change", async () => {
    await api.speak(chat.person.id, $("language").value);
    await reload();
    await chat.loadCommands();
  });
  $("open-panel").addEventListener("click", () => showPanel(true));
  $("close-panel").addEventListener("click", () => showPanel(false));
  document.addEventListener("pointerdown", (event) => {
    if (document.body.classList.contains("panel-open") && !$("panel").contains(event.target)) {
      event.preventDefault();
      showPanel(false);
    }
  });
  document.addEventListener("keydown", (event) => event.key === "Escape" && showPanel(false));
}

begin();
