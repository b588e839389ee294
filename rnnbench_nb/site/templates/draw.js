// Trained models read a drawn digit row by row. `linear` is W x + b, with the matrix W as one array, row after row.
const linear = (weight, x, bias) => {
  const value = new Float64Array(weight.length / x.length);
  for (let i = 0, k = 0; i < value.length; i++) {
    let sum = bias ? bias[i] : 0;
    for (let j = 0; j < x.length; j++, k++) sum += weight[k] * x[j];
    value[i] = sum;
  }
  return value;
};
const sigmoid = (x) => 1 / (1 + Math.exp(-x));
const parts = (values, count) => Array.from({ length: count }, (_, k) => values.subarray((k * values.length) / count, ((k + 1) * values.length) / count));

// The steps of cells/lstm.py, gru.py and agru.py: each returns the next state from the drive u = W x + b and the current state.
const STEPS = {
  lstm: (u, state, weight, bias) => {
    const [h, before] = parts(state, 2), after = new Float64Array(state.length), n = h.length;
    const [i, f, g, o] = parts(linear(weight, h, bias).map((value, k) => value + u[k]), 4);
    for (let k = 0; k < n; k++) {
      after[n + k] = sigmoid(f[k]) * before[k] + sigmoid(i[k]) * Math.tanh(g[k]);
      after[k] = sigmoid(o[k]) * Math.tanh(after[n + k]);
    }
    return after;
  },
  gru: (u, h, weight, bias) => {
    const [u_r, u_z, u_n] = parts(u, 3), [h_r, h_z, h_n] = parts(linear(weight, h, bias), 3);
    return h.map((old, k) => {
      const z = sigmoid(u_z[k] + h_z[k]), n = Math.tanh(u_n[k] + sigmoid(u_r[k] + h_r[k]) * h_n[k]);
      return n + z * (old - n);
    });
  },
  agru: (u, h, gates, a, epsilon) => {
    const [u_z, u_r, u_c] = parts(u, 3), [h_z, h_r] = parts(linear(gates, h), 2);
    const c = linear(a, h.map((old, k) => sigmoid(u_r[k] + h_r[k]) * old));
    return h.map((old, k) => old + epsilon[0] * sigmoid(u_z[k] + h_z[k]) * Math.tanh(u_c[k] + c[k]));
  },
};

// Returns the class scores and the norm of the state after each row.
const readImage = ({ cell, state: size, tensors }, pixels) => {
  const [w, b, ...others] = tensors, [weight, bias] = others.slice(-2), side = MODELS.side;
  const hidden = weight.length / bias.length, scores = [], norms = [];
  let state = new Float64Array(size);
  for (let row = 0; row < side; row++) {
    state = STEPS[cell](linear(w, pixels.subarray(side * row, side * (row + 1)), b), state, ...others);
    scores.push(linear(weight, state.subarray(0, hidden), bias));
    norms.push(Math.hypot(...state));
  }
  return { scores, norms };
};
const softmax = (scores) => {
  const top = Math.max(...scores), all = Array.from(scores, (s) => Math.exp(s - top)), sum = all.reduce((a, b) => a + b);
  return all.map((a) => a / sum);
};
// Returns, for each row, the probability (0 to 100) of the final answer if that row is empty.
const withoutRows = (model, pixels, answer) => Array.from({ length: MODELS.side }, (_, row) => {
  const rest = pixels.slice().fill(0, MODELS.side * row, MODELS.side * (row + 1));
  return 100 * softmax(readImage(model, rest).scores.at(-1))[answer];
});

const bytesOf = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const half = (n) => { // float16
  const sign = n >> 15 ? -1 : 1, exponent = (n >> 10) & 31, fraction = n & 1023;
  return sign * (exponent ? 2 ** (exponent - 25) * (1024 + fraction) : 2 ** -24 * fraction);
};
for (const model of MODELS.models) {
  const numbers = Float64Array.from(new Uint16Array(bytesOf(model.weights).buffer), half);
  let at = 0;
  model.tensors = model.shapes.map((shape) => numbers.subarray(at, (at += shape.reduce((product, n) => product * n, 1))));
}

// Scales the ink of a canvas as MNIST did: it fits into 20 of 28 pixels, with its centre of mass in the middle. Returns values
// from 0 to 1, or null for an empty canvas.
const centred = (canvas, side) => {
  const { width, height } = canvas, ink = canvas.getContext("2d").getImageData(0, 0, width, height).data;
  let [left, top, right, bottom, mass, x, y] = [width, height, -1, -1, 0, 0, 0];
  for (let i = 0; i < width * height; i++) {
    const a = ink[4 * i + 3], column = i % width, row = (i - column) / width;
    if (!a) continue;
    [left, top, right, bottom] = [Math.min(left, column), Math.min(top, row), Math.max(right, column), Math.max(bottom, row)];
    [mass, x, y] = [mass + a, x + a * (column + 0.5), y + a * (row + 0.5)];
  }
  if (!mass) return null;
  const scale = ((20 / 28) * side) / (Math.max(right - left, bottom - top) + 1);
  const small = Object.assign(document.createElement("canvas"), { width: side, height: side }), pen = small.getContext("2d");
  pen.imageSmoothingQuality = "high";
  pen.drawImage(canvas, side / 2 - (scale * x) / mass, side / 2 - (scale * y) / mass, scale * width, scale * height);
  const scaled = pen.getImageData(0, 0, side, side).data;
  return Float64Array.from({ length: side * side }, (_, i) => scaled[4 * i + 3] / 255);
};

