// One A-GRU layer over a whole sequence in float32, forward and backward. Its products can be in
// bfloat16.
//
//   z = sigma(W_z x + U_z h + b_z)      r = sigma(W_r x + U_r h + b_r)
//   c = tanh(V x + A (r * h) + b)       h' = h + epsilon (z * c)
//
// or, with a second slope at a place p > 0 of the step (Heun's method: 1; two half steps: 1/2),
//
//   d = tanh(V x + A (r * (h + p epsilon (z * c))) + b)      h' = h + epsilon/2 (z * (c + d))
//
// Speed: a thread takes a block of batch rows through all time steps, so that no thread waits and the
// data of a step stay in the cache. A row has the layout [h | x | 1], so one product covers
// recurrent weights, input weights and bias. `finish` uses its sums while they are in registers.
//
// Repeatability: the order of every sum depends on the sizes alone, not on the number of threads.
// NaN and infinity propagate as in the plain loop, because no sum reads padded columns.

#include <algorithm>
#include <cfenv>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <numeric>
#include <type_traits>
#include <utility>
#include <vector>

// The name of the unit that multiplies in bfloat16; empty if the processor has none.
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif
#if defined(__AVX512BF16__) && defined(__AMX_BF16__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
// Linux lets a process use the tiles after it requests them (arch_prctl, ARCH_REQ_XCOMP_PERM).
#define BFLOAT16 (syscall(SYS_arch_prctl, 0x1023, 18) ? "" : "AMX")
#define TILES
#elif defined(__AVX512BF16__)
#define BFLOAT16 "AVX-512"
#else
#define BFLOAT16 ""
#endif

// A vector fills one register. A tile of kTileRows x 2 vectors and its factors fill all registers.
#if defined(__AVX512F__)
#define NAME "AVX-512"
constexpr int kVectorBytes = 64, kTileRows = 8;
#elif defined(__AVX2__)
#define NAME "AVX2"
constexpr int kVectorBytes = 32, kTileRows = 6;
#elif defined(__aarch64__)
#define NAME "NEON"
constexpr int kVectorBytes = 16, kTileRows = 8;
#else
#define NAME "128-bit vectors"
constexpr int kVectorBytes = 16, kTileRows = 4;
#endif
#define UNROLL _Pragma("GCC unroll 16")

using Index = std::int64_t;
typedef float Vector __attribute__((vector_size(kVectorBytes)));
typedef float Unaligned __attribute__((vector_size(kVectorBytes), aligned(4)));
typedef std::int32_t Integers __attribute__((vector_size(kVectorBytes)));

constexpr Index kLanes = kVectorBytes / 4, kTileVectors = 2, kPanel = kTileVectors * kLanes;
constexpr Index kBlockRows = 4 * kTileRows;   // batch rows in a block, which one thread takes
constexpr Index kChunkRows = 4 * kBlockRows;  // rows (steps x batch) in a weight gradient's product
constexpr Index kPartials = 16;               // most partial weight gradients

template <int... lane>
constexpr Integers counting(std::integer_sequence<int, lane...>) { return Integers{lane...}; }
constexpr Integers kLane = counting(std::make_integer_sequence<int, kLanes>{});

static Index round_up(Index n, Index multiple) { return (n + multiple - 1) / multiple * multiple; }
static Vector load(const float* from) { return *reinterpret_cast<const Unaligned*>(from); }
static void store(float* to, Vector v) { *reinterpret_cast<Unaligned*>(to) = v; }
static void copy(float* to, const float* from, Index n) { std::memcpy(to, from, n * sizeof *to); }
// The activations of successive steps lie far apart; prefetching them saves a tenth of the time.
static void fetch(const float* from) { __builtin_prefetch(from); }

