// The step of lstm.py with the operations of templates/draw.js, and the same names.
({ add, cat, chunk, linear, mul, sigmoid, tanh }) => (u, state, u_h, b_h) => {
  const [h, before] = chunk(state, 2);
  const [i, f, g, o] = chunk(add(u, linear(h, u_h, b_h)), 4);
  const c = add(mul(sigmoid(f), before), mul(sigmoid(i), tanh(g)));
  return cat(mul(sigmoid(o), tanh(c)), c);
}
