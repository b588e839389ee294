// Under a figure with modes, sliders move the eigenvalues -gamma ± i frequency of S - gamma I, and
// the disc |1 + epsilon lambda| <= 1. What they stand at is in the address.
for (const figure of document.querySelectorAll("figure[data-live]")) {
  const { epoch, moment, gamma, epsilon, frequency } = JSON.parse(figure.dataset.live);
  const last = epoch.length - 1, start = Math.max(moment.indexOf("best epoch"), 0);
  const form = document.createElement("form");
  form.className = "live";
  form.innerHTML = `<svg viewBox="0 0 360 300" role="img" aria-label="The modes chosen below, in the complex plane, and the disc"></svg>
    <p>Grey: the disc in which an Euler step does not grow. Filled: modes outside it; hollow: inside.</p>
    <label>Damping γ <b></b><input type="range" name="gamma" min="0" max="3" step="0.01"></label>
    <label>Step size ε <b></b><input type="range" name="epsilon" min="-2" max="1" step="any"></label>
    <label>Epoch <b></b><input type="range" name="epoch" min="0" max="${last}"></label>
    <p role="status"></p>`;
  figure.after(form);
  const { gamma: damping, epsilon: size, epoch: time } = form.elements, svg = form.querySelector("svg");
  const unit = 140 / Math.max(1.6, ...frequency.flat()), x = (real) => 270 + unit * real, y = (imaginary) => 150 - unit * imaginary;
  const tick = unit > 60 ? 1 : unit > 25 ? 2 : 5 * Math.ceil(5 / unit);
  let axes = `<path d="M0 150H360M270 0V300"/>`;
  for (let at = tick; unit * at < 265; at += tick) {
    axes += `<text x="${x(-at)}" y="163" text-anchor="middle">−${at}</text>`;
    if (unit * at < 138) axes += `<text x="275" y="${y(at) + 4}">${at}i</text><text x="275" y="${y(-at) + 4}">−${at}i</text>`;
  }
  const named = (number) => `${epoch[number]}${moment[number] === "in training" ? "" : ` (${moment[number]})`}`;
  const draw = () => {
    const g = +damping.value, e = 10 ** size.value, modes = frequency[time.value];
    const grows = (f) => Math.hypot(1 - e * g, e * f), count = (some) => some.reduce((sum, f) => sum + (f > 0 ? 2 : 1), 0);
    const outside = count(modes.filter((f) => grows(f) > 1)) / count(modes), top = Math.max(...modes);
    const points = modes.flatMap((f) => [f, -f].map((at) => `<circle cx="${x(-g)}" cy="${y(at)}" r="3" class="${grows(f) > 1 ? "out" : "in"}"/>`));
    svg.innerHTML = `<circle class="disc" cx="${x(-1 / e)}" cy="150" r="${unit / e}"/>${axes}${points.join("")}`;
    [g.toFixed(2), e.toPrecision(2), named(time.value)].forEach((text, i) => {
      const input = [damping, size, time][i];
      input.previousElementSibling.textContent = text;
      input.setAttribute("aria-valuetext", text);
    });
    form.querySelector("[role=status]").textContent =
      `At epoch ${named(time.value)}, with γ = ${g.toFixed(2)} and ε = ${e.toPrecision(2)}, ${(100 * outside).toFixed(0)}% of the modes lie outside the disc, and the fastest is multiplied by ${grows(top).toFixed(2)} a step. ` +
      (g > 0 ? `The largest stable step is ${((2 * g) / (g * g + top * top)).toPrecision(2)}.` : "Without damping no step is stable.");
  };
  const read = () => {
    const asked = new URLSearchParams(location.hash.slice(1)), at = epoch.indexOf(+asked.get("epoch"));
    time.value = asked.has("epoch") && at >= 0 ? at : start;
    damping.value = asked.get("gamma") ?? gamma[time.value];
    size.value = Math.log10(asked.get("epsilon") ?? epsilon[time.value]);
    draw();
  };
  form.oninput = ({ target }) => {
    if (target === time) size.value = Math.log10(epsilon[time.value]); // the step that this epoch takes
    draw();
    history.replaceState(null, "", `#gamma=${damping.value}&epsilon=${(10 ** size.value).toPrecision(4)}&epoch=${epoch[time.value]}`);
  };
  window.addEventListener("hashchange", () => { if (location.hash.includes("gamma=")) read(); }); // not at a heading
  read();
}