// exp(x) - 1 to float accuracy, also near 0. With x = n log 2 + f and |f| <= log(2)/2 it equals
// 2^n p + (2^n - 1), where p = f + f^2 q(f) ~ exp(f) - 1 (coefficients of Cephes' expf).
static Vector expm1(Vector x) {
  x = x < -87.f ? Vector{} - 87.f : x;  // a comparison keeps NaN
  x = x > 87.f ? Vector{} + 87.f : x;
  const float shift = 12582912.f;  // 1.5 * 2^23: adding it rounds to n in the low bits
  const Vector shifted = x * 1.44269504f + shift, n = shifted - shift;
  const Vector f = x - n * 0.693359375f + n * 2.12194440e-4f;
  Vector q = 1.9875691500e-4f * f + 1.3981999507e-3f;
  q = q * f + 8.3334519073e-3f;
  q = q * f + 4.1665795894e-2f;
  q = q * f + 1.6666665459e-1f;
  q = q * f + 5.0000001201e-1f;
  const Vector p = q * (f * f) + f, power = (Vector)(((Integers)shifted << 23) + 0x3f800000);
  return p * power + (power - 1.f);
}
static Vector sigmoid(Vector x) { return x < -87.f ? Vector{} : 1.f / (2.f + expm1(-x)); }
static Vector tanh(Vector x) {
  const Vector e = expm1(x + x);
  return e / (e + 2.f);
}

// Uninitialised scratch memory, aligned to a cache line. It is kept for later calls, because the
// system hands out fresh memory page by page, which is slow.
using Scratch = std::shared_ptr<float[]>;
static Scratch scratch(Index needed) {
  static std::mutex mutex;
  static std::multimap<Index, float*> spare;  // by size
  Index size = 1024;  // powers of two, so that few sizes exist
  while (size < needed) size *= 2;
  std::lock_guard<std::mutex> lock(mutex);
  if (!spare.count(size))
    spare.emplace(size, (float*)::operator new(size * sizeof(float), std::align_val_t{64}));
  return {spare.extract(spare.find(size)).mapped(), [size](float* memory) {
            std::lock_guard<std::mutex> lock(mutex);
            spare.emplace(size, memory);
          }};
}

// Left factor of a product; word (row, k) is data[row * row_stride + k * depth_stride].
struct Left { const float* data; Index row_stride, depth_stride; Scratch memory = {}; };
// Right factor, in panels of kPanel columns; row k of a panel starts at data[k * depth_stride].
struct Right { const float* data; Index depth_stride, panel_stride; };

// The arithmetic of products, in which a word of a factor holds one float32 number.
struct Float32 {
  static Index words(Index depth) { return depth; }
  static Vector add_product(Vector sum, float a, Vector b) { return sum + a * b; }
  template <class Row>
  static Vector word(Row row, Index k) { return row(k); }
  static Left left(Index, Index, Left left) { return left; }
};

#if defined(__AVX512BF16__)
// The arithmetic in which a word holds two bfloat16 numbers, neighbours along the depth. Zeros fill
// up the last vector of words, and sums of products are in float32.
struct Bfloat16 {
#if defined(TILES)
  // Configures the processor's tiles for 16 x 16 sums during the lifetime of this object.
  struct { std::uint8_t palette, _[15]; std::uint16_t bytes[16]; std::uint8_t rows[16]; } shapes =
      {1, {}, {64, 64, 64, 64, 64}, {16, 16, 16, 16, 16}};
  Bfloat16() { _tile_loadconfig(&shapes); }
  ~Bfloat16() { _tile_release(); }
#endif
  static Index words(Index depth) { return round_up(depth, 2 * kLanes) / 2; }
  static Vector add_product(Vector sum, float a, Vector b) {
    return (Vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_ps(a), (__m512bh)b);
  }
  template <class Row>
  static Vector word(Row row, Index k) {
    auto rounded = [](Vector v) {
      return (Integers)_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)v));
    };
    return (Vector)(rounded(row(2 * k)) | rounded(row(2 * k + 1)) << 16);
  }

  // Rounds a left factor of numbers into words that are contiguous along the depth.
  static Left left(Index rows, Index depth, Left left) {
    const Scratch to = scratch(round_up(rows, 16) * words(depth));
    const __m512i places = (__m512i)(kLane * static_cast<std::int32_t>(left.depth_stride));
    for (Index k = 0; k < words(depth); k += kLanes)
      for (Index row = 0; row < rows; row++) {
        auto part = [&](Index from) {
          const Index count = std::min(std::max<Index>(depth - from, 0), kLanes);
          const auto mask = static_cast<__mmask16>((1u << count) - 1);
          const float* at = left.data + row * left.row_stride + from * left.depth_stride;
          return left.depth_stride == 1
                     ? _mm512_maskz_loadu_ps(mask, at)
                     : _mm512_mask_i32gather_ps(_mm512_setzero_ps(), mask, places, at, 4);
        };
        const __m512bh both = _mm512_cvtne2ps_pbh(part(2 * k + kLanes), part(2 * k));
        store(&to[row * words(depth) + k], (Vector)both);
      }
    return {to.get(), words(depth), 1, to};
  }
};
#else
using Bfloat16 = Float32;
#endif

