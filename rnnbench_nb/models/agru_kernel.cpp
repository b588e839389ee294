// One A-GRU layer over a whole sequence in float32, forward and backward.
//
//   z = sigma(W_z x + U_z h + b_z)      r = sigma(W_r x + U_r h + b_r)
//   c = tanh(V x + A (r * h) + b)       h' = h + epsilon (z * c)
//
// How it is fast: a thread takes a block of batch rows through all time steps, so nobody waits
// between steps and what a step needs stays in the cache; a row is laid out [h | x | 1], so input
// weights, bias and recurrent weights are one product; what follows a product elementwise is done
// while its sums are in registers (the `finish` of `product`).
//
// How it is repeatable: every sum runs in an order that depends on the sizes alone. A row's states
// do not depend on the other rows; weight gradients are summed block by block and the blocks added
// in their order. The number of threads changes nothing.
//
// How NaN and infinity travel as in the loop: sums run over true elements alone. Padding exists
// only in columns that no sum reads.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <new>
#include <map>
#include <mutex>
#include <memory>
#include <thread>
#include <vector>

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kTileRows = 8;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32, kTileRows = 6;
#else
constexpr int kVectorBytes = 16, kTileRows = 4;
#endif
#define UNROLL _Pragma("GCC unroll 16")

using Index = std::int64_t;
typedef float Vector __attribute__((vector_size(kVectorBytes)));
typedef std::int32_t Integers __attribute__((vector_size(kVectorBytes)));

constexpr Index kLanes = kVectorBytes / 4;
constexpr Index kTileVectors = 2, kPanel = kTileVectors * kLanes;  // a tile is rows x panel
constexpr Index kBlockRows = 4 * kTileRows;  // batch rows that a thread takes through the sequence
constexpr Index kChunkRows = 4 * kBlockRows;  // rows (steps x batch) in a weight-gradient product
constexpr Index kPartials = 16;  // at most so many partial weight gradients

static std::mutex pool_lock;
static std::multimap<std::size_t, void*> pool;
template <class T>
struct Aligned {
  using value_type = T;
  template <class U> void construct(U*) {}
  template <class U, class... A> void construct(U* p, A&&... a) { ::new ((void*)p) U(std::forward<A>(a)...); }
  T* allocate(std::size_t n) {
    std::lock_guard<std::mutex> guard(pool_lock);
    auto found = pool.find(n);
    if (found == pool.end()) return static_cast<T*>(::operator new(n * sizeof(T), std::align_val_t{64}));
    void* p = found->second; pool.erase(found); return static_cast<T*>(p);
  }
  void deallocate(T* p, std::size_t n) { std::lock_guard<std::mutex> guard(pool_lock); pool.emplace(n, p); }
  bool operator==(const Aligned&) const { return true; }
  bool operator!=(const Aligned&) const { return false; }
};
using Floats = std::vector<float, Aligned<float>>;

static Vector load(const float* from) { Vector v; std::memcpy(&v, from, sizeof v); return v; }
static void store(float* to, Vector v) { std::memcpy(to, &v, sizeof v); }
// Memory that the next step will use, far from this one's, fetched ahead: writing or reading the
// activations would otherwise wait for it, a tenth of the whole time.
static void fetch(const float* from) { __builtin_prefetch(from); }
static Index round_up(Index n, Index multiple) { return (n + multiple - 1) / multiple * multiple; }

// exp(x) - 1 to float accuracy, near 0 too: with x = n log 2 + f and |f| <= log(2)/2 it is
// 2^n p + (2^n - 1), p = f + f^2 q(f) ~ exp(f) - 1 (coefficients of Cephes' expf).
static Vector expm1(Vector x) {
  x = x < -87.f ? Vector{} - 87.f : x;  // comparisons keep a NaN
  x = x > 87.f ? Vector{} + 87.f : x;
  const float shift = 12582912.f;  // 1.5 * 2^23: adding it rounds, n in the low bits
  Vector shifted = x * 1.44269504f + shift, n = shifted - shift;
  Vector f = x - n * 0.693359375f + n * 2.12194440e-4f;
  Vector q = 1.9875691500e-4f * f + 1.3981999507e-3f;
  q = q * f + 8.3334519073e-3f;
  q = q * f + 4.1665795894e-2f;
  q = q * f + 1.6666665459e-1f;
  q = q * f + 5.0000001201e-1f;
  Vector p = q * (f * f) + f, power = (Vector)(((Integers)shifted << 23) + 0x3f800000);
  return p * power + (power - 1.f);
}
static Vector sigmoid(Vector x) {
  Vector s = 1.f / (2.f + expm1(-x));
  return x < -87.f ? Vector{} : s;
}
static Vector tanh(Vector x) {
  Vector e = expm1(x + x);
  return e / (e + 2.f);
}