const tool = document.querySelector("#draw"), pad = tool.querySelector("#pad"), pen = pad.getContext("2d", { willReadFrequently: true });
const seen = tool.querySelector("#seen"), status = tool.querySelector("[role=status]"), rows = tool.querySelector("[name=row]");
const answers = tool.querySelector(".charts"), [clear, take] = tool.querySelectorAll("button"), nothing = status.textContent;
let image = null, pixels = null, results = []; // number of the test image; its pixels; the results of each model
tool.hidden = false;
[pen.lineWidth, pen.lineCap, pen.lineJoin, pen.strokeStyle] = [22, "round", "round", "#fff"];

const paint = (canvas, upTo) => { // draws the pixels, fainter in rows that are not read yet
  const side = MODELS.side, small = Object.assign(document.createElement("canvas"), { width: side, height: side });
  const data = new ImageData(side, side), to = canvas.getContext("2d");
  pixels.forEach((value, i) => data.data.set([255, 255, 255, 255 * value * (i < side * upTo ? 1 : 0.35)], 4 * i));
  small.getContext("2d").putImageData(data, 0, 0);
  to.clearRect(0, 0, canvas.width, canvas.height);
  to.imageSmoothingEnabled = false;
  to.drawImage(small, 0, 0, canvas.width, canvas.height);
};
// Returns a bar chart with a y axis from 0 to `high`, which all models share.
const chart = (title, values, on, names, high, unit) => {
  const width = 250 / values.length, y = (value) => 12 + 76 * (1 - value / high);
  const label = (value) => `<text x="36" y="${y(value) + 4}" text-anchor="end">${+value.toPrecision(3)}${unit}</text>`;
  const bar = (value, i) => `<rect x="${41 + i * width}" y="${y(value)}" width="${width - 2}" height="${88 - y(value)}" class="bar${on(i) ? " on" : ""}"/>`;
  const name = (text, i) => `<text x="${40 + (i + 0.5) * width}" y="104" text-anchor="middle">${text}</text>`;
  return `<p>${title}</p><svg viewBox="0 0 300 110" role="img" aria-label="${title}"><path class="tick" d="M40 12H290"/><path class="zero" d="M40 88H290"/>${label(high)}${label(0)}${values.map(bar).join("")}${names.map(name).join("")}</svg>`;
};
const show = () => {
  for (const part of [answers, seen.parentElement, rows.parentElement]) part.hidden = !pixels;
  status.textContent = nothing;
  if (!pixels) return;
  const row = +rows.value, side = MODELS.side, ends = Array.from({ length: side }, (_, i) => (i % 9 ? "" : i + 1));
  paint(seen, row);
  rows.previousElementSibling.textContent = `${row} of ${side}`;
  const norm = Math.max(...results.flatMap((result) => result.norms)), sentences = [];
  answers.innerHTML = results.map(({ label, scores, norms, final, without }) => {
    const shares = softmax(scores[row - 1]).map((share) => 100 * share), winner = shares.indexOf(Math.max(...shares));
    sentences.push(`${label} says ${MODELS.classes[winner]} (${shares[winner].toFixed(0)}%)`);
    return `<section><h2>${label}: ${MODELS.classes[winner]}</h2>` +
      chart(`Probability of each class after row ${row}`, shares, (i) => i === winner, MODELS.classes, 100, "%") +
      chart(`Norm of the state after each row: ${norms[row - 1].toPrecision(2)} after row ${row}`, norms, (i) => i < row, ends, norm, "") +
      chart(`Probability of the final ${MODELS.classes[final]} without one row (row ${row}: ${without[row - 1].toFixed(0)}%)`, without, (i) => i === row - 1, ends, 100, "%") + "</section>";
  }).join("");
  status.textContent = `${image === null ? "" : `Test image ${image + 1}, a ${MODELS.classes[MODELS.targets[image]]}. `}After ${row} of ${side} rows: ${sentences.join(", ")}.`;
};
const answer = (values, number) => {
  [pixels, image, rows.value] = [values, number, MODELS.side];
  results = (pixels ? MODELS.models : []).map((model) => {
    const read = readImage(model, pixels), last = read.scores.at(-1), final = last.indexOf(Math.max(...last));
    return { label: model.label, ...read, final, without: withoutRows(model, pixels, final) };
  });
  show();
};

let from = null;
const line = (event) => {
  if (!event.isPrimary) return;
  const to = [event.offsetX, event.offsetY].map((at) => (at * pad.width) / pad.clientWidth);
  from ??= to;
  pen.beginPath();
  pen.moveTo(...from);
  pen.lineTo(to[0] + 0.01, to[1]); // so that a click draws a point
  pen.stroke();
  from = to;
};
pad.onpointerdown = (event) => { pad.setPointerCapture(event.pointerId); line(event); };
pad.onpointermove = (event) => { if (from) line(event); };
pad.onpointerup = pad.onpointercancel = (event) => {
  if (!from || !event.isPrimary) return;
  from = null;
  answer(centred(pad, MODELS.side), null);
};
clear.onclick = () => { pen.clearRect(0, 0, pad.width, pad.height); answer(null, null); };
take.onclick = () => {
  const number = image === null ? 0 : (image + 1) % MODELS.images.length;
  answer(Float64Array.from(bytesOf(MODELS.images[number]), (byte) => byte / 255), number);
  paint(pad, Infinity);
};
rows.oninput = show;
