"use strict";

const COLORS = ["#c0392b", "#2a6fb0", "#2e8b57", "#8e44ad", "#d68910", "#16808a", "#7f5539", "#5d6d7e", "#c2185b"];
const get = (id) => document.getElementById(id);
let answer = null, colors = {};

// What the server accepts; it checks all the same
let limits = { megabytes: Infinity, seconds: Infinity };
fetch("health").then((response) => response.json()).then((found) => { limits = found.limits; }).catch(() => {});

// Sending

let sent = null;  // the newest recording, whose answer is shown

async function classify(blob, name) {
  const mine = sent = { blob, name };
  get("error").textContent = "";
  if (blob.size > limits.megabytes * 1e6)
    return fail(`${name} has ${(blob.size / 1e6).toFixed(1)} MB; this server accepts ${limits.megabytes} MB`);
  say("listening …");
  const form = new FormData();
  form.append("file", blob, name);
  const token = get("token").value;
  let response, found;
  try {
    response = await fetch("classify?detail=true", {
      method: "POST", body: form, headers: token ? { Authorization: `Bearer ${token}` } : {} });
    found = await response.json();
  } catch (error) {
    return mine === sent && fail("The server did not answer. Is it running?");
  }
  if (mine !== sent) return;
  if (response.status === 401) {
    get("ask").hidden = false;
    get("token").focus();
  }
  if (!response.ok) return fail(found.error || `The server answered ${response.status}.`);
  get("ask").hidden = true;
  say("");
  const player = get("player");
  if (player.src) URL.revokeObjectURL(player.src);
  player.src = URL.createObjectURL(blob);
  show(found);
}

function say(text) { get("state").textContent = text; }

function fail(text) {
  say("");
  for (const id of ["answer", "detail", "parts"]) get(id).hidden = true;
  get("error").textContent = text;
}

get("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  if (sent) classify(sent.blob, sent.name);
});

// Choosing and dropping

get("file").addEventListener("change", (event) => {
  const file = event.target.files[0];
  if (file) classify(file, file.name);
  event.target.value = "";
});
const drop = get("drop");
addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
addEventListener("dragleave", (event) => { if (!event.relatedTarget) drop.classList.remove("over"); });
addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  const file = event.dataTransfer.files[0];
  if (file) classify(file, file.name);
});

// Recording, as a WAV file that every server reads

let recording = null;

get("record").addEventListener("click", () => (recording ? stop() : start()));

async function start() {
  const button = get("record");
  // While the browser asks for the permission
  button.disabled = true;
  get("error").textContent = "";
  let stream, context;
  try {
    if (!navigator.mediaDevices) throw Error("browsers allow it on localhost and with https only");
    stream = await navigator.mediaDevices.getUserMedia({ audio: {
      echoCancellation: false, noiseSuppression: false, autoGainControl: false } });
    context = new AudioContext();
    await context.audioWorklet.addModule("recorder.js");
  } catch (error) {
    if (stream) stream.getTracks().forEach((track) => track.stop());
    return fail(`No microphone: ${error.message}`);
  } finally {
    button.disabled = false;
  }
  const rate = context.sampleRate;
  // 2 bytes a sample, and less than 2000 bytes around them
  const most = Math.min(limits.seconds * rate, (limits.megabytes * 1e6 - 2000) / 2);
  const node = new AudioWorkletNode(context, "recorder", { channelCount: 1, channelCountMode: "explicit" });
  recording = { stream, context, pieces: [], samples: 0 };
  node.port.onmessage = ({ data }) => {
    if (!recording) return;
    if (recording.samples + data.length > most) return stop();
    recording.pieces.push(data);
    recording.samples += data.length;
    say(`${(recording.samples / rate).toFixed(1)} s`);
  };
  context.createMediaStreamSource(stream).connect(node);
  button.textContent = "Stop";
  button.setAttribute("aria-pressed", "true");
  button.focus();
}

function stop() {
  const { stream, context, pieces, samples } = recording;
  const rate = context.sampleRate;
  recording = null;
  stream.getTracks().forEach((track) => track.stop());
  context.close();
  const button = get("record");
  button.textContent = "Record";
  button.setAttribute("aria-pressed", "false");
  if (!samples) return fail("The microphone gave no samples.");
  classify(wav(pieces, samples, rate), "microphone.wav");
}

function wav(pieces, samples, rate) {
  const view = new DataView(new ArrayBuffer(44 + 2 * samples));
  const text = (at, letters) => [...letters].forEach((c, k) => view.setUint8(at + k, c.charCodeAt(0)));
  text(0, "RIFF"); view.setUint32(4, 36 + 2 * samples, true); text(8, "WAVEfmt ");
  view.setUint32(16, 16, true); view.setUint16(20, 1, true); view.setUint16(22, 1, true);
  view.setUint32(24, rate, true); view.setUint32(28, 2 * rate, true);
  view.setUint16(32, 2, true); view.setUint16(34, 16, true);
  text(36, "data"); view.setUint32(40, 2 * samples, true);
  let at = 44;
  for (const piece of pieces) for (const value of piece) {
    view.setInt16(at, Math.max(-1, Math.min(1, value)) * 32767, true);
    at += 2;
  }
  return new Blob([view], { type: "audio/wav" });
}