// Left factor of a product: element (row, k) at data[row * row_stride + k * depth_stride].
struct Left { const float* data; Index row_stride, depth_stride; };
// Right factor, in panels of kPanel columns: row k of a panel at data[k * depth_stride].
struct Right { const float* data; Index depth_stride, panel_stride; };

template <int rows, int vectors, class Finish>
static inline void tile(Index depth, Left left, Right right, Finish finish) {
  Vector sum[rows][vectors] = {};
  const float *a = left.data, *b = right.data;
  for (Index k = 0; k < depth; k++, a += left.depth_stride, b += right.depth_stride) {
    Vector b_k[vectors];
    UNROLL for (int j = 0; j < vectors; j++) b_k[j] = load(b + j * kLanes);
    UNROLL for (int i = 0; i < rows; i++)
      UNROLL for (int j = 0; j < vectors; j++) sum[i][j] += a[i * left.row_stride] * b_k[j];
  }
  UNROLL for (int i = 0; i < rows; i++)
    UNROLL for (int j = 0; j < vectors; j++) finish(i, j * kLanes, sum[i][j]);
}

// Hands finish(row, column, sums) the rows x columns product of left and right, a vector of
// columns at a time; columns is a multiple of kLanes.
template <class Finish>
static void product(Index rows, Index columns, Index depth, Left left, Right right, Finish finish) {
  for (Index column = 0; column < columns; column += kPanel) {
    Index row = 0;
    auto strip = [&](auto height) {
      constexpr int n = decltype(height)::value;
      for (; row + n <= rows; row += n) {
        Left from{left.data + row * left.row_stride, left.row_stride, left.depth_stride};
        auto shifted = [&](Index i, Index j, Vector v) { finish(row + i, column + j, v); };
        if (columns - column >= kPanel) tile<n, kTileVectors>(depth, from, right, shifted);
        else tile<n, 1>(depth, from, right, shifted);
      }
    };
    strip(std::integral_constant<int, kTileRows>{});
    strip(std::integral_constant<int, 2>{});
    strip(std::integral_constant<int, 1>{});
    right.data += right.panel_stride;
  }
}

// Weights packed as a right factor: columns in panels, one panel's rows after another.
struct Packed {
  Index depth, columns;
  Floats data;
  Packed(Index depth, Index columns)
      : depth(depth), columns(columns), data(depth * round_up(columns, kPanel)) {}
  float& at(Index k, Index column) {
    return data[(column / kPanel * depth + k) * kPanel + column % kPanel];
  }
  operator Right() const { return {data.data(), kPanel, depth * kPanel}; }
};

// Rows of scratch memory, a stride of an odd number of cache lines apart so that equal columns
// of many rows do not fall into the same cache set.
struct Rows {
  Index stride;
  Floats data;
  Rows(Index rows, Index width) : stride(round_up(width, 16) / 32 * 32 + 16), data() {
    if (stride < width) stride += 32;
    data.resize(rows * stride);
  }
  float* operator[](Index row) { return data.data() + row * stride; }
};

// Runs task(0), ..., task(count - 1) on so many threads; which thread runs which is left open.
template <class Task>
static void parallel(Index count, Index threads, Task task) {
  std::atomic<Index> next{0};
  auto work = [&] { for (Index i; (i = next++) < count;) task(i); };
  std::vector<std::thread> others;
  for (Index i = 1; i < std::min(threads, count); i++) others.emplace_back(work);
  work();
  for (auto& other : others) other.join();
}

