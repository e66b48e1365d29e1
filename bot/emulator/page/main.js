// The demo around the phone: who one is, sample pictures, sample votes, the admin's commands, and what to do next.

import * as api from "./api.js";
import { Chat } from "./chat.js";
import { h } from "./render.js";

const $ = (id) => document.getElementById(id);
const FACES = ["#4f7cff", "#e2734a", "#2f9e6b", "#a35bd6", "#c9942b", "#3aa3b8", "#d1588f"];
const ADMIN_COMMANDS = [
  ["/status", "What it is doing just now"],
  ["/models", "The models it has learned"],
  ["/stats", "Answers and votes over time, as a picture"],
  ["/rollback", "Go back to the model before"],
  ["/cancel", "Stop a training that is under way"],
];

let people = [];
let groups = [];
let unread = new Map();
let votes = null;

function say(text, wrong = false) {
  const toast = h("div", { class: `toast${wrong ? " wrong" : ""}` }, text);
  $("toasts").append(toast);
  setTimeout(() => toast.remove(), wrong ? 5000 : 3000);
}

const chat = new Chat({ say, changed: hint });

function person(someone) {
  const face = h("span", { class: "face" }, [...someone.name][0] ?? "?");
  face.style.background = FACES[someone.id % FACES.length];
  const count = unread.get(someone.id);
  return h("button", {
    type: "button", class: "person", role: "radio", "aria-checked": String(someone.id === chat.person?.id),
    onclick: () => become(someone),
  }, face, someone.name, someone.admin ? h("small", {}, "admin") : null, count ? h("span", { class: "unread" }, String(count)) : null);
}

/** A chat of the person one is: with the bot alone, or in a group. */
function place(group) {
  const count = group ? unread.get(group.id) : 0;
  return h("button", {
    type: "button", class: "person", role: "radio", "aria-checked": String(group?.id === chat.group?.id),
    onclick: () => become(chat.person, group),
  }, h("span", { class: "face" }, group ? "👥" : "👍"), group?.title ?? chat.bot.first_name, count ? h("span", { class: "unread" }, String(count)) : null);
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
    $("me-badge").textContent = me.sample ? `looking at ${me.name}'s chat` : `you are ${me.name}`;
    document.body.classList.toggle("looking", me.sample);
    $("language").value = me.language.startsWith("zh") ? "zh" : "en";
  }
}

async function become(someone, group = null) {
  document.body.classList.remove("panel-open");
  unread.delete(group?.id ?? someone.id);
  await chat.open(someone, group);
  sessionStorage.setItem("person", someone.id);
  sessionStorage.setItem("group", group?.id ?? "");
  drawPeople();
  hint();
}

async function asAdmin(command) {
  const admin = chat.person?.admin ? chat.person : people.find((p) => p.admin);
  if (admin.id !== chat.chat) await become(admin);
  document.body.classList.remove("panel-open");
  await chat.write(command);
  hint();
}

function drawVotes() {
  $("votes").hidden = !votes;
  if (!votes) return;
  $("cast").disabled = votes.running;
  $("cast").textContent = votes.running ? "Casting votes…" : votes.done ? "Cast more sample votes" : "Cast 60 sample votes";
  $("votes-bar").setAttribute("aria-valuemax", votes.total);
  $("votes-bar").setAttribute("aria-valuenow", votes.done);
  $("votes-fill").style.width = `${votes.total ? (100 * votes.done) / votes.total : 0}%`;
  const tally = `${votes.done} of ${votes.total} · 👍 ${votes.ups} · 👎 ${votes.downs}`;
  $("votes-state").textContent = votes.error ? `Stopped: ${votes.error}` : votes.total ? tally : "none cast so far";
}

