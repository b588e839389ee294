// The step of gru.py with the operations of templates/draw.js, and the same names.
({ add, chunk, linear, mul, sigmoid, sub, tanh }) => (u, h, u_h, b_h) => {
  const [x_r, x_z, x_n] = chunk(u, 3), [h_r, h_z, h_n] = chunk(linear(h, u_h, b_h), 3);
  const r = sigmoid(add(x_r, h_r)), z = sigmoid(add(x_z, h_z));
  const n = tanh(add(x_n, mul(r, h_n)));
  return add(n, mul(z, sub(h, n)));
}