struct Sizes {
  Index steps, batch, input, hidden;
  Index padded() const { return round_up(hidden, kLanes); }
  Index depth() const { return hidden + input + 1; }  // of a row [h | x | 1]
  Index width() const { return std::max(padded(), depth()); }
};

extern "C" int agru_vector_bytes() { return kVectorBytes; }

// x (T, B, D) with any strides but 1 between features; h_0 (B, H); weight_ih (3H, D);
// gate_weight (2H, H); recurrent (H, H); bias (3H) or null; output (T, B, H).
// gates (T, B, 3, padded H) receives z, r, c for the backward pass, unless null.
extern "C" void agru_forward(
    Index steps, Index batch, Index input, Index hidden, const float* x, Index x_step, Index x_row,
    const float* h_0, const float* weight_ih, const float* gate_weight, const float* recurrent,
    const float* bias, float epsilon, float* output, float* gates, Index threads) {
  const Sizes size{steps, batch, input, hidden};
  const Index padded = size.padded(), depth = size.depth();
  Packed gate(depth, 2 * padded), candidate(depth, padded);
  for (Index unit = 0; unit < 3 * hidden; unit++) {
    const Index part = unit / hidden, column = unit % hidden + (part == 1 ? padded : 0);
    Packed& packed = part == 2 ? candidate : gate;
    const float* from = part == 2 ? recurrent + column * hidden : gate_weight + unit * hidden;
    for (Index k = 0; k < hidden; k++) packed.at(k, column) = from[k];
    for (Index k = 0; k < input; k++) packed.at(hidden + k, column) = weight_ih[unit * input + k];
    packed.at(hidden + input, column) = bias ? bias[unit] : 0.f;
  }
  const Index share = round_up((batch + threads - 1) / std::max<Index>(threads, 1), kTileRows);
  const Index block = std::max<Index>(1, std::min(kBlockRows, share));
  parallel((batch + block - 1) / block, threads, [&](Index task) {
    const Index first = task * block, rows = std::min(block, batch - first);
    Rows joint(rows, size.width()), reset(rows, size.width());  // [h | x | 1], [r h | x | 1]
    Rows scratch(gates ? 0 : rows, 3 * padded);
    for (Index i = 0; i < rows; i++)
      std::memcpy(joint[i], h_0 + (first + i) * hidden, hidden * sizeof(float));
    for (Index t = 0; t < steps; t++) {
      float* activation = gates ? gates + (t * batch + first) * 3 * padded : scratch[0];
      const Index stride = gates ? 3 * padded : scratch.stride;
      const Index next = gates && t + 1 < steps ? batch * stride : 0;
      auto append_x = [&](Rows& to) {  // after its state, whose last vector may reach over it
        for (Index i = 0; i < rows; i++) {
          std::memcpy(to[i] + hidden, x + t * x_step + (first + i) * x_row, input * sizeof(float));
          to[i][hidden + input] = 1.f;
        }
      };
      append_x(joint);
      product(rows, 2 * padded, depth, {joint[0], joint.stride, 1}, gate,
              [&](Index i, Index column, Vector sum) {
        const Vector value = sigmoid(sum);  // z, then r
        float* at = activation + i * stride + column;
        store(at, value);
        fetch(at + next);
        const Index unit = column - padded;
        if (unit >= 0) store(reset[i] + unit, value * load(joint[i] + unit));
      });
      append_x(reset);
      product(rows, padded, depth, {reset[0], reset.stride, 1}, candidate,
              [&](Index i, Index unit, Vector sum) {
        float *h = joint[i] + unit, *z = activation + i * stride + unit;
        const Vector c = tanh(sum);
        if (gates) store(z + 2 * padded, c);
        fetch(z + 2 * padded + next);
        store(h, load(h) + epsilon * (load(z) * c));
      });
      for (Index i = 0; i < rows; i++)
        std::memcpy(output + (t * batch + first + i) * hidden, joint[i],
                    hidden * sizeof(float));
    }
  });
}