/** One thing to do next, read off from what has been done. */
function hint() {
  const all = [...chat.messages.values()];
  const mine = all.filter((m) => m.from.id === chat.person?.id);
  const asked = mine.filter((m) => !m.text?.startsWith("/"));
  const rateable = all.filter((m) => m.reply_markup?.inline_keyboard?.flat().some((b) => b.text.includes("👍")));
  const admin = people.find((p) => p.admin);
  const voted = votes?.done > 0 && !votes.running;
  // What the bot said about the latest /retrain: one message refuses it, a second shows progress, a picture the end.
  const since = all.findLastIndex((m) => m.from.id === chat.person?.id && m.text?.startsWith("/retrain"));
  const told = since < 0 ? [] : all.slice(since).filter((m) => m.from.is_bot && !rateable.includes(m));
  const text = [];
  if (chat.person?.sample) text.push("You look at a sample person's chat. Choose yourself above to write.");
  else if (told.some((m) => m.photo)) text.push("That run is over; its message says what became of it. Send a picture and see how it answers now.");
  else if (told.length > 1) text.push("Keep chatting while it learns. When the new model is in, send a picture and see how it answers now.");
  else if (chat.group && !rateable.length) text.push("In a group the bot answers who mentions it, or replies to it: send a picture with its name.");
  else if (chat.group) text.push("Everybody here sees the answers and can rate them. Reply to one to ask on.");
  else if (votes?.running) text.push("The sample people are voting. You can go on chatting meanwhile.");
  else if (voted && chat.person?.admin) text.push("It has votes to learn from: press ", h("b", {}, "/retrain"), " in the demo panel.");
  else if (!asked.some((m) => m.photo || m.document)) text.push("Send a picture: tap a sample below, or drop your own. A caption is your question.");
  else if (!rateable.length) text.push("Watch the answer stream in.");
  else if (!sessionStorage.getItem("rated")) text.push("Tell it what you like: ", h("b", {}, "👍"), " or ", h("b", {}, "👎"), " under its answer.");
  else if (asked.filter((m) => m.text).length === 0) text.push("Ask something more, such as “How many are there?” It keeps the picture in mind.");
  else if (voted && admin) text.push("It has votes to learn from. Rate a few more; to have it learn, choose ", h("b", {}, admin.name), ", the admin, in the demo panel.");
  else text.push("Rate a few more, or press ", h("b", {}, "Cast 60 sample votes"), " in the demo panel.");
  $("hint").replaceChildren(...text);
}

async function reload() {
  const seen = await api.overview();
  people = seen.people;
  groups = seen.groups;
  votes = seen.sample_votes;
  chat.bot = seen.bot;
  if (chat.person) chat.person = people.find((p) => p.id === chat.person.id) ?? chat.person;
  drawPeople();
  drawVotes();
  return seen;
}

async function onEvent(event) {
  if (event.kind === "reset") return location.reload();
  if (event.kind === "person" || event.kind === "chat") return reload();
  if (event.kind === "commands") return chat.loadCommands();
  if (event.kind === "votes") {
    votes = event;
    drawVotes();
    return hint();
  }
  const sample = people.some((p) => p.id === event.chat && p.sample);
  const news = event.kind === "message" && (event.message.from.is_bot || event.message.chat.type !== "private");
  if (!chat.take(event) && news && !sample) {
    unread.set(event.chat, (unread.get(event.chat) ?? 0) + 1);
    drawPeople();
  }
}

function onState(connected) {
  document.title = connected ? "thumbtune · a chat that learns from thumbs" : "thumbtune (not running)";
  if (!connected) $("bot-state").textContent = "not running; waiting for it to come back…";
  else if (/not running/.test($("bot-state").textContent)) chat.busy(null);
}

async function begin() {
  const seen = await reload();
  const last = (what) => Number(sessionStorage.getItem(what));
  const first = people.find((p) => p.id === last("person")) ?? people.find((p) => !p.sample);
  if (first) await become(first, groups.find((g) => g.id === last("group") && g.members.includes(first.id)));
  api.follow(seen.last_event, onEvent, onState);

  const samples = await api.samples();
  $("tray").hidden = !samples.length;
  $("samples").replaceChildren(...samples.map((sample) => h("div", {},
    h("button", { type: "button", class: "sample", title: sample.name, onclick: () => chat.sendSample(sample) },
      h("img", { class: sample.sticker ? "cut" : "", src: sample.url, alt: `Send the sample ${sample.name}` })),
    sample.sticker ? null : h("button", {
      type: "button", class: "collect", "aria-label": `Collect the sample ${sample.name}`, title: "Collect it for an album",
      onclick: () => chat.collectSample(sample),
    }, "+"))));

  $("retrain").addEventListener("click", () => asAdmin("/retrain"));
  $("admin-commands").replaceChildren(...ADMIN_COMMANDS.map(([command, word]) =>
    h("button", { type: "button", title: word, onclick: () => asAdmin(command) }, command)));
  $("cast").addEventListener("click", async () => {
    $("cast").disabled = true;
    await api.castVotes().catch((error) => say(error.message, true));
    await reload();
    hint();
  });
  $("language").addEventListener("change", async () => {
    await api.speak(chat.person.id, $("language").value);
    await reload();
    await chat.loadCommands();
  });
  $("open-panel").addEventListener("click", (event) => {
    event.stopPropagation();
    const open = document.body.classList.toggle("panel-open");
    $("open-panel").setAttribute("aria-expanded", String(open));
  });
  $("phone").addEventListener("click", () => document.body.classList.remove("panel-open"));
}

begin();
