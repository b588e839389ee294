
// Trained models read a drawn digit, row by row. A vector is { value, grad }; each operation on
// vectors notes on the tape how a gradient goes back through it, so that the steps in cells/*.js
// say only what goes forward.
let tape = [];
const vector = (value) => ({ value, grad: new Float64Array(value.length) });
const noted = (value, back) => {
  const out = vector(value);
  tape.push(() => back(out.grad));
  return out;
};
const elementwise = (f, ...slopes) => (a, b = a) => { // of equal length, or of length 1
  const x = a.value, y = b.value, value = new Float64Array(Math.max(x.length, y.length));
  for (let i = 0; i < value.length; i++) value[i] = f(x[i % x.length], y[i % y.length]);
  return noted(value, (grad) => slopes.forEach((slope, k) => {
    const into = (k ? b : a).grad;
    for (let i = 0; i < grad.length; i++) into[i % into.length] += grad[i] * slope(x[i % x.length], y[i % y.length]);
  }));
};
const logistic = (x) => 1 / (1 + Math.exp(-x));
const OPERATIONS = {
  add: elementwise((x, y) => x + y, () => 1, () => 1),
  sub: elementwise((x, y) => x - y, () => 1, () => -1),
  mul: elementwise((x, y) => x * y, (x, y) => y, (x) => x),
  sigmoid: elementwise(logistic, (x) => logistic(x) * logistic(-x)),
  tanh: elementwise(Math.tanh, (x) => 1 - Math.tanh(x) ** 2),
  cat: (a, b) => {
    const size = a.value.length, value = new Float64Array(size + b.value.length);
    value.set(a.value);
    value.set(b.value, size);
    return noted(value, (grad) => grad.forEach((g, i) => { (i < size ? a : b).grad[i < size ? i : i - size] += g; }));
  },
  chunk: (a, count) => Array.from({ length: count }, (_, k) => {
    const size = a.value.length / count, from = k * size;
    return noted(a.value.slice(from, from + size), (grad) => grad.forEach((g, i) => { a.grad[from + i] += g; }));
  }),
  linear: (x, { value: weight }, bias) => { // W x + b; W is (rows, columns), row after row
    const columns = x.value.length, value = new Float64Array(weight.length / columns);
    for (let i = 0, k = 0; i < value.length; i++) {
      let sum = bias?.value[i] ?? 0;
      for (let j = 0; j < columns; j++, k++) sum += weight[k] * x.value[j];
      value[i] = sum;
    }
    return noted(value, (grad) => {
      for (let i = 0, k = 0; i < grad.length; i++) for (let j = 0; j < columns; j++, k++) x.grad[j] += weight[k] * grad[i];
    });
  },
};

// What one model makes of an image, row by row: class scores and the norm of the state after each
// row, and the norm of the gradient of the last row's highest score with respect to each row.
const readImage = ({ cell, state: size, tensors }, pixels) => {
  tape = [];
  const [w, b, ...others] = tensors, [weight, bias] = others.slice(-2), side = Math.sqrt(pixels.length);
  const step = STEPS[cell](OPERATIONS), parts = (size * bias.value.length) / weight.value.length;
  const rows = [], scores = [], norms = [], norm = (all) => Math.hypot(...all);
  let state = vector(new Float64Array(size));
  for (let row = 0; row < side; row++) {
    rows.push(vector(pixels.slice(side * row, side * (row + 1))));
    state = step(OPERATIONS.linear(rows[row], w, b), state, ...others.slice(0, -2));
    scores.push(OPERATIONS.linear(OPERATIONS.chunk(state, parts)[0], weight, bias));
    norms.push(norm(state.value));
  }
  const last = scores.at(-1);
  last.grad[last.value.indexOf(Math.max(...last.value))] = 1;
  for (const back of tape.reverse()) back();
  return { scores: scores.map((s) => [...s.value]), norms, gradients: rows.map((x) => norm(x.grad)) };
};

const bytesOf = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const half = (n) => { // float16
  const sign = n >> 15 ? -1 : 1, exponent = (n >> 10) & 31, fraction = n & 1023;
  return sign * (exponent ? 2 ** (exponent - 25) * (1024 + fraction) : 2 ** -24 * fraction);
};
let models;
const loadModels = () => (models ??= new Promise((done, failed) => {
  const script = document.createElement("script"); // a page that is a file may not fetch
  script.src = "{{ script }}";
  script.onerror = () => failed(Error("{{ script }}, which holds the weights, is not beside this page."));
  script.onload = () => {
    for (const model of MODELS.models) {
      const numbers = Float64Array.from(new Uint16Array(bytesOf(model.weights).buffer), half);
      let at = 0;
      model.tensors = model.shapes.map((shape) => {
        const size = shape.reduce((product, n) => product * n, 1);
        return vector(numbers.subarray(at, (at += size)));
      });
    }
    done(MODELS.models);
  };
  document.head.append(script);
}));

// The ink of a canvas as MNIST has its digits: fitted into 20 of 28 pixels, the centre of mass in
// the middle. Values from 0 to 1, or null of an empty canvas.
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
  const fitted = pen.getImageData(0, 0, side, side).data;
  return Float64Array.from({ length: side * side }, (_, i) => fitted[4 * i + 3] / 255);
};