// With g the gradient of h' and q that of r * h, elementwise except for the products:
//
//   dz = epsilon g c z (1 - z)          q  = A^T dc
//   dc = epsilon g z (1 - c^2)          dr = q h r (1 - r)        depsilon = sum of g z c
//   dh = g + q r + U_z^T dz + U_r^T dr
//
// and, over all steps and rows, the weights' gradients are [dz | dr]^T [h | x | 1] and
// dc^T [r h | x | 1]. grad_output (T, B, H) with any strides but 1 between units, or null;
// grad_last (B, H) adds to the last step, or null; grad_x (T, B, D) or null for none.
extern "C" void agru_backward(
    Index steps, Index batch, Index input, Index hidden, const float* x, Index x_step, Index x_row,
    const float* h_0, const float* weight_ih, const float* gate_weight, const float* recurrent,
    float epsilon, const float* output, const float* gates, const float* grad_output,
    Index grad_step, Index grad_row, const float* grad_last, float* grad_x, float* grad_h_0,
    float* grad_weight_ih, float* grad_gate_weight, float* grad_recurrent, float* grad_bias,
    double* grad_epsilon, Index threads) {
  const Sizes size{steps, batch, input, hidden};
  const Index padded = size.padded(), depth = size.depth(), input_padded = round_up(input, kLanes);
  auto pack = [](const float* from, Index rows, Index columns) {  // (rows, columns), as it is
    Packed packed(rows, round_up(columns, kLanes));
    for (Index k = 0; k < rows; k++)
      for (Index j = 0; j < columns; j++) packed.at(k, j) = from[k * columns + j];
    return packed;
  };
  const Packed a = pack(recurrent, hidden, hidden), u_z = pack(gate_weight, hidden, hidden);
  const Packed u_r = pack(gate_weight + hidden * hidden, hidden, hidden);
  std::vector<Packed> w;  // input weights of z, r, c
  for (Index part = 0; grad_x && part < 3; part++)
    w.push_back(pack(weight_ih + part * hidden * input, hidden, input));

  // Blocks and partial sums follow from the batch size alone.
  const Index block = std::min(kBlockRows, round_up((batch + 1) / 2, kTileRows));
  const Index blocks = batch ? (batch + block - 1) / block : 0;
  const Index partials = std::min(blocks, kPartials), partial_size = depth * 3 * padded;
  Floats partial(partials * partial_size, 0.f);  // (partials, [h | x | 1], [z | r | c])
  std::vector<double> partial_epsilon(partials);
  Integers lane;
  for (Index j = 0; j < kLanes; j++) lane[j] = j;

  parallel(partials, threads, [&](Index task) {
    const Index chunk_steps = std::max<Index>(1, kChunkRows / block);
    const Index chunk_rows = chunk_steps * block;
    Rows joint(chunk_rows, size.width()), reset(chunk_rows, size.width());
    Rows delta(chunk_rows, 3 * padded), dh(block, padded), dx(grad_x ? block : 0, input_padded);
    float* sums = partial.data() + task * partial_size;
    double epsilon_sum = 0;
    for (Index b = task * blocks / partials; b < (task + 1) * blocks / partials; b++) {
      const Index first = b * block, rows = std::min(block, batch - first);
      for (Index i = 0; i < rows; i++)
        if (grad_last)
          std::memcpy(dh[i], grad_last + (first + i) * hidden, hidden * sizeof(float));
        else
          std::fill_n(dh[i], hidden, 0.f);
      Index filled = 0;  // rows of the chunk
      for (Index t = steps - 1; t >= 0; t--) {
        const float* activation = gates + (t * batch + first) * 3 * padded;
        const float* h_before = (t ? output + (t - 1) * batch * hidden : h_0) + first * hidden;
        const Index next = t ? -batch * 3 * padded : 0, next_h = t > 1 ? -batch * hidden : 0;
        for (Index i = 0; i < rows; i++) {
          float *row = joint[filled + i], *d = delta[filled + i], *g = dh[i];
          std::memcpy(row, h_before + i * hidden, hidden * sizeof(float));
          std::memcpy(row + hidden, x + t * x_step + (first + i) * x_row, input * sizeof(float));
          row[hidden + input] = 1.f;
          if (grad_output) {
            const float* from = grad_output + t * grad_step + (first + i) * grad_row;
            for (Index j = 0; j < hidden; j++) g[j] += from[j];
          }
          Vector row_sum = {};
          for (Index j = 0; j < padded; j += kLanes) {
            const float* gate = activation + i * 3 * padded + j;
            fetch(gate + next);
            fetch(gate + 2 * padded + next);
            fetch(h_before + i * hidden + j + next_h);
            const Vector z = load(gate), c = load(gate + 2 * padded), g_j = load(g + j);
            const Vector scaled = epsilon * g_j, product = g_j * (z * c);
            store(d + j, scaled * c * (1.f - z) * z);
            store(d + 2 * padded + j, scaled * z * (1.f - c * c));
            row_sum += lane < (std::int32_t)(hidden - j) ? product : Vector{};
          }
          for (Index j = 0; j < kLanes; j++) epsilon_sum += row_sum[j];
        }
        product(rows, padded, hidden, {delta[filled] + 2 * padded, delta.stride, 1}, a,
                [&](Index i, Index unit, Vector q) {
          const float* gate = activation + (3 * i + 1) * padded + unit;
          fetch(gate + next);
          const Vector r = load(gate);
          const Vector h = load(joint[filled + i] + unit);
          store(reset[filled + i] + unit, r * h);
          store(delta[filled + i] + padded + unit, q * h * (1.f - r) * r);
          store(dh[i] + unit, load(dh[i] + unit) + q * r);
        });
        for (Index i = 0; i < rows; i++)
          std::memcpy(reset[filled + i] + hidden, joint[filled + i] + hidden,
                      (input + 1) * sizeof(float));
        auto add_to_dh = [&](Index i, Index unit, Vector sum) {
          store(dh[i] + unit, load(dh[i] + unit) + sum);
        };
        product(rows, padded, hidden, {delta[filled], delta.stride, 1}, u_z, add_to_dh);
        product(rows, padded, hidden, {delta[filled] + padded, delta.stride, 1}, u_r, add_to_dh);
        if (grad_x) {
          std::fill(dx.data.begin(), dx.data.end(), 0.f);
          for (Index part = 0; part < 3; part++)
            product(rows, input_padded, hidden, {delta[filled] + part * padded, delta.stride, 1},
                    w[part], [&](Index i, Index j, Vector sum) {
              store(dx[i] + j, load(dx[i] + j) + sum);
            });
          for (Index i = 0; i < rows; i++)
            std::memcpy(grad_x + (t * batch + first + i) * input, dx[i], input * sizeof(float));
        }
        filled += rows;
        if (filled + rows > chunk_rows || t == 0) {
          auto add_to = [&](float* to) {
            return [=](Index k, Index column, Vector sum) {
              float* at = to + k * 3 * padded + column;
              store(at, load(at) + sum);
            };
          };
          product(depth, 2 * padded, filled, {joint[0], 1, joint.stride},
                  {delta[0], delta.stride, kPanel}, add_to(sums));
          product(depth, padded, filled, {reset[0], 1, reset.stride},
                  {delta[0] + 2 * padded, delta.stride, kPanel}, add_to(sums + 2 * padded));
          filled = 0;
        }
      }
      for (Index i = 0; i < rows; i++)
        std::memcpy(grad_h_0 + (first + i) * hidden, dh[i], hidden * sizeof(float));
    }
    partial_epsilon[task] = epsilon_sum;
  });

  for (Index p = 1; p < partials; p++)
    for (Index j = 0; j < partial_size; j++) partial[j] += partial[p * partial_size + j];
  for (Index unit = 0; unit < 3 * hidden; unit++) {
    const float* from = partial.data() + unit / hidden * padded + unit % hidden;
    auto element = [&](Index k) { return batch ? from[k * 3 * padded] : 0.f; };
    for (Index k = 0; k < input; k++) grad_weight_ih[unit * input + k] = element(hidden + k);
    if (grad_bias) grad_bias[unit] = element(hidden + input);
    float* to = unit < 2 * hidden ? grad_gate_weight + unit * hidden
                                  : grad_recurrent + (unit - 2 * hidden) * hidden;
    for (Index k = 0; k < hidden; k++) to[k] = element(k);
  }
  *grad_epsilon = 0;
  for (double sum : partial_epsilon) *grad_epsilon += sum;
}