// Calls finish(row, column, sums) with the product of a strip of the left factor, a, and a panel.
template <class Arithmetic, int rows, int vectors, class Finish>
static inline void tile(Index depth, const float* a, const Left& left, Right right, Finish finish) {
  Vector sum[rows][vectors] = {};
  const float* b = right.data;
  for (Index k = 0; k < depth; k++, a += left.depth_stride, b += right.depth_stride) {
    Vector b_k[vectors];
    UNROLL for (int j = 0; j < vectors; j++) b_k[j] = load(b + j * kLanes);
    UNROLL for (int i = 0; i < rows; i++)
      UNROLL for (int j = 0; j < vectors; j++)
        sum[i][j] = Arithmetic::add_product(sum[i][j], a[i * left.row_stride], b_k[j]);
  }
  UNROLL for (int i = 0; i < rows; i++)
    UNROLL for (int j = 0; j < vectors; j++) finish(i, j * kLanes, sum[i][j]);
}

#if defined(TILES)
// The same as `tile`, for a strip of up to 16 rows, by the processor's own tiles.
template <class Finish>
static void tile(Index rows, Index columns, Index depth, const float* a, Right right,
                 Finish finish) {
  alignas(64) float sums[16][kPanel];
  _tile_zero(0);
  _tile_zero(1);
  for (Index k = 0; k < depth; k += 16, right.data += 16 * right.depth_stride) {
    _tile_loadd(2, a + k, 4 * depth);
    _tile_loadd(3, right.data, 4 * right.depth_stride);
    _tile_loadd(4, right.data + 16, 4 * right.depth_stride);
    _tile_dpbf16ps(0, 2, 3);
    _tile_dpbf16ps(1, 2, 4);
  }
  _tile_stored(0, sums[0], sizeof sums[0]);
  _tile_stored(1, sums[0] + 16, sizeof sums[0]);
  for (Index i = 0; i < rows; i++)
    for (Index j = 0; j < columns; j += kLanes) finish(i, j, load(sums[i] + j));
}
#endif

// Calls finish(row, column, sums) for each vector of the rows x columns product of left and right;
// columns is a multiple of kLanes. The left factor holds numbers, not words.
template <class Arithmetic, class Finish>
static void product(Index rows, Index columns, Index depth, Left left, Right right, Finish finish) {
  [[maybe_unused]] const Arithmetic arithmetic{};
  left = Arithmetic::left(rows, depth, left);
  depth = Arithmetic::words(depth);
  for (Index column = 0; column < columns; column += kPanel, right.data += right.panel_stride) {
    Index row = 0;
    auto shifted = [&](Index i, Index j, Vector v) { finish(row + i, column + j, v); };
#if defined(TILES)
    for (; std::is_same_v<Arithmetic, Bfloat16> && row < rows; row += 16)
      tile(std::min<Index>(16, rows - row), std::min(kPanel, columns - column), depth,
           left.data + row * left.row_stride, right, shifted);
#endif
    auto strip = [&](auto height) {
      constexpr int n = decltype(height)::value;
      for (; row + n <= rows; row += n) {
        const float* a = left.data + row * left.row_stride;
        if (columns - column < kPanel) tile<Arithmetic, n, 1>(depth, a, left, right, shifted);
        else tile<Arithmetic, n, kTileVectors>(depth, a, left, right, shifted);
      }
    };
    strip(std::integral_constant<int, kTileRows>{});
    strip(std::integral_constant<int, 4>{});
    strip(std::integral_constant<int, 2>{});
    strip(std::integral_constant<int, 1>{});
  }
}