// Showing

function show(found) {
  answer = found;
  get("answer").hidden = false;
  get("label").textContent = found.label || `no speech (${found.reason})`;
  get("where").textContent = `${found.file}, ${found.seconds.toFixed(1)} s`;
  const posteriors = found.posteriors || {};
  colors = Object.fromEntries(Object.keys(posteriors).map((name, k) => [name, COLORS[k % COLORS.length]]));
  const bars = get("bars");
  bars.replaceChildren();
  for (const [name, value] of Object.entries(posteriors).sort((a, b) => b[1] - a[1])) {
    const bar = element("div", "bar"), outer = element("div"), inner = element("div");
    inner.style.width = `${100 * value}%`;
    inner.style.background = colors[name];
    outer.append(inner);
    bar.append(element("span", "name", name), outer, element("span", "value", value.toFixed(2)));
    bars.append(bar);
  }
  const detail = found.detail;
  get("detail").hidden = !detail;
  if (detail) draw();
  const rows = get("rows"), parts = found.segments;
  get("parts").hidden = parts.length < 2;
  rows.replaceChildren(...parts.map((part) => {
    const row = element("tr");
    const value = part.label ? part.posteriors[part.label] : null;
    const cells = [part.start.toFixed(1), part.end.toFixed(1), part.label || part.reason,
      value == null ? "" : value.toFixed(2)];
    row.append(...cells.map((cell) => element("td", "", cell)));
    return row;
  }));
}

function element(kind, name = "", text = "") {
  const made = document.createElement(kind);
  made.className = name;
  made.textContent = text;
  return made;
}

function draw() {
  const detail = answer.detail, names = Object.keys(colors);
  lines("posteriors", detail, names.map((name, k) => [detail.posteriors.map((row) => row[k]), colors[name]]), 1);
  get("legend").replaceChildren(...names.map((name) => {
    const one = element("span", "", name);
    one.style.color = colors[name];
    return one;
  }));
  spectrogram("mel_x", detail.mel_x);
  spectrogram("mel_y", detail.mel_y);
  const style = getComputedStyle(document.documentElement);
  lines("gates", detail, [[detail.gate_x, style.getPropertyValue("--x")],
    [detail.gate_y, style.getPropertyValue("--y")]], null);
}

function surface(id) {
  const canvas = get(id), scale = devicePixelRatio || 1;
  const height = Number(canvas.getAttribute("data-height") || canvas.height);
  canvas.setAttribute("data-height", height);
  canvas.width = canvas.clientWidth * scale;
  canvas.height = height * scale;
  canvas.style.height = `${height}px`;
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  return [pen, canvas.clientWidth, height];
}

function lines(id, detail, series, top) {
  const [pen, width, height] = surface(id);
  const all = series.flatMap(([values]) => values);
  const low = top ? 0 : Math.min(...all), high = top || Math.max(...all);
  pen.lineWidth = 2;
  for (const [values, color] of series) {
    pen.strokeStyle = color;
    pen.beginPath();
    values.forEach((value, k) => {
      const x = (detail.times[k] / detail.seconds) * width;
      const y = height - 4 - ((value - low) / (high - low || 1)) * (height - 8);
      if (!k) pen.moveTo(0, y);
      pen.lineTo(x, y);
    });
    pen.stroke();
  }
}

function spectrogram(id, { frames, bands, data }) {
  const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
  const image = new ImageData(frames, bands);
  for (let t = 0; t < frames; t++) for (let f = 0; f < bands; f++) {
    const v = bytes[t * bands + f], at = 4 * ((bands - 1 - f) * frames + t);
    image.data[at] = Math.min(255, v * 1.3);
    image.data[at + 1] = Math.max(0, v * 1.4 - 100);
    image.data[at + 2] = 60 + Math.max(0, 120 - Math.abs(v - 90) * 1.2);
    image.data[at + 3] = 255;
  }
  const small = new OffscreenCanvas(frames, bands);
  small.getContext("2d").putImageData(image, 0, 0);
  const [pen, width, height] = surface(id);
  pen.drawImage(small, 0, 0, width, height);
}

let waiting = 0;
addEventListener("resize", () => {
  cancelAnimationFrame(waiting);
  waiting = requestAnimationFrame(() => answer && answer.detail && draw());
});

// Downloads

get("json").addEventListener("click", () => save(JSON.stringify(answer, null, 1), "json", "application/json"));
get("csv").addEventListener("click", () => {
  const names = Object.keys(colors);
  const quote = (value) => (/[",\n\r]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : value);
  const row = (part) => [answer.file, part.start, part.end, part.label ?? "", ...names.map((name) =>
    part.posteriors ? part.posteriors[name] : ""), part.reason ?? ""].map(quote).join(",");
  const whole = { ...answer, start: 0, end: answer.seconds };
  const parts = answer.segments.length > 1 ? answer.segments : [];
  save([["file", "start", "end", "label", ...names, "reason"].map(quote).join(","),
    ...[whole, ...parts].map(row)].join("\n") + "\n", "csv", "text/csv");
});

function save(text, ending, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = `${answer.file.replace(/\.\w+$/, "")}.${ending}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
