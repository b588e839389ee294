// The step of agru.py with the operations of templates/draw.js, and the same names.
({ add, chunk, linear, mul, sigmoid, tanh }) => (u, h, gate_weight, a, epsilon) => {
  const [u_z, u_r, u_c] = chunk(u, 3), [h_z, h_r] = chunk(linear(h, gate_weight), 2);
  const z = sigmoid(add(u_z, h_z)), r = sigmoid(add(u_r, h_r));
  return add(h, mul(epsilon, mul(z, tanh(add(u_c, linear(mul(r, h), a))))));
}