// A matrix in scratch memory, each row of which starts at a cache line.
struct Rows {
  Index stride;
  Scratch data;
  Rows(Index rows, Index width, bool zero = false)
      : stride(round_up(width, 16)), data(scratch(rows * stride)) {
    if (zero) std::fill_n(data.get(), rows * stride, 0.f);
  }
  float* operator[](Index row) const { return data.get() + row * stride; }
};

// A right factor made from rows; the rows of a panel are contiguous, in the order of reading.
template <class Arithmetic>
struct Packed {
  Index words;
  Scratch data;
  Packed(const float* rows, Index stride, Index depth, Index columns)
      : words(Arithmetic::words(depth)), data(scratch(words * round_up(columns, kPanel))) {
    auto row = [&](Index k, Index column) {
      return k < depth ? load(rows + k * stride + column) : Vector{};
    };
    for (Index column = 0; column < columns; column += kLanes)
      for (Index k = 0; k < words; k++)
        store(data.get() + (column / kPanel * words + k) * kPanel + column % kPanel,
              Arithmetic::word([&](Index number) { return row(number, column); }, k));
  }
  Right from(Index column) const {
    return {data.get() + column / kPanel * words * kPanel, kPanel, words * kPanel};
  }
};

// Runs task(0), ..., task(count - 1) on this many threads of OpenMP, which torch uses too. Threads
// take over the caller's rounding mode and its treatment of denormal numbers.
template <class Task>
static void parallel(Index count, Index threads, Task task) {
  [[maybe_unused]] const int used = static_cast<int>(std::max<Index>(1, std::min(threads, count)));
  std::fenv_t environment;
  std::fegetenv(&environment);
#pragma omp parallel for schedule(dynamic, 1) num_threads(used)
  for (Index i = 0; i < count; i++) {
    std::fesetenv(&environment);
    task(i);
  }
}

// The sizes and arguments of a layer, with T steps, B batch, D input and H hidden.
struct Layer {
  Index steps, batch, input, hidden;
  const float* x;        // (T, B, D), contiguous features, other strides free
  Index x_step, x_row;
  const float* h_0;      // (B, H)
  const float* weights;  // (H + D + 1, 3, padded H): [U_z W_z b_z], [U_r ...], [A V b], transposed
  float epsilon;
  Index threads;
  Index bfloat16;  // whether products are in bfloat16
  float place;     // of the second slope in a step; 0: there is none

  Index padded() const { return round_up(hidden, kLanes); }
  Index depth() const { return hidden + input + 1; }  // length of a row [h | x | 1]
  Index width() const { return std::max(padded(), depth()); }
  // Writes [x | 1] after the h of a row, whose last vector may have overwritten x.
  void append_x(float* row, Index t, Index sample) const {
    copy(row + hidden, x + t * x_step + sample * x_row, input);
    row[hidden + input] = 1.f;
  }
};

// The gradients of the outputs, and where those of the inputs go.
struct Gradients {
  const float* output;  // (T, B, H), contiguous units, other strides free; null for zero
  Index output_step, output_row;
  const float* last;    // (B, H), added at the last step; null for zero
  float *x, *h_0, *weights;  // shapes as in Layer; x and h_0 are null if not needed
};

extern "C" const char* agru_name() { return NAME; }
extern "C" const char* agru_bfloat16() { return BFLOAT16; }
extern "C" Index agru_lanes() { return kLanes; }