{
  const tool = document.querySelector("#draw"), pad = tool.querySelector("#pad"), pen = pad.getContext("2d", { willReadFrequently: true });
  const seen = tool.querySelector("#seen"), status = tool.querySelector("[role=status]"), rows = tool.querySelector("[name=row]");
  const answers = tool.querySelector(".answers"), [clear, take] = tool.querySelectorAll("button"), nothing = status.textContent;
  let image = null, pixels = null, results = []; // the number of a test image; what is read; by whom
  tool.hidden = false;
  [pen.lineWidth, pen.lineCap, pen.lineJoin, pen.strokeStyle] = [22, "round", "round", "#fff"];

  const paint = (canvas, values, upTo) => { // ink where a value is, fainter in rows not yet read
    const side = Math.sqrt(values.length), small = Object.assign(document.createElement("canvas"), { width: side, height: side });
    const data = new ImageData(side, side), to = canvas.getContext("2d");
    values.forEach((value, i) => data.data.set([255, 255, 255, 255 * value * (i < side * upTo ? 1 : 0.35)], 4 * i));
    small.getContext("2d").putImageData(data, 0, 0);
    to.clearRect(0, 0, canvas.width, canvas.height);
    to.imageSmoothingEnabled = false;
    to.drawImage(small, 0, 0, canvas.width, canvas.height);
  };
  const chart = (title, values, filled, names, most = Math.max(...values) || 1) => {
    const width = 280 / values.length;
    const bar = (value, i) => `<rect x="${i * width + 1}" y="${64 - (56 * value) / most}" width="${width - 2}" height="${(56 * value) / most}" class="${filled(i) ? "out" : "in"}"/>`;
    const name = (text, i) => (text === "" ? "" : `<text x="${Math.min((i + 0.5) * width, 272)}" y="76" text-anchor="middle">${text}</text>`);
    return `<p>${title}</p><svg viewBox="0 0 280 80" aria-hidden="true">${values.map(bar).join("")}${names.map(name).join("")}</svg>`;
  };
  const share = (scores) => {
    const top = Math.max(...scores), all = scores.map((s) => Math.exp(s - top)), sum = all.reduce((a, b) => a + b);
    return all.map((a) => a / sum);
  };
  const number = (value) => value.toPrecision(2).replace(/e.*/, (e) => ` × 10^${+e.slice(1)}`).replaceAll("-", "−");
  const show = () => {
    for (const part of [answers, seen.parentElement, rows.parentElement]) part.hidden = !pixels;
    if (!pixels) return;
    const row = +rows.value, side = results[0].norms.length, ends = Array.from({ length: side }, (_, i) => (i % 9 ? "" : i + 1));
    paint(seen, pixels, row);
    rows.previousElementSibling.textContent = `${row} of ${side}`;
    const said = [];
    answers.innerHTML = results.map(({ cell, label, scores, norms, gradients }) => {
      const chances = share(scores[row - 1]), winner = chances.indexOf(Math.max(...chances)), final = scores[side - 1];
      const answer = MODELS.classes[winner], after = MODELS.classes[final.indexOf(Math.max(...final))], most = gradients.indexOf(Math.max(...gradients));
      said.push(`${label} says ${answer} (${(100 * chances[winner]).toFixed(0)}%)`);
      return `<section class="${cell}"><h2>${label}: ${answer}</h2>` +
        chart(`Probability of each class after row ${row}`, chances, (i) => i === winner, MODELS.classes, 1) +
        chart(`Norm of the state after each row: ${number(norms[row - 1])} after row ${row}`, norms, (i) => i < row, ends) +
        chart(`Gradient of the last score of ${after}, by row: largest at row ${most + 1}, ${number(gradients[most])}`, gradients, () => true, ends) + "</section>";
    }).join("");
    status.textContent = `${image === null ? "" : `Test image ${image + 1}, a ${MODELS.classes[MODELS.targets[image]]}. `}After ${row} of ${side} rows: ${said.join(", ")}.`;
  };
  const keep = () => history.replaceState(null, "", image === null ? location.pathname : `#image=${image + 1}&row=${rows.value}`);
  const answer = (found, given) => {
    [pixels, image] = [found, given];
    if (pixels) {
      rows.max = rows.value = Math.sqrt(pixels.length);
      results = MODELS.models.map((model) => ({ cell: model.cell, label: model.label, ...readImage(model, pixels) }));
    } else status.textContent = nothing;
    show();
    keep();
  };
  const whenLoaded = (then) => loadModels().then(then, (error) => { status.textContent = error.message; });
  const takeImage = (given) => whenLoaded(() => {
    answer(Float64Array.from(bytesOf(MODELS.images[given]), (byte) => byte / 255), given);
    paint(pad, pixels, Infinity);
  });

  let from = null;
  const place = (event) => [event.offsetX, event.offsetY].map((at) => (at * pad.width) / pad.clientWidth);
  const line = (event) => {
    const to = place(event);
    pen.beginPath();
    pen.moveTo(...from);
    pen.lineTo(to[0] + 0.01, to[1]); // a point is drawn too
    pen.stroke();
    from = to;
  };
  pad.onpointerdown = (event) => {
    if (!event.isPrimary) return;
    from = place(event);
    pad.setPointerCapture(event.pointerId);
    line(event);
  };
  pad.onpointermove = (event) => { if (from && event.isPrimary) line(event); };
  pad.onpointerup = pad.onpointercancel = (event) => {
    if (!from || !event.isPrimary) return;
    from = null;
    whenLoaded(() => answer(centred(pad, MODELS.side), null));
  };
  clear.onclick = () => {
    pen.clearRect(0, 0, pad.width, pad.height);
    answer(null, null);
  };
  take.onclick = () => whenLoaded(() => takeImage(image === null ? 0 : (image + 1) % MODELS.images.length));
  rows.oninput = () => {
    show();
    keep();
  };
  const asked = new URLSearchParams(location.hash.slice(1));
  if (asked.has("image")) {
    whenLoaded(() => takeImage(Math.min(Math.max(asked.get("image") - 1 || 0, 0), MODELS.images.length - 1))).then(() => {
      rows.value = asked.get("row") ?? rows.max;
      rows.oninput();
    });
  }
}
