// Fused multiply-adds on registers only: what one core can do, at the widest vectors it has.
#include <cstdint>
#if defined(__AVX512F__)
constexpr int bytes = 64;
#elif defined(__AVX2__)
constexpr int bytes = 32;
#else
constexpr int bytes = 16;
#endif
typedef float Vector __attribute__((vector_size(bytes)));
extern "C" int64_t peak(int64_t rounds, float* sink) {
  Vector sum[12], x = Vector{} + 0.999f, y = Vector{} + 1e-6f;
  for (auto& s : sum) s = Vector{} + 1.f;
  for (int64_t i = 0; i < rounds; i++)
    for (auto& s : sum) s = s * x + y;
  for (auto& s : sum) x += s;
  *sink = x[0];
  return rounds * 12 * (bytes / 4) * 2;  // operations
}