// Writes the states to output (T, B, H), and z, r, c and d to gates (T, B, 2 + slopes, padded H)
// unless null.
template <class Arithmetic, int slopes>
static void forward(const Layer& layer, float* output, float* gates) {
  const Index batch = layer.batch, hidden = layer.hidden;
  const Index padded = layer.padded(), depth = layer.depth();
  const Packed<Arithmetic> packed(layer.weights, 3 * padded, depth, 3 * padded);
  const Index share = round_up((batch + layer.threads - 1) / layer.threads, kTileRows);
  const Index block = std::min(kBlockRows, std::max<Index>(share, 1));

  parallel((batch + block - 1) / block, layer.threads, [&, output, gates](Index task) {
    const Index first = task * block, rows = std::min(block, batch - first);
    // Rows [h | x | 1]; and for each slope, with the state where it is taken, [r h | x | 1].
    const Rows state(rows, layer.width()), reset(slopes * rows, layer.width());
    const Rows scratch_gates(gates ? 0 : rows, 3 * padded);
    const float share = layer.epsilon / slopes, reach = layer.epsilon * layer.place;
    for (Index i = 0; i < rows; i++) copy(state[i], layer.h_0 + (first + i) * hidden, hidden);
    for (Index t = 0; t < layer.steps; t++) {
      const Index stride = gates ? (2 + slopes) * padded : scratch_gates.stride;
      float* z = gates ? gates + (t * batch + first) * stride : scratch_gates[0];
      const Index next = gates && t + 1 < layer.steps ? batch * stride : 0;
      for (Index i = 0; i < rows; i++) layer.append_x(state[i], t, first + i);
      product<Arithmetic>(rows, 2 * padded, depth, {state[0], state.stride, 1}, packed.from(0),
                          [&](Index i, Index column, Vector sum) {  // columns of z, then of r
        const Vector gate = sigmoid(sum);
        store(z + i * stride + column, gate);
        fetch(z + i * stride + column + next);
        const Index unit = column - padded;
        if (unit >= 0) store(reset[i] + unit, gate * load(state[i] + unit));
      });
      auto take = [&](auto number) {
        constexpr int slope = decltype(number)::value;
        float *const from = reset[slope * rows], *to = from + rows * reset.stride;
        for (Index i = 0; i < rows; i++) layer.append_x(from + i * reset.stride, t, first + i);
        product<Arithmetic>(rows, padded, depth, {from, reset.stride, 1}, packed.from(2 * padded),
                            [&](Index i, Index unit, Vector sum) {
          const Vector c = tanh(sum);
          float *h = state[i] + unit, *z_i = z + i * stride + unit;
          if (gates) store(z_i + (2 + slope) * padded, c);
          fetch(z_i + (2 + slope) * padded + next);
          if (slope + 1 < slopes)
            store(to + i * reset.stride + unit,
                  load(z_i + padded) * (load(h) + reach * (load(z_i) * c)));
          store(h, load(h) + share * (load(z_i) * c));
        });
      };
      take(std::integral_constant<int, 0>{});
      if constexpr (slopes > 1) take(std::integral_constant<int, 1>{});
      for (Index i = 0; i < rows; i++)
        copy(output + (t * batch + first + i) * hidden, state[i], hidden);
    }
  });
}

// Let g be the gradient of h', q that of r * h, and dz, dr, dc those before sigma and tanh:
//
//   dz = epsilon g c z (1 - z)          q  = A^T dc
//   dc = epsilon g z (1 - c^2)          dr = q h r (1 - r)
//   dh = g + q r + U_z^T dz + U_r^T dr
//
// The sums of [dz | dr] [h | x | 1]^T and dc [r h | x | 1]^T over steps and rows are the gradients
// of the weights. The sum of g z c is the gradient of epsilon, which this function returns.
//
// With a second slope, d, its q, dz and dd come first, by the same formulas, with g/2 in place of g
// and h + p epsilon z c in place of h. Then those of c have g/2 + p q r in place of g, with that q.
// Each pair of terms adds up.
template <class Arithmetic, int slopes>
static double backward(const Layer& layer, const float* output, const float* gates,
                       const Gradients& grad) {
  const Index batch = layer.batch, hidden = layer.hidden, input = layer.input;
  const Index padded = layer.padded(), depth = layer.depth();
  const Index input_padded = round_up(input, kLanes), kinds = 2 + slopes;
  std::vector<Packed<Arithmetic>> u, w;  // recurrent and input weights of z, r, c
  for (Index gate = 0; gate < 3; gate++) {
    const Rows of_h(hidden, hidden, true), of_x(hidden, input, true);
    for (Index i = 0; i < hidden; i++)
      for (Index k = 0; k < hidden + input; k++)
        (k < hidden ? of_h[i] : of_x[i] - hidden)[k] = layer.weights[(3 * k + gate) * padded + i];
    u.emplace_back(of_h[0], of_h.stride, hidden, hidden);
    w.emplace_back(of_x[0], of_x.stride, hidden, input);
  }

  // The batch size alone decides which rows form a block and which blocks form a partial sum.
  const Index half = round_up((batch + 1) / 2, kTileRows);
  const Index block = std::max<Index>(1, std::min(kBlockRows, half));
  const Index blocks = (batch + block - 1) / block;
  const Index partials = std::max<Index>(1, std::min(blocks, kPartials));
  const Index chunk_rows = std::max<Index>(1, kChunkRows / block) * block;
  const Index partial_size = depth * 3 * padded;  // [h | x | 1] x [z | r | c]
  const Scratch partial = scratch(partials * partial_size);
  std::vector<double> partial_epsilon(partials);

  parallel(partials, layer.threads, [&, output, gates](Index task) {
    const Rows state(chunk_rows, layer.width()), reset(slopes * chunk_rows, layer.width());
    const Index at[] = {0, padded, 2 * padded, round_up(3 * padded, kPanel)};
    const Rows delta(chunk_rows, at[kinds - 1] + padded);  // dz, dr, dc, dd at these columns
    const Rows dh(block, padded), dx(block, grad.x ? input_padded : 0);
    const Rows dc(slopes > 1 ? block : 0, padded);  // g/2 + p q r
    const float epsilon = layer.epsilon, reach = epsilon * layer.place;
    float* sums = partial.get() + task * partial_size;
    std::fill_n(sums, partial_size, 0.f);
    double epsilon_sum = 0;
    for (Index b = task * blocks / partials; b < (task + 1) * blocks / partials; b++) {
      const Index first = b * block, rows = std::min(block, batch - first);
      std::fill_n(dh[0], rows * dh.stride, 0.f);
      for (Index i = 0; grad.last && i < rows; i++)
        copy(dh[i], grad.last + (first + i) * hidden, hidden);
      Index filled = 0;  // rows in the chunk so far
      for (Index t = layer.steps - 1; t >= 0; t--) {
        const float* z = gates + (t * batch + first) * kinds * padded;
        const float* h = (t ? output + (t - 1) * batch * hidden : layer.h_0) + first * hidden;
        const Index next = t ? -batch * kinds * padded : 0, next_h = t > 1 ? -batch * hidden : 0;
        float *const d = delta[filled], *const state_t = state[filled];

        for (Index i = 0; i < rows; i++) {
          copy(state_t + i * state.stride, h + i * hidden, hidden);
          layer.append_x(state_t + i * state.stride, t, first + i);
          const float* from = grad.output + t * grad.output_step + (first + i) * grad.output_row;
          for (Index j = 0; grad.output && j < hidden; j++) dh[i][j] += from[j];
        }
        auto take = [&](auto number) {
          constexpr int slope = decltype(number)::value;
          constexpr float share = 1.f / slopes;
          constexpr bool again = slope + 1 < slopes;  // terms add to those of the other slope
          float* const reset_t = reset[slope * chunk_rows + filled];
          float* const d_c = d + at[2 + slope];
          for (Index i = 0; i < rows; i++) {
            Vector row_sum = {};
            for (Index unit = 0; unit < padded; unit += kLanes) {
              const float* gate = z + i * kinds * padded + unit;
              const Vector z_i = load(gate), c = load(gate + (2 + slope) * padded);
              const Vector g = again ? load(dc[i] + unit) : share * load(dh[i] + unit);
              const Vector scaled = epsilon * g, none = {};
              float* const dz = d + i * delta.stride + unit;
              const Vector term = scaled * c * (1.f - z_i) * z_i;
              store(dz, again ? load(dz) + term : term);
              store(d_c + i * delta.stride + unit, scaled * z_i * (1.f - c * c));
              row_sum += kLane < static_cast<std::int32_t>(hidden - unit) ? g * (z_i * c) : none;
            }
            for (Index j = 0; j < kLanes; j++) epsilon_sum += row_sum[j];
          }
          product<Arithmetic>(rows, padded, hidden, {d_c, delta.stride, 1}, u[2].from(0),
                  [&](Index i, Index unit, Vector q) {
            const float* gate = z + (kinds * i + 1) * padded + unit;
            fetch(gate + 2 * slope * padded + next);
            fetch(h + i * hidden + unit + next_h);
            const Vector r = load(gate), g = load(dh[i] + unit);
            Vector h_i = load(state_t + i * state.stride + unit);
            if (slope) {
              h_i += reach * (load(gate - padded) * load(gate + padded));
              store(dc[i] + unit, share * g + layer.place * (q * r));
            }
            store(reset_t + i * reset.stride + unit, r * h_i);
            float* const dr = d + i * delta.stride + padded + unit;
            const Vector term = q * h_i * (1.f - r) * r;
            store(dr, again ? load(dr) + term : term);
            store(dh[i] + unit, g + q * r);
          });
          for (Index i = 0; i < rows; i++) layer.append_x(reset_t + i * reset.stride, t, first + i);
        };
        if constexpr (slopes > 1) take(std::integral_constant<int, 1>{});
        take(std::integral_constant<int, 0>{});
        for (Index gate = 0; gate < 2 && (t > 0 || grad.h_0); gate++)
          product<Arithmetic>(rows, padded, hidden, {d + gate * padded, delta.stride, 1},
                              u[gate].from(0), [&](Index i, Index unit, Vector sum) {
            fetch(z + (kinds * i + 2 * gate) * padded + unit + next);
            store(dh[i] + unit, load(dh[i] + unit) + sum);
          });

        if (grad.x) {
          std::fill_n(dx[0], rows * dx.stride, 0.f);
          for (Index kind = 0; kind < kinds; kind++)
            product<Arithmetic>(rows, input_padded, hidden, {d + at[kind], delta.stride, 1},
                                w[std::min<Index>(kind, 2)].from(0),
                                [&](Index i, Index j, Vector sum) {
              store(dx[i] + j, load(dx[i] + j) + sum);
            });
          for (Index i = 0; i < rows; i++)
            copy(grad.x + (t * batch + first + i) * input, dx[i], input);
        }

        filled += rows;
        if (filled + rows <= chunk_rows && t > 0) continue;
        const Packed<Arithmetic> deltas(delta[0], delta.stride, filled, at[kinds - 1] + padded);
        auto add_up = [&](const float* left, Index from, Index columns, Index to) {
          product<Arithmetic>(depth, columns, filled, {left, 1, state.stride}, deltas.from(from),
                              [&](Index k, Index column, Vector sum) {
            float* total = sums + k * 3 * padded + to + column;
            store(total, load(total) + sum);
          });
        };
        add_up(state[0], 0, 2 * padded, 0);
        for (int slope = 0; slope < slopes; slope++)
          add_up(reset[slope * chunk_rows], at[2 + slope], padded, 2 * padded);
        filled = 0;
      }
      for (Index i = 0; grad.h_0 && i < rows; i++)
        copy(grad.h_0 + (first + i) * hidden, dh[i], hidden);
    }
    partial_epsilon[task] = epsilon_sum;
  });

  std::copy_n(partial.get(), partial_size, grad.weights);
  for (Index p = 1; p < partials; p++)
    for (Index j = 0; j < partial_size; j++) grad.weights[j] += partial[p * partial_size + j];
  return std::accumulate(partial_epsilon.begin(), partial_epsilon.end(), 0.0);
}

extern "C" void agru_forward(const Layer* layer, float* output, float* gates) {
  const auto run = layer->place ? layer->bfloat16 ? forward<Bfloat16, 2> : forward<Float32, 2>
                                : layer->bfloat16 ? forward<Bfloat16, 1> : forward<Float32, 1>;
  run(*layer, output, gates);
}
extern "C" double agru_backward(const Layer* layer, const float* output, const float* gates,
                                const float* grad_output, Index step, Index row,
                                const float* grad_last, float* grad_x, float* grad_h_0,
                                float* grad_weights) {
  const auto run = layer->place ? layer->bfloat16 ? backward<Bfloat16, 2> : backward<Float32, 2>
                                : layer->bfloat16 ? backward<Bfloat16, 1> : backward<Float32, 1>;
  const Gradients grad{grad_output, step, row, grad_last, grad_x, grad_h_0, grad_weights};
  return run(*layer, output, gates, grad);
}
